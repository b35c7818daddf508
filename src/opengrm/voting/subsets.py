"""Subsets of an item's K recorded samples: accuracy at k < K is averaged over them.

- `all`: every one of the C(K, k) subsets, each equally likely. Where there are more than 1,000, 256 random ones.
- `planned`: subsets that keep the plan of orders, so that at every k the votes are as balanced as a run with that k
  would have been. A window of k consecutive samples says how many of each order such a run holds; which of the
  recorded samples with that order take part is free, since samples shown in the same order are exchangeable. All
  windows are equally likely, and within one all selections. Exact up to 1,000 subsets, else 256 random ones.

The same subsets serve all items with the same K (and the same plan): their samples are independent of one another, so
this costs no precision, and a statistic over items (a correlation) sees whole runs.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

SubsetKind = Literal["auto", "all", "planned"]
MOST_EXACT = 1000
DRAWN = 256

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Subsets(NamedTuple):
    """R subsets of K samples.

    Attributes:
        masks_RK: 1 where the sample takes part.
        weights_R: how likely each subset is; they sum to 1.
        exact: whether these are all subsets there are, not a random draw.
    """

    masks_RK: Floats
    weights_R: Floats
    exact: bool


def all_subsets(samples: int, k: int, seed: int = 0) -> Subsets:
    """All C(samples, k) subsets in lexicographic order, or 256 random ones where there are more than 1,000."""
    count = math.comb(samples, k)
    if count <= MOST_EXACT:
        chosen = np.array(list(itertools.combinations(range(samples), k)), dtype=np.int64)
        return Subsets(_masks(chosen, samples), np.full(count, 1 / count), True)
    chosen = np.argsort(_generator(seed, samples, k).random((DRAWN, samples)), axis=1)[:, :k]
    return Subsets(_masks(chosen, samples), np.full(DRAWN, 1 / DRAWN), False)


def planned_subsets(plan: tuple[int, ...], k: int, seed: int = 0) -> Subsets:
    """Subsets that keep the plan of orders.

    Args:
        plan: the number of the order that each of the K samples was shown in.
        k: size of the subsets, 1 <= k <= K.
        seed: of the random draw where there are too many.
    """
    samples = len(plan)
    members = {order: [j for j, o in enumerate(plan) if o == order] for order in sorted(set(plan))}
    starts = samples - k + 1
    windows = Counter(tuple(plan[s : s + k].count(order) for order in members) for s in range(starts))
    sizes = {w: math.prod(math.comb(len(m), c) for m, c in zip(members.values(), w, strict=True)) for w in windows}
    if sum(sizes.values()) <= MOST_EXACT:
        chosen, weights = [], []
        for window, times in sorted(windows.items()):
            parts = (itertools.combinations(m, c) for m, c in zip(members.values(), window, strict=True))
            chosen += [tuple(itertools.chain(*selection)) for selection in itertools.product(*parts)]
            weights += [times / starts / sizes[window]] * sizes[window]
        return Subsets(_masks(np.array(chosen, dtype=np.int64), samples), np.array(weights), True)
    draw = _generator(seed, samples, k)
    masks_RK = np.zeros((DRAWN, samples))
    drawn_RK, start_R = draw.random((DRAWN, samples)), draw.integers(starts, size=DRAWN)
    in_window_RK = (np.arange(samples) >= start_R[:, None]) & (np.arange(samples) < start_R[:, None] + k)
    for same in members.values():
        wanted_R1 = in_window_RK[:, same].sum(axis=1, keepdims=True)
        rank_RS = np.argsort(np.argsort(drawn_RK[:, same], axis=1), axis=1)
        masks_RK[:, same] = rank_RS < wanted_R1
    return Subsets(masks_RK, np.full(DRAWN, 1 / DRAWN), False)


def plans_of(order_IK: Ints) -> tuple[list[tuple[int, ...]], Ints]:
    """The different plans of a block: orders renumbered by first appearance, and which plan each item follows."""
    first_IK = np.argmax(order_IK[:, :, None] == order_IK[:, None, :], axis=2)
    plans_PK, plan_I = np.unique(first_IK, axis=0, return_inverse=True)
    return [tuple(int(o) for o in plan) for plan in plans_PK], np.asarray(plan_I).reshape(-1)


def is_balanced(order_IK: Ints, orders_ON: Ints) -> bool:
    """Whether in every item, after any number of samples, every response stood in every position equally often.

    Equally often: the counts differ by at most 1. False where an order is not known.
    """
    if (order_IK < 0).any():
        return False
    at_ONN = orders_ON[:, :, None] == np.arange(orders_ON.shape[1])
    step = max(1, 4_000_000 // (order_IK.shape[1] * at_ONN.shape[1] ** 2 or 1))
    for start in range(0, len(order_IK), step):
        counts_IKNN = np.cumsum(at_ONN[order_IK[start : start + step]], axis=1)
        if (counts_IKNN.max(axis=(2, 3)) - counts_IKNN.min(axis=(2, 3)) > 1).any():
            return False
    return True


def _masks(chosen_Rk: Ints, samples: int) -> Floats:
    masks_RK = np.zeros((len(chosen_Rk), samples))
    np.put_along_axis(masks_RK, chosen_Rk, 1.0, axis=1)
    return masks_RK


def _generator(seed: int, samples: int, k: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, samples, k]))
