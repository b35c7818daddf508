"""Position bias and order consistency, from the order on every judgment.

What a position is worth is told apart from what a response is worth by comparing each response with itself at other
positions: the share of votes (or the score) of response r at position p is taken as worth_r + shift_p, and the shifts
are fitted by least squares over all items, worths free for each item. With equally often seen orders that is the share
at a position minus the mean over the orders; it holds for any mix of orders. An item that was shown in one order only
says nothing about position bias and has no weight in it: fixed orders and judges that see one response at a time have
no shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.voting.intervals import Z95, Ids, Interval, normal_interval, share_interval
from opengrm.voting.ranked import cluster_ids
from opengrm.voting.recorded import Block
from opengrm.voting.totals import chunks, shares_rows

Floats = npt.NDArray[np.float64]


def position_bias(blocks: Sequence[Block], clusters: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
    """Statistics for each number of responses n >= 2, over valid judgments whose order is known.

    Args:
        blocks: items, any n.
        clusters: a cluster by item id; the item itself where absent.

    Returns:
        For each n: `n`, `items`, `judgments`, `positions` (one row for each position: `share`, how often the top
        response stood there, ties shared; `shift`, how much of that is the position's, None where orders do not tell;
        `expected`, share minus shift; `score`, the mean score there; `score_shift`), `first_preference` (the first
        position's shift), and order consistency over items that were judged in different orders:
        `other_order_agreement`, the share of pairs of judgments in different orders that name the same top response,
        `same_order_agreement`, the same for pairs in equal orders, which is what sampling noise alone leaves;
        `items_compared` has how many items have pairs in different orders. All intervals are clustered.
    """
    found = []
    for n in sorted({b.n for b in blocks if b.n >= 2}):
        own = [b for b in blocks if b.n == n]
        parts = [
            _sums(block.rows(np.arange(len(block.items))[part]))
            for block in own
            for part in chunks(len(block.items), block.samples * max(n, block.samples))
        ]
        sums = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        if sums["count"].sum():
            items = [item for block in own for item in block.items]
            found.append(_report(n, sums, cluster_ids(items, clusters or {})))
    return found


def _report(n: int, sums: dict[str, Floats], clusters_I: Ids | None) -> dict[str, Any]:
    count_I = sums["count"]
    shifts = _shifts(sums["share_excess"], sums["design"], clusters_I)
    score_shifts = _shifts(sums["score_excess"], sums["design"], clusters_I)
    positions = []
    for p in range(n):
        share, shift = share_interval(sums["share"][:, p], count_I, clusters_I), shifts[p]
        row = {
            "share": share,
            "shift": shift,
            "score": normal_interval(sums["score"][:, p], count_I, clusters_I),
            "score_shift": score_shifts[p],
        }
        expected = None if share is None or shift is None else share.mean - shift.mean
        positions.append({"position": p, "expected": expected, **{name: _json(value) for name, value in row.items()}})
    agreements = {
        f"{name}_agreement": _json(
            share_interval(sums[f"{name}_agree"], (sums[f"{name}_pairs"] > 0).astype(np.float64), clusters_I)
        )
        for name in ("other_order", "same_order")
    }
    return {
        "n": n,
        "items": int((count_I > 0).sum()),
        "judgments": int(count_I.sum()),
        "positions": positions,
        "first_preference": positions[0]["shift"],
        "items_compared": int((sums["other_order_pairs"] > 0).sum()),
        **agreements,
    }


def _shifts(excess_IN: Floats, design_INN: Floats, clusters_I: Ids | None) -> list[Interval | None]:
    """The shift of each position (they sum to 0) with its cluster-robust interval; None where orders do not tell.

    Args:
        excess_IN: what each position of an item got beyond its responses' own means.
        design_INN: the matrix that turns shifts into that excess; 0 for an item shown in one order.
    """
    n = excess_IN.shape[1]
    seen_I = np.abs(design_INN).max(axis=(1, 2)) > 1e-9
    design_NN = design_INN[seen_I].sum(axis=0)
    if np.linalg.matrix_rank(design_NN, tol=1e-9) < n - 1:
        return [None] * n
    inverse_NN = np.linalg.pinv(design_NN, rcond=1e-9, hermitian=True)
    shift_N = inverse_NN @ excess_IN[seen_I].sum(axis=0)
    residual_IN = excess_IN[seen_I] - design_INN[seen_I] @ shift_N
    own_I = np.arange(len(seen_I)) if clusters_I is None else clusters_I
    group_I = np.unique(own_I[seen_I], return_inverse=True)[1]
    groups = int(group_I.max()) + 1
    residual_GN = np.zeros((groups, n))
    np.add.at(residual_GN, group_I, residual_IN)
    variance_N = ((residual_GN @ inverse_NN) ** 2).sum(axis=0) * (groups / (groups - 1) if groups > 1 else 0.0)
    half_N = Z95 * np.sqrt(variance_N)
    return [Interval(float(s), float(s - h), float(s + h)) for s, h in zip(shift_N, half_N, strict=True)]


def _sums(block: Block) -> dict[str, Floats]:
    """Per item: sums over its judgments by position, and pairs of judgments by whether their orders are equal."""
    known_IK = block.valid_IK & (block.order_IK >= 0)
    known_IK1 = known_IK[:, :, None].astype(np.float64)
    count_I = known_IK.sum(axis=1).astype(np.float64)
    shares_IKN = shares_rows(block.scores_IKN) * known_IK1
    scores_IKN = np.nan_to_num(block.scores_IKN) * known_IK1
    # An unknown order reads the last row; its judgment's numbers are zero.
    orders_ON = block.orders_ON if len(block.orders_ON) else np.arange(block.n)[None, :]
    shown_IKN = orders_ON[block.order_IK]
    # How often response r stood at position p, as a share of the item's judgments.
    stood_INN = np.stack([((shown_IKN == r) * known_IK1).sum(axis=1) for r in range(block.n)], axis=1)
    stood_INN /= np.maximum(1, count_I)[:, None, None]
    design_INN = count_I[:, None, None] * (np.eye(block.n) - stood_INN.transpose(0, 2, 1) @ stood_INN)
    sums = {"count": count_I, "design": design_INN}
    for name, values_IKN in (("share", shares_IKN), ("score", scores_IKN)):
        sums[name] = np.take_along_axis(values_IKN, shown_IKN, axis=2).sum(axis=1)
        sums[f"{name}_excess"] = sums[name] - (values_IKN.sum(axis=1)[:, None, :] @ stood_INN)[:, 0, :]
    agree_IKK = shares_IKN @ shares_IKN.transpose(0, 2, 1)
    pair_IKK = np.triu(known_IK[:, :, None] & known_IK[:, None, :], 1)
    equal_IKK = block.order_IK[:, :, None] == block.order_IK[:, None, :]
    for name, which_IKK in (("other_order", pair_IKK & ~equal_IKK), ("same_order", pair_IKK & equal_IKK)):
        pairs_I = which_IKK.sum(axis=(1, 2)).astype(np.float64)
        sums[f"{name}_pairs"] = pairs_I
        sums[f"{name}_agree"] = (agree_IKK * which_IKK).sum(axis=(1, 2)) / np.maximum(1, pairs_I)
    return sums


def _json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval._asdict()
