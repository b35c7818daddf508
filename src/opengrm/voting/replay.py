"""Adaptive votes on recorded judgments: what a stopping rule would have spent, and whether it would have agreed.

An item's K recorded judgments are drawn again in many orders; each is read vote by vote until the rule stops, and what
it then says is compared with the vote over all K. Where the recorded orders are a balanced plan, the draws keep the
plan (judgments that were shown in the same order change places), and votes stop after whole cycles of it. Figures are
means over the draws of an item, with intervals clustered by item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opengrm.voting.correctness import credit_rows
from opengrm.voting.guided import Rule, rule_name
from opengrm.voting.intervals import normal_interval, share_interval, wilson
from opengrm.voting.ranked import cluster_ids
from opengrm.voting.recorded import Block
from opengrm.voting.stopping import Course, Span, Stop, StopRule, check_width, course, span, stopping_points, stops
from opengrm.voting.subsets import is_balanced, plans_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_CELLS = 4_000_000  # most numbers of one working array
Plan = Stop | int  # how votes are spent: by a rule, or always so many
LEVELS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)  # edges of the calibration's bins


class Paths(NamedTuple):
    """R draws of each of I items.

    Attributes:
        votes_IR: votes spent.
        tokens_IR: prompt and completion tokens of them; NaN where not known.
        agrees_IR: whether the outcome is the full vote's: the same responses at the top, or for single responses a
            mean within the width of the mean of all.
        credit_IR, full_IR: what the outcome and the full vote earn against the label; NaN without one.
        sure_IR: how sure the rule was when it stopped; NaN for single responses.
    """

    votes_IR: Floats
    tokens_IR: Floats
    agrees_IR: Floats
    credit_IR: Floats
    full_IR: Floats
    sure_IR: Floats


def plan_name(plan: Plan) -> str:
    """ "posterior 0.05", "exact", "8 votes"."""
    if isinstance(plan, int):
        return f"{plan} votes"
    return plan.rule if plan.rule == "exact" else f"{plan.rule} {plan.alpha:g}"


def _most(plans: Sequence[Plan]) -> int:
    """How many recorded votes the plans need."""
    return max((plan for plan in plans if isinstance(plan, int)), default=1)


def cycle_of(block: Block) -> int:
    """Votes in one cycle of a block's planned orders: n where they are a balanced plan, else 1."""
    balanced = block.n >= 2 and block.samples >= 2 and is_balanced(block.order_IK, block.orders_ON)
    return block.n if balanced else 1


def draw_orders(block: Block, draws: int, cycle: int, seed: int = 0, *, pooled: bool = False) -> Ints:
    """Orders in which the recorded judgments are read: samples_IRK. The first is the one they were recorded in.

    Judgments of different judges (`pooled`) are in an order that means something, so that all orders are drawn.

    Args:
        block: I items of K judgments.
        draws: R, at least 1.
        cycle: above 1 the orders keep the plan.
        seed: of the draws.
        pooled: whether the judgments of an item are of different judges.
    """
    draw = np.random.Generator(np.random.PCG64([seed, block.samples, block.n]))
    items, samples = len(block.items), block.samples
    samples_IRK = np.empty((items, draws, samples), dtype=np.int64)
    plans, plan_I = plans_of(block.order_IK) if cycle > 1 else ([(0,) * samples], np.zeros(items, dtype=np.int64))
    for number, plan in enumerate(plans):
        rows_I = np.flatnonzero(plan_I == number)
        for order in set(plan):
            places = np.flatnonzero(np.array(plan) == order)
            shuffled = draw.permuted(np.tile(places, (len(rows_I) * draws, 1)), axis=1)
            samples_IRK[rows_I[:, None, None], np.arange(draws)[None, :, None], places] = shuffled.reshape(
                len(rows_I), draws, -1
            )
    if not pooled:
        samples_IRK[:, 0] = np.arange(samples)
    return samples_IRK


def replay(
    block: Block, plans: Sequence[Plan], how: Rule = "sum", *, labels: Mapping[str, float] | None = None,
    draws: int = 200, seed: int = 0, pooled: bool = False,
) -> list[Paths]:  # fmt: skip
    """Read the judgments of each item in many orders, until a plan says stop.

    Args:
        block: items with the same number of responses and of recorded judgments.
        plans: how votes are spent; all of them read the same draws. A rule's full vote is that of all recorded.
        how: the vote.
        labels: index of the best (n >= 2) or 0/1 reward (n = 1) by item.
        draws: orders for each item.
        seed: of the orders.
        pooled: as for `draw_orders`.

    Returns:
        The paths of each plan.

    Raises:
        ValueError: as for `stopping.course`, for a plan of more votes than are recorded, and for a width with a vote
            that is no sum or mean.
    """
    for plan in plans:
        if isinstance(plan, Stop):
            check_width(plan, how)
    if (most := _most(plans)) > block.samples:
        raise ValueError(f"{most} votes, but only {block.samples} are recorded of each item")
    cycle = cycle_of(block)
    samples_IRK = draw_orders(block, draws, cycle, seed, pooled=pooled)
    step = max(1, _CELLS // (draws * block.samples * max(block.n, 2)))
    parts = []
    for start in range(0, len(block.items), step):
        rows_I = np.arange(start, min(start + step, len(block.items)))
        parts.append(_replayed(block.rows(rows_I), samples_IRK[rows_I], plans, how, labels or {}, cycle))
    return [Paths(*map(np.concatenate, zip(*of_plan, strict=True))) for of_plan in zip(*parts, strict=True)]


def _replayed(
    block: Block, samples_IRK: Ints, plans: Sequence[Plan], how: Rule, labels: Mapping[str, float], cycle: int
) -> list[Paths]:
    items, draws, samples = samples_IRK.shape
    row_I = np.arange(items)[:, None, None]
    scores_XKN = block.scores_IKN[row_I, samples_IRK].reshape(items * draws, samples, block.n)
    meta_XK = block.meta_IK[row_I, samples_IRK].reshape(items * draws, samples)
    tokens_IK = np.where(
        (block.prompt_tokens_IK < 0) | (block.completion_tokens_IK < 0),
        np.nan,
        block.prompt_tokens_IK + block.completion_tokens_IK,
    )
    tokens_XK = np.cumsum(tokens_IK[row_I, samples_IRK], axis=2).reshape(items * draws, samples)
    label_X = np.repeat([labels.get(item, np.nan) for item in block.items], draws)
    every_X = np.arange(items * draws)

    @lru_cache
    def seen(stop: Stop) -> Course | Span:
        if block.n == 1:
            return span(scores_XKN[:, :, 0], samples, stop)
        return course(scores_XKN, samples, stop, how, block=cycle, meta_XT=meta_XK)

    low, high = observed_range([block])
    plain = Stop("exact", low=low, high=high)
    whole = seen(plain)
    found = []
    for plan in plans:
        if isinstance(plan, int):
            course_or_span, t_X = whole, np.full(len(every_X), plan, dtype=np.int64)
        else:
            course_or_span = seen(_common(plan, block.n))
            t_X = stopping_points(stops(course_or_span, plan, samples, cycle))
        if isinstance(course_or_span, Course) and isinstance(whole, Course):
            outcome_XN, full_XN = course_or_span.totals_XTN[every_X, t_X - 1], whole.totals_XTN[:, -1]
            top, full_top = (v == v.max(axis=1, keepdims=True) for v in (outcome_XN, full_XN))
            agrees_X = (top == full_top).all(axis=1)
            best_X = np.nan_to_num(label_X).astype(np.int64)
            credits = [np.where(np.isnan(label_X), np.nan, credit_rows(v, best_X)) for v in (outcome_XN, full_XN)]
            sure_X = course_or_span.sure_XT[every_X, t_X - 1]
        elif isinstance(course_or_span, Span) and isinstance(whole, Span):
            mean_X, full_X = course_or_span.mean_XT[every_X, t_X - 1], whole.mean_XT[:, -1]
            stop = next((p for p in (plan, *plans) if isinstance(p, Stop)), plain)  # one width for all
            width = stop.width or 0.0
            agrees_X = (np.abs(mean_X - full_X) <= width + 1e-9) | (np.isnan(mean_X) & np.isnan(full_X))
            credits = [_single_credit(v, label_X) for v in (mean_X, full_X)]
            sure_X = np.full(len(every_X), np.nan)
        columns = (t_X.astype(np.float64), tokens_XK[every_X, t_X - 1], agrees_X.astype(np.float64), *credits, sure_X)
        found.append(Paths(*(np.asarray(column).reshape(items, draws) for column in columns)))
    return found


def _common(stop: Stop, n: int) -> Stop:
    """What a course depends on, so that plans which differ in alpha or width share one."""
    return replace(stop, width=None) if n == 1 else replace(stop, alpha=0.05, width=None)


def observed_scores(blocks: Sequence[Block]) -> tuple[float, float] | None:
    """The least and the largest recorded score; None without one."""
    seen = [b.scores_IKN for b in blocks if b.n and b.valid_IK.any()]
    if not seen:
        return None
    return min(float(np.nanmin(scores)) for scores in seen), max(float(np.nanmax(scores)) for scores in seen)


def observed_range(blocks: Sequence[Block]) -> tuple[float, float]:
    """The least and the largest recorded score; 0 and 1 added where all are equal or none is there."""
    low, high = observed_scores(blocks) or (0.0, 1.0)
    return (low, high) if low < high else (min(low, 0.0), max(high, 1.0))


def _single_credit(mean_X: Floats, label_X: Floats) -> Floats:
    """Means of 0/1 scores cut at 1/2 against 0/1 labels, as `reducers.single_credit`; NaN for other labels."""
    value_X = np.where(np.isnan(mean_X), 0.5, mean_X)
    credit_X = np.where(np.abs(value_X - 0.5) < 1e-9, 0.5, (value_X > 0.5) == (label_X == 1))
    return np.asarray(np.where(np.isin(label_X, (0.0, 1.0)) & ((value_X >= 0) & (value_X <= 1)), credit_X, np.nan))


def adaptive_rows(
    blocks: Sequence[Block], plans: Sequence[Plan], how: Rule = "sum", *, labels: Mapping[str, float] | None = None,
    clusters: Mapping[str, object] | None = None, draws: int = 200, seed: int = 0, pooled: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """What plans spend and what they are worth, over all items that have enough recorded votes for each of them.

    Args:
        blocks: items of one source.
        clusters: a cluster by item id; the item itself where absent.
        plans, how, labels, draws, seed, pooled: as for `replay`.

    Returns:
        A row for each plan: `votes` (mean, with interval), `votes_share` (of the full vote's), `early` (share of draws
        that stop before the end), `agreement` with the full vote, `disagreement_bound` (the 97.5 % upper bound of its
        complement, Wilson's as if each item had agreed or not: an item that agrees in all draws says little of the
        next), `tokens` a verdict where known; with labels `accuracy`, `accuracy_full` and `accuracy_loss`; with a rule
        `calibration`: for bins of how sure it was where it stopped early, the share that agreed. Empty if no item
        has enough votes.
    """
    used = [b for b in blocks if b.samples >= _most(plans) and b.n >= 1]
    by_block = [replay(b, plans, how, labels=labels, draws=draws, seed=seed, pooled=pooled) for b in used]
    clusters_I = cluster_ids([item for b in used for item in b.items], clusters or {})
    return [
        {"plan": plan_name(plan), "reduce": rule_name(how), **_figures(plan, used, list(paths), clusters_I)}
        for plan, paths in zip(plans, zip(*by_block, strict=True), strict=bool(used))
    ]


def _figures(plan: Plan, blocks: Sequence[Block], paths: Sequence[Paths], clusters_I: Ints | None) -> dict[str, Any]:
    full_I = np.concatenate([np.full(len(b.items), b.samples, dtype=np.float64) for b in blocks])
    votes_I, tokens_I, agrees_I, credit_I, whole_I, _ = (
        np.concatenate([getattr(p, name).mean(axis=1) for p in paths]) for name in Paths._fields
    )
    early = np.concatenate([(p.votes_IR < b.samples).ravel() for p, b in zip(paths, blocks, strict=True)])
    agreement = share_interval(agrees_I, None, clusters_I)
    votes = normal_interval(votes_I, None, clusters_I)
    assert agreement is not None  # there is at least one item
    assert votes is not None
    groups = len(votes_I) if clusters_I is None else len(set(clusters_I.tolist()))
    row: dict[str, Any] = {
        "rule": "fixed" if isinstance(plan, int) else plan.rule,
        "alpha": None if isinstance(plan, int) or plan.rule == "exact" else plan.alpha,
        "k": int(full_I.max()),
        "items": len(votes_I),
        "draws": paths[0].votes_IR.shape[1],
        "votes": votes._asdict(),
        "votes_share": float(votes_I.sum() / full_I.sum()),
        "early": float(early.mean()),
        "agreement": agreement._asdict(),
        "disagreement_bound": 1 - wilson(agreement.mean, agreement.mean * (1 - agreement.mean) / groups, groups).low,
        "tokens": None if np.isnan(tokens_I).any() else float(tokens_I.mean()),
    }
    known_I = ~np.isnan(credit_I)
    if known_I.any():
        own = None if clusters_I is None else clusters_I[known_I]
        accuracy, whole = (share_interval(v[known_I], None, own) for v in (credit_I, whole_I))
        loss = normal_interval((whole_I - credit_I)[known_I], None, own)
        names = ("accuracy", "accuracy_full", "accuracy_loss")
        row |= {name: value._asdict() for name, value in zip(names, (accuracy, whole, loss), strict=True) if value}
    if isinstance(plan, Stop):
        sure_X, agrees_X = (np.concatenate([getattr(p, f).ravel() for p in paths]) for f in ("sure_IR", "agrees_IR"))
        row["calibration"] = _calibration(sure_X[early], agrees_X[early])
    return row


def _calibration(sure_X: Floats, agrees_X: Floats) -> list[dict[str, float]]:
    """The share that agreed for bins of how sure the rule was."""
    found = []
    for low, high in pairwise(LEVELS):
        in_bin_X = (sure_X >= low) & ((sure_X < high) | (high == 1.0))
        if in_bin_X.any():
            mean = float(sure_X[in_bin_X].mean())
            found.append({"sure": mean, "agreed": float(agrees_X[in_bin_X].mean()), "verdicts": int(in_bin_X.sum())})
    return found


def usual_plans(
    k: int, scale: tuple[float, float], ks: Sequence[int] | None = None, width: float | None = None, *,
    guided: bool = False,
) -> list[Plan]:  # fmt: skip
    """The plans to choose among: so many votes, and every rule at some levels.

    Args:
        k: recorded votes of every item.
        scale: the range of a score.
        ks: numbers of votes; None is powers of two up to k, and k. Those above k are left out.
        width: of single responses.
        guided: leaves `anytime` out, which seldom stops a guided vote and takes long to replay.
    """
    low, high = scale
    wanted = [*(2**e for e in range(k.bit_length()) if 2**e < k), k] if ks is None else sorted(set(ks))
    levels: list[tuple[StopRule, float]] = [("exact", 0.05), *(("posterior", a) for a in (0.01, 0.02, 0.05, 0.1, 0.2))]
    if not guided:
        levels += [("anytime", a) for a in (0.01, 0.05, 0.1)]
    fixed = [votes for votes in wanted if votes <= k]
    return [*fixed, *(Stop(rule, alpha, low, high, width) for rule, alpha in levels)]


def cheapest(rows: Sequence[Mapping[str, Any]], aim: float) -> str | None:
    """The plan of the fewest votes whose share of other outcomes than the full vote's is surely at most `aim`.

    Surely: the 97.5 % bound of the pilot. The bounds are of each plan alone.
    """
    able = [row for row in rows if row["disagreement_bound"] <= aim]
    best = min(able, key=lambda row: float(row["votes"]["mean"]), default=None)
    return None if best is None else str(best["plan"])
