"""RL: rewards and rows, advantages and loss by hand, the shared-prompt forward against TRL's own, resuming."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from instant_engine import InstantEngine
from tiny_models import build_checkpoint, build_model

from opengrm.engines.base import Request, Sampling
from opengrm.errors import EngineError, UsageError
from opengrm.items import Item, Message
from opengrm.templates import get_template
from opengrm.templates.base import Parsed
from opengrm.templates.compact import Compact
from opengrm.templates.forms import Forms, forms_of
from opengrm.training.resume import last_checkpoint
from opengrm.training.rewards import outcome, outcome_reward, rows, usable_items
from opengrm.training.rl import Reference, Settings, too_easy, train

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

FORMS = forms_of(Compact())


def pair(number: int, best: int = 0) -> Item:
    return Item((Message("user", f"Query {number}"),), (f"a {number}", f"b {number} b"), best=best, id=str(number))


class Sizes:
    """A stand-in template: the first response shown gets the text's length modulo 3, the others get 1.

    A random model's text then is right about a third of the time, whatever it says.
    """

    name, version, low, high, solo = "sizes", "1", 0.0, 2.0, False

    def render(self, item: Item, order: Any) -> tuple[Message, ...]:
        return (Message("user", " | ".join([item.prompt[0].content, *(item.responses[i] for i in order)])),)

    def parse(self, text: str, n: int) -> Parsed:
        return Parsed((float(len(text) % 3), *[1.0] * (n - 1)))


SMALL = Settings(
    steps=4, batch=16, max_tokens=10, learning_rate=3e-3, warmup_steps=0, save_every=2, epsilon=0.2, beta=0.08
)


def with_(settings: Settings, **changes: Any) -> Settings:
    from dataclasses import replace

    return replace(settings, **changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def make_trainer(checkpoint: Path, folder: Path, settings: Settings, reward: Any = None, share: bool = True) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from opengrm.engines.chat import ChatTokenizer
    from opengrm.training.grpo import GroupTrainer
    from opengrm.training.rewards import outcome_reward
    from opengrm.training.rl import grpo_config, training_rows
    from opengrm.training.rollouts import own_rollouts

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    chat = ChatTokenizer(tokenizer)
    forms = Forms(Sizes(), Sizes())
    items = [pair(i, i % 2) for i in range(40)]
    sampling = Sampling(settings.temperature, 1.0, settings.max_tokens, logprobs=True)
    return GroupTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        reward_funcs=reward or outcome_reward(items, forms, lambda ids: (chat.decode(ids), False)),
        args=grpo_config(settings, folder),
        train_dataset=training_rows(items, forms, settings),
        processing_class=tokenizer,
        rollout_func=own_rollouts(chat, sampling, settings.seed),
        chat=chat,
        share_prompts=share,
    )


def scored(trainer: Any) -> dict[str, Any]:
    """The first batch, sampled and scored, as the trainer would learn from it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch: dict[str, Any] = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    return batch


# --- rewards ---


@pytest.mark.parametrize(
    ("order", "box", "reward", "parsed"),
    [
        ((0, 1), "8, 3", 1.0, True),  # the best, index 0, is shown first and scores highest
        ((1, 0), "8, 3", -1.0, True),  # the same text under the other order praises the other response
        ((1, 0), "3, 8", 1.0, True),
        ((0, 1), "5, 5", -1.0, True),  # a tie is wrong
        ((0, 1), "8", -1.0, False),  # a wrong count
        ((0, 1), "11, 3", -1.0, False),  # out of range
    ],
)
def test_outcome_of_pairs(order: tuple[int, ...], box: str, reward: float, parsed: bool) -> None:
    assert outcome(pair(0), Compact(), order, f"short 5\n[1] short yes = 5\n\\boxed{{{box}}}") == (reward, parsed)


def test_outcome_without_a_box_is_wrong() -> None:
    assert outcome(pair(0), Compact(), (0, 1), "the first is better, 8 to 3") == (-1.0, False)


@pytest.mark.parametrize(
    ("text", "cut", "found"),
    [
        (r"[1] good\n\boxed{8, 3}", False, (1.0, True)),
        (r"[1] good\n\boxed{8, 3}", True, (1.0, True)),  # its last words: nothing can come behind them
        (r"[1] good\n\boxed{8, 3} which is wrong because", True, (-1.0, False)),
        (r"<think>maybe \boxed{8, 3}", False, (-1.0, False)),  # a thought that never ends
        (r"<think>maybe \boxed{3, 8}</think>\boxed{8, 3}", False, (1.0, True)),
    ],
)
def test_the_reward_reads_as_a_judge_does(text: str, cut: bool, found: tuple[float, bool]) -> None:
    assert outcome(pair(1), get_template("grm"), (0, 1), text, cut=cut, tokens=9) == found


def test_the_reward_is_told_of_cut_off_texts() -> None:
    texts = {(1,): (r"\boxed{8, 3} and", True), (2,): (r"\boxed{8, 3}", False)}
    reward = outcome_reward([pair(1)], forms_of(get_template("grm")), lambda ids: texts[tuple(ids)])
    assert reward(completion_ids=[(1,), (2,)], item=[0, 0], order=[(0, 1), (0, 1)]) == [-1.0, 1.0]


def test_outcome_of_three_in_a_permuted_order() -> None:
    item = Item((Message("user", "q"),), ("a", "b", "c"), best=2)
    # Position 0 shows b, position 1 shows c, position 2 shows a.
    assert outcome(item, Compact(), (1, 2, 0), "\\boxed{4, 9, 8}") == (1.0, True)
    assert outcome(item, Compact(), (1, 2, 0), "\\boxed{9, 4, 8}") == (-1.0, True)
    assert outcome(item, Compact(), (1, 2, 0), "\\boxed{4, 9, 9}") == (-1.0, True)


@pytest.mark.parametrize(("label", "box", "reward"), [(1.0, "1", 1.0), (1.0, "0", -1.0), (0.0, "0", 1.0)])
def test_outcome_of_a_single_response(label: float, box: str, reward: float) -> None:
    item = Item((Message("user", "q"),), ("a",), rewards=(label,))
    template = FORMS.of(item)
    assert template.name == "compact-binary"
    assert outcome(item, template, (0,), f"\\boxed{{{box}}}") == (reward, True)


def test_usable_items_are_counted_by_reason() -> None:
    given = [
        pair(0),
        Item((Message("user", "q"),), ("a", "b")),
        Item((Message("user", "q"),), ("a",), rewards=(1.0,)),
        Item((Message("user", "q"),), ("a",), rewards=(7.0,)),
        Item((Message("user", "q"),), ("long", "b"), best=0),
    ]
    found = usable_items(given, FORMS, lambda item: item.responses[0] != "long")
    assert found.places == (0, 2)
    assert found.dropped == {"no label": 1, "label outside the single form's scores": 1, "too long": 1}


def test_rl_refuses_the_solo_form() -> None:
    with pytest.raises(UsageError, match="joint form"):
        forms_of(Compact("compact-solo"))


def test_rows_show_each_item_in_its_next_order_every_epoch() -> None:
    items = [pair(i) for i in range(5)]
    found = list(rows(items, 12, seed=3))
    assert [sorted(row.item for row in found[start : start + 5]) for start in (0, 5)] == [[0, 1, 2, 3, 4]] * 2
    assert len(found) == 12
    for place in range(5):
        first, second = [row.order for row in found[:10] if row.item == place]
        assert {first, second} == {(0, 1), (1, 0)}
    assert found[:7] == list(rows(items, 7, seed=3))
    assert found != list(rows(items, 12, seed=4))


# --- the too-easy filter ---


def test_too_easy_drops_three_right_of_three() -> None:
    """Item i is judged right where i is even; item 4 once in vain. "a" is the best and is recognised by its text."""
    seen: dict[str, int] = {}

    def answer(request: Request, index: int) -> str:
        text = request.messages[-1].content
        number = int(text.split("Query: Query ")[1].split("\n")[0])
        seen[str(number)] = seen.get(str(number), 0) + 1
        if number == 4 and seen["4"] == 2:
            return "no box"
        first = "[1] a" in text
        return "\\boxed{9, 1}" if first == (number % 2 == 0) else "\\boxed{1, 9}"

    items = [pair(i) for i in range(6)]
    engine = InstantEngine(answer)
    easy = too_easy(items, FORMS, Reference(lambda: engine), lambda line: None)
    assert easy == [True, False, True, False, False, False]
    assert engine.asked == 18


# --- advantages and loss, by hand ---


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        # Rewards +1 and -1; the mean is taken off and the SAMPLE standard deviation (divided by 4 - 1) plus 1e-4
        # divides. 1 right: mean -1/2, deviations 3/2 and -1/2, variance (9/4 + 3/4) / 3 = 1.
        (1, [1.5 / (1 + 1e-4), *[-0.5 / (1 + 1e-4)] * 3]),
        # 2 right: mean 0, variance 4/3.
        (2, [*[1 / (math.sqrt(4 / 3) + 1e-4)] * 2, *[-1 / (math.sqrt(4 / 3) + 1e-4)] * 2]),
        (3, [*[0.5 / (1 + 1e-4)] * 3, -1.5 / (1 + 1e-4)]),
        (4, [0.0] * 4),
    ],
)
def test_advantages(right: int, expected: list[float], checkpoint: Path, tmp_path: Path) -> None:
    def reward(completion_ids: Any, **_: Any) -> list[float]:
        return [1.0 if i % 4 < right else -1.0 for i in range(len(completion_ids))]

    batch = scored(make_trainer(checkpoint, tmp_path, SMALL, reward))
    assert batch["advantages"].tolist() == pytest.approx(expected * 4, abs=1e-6)


def logprobs_alone(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
    """From the logits of one unpadded sequence, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    return [float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(completion)]


def perturb(model: Any, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("share", [True, False])
def test_loss_by_hand(share: bool, checkpoint: Path, tmp_path: Path) -> None:
    """Per sequence, the mean over its tokens of -min(rho A, clip(rho) A) + beta (exp(d) - d - 1); then their mean."""
    trainer = make_trainer(checkpoint, tmp_path, SMALL, share=share)
    batch = scored(trainer)
    perturb(trainer.model, 0.02, seed=1)  # away from the reference model: d is not 0
    old = batch["ref_per_token_logps"] + 0.3 * torch.randn(
        batch["ref_per_token_logps"].shape, generator=torch.Generator().manual_seed(2)
    )
    batch["old_per_token_logps"] = old  # away from the sampling policy: rho is not 1, and often clipped
    with torch.no_grad():
        loss = float(trainer._compute_loss(trainer.model, batch))

    fresh = build_reference(checkpoint)
    losses, clipped = [], 0
    for i in range(16):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        completion = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        policy = logprobs_alone(trainer.model, prompt, completion)
        reference = logprobs_alone(fresh, prompt, completion)
        advantage = float(batch["advantages"][i])
        terms = []
        for t in range(len(completion)):
            rho = math.exp(policy[t] - float(old[i, t]))
            inside = min(max(rho, 0.8), 1.2)
            clipped += min(rho * advantage, inside * advantage) != rho * advantage
            d = reference[t] - policy[t]
            terms.append(-min(rho * advantage, inside * advantage) + 0.08 * (math.exp(d) - d - 1))
        losses.append(sum(terms) / len(terms))
    assert clipped > 5
    assert any(losses)
    assert loss == pytest.approx(sum(losses) / 16, abs=1e-5)


def build_reference(checkpoint: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def test_the_samplers_logprobs_are_the_trainers(checkpoint: Path, tmp_path: Path) -> None:
    trainer = make_trainer(checkpoint, tmp_path, SMALL)
    batch = scored(trainer)
    mask = batch["completion_mask"].bool()
    gap = (batch["sampling_per_token_logps"] - batch["ref_per_token_logps"])[mask].abs().max()
    assert float(gap) < 1e-4  # at the first step the policy is the reference
    assert int(mask.sum()) == sum(len(t) for t in batch["sampling_per_token_logps"]) - int((~mask).sum())


# --- the cheaper forward is the same function ---


def gradients(model: Any) -> list[Any]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def close(ones: list[Any], others: list[Any], tolerance: float) -> bool:
    return len(ones) == len(others) and all(
        float((a - b).abs().max()) <= tolerance * (1e-3 + float(b.abs().max()))
        for a, b in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_prompts_give_the_same_logprobs_and_gradients(family: str, temperature: float) -> None:
    """Two prompts of 8 and 12 tokens, three completions of 9, 3, 5 and 1, 7, 8 tokens, against the padded batch."""
    from opengrm.training.shared_prompt import attending, completion_logprobs, pack

    model = build_model(family).train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 400, (6, 21), generator=generator)
    mask = torch.ones(6, 21, dtype=torch.long)
    ids[1:3, :12], ids[4:, :12] = ids[0, :12], ids[3, :12]
    mask[:3, :4] = 0
    for row, length in enumerate([9, 3, 5, 1, 7, 8]):
        mask[row, 12 + length :] = 0
    ids[mask == 0] = 0
    weights = torch.randn(6, 9, generator=generator) * mask[:, 12:]

    layout = pack(ids, mask, 9)
    assert layout.tokens_1N.shape == (1, 7 + 11 + 33)  # each prompt once without its last token; 33 completion tokens
    before = model.config._attn_implementation
    with attending(model):
        logprobs, entropy = completion_logprobs(model, layout, temperature)
        (logprobs * weights).sum().backward()
    assert model.config._attn_implementation == before
    ours = gradients(model)
    model.zero_grad()

    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, 11:-1] / temperature
    plain = torch.log_softmax(logits, dim=-1)
    expected = plain.gather(-1, ids[:, 12:, None])[..., 0] * mask[:, 12:]
    (expected * weights).sum().backward()
    assert float((logprobs - expected).abs().max()) < 1e-5
    assert float((entropy - -(plain.exp() * plain).sum(-1) * mask[:, 12:]).abs().max()) < 1e-5
    assert close(ours, gradients(model), 1e-4)


def test_many_logits_go_through_the_fused_head(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> None:
    from opengrm.training import shared_prompt

    trainer = make_trainer(checkpoint, tmp_path, SMALL)
    batch = scored(trainer)
    plain = trainer._compute_loss(trainer.model, batch)
    plain.backward()
    ours = gradients(trainer.model)
    trainer.model.zero_grad()
    monkeypatch.setattr(shared_prompt, "_MANY_LOGITS", 1)
    fused = trainer._compute_loss(trainer.model, batch)
    fused.backward()
    assert float(fused) == pytest.approx(float(plain), abs=1e-6)
    assert close(ours, gradients(trainer.model), 1e-4)


@pytest.mark.parametrize("beta", [0.08, 0.0])
def test_loss_and_gradient_equal_trls(beta: float, checkpoint: Path, tmp_path: Path) -> None:
    """Where beta is 0, rows without signal are left out: here the first group has none."""
    from trl import GRPOTrainer

    trainer = make_trainer(checkpoint, tmp_path, with_(SMALL, beta=beta))
    batch = scored(trainer)
    batch["advantages"][:4] = 0.0
    perturb(trainer.model, 0.01, seed=1)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    ours = gradients(trainer.model)
    trainer.model.zero_grad()
    trainer._share = False
    expected = GRPOTrainer._compute_loss(trainer, trainer.model, batch)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    assert close(ours, gradients(trainer.model), 1e-4)


@pytest.mark.parametrize("changes", [{"micro_batch": 4}, {"checkpointing": True, "micro_batch": 8}])
def test_training_equals_trls_forward(changes: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    """Two steps on the same rollouts, shared prompts against TRL's own forward on the whole batch."""
    settings = with_(SMALL, steps=2, save_every=10)
    plain = make_trainer(checkpoint, tmp_path / "plain", settings, share=False)
    plain.train()
    ours = make_trainer(checkpoint, tmp_path / "ours", with_(settings, **changes))
    assert ours._share
    ours.train()
    assert close(list(ours.model.parameters()), list(plain.model.parameters()), 1e-3)
    start = build_reference(checkpoint)
    assert not close(list(ours.model.parameters()), list(start.parameters()), 1e-2)


# --- whole runs ---


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def run(checkpoint: Path, output: Path, settings: Settings = SMALL, say: Any = lambda line: None) -> Path:
    return train([pair(i, i % 2) for i in range(10)], checkpoint, output, settings, template=Sizes(), say=say)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_to_the_same_end(checkpoint: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(checkpoint, whole)

    def kill(line: str) -> None:
        if line.startswith("step 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, killed, say=kill)
    found = last_checkpoint(killed / "checkpoints")
    assert found is not None
    assert found.name == "checkpoint-2"
    torn = killed / "checkpoints" / "checkpoint-3"  # as a kill in the middle of saving leaves it
    torn.mkdir()
    lines: list[str] = []
    run(checkpoint, killed, say=lines.append)
    assert not torn.exists()
    assert "going on from step 2" in lines
    ours, theirs = weights(killed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["step"] for row in metrics(killed)] == [1, 2, 3, 4]
    timed = ("seconds", "rollout_seconds")
    assert [{k: v for k, v in row.items() if k not in timed} for row in metrics(killed)] == [
        {k: v for k, v in row.items() if k not in timed} for row in metrics(whole)
    ]
    first = metrics(whole)[0]
    assert first["correct"] == pytest.approx((first["reward"] + 1) / 2)
    assert first["parse_rate"] == 1.0
    assert abs(first["kl"]) < 1e-6
    assert first["tokens"] == first["tokens_so_far"] > 0

    # An ordinary checkpoint, and a run that is done.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(whole)
    AutoTokenizer.from_pretrained(whole)
    run(checkpoint, whole, say=lines.append)
    assert lines[-1].endswith("is trained already")
    with pytest.raises(UsageError, match="beta"):
        run(checkpoint, whole, with_(SMALL, beta=0.01))


class Letter(Sizes):
    """The first response shown wins where the text holds a "z"; a random model writes one now and then."""

    name = "letter"

    def parse(self, text: str, n: int) -> Parsed:
        return Parsed((2.0 if "z" in text else 0.0, *[1.0] * (n - 1)))


def test_the_reward_climbs(checkpoint: Path, tmp_path: Path) -> None:
    settings = with_(SMALL, steps=15, batch=64, learning_rate=1e-2, orders="fixed", beta=0.01, save_every=100)
    train([pair(i) for i in range(16)], checkpoint, tmp_path / "x", settings, template=Letter())
    found = [row["correct"] for row in metrics(tmp_path / "x")]
    assert sum(found[:3]) / 3 < 0.6
    assert sum(found[-3:]) / 3 > 0.9


@pytest.mark.parametrize("own", [True, False])
def test_training_in_bfloat16(checkpoint: Path, tmp_path: Path, own: bool) -> None:
    """Float32 weights that compute in bfloat16, in the sampler too: it draws from what is trained."""
    settings = with_(SMALL, steps=2, precision="bfloat16", rollouts="own" if own else "trl", save_every=100)
    train([pair(i) for i in range(16)], checkpoint, tmp_path / "x", settings, template=Letter())
    rows = metrics(tmp_path / "x")
    assert len(rows) == 2
    assert all(math.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        ("too_long: the prompt has 9 tokens", UsageError, "too_long: the prompt has 9 tokens: leave out items that"),
        (
            "server: numbers that are not finite",
            EngineError,
            "a rollout failed at step 0: numbers that are not finite; try",
        ),
    ],
)
def test_rollouts_that_fail_say_why(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, kind: type[Exception], said: str
) -> None:
    from opengrm.engines import decoding

    def broken(model: Any, prompts: Any, seeds: Any, *words: Any, **values: Any) -> list[list[decoding.Sample]]:
        return [[decoding.Sample(0, i, (), "error", None, 0.0, error) for i, _ in enumerate(each)] for each in seeds]

    monkeypatch.setattr(decoding, "sample", broken)
    with pytest.raises(kind, match=said):
        train([pair(i) for i in range(16)], checkpoint, tmp_path / "x", SMALL, template=Letter())


def test_lora_is_merged_into_an_ordinary_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    output = run(checkpoint, tmp_path / "lora", with_(SMALL, steps=2, lora_rank=4))
    before, after = weights(checkpoint), weights(output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(after) == set(before)
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
    assert not (output / "checkpoints").exists()
    assert not list(output.glob("adapter*"))


def test_the_result_has_the_bases_precision_and_says_what_it_learned(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    base = build_checkpoint(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(base)
    settings = with_(SMALL, steps=1, batch=8, max_tokens=4, checkpointing=True)
    output = train([pair(i) for i in range(8)], base, tmp_path / "out", settings, template=Compact())
    config = AutoConfig.from_pretrained(output)
    assert (config.dtype, config.use_cache, config.opengrm_template) == (torch.bfloat16, True, "compact")
    assert {t.dtype for t in weights(output).values()} == {torch.bfloat16}


def test_a_finished_run_is_not_taken_for_one_on_other_labels(checkpoint: Path, tmp_path: Path) -> None:
    settings = with_(SMALL, steps=1, batch=8, max_tokens=4)
    items = [pair(i) for i in range(4)]
    output = train(items, checkpoint, tmp_path / "x", settings, template=Sizes())
    assert train(items, checkpoint, output, settings, template=Sizes()) == output
    with pytest.raises(UsageError, match="other items or labels"):
        train([pair(i, 1) for i in range(4)], checkpoint, output, settings, template=Sizes())


def test_what_did_not_fit_into_memory_may_be_changed(checkpoint: Path, tmp_path: Path) -> None:
    settings = with_(SMALL, steps=1, batch=8, max_tokens=4)
    items = [pair(i) for i in range(4)]
    train(items, checkpoint, tmp_path / "x", settings, template=Sizes(), choose_only=True)
    with pytest.raises(UsageError, match=r"beta 0\.08, now 0\.5"):
        train(items, checkpoint, tmp_path / "x", with_(settings, beta=0.5), template=Sizes())
    smaller = with_(settings, micro_batch=4, checkpointing=True, sample_batch=2)
    assert (train(items, checkpoint, tmp_path / "x", smaller, template=Sizes()) / "config.json").exists()


def test_trls_own_rollouts(checkpoint: Path, tmp_path: Path) -> None:
    output = run(checkpoint, tmp_path / "trl", with_(SMALL, steps=1, rollouts="trl"))
    (row,) = metrics(output)
    assert row["rollout_seconds"] is None
    assert 1 <= row["completion_tokens"] <= SMALL.max_tokens


def test_a_reporter_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot report to nowhere"):
        run(checkpoint, tmp_path / "x", with_(SMALL, report_to=("nowhere",)))
    assert not (tmp_path / "x").exists()


def test_items_that_cannot_be_used_are_refused_before_training(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no item is left"):
        train([Item((Message("user", "q"),), ("a", "b"))], checkpoint, tmp_path / "x", SMALL, template=Sizes())
    assert json.loads((tmp_path / "x" / "items.json").read_text())["dropped"] == {"no label": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 10}, "multiple of generations"),
        ({"generations": 1}, "at least 2"),
        ({"temperature": 0.0}, "without chance"),
        ({"rollouts": "vllm"}, "address of the server"),
        ({"vllm_url": "http://127.0.0.1:8000"}, "address of the server"),
        ({"rollouts": "vllm", "vllm_url": ""}, "address of the server"),
        ({"beta": math.nan}, "beta is nan"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"temperature": 1e9}, "temperature is"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_(Settings(), **changes)


def test_processes_hold_whole_groups(tmp_path: Path) -> None:
    from opengrm.training.rl import grpo_config

    settings = with_(Settings(), batch=64, generations=8, micro_batch=2)
    with pytest.raises(UsageError, match="4 judgments each, not whole groups of 8"):
        grpo_config(settings, tmp_path, processes=16)
    assert grpo_config(settings, tmp_path, processes=8).gradient_accumulation_steps == 4


def test_trl_gets_the_papers_settings(tmp_path: Path) -> None:
    from opengrm.training.rl import grpo_config

    settings = with_(Settings(), rollouts="vllm", vllm_url="http://127.0.0.1:8000", micro_batch=32)
    config = grpo_config(settings, tmp_path)
    assert (config.num_generations, config.beta, config.epsilon, config.learning_rate) == (4, 0.08, 0.2, 4e-7)
    assert (config.loss_type, config.scale_rewards, config.use_bias_correction_kl) == ("grpo", "group", False)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (32, 16)
    assert config.generation_batch_size == 512
    assert (config.use_vllm, config.vllm_mode, config.vllm_server_base_url) == (True, "server", settings.vllm_url)
    assert config.gradient_checkpointing is False
    assert config.bf16 is False


def test_command_line(checkpoint: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from opengrm.cli.main import app
    from opengrm.reading import write_items

    write_items(tmp_path / "items.jsonl", [pair(i) for i in range(8)])
    words = [
        "train", "rl", str(tmp_path / "items.jsonl"), "-o", str(tmp_path / "out"), "--model", str(checkpoint),
        "--template", "compact", "--steps", "1", "--batch", "8", "--max-tokens", "6", "--learning-rate", "1e-3",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "step 1/1  reward -1.000  correct 0.0%  parsed 0.0%" in done.output
    assert "no signal 100%" in done.output
    assert (tmp_path / "out" / "config.json").exists()
    write_items(tmp_path / "test.jsonl", [pair(3), pair(99)])
    refused = CliRunner().invoke(app, [*words, "--held-out", str(tmp_path / "test.jsonl")])
    assert isinstance(refused.exception, UsageError)
    assert "1 conversations are also held out, 1 of 2 of those" in str(refused.exception)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_rl import SMALL, run, with_
run(Path({checkpoint!r}), Path(sys.argv[1]), with_(SMALL, steps=3))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_equal_one(checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), checkpoint=str(checkpoint)))
    run(checkpoint, tmp_path / "one", with_(SMALL, steps=3))
    # `accelerate launch --cpu --num_processes 2` would start one.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(script), str(tmp_path / "two")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert close([two[name] for name in one], list(one.values()), 1e-3)
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        for name in ("reward", "no_signal", "completion_tokens", "tokens"):
            assert ours[name] == pytest.approx(theirs[name])
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
