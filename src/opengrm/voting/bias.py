"""Position bias and order consistency, from the order on every judgment.

What a judge would do without position bias is estimated from the item itself: *expected* at a position is the share of
votes (or the score) that the responses shown there got over all of the item's judgments. Under a balanced plan that is
1/n. With one fixed order it equals what was observed, and the shift is zero: a fixed order cannot show its own bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.voting.intervals import Interval, normal_interval, share_interval
from opengrm.voting.recorded import Block
from opengrm.voting.totals import chunks, shares_rows

Floats = npt.NDArray[np.float64]


def position_bias(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Statistics for each number of responses n >= 2, over valid judgments whose order is known.

    Returns:
        For each n: `n`, `items`, `judgments`, `positions` (one row for each position: `share`, how often the top
        response stood there, ties shared; `expected`; `shift`, share minus expected; `score`, the mean score there;
        `score_shift`), `first_preference` (the first position's shift), and order consistency over items that were
        judged in different orders: `other_order_agreement`, the share of pairs of judgments in different orders that
        name the same top response, `same_order_agreement`, the same for pairs in equal orders, which is what sampling
        noise alone leaves; `items_compared` has how many items have pairs in different orders. All intervals are
        clustered by item.
    """
    found = []
    for n in sorted({b.n for b in blocks if b.n >= 2}):
        parts = [
            _sums(block.rows(np.arange(len(block.items))[part]))
            for block in blocks
            if block.n == n
            for part in chunks(len(block.items), block.samples * max(n, block.samples))
        ]
        sums = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        if sums["count"].sum():
            found.append(_report(n, sums))
    return found


def _report(n: int, sums: dict[str, Floats]) -> dict[str, Any]:
    count_I = sums["count"]
    positions = []
    for p in range(n):
        row = {
            "share": share_interval(sums["share"][:, p], count_I),
            "expected": normal_interval(sums["expected"][:, p], count_I),
            "shift": normal_interval(sums["share"][:, p] - sums["expected"][:, p], count_I),
            "score": normal_interval(sums["score"][:, p], count_I),
            "score_shift": normal_interval(sums["score"][:, p] - sums["score_expected"][:, p], count_I),
        }
        positions.append({"position": p, **{name: _json(value) for name, value in row.items()}})
    agreements = {
        f"{name}_agreement": _json(
            share_interval(sums[f"{name}_agree"], (sums[f"{name}_pairs"] > 0).astype(np.float64))
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
    sums = {"count": count_I}
    for name, values_IKN in (("share", shares_IKN), ("score", scores_IKN)):
        mean_I1N = (values_IKN.sum(axis=1) / np.maximum(1, count_I)[:, None])[:, None, :] * known_IK1
        expected = "expected" if name == "share" else "score_expected"
        sums[name] = np.take_along_axis(values_IKN, shown_IKN, axis=2).sum(axis=1)
        sums[expected] = np.take_along_axis(mean_I1N, shown_IKN, axis=2).sum(axis=1)
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
