"""How far the samples of an item agree with one another. Needs no labels, and says nothing about being right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.voting.association import bootstrap, pearson
from opengrm.voting.intervals import share_interval
from opengrm.voting.ranked import cluster_ids
from opengrm.voting.recorded import Block
from opengrm.voting.totals import chunks, shares_rows

Floats = npt.NDArray[np.float64]
_HALVES = 16  # random halvings that the split-half correlation is averaged over


def agreement(
    blocks: Sequence[Block], clusters: Mapping[str, object] | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Agreement statistics of one group (single responses, or ranked items).

    Args:
        blocks: items, all with n = 1 or all with n >= 2.
        clusters: a cluster by item id; the item itself where absent.
        seed: of the random halvings and the bootstrap.

    Returns:
        `items`, `judgments`, `parse_rate`; over items with at least two valid judgments (`compared`):
        `pair_agreement`: the share of pairs of an item's judgments that name the same top response (n = 1: give the
        same score), a tie counting as a random pick; `self_consistency`: the share of an item's judgments that agree
        with its most frequent answer; `split_half`: Pearson correlation between the mean scores of two random halves
        of the samples (n >= 2: of each score minus the mean of its judgment's scores). All intervals are clustered.
    """
    pairs, modal, judgments, valid = [], [], 0, 0
    compared: list[str] = []
    for block in blocks:
        judgments += block.valid_IK.size
        valid += int(block.valid_IK.sum())
        for part in chunks(len(block.items), block.samples * max(block.n, block.samples)):
            votes_IKV = _answers(block.scores_IKN[part])
            valid_I = block.valid_IK[part].sum(axis=1)
            total_IV = votes_IKV.sum(axis=1)
            compared_I = valid_I >= 2
            names = block.items[part]
            compared += [names[i] for i in np.flatnonzero(compared_I)]
            same_I = (total_IV**2).sum(axis=1) - (votes_IKV**2).sum(axis=(1, 2))
            pairs.append((same_I / np.maximum(1, valid_I * (valid_I - 1)))[compared_I])
            modal.append((total_IV.max(axis=1) / np.maximum(1, valid_I))[compared_I])
    pairs_I, modal_I = np.concatenate(pairs), np.concatenate(modal)
    clusters_I = cluster_ids(compared, clusters or {})
    found = {
        "pair_agreement": share_interval(pairs_I, None, clusters_I),
        "self_consistency": share_interval(modal_I, None, clusters_I),
        "split_half": _split_half(blocks, clusters or {}, seed),
    }
    return {
        "items": sum(len(b.items) for b in blocks),
        "compared": len(compared),
        "judgments": judgments,
        "parse_rate": valid / judgments,
        **{name: None if value is None else value._asdict() for name, value in found.items()},
    }


def _answers(scores_IKN: Floats) -> Floats:
    """Each judgment as shares over possible answers: the responses, or for n = 1 the item's different scores."""
    if scores_IKN.shape[2] > 1:
        return shares_rows(scores_IKN)
    scores_IK = scores_IKN[:, :, 0]
    same_IKK = scores_IK[:, :, None] == scores_IK[:, None, :]
    first_IK = np.argmax(same_IKK, axis=2) == np.arange(scores_IK.shape[1])
    return np.asarray((same_IKK & first_IK[:, None, :]).astype(np.float64))


def _split_half(blocks: Sequence[Block], clusters: Mapping[str, object], seed: int) -> Any:
    draw = np.random.Generator(np.random.PCG64(seed))
    halves: list[list[tuple[Floats, Floats]]] = [[] for _ in range(_HALVES)]
    rows: list[str] = []  # the item of each number
    for block in blocks:
        if block.samples < 2 or block.n == 0:
            continue
        scores_IKN = block.scores_IKN
        if block.n > 1:
            scores_IKN = scores_IKN - scores_IKN.mean(axis=2, keepdims=True)
        kept_IKN, valid_IK1 = np.nan_to_num(scores_IKN), block.valid_IK[:, :, None].astype(np.float64)
        for columns in halves:
            first_K = np.zeros(block.samples)
            first_K[draw.permutation(block.samples)[: block.samples // 2]] = 1
            with np.errstate(invalid="ignore"):
                a_IN, b_IN = (
                    np.einsum("k,ikn->in", half_K, kept_IKN) / np.einsum("k,ikn->in", half_K, valid_IK1)
                    for half_K in (first_K, 1 - first_K)
                )
            missing_IN = np.isnan(a_IN) | np.isnan(b_IN)
            columns.append((np.where(missing_IN, np.nan, a_IN).ravel(), np.where(missing_IN, 0.0, b_IN).ravel()))
        rows += [item for item in block.items for _ in range(block.n)]
    if not rows:
        return None
    merged = [(np.concatenate([a for a, _ in c]), np.concatenate([b for _, b in c])) for c in halves]
    own = cluster_ids(rows, {item: (clusters[item],) if item in clusters else item for item in rows})
    return bootstrap(pearson, merged, own, resamples=500, seed=seed)
