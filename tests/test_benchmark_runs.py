"""Judgments to figures: votes, games, windows, and judgments that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_benchmarks import mean, targets_of, write

from opengrm.benchmarks import BENCHMARKS, score
from opengrm.benchmarks.given import given_judgments
from opengrm.benchmarks.rewardbench_files import write_files
from opengrm.benchmarks.run import gather, outcomes, report
from opengrm.errors import BadRow, UsageError
from opengrm.items import Item
from opengrm.judgments import Judgment


def rewardbench_items(count: int) -> list[Item]:
    rows = [
        {"id": i, "subset": "donotanswer", "prompt": f"q{i}", "chosen": "7", "rejected": "8"} for i in range(count)
    ]
    return [item for row in rows for item in BENCHMARKS["rewardbench"].convert(row, "")]


def test_votes_games_and_windows() -> None:
    benchmark, items = BENCHMARKS["rewardbench"], rewardbench_items(2)

    def judging(asked: Any) -> Any:
        # The first item: 9-1, 1-9, missing, 6-5 in alternating orders; the second: always wrong.
        votes = {items[0].id: [(9, 1), (1, 9), None, (6, 5)], items[1].id: [(1, 2)] * 4}
        for item in asked:
            for sample, scores in enumerate(votes[item.id]):
                yield Judgment(
                    item.id, scores, None if scores else "unparsable: no box", sample=sample,
                    order=(0, 1) if sample % 2 == 0 else (1, 0), prompt_tokens=10, completion_tokens=5,
                )  # fmt: skip

    gathered = gather(benchmark, items, judging)
    first, second = outcomes(benchmark, gathered, "sum")
    assert (first.scores, first.credit, first.valid, first.asked) == ((16, 15), 1, 3, 4)
    assert first.games == ((9, 1), (7, 14))  # samples 0 and 2; samples 1 and 3
    assert (second.credit, second.prompt_tokens, second.completion_tokens) == (0, 40, 20)
    row = report(benchmark, gathered, [first, second], "sum", partial=True)
    assert (row["overall"], row["items"], row["missing"], row["partial"]) == (0.5, 2, 0, True)
    # k = 1: the first item's windows earn 1, 0, 1/2 (missing, at chance) and 1; the second's nothing. k = 2: 10-10 is
    # a tie, then 6-5. k = 4: 16-15.
    assert [(r["k"], r["windows"], r["overall"]) for r in row["by_k"]] == [
        (1, 4, pytest.approx(2.5 / 8)), (2, 2, pytest.approx((0.5 + 1) / 4)), (4, 1, 0.5),
    ]  # fmt: skip
    assert row["by_k"][0]["tokens"] == 15
    assert row["statistics"]["parse_rate"] == 7 / 8
    assert row["cost"] == {"prompt_tokens": 80, "completion_tokens": 40, "seconds": None, "judgments": 8}


def test_curves_leave_out_samples_that_were_never_asked_for() -> None:
    """Two items with eight votes and eighteen with two, all of them right; a ninth vote of one makes no window."""
    benchmark, items = BENCHMARKS["rewardbench"], rewardbench_items(20)

    def judging(asked: Any) -> Any:
        for place, item in enumerate(asked):
            yield from (Judgment(item.id, (2, 1), sample=sample) for sample in range(8 if place < 2 else 2))

    gathered = gather(benchmark, items, judging)
    gathered.seconds = {item.id: 8.0 if place < 2 else 4.0 for place, item in enumerate(items)}
    rows = report(benchmark, gathered, outcomes(benchmark, gathered, "sum"), "sum", partial=True)["by_k"]
    assert [(row["k"], row["items"], row["skipped"], row["windows"]) for row in rows] == [
        (1, 20, 0, 8), (2, 20, 0, 4), (4, 2, 18, 2), (8, 2, 18, 1),
    ]  # fmt: skip
    assert all(row["overall"] == row["accuracy"]["mean"] == 1 for row in rows)
    # A vote of the first two takes a second, one of the others two.
    assert [row["seconds"] for row in rows] == [(2 * 1 + 18 * 2) / 20, (2 * 2 + 18 * 4) / 20, 4, 8]


def test_single_responses_vote_by_their_mean() -> None:
    benchmark = BENCHMARKS["realmistake"]
    rows = [{"input": "q", "llm_response": "r", "error_label": label, "metadata": {"id": label}}
            for label in ("error", "no_error")]  # fmt: skip
    items = [item for row in rows for item in benchmark.convert(row, "")]

    def judging(asked: Any) -> Any:
        for item in asked:
            votes = [(4.0,), None] if item.source["metadata"]["id"] == "no_error" else [(3.0,), (3.0,)]
            for sample, scores in enumerate(votes):
                yield Judgment(item.id, scores, None if scores else "unparsable: x", sample=sample)

    gathered = gather(benchmark, items, judging)
    # 4 (one valid vote) is above 3 (mean of two), although the sum 6 is not.
    assert benchmark.figures(outcomes(benchmark, gathered, "sum")).overall == 1


def test_rewardbench_files_and_back(tmp_path: Path) -> None:
    benchmark, items = BENCHMARKS["rewardbench"], rewardbench_items(3)
    given = [(2.0, 1.0), (1.0, 1.0), None]
    found = [benchmark.outcome(benchmark.target(i), s) for i, s in zip(items, given, strict=True)]
    write_files(tmp_path, found, items, "org/model", "bt")
    summary = json.loads((tmp_path / "eval-set" / "org" / "model.json").read_text(encoding="utf-8"))
    # A scalar model: right, a tie (wrong), and no verdict (one half).
    assert summary["donotanswer"] == pytest.approx(1.5 / 3)
    assert (summary["model"], summary["model_type"]) == ("org/model", "Seq. Classifier")
    scores = tmp_path / "eval-set-scores" / "org" / "model.json"
    columns = json.loads(scores.read_text(encoding="utf-8"))
    assert (columns["results"], columns["text_chosen"], columns["id"]) == ([1.0, 0.0, 0.5], ["7"] * 3, [0, 1, 2])
    back = list(given_judgments(scores))
    assert [j.item for j in back] == [item.id for item in items]
    assert [j.scores for j in back] == given


def test_given_judgments_of_other_forms(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "score": 0.5}, {"item": "b", "scores": [1, 2]}, {"item": "b", "scores": None},
        {"id": [7, 8], "subset": ["s", "s"], "results": [1, 0.5]},
        {"id": ["x"], "subset": ["Math"], "scores": [[1.0, 2.0]]},
    ]  # fmt: skip
    found = list(given_judgments(write(tmp_path / "rows.jsonl", rows)))
    assert [(j.item, j.sample, j.scores) for j in found] == [
        ("a", 0, (0.5,)), ("b", 0, (1, 2)), ("b", 1, None), ("s/7", 0, (1, 0)), ("s/8", 0, (0.5, 0.5)),
        ("Math/x", 0, (1, 2)),
    ]  # fmt: skip
    with pytest.raises(BadRow, match=r"rows\.jsonl:1: needs 'scores'"):
        list(given_judgments(write(tmp_path / "rows.jsonl", [{"id": "a"}])))


def test_judgments_of_two_judges_are_not_mixed() -> None:
    items = rewardbench_items(1)
    mixed = [Judgment(items[0].id, (1, 0), model=model) for model in ("a", "b")]

    def judging(asked: Any) -> Any:
        list(asked)
        return mixed

    with pytest.raises(UsageError, match="2 judges"):
        gather(BENCHMARKS["rewardbench"], items, judging, pool=False)


def test_items_of_ones_own(tmp_path: Path) -> None:
    """A pair (right), a list (two of three tie at the top with the best among them), three single responses.

    AUC: the good one beats one of the two bad ones and ties with the other, (1 + 1/2) / 2.
    """
    rows: list[dict[str, Any]] = [
        {"id": "p", "prompt": "Q", "responses": ["a", "b"], "best": 1},
        {"id": "l", "prompt": "Q", "responses": ["a", "b", "c"], "best": 0, "source": {"subset": "mine"}},
        *(
            {"id": name, "prompt": "Q", "responses": [name], "rewards": [r]}
            for name, r in (("x", 1), ("y", 0), ("z", 0))
        ),
    ]
    benchmark, targets = targets_of("items", write(tmp_path / "own.jsonl", rows))
    assert [t.subset for t in targets] == ["pairs", "mine", "singles", "singles", "singles"]
    scores = {"p": (1, 2), "l": (3, 3, 1), "x": (7,), "y": (2,), "z": (7,)}
    found = score(benchmark, targets, scores)
    assert found.overall == pytest.approx((1 + 1 / 2) / 2)
    assert mean(found.metrics["singles auc"]) == pytest.approx(0.75)
    assert score(benchmark, targets[2:], scores).overall == pytest.approx(0.75)
    unlabelled = write(tmp_path / "bad.jsonl", [{"prompt": "Q", "responses": ["a", "b"]}])
    with pytest.raises(BadRow, match=r"bad\.jsonl:1: has no label of the best response"):
        targets_of("items", unlabelled)
    rated = write(tmp_path / "rated.jsonl", [{"prompt": "Q", "responses": ["a"], "rewards": [0.5]}])
    with pytest.raises(BadRow, match="a reward of 0 or 1"):
        targets_of("items", rated)
