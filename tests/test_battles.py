"""Rankings of models by battles: by hand, and against SciPy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opengrm.benchmarks import BENCHMARKS
from opengrm.benchmarks.base import Outcome, Target
from opengrm.benchmarks.battles import bradley_terry, kendall, ranking_figures, row_pearson, wins
from opengrm.benchmarks.files import load
from opengrm.benchmarks.run import gather, outcomes, report
from opengrm.items import Item, conversation
from opengrm.judgments import Judgment

stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
optimize = pytest.importorskip("scipy.optimize")


def battle(a: str, b: str, label: int, scores: tuple[float, float] | None, number: int = 0) -> Outcome:
    target = Target(f"{a}-{b}-{number}", "English", 2, label, facts={"model_a": a, "model_b": b})
    return Outcome(target, scores)


def battles(judge: Any, strengths: tuple[float, ...] = (2.0, 1.0, 0.0, -1.0), each: int = 40) -> list[Outcome]:
    """Every two models fight; labels are drawn by their strengths, the judge says what `judge(a, b, label)` does."""
    drawn, found = np.random.default_rng(0), []
    for a in range(len(strengths)):
        for b in range(len(strengths)):
            for number in range(each if a != b else 0):
                label = int(drawn.random() > 1 / (1 + math.exp(strengths[b] - strengths[a])))
                found.append(battle(f"m{a}", f"m{b}", label, judge(a, b, label), number))
    return found


def test_ratings_are_the_likeliest() -> None:
    drawn = np.random.default_rng(1)
    table = drawn.integers(1, 30, (6, 6)).astype(float)
    np.fill_diagonal(table, 0)

    def loss(rating: Any) -> float:
        gaps = rating[:, None] - rating[None]
        return float((table * np.logaddexp(0, -gaps)).sum() + 0.5e-3 * (rating**2).sum())

    found = optimize.minimize(loss, np.zeros(6), tol=1e-12).x
    assert bradley_terry(table) == pytest.approx(found - found.mean(), abs=1e-4)


def test_a_model_that_always_wins_has_a_rating() -> None:
    table = np.array([[0.0, 50, 50], [0, 0, 30], [0, 20, 0]])
    ratings = bradley_terry(table)
    assert ratings[0] > 4
    assert ratings[1] - ratings[2] == pytest.approx(math.log(30 / 20), abs=1e-3)


def test_kendall_is_scipys() -> None:
    drawn = np.random.default_rng(2)
    for _ in range(20):
        x, y = drawn.integers(0, 5, (2, 9)).astype(float)
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert math.isnan(kendall(np.ones(3), np.arange(3.0)))


def test_win_rates_by_hand() -> None:
    """a-b 2:1, a-c 1:0 and a tie of b and c."""
    sides = np.array([[0, 1], [0, 1], [1, 0], [0, 2], [1, 2]])
    table = wins(sides, np.array([1, 1, 1, 1, 0.5]), np.ones(5), 3)
    assert table.tolist() == [[0, 2, 1], [1, 0, 0.5], [0, 0.5, 0]]
    four = np.array([[0, 3, 2, 1], [1, 0, 3, 1], [2, 1, 0, 3], [3, 3, 1, 0]], dtype=float)
    rates = four / (four + four.T + np.eye(4))
    other = four.T
    back = other / (other + other.T + np.eye(4))
    apart = [~np.eye(4, dtype=bool)[i] for i in range(4)]
    expected = [stats.pearsonr(rates[i][apart[i]], back[i][apart[i]]).statistic for i in range(4)]
    assert row_pearson(four, other) == pytest.approx(np.mean(expected))


def test_good_bad_and_blind_judges() -> None:
    right = ranking_figures(battles(lambda a, b, label: (1.0, 0.0) if label == 0 else (0.0, 1.0)), False)
    assert {name: figure["mean"] for name, figure in right.items()} == pytest.approx(
        {"spearman": 1, "kendall": 1, "row_pearson": 1}
    )
    assert {figure["n"] for figure in right.values()} == {4}
    wrong = ranking_figures(battles(lambda a, b, label: (0.0, 1.0) if label == 0 else (1.0, 0.0)), False)
    assert {name: figure["mean"] for name, figure in wrong.items()} == pytest.approx(
        {"spearman": -1, "kendall": -1, "row_pearson": -1}
    )
    assert ranking_figures(battles(lambda a, b, label: (5.0, 5.0)), False) == {}  # all models are equal to it
    by_name = ranking_figures(battles(lambda a, b, label: (float(b), float(a))), False)  # it likes m0, then m1, ...
    assert by_name["kendall"]["mean"] == 1
    noisy = np.random.default_rng(3)
    coin = ranking_figures(battles(lambda a, b, label: (noisy.random(), 0.5), each=200), False)
    assert coin["kendall"]["low"] < coin["kendall"]["mean"] < 1
    assert -1 <= coin["row_pearson"]["low"] <= coin["row_pearson"]["mean"] <= coin["row_pearson"]["high"] <= 1


def test_missing_verdicts_both_ways() -> None:
    """Without m3's battles the judge has nothing of it; counted as ties they leave it in the middle."""
    found = battles(lambda a, b, label: None if 3 in (a, b) else (float(b), float(a)))
    assert ranking_figures(found, True)["kendall"] == pytest.approx({"mean": 1, "low": 1, "high": 1, "n": 3})
    counted = ranking_figures(found, False)
    assert counted["kendall"]["n"] == 4
    assert counted["kendall"]["mean"] < 1


def test_too_few_models_or_none_named() -> None:
    assert ranking_figures([battle("a", "b", 0, (1.0, 0.0)), battle("b", "a", 1, (1.0, 0.0))], False) == {}
    assert ranking_figures([Outcome(Target("x", "all", 2, 0), (1.0, 0.0))], False) == {}
    assert ranking_figures([battle("a", "a", 0, (1.0, 0.0))], False) == {}


def test_the_interval_of_win_rates_surrounds_them() -> None:
    """Draws are noisier than the battles, so that all of them lay below the figure, which was its own upper limit."""
    noisy = np.random.default_rng(4)

    def judge(a: int, b: int, label: int) -> tuple[float, float]:
        right = 1.0 if noisy.random() < 0.75 else 0.0
        return (right, 1 - right) if label == 0 else (1 - right, right)

    figure = ranking_figures(battles(judge, tuple(i / 3 for i in range(8)), each=20), False)["row_pearson"]
    assert figure["high"] - figure["mean"] > 0.5 * (figure["mean"] - figure["low"]) > 0


def test_very_many_models_are_not_ranked() -> None:
    """With 2,000 of them the draws took an hour, and a model for each response took all memory."""
    many = [battle(f"a{i}", f"b{i}", 0, (1.0, 0.0)) for i in range(5000)]
    assert ranking_figures(many, False) == {}


def test_votes_of_fewer_samples_are_not_ranked() -> None:
    """A curve over 32 votes would rank 63 times, for nothing."""
    calls = []

    def more(outcomes: Any, valid_only: bool) -> dict[str, Any]:
        calls.append(valid_only)
        return {}

    benchmark = replace(BENCHMARKS["ppe-preference"], more=more)
    fights = [o.target for o in battles(lambda a, b, label: None, each=1)]
    judgments = [Judgment(t.item, (1.0, 0.0), sample=s) for t in fights for s in range(4)]
    items = [Item(conversation("q"), ("x", "y"), best=0, id=t.item, source=dict(t.facts)) for t in fights]

    def judging(asked: Any) -> Any:
        return judgments if list(asked) else ()

    gathered = gather(benchmark, items, judging)
    row = report(benchmark, gathered, outcomes(benchmark, gathered, "sum"), "sum", partial=True)
    assert [found["windows"] for found in row["by_k"]] == [4, 2, 1]
    assert calls == [False, True]


def test_ppe_rows_have_them(tmp_path: Path) -> None:
    fights = [("a", "b", "model_a"), ("b", "c", "model_a"), ("a", "c", "model_a"), ("c", "a", "model_b")]
    rows = [
        {"question_id": str(i), "prompt": f"Q {i}", "response_1": f"one {i}", "response_2": f"two {i}",
         "winner": winner, "model_a": a, "model_b": b, "language": "English"}
        for i, (a, b, winner) in enumerate(fights)
    ]  # fmt: skip
    path = tmp_path / "ppe.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = BENCHMARKS["ppe-preference"]
    targets = [benchmark.target(item) for _, item in load(benchmark, str(path))]
    outcomes = [benchmark.outcome(t, (1.0, 0.0) if t.label == 0 else (0.0, 1.0)) for t in targets]
    metrics = benchmark.figures(outcomes).metrics
    assert metrics["spearman"]["mean"] == 1
    assert metrics["kendall"]["n"] == 3
