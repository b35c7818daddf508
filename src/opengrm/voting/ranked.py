"""Accuracy of votes on items with n >= 2 responses, at one k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.voting.correctness import correct_rows, credit_rows
from opengrm.voting.guided import Guide, Rule, guided_totals
from opengrm.voting.intervals import share_interval
from opengrm.voting.recorded import Block, Ints
from opengrm.voting.subsets import Subsets, all_subsets, planned_subsets, plans_of
from opengrm.voting.totals import chunks, subset_totals

Floats = npt.NDArray[np.float64]
# What each item adds, averaged over its subsets, in [0, 1] or tokens (NaN where not known).
COLUMNS = ("credit", "strict", "decided", "tied", "parsed", "chance", "prompt_tokens", "completion_tokens")


def ranked_row(
    blocks: Sequence[Block], labels: Mapping[str, float], k: int, how: Rule, planned: bool,
    clusters: Mapping[str, object], seed: int,
) -> dict[str, Any] | None:  # fmt: skip
    """Accuracy of votes of k samples, averaged over subsets of each item's recorded samples.

    Args:
        blocks: labelled items, n >= 2.
        labels: index of the best response by item id.
        k: size of the vote; items with fewer samples are skipped and counted.
        how: the vote.
        planned: whether subsets keep the plan of orders.
        clusters: a cluster by item id; the item itself where absent.
        seed: of random subsets.

    Returns:
        None if no item has k samples. Else `accuracy` (ties as expected credit, no verdict earns 1/n),
        `accuracy_valid` (items without a verdict left out), `strict` and `strict_valid` (ties wrong), each with mean,
        low and high; `ties`, `no_verdict` and `parse_rate` as shares; tokens per verdict where known.
    """
    used = [b for b in blocks if b.samples >= k]
    if not used:
        return None
    columns: list[dict[str, Floats]] = []
    subsets: list[Subsets] = []
    items: list[str] = []
    for block in used:
        for rows_I, chosen in _subsets(block, k, planned, seed):
            part = block.rows(rows_I)
            best_I = np.array([labels[item] for item in part.items], dtype=np.int64)
            columns.append(_columns(part, best_I, chosen, how))
            subsets.append(chosen)
            items += part.items
    row = outcome({name: np.concatenate([c[name] for c in columns]) for name in COLUMNS}, cluster_ids(items, clusters))
    return {
        "k": k,
        "items": len(items),
        "skipped": sum(len(b.items) for b in blocks) - len(items),
        "subsets": "planned" if planned else "all",
        "subsets_per_item": max(len(s.weights_R) for s in subsets),
        "exact": all(s.exact for s in subsets),
        **row,
    }


def outcome(columns: Mapping[str, Floats], clusters_I: Ints | None) -> dict[str, Any]:
    """The figures that every row has, from per-item columns (`COLUMNS`)."""
    credit_I, strict_I, decided_I = columns["credit"], columns["strict"], columns["decided"]
    at_chance_I = (1 - decided_I) * columns["chance"]
    found = {
        "accuracy": share_interval(credit_I + at_chance_I, None, clusters_I),
        "accuracy_valid": share_interval(credit_I, decided_I, clusters_I),
        "strict": share_interval(strict_I + at_chance_I, None, clusters_I),
        "strict_valid": share_interval(strict_I, decided_I, clusters_I),
    }
    row: dict[str, Any] = {name: None if value is None else value._asdict() for name, value in found.items()}
    decided = float(decided_I.sum())
    row["ties"] = float(columns["tied"].sum()) / decided if decided else None
    row["no_verdict"] = round(1 - decided / len(decided_I), 12)
    row["parse_rate"] = float(columns["parsed"].mean())
    for name in ("prompt_tokens", "completion_tokens"):
        known_I = columns[name][~np.isnan(columns[name])]
        row[name] = round(float(known_I.mean()), 9) if len(known_I) else None
    return row


def cost(block: Block, chosen: Subsets) -> dict[str, Floats]:
    """Columns that do not depend on the scores' values: parse rate and tokens per verdict."""
    taken_K = chosen.weights_R @ chosen.masks_RK
    columns = {"parsed": (block.valid_IK @ taken_K) / taken_K.sum()}
    for name, tokens_IK in (
        ("prompt_tokens", block.prompt_tokens_IK),
        ("completion_tokens", block.completion_tokens_IK),
    ):
        columns[name] = np.where((tokens_IK < 0).any(axis=1), np.nan, tokens_IK @ taken_K)
    return columns


def cluster_ids(items: Sequence[str], clusters: Mapping[str, object]) -> Ints | None:
    """A number for each item's cluster; None where every item is its own."""
    if not clusters:
        return None
    numbers: dict[object, int] = {}
    # An item outside the mapping must not meet a cluster of the same name.
    names = [(True, clusters[item]) if item in clusters else (False, item) for item in items]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _subsets(block: Block, k: int, planned: bool, seed: int) -> list[tuple[Ints, Subsets]]:
    """Which subsets serve which items of the block."""
    if not planned:
        return [(np.arange(len(block.items)), all_subsets(block.samples, k, seed))]
    plans, plan_I = plans_of(block.order_IK)
    if len(plans) == 1:
        return [(np.arange(len(block.items)), planned_subsets(plans[0], k, seed))]
    return [(np.flatnonzero(plan_I == p), planned_subsets(plan, k, seed)) for p, plan in enumerate(plans)]


def _columns(block: Block, best_I: Ints, chosen: Subsets, how: Rule) -> dict[str, Floats]:
    items, n = len(block.items), block.n
    columns = {name: np.zeros(items) for name in COLUMNS} | cost(block, chosen)
    columns["chance"][:] = 1 / n
    for part in chunks(items, len(chosen.weights_R) * (max(n, block.samples) if isinstance(how, Guide) else n)):
        if isinstance(how, Guide):
            totals_IRN, valid_IR, _ = guided_totals(block.scores_IKN[part], block.meta_IK[part], chosen.masks_RK, how)
        else:
            totals_IRN, valid_IR = subset_totals(block.scores_IKN[part], chosen.masks_RK, how)
        decided_IR = valid_IR > 0
        top_IRN = totals_IRN == totals_IRN.max(axis=2, keepdims=True)
        for name, value_IR in (
            ("credit", credit_rows(totals_IRN, best_I[part][:, None])),
            ("strict", correct_rows(totals_IRN, best_I[part][:, None])),
            ("decided", np.ones_like(valid_IR)),
            ("tied", top_IRN.sum(axis=2) > 1),
        ):
            columns[name][part] = (value_IR * decided_IR) @ chosen.weights_R
    return columns
