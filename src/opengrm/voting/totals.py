"""The reducers of `reducers.py` for many items and many subsets of their samples at once.

The same rules to the digit: missing judgments dropped, totals rounded to 12 digits of the largest possible one, so
that a curve's point at k = K is what `vote` says of all K samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from opengrm.voting.reducers import Reducer, total_decimals

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_CELLS = 4_000_000  # most numbers of one working array


def shares_rows(scores_XN: Floats) -> Floats:
    """One vote for the top response of each row, shared equally by those that tie there; zeros for a missing row."""
    valid_X1 = ~np.isnan(scores_XN[..., :1])
    scores_XN = np.where(valid_X1, scores_XN, 0.0)
    top_XN = scores_XN == scores_XN.max(axis=-1, keepdims=True)
    return np.asarray(top_XN / top_XN.sum(axis=-1, keepdims=True) * valid_X1)


def subset_totals(scores_IKN: Floats, masks_RK: Floats, how: Reducer) -> tuple[Floats, Floats]:
    """Totals of each subset of each item's votes.

    Args:
        scores_IKN: scores, NaN where missing.
        masks_RK: 1 where a sample takes part.
        how: `sum` and `mean` both give the sum, `majority` the shared votes.

    Returns:
        totals_IRN, and valid_IR, the number of valid votes of each subset.
    """
    valid_IK = (~np.isnan(scores_IKN[:, :, 0])).astype(np.float64)
    votes_IKN = shares_rows(scores_IKN) if how == "majority" else np.nan_to_num(scores_IKN)
    items, samples, n = votes_IKN.shape
    # One matrix product over all items and responses.
    totals_INR = (votes_IKN.transpose(0, 2, 1).reshape(items * n, samples) @ masks_RK.T).reshape(items, n, -1)
    totals_IRN = totals_INR.transpose(0, 2, 1)
    if not (votes_IKN == np.rint(votes_IKN)).all():  # sums of whole numbers are exact as they are
        largest_I = np.abs(votes_IKN).max(axis=(1, 2))
        power_I = np.array([10.0 ** total_decimals(float(largest), samples) for largest in largest_I])
        totals_IRN = np.rint(totals_IRN * power_I[:, None, None]) / power_I[:, None, None]
    return totals_IRN, valid_IK @ masks_RK.T


def subset_modes(scores_IK: Floats, masks_RK: Floats, rewards_I: Floats) -> tuple[Floats, Floats, Bools]:
    """The most frequent score of each subset of single-response votes.

    Args:
        scores_IK: the scores, NaN where missing.
        masks_RK: 1 where a sample takes part.
        rewards_I: the label of each item.

    Returns:
        mode_IR, the mean of the most frequent values (NaN without a valid vote); credit_IR, the share of those values
        that equal the label (0 without a valid vote); tied_IR, whether there are several.
    """
    samples = scores_IK.shape[1]
    same_IKK = (scores_IK[:, :, None] == scores_IK[:, None, :]).astype(np.float64)
    # A value is counted at its first occurrence in the item; missing samples equal nothing and are never counted.
    first_IK = (np.argmax(same_IKK, axis=2) == np.arange(samples)) & ~np.isnan(scores_IK)
    counts_IRK = np.where(first_IK[:, None, :], masks_RK @ same_IKK, 0.0)
    modes_IRK = (counts_IRK == counts_IRK.max(axis=2, keepdims=True)) & (counts_IRK > 0)
    number_IR = modes_IRK.sum(axis=2)
    values_IK = np.nan_to_num(scores_IK)
    with np.errstate(invalid="ignore"):
        mode_IR = (modes_IRK @ values_IK[:, :, None])[:, :, 0] / number_IR
    hit_IK = (scores_IK == rewards_I[:, None]).astype(np.float64)
    credit_IR = (modes_IRK @ hit_IK[:, :, None])[:, :, 0] / np.maximum(number_IR, 1)
    return mode_IR, credit_IR, number_IR > 1


def chunks(items: int, cells_per_item: int) -> Iterator[slice]:
    """Slices over items that keep a working array bounded."""
    step = max(1, _CELLS // max(1, cells_per_item))
    for start in range(0, items, step):
        yield slice(start, start + step)
