"""The in-process engine: the model's own tokens, whatever the path, the batch and the order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import build_checkpoint, build_model

torch = pytest.importorskip("torch", reason="the extra 'local' is not installed")

from opengrm.engines.base import Completion, Request, Sampling  # noqa: E402
from opengrm.engines.chat import ChatTokenizer  # noqa: E402
from opengrm.engines.decoding import Job, Sample, decode, sample  # noqa: E402
from opengrm.engines.shared_prefix import (  # noqa: E402
    MODEL_TYPES,
    attention_and_lse,
    attention_by_definition,
    bundles,
    has_cutlass_kernel,
    serves,
)
from opengrm.engines.transformers import TransformersEngine  # noqa: E402
from opengrm.errors import EngineError, UsageError  # noqa: E402
from opengrm.items import Message  # noqa: E402

EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
FAST: dict[str, dict[str, Any]] = {
    "Gemma": {}, "Granite": {}, "Llama": {}, "Mistral": {"sliding_window": None}, "Mixtral": {}, "Olmo2": {},
    "Phi3": {}, "Qwen2": {}, "Qwen2Moe": {"shared_expert_intermediate_size": 32, **EXPERTS},
    "Qwen3": {}, "Qwen3Moe": EXPERTS,
}  # fmt: skip
SLIDING: dict[str, dict[str, Any]] = {
    "Gemma2": {"sliding_window": 8}, "Gemma3": {"sliding_window": 8}, "Mistral": {"sliding_window": 8},
}  # fmt: skip
CASES = [
    *[(family, config, True) for family, config in FAST.items()],
    *[(family, {}, False) for family in ("Llama", "Qwen3")],
    *[(family, config, False) for family, config in SLIDING.items()],
]
END = 2


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_prompts(*lengths: int, seed: int = 0) -> list[tuple[int, ...]]:
    drawn = np.random.default_rng(seed)
    return [tuple(int(i) for i in drawn.integers(3, 400, length)) for length in lengths]


def collect(model: Any, jobs: list[Job], *, max_batch: int, fast: bool | None = None) -> dict[tuple[int, int], Sample]:
    found = decode(model, jobs, stop_ids={END}, max_batch=max_batch, shared_prefix=fast)
    return {(s.tag, s.index): s for s in found}


@pytest.mark.parametrize(("family", "config", "fast"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_greedy_is_generate_token_for_token(family: str, config: dict[str, Any], fast: bool) -> None:
    """Prompts of different lengths, samples of different lengths, refilling, and log-probabilities."""
    model = build_model(family, **config)
    assert serves(model) == (family in FAST and config == FAST[family])
    prompts = random_prompts(21, 6, 17, 21)
    most = [9, 14, 6, 12]
    jobs = [
        Job(tag, prompt, (1, 2), Sampling(temperature=0, max_tokens=most[tag], logprobs=True))
        for tag, prompt in enumerate(prompts)
    ]
    found = collect(model, jobs, max_batch=5, fast=fast)
    assert len(found) == 8
    for tag, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most[tag], eos_token_id=END,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *expected]])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)[range(len(expected)), expected]
        for index in (0, 1):
            got = found[tag, index]
            assert [*got.token_ids, *[END] * (got.finish == "stop")] == expected
            assert got.logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)


def test_every_served_type_is_tested() -> None:
    assert {build_model(family, **config).config.model_type for family, config in FAST.items()} == MODEL_TYPES


@pytest.mark.parametrize("fast", [True, False])
def test_a_sample_does_not_depend_on_its_batch(fast: bool) -> None:
    """Any batch size, order or split gives the same samples, but for last-bit differences at a token's boundary."""
    model = build_model("Qwen3")
    prompts = random_prompts(12, 5, 30, 12, 9, 14, seed=1)
    settings = (Sampling(1.0, max_tokens=18), Sampling(1.0, top_p=0.95, max_tokens=18))
    jobs = [
        Job(tag, prompt, tuple(range(10 * tag, 10 * tag + 5)), settings[tag % 2]) for tag, prompt in enumerate(prompts)
    ]
    base = collect(model, jobs, max_batch=64, fast=fast)
    assert len(base) == 30
    assert len({s.token_ids for s in base.values()}) == 30
    for max_batch, order in ((64, -1), (7, 1)):
        other = collect(model, jobs[::order], max_batch=max_batch, fast=fast)
        assert other.keys() == base.keys()
        assert sum(other[key].token_ids != base[key].token_ids for key in base) <= 1
    one = [
        collect(model, [Job(0, prompts[2], (seed,), jobs[2].sampling)], max_batch=1)[0, 0] for seed in range(20, 25)
    ]
    assert sum(one[i].token_ids != base[2, i].token_ids for i in range(5)) <= 1


def test_both_paths_give_the_same_samples() -> None:
    model = build_model("Llama")
    jobs = [Job(t, p, tuple(range(8)), Sampling(0.7, max_tokens=15)) for t, p in enumerate(random_prompts(9, 25, 13))]
    shared, plain = (collect(model, jobs, max_batch=16, fast=fast) for fast in (True, False))
    assert sum(shared[key].token_ids != plain[key].token_ids for key in shared) <= 1


def test_first_tokens_follow_the_models_distribution() -> None:
    from scipy.stats import chisquare

    model = build_model("Qwen3")
    (prompt,) = random_prompts(10)
    count = 4000
    (found,) = sample(
        model, [prompt], [range(count)], Sampling(1.0, max_tokens=1, logprobs=True), stop_ids=(), max_batch=count
    )
    with torch.no_grad():
        weights = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy()
    seen = np.bincount([s.token_ids[0] for s in found], minlength=len(weights)).astype(float)
    common = weights * count > 8
    observed = [*seen[common], seen[~common].sum()]
    expected = [*(weights[common] * count), weights[~common].sum() * count]
    assert chisquare(observed, expected).pvalue > 1e-3
    assert found[0].logprobs == pytest.approx([np.log(weights[found[0].token_ids[0]])], abs=1e-4)


class CountedPrefills:
    """Counts the prompts of all prefills, and the largest batch of a step."""

    def __init__(self, model: Any) -> None:
        self.prompts = 0
        self.widest = 0
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows, length = kwargs["input_ids"].shape
        if length > 1:
            self.prompts += rows
        else:
            self.widest = max(self.widest, rows)

    def remove(self) -> None:
        self._handle.remove()


@pytest.mark.parametrize("fast", [True, False])
def test_one_prefill_for_each_distinct_prompt(fast: bool) -> None:
    model = build_model("Qwen3")
    first, second = random_prompts(20, 15)
    settings = Sampling(1.0, max_tokens=4)
    jobs = [Job(tag, first if tag % 2 else second, (tag, 100 + tag), settings) for tag in range(8)]
    counted = CountedPrefills(model)
    assert len(collect(model, jobs, max_batch=16, fast=fast)) == 16
    counted.remove()
    assert counted.prompts == 2
    assert counted.widest == 16


def test_samples_beyond_the_batch_join_their_live_prompt() -> None:
    model = build_model("Qwen3")
    (prompt,) = random_prompts(20)
    counted = CountedPrefills(model)
    found = collect(model, [Job(0, prompt, tuple(range(40)), Sampling(1.0, max_tokens=30))], max_batch=8)
    counted.remove()
    assert len(found) == 40
    assert counted.prompts == 1
    assert counted.widest <= 8


def test_jobs_are_pulled_as_room_comes_up() -> None:
    model = build_model("Qwen3")
    pulled = []

    def jobs() -> Iterator[Job]:
        for tag, prompt in enumerate(random_prompts(*[6] * 50)):
            pulled.append(tag)
            yield Job(tag, prompt, (0,), Sampling(1.0, max_tokens=3))

    loop = decode(model, jobs(), stop_ids=(), max_batch=4)
    next(loop)
    assert len(pulled) <= 12
    loop.close()


def test_sampling_leaves_a_training_model_as_it_was() -> None:
    model = build_model("Qwen3", attention_dropout=0.5).train()
    before = model.config._attn_implementation
    seeds = [[1, 2]]
    first = sample(model, random_prompts(8), seeds, Sampling(1.0, max_tokens=5))
    assert model.training
    assert model.config._attn_implementation == before
    ids = torch.tensor(random_prompts(8))
    model(ids, labels=ids).loss.backward()
    again = sample(model, random_prompts(8), seeds, Sampling(1.0, max_tokens=5))
    assert [s.token_ids for s in again[0]] == [s.token_ids for s in first[0]]


def test_attention_parts_and_masks_by_definition() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 700, 8), torch.randn(2, 3, 700, 8)
    mask = torch.zeros(2, 1, 1, 700)
    mask[0, ..., :600] = float("-inf")  # more than a whole block of the kernel
    out, lse = attention_and_lse(query, key, value, 0.3, mask)
    scores = query @ key.transpose(-1, -2) * 0.3 + mask
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-5)
    assert torch.allclose(out, scores.softmax(-1) @ value, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_without_a_kernel_is_accurate_in_half_precision(dtype: str) -> None:
    """Queries and keys as large as trained models have: their products pass float16's range before they are scaled."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    query, key, value = ((torch.randn(2, 3, n, 64) * size).to(kind) for n, size in ((4, 60), (50, 60), (50, 1)))
    scale = 64**-0.5 / 60
    out, lse = attention_by_definition(query, key, value, scale, None)
    scores = query.double() @ key.double().transpose(-1, -2) * scale
    assert torch.allclose(lse.double(), scores.logsumexp(-1), rtol=1e-5)
    exact = scores.softmax(-1) @ value.double()
    kernel = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
    bound = 1.5 * (kernel - exact).abs().max() + torch.finfo(kind).eps
    assert (out - exact).abs().max() <= bound


@pytest.mark.parametrize(
    "family", ["Qwen3", "Llama"]
)  # with norms of queries and keys, which leave bfloat16, and without
def test_decoding_under_autocast_is_generates(family: str) -> None:
    """As in training with float32 weights in bfloat16: prompts of different lengths, and refilling."""
    model = build_model(family)
    prompts = random_prompts(9, 25, 13, 24, 23)
    jobs = [Job(t, p, (1, 2), Sampling(0, max_tokens=8, logprobs=True)) for t, p in enumerate(prompts)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, shared = (collect(model, jobs, max_batch=4, fast=fast) for fast in (False, True))
        for t, prompt in enumerate(prompts):
            made = model.generate(torch.tensor([prompt]), max_new_tokens=1, do_sample=False, output_logits=True,
                                  return_dict_in_generate=True)  # fmt: skip
            first = float(made.logits[0].float().log_softmax(-1).max())
            for found in (plain, shared):
                assert (found[t, 0].logprobs or ())[0] == pytest.approx(first, abs=0.05)
    exact = collect(model, jobs, max_batch=4)
    same = [plain[key].token_ids[0] == shared[key].token_ids[0] == exact[key].token_ids[0] for key in exact]
    assert sum(same) >= len(same) - 2  # bfloat16 may turn a near tie


@pytest.mark.parametrize(
    ("dtype", "size", "capability", "expected"),
    [
        ("bfloat16", 64, (7, 5), False),  # T4: "cutlassF: no kernel found to launch"
        ("bfloat16", 64, (8, 0), True),
        ("float16", 64, (7, 5), True),
        ("float32", 64, (7, 0), True),
        ("float64", 64, (9, 0), False),
        ("float16", 60, (9, 0), False),
    ],
)
def test_the_cuda_kernel_is_used_where_there_is_one(
    dtype: str, size: int, capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    made: Any = SimpleNamespace(device=torch.device("cuda"), dtype=getattr(torch, dtype), shape=(1, 1, 1, size))
    assert has_cutlass_kernel(made, made) == expected


def test_attention_takes_a_mask_in_another_half_precision() -> None:
    """Masks have the weights' dtype, queries that of autocast."""
    query, key, value = (torch.randn(2, 2, n, 16, dtype=torch.float16) for n in (3, 5, 5))
    mask = torch.zeros(2, 1, 1, 5, dtype=torch.bfloat16)
    mask[0, ..., :2] = float("-inf")
    out, lse = attention_and_lse(query, key, value, 0.25, mask)
    expected, expected_lse = attention_by_definition(query, key, value, 0.25, mask)
    assert torch.allclose(out, expected, atol=1e-2)
    assert torch.allclose(lse, expected_lse, atol=1e-2)


def test_decoding_with_the_attention_of_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("Qwen3")
    jobs = [Job(t, p, (1, 2), Sampling(0, max_tokens=10)) for t, p in enumerate(random_prompts(9, 25, 13))]
    expected = collect(model, jobs, max_batch=8)
    monkeypatch.setattr("opengrm.engines.shared_prefix.attention_and_lse", attention_by_definition)
    found = collect(model, jobs, max_batch=8)
    assert {k: s.token_ids for k, s in found.items()} == {k: s.token_ids for k, s in expected.items()}


def test_bundles_hold_prompts_of_like_lengths() -> None:
    lengths = (100, 10, 80, 9, 76, 100)
    assert bundles([(1,) * n for n in lengths], 1000) == [[0, 5, 2, 4], [1, 3]]
    assert bundles([(1,) * n for n in lengths], 200) == [[0, 5], [2, 4], [1, 3]]
    assert bundles([(1,) * 300], 200) == [[0]]


# The engine: text in, text out.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "Qwen3")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    with TransformersEngine(folder, device="cpu", max_batch=8) as opened:
        yield opened


def ask(text: str, *seeds: int, number: int = 0, **settings: Any) -> Request:
    return Request(
        number, (Message("user", text),), seeds, Sampling(**{"temperature": 1.0, "max_tokens": 12, **settings})
    )


def test_completions_carry_what_was_made(engine: TransformersEngine) -> None:
    asked = [ask("Name a prime.", 1, 2, 3, number=7, logprobs=True), ask("Be short.", 4, number=9)]
    found = {(c.request, c.index): c for c in engine.generate(asked)}
    assert sorted(found) == [(7, 0), (7, 1), (7, 2), (9, 0)]
    for completion in found.values():
        assert completion.error is None
        assert completion.finish in ("stop", "length")
        assert completion.text == engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert completion.completion_tokens == len(completion.token_ids or ()) + (completion.finish == "stop")
        assert completion.seconds > 0
    assert len(found[7, 0].logprobs or ()) == found[7, 0].completion_tokens
    assert found[9, 0].logprobs is None
    chat = engine.tokenizer.apply_chat_template([{"role": "user", "content": "Be short."}], add_generation_prompt=True)
    assert found[9, 0].prompt_tokens == len(chat["input_ids"])


def test_requests_with_equal_messages_share_a_prefill(engine: TransformersEngine) -> None:
    counted = CountedPrefills(engine._model)
    found = list(engine.generate(ask("Same.", number, number=number) for number in range(6)))
    counted.remove()
    assert sorted(c.request for c in found) == list(range(6))
    assert counted.prompts == 1


def test_several_end_tokens(folder: Path, tmp_path: Path) -> None:
    """Half of the vocabulary ends a sample here, so samples stop early; the end token is counted and not shown."""
    shutil.copytree(folder, tmp_path / "m")
    ends = [2, *range(3, 400, 2)]
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with TransformersEngine(tmp_path / "m", device="cpu") as opened:
        found = list(opened.generate([ask("Go on.", *range(20), max_tokens=40)]))
    stopped = [c for c in found if c.finish == "stop"]
    assert len(stopped) >= 15
    assert all(not set(c.token_ids or ()) & set(ends) for c in found)
    assert all(c.completion_tokens == len(c.token_ids or ()) + 1 for c in stopped)


def test_prompts_that_do_not_fit(engine: TransformersEngine) -> None:
    found = {c.request: c for c in engine.generate([ask("word " * 600, 1), ask("short", 1, number=1)])}
    assert found[0].finish == "error"
    assert (found[0].error or "").startswith("too_long: the prompt has ")
    assert "context 512" in (found[0].error or "")
    assert found[1].error is None


def test_the_context_ends_a_sample(engine: TransformersEngine) -> None:
    chat = ChatTokenizer(engine.tokenizer)
    text = "a " * 10
    while len(chat.encode((Message("user", text),))) < 505:
        text += "a "
    (done,) = engine.generate([ask(text, 3, max_tokens=100, temperature=0)])
    assert done.error is None
    assert done.prompt_tokens + done.completion_tokens <= 512


# Errors.


def test_models_and_devices_that_are_not_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="no such model folder"):
        TransformersEngine(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(EngineError, match="is not a folder"):
        TransformersEngine(tmp_path / "file")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EngineError, match="the hub cannot give it"):
        TransformersEngine("nobody/nothing-of-this-name")
    with pytest.raises(EngineError, match="device 'toaster' cannot be used"):
        TransformersEngine(folder, device="toaster")
    with pytest.raises(UsageError, match="dtype 'int3'"):
        TransformersEngine(folder, dtype="int3")
    with pytest.raises(UsageError, match="batch size is 0"):
        TransformersEngine(folder, max_batch=0)


FAILURES = [
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nx"),
     "out of memory with 4 samples in the batch: choose a smaller batch"),
    (MemoryError(), "out of memory with 4 samples in the batch: choose a smaller batch"),
    (ValueError("MiniMax uses a cache of its own\nlong trace"),
     "the model's forward failed: MiniMax uses a cache of its own"),
]  # fmt: skip


@pytest.mark.parametrize(("failure", "words"), FAILURES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("fast", [True, False])
def test_a_failing_forward_says_so(failure: Exception, words: str, fast: bool) -> None:
    model = build_model("Qwen3")

    def fail(*_: Any) -> None:
        raise failure

    model.register_forward_pre_hook(fail)
    with pytest.raises(EngineError) as raised:
        collect(model, [Job(0, (5, 6), (1,), Sampling())], max_batch=4, fast=fast)
    assert str(raised.value) == words


def test_errors_of_the_caller_stay_theirs(engine: TransformersEngine) -> None:
    def requests() -> Iterator[Request]:
        yield ask("Hello.", 1)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        list(engine.generate(requests()))


@pytest.mark.parametrize("fast", [True, False])
def test_numbers_that_are_not_finite_fail_their_own_sample(fast: bool) -> None:
    """One prompt's keys and values are broken from its first step on; its neighbours and successors are as alone."""
    model = build_model("Llama")
    broken = 399
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = float("nan")
        model.lm_head.weight[broken] = 0
    drawn = np.random.default_rng(5)
    clean = [tuple(int(i) for i in drawn.integers(3, 390, length)) for length in (7, 9, 8, 7, 11, 8)]
    jobs = [Job(t, p, (t,), Sampling(0.5, max_tokens=6 + t, logprobs=True)) for t, p in enumerate(clean)]
    expected = collect(model, jobs, max_batch=2, fast=fast)
    bad = [Job(10 + t, (5, 6, broken, 7), (t, 9), Sampling(t / 2, max_tokens=8)) for t in (0, 1)]
    found = collect(model, [bad[0], *jobs[:3], bad[1], *jobs[3:]], max_batch=2, fast=fast)
    for job in bad:
        for index in (0, 1):
            failed = found.pop((job.tag, index))
            assert (failed.finish, failed.error) == ("error", "server: the model gave numbers that are not finite")
    assert {k: s.token_ids for k, s in found.items()} == {k: s.token_ids for k, s in expected.items()}


def test_a_closed_engine_says_so(folder: Path) -> None:
    closed = TransformersEngine(folder, device="cpu")
    closed.close()
    with pytest.raises(EngineError, match="closed"):
        next(closed.generate([ask("Hello.", 1)]))


def test_stopping_early_and_going_on(engine: TransformersEngine) -> None:
    running = engine.generate(ask("Hello.", number, number=number) for number in range(100))
    first: Completion = next(running)
    running.close()
    (again,) = [c for c in engine.generate([ask("Hello.", first.request)]) if c.index == 0]
    assert again.text == first.text


def test_sample_ids_on_the_engine(engine: TransformersEngine) -> None:
    prompts = random_prompts(6, 9)
    found = engine.sample_ids(prompts, [[1, 2], [3]], Sampling(1.0, max_tokens=5, logprobs=True))
    assert [[s.index for s in of_prompt] for of_prompt in found] == [[0, 1], [0]]
    assert all(s.logprobs is not None and len(s.logprobs) >= len(s.token_ids) for of in found for s in of)
