"""Planned orders: balance at every prefix, precedence in even squares, stability, uniformity of the shuffle."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from opengrm.voting import plan_orders
from opengrm.voting.orders import OrderKind

KEYS = [f"item {i}" for i in range(40)]


@pytest.mark.parametrize("n", range(1, 9))
def test_balanced_positions_differ_by_at_most_one_after_any_number_of_samples(n: int) -> None:
    for key in KEYS[:10]:
        counts = Counter({(i, p): 0 for i in range(n) for p in range(n)})
        for order in plan_orders(n, 3 * n + 1, key):
            assert sorted(order) == list(range(n))
            counts.update((i, p) for p, i in enumerate(order))
            assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("n", [2, 4, 6, 8])
def test_an_even_square_balances_who_stands_before_whom(n: int) -> None:
    for key in KEYS[:10]:
        orders = plan_orders(n, n, key)
        neighbours = Counter(pair for order in orders for pair in itertools.pairwise(order))
        assert set(neighbours.values()) == {1}
        assert len(neighbours) == n * (n - 1)
        for first, mirror in zip(orders[::2], orders[1::2], strict=True):
            assert mirror == first[::-1]


@pytest.mark.parametrize("n", range(1, 8))
def test_few_different_orders(n: int) -> None:
    assert len(set(plan_orders(n, 32, "key"))) == n


@pytest.mark.parametrize("kind", ["balanced", "shuffle", "fixed"])
def test_a_plan_is_a_prefix_of_the_longer_plan(kind: OrderKind) -> None:
    for n in (1, 2, 3, 5):
        assert plan_orders(n, 8, "key", kind) == plan_orders(n, 32, "key", kind)[:8]


def test_a_pair_alternates_and_its_start_depends_on_the_key() -> None:
    starts = Counter()
    for i in range(2000):
        plan = plan_orders(2, 4, f"pair {i}")
        assert plan[0] != plan[1]
        assert plan[2:] == plan[:2]
        starts[plan[0]] += 1
    assert abs(starts[0, 1] - 1000) < 4 * 500**0.5  # four standard deviations of a fair coin


def test_shuffle_is_uniform_over_permutations() -> None:
    counts = Counter(plan_orders(3, 6000, "key", "shuffle"))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 4 * (6000 * 5 / 36) ** 0.5 for count in counts.values())


def test_fixed_is_the_identity() -> None:
    assert plan_orders(3, 2, "key", "fixed") == [(0, 1, 2), (0, 1, 2)]


def test_plans_are_the_same_on_every_machine() -> None:
    assert plan_orders(4, 4, "a") == [(2, 0, 1, 3), (3, 1, 0, 2), (0, 3, 2, 1), (1, 2, 3, 0)]
    assert plan_orders(2, 2, "a") == [(1, 0), (0, 1)]
    assert plan_orders(3, 3, "a", "shuffle") == plan_orders(3, 3, "a", "shuffle")


def test_a_wrong_call_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        plan_orders(0, 1, "key")
    with pytest.raises(ValueError, match="expected one of balanced, shuffle, fixed"):
        plan_orders(2, 1, "key", "random")  # type: ignore[arg-type]
