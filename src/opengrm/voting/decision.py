"""What a stopping rule says of one item's judgments so far: go on, or stop, why, and how sure.

This is `stopping.py` for judgments instead of arrays, and the form in which a verdict carries the decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from opengrm.judgments import Judgment
from opengrm.voting.guided import Guide, Rule
from opengrm.voting.stopping import Course, Span, Stop, check_width, course, span, stopping_points, stops

Reason = Literal["sure", "all votes", "budget"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the first t of an item's k votes say.

    Attributes:
        stopped: whether the rule stops here; always at t = k.
        sure: how sure the rule is that the outcome is the full vote's, 0 to 1; 0 within a cycle of the orders. For
            single responses 1 - alpha where the interval is narrow enough, else 0.
        interval: for single responses the interval of the mean of all k; None without a valid vote.
    """

    stopped: bool
    sure: float
    interval: tuple[float, float] | None = None


def decide(
    judgments: Sequence[Judgment], n: int, k: int, stop: Stop, how: Rule = "sum", *, block: int = 1
) -> Decision:  # fmt: skip
    """The decision after these judgments.

    Args:
        judgments: the first t of the item's k, in the order they were asked for.
        n: number of responses.
        k: the full vote.
        stop: the rule.
        how: the vote.
        block: votes in one cycle of the planned orders.

    Raises:
        ValueError: more than k judgments, none, scores that are out of the rule's range, or a width with a vote that
            is no sum or mean.
    """
    check_width(stop, how)
    if not judgments:
        raise ValueError("there is no judgment to decide on")
    nothing = (np.nan,) * n
    scores_XTN = np.array([[j.scores or nothing for j in judgments]], dtype=np.float64)
    found: Course | Span
    if n == 1:
        found = span(scores_XTN[:, :, 0], k, stop)
    else:
        meta_XT = np.array([[np.nan if j.meta is None else j.meta for j in judgments]])
        found = course(scores_XTN, k, stop, how, block=block, meta_XT=meta_XT)
    stopped = bool(stops(found, stop, k, block)[0, -1])
    return replace(at(found, stop, 0, len(judgments), k), stopped=stopped)


def at(found: Course | Span, stop: Stop, i: int, t: int, k: int) -> Decision:
    """The decision of the i-th item that stopped after t votes of k."""
    if isinstance(found, Course):
        return Decision(True, float(found.sure_XT[i, t - 1]))
    mean, low, high = (float(v[i, t - 1]) for v in found)
    narrow = stop.width is not None and max(high - mean, mean - low) <= stop.width
    sure = 1.0 if t == k or (narrow and stop.rule == "exact") else (1 - stop.alpha) * narrow
    return Decision(True, sure, None if math.isnan(low) else (low, high))


@lru_cache
def earliest(n: int, k: int, stop: Stop, how: Rule = "sum", block: int = 1) -> int:
    """The fewest votes after which an item can stop.

    That is where all of them put one response as far ahead as can be; of single responses, where all scores are one in
    the middle of the range; of guided votes a cycle. Arguments as for `decide`.
    """
    if isinstance(how, Guide):
        return min(block, k)
    if n == 1:
        found: Course | Span = span(np.full((1, k), (stop.low + stop.high) / 2), k, stop)
    else:
        ahead_N = np.where(np.arange(n) == 0, stop.high, stop.low)
        found = course(np.broadcast_to(ahead_N, (1, k, n)), k, stop, how, block=block)
    return int(stopping_points(stops(found, stop, k, block))[0])


def said(decision: Decision, stop: Stop, asked: int, k: int) -> dict[str, Any]:
    """The verdict's key `stop`: the rule, why the vote stopped, how many votes it could have had, and how sure it is.

    `reason` is "sure" (the rule stopped it), "all votes" (k were spent) or "budget" (that of the data set was).
    """
    reason: Reason = "all votes" if asked == k else "sure" if decision.stopped else "budget"
    row: dict[str, Any] = {"rule": stop.rule, "reason": reason, "of": k, "sure": round(decision.sure, 6)}
    if stop.rule != "exact":
        row["alpha"] = stop.alpha
    if decision.interval is not None:
        row["interval"] = [round(v, 6) for v in decision.interval]
    return {"stop": row}
