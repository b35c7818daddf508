"""ROC-AUC, Pearson and Spearman correlation, with bootstrap intervals by cluster.

Each statistic takes weights, one row of them for each resample: a resample that draws cluster g three times is a row
with weight 3 on g's items, so a thousand resamples are one matrix and no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from opengrm.voting.intervals import Interval

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats, Floats, Floats], Floats]
_CELLS = 4_000_000  # most numbers of one working matrix


def roc_auc(scores_I: Floats, labels_I: Floats, weights_BI: Floats) -> Floats:
    """The probability that a positive (label > 0.5) scores above a negative, ties counted half; NaN without both.

    Args:
        scores_I: one score for each item.
        labels_I: 0 or 1.
        weights_BI: how often each item stands in each resample.

    Returns:
        B numbers in [0, 1].
    """
    positive_I = labels_I > 0.5
    above_BL = _by_level(scores_I, weights_BI * positive_I)
    below_BL = _by_level(scores_I, weights_BI * ~positive_I)
    lower_BL = np.cumsum(below_BL, axis=1) - below_BL
    pairs_B = above_BL.sum(axis=1) * below_BL.sum(axis=1)
    return _divide((above_BL * (lower_BL + 0.5 * below_BL)).sum(axis=1), pairs_B)


def pearson(x_I: Floats, y_I: Floats, weights_BI: Floats) -> Floats:
    """Pearson correlation for each row of weights; NaN where x or y does not vary. Returns B numbers in [-1, 1]."""
    # Centring first keeps the moments small against their rounding.
    x_BI = np.broadcast_to(x_I - x_I.mean(), weights_BI.shape)
    y_BI = np.broadcast_to(y_I - y_I.mean(), weights_BI.shape)
    return _weighted_pearson(x_BI, y_BI, weights_BI)


def spearman(x_I: Floats, y_I: Floats, weights_BI: Floats) -> Floats:
    """Spearman correlation: Pearson between mid-ranks, ranked anew in each resample. Returns B numbers in [-1, 1]."""
    return _weighted_pearson(_midranks(x_I, weights_BI), _midranks(y_I, weights_BI), weights_BI)


def bootstrap(
    statistic: Statistic, columns: Sequence[tuple[Floats, Floats]], clusters_I: Floats | None = None, *,
    resamples: int = 1000, seed: int = 0,
) -> Interval | None:  # fmt: skip
    """A statistic with a 95 % percentile interval from resampling whole clusters with replacement.

    Args:
        statistic: `roc_auc`, `pearson` or `spearman`.
        columns: (x_I, y_I) of the same I items; with several, the statistic is averaged over them. An item whose x is
            NaN is left out of that column.
        clusters_I: a cluster number for each item; every item is a cluster where None.
        resamples: number of resamples, fewer (at least 200) where there are very many items.
        seed: of the resampling; the same call gives the same interval.

    Returns:
        None where the statistic is not defined (no item, one class, nothing varies).
    """
    items = len(columns[0][0])
    clusters_I = np.arange(items) if clusters_I is None else np.unique(clusters_I, return_inverse=True)[1]
    mean = _over_columns(statistic, columns, np.ones((1, items)))[0] if items else np.nan
    if not np.isfinite(mean):
        return None
    groups = int(clusters_I.max()) + 1
    resamples = max(200, min(resamples, 100 * _CELLS // (items * len(columns))))
    draw, values, step = np.random.Generator(np.random.PCG64(seed)), [], max(1, _CELLS // items)
    for start in range(0, resamples, step):
        picked_BG = draw.integers(groups, size=(min(step, resamples - start), groups))
        rows_BG = np.arange(len(picked_BG))[:, None] * groups
        weights_BG = np.bincount((picked_BG + rows_BG).ravel(), minlength=len(picked_BG) * groups)
        weights_BI = weights_BG.reshape(-1, groups)[:, clusters_I].astype(np.float64)
        values.append(_over_columns(statistic, columns, weights_BI))
    found_B = np.concatenate(values)
    low, high = np.nanpercentile(found_B, [2.5, 97.5])
    return Interval(float(mean), float(low), float(high))


def _over_columns(statistic: Statistic, columns: Sequence[tuple[Floats, Floats]], weights_BI: Floats) -> Floats:
    found = []
    for x_I, y_I in columns:
        valid_I = ~np.isnan(x_I)
        found.append(
            statistic(x_I[valid_I], y_I[valid_I], weights_BI[:, valid_I])
            if valid_I.any()
            else np.full(len(weights_BI), np.nan)
        )
    with np.errstate(invalid="ignore"):
        return np.asarray(np.mean(found, axis=0))


def _by_level(values_I: Floats, weights_BI: Floats) -> Floats:
    """Weights summed over items of equal value, values ascending: shape [B, number of values]."""
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
    return np.divide(top_B, bottom_B, out=np.full(len(top_B), np.nan), where=bottom_B > 1e-12)
