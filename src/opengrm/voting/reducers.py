"""Votes: k judgments of an item become one verdict.

    sum       S_i = sum over valid judgments of S_ij (paper v3 Eq. 14, the pointwise GRM's vote)
    mean      the same divided by the number of valid judgments (v3 Eq. 12)
    majority  each valid judgment gives one vote to its top response, shared equally if several tie there (v3 Eq. 13;
              the paper does not say what a tied judgment does: sharing is the expected value of a random pick). For
              n = 1: the most frequent score; if several are equally frequent, their mean.

A judgment without scores has no vote (design rule 2). The result does not depend on the order of the judgments, and
totals that differ only by floating-point rounding tie: they are rounded to 12 digits of the largest possible total.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

from opengrm.errors import BadRow
from opengrm.judgments import Judgment
from opengrm.verdicts import Verdict
from opengrm.voting.confidence import confidence

Reducer = Literal["sum", "mean", "majority"]
REDUCERS: tuple[str, ...] = get_args(Reducer)

Votes = Sequence[Sequence[float]]


def vote(item: str, judgments: Iterable[Judgment], n: int | None = None, how: Reducer = "sum") -> Verdict:
    """The verdict of an item's judgments.

    Args:
        item: id of the item.
        judgments: the judgments asked for, with and without scores, in any order.
        n: number of responses; None takes it from the first judgment with scores.
        how: the rule, see the module's text.

    Raises:
        BadRow: a judgment has another number of scores.
        ValueError: `how` is not a rule.
    """
    asked = sorted(judgments, key=lambda j: j.sample)
    return verdict_of(
        item,
        valid_scores(item, asked, n),
        how,
        asked=len(asked),
        prompt_tokens=sum(j.prompt_tokens or 0 for j in asked),
        completion_tokens=sum(j.completion_tokens or 0 for j in asked),
    )


def valid_scores(item: str, judgments: Iterable[Judgment], n: int | None = None) -> list[tuple[float, ...]]:
    """The scores of the judgments that have them. Arguments and errors as for `vote`."""
    votes: list[tuple[float, ...]] = []
    for judgment in judgments:
        if judgment.scores is None:
            continue
        n = n or len(judgment.scores)
        if len(judgment.scores) != n:
            raise BadRow(
                f"item {item!r}, sample {judgment.sample}", f"{len(judgment.scores)} scores for {n} responses"
            )
        votes.append(judgment.scores)
    return votes


def verdict_of(
    item: str, votes: Votes, how: Reducer, *, asked: int, prompt_tokens: int = 0, completion_tokens: int = 0,
    extra: dict[str, Any] | None = None,
) -> Verdict:  # fmt: skip
    """The verdict of `votes`, the scores of the valid judgments (k rows of n numbers). Arguments as in `Verdict`."""
    scores = reduce_votes(votes, how)
    ranking: tuple[int, ...] = ()
    winner = margin = sure = None
    tied: tuple[int, ...] = ()
    if scores is not None:
        ranking = tuple(sorted(range(len(scores)), key=lambda i: (-scores[i], i)))
        if len(scores) > 1:
            top = tuple(i for i in ranking if scores[i] == scores[ranking[0]])
            winner, tied = (top[0], ()) if len(top) == 1 else (None, top)
            margin = scores[ranking[0]] - scores[ranking[1]]
            sure = confidence(votes, top)
    return Verdict(
        item=item, scores=scores, ranking=ranking, winner=winner, tied=tied, margin=margin, confidence=sure,
        asked=asked, valid=len(votes), used=len(votes),
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, extra=extra or {},
    )  # fmt: skip


def reduce_votes(votes: Votes, how: Reducer = "sum") -> tuple[float, ...] | None:
    """One number for each response from k valid votes, or None without any.

    Args:
        votes: k rows of n scores, all of one length.
        how: the rule, see the module's text.

    Raises:
        ValueError: `how` is not a rule.
    """
    if how not in _RULES:
        raise ValueError(f"reducer {how!r} is not known: expected one of {', '.join(REDUCERS)}")
    return _RULES[how](votes) if votes else None


def total_decimals(largest: float, k: int) -> int:
    """Decimals that totals of k scores of size up to `largest` are rounded to: 12 digits of the largest total."""
    reach = largest * k
    return 11 if reach == 0 else max(-290, min(290, 11 - math.floor(math.log10(reach))))


def _sum(votes: Votes) -> tuple[float, ...]:
    decimals = total_decimals(max(abs(s) for v in votes for s in v), len(votes))
    return tuple(round(math.fsum(column), decimals) for column in zip(*votes, strict=True))


def _mean(votes: Votes) -> tuple[float, ...]:
    return tuple(total / len(votes) for total in _sum(votes))


def _majority(votes: Votes) -> tuple[float, ...]:
    if len(votes[0]) == 1:
        top = modes(votes)
        return (math.fsum(top) / len(top),)
    return _sum([shares(v) for v in votes])


def modes(votes: Votes) -> list[float]:
    """The most frequent scores of a single response's valid votes."""
    counts = Counter(v[0] for v in votes)
    most = max(counts.values())
    return [value for value, count in counts.items() if count == most]


def single_credit(votes: Votes, label: float, how: Reducer) -> float | None:
    """What the vote on a single response earns against its label: 1 if they are equal, else 0 (design rule 1).

    It is the most frequent score that is compared, a tie between values earning its expected credit. A sum or a mean
    of scores is no score: with those, only 0/1 votes decide, against a 0/1 label (the mean cut at 1/2 decides as the
    most frequent does).

    Args:
        votes: at least one.

    Returns:
        None where the vote decides nothing.
    """
    if how != "majority" and any(s not in (0, 1) for s in (label, *(v[0] for v in votes))):
        return None
    top = modes(votes)
    return top.count(label) / len(top)


def shares(scores: Sequence[float]) -> list[float]:
    """One vote for the top response, shared equally among those that tie there."""
    top = max(scores)
    share = 1.0 / sum(s == top for s in scores)
    return [share if s == top else 0.0 for s in scores]


_RULES: dict[str, Callable[[Votes], tuple[float, ...]]] = {"sum": _sum, "mean": _mean, "majority": _majority}
