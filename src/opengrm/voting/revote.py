"""Re-vote recorded judgments: accuracy or correlation at k = 1, 2, ..., K, averaged over subsets of the samples.

Nothing is judged again: an item's K recorded samples are voted on k at a time (`subsets.py`), and every number comes
with its company (design rules 1, 2 and 6): both ways of counting ties and missing verdicts, intervals clustered by
item, ties, parse rate and cost. Ranked items (n >= 2) are in `ranked.py`, single responses in `singles.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opengrm.errors import UsageError
from opengrm.items import Item
from opengrm.judgments import Judgment
from opengrm.verdicts import Verdict
from opengrm.voting.agreement import agreement
from opengrm.voting.bias import position_bias
from opengrm.voting.correctness import label_of
from opengrm.voting.decision import at, said
from opengrm.voting.guided import Guide, Rule, guided_verdict, rule_name
from opengrm.voting.ranked import ranked_row
from opengrm.voting.recorded import Block, OnBad, Recorded, Source, as_json, collect
from opengrm.voting.reducers import verdict_of
from opengrm.voting.replay import cycle_of, draw_orders
from opengrm.voting.singles import single_row
from opengrm.voting.stopping import Stop, check_width, course, span, stopping_points, stops
from opengrm.voting.subsets import SubsetKind, is_balanced

GROUPS: dict[str, Callable[[int], bool]] = {
    "singles": lambda n: n == 1,
    "pairs": lambda n: n == 2,
    "lists": lambda n: n > 2,
    "all": lambda n: n >= 2,
}


@dataclass
class Labels:
    """What a re-vote needs of the items: size, label and cluster by id.

    Attributes:
        sizes: number of responses of every item.
        labels: index of the best (n >= 2) or reward (n = 1) of the labelled ones.
        clusters: a cluster for each item; the item itself where it is not in here.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)
    clusters: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, items: Iterable[Item], clusters: Mapping[str, object] | None = None) -> Labels:
        """Read items, keeping sizes, labels and clusters only.

        Args:
            items: read once.
            clusters: a cluster by item id; None takes what the items say (`Item.cluster`).

        Raises:
            UsageError: two items share an id but not their size or label.
        """
        own: dict[str, object] = {}
        found = cls(clusters=own if clusters is None else clusters)
        for item in items:
            label = label_of(item)
            known = (found.sizes.get(item.id, item.n), found.labels.get(item.id, label))
            if known != (item.n, label):
                raise UsageError(
                    f"item {item.id!r} is there twice with different responses or labels: ids must differ"
                )
            found.sizes[item.id] = item.n
            if label is not None:
                found.labels[item.id] = label
            if item.cluster is not None:
                own[item.id] = item.cluster
        return found


@dataclass(frozen=True)
class Report:
    """What a re-vote found.

    Attributes:
        rows: one for each source, group and k with labelled items (see `ranked_row` and `single_row`).
        positions: position bias and order consistency, one for each source and number of responses with known orders.
        agreement: how far samples agree with one another, one for each source and group.
        counts: judgments, items and what of them could not be used.
        unmet: numbers of votes (`ks`) asked for that no labelled item of a source and group has samples for.
        recorded: the judgments themselves, for `verdicts`.
    """

    rows: list[dict[str, Any]]
    positions: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    counts: dict[str, int]
    unmet: list[dict[str, Any]]
    recorded: list[Recorded]

    def to_json(self) -> dict[str, Any]:
        names = ("counts", "rows", "positions", "agreement", "unmet")
        return {name: getattr(self, name) for name in names}


def revote(
    judgments: Iterable[Judgment],
    labels: Labels | None = None,
    *,
    ks: Sequence[int] | None = None,
    how: Rule = "sum",
    subsets: SubsetKind = "auto",
    pool: bool = False,
    seed: int = 0,
    on_bad: OnBad | None = None,
) -> Report:
    """Vote over recorded judgments again.

    Args:
        judgments: streamed; memory holds a few numbers of each. Grouped by source (model, template, sampling).
        labels: the items' labels; None gives agreement and position statistics only.
        ks: numbers of votes; None takes 1..K up to K = 8 recorded samples, else powers of two and K.
        how: the vote; a `Guide` needs judgments with meta scores.
        subsets: `all`, `planned`, or `auto`: planned where every item's recorded orders are a balanced plan.
        pool: mix the judgments of all sources.
        seed: of random subsets and bootstrap.
        on_bad: called with each judgment that cannot be used; None raises it.

    Raises:
        BadRow: a judgment has another number of scores than its item has responses.
        UsageError: a k below 1, a guided vote without any meta score, planned subsets of judgments whose orders are
            not known, or a source in which two runs are mixed (see `recorded.collect`).
    """
    if ks is not None and any(k < 1 for k in ks):
        raise UsageError(f"k is {min(ks)}, expected at least 1")
    labels = labels or Labels()
    recorded = collect(judgments, labels.sizes, pool=pool, on_bad=on_bad)
    counts = _counts(recorded, labels)
    if isinstance(how, Guide):
        counts["without_meta"] = without_meta(b for source in recorded for b in source.blocks)
    rows, positions, agreements, unmet = [], [], [], []
    for source in recorded:
        name = as_json(source.source)
        plan = _resolve(subsets, source.blocks)
        for group, belongs in GROUPS.items():
            blocks = [b for b in source.blocks if belongs(b.n)]
            if not blocks or (group == "all" and len({b.n > 2 for b in blocks}) < 2):
                continue
            agreements.append({**name, "group": group, **agreement(blocks, labels.clusters, seed=seed)})
            labelled = [labelled_block for b in blocks if (labelled_block := _labelled(b, labels)).items]
            most = max((b.samples for b in labelled), default=0)
            wanted = _default_ks(most) if ks is None else sorted(set(ks))
            if most and wanted[-1] > most:
                unmet.append({**name, "group": group, "ks": [k for k in wanted if k > most], "samples": most})
            for k in wanted:
                row = single_row(labelled, labels.labels, k, how, labels.clusters, seed) if group == "singles" else (
                    ranked_row(labelled, labels.labels, k, how, plan, labels.clusters, seed)
                )  # fmt: skip
                if row is not None:
                    rows.append({**name, "group": group, "reduce": rule_name(how), **row})
        positions += [{**name, **found} for found in position_bias(source.blocks, labels.clusters)]
    return Report(rows, positions, agreements, counts, unmet, recorded)


def verdicts(
    recorded: Sequence[Recorded], how: Rule = "sum", *, stop: Stop | None = None, pooled: bool = False, seed: int = 0
) -> Iterator[Verdict]:
    """The verdict of each item over its recorded samples, by source, in order of first appearance.

    Where there are several sources, each verdict says whose it is (the known fields of `Source`).

    Args:
        recorded: what `collect` read.
        how: the vote.
        stop: the rule that stops an item's votes; None votes over all.
        pooled: whether the samples of an item are of different judges: a rule then reads them in a drawn order, since
            what comes first must be like what comes later.
        seed: of that order.

    Raises:
        ValueError: scores that are out of the rule's range, or a width with a vote that is no sum or mean.
    """
    if stop is not None:
        check_width(stop, how)
    for source in recorded:
        extra = as_json(source.source) if len(recorded) > 1 else {}
        found = [_block_verdicts(block, how, stop, pooled, seed, extra) for block in source.blocks]
        places = [(int(place), b, i) for b, block in enumerate(source.blocks) for i, place in enumerate(block.place_I)]
        for _, b, i in sorted(places):
            yield found[b](i)


def _block_verdicts(
    block: Block, how: Rule, stop: Stop | None, pooled: bool, seed: int, extra: Mapping[str, Any]
) -> Callable[[int], Verdict]:
    """The verdict of the i-th item of a block."""
    samples_IK = np.tile(np.arange(block.samples), (len(block.items), 1))
    spent_I = np.full(len(block.items), block.samples)
    if stop is not None and block.n:
        cycle = cycle_of(block)
        samples_IK = draw_orders(block, 1, cycle, seed, pooled=pooled)[:, 0]
        row_I1 = np.arange(len(block.items))[:, None]
        scores_IKN = block.scores_IKN[row_I1, samples_IK]
        seen = (
            span(scores_IKN[:, :, 0], block.samples, stop)
            if block.n == 1
            else course(scores_IKN, block.samples, stop, how, block=cycle, meta_XT=block.meta_IK[row_I1, samples_IK])
        )
        spent_I = stopping_points(stops(seen, stop, block.samples, cycle))

    def verdict(i: int) -> Verdict:
        taken = np.sort(samples_IK[i, : spent_I[i]])
        valid = taken[block.valid_IK[i, taken]]
        votes = block.scores_IKN[i, valid].tolist()
        known: dict[str, Any] = {
            "asked": len(taken),
            "prompt_tokens": int(block.prompt_tokens_IK[i, taken].clip(min=0).sum()),
            "completion_tokens": int(block.completion_tokens_IK[i, taken].clip(min=0).sum()),
            "extra": dict(extra),
        }
        if stop is not None and block.n:
            known["extra"] |= said(at(seen, stop, i, len(taken), block.samples), stop, len(taken), block.samples)
        if isinstance(how, Guide):
            return guided_verdict(block.items[i], votes, block.meta_IK[i, valid].tolist(), how, **known)
        return verdict_of(block.items[i], votes, how, **known)

    return verdict


def _resolve(subsets: SubsetKind, blocks: Sequence[Block]) -> bool:
    """Whether subsets keep the plan of orders."""
    ranked = [b for b in blocks if b.n >= 2]
    if subsets == "planned":
        if any((b.order_IK < 0).any() for b in ranked):
            raise UsageError("planned subsets need the order of every judgment: use --subsets all")
        return True
    several = [b for b in ranked if b.samples >= 2]
    return subsets == "auto" and bool(several) and all(is_balanced(b.order_IK, b.orders_ON) for b in several)


def _labelled(block: Block, labels: Labels) -> Block:
    return block.rows(np.array([item in labels.labels for item in block.items], dtype=bool))


def _default_ks(most: int) -> list[int]:
    if most <= 8:
        return list(range(1, most + 1))
    return [*(2**e for e in range(most.bit_length()) if 2**e < most), most]


def _counts(recorded: Sequence[Recorded], labels: Labels) -> dict[str, int]:
    """Judgments and items over all sources; an item judged by two sources counts once."""
    blocks = [b for source in recorded for b in source.blocks]
    judged = {item for b in blocks for item in b.items}
    known = judged & labels.sizes.keys() if labels.sizes else judged
    unknown = judged - known
    return {
        "judgments": sum(b.samples * len(b.items) for b in blocks),
        "missing": sum(int((~b.valid_IK).sum()) for b in blocks),
        "duplicates": sum(source.duplicates for source in recorded),
        "items": len(judged),
        "labelled": len(judged & labels.labels.keys()),
        "unknown_items": len(unknown),
        "unknown_judgments": sum(b.samples for b in blocks for item in b.items if item in unknown),
        "unjudged_items": len(labels.sizes.keys() - judged),
        "size_unknown": sum(len(b.items) for b in blocks if b.n == 0),
    }


def without_meta(blocks: Iterable[Block]) -> int:
    """How many valid judgments have no meta score.

    Raises:
        UsageError: none has one, so that a guided vote would be a plain one.
    """
    valid = without = 0
    for block in blocks:
        valid += int(block.valid_IK.sum())
        without += int((block.valid_IK & np.isnan(block.meta_IK)).sum())
    if valid and without == valid:
        raise UsageError("no judgment has a meta score: opengrm judge --meta gives them, or use another --reduce")
    return without


__all__ = ["GROUPS", "Labels", "Report", "Source", "revote", "verdicts", "without_meta"]
