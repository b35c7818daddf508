"""The vLLM engine against a stand-in for vLLM: a contract test of what is asked and how answers are read.

vLLM itself does not install here, so these tests say nothing about its numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from tiny_models import build_checkpoint

pytest.importorskip("transformers", reason="the extra 'local' is not installed")

from opengrm.engines.base import Request, Sampling
from opengrm.engines.fingerprint import fingerprint
from opengrm.engines.vllm import VLLMEngine
from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.items import Message

END = 2


class StandIn:
    """Records how it is built and asked; answers seed 1 with [5, 6, end], other seeds with max_tokens times 7.

    A step makes one token for each of the four oldest requests, so that some finish while others wait.
    """

    made: ClassVar[list[dict[str, Any]]]
    asked: ClassVar[list[tuple[dict[str, Any], dict[str, Any]]]]

    def __init__(self, **options: Any) -> None:
        from transformers import AutoTokenizer

        self.made.append(options)
        self._tokenizer = AutoTokenizer.from_pretrained(options["model"])
        self.llm_engine = self
        self.model_config = SimpleNamespace(max_model_len=64, dtype="torch.bfloat16")
        self.running: dict[str, list[Any]] = {}
        self.most = 0

    def get_tokenizer(self) -> Any:
        return self._tokenizer

    def add_request(self, number: str, prompt: dict[str, Any], params: Any) -> None:
        assert number not in self.running
        self.asked.append((prompt, vars(params)))
        self.running[number] = [prompt, params, 0]
        self.most = max(self.most, len(self.running))

    def abort_request(self, numbers: list[str]) -> None:
        for number in numbers:
            del self.running[number]

    def step(self) -> list[Any]:
        outputs = []
        for number, state in list(self.running.items())[:4]:
            prompt, params, made = state
            state[2] = made + 1
            answer = self._answer(prompt, params)
            answer.request_id, answer.finished = number, made + 1 == len(answer.outputs[0].token_ids)
            outputs.append(answer)
            if answer.finished:
                del self.running[number]
        return outputs

    def _answer(self, prompt: dict[str, Any], param: Any) -> Any:
        ids = [5, 6, END] if param.seed == 1 else [7] * param.max_tokens
        logprobs = None
        if param.logprobs is not None:
            logprobs = [{token: SimpleNamespace(logprob=-0.5 * token)} for token in ids]
            for place in logprobs if param.logprobs else ():
                place[40] = SimpleNamespace(logprob=-0.25)
        made = SimpleNamespace(
            token_ids=ids, logprobs=logprobs, finish_reason="stop" if param.seed == 1 else "length", text="unused"
        )
        return SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[made])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    class Fresh(StandIn):
        made: ClassVar[list[dict[str, Any]]] = []
        asked: ClassVar[list[tuple[dict[str, Any], dict[str, Any]]]] = []

    module: Any = ModuleType("vllm")
    module.LLM = Fresh
    module.SamplingParams = SimpleNamespace
    params: Any = ModuleType("vllm.sampling_params")
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY="whole")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    return Fresh


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "Qwen3")


def test_one_request_for_each_seed(vllm: type[StandIn], folder: Path) -> None:
    with VLLMEngine(folder, dtype="float32", tensor_parallel_size=2) as engine:
        assert engine.model == f"tiny@{fingerprint(folder)}-vllm.bfloat16"
        settings = Sampling(temperature=0.7, top_p=0.9, max_tokens=3, logprobs=True)
        found = list(engine.generate([Request(4, (Message("user", "Hi."),), (1, 8), settings)]))
    (made,) = vllm.made
    assert made == {
        "model": str(folder), "dtype": "float32", "trust_remote_code": False, "enable_prefix_caching": True,
        "tensor_parallel_size": 2,
    }  # fmt: skip
    assert [params for _, params in vllm.asked] == [
        {
            "n": 1,
            "seed": seed,
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 3,
            "logprobs": 0,
            "output_kind": "whole",
        }
        for seed in (1, 8)
    ]
    assert vllm.asked[0][0] == vllm.asked[1][0]
    assert [(c.request, c.index, c.finish, c.token_ids, c.completion_tokens) for c in found] == [
        (4, 0, "stop", (5, 6), 3),
        (4, 1, "length", (7, 7, 7), 3),
    ]
    assert found[0].logprobs == (-2.5, -3.0, -1.0)
    assert found[0].prompt_tokens == len(vllm.asked[0][0]["prompt_token_ids"])


def test_alternatives_and_pieces(vllm: type[StandIn], folder: Path) -> None:
    settings = Sampling(max_tokens=3, logprobs=True, alternatives=2)
    with VLLMEngine(folder, dtype="float32") as engine:
        (found,) = engine.generate([Request(4, (Message("user", "Hi."),), (1,), settings)])
        decode = engine._chat.decode
    assert vllm.asked[0][1]["logprobs"] == 2
    assert found.logprobs == (-2.5, -3.0, -1.0)
    assert found.pieces == (decode([5]), decode([6]), "")
    assert "".join(found.pieces) == found.text
    assert found.alternatives == tuple(
        ((decode([token]), -0.5 * token), (decode([40]), -0.25)) for token in (5, 6, END)
    )


def ask(number: int, *seeds: int, most: int = 4) -> Request:
    return Request(number, (Message("user", "Hi."),), seeds, Sampling(max_tokens=most))


def test_samples_appear_as_they_finish(vllm: type[StandIn], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request waits for the slowest of its window, and places are filled again at once."""
    monkeypatch.setattr("opengrm.engines.vllm._IN_FLIGHT", 4)
    pulled: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(20):
            pulled.append(number)
            yield ask(number, number + 2, most=40 if number == 0 else 2)

    with VLLMEngine(folder) as engine:
        running = engine.generate(requests())
        first = next(running)
        assert first.request == 1
        assert len(pulled) <= 5
        order = [first.request, *(c.request for c in running)]
        assert engine._llm.most == 4
    assert sorted(order) == list(range(20))
    assert order.index(0) >= 19


def test_stopping_early_gives_up_what_is_in_flight(vllm: type[StandIn], folder: Path) -> None:
    with VLLMEngine(folder) as engine:
        running = engine.generate(ask(number, 1, 2) for number in range(10))
        next(running)
        running.close()
        assert engine._llm.running == {}
        assert len(list(engine.generate([ask(0, 1, 2)]))) == 2
    with pytest.raises(EngineError, match="closed"):
        list(engine.generate([ask(0, 1)]))


def test_variables_of_the_chat_template(vllm: type[StandIn], folder: Path) -> None:
    engine = VLLMEngine(folder, chat_template_kwargs={"enable_thinking": False})
    assert engine.model.startswith(f"tiny@{fingerprint(folder)}-vllm.bfloat16-")
    assert vllm.made[0].keys() == {"model", "dtype", "trust_remote_code", "enable_prefix_caching"}


def test_options_that_change_texts_are_in_the_identity(vllm: type[StandIn], folder: Path) -> None:
    def name(**options: Any) -> str:
        return VLLMEngine(folder, **options).model

    plain = name()
    assert plain == name(
        tensor_parallel_size=2, max_num_seqs=8, gpu_memory_utilization=0.5, enable_prefix_caching=False
    )
    assert vllm.made[-1]["enable_prefix_caching"] is False
    names = [
        name(kv_cache_dtype="fp8"), name(kv_cache_dtype="auto"), name(quantization="fp8"), name(max_model_len=32),
        name(hf_overrides={"rope_theta": 1e4}), name(hf_overrides={"rope_theta": 1e5}), name(tokenizer="other"),
    ]  # fmt: skip
    assert len({*names, plain}) == len(names) + 1
    assert all(n.startswith(f"{plain}+") for n in names)
    assert name(kv_cache_dtype="fp8", tensor_parallel_size=2) == names[0]
    loaded = len(vllm.made)
    with pytest.raises(UsageError, match="engine options cannot be written as JSON"):
        name(hf_overrides=print)
    assert len(vllm.made) == loaded


def test_prompts_and_samples_stay_within_the_context(vllm: type[StandIn], folder: Path) -> None:
    with VLLMEngine(folder) as engine:
        long = Request(0, (Message("user", "word " * 100),), (1, 2), Sampling())
        short = Request(1, (Message("user", "x"),), (3,), Sampling(max_tokens=500))
        found = list(engine.generate([long, short]))
    assert [(c.error or "")[:9] for c in found] == ["too_long:", "too_long:", ""]
    assert found[2].prompt_tokens + found[2].completion_tokens == 64


def test_without_vllm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtra, match=r"opengrm\[vllm\]"):
        VLLMEngine(folder)


def test_failures_are_one_line(vllm: type[StandIn], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VLLMEngine(folder)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error\nlong trace")

    monkeypatch.setattr(vllm, "step", fail)
    with pytest.raises(EngineError, match=r"^vLLM failed: CUDA error$"):
        list(engine.generate([Request(0, (Message("user", "x"),), (3,), Sampling())]))
    monkeypatch.setattr(vllm, "__init__", fail)
    with pytest.raises(EngineError, match="vLLM cannot load this model: CUDA error"):
        VLLMEngine(folder)
