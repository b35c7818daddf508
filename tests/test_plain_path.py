"""The plain path: transformers' own caches, merged so that all prompts decode together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import build_checkpoint, build_model, build_tokenizer

torch = pytest.importorskip("torch", reason="the extra 'local' is not installed")

from opengrm.engines.base import Sampling  # noqa: E402
from opengrm.engines.decoding import Job, Sample, decode, sample  # noqa: E402
from opengrm.engines.repeated_cache import rope_turn  # noqa: E402
from opengrm.engines.shared_prefix import serves  # noqa: E402
from opengrm.engines.transformers import TransformersEngine  # noqa: E402
from opengrm.errors import EngineError  # noqa: E402

LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 8,
    },
    "original_max_position_embeddings": 24,
}  # fmt: skip


def random_prompts(*lengths: int, seed: int = 0) -> list[tuple[int, ...]]:
    drawn = np.random.default_rng(seed)
    return [tuple(int(i) for i in drawn.integers(3, 400, length)) for length in lengths]


def collect(model: Any, jobs: list[Job], *, max_batch: int) -> dict[tuple[int, int], Sample]:
    found = decode(model, jobs, stop_ids=(), max_batch=max_batch, shared_prefix=False)
    return {(s.tag, s.index): s for s in found}


def greedy(model: Any, prompt: tuple[int, ...], most: int) -> tuple[int, ...]:
    """By definition: one whole forward for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(most):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


class Forwards:
    def __init__(self, model: Any) -> None:
        self.steps = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.steps += kwargs["input_ids"].shape[1] == 1


@pytest.mark.parametrize("window", [4, 16, 200])
@pytest.mark.parametrize("family", ["Gemma2", "Gemma3", "Mistral"])
def test_prompts_admitted_at_different_times_decode_together(family: str, window: int) -> None:
    """Rows leave and join all the time; windows are shorter than, like, and longer than the prompts."""
    model = build_model(family, sliding_window=window)
    prompts = random_prompts(21, 13, 17, 25, 14, 19, 22, 12, 16, 24)
    most = [5, 23, 9, 14, 3, 19, 7, 12, 21, 6]
    jobs = [Job(t, p, (1, 2), Sampling(0, max_tokens=most[t])) for t, p in enumerate(prompts)]
    expected = {t: greedy(model, p, most[t]) for t, p in enumerate(prompts)}
    counted = Forwards(model)
    found = collect(model, jobs, max_batch=6)
    assert {key: s.token_ids for key, s in found.items()} == {(t, i): expected[t] for t in expected for i in (0, 1)}
    assert counted.steps <= 75  # without merging: 122 and more


def test_models_that_take_no_positions_decode_unpadded() -> None:
    """RoFormer numbers columns, whatever the mask says: rows may share a forward only where none is padded."""
    model = build_model("RoFormer", is_decoder=True)
    prompts = random_prompts(8, 12, 9, 11, 10, 8)
    most = [12, 7, 12, 8, 9, 12]
    jobs = [Job(t, p, (1, 2), Sampling(0, max_tokens=most[t])) for t, p in enumerate(prompts)]
    expected = {t: greedy(model, p, most[t]) for t, p in enumerate(prompts)}
    counted = Forwards(model)
    found = collect(model, jobs, max_batch=12)
    assert {key: s.token_ids for key, s in found.items()} == {(t, i): expected[t] for t in expected for i in (0, 1)}
    assert counted.steps == sum(m - 1 for m in most) - 11  # the two prompts of 8 tokens decode together


def test_prompts_of_very_different_lengths_stay_apart() -> None:
    model = build_model("Gemma3", sliding_window=16)
    prompts = random_prompts(120, 11, 100, 9)
    jobs = [Job(t, p, (1,), Sampling(0, max_tokens=8)) for t, p in enumerate(prompts)]
    expected = {t: greedy(model, p, 8) for t, p in enumerate(prompts)}
    counted = Forwards(model)
    found = collect(model, jobs, max_batch=4)
    assert counted.steps == 14  # the long ones, and the short ones, seven times each
    assert {t: s.token_ids for (t, _), s in found.items()} == expected


def test_models_that_keep_their_state_elsewhere_are_refused(tmp_path: Path) -> None:
    """Mamba has no `past_key_values`: it would read each token as the first one of a text."""
    import transformers

    tokenizer = build_tokenizer()
    config = transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, state_size=4)
    model = transformers.MambaForCausalLM(config).eval()
    with pytest.raises(EngineError, match="MambaForCausalLM keeps its state elsewhere"):
        sample(model, [(5, 6)], [[1]], Sampling(max_tokens=2))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="MambaForCausalLM keeps its state elsewhere"):
        TransformersEngine(tmp_path, device="cpu")


def test_a_cache_that_the_model_does_not_take_says_so() -> None:
    model = build_model("MiniMax", num_local_experts=2, num_hidden_layers=2)
    with pytest.raises(EngineError, match=r"^the model's forward failed: MiniMax uses"):
        sample(model, [(5, 6)], [[1]], Sampling(max_tokens=2))


class Wrapped(torch.nn.Module):
    """As DDP does: another signature, no configuration, and the model in `module`."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Adapted(Wrapped):
    """As PEFT does."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.module(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def get_base_model(self) -> Any:
        return self.module


@pytest.mark.parametrize("wrap", [Wrapped, Adapted, lambda model: Wrapped(Adapted(model))])
@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_wrapped_models_are_read_from_within(family: str, wrap: Any) -> None:
    """A wrapper's signature hides `position_ids`: padded prompts would then count their padding."""
    model = build_model(family)
    prompts = random_prompts(12, 7, 9)
    plain, wrapped = (
        sample(m, prompts, [[1, 2]] * 3, Sampling(1.0, max_tokens=8), stop_ids=()) for m in (model, wrap(model))
    )
    assert [[s.token_ids for s in of] for of in wrapped] == [[s.token_ids for s in of] for of in plain]
    assert serves(wrap(model)) == serves(model)


def test_longrope_rows_stay_on_their_side() -> None:
    """The embedding's frequencies follow the longest row of a forward, so short and long rows never share one."""
    model = build_model("Phi3", **LONGROPE)
    assert rope_turn(model) == 24
    assert not serves(model)
    prompts = random_prompts(10, 30, 15, 26, 12)
    jobs = [
        Job(t, p, (1,), Sampling(0, max_tokens=m))
        for t, (p, m) in enumerate(zip(prompts, (14, 9, 2, 5, 13), strict=True))
    ]
    found = collect(model, jobs, max_batch=3)
    for job in jobs:
        assert found[job.tag, 0].token_ids == greedy(model, job.prompt, job.sampling.max_tokens)


def test_longrope_samples_that_would_cross_say_so() -> None:
    model = build_model("Phi3", **LONGROPE)
    jobs = [Job(t, p, (1, 2), Sampling(0, max_tokens=9)) for t, p in enumerate(random_prompts(16, 17, 24, 25))]
    found = collect(model, jobs, max_batch=8)
    assert {key[0] for key, s in found.items() if s.error is None} == {0, 3}
    assert found[1, 0].error == (
        "too_long: 17 tokens of prompt and up to 9 new ones cross 24, where this model's rotary embedding changes "
        "(longrope): lower max_tokens"
    )
    assert serves(build_model("Phi3"))
    assert not serves(build_model("Llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))


def test_the_engine_gives_the_reason(tmp_path: Path) -> None:
    from test_transformers_engine import ask

    folder = build_checkpoint(tmp_path / "m", "Phi3", **LONGROPE)
    with TransformersEngine(folder, device="cpu") as engine:
        (done,) = engine.generate([ask("x", 1, max_tokens=100)])
    assert done.finish == "error"
    assert (done.error or "").startswith("too_long: ")
    assert "cross 24" in (done.error or "")
