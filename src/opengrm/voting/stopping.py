"""Stopping rules: when the votes so far say what all k would say (docs/adaptive-voting.md).

The full vote is that of all k judgments of an item's budget. A rule looks at the first t of them and says how sure it
is that the leader so far is the one response at the top of the full vote; a vote stops when that reaches 1 - alpha.

    exact      1 if the votes to come cannot overturn or equal the leader, given the range of scores, else 0. Never
               wrong.
    posterior  the probability that the leader stays ahead, if the votes to come are like those seen. Each rival's
               remaining mean difference has a Beta distribution on [-h, h], h the largest difference seen, with the
               mean and the variance of a Polya urn that holds the differences seen and one of h either way: for votes
               of one size, the uniform prior that `confidence.py` and adaptive consistency (Aggarwal et al. 2023,
               arXiv 2305.11860) use. Sums come in steps, and the leader has lost where it ties: what ends below the
               smallest difference seen counts as lost (of votes of one size that is halfway to the next possible
               sum). With several rivals the probabilities of losing add up. A model, not a guarantee.
    anytime    1 - p, p the anytime-valid p-value of "the leader is not alone at the top of the full vote", from the
               betting test of `evidence.py` on score differences, drawn without replacement from the k. Whatever the
               votes are like, the probability that the vote ever stops on another outcome than the full vote's is at
               most alpha: of n responses, ties at the top included, at most n pairs "leader, another" are falsely
               rejected for every leader to be wrong, so each is tested at alpha / n. It holds whenever every order of
               the k votes is equally likely: independent samples in a row, or recorded votes drawn at random.

Sum and mean have the same leader at every t and are one rule; majority is the sum of shared votes (range 1). A missing
judgment adds nothing to any difference, and takes its place in the budget. With `block` > 1 the votes come in planned
orders, a whole cycle of them at a time: a vote stops after whole cycles only, so that positions stay balanced, and the
betting test draws whole cycles (a rest of k is bounded by the range).

Guided votes (`guided.py`) sum the judgments whose meta scores stand among the best of all k, so the sum so far can
also lose judgments. `exact` bounds that; `posterior` takes today's weights for values; `anytime` tests, for every
place where the cut may fall, that the sum above it is at most 0 or that the number above it is not what the rule
counts, and needs all of these refused. Its guarantee is for distinct meta scores: where they tie at the cut it takes
the votes in the order drawn, while the vote shares their places.

Single responses: the vote stops when an interval for the mean of all k valid scores lies within `width` on both sides
of the mean so far, whatever the vote: a width goes with sums and means only. `exact` gives its certain bounds,
`posterior` the urn with one score at each end of the range, `anytime` the means in the range that the betting test has
not refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from opengrm.voting.evidence import beta_tail, cycle_wealth, wealth
from opengrm.voting.guided import Guide, Rule, guided_weights, rule_name, sigmoid
from opengrm.voting.reducers import total_decimals
from opengrm.voting.totals import shares_rows

StopRule = Literal["exact", "posterior", "anytime"]
STOP_RULES: tuple[str, ...] = get_args(StopRule)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_CANDIDATES = 101  # means that the betting test tries for single responses
_CELLS = 2_000_000  # most numbers of one working array


@dataclass(frozen=True, slots=True)
class Stop:
    """When to stop.

    Attributes:
        rule: see the module's text.
        alpha: the chance of another outcome than the full vote's that is taken, in (0, 1); `exact` takes none.
        low, high: the range of a score (the template's).
        width: for single responses: how far the mean of all k may be from the mean so far, in units of the score;
            None never stops them.

    Raises:
        ValueError: alpha, width or the range is out of range, or the rule is not known.
    """

    rule: StopRule
    alpha: float = 0.05
    low: float = 0.0
    high: float = 10.0
    width: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in STOP_RULES:
            raise ValueError(f"stopping rule {self.rule!r} is not known: expected one of {', '.join(STOP_RULES)}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}, expected a number between 0 and 1")
        if not self.low < self.high or not np.isfinite([self.low, self.high]).all():
            raise ValueError(f"scores from {self.low} to {self.high} are no range")
        if self.width is not None and not self.width > 0:
            raise ValueError(f"the width is {self.width}, expected more than 0")


class Course(NamedTuple):
    """What a rule says after each of the first T votes of X items.

    Attributes:
        totals_XTN: what the vote so far comes to: sums of scores, of shared votes, or of weighted scores.
        leader_XT: the response at the top so far; -1 where several tie, and without a vote.
        sure_XT: how sure the rule is that it is the full vote's, 0 to 1; 1 at t = k.
    """

    totals_XTN: Floats
    leader_XT: Ints
    sure_XT: Floats


class Span(NamedTuple):
    """What a rule says of the mean of single responses after each of the first T votes; NaN without a valid vote.

    Attributes:
        mean_XT: the mean of the valid scores so far.
        low_XT, high_XT: the interval for the mean of all k.
    """

    mean_XT: Floats
    low_XT: Floats
    high_XT: Floats


def check_width(stop: Stop, how: Rule) -> None:
    """Single responses stop on their mean. Raises ValueError for a width with a vote that is no sum or mean."""
    if stop.width is not None and how not in ("sum", "mean"):
        raise ValueError(f"a width is for the mean of single responses, not for the vote {rule_name(how)!r}")


def check_range(scores: Floats, stop: Stop) -> None:
    """Raises ValueError for a score that is out of the rule's range."""
    if scores.size and (
        np.nanmin(scores, initial=stop.low) < stop.low or np.nanmax(scores, initial=stop.high) > stop.high
    ):
        raise ValueError(f"a score is outside of {stop.low:g} to {stop.high:g}, the range that the rule was given")


def course(
    scores_XTN: Floats, k: int, stop: Stop, how: Rule = "sum", *, block: int = 1, meta_XT: Floats | None = None
) -> Course:
    """How sure the rule is of the leader after each vote, n >= 2.

    Args:
        scores_XTN: scores of the first T votes in the order drawn, NaN where the judgment is missing.
        k: the full vote's number of judgments, at least T.
        stop: the rule.
        how: the vote.
        block: votes in one cycle of the planned orders; the rule says 0 between cycles.
        meta_XT: meta scores for a `Guide`, NaN where there is none.

    Raises:
        ValueError: n below 2, T above k, scores out of the range, or a guided vote without meta scores.
    """
    count, seen, n = scores_XTN.shape
    if n < 2 or seen > k:
        raise ValueError(f"{seen} votes of {k} on {n} responses, expected at most k votes and at least 2 responses")
    check_range(scores_XTN, stop)
    valid_XT = ~np.isnan(scores_XTN[:, :, 0])
    reach = 1.0 if how == "majority" else stop.high - stop.low
    votes_XTN = shares_rows(scores_XTN) if how == "majority" else np.nan_to_num(scores_XTN)
    if isinstance(how, Guide):
        if meta_XT is None:
            raise ValueError("a guided vote needs meta scores")
        return _guided_course(votes_XTN, valid_XT, meta_XT, k, stop, how, block, reach)
    totals_XTN = _rounded(np.cumsum(votes_XTN, axis=1), votes_XTN, k)
    leader_XT = _leaders(totals_XTN, valid_XT)
    left_T = np.arange(k - 1, k - 1 - seen, -1)
    doubt_XT = np.zeros((count, seen))
    if stop.rule == "exact":
        margin_XT = _margins(totals_XTN, leader_XT)
        doubt_XT = np.where(margin_XT > reach * left_T + 1e-9 * reach, 0.0, 1.0)
    else:
        for i in range(n):
            for j in range(n):
                mine_XT = leader_XT == i
                if i == j or not mine_XT.any():
                    continue
                difference_XT = votes_XTN[:, :, i] - votes_XTN[:, :, j]
                if stop.rule == "posterior":
                    rows_XT = mine_XT & _looks(seen, k, block)
                    doubt_XT[rows_XT] += _overtaken(difference_XT, valid_XT, k, rows_XT)
                else:
                    p_XT = n / np.maximum(cycle_wealth(difference_XT, -reach, k, block), 1e-300)
                    doubt_XT = np.where(mine_XT, np.maximum(doubt_XT, p_XT), doubt_XT)
    return _course(totals_XTN, leader_XT, doubt_XT, k, block)


def span(scores_XT: Floats, k: int, stop: Stop) -> Span:
    """The interval for the mean of all k valid scores of single responses after each vote.

    Args:
        scores_XT: the first T votes in the order drawn, NaN where missing.
        k: the full vote's number of judgments, at least T.
        stop: the rule.

    Raises:
        ValueError: T above k, or scores out of the range.
    """
    seen = scores_XT.shape[1]
    if seen > k:
        raise ValueError(f"{seen} votes of {k}")
    check_range(scores_XT, stop)
    valid_XT = ~np.isnan(scores_XT)
    votes_XT = np.nan_to_num(scores_XT)
    sum_XT, valid_n_XT = np.cumsum(votes_XT, axis=1), np.cumsum(valid_XT, axis=1)
    with np.errstate(invalid="ignore"):
        mean_XT = np.where(valid_n_XT > 0, sum_XT / valid_n_XT, np.nan)
    left_T = np.arange(k - 1, k - 1 - seen, -1)
    if stop.rule == "exact":
        low_XT = (sum_XT + left_T * stop.low) / (valid_n_XT + left_T).clip(min=1)
        high_XT = (sum_XT + left_T * stop.high) / (valid_n_XT + left_T).clip(min=1)
    elif stop.rule == "posterior":
        # An urn of the valid scores and one at each end of the range; the votes left are drawn from it (Polya).
        urn_XT = valid_n_XT + 2.0
        urn_mean_XT = (sum_XT + stop.low + stop.high) / urn_XT
        squares_XT = np.cumsum(votes_XT**2, axis=1) + stop.low**2 + stop.high**2
        variance_XT = (squares_XT / urn_XT - urn_mean_XT**2).clip(min=0)
        spread_XT = np.sqrt(variance_XT * left_T * (urn_XT + left_T) / (urn_XT + 1))
        centre_XT, all_XT = sum_XT + left_T * urn_mean_XT, (valid_n_XT + left_T).clip(min=1)
        z = NormalDist().inv_cdf(1 - stop.alpha / 2)
        low_XT, high_XT = (centre_XT - z * spread_XT) / all_XT, (centre_XT + z * spread_XT) / all_XT
    else:
        low_XT, high_XT = _means_left(votes_XT, valid_XT, k, stop)
    for bound_XT in (low_XT, high_XT):
        bound_XT[:, left_T == 0] = mean_XT[:, left_T == 0]
    unknown_XT = valid_n_XT == 0
    return Span(mean_XT, np.where(unknown_XT, np.nan, low_XT), np.where(unknown_XT, np.nan, high_XT))


def stops(found: Course | Span, stop: Stop, k: int, block: int = 1) -> Bools:
    """Whether the vote may stop after each of the T votes: stopped_XT. At t = k it must."""
    if isinstance(found, Course):
        ready_XT = (found.sure_XT >= 1 - stop.alpha) & (found.leader_XT >= 0)
    else:
        with np.errstate(invalid="ignore"):
            away_XT = np.maximum(found.high_XT - found.mean_XT, found.mean_XT - found.low_XT)
            ready_XT = away_XT <= (0.0 if stop.width is None else stop.width)
    seen = ready_XT.shape[1]
    ready_XT = ready_XT & _looks(seen, k, block)
    ready_XT[:, k - 1 :] = True
    return np.asarray(ready_XT)


def stopping_points(stopped_XT: Bools) -> Ints:
    """How many votes each item has when it stops: the first t that says so, T where none does."""
    return np.asarray(np.where(stopped_XT.any(axis=1), stopped_XT.argmax(axis=1) + 1, stopped_XT.shape[1]))


# --- the leader ---------------------------------------------------------------------------------------------------


def _looks(seen: int, k: int, block: int) -> Bools:
    """After which votes a rule is asked: whole cycles of the orders, and the end."""
    t_T = np.arange(1, seen + 1)
    return np.asarray((t_T % block == 0) | (t_T == k))


def _rounded(totals_XTN: Floats, votes_XTN: Floats, k: int) -> Floats:
    """Totals that differ by rounding only, made equal, as the vote does."""
    power = 10.0 ** total_decimals(float(np.abs(votes_XTN).max(initial=0)), k)
    return np.asarray(np.rint(totals_XTN * power) / power)


def _leaders(totals_XTN: Floats, valid_XT: Bools) -> Ints:
    """The response alone at the top, -1 where there is none."""
    at_top_XTN = totals_XTN == totals_XTN.max(axis=2, keepdims=True)
    alone_XT = (at_top_XTN.sum(axis=2) == 1) & (np.cumsum(valid_XT, axis=1) > 0)
    return np.asarray(np.where(alone_XT, at_top_XTN.argmax(axis=2), -1))


def _margins(totals_XTN: Floats, leader_XT: Ints) -> Floats:
    """How far the leader is ahead of the next; 0 without one."""
    top_XT2 = np.partition(totals_XTN, -2, axis=2)[:, :, -2:]
    return np.asarray(np.where(leader_XT >= 0, top_XT2[:, :, 1] - top_XT2[:, :, 0], 0.0))


def _course(totals_XTN: Floats, leader_XT: Ints, doubt_XT: Floats, k: int, block: int) -> Course:
    """Doubt as certainty: none in a leader that is not there, none between cycles, all at the end."""
    seen = leader_XT.shape[1]
    sure_XT = np.clip(1 - doubt_XT, 0.0, 1.0) * (leader_XT >= 0) * _looks(seen, k, block)
    sure_XT[:, k - 1 :] = 1.0
    return Course(totals_XTN, leader_XT, sure_XT)


def _overtaken(difference_XT: Floats, valid_XT: Bools, k: int, rows_XT: Bools) -> Floats:
    """The posterior's probability that a rival reaches the leader by the k-th vote, where it is asked for.

    Args:
        difference_XT: leader minus rival in each vote, 0 where missing.
        valid_XT: whether the vote is there.
        k: all votes.
        rows_XT: the items and times asked for, M of them.
    """
    size_XT = np.abs(difference_XT)
    least_XT = np.minimum.accumulate(np.where(size_XT > 0, size_XT, np.inf), axis=1)
    return _reached(
        np.cumsum(difference_XT, axis=1)[rows_XT],
        np.cumsum(difference_XT**2, axis=1)[rows_XT],
        np.maximum.accumulate(size_XT, axis=1)[rows_XT],
        least_XT[rows_XT],
        valid_XT.cumsum(axis=1)[rows_XT],
        np.nonzero(rows_XT)[1] + 1,
        k,
    )


def _reached(
    sum_M: Floats, squares_M: Floats, size_M: Floats, least_M: Floats, valid_M: Ints, seen_M: Ints, k: int
) -> Floats:
    """P(sum of all k <= 0), given of the votes seen sum, sum of squares, largest and smallest size above 0 (infinite
    where there is none), how many are valid, and all.

    Of the votes to come the same share is taken to be missing as of those seen.
    """
    least_M = np.where(np.isinf(least_M), 0.0, least_M)
    # Scores are often whole: the same few numbers come again and again.
    facts_FM = np.stack([sum_M, squares_M, size_M, least_M, valid_M, seen_M]).astype(np.float64)
    order_M = np.lexsort(facts_FM)
    sorted_FM = facts_FM[:, order_M]
    first_M = np.ones(len(order_M), dtype=bool)
    first_M[1:] = (sorted_FM[:, 1:] != sorted_FM[:, :-1]).any(axis=0)
    sum_U, squares_U, size_U, least_U, valid_U, seen_U = sorted_FM[:, first_M]
    left_U = np.maximum((k - seen_U) * valid_U / seen_U, 1e-9)
    urn_U = valid_U + 2.0  # with one difference of the largest size either way
    unit_U = np.where(size_U > 0, size_U, 1.0)
    mean_U = sum_U / unit_U / urn_U
    variance_U = (squares_U / unit_U**2 + 2) / urn_U - mean_U**2
    # The mean of the votes left, drawn from a Polya urn: its variance shrinks to that of the unknown mean itself.
    variance_U = variance_U * (urn_U + left_U) / ((urn_U + 1) * left_U)
    share_U = (1 + mean_U) / 2
    weight_U = np.maximum(share_U * (1 - share_U) * 4 / np.maximum(variance_U, 1e-12) - 1, 1e-6)
    # A tie is lost, and sums come in steps: a continuous sum below the smallest step counts as none.
    needed_U = (1 - (sum_U - least_U) / unit_U / left_U) / 2
    behind_U = 1 - beta_tail(share_U * weight_U, (1 - share_U) * weight_U, needed_U)
    found_M = np.empty(len(order_M))
    found_M[order_M] = behind_U[np.cumsum(first_M) - 1]
    return found_M


# --- guided votes -------------------------------------------------------------------------------------------------


def _guided_course(
    votes_XTN: Floats, valid_XT: Bools, meta_XT: Floats, k: int, stop: Stop, guide: Guide, block: int, reach: float
) -> Course:
    """`course` of a guided vote, some items at a time: weights of every prefix are T x T numbers an item."""
    count, seen, _ = votes_XTN.shape
    step = max(1, _CELLS // (seen * seen))
    slices = [slice(start, start + step) for start in range(0, count, step)]
    parts = [_guided_part(votes_XTN[s], valid_XT[s], meta_XT[s], k, stop, guide, block, reach) for s in slices]
    return Course(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _guided_part(
    votes_XTN: Floats, valid_XT: Bools, meta_XT: Floats, k: int, stop: Stop, guide: Guide, block: int, reach: float
) -> Course:
    count, seen, n = votes_XTN.shape
    weights_XTK = guided_weights(meta_XT, valid_XT, np.tri(seen), guide)
    totals_XTN = _rounded(weights_XTK @ votes_XTN, votes_XTN, k)
    leader_XT = _leaders(totals_XTN, valid_XT)
    doubt_XT = np.zeros((count, seen))
    looks_T = _looks(seen, k, block)
    for i in range(n):
        for j in range(n):
            rows_XT = (leader_XT == i) & looks_T
            if i == j or not rows_XT.any():
                continue
            difference_XT = votes_XTN[:, :, i] - votes_XTN[:, :, j]
            if stop.rule == "posterior":
                weighted_MK = weights_XTK[rows_XT] * difference_XT[np.nonzero(rows_XT)[0]]
                size_MK = np.abs(weighted_MK)
                doubt_XT[rows_XT] += _reached(
                    weighted_MK.sum(axis=1), (weighted_MK**2).sum(axis=1), size_MK.max(axis=1),
                    np.where(size_MK > 0, size_MK, np.inf).min(axis=1), valid_XT.cumsum(axis=1)[rows_XT],
                    np.nonzero(rows_XT)[1] + 1, k,
                )  # fmt: skip
                continue
            for t in np.flatnonzero(rows_XT.any(axis=0)):
                rows = np.flatnonzero(rows_XT[:, t])
                part = (difference_XT[rows, : t + 1], valid_XT[rows, : t + 1], meta_XT[rows, : t + 1])
                if stop.rule == "exact":
                    found = _guided_bound(*part, k, guide, reach) <= 1e-9 * reach
                else:
                    found = n / np.maximum(_guided_wealth(*part, k, guide, block, reach), 1e-300)
                doubt_XT[rows, t] = np.maximum(doubt_XT[rows, t], found)
    return _course(totals_XTN, leader_XT, doubt_XT, k, block)


def _ranked(
    difference_XT: Floats, valid_XT: Bools, meta_XT: Floats, guide: Guide
) -> tuple[Floats, Ints, Bools]:  # fmt: skip
    """Differences with the weight that a judgment has if it counts, the places by meta score, and who passes."""
    level_XT = np.where(np.isnan(meta_XT), -np.inf, meta_XT)
    passes_XT = valid_XT & (level_XT >= (-np.inf if guide.threshold is None else guide.threshold))
    weight_XT = sigmoid(level_XT) if guide.weights else np.ones_like(level_XT)
    # Judgments without a meta score stand behind those with one, missing judgments behind all.
    order_XT = np.argsort(np.where(valid_XT, -level_XT.clip(min=-1e300), np.inf), axis=1, kind="stable")
    place_XT = np.argsort(order_XT, axis=1, kind="stable")
    return difference_XT * weight_XT * passes_XT, place_XT, passes_XT


def _guided_bound(
    difference_XT: Floats, valid_XT: Bools, meta_XT: Floats, k: int, guide: Guide, reach: float
) -> Floats:
    """The least that the guided difference of all k can come to, t votes seen.

    If q of the judgments seen stay among the places, the places' rest is taken by votes to come, each as bad as can
    be. All votes to come being valid is the worst case: it makes most places, and frees most of them.
    """
    count, seen = difference_XT.shape
    left = k - seen
    value_XT, place_XT, passes_XT = _ranked(difference_XT, valid_XT, meta_XT, guide)
    # Judgments whose meta scores tie share their places: each counts their mean.
    same_XTT = (meta_XT[:, :, None] == meta_XT[:, None, :]) | (
        np.isnan(meta_XT[:, :, None]) & np.isnan(meta_XT[:, None])
    )
    same_XTT &= valid_XT[:, :, None] & valid_XT[:, None, :]
    value_XT = np.einsum("xts,xs->xt", same_XTT, value_XT) / same_XTT.sum(axis=2).clip(min=1)
    ranked_XT = np.zeros_like(value_XT)
    np.put_along_axis(ranked_XT, place_XT, value_XT, axis=1)
    first_XQ = np.concatenate([np.zeros((count, 1)), np.cumsum(ranked_XT, axis=1)], axis=1)
    valid_X = valid_XT.sum(axis=1)
    places_X = np.minimum(guide.places((valid_X + left).astype(np.float64)), valid_X + left)[:, None]
    kept_Q = np.arange(seen + 1)
    possible_XQ = (kept_Q >= places_X - left) & (kept_Q <= np.minimum(valid_X[:, None], places_X))
    least_X = np.where(possible_XQ, first_XQ - (places_X - kept_Q) * reach, np.inf).min(axis=1)
    # Without a judgment above the threshold the best one counts, and that may yet be another.
    return np.asarray(np.where(passes_XT.any(axis=1) | (left == 0), least_X, -np.inf))


def _guided_wealth(
    difference_XT: Floats, valid_XT: Bools, meta_XT: Floats, k: int, guide: Guide, block: int, reach: float
) -> Floats:
    """The least wealth over all places of the cut, t votes seen: what refuses "the guided sum is at most 0".

    For a cut above which the s best judgments seen stand, two statements would both be true of the right one: the sum
    above it is at most 0, and the number above it is what the rule counts. The average of a wealth against the one
    and of a wealth against the other is a wealth against both.
    """
    seen = difference_XT.shape[1]
    value_XT, place_XT, passes_XT = _ranked(difference_XT, valid_XT, meta_XT, guide)
    by_rank = guide.k_meta is not None or (guide.threshold is None and not guide.weights)
    least_X = np.full(len(value_XT), np.inf)
    for s in range(seen + 1) if by_rank else (seen,):
        above_XT = (place_XT < s) & valid_XT
        found_X = cycle_wealth(value_XT * above_XT, -reach, k, block)[:, -1]
        if by_rank and (s < seen or guide.k_meta is None):
            # The default counts half of the valid judgments, rounded up: twice the number above, less the valid, is
            # 0 or 1. A given k_meta counts so many, if there are so many: below all of them it refuses nothing.
            if guide.k_meta is None:
                number_XT, fewest, most = np.asarray(2.0 * above_XT - valid_XT, dtype=np.float64), 0.0, 1.0
            else:
                number_XT, fewest, most = above_XT.astype(np.float64), float(guide.k_meta), float(guide.k_meta)
            too_many_X = cycle_wealth(number_XT, -1.0, k, block, most)[:, -1]
            too_few_X = cycle_wealth(-number_XT, -1.0, k, block, -fewest)[:, -1]
            found_X = (2 * found_X + too_many_X + too_few_X) / 4
        least_X = np.minimum(least_X, found_X)
    return np.asarray(np.where(passes_XT.any(axis=1), least_X, 0.0))


# --- single responses ---------------------------------------------------------------------------------------------


def _means_left(votes_XT: Floats, valid_XT: Bools, k: int, stop: Stop) -> tuple[Floats, Floats]:
    """The ends of the means that the betting test has not refused; a grid, its ends drawn out to the next point."""
    count, seen = votes_XT.shape
    grid_C = np.linspace(stop.low, stop.high, _CANDIDATES)
    gap = grid_C[1] - grid_C[0]
    low_XT, high_XT = np.empty((count, seen)), np.empty((count, seen))
    step = max(1, _CELLS // (_CANDIDATES * seen))
    for start in range(0, count, step):
        part = slice(start, start + step)
        # Of the right mean, the valid scores' distances from it sum to 0.
        away_XCT = (votes_XT[part, None, :] - grid_C[:, None]) * valid_XT[part, None, :]
        rows = away_XCT.reshape(-1, seen)
        mean_R = np.tile(grid_C, len(away_XCT))
        up, down = wealth(rows, stop.low - mean_R, k), wealth(-rows, mean_R - stop.high, k)
        left_XCT = ((up + down) / 2 < 1 / stop.alpha).reshape(away_XCT.shape)
        # Refused once is refused for good.
        left_XCT = np.logical_and.accumulate(left_XCT, axis=2)
        low_XT[part] = np.where(left_XCT, grid_C[:, None], np.inf).min(axis=1) - gap
        high_XT[part] = np.where(left_XCT, grid_C[:, None], -np.inf).max(axis=1) + gap
    # A mean between two points of the grid may be the only one left.
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_XT = np.cumsum(votes_XT, axis=1) / np.cumsum(valid_XT, axis=1)
    low_XT, high_XT = (
        np.where(np.isinf(low_XT), mean_XT - gap, low_XT),
        np.where(np.isinf(high_XT), mean_XT + gap, high_XT),
    )
    return low_XT.clip(stop.low, stop.high), high_XT.clip(stop.low, stop.high)
