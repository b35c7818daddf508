"""Position bias and order consistency, by hand and on judges with a known bias."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from opengrm.judgments import Judgment
from opengrm.reports.tables import position_cells
from opengrm.voting import plan_orders
from opengrm.voting.bias import position_bias
from opengrm.voting.recorded import collect

Order = tuple[int, ...]


def report(votes: list[Judgment]) -> dict[str, Any]:
    (recorded,) = collect(votes)
    (found,) = position_bias(recorded.blocks)
    return found


def judged(item: str, *samples: tuple[Order | None, tuple[float, ...] | None]) -> list[Judgment]:
    return [
        Judgment(item, scores, None if scores else "timeout: 1 s", j, order=order)
        for j, (order, scores) in enumerate(samples)
    ]


AB, BA = (0, 1), (1, 0)


def test_by_hand() -> None:
    votes = [
        *judged("a", (AB, (2, 1)), (BA, (2, 1)), (AB, (1, 2)), (BA, None)),
        *judged("b", (AB, (3, 3)), (BA, (3, 1)), (None, (9, 1))),
    ]
    found = report(votes)
    assert (found["n"], found["items"], found["judgments"]) == (2, 2, 5)
    first, second = found["positions"]
    # Top at the first position: a 1, 0, 0; b 1/2, 0.
    assert first["share"]["mean"] == pytest.approx(1.5 / 5)
    assert second["share"]["mean"] == pytest.approx(3.5 / 5)
    # Least squares over responses that stood at both positions, by their votes there and here:
    # a: response 0 won 1/2 first and 1 second, response 1 won 0 first and 1/2 second: twice -1/2, each weight 2/3;
    # b: response 0 won 1/2 first and 1 second, response 1 won 0 and 1/2: twice -1/2, each weight 1/2.
    # They all say second minus first = 1/2, so the shift of the first is minus half of that.
    assert first["shift"]["mean"] == pytest.approx(-1 / 4)
    assert first["expected"] == pytest.approx(first["share"]["mean"] + 1 / 4)
    assert first["score"]["mean"] == pytest.approx((2 + 1 + 1 + 3 + 1) / 5)
    assert found["first_preference"] == first["shift"]
    # Pairs in different orders: a (0, 1) agree, (1, 2) do not; b tied against response 0: one half.
    assert found["other_order_agreement"]["mean"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found["same_order_agreement"]["mean"] == 0  # a (0, 2)
    assert found["items_compared"] == 2


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_judge_that_takes_the_first(n: int) -> None:
    votes = []
    for i in range(30):
        orders = plan_orders(n, 2 * n, f"{i}")
        votes += judged(f"{i}", *[(o, tuple(float(o[0] == r) for r in range(n))) for o in orders])
    found = report(votes)
    assert found["positions"][0]["share"]["mean"] == 1
    assert [row["expected"] for row in found["positions"]] == pytest.approx([1 / n] * n)
    assert found["first_preference"]["mean"] == pytest.approx(1 - 1 / n)
    assert found["other_order_agreement"]["mean"] == 0
    assert found["same_order_agreement"]["mean"] == 1


def test_a_judge_without_bias_shows_none() -> None:
    draw = np.random.default_rng(0)
    covered = {"shift": 0, "score_shift": 0, "share": 0}
    gaps = []
    for run in range(60):
        votes = []
        for i in range(40):
            quality = draw.normal(size=3)
            orders = plan_orders(3, 6, f"{run} {i}")
            votes += judged(f"{i}", *[(o, tuple(quality + draw.normal(size=3))) for o in orders])
        found = report(votes)
        for name, value in {"shift": 0, "score_shift": 0, "share": 1 / 3}.items():
            interval = found["positions"][1][name]
            covered[name] += interval["low"] < value < interval["high"]
        gaps.append(found["same_order_agreement"]["mean"] - found["other_order_agreement"]["mean"])
    assert min(covered.values()) >= 52  # of 60; 57 expected from 95 % intervals
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / 60**0.5


def test_a_fixed_order_cannot_show_its_bias() -> None:
    votes = [j for i in range(5) for j in judged(f"{i}", (AB, (2, 1)), (AB, (2, 1)))]
    found = report(votes)
    assert found["positions"][0]["share"]["mean"] == 1
    assert found["first_preference"] is None
    assert [(row["expected"], row["score_shift"]) for row in found["positions"]] == [(None, None)] * 2
    assert [row["shift %"] for row in position_cells(found)] == ["-", "-"]
    assert found["other_order_agreement"] is None
    assert found["items_compared"] == 0


@pytest.mark.parametrize(("n", "k"), [(2, 2), (2, 3), (3, 2), (3, 4), (4, 3)])
def test_the_shift_does_not_depend_on_how_often_orders_were_seen(n: int, k: int) -> None:
    votes = []
    for i in range(60):
        orders = plan_orders(n, k, f"{i}", "shuffle")
        votes += judged(f"{i}", *[(o, tuple(float(o[0] == r) for r in range(n))) for o in orders])
    votes += judged("shown in one order", *[(tuple(range(n)), tuple(map(float, range(n))))] * 9)
    found = report(votes)
    assert found["first_preference"]["mean"] == pytest.approx(1 - 1 / n)
    assert [row["shift"]["mean"] for row in found["positions"][1:]] == pytest.approx([-1 / n] * (n - 1))


def test_shuffled_orders_show_a_bias_with_an_honest_interval() -> None:
    draw = np.random.default_rng(4)
    covered = 0
    for run in range(60):
        votes = []
        for i in range(40):
            worth = draw.normal(size=2)
            for j, order in enumerate(plan_orders(2, 3, f"{run} {i}", "shuffle")):
                noisy = worth + draw.normal(size=2)
                noisy[order[0]] += 0.5
                votes += [Judgment(f"{i}", tuple(noisy), None, j, order=order)]
        shift = report(votes)["positions"][0]["score_shift"]
        covered += shift["low"] < 0.25 < shift["high"]  # the mean over both positions is 0
    assert covered >= 52  # of 60; 57 expected


def test_clusters_widen_the_intervals() -> None:
    votes = []
    for i in range(40):
        first = i // 4 % 2  # four items of a prompt have the same bias
        votes += judged(
            f"{i}", *[(o, tuple(float(o[first] == r) for r in range(2))) for o in plan_orders(2, 4, f"{i}")]
        )
    (recorded,) = collect(votes)
    (alone,) = position_bias(recorded.blocks)
    (together,) = position_bias(recorded.blocks, {f"{i}": i // 4 for i in range(40)})
    for name in ("shift", "share"):
        a, b = alone["positions"][0][name], together["positions"][0][name]
        assert a["mean"] == pytest.approx(b["mean"])
    a, b = (found["positions"][0]["shift"] for found in (alone, together))
    assert b["high"] - b["low"] > 1.7 * (a["high"] - a["low"])


def test_every_pair_is_counted_once() -> None:
    draw = np.random.default_rng(2)
    votes, pairs = [], {True: [], False: []}
    for i in range(20):
        samples = [((AB, BA)[draw.integers(2)], (float(draw.integers(3)), 1.0)) for _ in range(5)]
        votes += judged(f"{i}", *samples)
        agree: dict[bool, list[float]] = {True: [], False: []}
        for (o, s), (p, t) in itertools.combinations(samples, 2):
            top_s, top_t = ({r for r in (0, 1) if x[r] == max(x)} for x in (s, t))
            agree[o == p].append(len(top_s & top_t) / len(top_s) / len(top_t))
        for equal, values in agree.items():
            pairs[equal] += [sum(values) / len(values)] if values else []
    found = report(votes)
    assert found["same_order_agreement"]["mean"] == pytest.approx(sum(pairs[True]) / len(pairs[True]))
    assert found["other_order_agreement"]["mean"] == pytest.approx(sum(pairs[False]) / len(pairs[False]))


def test_nothing_to_say_without_orders() -> None:
    (recorded,) = collect([*judged("a", (None, (2, 1)), (None, (1, 2))), *judged("single", ((0,), (3,)))])
    assert position_bias(recorded.blocks) == []
