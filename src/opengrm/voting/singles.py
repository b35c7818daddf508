"""Votes on single responses at one k: accuracy, and ROC-AUC against 0/1 labels or correlation with others.

A total over valid votes is not comparable between items with different numbers of them, so statistics over items use
the mean over valid votes for `sum` as for `mean`. Accuracy is the share of items whose vote equals the label (design
rule 1): of the most frequent score, a tie between values earning its expected credit (`reducers.single_credit`). An
item without a verdict earns one half against 0/1 labels and nothing against others, which have no level of chance.
With `sum` and `mean` accuracy is left out, but for 0/1 scores against 0/1 labels; guided votes are weighted means and
decide as `mean` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opengrm.voting.association import Statistic, bootstrap, pearson, roc_auc, roc_auc_at_chance, spearman
from opengrm.voting.guided import Guide, Rule, guided_totals
from opengrm.voting.ranked import COLUMNS, cluster_ids, cost, outcome
from opengrm.voting.recorded import Block
from opengrm.voting.subsets import DRAWN, Subsets, all_subsets
from opengrm.voting.totals import chunks, subset_modes, subset_totals

Floats = npt.NDArray[np.float64]
_CELLS = 20_000_000  # most numbers kept of one group's votes


class _Votes(NamedTuple):
    """Votes of a block: one number for each item and subset, and the per-item columns of `ranked.COLUMNS`."""

    value_IR: Floats
    columns: dict[str, Floats]
    subsets: Subsets


def single_row(
    blocks: Sequence[Block], rewards: Mapping[str, float], k: int, how: Rule, clusters: Mapping[str, object],
    seed: int,
) -> dict[str, Any] | None:  # fmt: skip
    """Figures of votes of k samples on single responses, averaged over all subsets of the recorded samples.

    Args:
        blocks: labelled items, n = 1.
        rewards: the label by item id.
        k, how, clusters, seed: as for `ranked_row`.

    Returns:
        None if no item has k samples. The keys of `ranked_row` (accuracies None where nothing decides) and with 0/1
        labels `auc`, `auc_valid`, else `pearson` and `spearman`, over items with a verdict. Each with mean, low, high,
        or None where it is not defined. The statistics over items are averaged over subsets, with bootstrap intervals.
    """
    used = [b for b in blocks if b.samples >= k]
    if not used:
        return None
    items = [item for block in used for item in block.items]
    rewards_I = np.array([rewards[item] for item in items])
    binary = bool(np.isin(rewards_I, (0.0, 1.0)).all())
    decides = how == "majority" or (binary and _binary_scores(used))
    votes, start = [], 0
    for block in used:
        own_I = rewards_I[start : start + len(block.items)]
        votes.append(_votes(block, own_I, k, how, decides, 0.5 if binary else 0.0, seed))
        start += len(block.items)
    clusters_I = cluster_ids(items, clusters)
    columns = {name: np.concatenate([v.columns[name] for v in votes]) for name in COLUMNS}
    value_IR, exact = _side_by_side(votes, seed)
    row = outcome(columns, clusters_I)
    if not decides:
        row |= dict.fromkeys(("accuracy", "accuracy_valid", "strict", "strict_valid", "ties"))
    statistics: dict[str, Statistic]
    if binary:
        statistics = {"auc": roc_auc_at_chance, "auc_valid": roc_auc}
    else:
        statistics = {"pearson": pearson, "spearman": spearman}
    for name, statistic in statistics.items():
        found = bootstrap(
            statistic, [(value_I, rewards_I) for value_I in value_IR.T], clusters_I, seed=seed,
        )  # fmt: skip
        row[name] = None if found is None else found._asdict()
    return {
        "k": k,
        "items": len(items),
        "skipped": sum(len(b.items) for b in blocks) - len(items),
        "subsets": "all",
        "subsets_per_item": value_IR.shape[1],
        "exact": exact,
        **row,
    }


def _votes(block: Block, rewards_I: Floats, k: int, how: Rule, decides: bool, chance: float, seed: int) -> _Votes:
    items, chosen = len(block.items), all_subsets(block.samples, k, seed)
    columns = {name: np.zeros(items) for name in COLUMNS} | cost(block, chosen)
    columns["chance"][:] = chance
    value_IR = np.full((items, len(chosen.weights_R)), np.nan)
    for part in chunks(items, len(chosen.weights_R) * block.samples):
        scores_IKN = block.scores_IKN[part]
        if isinstance(how, Guide):
            total_IRN, valid_IR, _ = guided_totals(scores_IKN, block.meta_IK[part], chosen.masks_RK, how)
        else:
            total_IRN, valid_IR = subset_totals(scores_IKN, chosen.masks_RK, "mean")
        with np.errstate(invalid="ignore", divide="ignore"):
            value_IR[part] = np.where(valid_IR > 0, total_IRN[:, :, 0] / valid_IR, np.nan)
        columns["decided"][part] = (valid_IR > 0) @ chosen.weights_R
        if decides:
            mode_IR, credit_IR, tied_IR = subset_modes(scores_IKN[:, :, 0], chosen.masks_RK, rewards_I[part])
            if isinstance(how, Guide):  # 0/1 scores: their weighted mean cut at 1/2
                mean_IR = np.round(value_IR[part], 12)
                tied_IR = mean_IR == 0.5
                right_IR = (mean_IR > 0.5) == (rewards_I[part, None] > 0.5)
                credit_IR = np.where(tied_IR, 0.5, right_IR) * (valid_IR > 0)
            columns["credit"][part] = credit_IR @ chosen.weights_R
            columns["strict"][part] = (credit_IR * ~tied_IR) @ chosen.weights_R
            columns["tied"][part] = tied_IR @ chosen.weights_R
            if how == "majority":
                value_IR[part] = mode_IR
    return _Votes(value_IR, columns, chosen)


def _side_by_side(votes: Sequence[_Votes], seed: int) -> tuple[Floats, bool]:
    """One matrix of all items' votes; a column is one run with k samples an item. And whether all subsets are in it.

    Blocks with different numbers of subsets are matched at random.
    """
    items = sum(len(v.value_IR) for v in votes)
    most = max(8, _CELLS // items)
    counts = {v.value_IR.shape[1] for v in votes}
    if len(counts) == 1 and max(counts) <= most:
        return np.concatenate([v.value_IR for v in votes]), all(v.subsets.exact for v in votes)
    draw = np.random.Generator(np.random.PCG64([seed, items]))
    columns = min(most, DRAWN)
    return np.concatenate([v.value_IR[:, draw.integers(v.value_IR.shape[1], size=columns)] for v in votes]), False


def _binary_scores(blocks: Sequence[Block]) -> bool:
    return all(bool((np.isnan(b.scores_IKN) | np.isin(b.scores_IKN, (0.0, 1.0))).all()) for b in blocks)
