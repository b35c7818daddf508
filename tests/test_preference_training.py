"""Training of Bradley-Terry and PairRM: which pairs, the losses by hand, what they learn, TRL, and going on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tiny_models import build_checkpoint  # noqa: E402

from opengrm.engines.classifier import Classifier  # noqa: E402
from opengrm.errors import EngineError, UsageError  # noqa: E402
from opengrm.items import Item, Message  # noqa: E402
from opengrm.judges.bradley_terry import BradleyTerry  # noqa: E402
from opengrm.judges.pair_rm import PairRM  # noqa: E402
from opengrm.reading import write_items  # noqa: E402
from opengrm.templates.pair import PairTemplate  # noqa: E402
from opengrm.training.bradley_terry import (  # noqa: E402
    BradleyTerrySettings,
    bradley_terry_loss,
    train_bradley_terry,
)
from opengrm.training.pair_rm import PairSettings, pair_loss, train_pair_rm  # noqa: E402
from opengrm.training.preference_pairs import pair_from_json, pairs_of  # noqa: E402
from opengrm.training.scalar import classifier  # noqa: E402
from opengrm.training.scalar_examples import drawn  # noqa: E402

QUERY = (Message("user", "Q"),)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def data(count: int = 40, n: int = 2) -> list[Item]:
    """Items whose best response says so; its place moves."""
    items = []
    for i in range(count):
        responses = [f"no {j} " + "word " * ((i + j) % 3) for j in range(n)]
        responses[i % n] = f"yes {i % 5}"
        items.append(Item((Message("user", f"Query {i}"),), tuple(responses), best=i % n, id=f"q{i}"))
    return items


def bt_settings(**values: Any) -> BradleyTerrySettings:
    known = {"learning_rate": 3e-3, "batch": 8, "micro_batch": 4, "steps": 6, "eval_every": 3, "save_every": 3}
    return BradleyTerrySettings(**{**known, "dev_share": 0.2, **values})


def pair_settings(**values: Any) -> PairSettings:
    known = {"learning_rate": 3e-3, "batch": 8, "micro_batch": 4, "steps": 6, "eval_every": 3, "save_every": 3}
    return PairSettings(**{**known, "dev_share": 0.2, **values})


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def weights(folder: Path) -> dict[str, Any]:
    return dict(transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict())


# --- which pairs ---


def test_which_pairs_are_learned_from_and_how_much_they_count() -> None:
    items = [
        Item(QUERY, ("a", "b", "c"), best=1, id="label"),
        Item(QUERY, ("a", "b", "c"), rewards=(2.0, 0.5, 2.0), id="rewards"),  # two share the top
        Item(QUERY, ("a", "b"), best=0, id="row", source={"margin": 1.5}),
        Item(QUERY, ("a", "b"), id="bare"),
        Item(QUERY, ("a",), rewards=(1.0,), id="single"),
        Item(QUERY, ("a", "b"), rewards=(1.0, 1.0), id="even"),
        Item(QUERY, ("a", "a", "b"), best=0, id="twins"),
        Item(QUERY, ("a", "b"), best=0, id="below", source={"margin": -1}),
    ]
    left_out: Counter[str] = Counter()
    found = list(pairs_of(items, left_out))
    assert [(p.item, p.chosen, p.rejected, p.margin, p.weight) for p in found] == [
        ("label", 1, 0, 0.0, 0.5), ("label", 1, 2, 0.0, 0.5),
        ("rewards", 0, 1, 1.5, 0.5), ("rewards", 2, 1, 1.5, 0.5),
        ("row", 0, 1, 1.5, 1.0),
        ("twins", 0, 2, 0.0, 1.0),
    ]  # fmt: skip
    assert found[0].responses == ("b", "a")
    assert left_out == {
        "items without a label": 1, "items of one response": 1,
        "items in which no response is better than another": 1, "pairs of equal responses": 1,
        "pairs with a margin below 0": 1,
    }  # fmt: skip
    assert all(pair_from_json(json.loads(json.dumps(pair.to_json()))) == pair for pair in found)


# --- losses and gradients by hand ---


def test_bradley_terry_loss_and_gradient_by_hand() -> None:
    scores, margins, weights_G, center = [[1.5, 0.25], [-2.0, 1.0]], [0.5, 0.0], [1.0, 0.5], 0.01
    by_hand = [
        w * (-math.log(sigmoid(c - r - m)) + center * (c + r) ** 2)
        for (c, r), m, w in zip(scores, margins, weights_G, strict=True)
    ]
    given = torch.tensor(scores, requires_grad=True)
    arguments = (torch.tensor(margins), torch.tensor(weights_G))
    found = bradley_terry_loss(given, *arguments, center_coefficient=center)
    assert found.item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)
    # Two micro-batches of a step of two add up to its mean.
    parts = [
        bradley_terry_loss(torch.tensor(scores[s]), torch.tensor(margins[s]), torch.tensor(weights_G[s]), 2)
        for s in (slice(0, 1), slice(1, 2))
    ]
    whole = bradley_terry_loss(torch.tensor(scores), *arguments)
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)
    found.backward()
    (c, r), m, w = scores[0], margins[0], weights_G[0]
    slope = -(1 - sigmoid(c - r - m))
    assert given.grad[0].tolist() == pytest.approx(
        [w / 2 * (slope + 2 * center * (c + r)), w / 2 * (-slope + 2 * center * (c + r))], rel=1e-5
    )


def test_pair_loss_and_gradient_by_hand() -> None:
    logits, weights_G = [[1.5, 0.25], [-2.0, -1.0]], [1.0, 0.5]
    by_hand = [
        w * -(math.log(sigmoid(first)) + math.log(sigmoid(-second))) / 2
        for (first, second), w in zip(logits, weights_G, strict=True)
    ]
    given = torch.tensor(logits, requires_grad=True)
    found = pair_loss(given, torch.tensor(weights_G))
    assert found.item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)
    found.backward()
    assert given.grad[0].tolist() == pytest.approx([-(1 - sigmoid(1.5)) / 4, sigmoid(0.25) / 4], rel=1e-5)


# --- training ---


def test_bradley_terry_trains_and_writes_an_ordinary_folder(tmp_path: Path) -> None:
    base, items = build_checkpoint(tmp_path / "base"), data()
    output = tmp_path / "bt"
    report = train_bradley_terry(items, base, output, bt_settings(steps=20))
    assert losses(output)[0] == pytest.approx(math.log(2), abs=1e-4)  # the head starts at zero
    assert report["dev"]["accuracy"]["mean"] > 0.9
    assert (report["examples"], report["items"], report["too_long"]) == (40, 40, 0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(output / "model")
    assert type(model).__name__ == "Qwen3ForSequenceClassification"
    assert model.config.num_labels == 1
    # What judges with it is what was measured.
    with Classifier(output / "model") as reader:
        judged = {item.id: found[0].scores for item, found in BradleyTerry(reader).judge(items, 1)}
    rows = map(json.loads, (output / "examples.jsonl").read_text().splitlines())
    held = [pair for pair in map(pair_from_json, rows) if int(pair.group[:8], 16) < 0.2 * 2**32]
    assert len(held) == report["dev"]["n"]
    differences = [judged[pair.item][pair.chosen] - judged[pair.item][pair.rejected] for pair in held]
    assert sum(differences) / len(held) == pytest.approx(report["dev"]["difference"], abs=1e-3)
    # Done is done, and another run does not fit into this folder.
    assert train_bradley_terry([], base, output, bt_settings(steps=20)) == report
    with pytest.raises(UsageError, match="holds another run"):
        train_bradley_terry(items, base, output, bt_settings(steps=21))


def test_pair_rm_trains_and_names_its_template(tmp_path: Path) -> None:
    base, items = build_checkpoint(tmp_path / "base"), data()
    output = tmp_path / "pair"
    report = train_pair_rm(items, base, output, PairTemplate("pair-compact"), pair_settings(steps=20))
    assert losses(output)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert report["dev"]["accuracy"]["mean"] > 0.9
    assert 0 <= report["dev"]["same_in_both_orders"] <= 1
    with Classifier(output / "model") as reader:
        assert reader.pair_template == "pair-compact"
        judge = PairRM(reader, PairTemplate(reader.pair_template))
        swapped = [item.swap() for item in items[:4]]
        for (_, there), (_, back) in zip(judge.judge(items[:4], 1), judge.judge(swapped, 1), strict=True):
            assert there[0].scores == back[0].scores[::-1]
            assert sum(there[0].scores) == 0


@pytest.mark.parametrize("how", ["micro-batches", "padded"])
def test_how_a_step_is_computed_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Lists: three pairs of an item share its best response and its prompt, within a micro-batch or across."""
    base, items = build_checkpoint(tmp_path / "base"), data(10, n=4)
    settings = bt_settings(batch=8, micro_batch=8, steps=4, margin=True, center_coefficient=0.01)
    train_bradley_terry(items, base, tmp_path / "one", settings)
    if how == "padded":
        monkeypatch.setattr("opengrm.training.scalar.can_share_prompts", lambda trainer: False)
        train_bradley_terry(items, base, tmp_path / "other", settings)
    else:
        settings = bt_settings(batch=8, micro_batch=2, steps=4, margin=True, center_coefficient=0.01)
        train_bradley_terry(items, base, tmp_path / "other", settings)
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_agrees_with_trls_reward_trainer(tmp_path: Path) -> None:
    """The same pairs in the same order, with margins and centering: the same losses, and weights within 1e-5."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    base = build_checkpoint(tmp_path / "base")
    items = [
        Item(
            item.prompt, item.responses, rewards=(0.5 * (i % 3) + 1, 0.0) if item.best == 0 else (0.0, 1.0), id=item.id
        )
        for i, item in enumerate(data(20))
    ]
    settings = bt_settings(
        batch=4, micro_batch=4, steps=5, dev_share=0.0, margin=True, center_coefficient=0.01, warmup=0.0
    )
    train_bradley_terry(items, base, tmp_path / "ours", settings)

    pairs = list(pairs_of(items, Counter()))
    order = drawn(list(range(len(pairs))), 4, np.random.default_rng((0, 0)))
    rows = [
        {
            "prompt": [m.to_json() for m in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.responses[0]}],
            "rejected": [{"role": "assistant", "content": pair.responses[1]}],
            "margin": pair.margin,
        }
        for pair in (pairs[i] for i in order)
    ]
    model, tokenizer, _ = classifier(base, False)
    arguments = trl.RewardConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=4, learning_rate=3e-3, max_steps=5,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False,
        bf16=False, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1,
        center_rewards_coefficient=0.01, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses(tmp_path / "ours") == pytest.approx(theirs, abs=1e-4)
    ours = weights(tmp_path / "ours" / "model")
    for name, weight in model.state_dict().items():
        assert torch.allclose(ours[name], weight.cpu(), atol=1e-5), name


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["bt", "pair"])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path, kind: str) -> None:
    base, items = build_checkpoint(tmp_path / "base"), data(20, n=3)

    def run(folder: Path, on_progress: Any = None, given: list[Item] = items) -> Any:
        if kind == "bt":
            return train_bradley_terry(given, base, folder, bt_settings(), on_progress=on_progress)
        return train_pair_rm(given, base, folder, settings=pair_settings(), on_progress=on_progress)

    def kill(done: int, total: int, note: str) -> None:
        if done == 5:
            raise Killed

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill)
    assert run(tmp_path / "killed", given=[]) == whole  # the items are in the folder
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    one, two = weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bt", "pair"])
def test_two_processes_train_the_same_as_one(tmp_path: Path, kind: str) -> None:
    base, items = build_checkpoint(tmp_path / "base"), data(12, n=3)
    write_items(tmp_path / "i.jsonl", items)
    # All steps within one epoch: what is left over at its end is shared out differently.
    if kind == "bt":
        one = train_bradley_terry(items, base, tmp_path / "one", bt_settings(steps=2))
    else:
        one = train_pair_rm(items, base, tmp_path / "one", settings=pair_settings(steps=2))
    words = (
        f"-m torch.distributed.run --standalone --nproc-per-node 2 -m opengrm train {kind} {tmp_path}/i.jsonl"
        f" -o {tmp_path}/two --model {base} --learning-rate 3e-3 --batch 8 --micro-batch 4 --steps 2"
        " --eval-every 3 --save-every 3 --dev-share 0.2 --quiet --json"
    )
    done = subprocess.run([sys.executable, *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    name = "bradley_terry.json" if kind == "bt" else "pair_rm.json"
    two = json.loads((tmp_path / "two" / name).read_text())
    assert two["dev"]["n"] == one["dev"]["n"] > 0
    assert two["dev"]["loss"] == pytest.approx(one["dev"]["loss"], abs=1e-4)
    ours, theirs = weights(tmp_path / "one" / "model"), weights(tmp_path / "two" / "model")
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in ours)


def test_pairs_that_are_too_long_are_left_out_or_cut(tmp_path: Path) -> None:
    base, items = build_checkpoint(tmp_path / "base"), data(10)
    long = Item((Message("user", "old words " * 400), Message("assistant", "ok"), Message("user", "Q")), ("a", "b"), 0)
    settings = bt_settings(steps=1, dev_share=0.0)
    assert train_bradley_terry([*items, long], base, tmp_path / "left", settings)["too_long"] == 1
    cut = train_bradley_terry([*items, long], base, tmp_path / "cut", bt_settings(steps=1, dev_share=0, truncate=True))
    assert cut["too_long"] == 0
    with Classifier(tmp_path / "cut" / "model") as reader:
        assert reader.truncates
        ((_, (judgment,)),) = BradleyTerry(reader).judge([long], 1)
    assert judgment.scores is not None
    assert 1000 < judgment.prompt_tokens <= 2 * 512
    fewer = bt_settings(steps=1, dev_share=0, truncate=True, max_tokens=100)
    train_bradley_terry([*items, long], base, tmp_path / "fewer", fewer)
    with Classifier(tmp_path / "fewer" / "model") as reader:
        assert reader.context == 100
        ((_, (judgment,)),) = BradleyTerry(reader).judge([long], 1)
    assert 150 < judgment.prompt_tokens <= 2 * 100
    with Classifier(tmp_path / "left" / "model") as reader:
        ((_, (judgment,)),) = BradleyTerry(reader).judge([long], 1)
    assert judgment.error_kind == "too_long"


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base")
    with pytest.raises(UsageError, match="no pairs to learn from"):
        train_bradley_terry([Item(QUERY, ("a", "b"))], base, tmp_path / "a", bt_settings())
    with pytest.raises(ValueError, match="center coefficient"):
        BradleyTerrySettings(center_coefficient=-1)
    two = tmp_path / "two"
    transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2).save_pretrained(two)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(two)
    with pytest.raises(EngineError, match="has 2 labels"):
        train_bradley_terry(data(4), two, tmp_path / "b", bt_settings())
