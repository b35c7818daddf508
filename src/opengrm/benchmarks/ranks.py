"""Single responses earn by rank: their credits, ROC-AUC, and how means of such credits spread.

A judge's scale is its own, so a single response labelled 1 or 0 is not right or wrong: its credit is the share of the
responses with the other label that it is on the right side of (ties half), and the mean over either label is ROC-AUC.
Credits share their comparisons, so they are not independent. The mean of some of them moves with an item twice: with
its own credit, and with the credits of those that it is compared with. `spread` has both, to the first order; over all
items its variance is DeLong's (Biometrics 44, 1988, 837-845).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.benchmarks.base import Outcome, Target, clusters_of
from opengrm.voting.association import bootstrap, roc_auc, roc_auc_at_chance
from opengrm.voting.intervals import share_interval

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
ALONE = -1  # the side of an item whose credit is its own


def finish(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes, single responses with a verdict with their credits; pairs and lists as they are."""
    sides = {
        label: np.sort([o.scores[0] for o in outcomes if o.scores is not None and _side(o.target) == label])
        for label in (0, 1)
    }
    found = []
    for o in outcomes:
        label = _side(o.target)
        if o.scores is not None and label != ALONE and len(sides[1 - label]):
            other = sides[1 - label]
            below, level = (int(np.searchsorted(other, o.scores[0], side=side)) for side in ("left", "right"))
            lower = (below + level) / 2 / len(other)
            o = replace(o, credit=lower if label == 1 else 1 - lower)
        found.append(o)
    return found


def auc(outcomes: Sequence[Outcome], valid_only: bool) -> dict[str, Any] | None:
    """ROC-AUC of single responses with a 95 % interval from resampling clusters: {"mean", "low", "high", "n"}.

    A comparison with an item without a verdict counts one half, or not at all. None for one label only.
    """
    own = [o for o in outcomes if _side(o.target) != ALONE and (o.scores is not None or not valid_only)]
    score_I = np.array([np.nan if o.scores is None else o.scores[0] for o in own], dtype=np.float64)
    label_I = np.array([_side(o.target) for o in own], dtype=np.float64)
    if not 0 < label_I.sum() < len(own):
        return None
    statistic = roc_auc if valid_only else roc_auc_at_chance
    found = bootstrap(statistic, [(score_I, label_I)], clusters_of([o.target for o in own]))
    return None if found is None else {**found._asdict(), "n": len(own)}


def share_among(earned: Iterable[tuple[Target, float | None, bool]]) -> dict[str, Any] | None:
    """The mean of what some items earn, where single responses earn by rank: {"mean", "low", "high", "n"}.

    Args:
        earned: all items, what they earn in [0, 1] (None is left out), and whether they are among those averaged.

    Returns:
        None without one that counts.
    """
    kept = [(target, value, own) for target, value, own in earned if value is not None]
    targets = [target for target, _, _ in kept]
    own_I = np.array([own for *_, own in kept], dtype=bool)
    if not own_I.any():
        return None
    side_I = np.array([_side(target) for target in targets], dtype=np.int64)
    values_I = spread(np.array([value for _, value, _ in kept], dtype=np.float64), side_I, own_I)
    found = share_interval(values_I, own_I.astype(np.float64), clusters_of(targets))
    return None if found is None else {**found._asdict(), "n": int(own_I.sum())}


def spread(values_I: Floats, side_I: Ints, own_I: Bools) -> Floats:
    """Values with the mean of the own ones and, item by item, all that this mean moves with.

    Args:
        values_I: credits, or differences of two runs' credits.
        side_I: `ALONE` where the credit is the item's own; else a number such that the items compared with it have
            the number `side ^ 1`.
        own_I: which are averaged, at least one.

    Returns:
        Numbers that sum to the mean times the number of own items. Their cluster-robust variance about that mean,
        with the weights `own_I`, is that of the mean.
    """
    found_I = np.where(own_I, values_I, 0.0)
    for side in np.unique(side_I[side_I != ALONE]):
        all_I = side_I == side
        both_I, inside_I = own_I & (side_I >> 1 == side >> 1), own_I & all_I
        # Labels are given, not drawn: an item differs from others of its label, not from those of the other one.
        if inside_I.any():
            found_I[inside_I] += values_I[both_I].mean() - values_I[inside_I].mean()
        against = (own_I & (side_I == side ^ 1)).sum() / all_I.sum()
        found_I[all_I] += against * (values_I[all_I] - values_I[all_I].mean())
    return found_I


def _side(target: Target) -> int:
    """The label of a single response, else `ALONE`."""
    return int(target.label) if target.n == 1 and target.label in (0.0, 1.0) else ALONE
