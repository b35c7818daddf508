"""Evidence about a finite population that is seen one value after another: a betting test, and a Beta tail.

The k judgments that a budget allows for are a finite population; those made so far are drawn from it without
replacement. What has been seen therefore bounds what is left, and certainty is reached before the last draw.

- `wealth` tests "the sum of all values is at most so much" at every step at once. A gambler bets on the next value
  against the mean that the values still to come can have at most; if the statement is true, her wealth is a
  nonnegative supermartingale that starts at 1, and ever reaches 1/alpha with probability at most alpha (Ville 1939).
  Betting: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024),
  section 5 for sampling without replacement; confidence sequences without replacement: the same, NeurIPS 2020, arXiv
  2006.04347; time-uniform bounds at large: Howard, Ramdas, McAuliffe and Sekhon, Annals of Statistics 49 (2021). Our
  choice: the average over a grid of constant bets, which needs no tuning and no look ahead.
- `beta_tail` is P(Beta(a, b) > x) for arrays, which NumPy has not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
BETS = 8  # constant bets that the wealth is averaged over
_TINY = 1e-9  # of the range: below it a difference is rounding


def wealth(values_XB: Floats, least: Floats | float, total: int, most: Floats | float = 0.0) -> Floats:
    """The gambler's wealth after each value, against "the sum of all `total` values is at most `most`".

    Args:
        values_XB: the first B of the population's values in the order they were drawn, for X populations.
        least: what no value can be below; a number, or one for each population.
        total: size of each population, at least B.
        most: the sum that is tested.

    Returns:
        wealth_XB, at least 0; infinite once no values to come can bring the sum down to `most`.
    """
    count, seen = values_XB.shape
    bet_G = (np.arange(BETS) + 0.5) / BETS
    least_X = np.broadcast_to(np.asarray(least, dtype=np.float64), (count,))
    most_X = np.broadcast_to(np.asarray(most, dtype=np.float64), (count,))
    tiny_X = _TINY * np.maximum(np.abs(least_X), 1e-12)
    sum_X, wealth_XG = np.zeros(count), np.ones((count, BETS))
    found_XB = np.empty((count, seen))
    for b in range(seen):
        mean_X = (most_X - sum_X) / (total - b)  # of the values to come, if the statement is true: at most this
        room_X = mean_X - least_X
        value_X = values_XB[:, b]
        # A bet of g puts g times the whole wealth at stake: the value `least` would leave 1 - g of it.
        gain_X = np.where(room_X > tiny_X, (value_X - mean_X) / np.maximum(room_X, tiny_X), 0.0)
        wealth_XG *= 1 + np.maximum(gain_X, -1.0)[:, None] * bet_G
        sum_X = sum_X + value_X
        beyond_X = sum_X + least_X * (total - b - 1) > most_X + tiny_X * total
        found_XB[:, b] = np.where(beyond_X, np.inf, wealth_XG.mean(axis=1))
    # Once no values to come can make the statement true, none later can either.
    return np.asarray(np.where(np.maximum.accumulate(np.isinf(found_XB), axis=1), np.inf, found_XB))


def cycle_wealth(values_XT: Floats, least: float, total: int, block: int, most: float = 0.0) -> Floats:
    """`wealth` where whole cycles of `block` values are drawn: after each value; 0 within a cycle.

    What `total` has beyond whole cycles is never drawn, and bounded by `least` a value.
    """
    count, seen = values_XT.shape
    found_XT = np.zeros((count, seen))
    if cycles := seen // block:
        drawn_XB = values_XT[:, : cycles * block].reshape(count, cycles, block).sum(axis=2)
        within = most - total % block * least
        found_XT[:, block - 1 : cycles * block : block] = wealth(drawn_XB, least * block, total // block, within)
    return found_XT


def beta_tail(a_X: Floats, b_X: Floats, x_X: Floats) -> Floats:
    """P(Beta(a, b) > x), elementwise, by the continued fraction of the incomplete beta function (DLMF 8.17.22).

    Args:
        a_X, b_X: above 0.
        x_X: any; 1 is returned for x <= 0 and 0 for x >= 1.
    """
    a_X, b_X, x_X = (np.asarray(v, dtype=np.float64) for v in np.broadcast_arrays(a_X, b_X, x_X))
    inside_X = (x_X > 0) & (x_X < 1)
    x = np.where(inside_X, x_X, 0.5)
    # The fraction converges fast below the mean; above it the other tail is computed.
    below = x < (a_X + 1) / (a_X + b_X + 2)
    a, b, x = np.where(below, a_X, b_X), np.where(below, b_X, a_X), np.where(below, x, 1 - x)
    front = np.exp(a * np.log(x) + b * np.log1p(-x) + _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b)) / a
    part = front / _fraction(a, b, x)  # P(Beta(a, b) <= x)
    tail = np.clip(np.where(below, 1 - part, part), 0.0, 1.0)
    return np.asarray(np.where(inside_X, tail, np.where(x_X <= 0, 1.0, 0.0)))


def _fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """The continued fraction 1 + d1/(1 + d2/(1 + ...)), from the inside out.

    The terms needed grow as the root of the larger of a and b; so many reach 1e-8 up to 50,000.
    """
    found = np.ones_like(x)
    terms = 2 * (20 + int(2 * np.sqrt(max(a.max(initial=1.0), b.max(initial=1.0)))))
    for i in range(terms, 0, -1):
        m = i // 2
        if i % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        found = 1 + term / found
    return found


def _log_gamma(x: Floats) -> Floats:
    """log Gamma(x) for x > 0: Stirling's series at x + 8 (DLMF 5.11.1), and the recurrence down."""
    steps = np.ones_like(x)
    for j in range(8):
        steps = steps * (x + j)
    y = x + 8
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5)
    return np.asarray((y - 0.5) * np.log(y) - y + 0.5 * np.log(2 * np.pi) + series - np.log(steps))
