"""One benchmark from items and judgments to figures: what `opengrm eval` writes of it.

`gather` streams items through whatever makes or has judgments and keeps a few numbers of each; `outcomes` votes on
them; `report` is the benchmark's part of eval.json. Votes at k below the K that were asked for are averaged over the
K // k disjoint windows of k consecutive samples, which keep the plan of orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.benchmarks.base import (
    Benchmark,
    Outcome,
    Target,
    by_subset,
    plain_mean,
    share,
    share_of,
    weighted_mean,
)
from opengrm.benchmarks.ranks import share_among
from opengrm.benchmarks.statistics import statistics
from opengrm.errors import UsageError
from opengrm.items import Item
from opengrm.judgments import Judgment
from opengrm.voting.guided import Guide, Rule, guided_totals
from opengrm.voting.recorded import Block, OnBad, collect
from opengrm.voting.totals import chunks, subset_totals

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Judging = Callable[[Iterable[Item]], Iterable[Judgment]]
Seconds = Mapping[str, float]


@dataclass
class Gathered:
    """What is kept of a benchmark's items and their judgments.

    Attributes:
        targets: by item id, in the benchmark's order.
        blocks: the judgments' scores, orders and tokens as arrays (`voting.recorded`).
        seconds: spent on each item's judgments, where known.
        lengths: characters of each response, by item id.
    """

    targets: dict[str, Target] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    lengths: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """The most judgments that an item has."""
        return max((block.samples for block in self.blocks), default=0)

    @property
    def judgments(self) -> int:
        """Judgments of all items."""
        return sum(block.samples * len(block.items) for block in self.blocks)


class _Sizes(dict[str, int]):
    """Number of responses by item, filled while judgments come in: true even while empty, so that it is looked at."""

    def __bool__(self) -> bool:
        return True


def gather(
    benchmark: Benchmark, items: Iterable[Item], judging: Judging, on_bad: OnBad | None = None, *, pool: bool = True
) -> Gathered:
    """Judge the items and keep what scoring needs.

    Args:
        benchmark: whose items they are.
        items: read lazily, once.
        judging: gives the judgments of the items it reads.
        on_bad: called with each judgment that cannot be used; None raises it.
        pool: whether judgments of several sources vote together.

    Raises:
        BadRow: a judgment has another number of scores than its item has responses.
        UsageError: with `pool=False`, judgments of several sources, or a sample of an item that is there twice.
    """
    found, sizes = Gathered(), _Sizes()

    def watched() -> Iterator[Item]:
        for item in items:
            found.targets[item.id] = benchmark.target(item)
            sizes[item.id] = item.n
            found.lengths[item.id] = tuple(map(len, item.responses))
            yield item

    recorded = collect(judging(watched()), sizes, pool=pool, on_bad=on_bad)
    if not pool and len(recorded) > 1:
        raise UsageError(f"judgments of {len(recorded)} judges or settings are mixed: give those of one")
    found.blocks = tuple(block for source in recorded for block in source.blocks)
    return found


def outcomes(benchmark: Benchmark, gathered: Gathered, how: Rule, taken_K: Bools | None = None) -> list[Outcome]:
    """The outcome of every item, in the benchmark's order; one without judgments has no verdict.

    Args:
        benchmark: gives credit and chance.
        gathered: the judgments.
        how: the vote. A single response's is the (weighted) mean score whatever the rule: sums of different numbers of
            valid votes cannot be compared between items.
        taken_K: which samples take part; None is all.
    """
    found: dict[str, Outcome] = {}
    for block in gathered.blocks:
        mask_K = np.ones(block.samples, dtype=bool) if taken_K is None else taken_K[: block.samples]
        scores_IN = _voted(block, block.scores_IKN, mask_K, how)
        games = _games(block, mask_K, how)
        valid_I, asked = (block.valid_IK & mask_K).sum(axis=1), int(mask_K.sum())
        tokens = [_sum(t_IK[:, mask_K]) for t_IK in (block.prompt_tokens_IK, block.completion_tokens_IK)]
        rows = scores_IN.tolist()
        for i, item in enumerate(block.items):
            target = gathered.targets.get(item)
            if target is None:
                continue
            found[item] = benchmark.outcome(
                target,
                rows[i] if valid_I[i] and target.n == block.n else None,
                games=games[i] if games else (),
                asked=asked,
                valid=int(valid_I[i]),
                prompt_tokens=tokens[0][i],
                completion_tokens=tokens[1][i],
                seconds=gathered.seconds.get(item),
            )
    every = (found.get(t.item) or benchmark.outcome(t, None, asked=0, valid=0) for t in gathered.targets.values())
    return benchmark.finish(list(every))


def _voted(block: Block, scores_IKN: Floats, mask_K: Bools, how: Rule) -> Floats:
    """The vote of the taken samples on each item: shape [I, n], any numbers where no sample is valid."""
    mask_RK = mask_K[None].astype(np.float64)
    voted_IN = np.zeros((len(block.items), block.n))
    if not block.n:
        return voted_IN
    for part in chunks(len(block.items), block.samples * max(block.n, block.samples)):
        if isinstance(how, Guide):
            totals_IRN, weight_IR, _ = guided_totals(scores_IKN[part], block.meta_IK[part], mask_RK, how)
        else:
            totals_IRN, weight_IR = subset_totals(scores_IKN[part], mask_RK, "mean" if block.n == 1 else how)
        mean = block.n == 1 or how == "mean"
        voted_IN[part] = (totals_IRN / np.maximum(weight_IR, 1e-300)[:, :, None] if mean else totals_IRN)[:, 0]
    return voted_IN


def _games(block: Block, mask_K: Bools, how: Rule) -> list[tuple[tuple[float, ...] | None, ...]]:
    """For pairs: the vote of each order that was asked for, apart. Empty where the orders are not known."""
    if block.n != 2 or (block.order_IK < 0).any():
        return []
    found: list[list[tuple[float, ...] | None]] = [[] for _ in block.items]
    for first in (0, 1):
        own_O = block.orders_ON[:, 0] == first
        shown_IK = own_O[block.order_IK] & mask_K
        scores_IKN = np.where(shown_IK[:, :, None], block.scores_IKN, np.nan)
        valid_I = (shown_IK & block.valid_IK).any(axis=1)
        rows = _voted(block, scores_IKN, mask_K, how).tolist()
        for i in np.flatnonzero(shown_IK.any(axis=1)):
            found[i].append(tuple(rows[i]) if valid_I[i] else None)
    return [tuple(games) for games in found]


def _sum(tokens_IK: npt.NDArray[np.int64]) -> list[int | None]:
    """Tokens of each item; None where a judgment's are not known."""
    sums: list[int] = tokens_IK.sum(axis=1).tolist()
    unknown_I: list[bool] = np.asarray((tokens_IK < 0).any(axis=1)).tolist()
    return [None if unknown else total for total, unknown in zip(sums, unknown_I, strict=True)]


def report(
    benchmark: Benchmark, gathered: Gathered, found: Sequence[Outcome], how: Rule, partial: bool | None
) -> dict[str, Any]:
    """The benchmark's part of eval.json.

    Args:
        benchmark: gives the rule.
        gathered: the judgments.
        found: their outcomes with all samples.
        how: the vote.
        partial: whether published items are not there; None where that is not known.
    """
    figures, valid = benchmark.figures(found), benchmark.figures(found, valid_only=True)
    return {
        "title": benchmark.title,
        "version": benchmark.version,
        "licence": benchmark.licence,
        "partial": partial,
        "items": len(found),
        "missing": sum(o.scores is None for o in found),
        "tied": sum(bool(o.tied) for o in found),
        "overall": figures.overall,
        "overall_interval": figures.interval,
        "overall_valid": valid.overall,
        "chance": plain_mean(o.chance for o in found),
        "metrics": figures.metrics,
        "metrics_valid": valid.metrics,
        "subsets": [_subset(benchmark, found, name, own) for name, own in by_subset(found).items()],
        "by_k": by_k(benchmark, gathered, how),
        "cost": _cost(gathered, found),
        "statistics": statistics(gathered.blocks, found, gathered.lengths),
    }


def _subset(benchmark: Benchmark, found: Sequence[Outcome], name: str, own: Sequence[Outcome]) -> dict[str, Any]:
    def accuracy(valid_only: bool) -> dict[str, Any] | None:
        if not benchmark.ranks:
            return share(own, valid_only)
        return share_among((o.target, o.earned(valid_only), o.target.subset == name) for o in found)

    return {
        "subset": name,
        "items": len(own),
        "accuracy": accuracy(False),
        "accuracy_valid": accuracy(True),
        "chance": plain_mean(o.chance for o in own),
        "ties": sum(bool(o.tied) for o in own),
        "missing": sum(o.scores is None for o in own),
    }


def by_k(benchmark: Benchmark, gathered: Gathered, how: Rule) -> list[dict[str, Any]]:
    """Overall and accuracy of votes of k = 1, 2, 4, ..., K samples, with their cost per item.

    An item takes part with each of its windows that has k samples; items with fewer are `skipped` and counted, as in
    `voting.ranked`. `windows` is the most that an item has. `overall` is the mean over windows, by their items.
    """
    most = gathered.samples
    samples = {item: block.samples for block in gathered.blocks for item in block.items}
    rows = []
    for k in [*(2**e for e in range(most.bit_length()) if 2**e < most), *([most] if most else [])]:
        overalls: list[tuple[float | None, float]] = []
        earned: dict[str, float] = {}
        tokens: list[float] = []
        for window in range(most // k):
            taken_K = (np.arange(most) >= window * k) & (np.arange(most) < (window + 1) * k)
            found = [o for o in outcomes(benchmark, gathered, how, taken_K) if o.asked == k]
            overalls.append((benchmark.rule(found, False).overall, len(found)))
            for o in found:
                name = o.target.item
                earned[name] = earned.get(name, 0.0) + (o.earned(False) or 0.0) / (samples[name] // k)
                if o.prompt_tokens is not None and o.completion_tokens is not None:
                    tokens.append(o.prompt_tokens + o.completion_tokens)
        # Sums of shares can leave [0, 1] by rounding.
        kept = [(gathered.targets[name], min(1.0, value)) for name, value in earned.items()]
        seconds = [gathered.seconds[name] * k / samples[name] for name in earned if name in gathered.seconds]
        rows.append(
            {
                "k": k,
                "items": len(earned),
                "skipped": len(gathered.targets) - len(earned),
                "windows": most // k,
                "overall": weighted_mean(overalls),
                "accuracy": share_among((*one, True) for one in kept) if benchmark.ranks else share_of(kept),
                "tokens": plain_mean(tokens),
                "seconds": plain_mean(seconds),
            }
        )
    return rows


def _cost(gathered: Gathered, found: Sequence[Outcome]) -> dict[str, Any]:
    def total(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return {
        "prompt_tokens": total(o.prompt_tokens for o in found),
        "completion_tokens": total(o.completion_tokens for o in found),
        "seconds": total(o.seconds for o in found),
        "judgments": gathered.judgments,
    }
