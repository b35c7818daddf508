"""The meta RM's training: which judgments it learns from, the loss by hand, the folder it writes, and going on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tiny_models import build_checkpoint  # noqa: E402

from opengrm.engines.classifier import Classifier, DialogueTokenizer, packed, padded, read_packed  # noqa: E402
from opengrm.engines.packed import lay_out  # noqa: E402
from opengrm.errors import UsageError  # noqa: E402
from opengrm.items import Item, Message  # noqa: E402
from opengrm.judgments import Judgment  # noqa: E402
from opengrm.reading import write_items, write_judgments  # noqa: E402
from opengrm.templates.meta import MetaTemplate  # noqa: E402
from opengrm.training.meta_examples import example_from_json, examples  # noqa: E402
from opengrm.training.meta_rm import MetaSettings, bce_with_logits, train_meta  # noqa: E402
from opengrm.training.resume import last_checkpoint  # noqa: E402
from opengrm.training.scalar import classifier  # noqa: E402
from opengrm.training.scalar_examples import drawn  # noqa: E402

TEMPLATE = MetaTemplate("meta-compact")


def judgment(item: str, scores: tuple[float, ...] | None, **values: Any) -> Judgment:
    known = {"text": "T", "order": None if scores is None else tuple(range(len(scores))), "template": "compact@1"}
    return Judgment(item, scores, None if scores else "unparsable: no box", **{**known, **values})


def data(count: int = 60) -> tuple[list[Judgment], dict[str, Item]]:
    """Judgments whose text says whether they are right."""
    items = {f"q{i}": Item((Message("user", f"Query {i}"),), ("a", "b"), best=i % 2, id=f"q{i}") for i in range(count)}
    judgments = []
    for i, (name, item) in enumerate(items.items()):
        assert item.best is not None
        for sample in range(2):
            right = (i + sample) % 2 == 0
            scores = (9.0, 1.0) if (item.best == 0) == right else (1.0, 9.0)
            judgments.append(
                judgment(name, scores, sample=sample, key=f"{name}-{sample}", text="yes" if right else "no")
            )
    return judgments, items


def test_which_judgments_are_learned_from_and_their_labels() -> None:
    pair = Item((Message("user", "Q"),), ("a", "b"), best=1, id="pair")
    single = Item((Message("user", "Q"),), ("a",), rewards=(1.0,), id="single")
    bare = Item((Message("user", "Q"),), ("a", "b"), id="bare")
    items = {item.id: item for item in (pair, single, bare)}
    judgments = [
        judgment("pair", (3.0, 7.0), key="1"),  # right
        judgment("pair", (7.0, 3.0), key="2"),  # wrong
        judgment("pair", (5.0, 5.0), key="3"),  # a tie is wrong
        judgment("single", (1.0,), key="4"),  # right
        judgment("single", (0.0,), key="5"),  # wrong
        judgment("pair", (3.0, 7.0), key="1"),
        judgment("pair", None, key="6"),
        judgment("pair", (3.0, 7.0), key="7", template="compact+hint@1"),
        judgment("bare", (3.0, 7.0), key="8"),
        judgment("gone", (3.0, 7.0), key="9"),
        judgment("pair", (3.0, 7.0, 1.0), key="10"),
        judgment("pair", (3.0, 7.0), key="11", text=None),
        judgment("pair", (3.0, 7.0), key="12", order=None),
    ]
    left_out: Counter[str] = Counter()
    found = list(examples(judgments, items, TEMPLATE, left_out))
    assert [(e.key, e.label) for e in found] == [("1", 1), ("2", 0), ("3", 0), ("4", 1), ("5", 0)]
    assert left_out == {
        "there before": 1, "no scores": 1, "hinted": 1, "item without a label": 1, "item not in the items": 1,
        "other number of scores than responses": 1, "the judgment has no text": 1,
        "the order in which the judgment saw the responses is not known": 1,
    }  # fmt: skip
    assert len({e.group for e in found}) == 1  # one conversation, so on one side
    assert all(example_from_json(json.loads(json.dumps(e.to_json()))) == e for e in found)


def test_conversations_are_held_out_whole_and_by_share() -> None:
    judgments, items = data(2000)
    found = list(examples(judgments, items, TEMPLATE, Counter()))
    sides: dict[str, set[bool]] = {}
    for example in found:
        sides.setdefault(example.item, set()).add(example.held_out(0.1))
    assert all(len(s) == 1 for s in sides.values())
    assert 150 < sum(True in s for s in sides.values()) < 250
    assert not any(e.held_out(0) for e in found)


def test_loss_equals_a_hand_computation() -> None:
    logits, labels = [1.3126, -15.7781, 0.0, 2.0], [1, 0, 1, 0]
    by_hand = [
        -(c * math.log(1 / (1 + math.exp(-m))) + (1 - c) * math.log(1 - 1 / (1 + math.exp(-m))))
        for m, c in zip(logits, labels, strict=True)
    ]
    found = bce_with_logits(torch.tensor(logits)[:, None], torch.tensor(labels))
    assert float(found) == pytest.approx(sum(by_hand) / 4, rel=1e-5)
    # Two micro-batches of a step of four add up to its mean.
    parts = [
        bce_with_logits(torch.tensor(logits[s])[:, None], torch.tensor(labels[s]), items=4)
        for s in (slice(0, 3), slice(3, 4))
    ]
    assert float(sum(parts)) == pytest.approx(sum(by_hand) / 4, rel=1e-5)


def settings(**values: Any) -> MetaSettings:
    known = {"learning_rate": 3e-3, "batch": 8, "micro_batch": 4, "steps": 12, "eval_every": 6, "save_every": 6}
    return MetaSettings(**{**known, "dev_share": 0.2, **values})


def test_the_papers_values_are_the_defaults() -> None:
    assert (MetaSettings().learning_rate, MetaSettings().batch) == (1e-5, 512)


def test_trains_and_writes_an_ordinary_folder(tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base")
    judgments, items = data()
    output = tmp_path / "meta"
    report = train_meta(judgments, items, base, output, TEMPLATE, settings(steps=30))
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)  # the head starts at zero
    assert len(losses) == 30
    # What is held out was learned: the text says whether the judgment is right.
    dev = report["dev"]
    assert dev["auc"]["mean"] > 0.95
    assert report["examples"] == 120
    assert report["correct"] == 60
    # An ordinary folder: transformers, and our own engine, give the logits of the report.
    folder = output / "model"
    assert type(transformers.AutoModelForSequenceClassification.from_pretrained(folder)).__name__ == (
        "Qwen3ForSequenceClassification"
    )
    held = [
        e for line in (output / "examples.jsonl").read_text().splitlines()
        if (e := example_from_json(json.loads(line))).held_out(0.2)
    ]  # fmt: skip
    assert len(held) == dev["n"]
    with Classifier(folder) as classifier:
        assert classifier.meta_template == "meta-compact"
        logits = np.array(classifier.score([e.messages for e in held]))
    labels = np.array([e.label for e in held])
    assert float((np.logaddexp(0, logits) - labels * logits).mean()) == pytest.approx(dev["loss"], abs=1e-3)
    assert float(((logits > 0) == labels).mean()) == pytest.approx(dev["accuracy"]["mean"])
    # Done is done, and another run does not fit into this folder.
    assert train_meta([], items, base, output, TEMPLATE, settings(steps=30)) == report
    with pytest.raises(UsageError, match=r"holds another run \(settings\.steps 30, now 31\)"):
        train_meta([], items, base, output, TEMPLATE, settings(steps=31))
    with pytest.raises(UsageError, match=r"holds another run \(items"):
        train_meta([], {}, base, output, TEMPLATE, settings(steps=30))


def test_judgments_of_other_items_leave_nothing_behind(tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base")
    judgments, items = data(8)
    other = {f"other {name}": replace(item, id=f"other {name}") for name, item in items.items()}
    with pytest.raises(UsageError, match=r"no judgments to learn from .*left out: item not in the items"):
        train_meta(judgments, other, base, tmp_path / "meta", TEMPLATE, settings(steps=2))
    assert train_meta(judgments, items, base, tmp_path / "meta", TEMPLATE, settings(steps=2))["steps"] == 2


def test_a_run_killed_behind_its_last_step_takes_none_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = build_checkpoint(tmp_path / "base")
    judgments, items = data(20)
    whole = train_meta(judgments, items, base, tmp_path / "whole", TEMPLATE, settings(save_every=4, steps=4))

    def kill(*_: Any) -> None:
        raise Killed

    killed = (judgments, items, base, tmp_path / "killed", TEMPLATE, settings(save_every=4, steps=4))
    with monkeypatch.context() as patched:
        patched.setattr("opengrm.training.scalar.check_weights", kill)
        with pytest.raises(Killed):
            train_meta(*killed)
    assert train_meta(*killed) == whole
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base")
    judgments, items = data(20)
    whole = train_meta(judgments, items, base, tmp_path / "whole", TEMPLATE, settings())

    def kill(done: int, total: int, note: str) -> None:
        assert total == 12
        if done == 9:
            raise Killed

    killed = tmp_path / "killed"
    with pytest.raises(Killed):
        train_meta(judgments, items, base, killed, TEMPLATE, settings(), on_progress=kill)
    found = last_checkpoint(killed / "checkpoints")
    assert found is not None
    assert found.name == "checkpoint-6"
    (killed / "checkpoints" / "checkpoint-9").mkdir()  # killed while it was written
    assert last_checkpoint(killed / "checkpoints") == found
    # The ledger has grown meanwhile: the examples have not.
    more = [*judgments, judgment("q0", (1.0, 2.0), key="new")]
    assert train_meta(more, items, base, killed, TEMPLATE, settings()) == whole
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "whole", killed)
    ]
    steps = [[row["step"] for row in rows if "loss" in row] for rows in lines]
    assert steps[0] == steps[1] == list(range(1, 13))
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in lines]
    assert losses[0] == losses[1]
    weights = [
        transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model").state_dict()
        for folder in (tmp_path / "whole", killed)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_base_in_bfloat16_gives_a_meta_rm_in_bfloat16(tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base")
    transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    judgments, items = data(10)
    train_meta(judgments, items, base, tmp_path / "meta", TEMPLATE, settings(steps=2))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "meta" / "model")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with Classifier(tmp_path / "meta" / "model") as classifier:
        (logit,) = classifier.score([[Message("user", "Q"), Message("assistant", "yes")]])
    assert logit is not None


# --- prompts are shared: the same function from less arithmetic ---


def shared_data() -> tuple[list[Judgment], dict[str, Item]]:
    """Six items with eight judgments each, in two orders, of different lengths."""
    judgments, items = [], {}
    for i in range(6):
        query = f"Query {i} " + "with more words " * (i % 3)
        item = items[f"q{i}"] = Item((Message("user", query),), ("a", "b"), best=i % 2, id=f"q{i}")
        for sample in range(8):
            scores = (9.0, 1.0) if (i + sample // 2) % 2 else (1.0, 9.0)
            text, order = "word " * (sample % 5) + str(scores), (0, 1) if sample % 2 else (1, 0)
            judgments.append(judgment(item.id, scores, sample=sample, key=f"{i}-{sample}", text=text, order=order))
    return judgments, items


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_equal_the_padded_ones(tmp_path: Path, checkpointing: bool) -> None:
    base = build_checkpoint(tmp_path / "base")
    found = list(examples(*shared_data(), TEMPLATE, Counter()))[:28]  # the last prompt's judgments are not all there
    dialogue = DialogueTokenizer(transformers.AutoTokenizer.from_pretrained(base))
    ids = [dialogue.encode(example.messages) for example in found]
    labels = torch.tensor([example.label for example in found])
    got = []
    for share in (False, True):
        model, _, _ = classifier(base, False)
        torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        pad = model.config.pad_token_id
        if share:
            read_packed(model)
            outputs = model(layout=packed(ids, [example.messages[0] for example in found], pad))
        else:
            outputs = model(**padded(ids, pad))
        loss = bce_with_logits(outputs.logits, labels)
        loss.backward()
        got.append((loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (plain_loss, plain), (loss_value, gradients) = got
    assert loss_value == pytest.approx(plain_loss, abs=1e-6)
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, plain[name], rtol=1e-4, atol=1e-5 * float(plain[name].abs().max())), name


@pytest.mark.parametrize("bf16", [False, True])
def test_training_with_and_without_sharing_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    """Three micro-batches a step, and an epoch that ends in a part of a step; then the same from padded batches."""
    base = build_checkpoint(tmp_path / "base")
    judgments, items = shared_data()
    how = settings(batch=18, micro_batch=6, steps=7, eval_every=4, bf16=bf16)
    layouts: list[Any] = []
    monkeypatch.setattr(
        "opengrm.engines.packed.lay_out", lambda *parts: layouts.append(lay_out(*parts)) or layouts[-1]
    )
    shared = train_meta(judgments, items, base, tmp_path / "shared", TEMPLATE, how)
    assert any(len(layout.prompts_GP) < len(layout.mask_BC) for layout in layouts)
    monkeypatch.setattr("opengrm.training.scalar.can_share_prompts", lambda trainer: False)
    plain = train_meta(judgments, items, base, tmp_path / "plain", TEMPLATE, how)
    close = 0.05 if bf16 else 1e-4
    assert shared["dev"]["n"] == plain["dev"]["n"] > 0
    assert shared["dev"]["loss"] == pytest.approx(plain["dev"]["loss"], abs=close)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("shared", "plain")
    ]
    losses = [[row["loss"] for row in each if "loss" in row] for each in rows]
    assert losses[0] == pytest.approx(losses[1], abs=close)
    assert len(losses[0]) == 7
    saved = [json.loads((tmp_path / name / "model" / "config.json").read_text()) for name in ("shared", "plain")]
    assert saved[0] == saved[1]


def test_an_epoch_has_each_example_once_and_prompts_together() -> None:
    prompts = [i % 50 for i in range(50 * 20)]
    epoch = drawn(prompts, 512, np.random.default_rng(0))
    assert sorted(epoch) == list(range(1000))
    assert epoch == drawn(prompts, 512, np.random.default_rng(0))
    assert epoch != drawn(prompts, 512, np.random.default_rng(1))
    runs = [len(list(run)) for _, run in groupby(prompts[i] for i in epoch)]
    assert 140 <= len(runs) <= 150  # 20 of a prompt are 8, 8 and 4
    assert len({prompts[i] for i in epoch[:512]}) > 35
    alone = drawn(prompts, 8, np.random.default_rng(0))  # a step of 8: one by one
    assert len(list(groupby(prompts[i] for i in alone))) > 950


def test_a_killed_run_goes_on_in_a_later_epoch(tmp_path: Path) -> None:
    """Epochs differ, and a run that goes on in the second one sees the rest of it."""
    base = build_checkpoint(tmp_path / "base")
    judgments, items = shared_data()
    how = settings(batch=16, micro_batch=4, steps=8, save_every=4, dev_share=0.0)  # three steps are an epoch
    train_meta(judgments, items, base, tmp_path / "whole", TEMPLATE, how)

    def kill(done: int, total: int, note: str) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        train_meta(judgments, items, base, tmp_path / "killed", TEMPLATE, how, on_progress=kill)
    train_meta(judgments, items, base, tmp_path / "killed", TEMPLATE, how)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    losses = [[row["loss"] for row in each if "loss" in row] for each in rows]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 8 - 1  # the first two steps are at ln 2: the rate warms up from 0


@pytest.mark.slow
def test_two_processes_train_the_same_as_one(tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base")
    judgments, items = data(40)
    write_judgments(tmp_path / "j.jsonl", judgments)
    write_items(tmp_path / "i.jsonl", items.values())
    # All steps within one epoch: what is left over at its end is shared out differently.
    one = train_meta(judgments, items, base, tmp_path / "one", TEMPLATE, settings(steps=6))
    words = (
        f"-m torch.distributed.run --standalone --nproc-per-node 2 -m opengrm train meta {tmp_path}/j.jsonl"
        f" --items {tmp_path}/i.jsonl -o {tmp_path}/two --model {base} --learning-rate 3e-3"
        " --batch 8 --micro-batch 4 --steps 6"
        " --eval-every 6 --save-every 6 --dev-share 0.2 --quiet --json"
    )
    done = subprocess.run([sys.executable, *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "meta_rm.json").read_text())
    assert two["dev"]["loss"] == pytest.approx(one["dev"]["loss"], abs=1e-4)
    assert two["dev"]["n"] == one["dev"]["n"]
    weights = [
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("one", "two")
    ]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base")
    judgments, items = data(4)
    with pytest.raises(UsageError, match="choose a divisor"):
        train_meta(judgments, items, base, tmp_path / "a", TEMPLATE, settings(micro_batch=3))
    right = [j for j in judgments if j.text == "yes"]
    with pytest.raises(UsageError, match="no judgments to learn from"):
        train_meta(right, items, base, tmp_path / "b", TEMPLATE, settings())
    with pytest.raises(ValueError, match="held-out share"):
        MetaSettings(dev_share=1.0)
