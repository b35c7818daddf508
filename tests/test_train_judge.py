"""`opengrm train judge`: RFT and RL with a template that names the best, in one verb; and its cold start."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_cli import Run, lines, run

from opengrm.errors import BadRow, UsageError
from opengrm.items import Item, Message
from opengrm.judgments import Judgment, own_order
from opengrm.templates.compact import Compact
from opengrm.worlds.judge_rows import comparisons, judge_rows, named_best
from opengrm.worlds.process import measure
from opengrm.worlds.rubric import generate_items
from opengrm.worlds.teacher import FLAWLESS

__all__ = ["run"]

# --- the cold start ---------------------------------------------------------------------------------------------

PAIR = Item((Message("user", "Write a tweet."),), ("Bees rest.", "Bees work!"), best=1, id="pair")
TEXT = "short 5, polite 3\n[1] short yes, polite no = 5\n[2] short yes, polite yes = 8\n\\boxed{5, 8}"


def judged(scores: tuple[float, ...] | None, **values: Any) -> Judgment:
    given: dict[str, Any] = {"order": (1, 0), "text": TEXT, "template": "compact@1", "key": "k", **values}
    return Judgment("pair", scores, None if scores else "unparsable: x", **given)


def test_scores_become_the_position_of_the_best() -> None:
    # Response 1 was shown first and got 5, response 0 second and got 8.
    (row,) = judge_rows([judged((8.0, 5.0))], {"pair": PAIR})
    assert row["prompt"] == [
        {
            "role": "user",
            "content": "Query: Write a tweet.\n[1] Bees work!\n[2] Bees rest.\nName the best by criteria.",
        }
    ]
    text = "short 5, polite 3\n[1] short yes, polite no = 5\n[2] short yes, polite yes = 8\n\\boxed{2}"
    assert row["completion"] == [{"role": "assistant", "content": text}]
    assert Compact("compact-judge").parse(text, 2).scores == (0.0, 1.0)
    assert (row["item"], row["order"]) == ("pair", [1, 0])


def test_wrong_judgments_are_kept_and_unreadable_or_other_ones_left_out() -> None:
    rows = judge_rows(
        [
            judged((2.0, 9.0)),
            judged(None),
            judged((1.0, 2.0), template="compact+hint@1"),
            judged((1.0, 2.0), template="grm@1"),
            judged((1.0,), order=(0,), template="compact-binary@1"),
            judged((1.0, 2.0), text=None),
            judged((1.0, 2.0), template="compact+no-principles@1"),
        ],
        {"pair": PAIR},
    )
    found = [(row["completion"][0]["content"][-9:], row["prompt"][0]["content"].split("\n")[-1]) for row in rows]
    assert found == [
        ("\\boxed{1}", "Name the best by criteria."), ("\\boxed{1}", "Name the best without criteria."),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="not among the items"):
        list(judge_rows([judged((1.0, 2.0))], {}))


def test_ties_are_drawn_among_the_top_evenly_and_always_the_same() -> None:
    texts = [named_best(judged((3.0, 7.0, 7.0), order=(1, 0, 2), key=str(i))) or "" for i in range(400)]
    counts = Counter(text[-9:] for text in texts)
    assert set(counts) == {"\\boxed{1}", "\\boxed{3}"}
    assert 150 < counts["\\boxed{1}"] < 250
    assert texts == [named_best(judged((3.0, 7.0, 7.0), order=(1, 0, 2), key=str(i))) for i in range(400)]


def test_comparisons_are_true_and_the_same_for_a_seed() -> None:
    rows = list(comparisons(200, seed=3))
    assert rows[:50] == list(comparisons(50, seed=3)) != list(comparisons(50, seed=4))
    sizes = Counter[int]()
    for row in rows:
        sums = [int(part) for part in row["prompt"].removeprefix("Compare ").removesuffix(".").split(", ")]
        sizes[len(sums)] += 1
        *lines, box = row["completion"].split("\n")
        assert lines == [f"[{i}] = {total}" for i, total in enumerate(sums, 1)]
        scores = Compact("compact-judge").parse(box, len(sums)).scores
        assert scores is not None
        assert [s == 1 for s in scores] == [total == max(sums) for total in sums]
    assert set(sizes) == {2, 3, 4, 5, 6}
    assert sizes[2] > 120


def test_process_measures_read_the_judges_form() -> None:
    item = next(iter(generate_items(1, seed=5)))
    text = FLAWLESS.judge(random.Random(1), item, (1, 0), Compact())
    scores = Compact().parse(text, 2).scores or ()
    named = named_best(Judgment(item.id, own_order(scores, (1, 0)), order=(1, 0), text=text, key="k")) or ""
    found = measure(item, (1, 0), named, Compact("compact-judge"))
    assert (found.readable, found.correct, found.sound) == (True, True, True)
    other = named[:-2] + ("1}" if named[-2] == "2" else "2}")
    assert measure(item, (1, 0), other, Compact("compact-judge")).correct is False


# --- training ---------------------------------------------------------------------------------------------------

SMALL = [
    "--n-rft", 2, "--no-hinted", "--rft-batch", 4, "--rft-steps", 2, "--rft-learning-rate", 1e-3, "--rl-batch", 8,
    "--rl-steps", 2, "--rl-learning-rate", 1e-3, "--micro-batch", 4, "--save-every", 1, "--instruction-share", 0.5,
    "--max-tokens", 8, "--template", "compact-judge", "-q", "--json",
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": f"q{i}", "prompt": f"Query {i}", "responses": ["a", "b"], "best": i % 2} for i in range(8)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    instructions = [{"prompt": f"Count {i}.", "completion": "\\boxed{1}"} for i in range(8)]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(r) + "\n" for r in instructions))
    return tmp_path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("trl")
    from tiny_models import build_checkpoint

    return build_checkpoint(tmp_path / "base")


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_rft_and_rl_in_one_verb_and_a_killed_run_goes_on(
    run: Run, data: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    words = ["train", "judge", data / "items.jsonl", "--model", base, "--instructions", data / "i.jsonl", *SMALL]
    done = run(*words, "-o", data / "whole")
    assert done.code == 0, done.err
    assert (done.json["items"], done.json["model"]) == (8, str(data / "whole" / "rl"))
    assert done.json["collect"]["non-hinted"]["judgments"] == 16
    begun = json.loads((data / "whole" / "rft" / "collect-settings.json").read_text())
    assert begun["template"].startswith("compact-judge@")
    assert json.loads((data / "whole" / "rl" / "settings.json").read_text())["template"] == "compact-judge"
    assert lines(data / "whole" / "rl" / "metrics.jsonl")[-1]["step"] == 2

    from opengrm.training import rl

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rl, "train", killed)
        assert run(*words, "-o", data / "parts").code == 130
    assert (data / "parts" / "rft" / "model" / "config.json").exists()
    again = run(*words, "-o", data / "parts")
    assert again.code == 0, again.err
    one, other = weights(data / "whole" / "rl"), weights(data / "parts" / "rl")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], tensor) for name, tensor in weights(base).items())
    third = run(*words, "-o", data / "parts")
    assert {**third.json, "model": ""} == {**again.json, "model": ""}
    assert run(*words, "-o", data / "parts", "--n-rft", 3).code == 2


def test_items_of_one_response_are_refused_with_their_place(run: Run, data: Path) -> None:
    items = data / "items.jsonl"
    items.write_text(items.read_text() + json.dumps({"prompt": "q", "responses": ["a"], "rewards": [1.0]}) + "\n")
    words = ["train", "judge", items, "-o", data / "out", "--model", "no/such-model", *SMALL]
    done = run(*words)
    assert done.code == 1
    assert f"{items}:9: judge llm takes items of 2 or more responses, this one has 1; judges that take it" in done.err
    assert not (data / "out").exists()
    wrong = run(*words, "--template", "grm")
    assert (wrong.code, "template grm rates responses" in wrong.err) == (2, True)


def test_they_are_skipped_and_told_if_asked(data: Path) -> None:
    from opengrm.training.llm_judge import compared

    items, told = data / "items.jsonl", list[BadRow]()
    items.write_text(json.dumps({"prompt": "q", "responses": ["a"], "rewards": [1.0]}) + "\n" + items.read_text())
    assert len(list(compared(items, told.append))) == 8
    assert [row.where for row in told] == [f"{items}:1"]
