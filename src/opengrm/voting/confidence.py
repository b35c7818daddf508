"""How sure the vote is of its leader.

Each valid vote either puts the leader strictly above a rival (W of them), strictly below (L), or level (ignored). If
votes are independent and put the leader above with an unknown probability p, uniform beforehand, then the probability
that p > 1/2 is P(Binomial(W + L + 1, 1/2) <= W): exact at every k, and free of any assumption about how scores are
spread. The confidence is the least of these over all rivals.

What it says: how sure the recorded votes make it that more such votes would keep this leader ahead, head to head. What
it does not say: that the leader is the better response. A judge with a fixed wrong belief is confidently wrong. It
counts wins, not sizes: where sums are led by few large differences against many small ones it can fall below 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache


def confidence(votes: Sequence[Sequence[float]], leaders: Sequence[int]) -> float | None:
    """Confidence in the leader of a vote, in [0, 1].

    Args:
        votes: the scores of each valid judgment, k rows of n numbers.
        leaders: the responses at the top of the vote. With several, the least over them is taken, so that a tied vote
            has a confidence of at most 1/2.

    Returns:
        None for n = 1 or without a vote.
    """
    if not votes or len(votes[0]) < 2:
        return None
    least = 1.0
    for leader in leaders:
        for rival in range(len(votes[0])):
            if rival != leader:
                wins = sum(v[leader] > v[rival] for v in votes)
                losses = sum(v[leader] < v[rival] for v in votes)
                least = min(least, lead_probability(wins, losses))
    return least


@lru_cache(maxsize=4096)
def lead_probability(wins: int, losses: int) -> float:
    """P(p > 1/2) after `wins` and `losses` under a uniform prior: P(Binomial(wins + losses + 1, 1/2) <= wins)."""
    m = wins + losses + 1
    if wins > losses:  # sum the short tail, the rest is its complement
        return 1.0 - _tail(m, losses)
    return 0.5 if wins == losses else _tail(m, wins)


def _tail(m: int, j: int) -> float:
    """P(Binomial(m, 1/2) <= j) for j < m/2: the terms shrink as they are summed downwards from j."""
    if m <= 1000:
        term = math.comb(m, j) / 2**m
    else:
        term = math.exp(math.lgamma(m + 1) - math.lgamma(j + 1) - math.lgamma(m - j + 1) - m * math.log(2))
    total = 0.0
    while term > total * 1e-17:
        total += term
        term *= j / (m - j + 1)
        j -= 1
    return total
