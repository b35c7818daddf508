"""Votes over all judgments of an item, however many it has and whoever made them: several judges, protocols, orders.

`revote.py` draws k of K samples that one judge made of every item. A panel has no k: what one item has, another need
not have. Here a rule votes over all of an item's judgments and gets its credit, so that two rules can be compared
item by item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opengrm.items import Item
from opengrm.judgments import Judgment
from opengrm.voting.correctness import correct, credit_rows, label_of
from opengrm.voting.guided import Rule, guided_totals
from opengrm.voting.intervals import Interval, normal_interval, share_interval
from opengrm.voting.totals import chunks, subset_totals

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Panel:
    """The judgments of I labelled items of n responses, K at most for one item, J in all.

    A single response with a 0/1 label is two candidates, "right" and "wrong": a vote between them is the majority.

    Attributes:
        items: ids.
        best_I: index of the best response.
        cluster_I: a number for each cluster of dependent items.
        scores_IKN: scores, NaN where there is none.
        place_J: where each judgment stands, as i * K + its place.
        right_J: 1 if it is correct, 0 if not, NaN without scores.
    """

    items: tuple[str, ...]
    best_I: Ints
    cluster_I: Ints
    scores_IKN: Floats
    place_J: Ints
    right_J: Floats

    def credits(self, rule: Rule = "sum", metas_J: Floats | None = None, used_J: Floats | None = None) -> Floats:
        """What the vote earns on each item: 1, 0, 1 over the number tied at the top, or 1/n without a valid vote.

        Args:
            rule: how to vote.
            metas_J: the meta scores of a guided vote; NaN where there is none.
            used_J: 1 for judgments that take part; None is all.
        """
        count, most, n = self.scores_IKN.shape
        scores_IKN = self.scores_IKN
        if used_J is not None:
            used_IK = self._placed(used_J)
            scores_IKN = np.where(used_IK[:, :, None] > 0, scores_IKN, np.nan)
        everyone_1K, credit_I = np.ones((1, most)), np.zeros(count)
        meta_IK = None if metas_J is None else self._placed(metas_J)
        for part in chunks(count, most * most):
            if isinstance(rule, str):
                totals_IRN, weight_IR = subset_totals(scores_IKN[part], everyone_1K, rule)
            elif meta_IK is None:
                raise ValueError("a guided vote needs meta scores")
            else:
                totals_IRN, weight_IR, _ = guided_totals(scores_IKN[part], meta_IK[part], everyone_1K, rule)
            found_I = credit_rows(totals_IRN[:, 0], self.best_I[part])
            credit_I[part] = np.where(weight_IR[:, 0] > 0, found_I, 1 / n)
        return credit_I

    def accuracy(self, credit_I: Floats, among_I: npt.NDArray[np.bool_] | None = None) -> Interval | None:
        """The mean credit with its interval by cluster, of all items or of those among `among_I`."""
        among_I = np.ones(len(self.items), dtype=bool) if among_I is None else among_I
        return share_interval(credit_I[among_I], None, self.cluster_I[among_I])

    def gain(self, credit_I: Floats, over_I: Floats, among_I: npt.NDArray[np.bool_] | None = None) -> Interval | None:
        """The mean difference of two rules' credits with its interval by cluster: paired, item by item."""
        among_I = np.ones(len(self.items), dtype=bool) if among_I is None else among_I
        return normal_interval((credit_I - over_I)[among_I], None, self.cluster_I[among_I])

    def _placed(self, values_J: Floats) -> Floats:
        """A number of each judgment where it stands: shape [I, K], NaN elsewhere."""
        count, most, _ = self.scores_IKN.shape
        if values_J.shape != self.place_J.shape:
            raise ValueError(f"{values_J.shape} numbers for {self.place_J.shape} judgments")
        found = np.full(count * most, np.nan)
        found[self.place_J] = values_J
        return found.reshape(count, most)


def panel_of(judgments: Sequence[Judgment], items: Mapping[str, Item]) -> Panel:
    """The panel of these judgments, one row of J for each, in their order.

    Args:
        judgments: each of one of the items.
        items: by id, all with labels, and all of the same number of responses; single ones with rewards 0 or 1.

    Raises:
        ValueError: an item without a label, or of another number of responses; a judgment of another number of scores.
    """
    names = tuple(dict.fromkeys(judgment.item for judgment in judgments))
    number = {name: i for i, name in enumerate(names)}
    labels = [label_of(items[name]) for name in names]
    sizes = {items[name].n for name in names}
    if len(sizes) != 1 or any(label is None for label in labels):
        raise ValueError(
            f"items of {sorted(sizes)} responses, some perhaps without a label: expected labels, one size"
        )
    single = sizes == {1}
    seats = np.zeros(len(names), dtype=np.int64)
    place_J, right_J = np.zeros(len(judgments), dtype=np.int64), np.full(len(judgments), np.nan)
    rows: list[tuple[int, int, tuple[float, ...]]] = []
    for j, judgment in enumerate(judgments):
        i = number[judgment.item]
        place_J[j] = seats[i]
        if judgment.scores is not None:
            if len(judgment.scores) != items[judgment.item].n:
                raise ValueError(f"item {judgment.item!r}: a judgment of {len(judgment.scores)} scores")
            label = labels[i]
            assert label is not None
            right_J[j] = float(correct(judgment.scores, label))
            scores = (judgment.scores[0], 1 - judgment.scores[0]) if single else judgment.scores
            rows.append((i, int(seats[i]), scores))
        seats[i] += 1
    most = int(seats.max())
    scores_IKN = np.full((len(names), most, 2 if single else sizes.pop()), np.nan)
    for i, k, scores in rows:
        scores_IKN[i, k] = scores
    best_I = np.array([1 - label if single else label for label in labels if label is not None]).astype(np.int64)
    clusters: dict[str, int] = {}
    cluster_I = np.array([clusters.setdefault(items[n].cluster or n, len(clusters)) for n in names], dtype=np.int64)
    place_J += np.array([number[j.item] for j in judgments], dtype=np.int64) * most
    return Panel(names, best_I, cluster_I, scores_IKN, place_J, right_J)
