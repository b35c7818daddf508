"""Means with a 95 % interval, clustered by item (design rule 6).

Values that belong together (the judgments of one item, the items of one prompt) are one cluster: the standard error
is the cluster-robust one of a ratio, se^2 = G/(G-1) * sum over clusters g of (sum in g of (x - mean * w))^2 / W^2 with
G clusters and W the sum of all weights w. The interval of a share in [0, 1] is Wilson's at the effective sample size
mean (1 - mean) / se^2, so that shares at and near 0 and 1 behave; where nothing varies that size is G.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[Any]  # a cluster number for each row
Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class RunningShare:
    """The mean of a stream of values in [0, 1] and its interval, from running sums: what `share_interval` says.

    Only the sums of clusters with a name are kept, so memory does not grow with values that stand alone.
    """

    def __init__(self) -> None:
        self.n = 0
        self._total = 0.0
        self._squares = 0.0  # of the values that stand alone
        self._alone = 0
        self._clusters: dict[str, tuple[int, float]] = {}

    def add(self, value: float, cluster: str | None = None) -> None:
        """Count a value; None is a cluster of its own."""
        self.n += 1
        self._total += value
        if cluster is None:
            self._alone += 1
            self._squares += value * value
        else:
            count, total = self._clusters.get(cluster, (0, 0.0))
            self._clusters[cluster] = (count + 1, total + value)

    def interval(self) -> Interval | None:
        """None without a value."""
        if not self.n:
            return None
        mean, groups = self._total / self.n, self._alone + len(self._clusters)
        alone = self._total - math.fsum(total for _, total in self._clusters.values())
        spread = self._squares - 2 * mean * alone + self._alone * mean * mean
        spread += math.fsum((total - mean * count) ** 2 for count, total in self._clusters.values())
        variance = max(0.0, spread) / self.n**2 * groups / (groups - 1) if groups > 1 else 0.0
        return wilson(mean, variance, groups)


def share_interval(
    values_I: Floats, weights_I: Floats | None = None, clusters_I: Ids | None = None
) -> Interval | None:
    """The mean sum(values) / sum(weights) of a share in [0, 1], with Wilson's interval.

    Args:
        values_I: what each row adds to the numerator, 0 <= value <= weight.
        weights_I: what each row adds to the denominator; 1 each where None.
        clusters_I: a cluster number for each row; every row is a cluster where None.

    Returns:
        None where the weights sum to 0.
    """
    found = _ratio(values_I, weights_I, clusters_I)
    return None if found is None else wilson(*found)


def normal_interval(
    values_I: Floats, weights_I: Floats | None = None, clusters_I: Ids | None = None
) -> Interval | None:
    """As `share_interval` for values of any range: mean +- 1.96 standard errors (no width where G = 1)."""
    found = _ratio(values_I, weights_I, clusters_I)
    if found is None:
        return None
    mean, variance, _ = found
    half = Z95 * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def _ratio(values_I: Floats, weights_I: Floats | None, clusters_I: Ids | None) -> tuple[float, float, int] | None:
    """The ratio, its cluster-robust variance, and the number of clusters that have weight."""
    weights_I = np.ones(len(values_I)) if weights_I is None else weights_I
    weight = float(weights_I.sum())
    if weight == 0:
        return None
    mean = float(values_I.sum()) / weight
    residual_I = values_I - mean * weights_I
    if clusters_I is None:
        residual_G, groups = residual_I, int((weights_I > 0).sum())
    else:
        _, cluster_I = np.unique(clusters_I, return_inverse=True)
        residual_G = np.bincount(cluster_I, weights=residual_I).astype(np.float64)
        groups = int((np.bincount(cluster_I, weights=weights_I) > 0).sum())
    variance = float(residual_G @ residual_G) / weight**2 * groups / (groups - 1) if groups > 1 else 0.0
    return mean, variance, groups


def wilson(mean: float, variance: float, groups: int) -> Interval:
    """Wilson's 95 % interval of a share whose mean has this variance, from `groups` independent clusters."""
    mean = min(1.0, max(0.0, mean))
    inside = mean * (1 - mean)
    # A variance or a share of rounding size only is none: nothing varied.
    n = inside / variance if variance > 1e-18 and inside > 1e-12 else groups
    centre = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(inside / n + Z95**2 / (4 * n * n))
    # At 0 and 1 rounding must not leave the mean outside of its own interval.
    return Interval(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)))
