"""The one rule of what is correct (paper v3 Eq. 10, design rule 1), for RFT, RL, the meta RM's labels and evaluation.

The label of an item is one number: for n >= 2 the index of the best response, for n = 1 the true score. Only which
response is best matters for n >= 2; the order among the others does not. A judgment without scores is never passed
here: whoever holds it decides (in RL it is wrong, in a report it is counted).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from opengrm.items import Item

Floats = npt.NDArray[np.float64]


def label_of(item: Item) -> float | None:
    """The label that `correct` and `credit` compare with: best index (n >= 2) or reward (n = 1); None without one."""
    if item.n == 1:
        return None if item.rewards is None else item.rewards[0]
    return item.label


def correct(scores: Sequence[float], label: float) -> bool:
    """Strict, for training: the labelled best scores strictly above all others (n >= 2), or equals the label (n = 1).

    Args:
        scores: one score for each response, in the item's own order.
        label: see `label_of`.

    Raises:
        ValueError: no scores, or a label that is no index of them.
    """
    if len(scores) == 1:
        return bool(scores[0] == label)
    best = _index(label, len(scores))
    return all(scores[best] > score for i, score in enumerate(scores) if i != best)


def credit(scores: Sequence[float], label: float) -> float:
    """For evaluation: 1 / (number tied at the top) if the labelled best is among them, else 0.

    That is the expected value of a random pick among the tied, without its noise. For n = 1 it is `correct`.
    Arguments and errors as for `correct`.
    """
    if len(scores) == 1:
        return float(scores[0] == label)
    best = _index(label, len(scores))
    top = max(scores)
    return 1.0 / list(scores).count(top) if scores[best] == top else 0.0


def correct_rows(scores_XN: Floats, label_X: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """`correct` for many score rows at once, n >= 2.

    Args:
        scores_XN: scores, shape [..., n].
        label_X: index of the best, of a shape that broadcasts against scores_XN.shape[:-1].
    """
    best_X, others_X = _best_and_others(scores_XN, label_X)
    return np.asarray(best_X > others_X)


def credit_rows(scores_XN: Floats, label_X: npt.NDArray[np.integer]) -> Floats:
    """`credit` for many score rows at once, n >= 2. Shapes as for `correct_rows`."""
    best_X, others_X = _best_and_others(scores_XN, label_X)
    tied_X = (scores_XN == scores_XN.max(axis=-1, keepdims=True)).sum(axis=-1)
    return np.asarray(np.where(best_X >= others_X, 1.0 / tied_X, 0.0))


def _best_and_others(scores_XN: Floats, label_X: npt.NDArray[np.integer]) -> tuple[Floats, Floats]:
    """The labelled response's score, and the highest of the others."""
    labelled_XN = np.asarray(label_X)[..., None] == np.arange(scores_XN.shape[-1])
    best_X = np.where(labelled_XN, scores_XN, -np.inf).max(axis=-1)
    others_X = np.where(labelled_XN, -np.inf, scores_XN).max(axis=-1)
    return best_X, others_X


def _index(label: float, n: int) -> int:
    if n == 0:
        raise ValueError("there are no scores")
    if label != int(label) or not 0 <= label < n:
        raise ValueError(f"the label {label!r} is no index of {n} responses")
    return int(label)
