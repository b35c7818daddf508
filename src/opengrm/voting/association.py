"""ROC-AUC, Pearson and Spearman correlation, with bootstrap intervals by cluster.

Each statistic takes weights, one row of them for each resample: a resample that draws cluster g three times is a row
with weight 3 on g's items, so a thousand resamples are one matrix and no loop. Items whose first number is NaN are
left out, if the statistic does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from opengrm.voting.intervals import Ids, Interval

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats, Floats, Floats], Floats]
_CELLS = 200_000  # numbers of one working matrix: it stays in the processor's cache
_MOST_CELLS = 8_000_000  # numbers that one bootstrap aims to work through


def roc_auc(scores_I: Floats, labels_I: Floats, weights_BI: Floats) -> Floats:
    """The probability that a positive (label > 0.5) scores above a negative, ties counted half; NaN without both.

    Args:
        scores_I: one score for each item.
        labels_I: 0 or 1.
        weights_BI: how often each item stands in each resample.

    Returns:
        B numbers in [0, 1].
    """
    scores_I, labels_I, weights_BI = _valid(scores_I, labels_I, weights_BI)
    positive_I = labels_I > 0.5
    above_BL = _by_level(scores_I, weights_BI * positive_I)
    below_BL = _by_level(scores_I, weights_BI * ~positive_I)
    lower_BL = np.cumsum(below_BL, axis=1) - below_BL
    pairs_B = above_BL.sum(axis=1) * below_BL.sum(axis=1)
    return _divide((above_BL * (lower_BL + 0.5 * below_BL)).sum(axis=1), pairs_B)


def roc_auc_at_chance(scores_I: Floats, labels_I: Floats, weights_BI: Floats) -> Floats:
    """`roc_auc` in which a pair with a missing score (NaN) counts one half, as a coin would have it."""
    valid_I = ~np.isnan(scores_I)
    positive_I = labels_I > 0.5

    def pairs_B(among_I: npt.NDArray[np.bool_]) -> Floats:
        return np.asarray(
            weights_BI[:, positive_I & among_I].sum(axis=1) * weights_BI[:, ~positive_I & among_I].sum(axis=1)
        )

    known_B, all_B = pairs_B(valid_I), pairs_B(np.ones_like(valid_I))
    above_B = np.nan_to_num(roc_auc(scores_I, labels_I, weights_BI)) * known_B
    return _divide(above_B + 0.5 * (all_B - known_B), all_B)


def pearson(x_I: Floats, y_I: Floats, weights_BI: Floats) -> Floats:
    """Pearson correlation for each row of weights; NaN where x or y does not vary. Returns B numbers in [-1, 1]."""
    x_I, y_I, weights_BI = _valid(x_I, y_I, weights_BI)
    if not len(x_I):
        return np.full(len(weights_BI), np.nan)
    x_BI, y_BI = (np.broadcast_to(_scaled(values_I), weights_BI.shape) for values_I in (x_I, y_I))
    return _weighted_pearson(x_BI, y_BI, weights_BI)


def spearman(x_I: Floats, y_I: Floats, weights_BI: Floats) -> Floats:
    """Spearman correlation: Pearson between mid-ranks, ranked anew in each resample. Returns B numbers in [-1, 1]."""
    x_I, y_I, weights_BI = _valid(x_I, y_I, weights_BI)
    if not len(x_I):
        return np.full(len(weights_BI), np.nan)
    return _weighted_pearson(_midranks(x_I, weights_BI), _midranks(y_I, weights_BI), weights_BI)


def bootstrap(
    statistic: Statistic, columns: Sequence[tuple[Floats, Floats]], clusters_I: Ids | None = None, *,
    resamples: int = 1000, seed: int = 0,
) -> Interval | None:  # fmt: skip
    """A statistic with a 95 % percentile interval from resampling whole clusters with replacement.

    Where there are many items, the resampling looks at some columns only (evenly spaced, at least 4), and its interval
    is moved by the difference between their mean and that of all columns.

    Args:
        statistic: one of the functions above.
        columns: (x_I, y_I) of the same I items; with several, the statistic is averaged over those that define it.
        clusters_I: a cluster number for each item; every item is a cluster where None.
        resamples: number of resamples, fewer (at least 200) where there are very many items.
        seed: of the resampling; the same call gives the same interval.

    Returns:
        None where the statistic is not defined (no item, one class, nothing varies).
    """
    items = len(columns[0][0])
    mean = _over_columns(statistic, columns, np.ones((1, items)))[0]
    if not np.isfinite(mean):
        return None
    group_I = np.arange(items) if clusters_I is None else np.unique(clusters_I, return_inverse=True)[1]
    groups = int(group_I.max()) + 1
    looked_at = max(4, _MOST_CELLS // (items * resamples))
    some = [columns[i] for i in np.unique(np.linspace(0, len(columns) - 1, looked_at).round().astype(int))]
    moved = mean - _over_columns(statistic, some, np.ones((1, items)))[0] if len(some) < len(columns) else 0.0
    resamples = max(200, min(resamples, 10 * _MOST_CELLS // (items * len(some))))
    draw, values, step = np.random.Generator(np.random.PCG64(seed)), [], max(1, _CELLS // items)
    for start in range(0, resamples, step):
        picked_BG = draw.integers(groups, size=(min(step, resamples - start), groups))
        rows_B1 = np.arange(len(picked_BG))[:, None] * groups
        weights_BG = np.bincount((picked_BG + rows_B1).ravel(), minlength=len(picked_BG) * groups)
        weights_BI = weights_BG.reshape(-1, groups)[:, group_I].astype(np.float64)
        values.append(_over_columns(statistic, some, weights_BI))
    found_B = np.concatenate(values)
    found_B = found_B[np.isfinite(found_B)]
    low, high = np.percentile(found_B, [2.5, 97.5]) + moved if len(found_B) and np.isfinite(moved) else (mean, mean)
    # With few items every resample can miss the point itself, and no statistic here leaves [-1, 1].
    low, high = max(-1.0, low), min(1.0, high)
    return Interval(float(mean), min(float(mean), float(low)), max(float(mean), float(high)))


def _over_columns(statistic: Statistic, columns: Sequence[tuple[Floats, Floats]], weights_BI: Floats) -> Floats:
    """Mean of the statistic over the columns where it is defined."""
    total_B, defined_B = np.zeros(len(weights_BI)), np.zeros(len(weights_BI))
    for x_I, y_I in columns:
        value_B = statistic(x_I, y_I, weights_BI)
        defined_B += np.isfinite(value_B)
        total_B += np.nan_to_num(value_B)
    return _divide(total_B, defined_B)


def _scaled(values_I: Floats) -> Floats:
    """Centred and at most 1 in size: moments small against their rounding, and no square overflows."""
    centred_I = values_I - values_I.mean()
    largest = np.abs(centred_I).max()
    return np.asarray(centred_I / largest if largest > 1e-12 * np.abs(values_I).max() else np.zeros(len(values_I)))


def _valid(x_I: Floats, y_I: Floats, weights_BI: Floats) -> tuple[Floats, Floats, Floats]:
    valid_I = ~np.isnan(x_I)
    return (x_I, y_I, weights_BI) if valid_I.all() else (x_I[valid_I], y_I[valid_I], weights_BI[:, valid_I])


def _by_level(values_I: Floats, weights_BI: Floats) -> Floats:
    """Weights summed over items of equal value, values ascending: shape [B, number of values]."""
    if not len(values_I):
        return np.zeros((len(weights_BI), 1))
    order_I = np.argsort(values_I, kind="stable")
    sorted_I = values_I[order_I]
    starts_L = np.flatnonzero(np.concatenate([[True], sorted_I[1:] != sorted_I[:-1]]))
    return np.asarray(np.add.reduceat(weights_BI[:, order_I], starts_L, axis=1))


def _midranks(values_I: Floats, weights_BI: Floats) -> Floats:
    """Mid-ranks in each resample, centred on its mean rank."""
    level_BL = _by_level(values_I, weights_BI)
    rank_BL = np.cumsum(level_BL, axis=1) - level_BL / 2
    _, level_I = np.unique(values_I, return_inverse=True)
    return np.asarray(rank_BL[:, level_I] - weights_BI.sum(axis=1, keepdims=True) / 2)


def _weighted_pearson(x_BI: Floats, y_BI: Floats, weights_BI: Floats) -> Floats:
    total_B1 = weights_BI.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x_BI = x_BI - (weights_BI * x_BI).sum(axis=1, keepdims=True) / total_B1
        y_BI = y_BI - (weights_BI * y_BI).sum(axis=1, keepdims=True) / total_B1
    xx_B = (weights_BI * x_BI * x_BI).sum(axis=1)
    yy_B = (weights_BI * y_BI * y_BI).sum(axis=1)
    return _divide((weights_BI * x_BI * y_BI).sum(axis=1), np.sqrt(xx_B * yy_B))


def _divide(top_B: Floats, bottom_B: Floats) -> Floats:
    """Quotient, NaN where the divisor is 0 (up to rounding)."""
    return np.asarray(np.divide(top_B, bottom_B, out=np.full(len(top_B), np.nan), where=bottom_B > 1e-12))
