"""Re-voting: subsets, planned subsets, every way of counting, groups, sources, and the command."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from opengrm.cli.vote import vote as vote_verb
from opengrm.errors import BadRow, MissingExtra, UsageError
from opengrm.items import Item, Message
from opengrm.judgments import Judgment
from opengrm.reports.curves import plot_curves
from opengrm.reports.tables import agreement_cells, markdown, position_cells, vote_cells
from opengrm.voting import credit, plan_orders, reduce_votes, vote
from opengrm.voting.revote import Labels, Report, revote, verdicts
from opengrm.voting.subsets import all_subsets, is_balanced, planned_subsets, plans_of

Scores = tuple[float, ...]


def judged(
    item: str, rows: list[Scores | None], orders: list[tuple[int, ...]] | None = None, **fields: Any
) -> list[Judgment]:
    return [
        Judgment(item, row, None if row else "unparsable: no box", j, order=orders[j] if orders else None, **fields)
        for j, row in enumerate(rows)
    ]


def labels(**best: int) -> Labels:
    return Labels(dict.fromkeys(best, 2), dict(best))


def by_k(report: Report, group: str = "pairs") -> dict[int, dict[str, Any]]:
    return {row["k"]: row for row in report.rows if row["group"] == group}


# Subsets


@pytest.mark.parametrize(("samples", "k"), [(1, 1), (5, 2), (5, 5), (11, 5)])
def test_all_subsets_are_all(samples: int, k: int) -> None:
    found = all_subsets(samples, k)
    assert found.exact
    assert {tuple(np.flatnonzero(m)) for m in found.masks_RK} == set(itertools.combinations(range(samples), k))
    assert found.weights_R.sum() == pytest.approx(1)


def test_very_many_subsets_are_drawn_at_random_with_a_seed() -> None:
    found = all_subsets(32, 8)
    assert not found.exact
    assert found.masks_RK.shape == (256, 32)
    assert set(found.masks_RK.sum(axis=1)) == {8}
    assert (found.masks_RK == all_subsets(32, 8).masks_RK).all()
    assert (found.masks_RK != all_subsets(32, 8, seed=1).masks_RK).any()
    assert abs(found.masks_RK.mean(axis=0) - 1 / 4).max() < 5 * math.sqrt(3 / 16 / 256)


def test_planned_subsets_of_an_alternating_plan() -> None:
    found = planned_subsets((0, 1, 0, 1), 2)
    chosen = sorted(tuple(np.flatnonzero(m)) for m in found.masks_RK)
    assert chosen == [(0, 1), (0, 3), (1, 2), (2, 3)]  # one sample of each order, never two of one
    assert found.weights_R.tolist() == [0.25] * 4


def test_planned_subsets_weigh_windows_equally() -> None:
    # Windows of 3 in 0 1 0 1: (two 0, one 1) and (one 0, two 1), with two selections each.
    found = planned_subsets((0, 1, 0, 1), 3)
    assert len(found.weights_R) == 4
    assert found.weights_R.tolist() == [0.25] * 4
    # 0 0 1: the windows of 2 are 0 0 and 0 1; the second has two selections.
    uneven = {tuple(np.flatnonzero(m)): w for m, w in zip(*planned_subsets((0, 0, 1), 2)[:2], strict=True)}
    assert uneven == {(0, 1): 0.5, (0, 2): 0.25, (1, 2): 0.25}


@pytest.mark.parametrize(("n", "samples", "k"), [(2, 32, 8), (2, 32, 5), (3, 9, 4), (4, 32, 16), (4, 30, 7)])
def test_planned_subsets_stay_balanced(n: int, samples: int, k: int) -> None:
    orders = plan_orders(n, samples, "key")
    number = {order: i for i, order in enumerate(dict.fromkeys(orders))}
    found = planned_subsets(tuple(number[o] for o in orders), k)
    assert found.weights_R.sum() == pytest.approx(1)
    for mask_K in found.masks_RK:
        counts = Counter({(i, p): 0 for i in range(n) for p in range(n)})
        for j in np.flatnonzero(mask_K):
            counts.update((i, p) for p, i in enumerate(orders[j]))
        assert sum(counts.values()) == k * n
        assert max(counts.values()) - min(counts.values()) <= 1


def test_balance_is_recognised() -> None:
    orders_ON = np.array([[0, 1], [1, 0]])
    assert is_balanced(np.array([[0, 1, 0, 1], [1, 0, 1, 0]]), orders_ON)
    assert not is_balanced(np.array([[0, 1, 0, 1], [1, 0, 0, 0]]), orders_ON)
    assert not is_balanced(np.array([[0, 0, 1, 1]]), orders_ON)  # balanced in the end, but not on the way
    assert not is_balanced(np.array([[0, -1]]), orders_ON)


def test_plans_are_numbered_by_first_appearance() -> None:
    plans, plan_I = plans_of(np.array([[3, 1, 3, 1], [1, 3, 1, 3], [1, 1, 3, 3]]))
    assert [plans[p] for p in plan_I] == [(0, 1, 0, 1), (0, 1, 0, 1), (0, 0, 2, 2)]


# Accuracy


def test_accuracy_in_four_senses_by_hand() -> None:
    votes = [
        *judged("right", [(2, 1), (2, 1)]),
        *judged("tied", [(1, 2), (2, 1)]),
        *judged("missing", [None, None]),
        *judged("half", [None, (1, 2)]),
    ]
    rows = by_k(revote(votes, labels(right=0, tied=0, missing=1, half=1)))
    # k = 1, over two subsets each: right 1 1; tied 0 1; missing - -; half - 1.
    assert rows[1]["accuracy"]["mean"] == pytest.approx((2 + 1 + 2 * 0.5 + 1.5) / 8)
    assert rows[1]["accuracy_valid"]["mean"] == pytest.approx((2 + 1 + 1) / 5)
    assert rows[1]["strict"]["mean"] == rows[1]["accuracy"]["mean"]
    assert (rows[1]["no_verdict"], rows[1]["ties"], rows[1]["parse_rate"]) == (3 / 8, 0, 5 / 8)
    # k = 2: right 1; tied 1/2; missing -; half 1.
    assert rows[2]["accuracy"]["mean"] == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert rows[2]["accuracy_valid"]["mean"] == pytest.approx(2.5 / 3)
    assert rows[2]["strict"]["mean"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert rows[2]["strict_valid"]["mean"] == pytest.approx(2 / 3)
    assert rows[2]["ties"] == pytest.approx(1 / 3)
    assert rows[2]["no_verdict"] == 0.25


@pytest.mark.parametrize("how", ["sum", "mean", "majority"])
def test_lists_of_mixed_sizes_equal_a_loop(how: str) -> None:
    draw = np.random.default_rng(3)
    votes: list[Judgment] = []
    expected: dict[int, list[float]] = {2: [], 3: []}
    sizes, best = {}, {}
    for i in range(30):
        n, item = 2 + i % 4, f"item {i}"
        rows = [tuple(map(float, draw.integers(1, 4, n))) if draw.random() > 0.2 else None for _ in range(4)]
        sizes[item], best[item] = n, float(draw.integers(n))
        votes += judged(item, rows)
        for k in expected:
            for chosen in itertools.combinations(rows, k):
                reduced = reduce_votes([r for r in chosen if r], how)  # type: ignore[arg-type]
                expected[k].append(1 / n if reduced is None else credit(reduced, best[item]))
    draw.shuffle(votes)  # type: ignore[arg-type]
    report = revote(votes, Labels(sizes, best), ks=[2, 3], how=how)  # type: ignore[arg-type]
    assert {row["group"] for row in report.rows} == {"pairs", "lists", "all"}
    for k, row in by_k(report, "all").items():
        assert row["items"] == 30
        assert row["accuracy"]["mean"] == pytest.approx(statistics.fmean(expected[k]), abs=1e-12)
    assert sum(by_k(report, group)[2]["items"] for group in ("pairs", "lists")) == 30


def biased_judgments(items: int, samples: int) -> tuple[list[Judgment], Labels]:
    """A judge that always favours the first position, under a balanced plan: one vote is a coin, two always tie."""
    votes = []
    for i in range(items):
        orders = plan_orders(2, samples, f"item {i}")
        votes += judged(f"item {i}", [(2.0, 1.0) if order[0] == 0 else (1.0, 2.0) for order in orders], orders)
    return votes, labels(**{f"item {i}": i % 2 for i in range(items)})


def test_planned_subsets_let_position_bias_cancel() -> None:
    votes, known = biased_judgments(20, 8)
    planned = by_k(revote(votes, known))
    assert {row["subsets"] for row in planned.values()} == {"planned"}  # auto sees the plan
    assert [planned[k]["ties"] for k in (1, 2, 3, 4)] == [0, 1, 0, 1]
    assert all(row["accuracy"]["mean"] == pytest.approx(0.5) for row in planned.values())
    free = by_k(revote(votes, known, subsets="all"))
    assert free[2]["ties"] == pytest.approx(4 * 4 / math.comb(8, 2))  # one of each order


def test_auto_takes_all_subsets_where_there_is_no_plan() -> None:
    votes, known = biased_judgments(4, 4)
    mixed = [*votes, *judged("odd", [(2, 1)] * 4, [(0, 1)] * 4)]
    assert {row["subsets"] for row in revote(mixed, known).rows} == {"all"}
    assert {row["subsets"] for row in revote(judged("item 0", [(2, 1)] * 2), known).rows} == {"all"}
    with pytest.raises(UsageError, match="--subsets all"):
        revote(judged("item 0", [(2, 1)] * 2), known, subsets="planned")


def test_planned_subsets_of_different_plans() -> None:
    orders = [(0, 1), (1, 0)]
    votes = [
        *judged("a", [(2, 1), (1, 2), (2, 1)], [orders[0], orders[1], orders[0]]),
        *judged("b", [(1, 2), (1, 2), (2, 1)], [orders[0], orders[0], orders[1]]),
    ]
    row = by_k(revote(votes, labels(a=0, b=0), ks=[2], subsets="planned"))[2]
    # a: windows 0 1 and 1 0, subsets {0, 1} and {2, 1}: tied. b: {0, 1} with weight 1/2: wrong, else tied.
    assert row["accuracy"]["mean"] == pytest.approx((0.5 + 0.25) / 2)


def test_items_with_fewer_samples_are_skipped_and_counted() -> None:
    votes = [*judged("a", [(2, 1)] * 3), *judged("b", [(2, 1)])]
    rows = by_k(revote(votes, labels(a=0, b=0)))
    assert {k: (row["items"], row["skipped"]) for k, row in rows.items()} == {1: (2, 0), 2: (1, 1), 3: (1, 1)}


def test_tokens_per_verdict() -> None:
    votes = [
        *judged("a", [(2, 1), None], prompt_tokens=10, completion_tokens=4),
        *judged("b", [(2, 1), (1, 2)], prompt_tokens=30),
    ]
    rows = by_k(revote(votes, labels(a=0, b=0)))
    assert (rows[1]["prompt_tokens"], rows[2]["prompt_tokens"]) == (20, 40)
    assert (rows[1]["completion_tokens"], rows[2]["completion_tokens"]) == (4, 8)  # known for a alone
    assert by_k(revote(judged("a", [(2, 1)]), labels(a=0)))[1]["prompt_tokens"] is None


def test_default_numbers_of_votes() -> None:
    for samples, expected in ((1, [1]), (5, [1, 2, 3, 4, 5]), (12, [1, 2, 4, 8, 12]), (32, [1, 2, 4, 8, 16, 32])):
        assert sorted(by_k(revote(judged("a", [(2, 1)] * samples), labels(a=0)))) == expected


def test_clusters_widen_the_interval() -> None:
    votes = [j for i in range(40) for j in judged(f"i{i}", [(2, 1) if i % 8 < 4 else (1, 2)])]
    known = labels(**{f"i{i}": 0 for i in range(40)})
    alone = by_k(revote(votes, known))[1]["accuracy"]
    known.clusters = {f"i{i}": i // 4 for i in range(40)}  # four items of a prompt are right or wrong together
    together = by_k(revote(votes, known))[1]["accuracy"]
    assert alone["mean"] == together["mean"] == 0.5
    assert together["high"] - together["low"] > 1.7 * (alone["high"] - alone["low"])


# Sources, labels and what does not fit


def test_models_do_not_vote_together_unless_pooled() -> None:
    votes = [*judged("a", [(2, 1)], model="m1"), *judged("a", [(1, 2)], model="m2")]
    report = revote(votes, labels(a=0))
    assert [(row["model"], row["accuracy"]["mean"]) for row in report.rows] == [("m1", 1.0), ("m2", 0.0)]
    assert [v.extra["model"] for v in verdicts(report.recorded)] == ["m1", "m2"]
    (pooled,) = verdicts(revote(votes, labels(a=0), pool=True).recorded)
    assert (pooled.tied, pooled.asked, pooled.extra) == ((0, 1), 2, {})


SETTINGS = {"top_p": 1.0, "max_tokens": 256, "orders": "balanced"}


def test_sampling_settings_do_not_vote_together() -> None:
    votes = []
    for changed in ({}, {"top_p": 0.9}, {"max_tokens": 64}, {"orders": "fixed"}):
        votes += judged("a", [(2, 1), (1, 2)], model="m", extra={"sampling": SETTINGS | changed})
    report = revote(votes, labels(a=0), ks=[1])
    assert [(row["top_p"], row["max_tokens"], row["orders"]) for row in report.rows] == [
        (1.0, 256, "balanced"), (0.9, 256, "balanced"), (1.0, 64, "balanced"), (1.0, 256, "fixed"),
    ]  # fmt: skip
    assert [v.extra["max_tokens"] for v in verdicts(report.recorded)] == [256, 256, 64, 256]
    (pooled,) = verdicts(revote(votes, pool=True).recorded)
    assert pooled.asked == 8


@pytest.mark.parametrize("wrong", ["T = 1", ["top_p"], {"top_p": "1"}, {"orders": ["fixed"]}, {"max_tokens": True}])
def test_sampling_that_cannot_be_read_is_a_bad_row(wrong: Any) -> None:
    with pytest.raises(BadRow, match="item 'a', sample 0: 'sampling' must be an object"):
        revote(judged("a", [(2, 1)], extra={"sampling": wrong}))


@pytest.mark.parametrize("keys", [(None, None), ("k1", "k2"), ("k1", None)])
def test_one_sample_twice_in_a_source_is_refused(keys: tuple[str | None, ...]) -> None:
    votes = [Judgment("b", (2, 1)), *(Judgment("a", (2, 1), sample=3, key=key) for key in keys)]
    with pytest.raises(UsageError, match=r"item 'a': sample 3 is there twice .*--pool"):
        revote(votes)
    assert revote(votes, pool=True).counts["judgments"] == 3


def test_verdicts_are_those_of_vote_in_order_of_appearance() -> None:
    draw = np.random.default_rng(0)
    votes = [
        j
        for i in draw.permutation(20)
        for j in judged(
            f"{i}", [tuple(map(float, draw.integers(1, 4, 2 + i % 2))) if j != 1 else None for j in range(2 + i % 3)],
            prompt_tokens=5,
        )
    ]  # fmt: skip
    order = list(dict.fromkeys(j.item for j in votes))
    expected = [vote(item, [j for j in votes if j.item == item], how="majority") for item in order]
    assert list(verdicts(revote(votes).recorded, "majority")) == expected


def test_a_repeated_key_counts_once_and_the_later_row_stays() -> None:
    first, second = judged("a", [(2, 1)], key="k")[0], judged("a", [(1, 2)], key="k")[0]
    report = revote([first, Judgment("a", (3, 3), sample=1), second], labels(a=0))
    assert report.counts["duplicates"] == 1
    assert report.counts["judgments"] == 2
    assert next(verdicts(report.recorded)).scores == (4, 5)


def test_what_does_not_fit_is_counted() -> None:
    votes = [*judged("a", [(2, 1)]), *judged("stranger", [(2, 1)] * 3), *judged("mute", [None])]
    counts = revote(votes, Labels({"a": 2, "unjudged": 2}, {"a": 0})).counts
    assert counts == {
        "judgments": 5, "missing": 1, "duplicates": 0, "items": 3, "labelled": 1,
        "unknown_items": 2, "unknown_judgments": 4, "unjudged_items": 1, "size_unknown": 1,
    }  # fmt: skip


def test_a_wrong_number_of_scores() -> None:
    votes = [*judged("a", [(2, 1)]), Judgment("a", (1, 2, 3), sample=1)]
    with pytest.raises(BadRow, match="item 'a', sample 1: 3 scores for 2 responses"):
        revote(votes)
    bad: list[BadRow] = []
    assert revote(votes, on_bad=bad.append).counts["judgments"] == 1
    assert len(bad) == 1
    with pytest.raises(BadRow, match="2 scores for 4 responses"):
        revote(votes, Labels({"a": 4}, {"a": 0}))


def test_numbers_of_votes_that_nothing_has_samples_for_are_named() -> None:
    votes = [*judged("a", [(2, 1)] * 4, model="m1"), *judged("a", [(2, 1)] * 2, model="m2"), *singles([1, 1])]
    known = Labels({"a": 2, "i0": 1}, {"a": 0, "i0": 1})
    report = revote(votes, known, ks=[1, 4, 8])
    assert report.to_json()["unmet"] == [
        {"model": "m1", "group": "pairs", "ks": [8], "samples": 4},
        {"model": "m2", "group": "pairs", "ks": [4, 8], "samples": 2},
        {"group": "singles", "ks": [4, 8], "samples": 2},
    ]
    assert revote(votes, known).unmet == []
    assert revote(votes, ks=[8]).unmet == []  # without labels there are no rows at all


def test_items_name_their_clusters() -> None:
    prompt = (Message("user", "?"),)
    items = [Item(prompt, ("x", f"y{i}"), best=0, id=f"i{i}", source={"cluster": i // 4}) for i in range(40)]
    votes = [
        j for i in range(40) for j in judged(f"i{i}", [(2, 1) if i % 8 < 4 else (1, 2)] * 2, plan_orders(2, 2, ""))
    ]
    together = revote(votes, Labels.of([*items, Item(prompt, ("x",), id="alone")]))
    alone = revote(votes, Labels.of(items, clusters={}))
    assert Labels.of(items).clusters["i7"] == "1"
    for found in ("rows", "agreement", "positions"):
        assert len(getattr(together, found)) == len(getattr(alone, found)) > 0
    wide, narrow = (by_k(report)[1]["accuracy"] for report in (together, alone))
    assert wide["high"] - wide["low"] > 1.7 * (narrow["high"] - narrow["low"])


def test_labels_of_items() -> None:
    pair = Item((Message("user", "?"),), ("x", "y"), best=1, id="a")
    single = Item((Message("user", "?"),), ("x",), rewards=(0.0,), id="b")
    bare = Item((Message("user", "?"),), ("x", "y", "z"), id="c")
    known = Labels.of([pair, single, bare, pair])
    assert known.sizes == {"a": 2, "b": 1, "c": 3}
    assert known.labels == {"a": 1, "b": 0.0}
    with pytest.raises(UsageError, match="'a' is there twice"):
        Labels.of([pair, pair.swap()])


# Single responses


def singles(*rows: list[float | None]) -> list[Judgment]:
    return [j for i, row in enumerate(rows) for j in judged(f"i{i}", [None if s is None else (s,) for s in row])]


def rewards(*values: float) -> Labels:
    return Labels({f"i{i}": 1 for i in range(len(values))}, {f"i{i}": v for i, v in enumerate(values)})


@pytest.mark.parametrize("how", ["sum", "mean", "majority"])
def test_single_responses_with_binary_labels(how: str) -> None:
    votes = singles([1, 1], [1, 0], [None, None], [0, 0], [None, 1])
    rows = by_k(revote(votes, rewards(1, 1, 0, 0, 0), how=how), "singles")  # type: ignore[arg-type]
    assert rows[2]["accuracy"]["mean"] == pytest.approx((1 + 0.5 + 0.5 + 1 + 0) / 5)
    assert rows[2]["accuracy_valid"]["mean"] == pytest.approx(2.5 / 4)
    assert rows[2]["strict_valid"]["mean"] == pytest.approx(2 / 4)
    assert (rows[2]["ties"], rows[2]["no_verdict"], rows[2]["parse_rate"]) == (0.25, 0.2, 0.7)
    # Means 1, 1/2 against 0, 1: pairs 1, 1/2, 1, 0. With the missing one: two pairs more at one half.
    assert rows[2]["auc_valid"]["mean"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert rows[2]["auc"]["mean"] == pytest.approx((1 + 0.5 + 1 + 0 + 0.5 + 0.5) / 6)


def test_a_sum_is_compared_between_items_by_its_mean() -> None:
    votes = singles([2, 2, None], [1, 1, 1])
    row = by_k(revote(votes, rewards(1, 0)), "singles")[3]
    assert row["auc"]["mean"] == 1.0  # the sums, 4 and 3, are no fair comparison; 2 and 1 are
    assert row["accuracy"] is None  # scores other than 0/1 decide nothing against 0/1 labels


def test_single_responses_with_real_labels() -> None:
    values = [[1, 3], [2, 2], [5, 4], [4, 6]]
    row = by_k(revote(singles(*values), rewards(1, 2.5, 3, 7)), "singles")[2]
    means = [statistics.fmean(v) for v in values]
    assert row["pearson"]["mean"] == pytest.approx(statistics.correlation(means, [1, 2.5, 3, 7]))
    # Ranks of the means 2, 2, 4.5, 5 with a tie, and of the rewards.
    assert row["spearman"]["mean"] == pytest.approx(statistics.correlation([1.5, 1.5, 3, 4], [1, 2, 3, 4]))
    assert row["accuracy"] is None


def test_exact_hits_of_graded_labels() -> None:
    votes = singles([4, 4, 2], [3, 2, 2], [5, None, None], [None] * 3, [1, 2, 3])
    row = by_k(revote(votes, rewards(4, 3, 5, 2, 2), ks=[3], how="majority"), "singles")[3]
    # Hit, miss, hit, no verdict (which earns nothing: a score has no level of chance), one of three that tie.
    assert row["accuracy"]["mean"] == pytest.approx((1 + 0 + 1 + 0 + 1 / 3) / 5)
    assert row["accuracy_valid"]["mean"] == pytest.approx((1 + 0 + 1 + 1 / 3) / 4)
    assert row["strict"]["mean"] == pytest.approx(2 / 5)
    assert row["pearson"] is not None
    for how in ("sum", "mean"):  # a mean of scores is no score
        assert by_k(revote(votes, rewards(4, 3, 5, 2, 2), ks=[1], how=how), "singles")[1]["accuracy"] is None  # type: ignore[arg-type]


def test_huge_and_tiny_scores_correlate_as_others_do() -> None:
    for size in (1e100, 1e-100):
        report = revote(
            singles([-size, size], [size, size], [size, -size], [0, 0]), rewards(-size, size, 0.5 * size, 0)
        )
        expected = revote(singles([-1, 1], [1, 1], [1, -1], [0, 0]), rewards(-1, 1, 0.5, 0))
        for name in ("pearson", "spearman"):
            assert by_k(report, "singles")[1][name] == pytest.approx(by_k(expected, "singles")[1][name])
        assert report.agreement[0]["split_half"] == pytest.approx(expected.agreement[0]["split_half"])


def test_statistics_that_are_not_defined_are_none() -> None:
    row = by_k(revote(singles([1], [0]), rewards(1, 1)), "singles")[1]
    assert (row["auc"], row["accuracy"]["mean"]) == (None, 0.5)
    row = by_k(revote(singles([3], [3]), rewards(0.5, 2)), "singles")[1]
    assert row["pearson"] is None
    row = by_k(revote(singles([None], [None]), rewards(0.5, 2)), "singles")[1]
    assert (row["spearman"], row["no_verdict"]) == (None, 1.0)


def test_single_responses_with_different_numbers_of_samples() -> None:
    votes = singles([1, 0], [1, 1, 0], [0, 0, 0], [0])
    row = by_k(revote(votes, rewards(1, 1, 0, 0), ks=[2]), "singles")[2]
    assert (row["items"], row["skipped"], row["exact"]) == (3, 1, False)
    assert row["accuracy"]["mean"] == pytest.approx((0.5 + (1 + 0.5 + 0.5) / 3 + 1) / 3)


# Agreement


def test_agreement_by_hand() -> None:
    votes = [*judged("a", [(2, 1), (2, 1), (1, 2)]), *judged("b", [(1, 1), (1, 2)]), *judged("c", [(1, 2), None])]
    (found,) = revote(votes).agreement
    assert (found["items"], found["compared"], found["judgments"], found["parse_rate"]) == (3, 2, 7, 6 / 7)
    assert found["pair_agreement"]["mean"] == pytest.approx((1 / 3 + 1 / 2) / 2)  # a tie agrees half the time
    assert found["self_consistency"]["mean"] == pytest.approx((2 / 3 + 3 / 4) / 2)


def test_agreement_of_single_responses() -> None:
    (found,) = revote(singles([3, 3, 4], [1, None, 1])).agreement
    assert found["pair_agreement"]["mean"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["self_consistency"]["mean"] == pytest.approx((2 / 3 + 1) / 2)


def test_split_half_correlation_sees_signal() -> None:
    draw = np.random.default_rng(0)
    steady = singles(*[[float(level)] * 4 for level in range(30)])
    noise = singles(*[list(draw.normal(size=4)) for _ in range(200)])
    assert revote(steady).agreement[0]["split_half"]["mean"] == pytest.approx(1)
    assert abs(revote(noise).agreement[0]["split_half"]["mean"]) < 0.2


# Reports and the command


def run(*options: str) -> Any:
    import typer

    app = typer.Typer()
    app.command()(vote_verb)
    return CliRunner().invoke(app, list(options), catch_exceptions=True)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    votes, known = biased_judgments(6, 4)
    votes.append(Judgment("item 0", None, "timeout: 60 s", 4, order=votes[0].order))
    judgments, items = tmp_path / "judgments.jsonl", tmp_path / "items.jsonl"
    judgments.write_text("".join(json.dumps(j.to_json()) + "\n" for j in votes), encoding="utf-8")
    rows = [{"id": i, "prompt": "?", "responses": ["x", "y"], "best": int(b)} for i, b in known.labels.items()]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(judgments), str(items)


def test_command_prints_a_table(files: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    done = run(files[0], "--items", files[1], "-k", "1,2")
    assert done.exit_code == 0, done.output
    assert "subsets that keep the plan of orders" in done.stdout
    assert "50.0 [" in done.stdout
    assert "25 judgments of 6 items, 1 without scores. 6 items have a label." in " ".join(done.stdout.split())


def test_command_writes_json_verdicts_and_a_picture(files: tuple[str, str], tmp_path: Path) -> None:
    out, picture = tmp_path / "verdicts.jsonl", tmp_path / "curve.png"
    done = run(files[0], "--items", files[1], "--json", "-o", str(out), "--plot", str(picture))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["counts"]["judgments"] == 25
    assert {row["k"] for row in found["rows"]} == {1, 2, 3, 4, 5}
    assert found["positions"][0]["first_preference"]["mean"] == pytest.approx(0.5)
    assert len(out.read_text(encoding="utf-8").splitlines()) == 6
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_command_without_labels_says_so(files: tuple[str, str]) -> None:
    done = run(files[0])
    assert done.exit_code == 0, done.output
    assert "No labels: accuracy needs --items" in " ".join(done.stdout.split())
    assert "votes:" not in done.stdout


def test_command_reads_a_ledger(tmp_path: Path) -> None:
    from opengrm.ledger import Ledger

    path = tmp_path / "run.ledger.db"
    with Ledger(path) as ledger:
        ledger.put_all(judged("a", [(2, 1), (2, 1)], key=None) + judged("b", [(1, 2), (2, 1)]))
    done = run(str(path), "--json")
    assert json.loads(done.stdout)["counts"]["judgments"] == 4


@pytest.mark.parametrize("k", ["0", "two", "1,,2", ""])
def test_command_refuses_a_wrong_k(files: tuple[str, str], k: str) -> None:
    done = run(files[0], "-k", k)
    assert isinstance(done.exception, UsageError)
    assert "expected whole numbers from 1" in str(done.exception)


def test_command_skips_bad_rows(files: tuple[str, str], tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.jsonl"
    bad = '{"item": "item 0", "scores": [1, 2, 3]}\n{"item": 3.5}\n'
    mixed.write_text(Path(files[0]).read_text(encoding="utf-8") + bad, encoding="utf-8")
    assert isinstance(run(str(mixed)).exception, BadRow)
    done = run(str(mixed), "--json", "--on-bad", "skip")
    assert json.loads(done.stdout)["skipped_rows"] == 2


def test_tables() -> None:
    votes, known = biased_judgments(4, 4)
    report = revote(votes, known)
    text = markdown(vote_cells(report.rows))
    assert text.splitlines()[0].startswith("| k | items | accuracy % [95 %] |")
    assert len(text.splitlines()) == 2 + 4
    assert position_cells(report.positions[0])[0]["position"] == "1"
    assert agreement_cells(report.agreement)[0]["group"] == "pairs"
    assert markdown([]) == ""
    assert markdown([{"a|b": "x|y"}]) == "| a\\|b |\n| --- |\n| x\\|y |\n"


def test_a_picture_needs_something_to_draw_and_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="are there labels"):
        plot_curves(tmp_path / "p.png", {"none": [{"k": 1, "accuracy": None}]})
    row = {"k": 1, "accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    with pytest.raises(UsageError, match="names no picture format"):
        plot_curves(tmp_path / "p.txt", {"a": [row]})
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"opengrm\[plots\]"):
        plot_curves(tmp_path / "p.png", {"a": [row]})
