"""Credits by rank are not independent: means have DeLong's spread, and equal judges seldom seem to differ."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opengrm.benchmarks import BENCHMARKS, Outcome, Target
from opengrm.benchmarks.ranks import ALONE, auc, share_among, spread
from opengrm.benchmarks.run import Gathered, report
from opengrm.benchmarks.statistics import Scored, compared, compared_subsets, paired
from opengrm.voting.intervals import normal_interval, share_interval

REALMISTAKE = BENCHMARKS["realmistake"]


def judged(
    scores: dict[str, float | None], labels: dict[str, float], subsets: dict[str, str] | None = None
) -> list[Outcome]:
    """Outcomes of single responses."""
    targets = [Target(name, (subsets or {}).get(name, "all"), 1, label=labels[name]) for name in scores]
    given = (None if score is None else (score,) for score in scores.values())
    return REALMISTAKE.finish([REALMISTAKE.outcome(t, s) for t, s in zip(targets, given, strict=True)])


def drawn(draw: np.random.Generator, good: int = 20, bad: int = 50) -> list[Outcome]:
    """A judge whose scores of good responses are normal and one higher: its AUC is Phi(1 / sqrt 2) = 0.7602."""
    labels = {str(i): float(i < good) for i in range(good + bad)}
    return judged({name: draw.normal() + label for name, label in labels.items()}, labels)


def test_the_spread_of_all_items_is_delongs() -> None:
    found = judged({"a": 5, "b": 3, "c": 3, "d": 1, "e": 0}, {"a": 1, "b": 1, "c": 0, "d": 0, "e": 0})
    earned = [o.credit for o in found]
    assert earned == pytest.approx([1, 2.5 / 3, 0.75, 1, 1])
    values = spread(np.array(earned), np.array([1, 1, 0, 0, 0]), np.ones(5, dtype=bool))
    mean = 5.5 / 6
    # mean + (credit - mean) * items / items of the label: 5/2 of the good ones, 5/3 of the bad ones.
    assert values == pytest.approx(
        [mean + (c - mean) * f for c, f in zip(earned, (2.5, 2.5, 5 / 3, 5 / 3, 5 / 3), strict=True)]
    )
    interval = normal_interval(values)
    assert interval is not None
    # DeLong: the variances of the earned of either label over their numbers (here with 1/n, then N / (N - 1)).
    delong = np.var(earned[:2]) / 2 + np.var(earned[2:]) / 3
    assert interval.high - interval.mean == pytest.approx(1.959963984540054 * math.sqrt(delong * 5 / 4))


def test_a_subset_moves_with_those_that_it_is_compared_with() -> None:
    """The own item's credit is its own, and each of the other label's two takes half of the comparisons."""
    values = spread(np.array([0.5, 0.25, 0.75]), np.array([1, 0, 0]), np.array([True, False, False]))
    assert values == pytest.approx([0.5, -0.125, 0.125])
    alone = spread(np.array([1.0, 0.0]), np.array([ALONE, ALONE]), np.array([True, False]))
    assert alone.tolist() == [1, 0]


def test_auc_has_its_interval_and_counts_missing_ones_at_chance() -> None:
    labels = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    found = judged({"a": 5, "b": None, "c": 3, "d": 1}, labels)
    at_chance, valid = auc(found, False), auc(found, True)
    assert at_chance is not None
    assert valid is not None
    assert (at_chance["mean"], at_chance["n"], valid["mean"], valid["n"]) == (0.75, 4, 1, 3)
    assert at_chance["low"] < 0.75 < at_chance["high"]
    assert auc(found[:2], False) is None
    assert REALMISTAKE.figures(found).metrics["auc"] == at_chance


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95 % of 400 runs, up to its standard error of 1.1 %; taken as independent they would hold it far less often."""
    draw, truth, held, naive = np.random.default_rng(0), 0.76025, 0, 0
    for _ in range(400):
        found = drawn(draw)
        own = share_among((o.target, o.credit, True) for o in found)
        plain = share_interval(np.array([o.credit for o in found]))
        assert own is not None
        assert plain is not None
        assert own["mean"] == pytest.approx(plain.mean)
        held += own["low"] <= truth <= own["high"]
        naive += plain.low <= truth <= plain.high
    assert 0.92 <= held / 400 <= 0.98
    assert naive / 400 < 0.8


def test_intervals_of_subsets_hold_the_truth_too() -> None:
    """The first third of the items, ranked among all of them."""
    draw, held = np.random.default_rng(1), 0
    for _ in range(300):
        found = drawn(draw, 30, 60)
        own = share_among((o.target, o.credit, int(o.target.item) % 3 == 0) for o in found)
        assert own is not None
        assert own["n"] == 30
        held += own["low"] <= 0.76025 <= own["high"]
    assert 0.91 <= held / 300 <= 0.99


def halved(outcome: Outcome) -> Scored:
    """A line of items.jsonl, in one of two subsets."""
    return Scored.of({**outcome.to_json(), "subset": "xy"[int(outcome.target.item) % 2]}, "realmistake")


def test_two_equal_judges_seldom_seem_to_differ() -> None:
    draw, differ, apart = np.random.default_rng(2), 0, 0
    for _ in range(100):
        pairs, *_ = paired(*([halved(o) for o in drawn(draw)] for _ in range(2)))
        found = compared(pairs, resamples=400)
        assert (found.mcnemar, found.items) == (None, 70)
        differ += found.verdict != "within noise"
        apart += compared_subsets(pairs)["x"].verdict != "within noise"
    assert differ / 100 < 0.12  # 5 %, and three standard errors of 2 %
    assert apart / 100 < 0.12


def test_pools_of_two_benchmarks_are_apart() -> None:
    rows = [o.to_json() for o in judged({"a": 5, "b": 3, "c": 3, "d": 1}, {"a": 1, "b": 1, "c": 0, "d": 0})]
    one = [(Scored.of(row, "x"), Scored.of({**row, "credit": 0.5}, "x")) for row in rows]
    two = [(Scored.of({**row, "item": f"{row['item']}2"}, "y"), Scored.of(row, "y")) for row in rows]
    both = compared([*one, *two])
    alone = compared(one)
    assert both.difference == pytest.approx(alone.difference / 2)
    # Twice the items, of which one half does not differ.
    assert both.a.mean == pytest.approx(alone.a.mean)


def test_the_report_has_the_spread_in_subsets_and_overall() -> None:
    found = drawn(np.random.default_rng(3))
    row = report(REALMISTAKE, Gathered(), found, "sum", False)
    own = share_among((o.target, o.credit, True) for o in found)
    assert row["subsets"][0]["accuracy"] == own
