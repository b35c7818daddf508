"""What a run comes to: accuracy of items and of single responses, in both senses, clustered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opengrm.items import Item, Message
from opengrm.judges.run import Judged, Summary
from opengrm.judgments import Judgment
from opengrm.voting import Reducer, share_interval, vote

Scores = tuple[float, ...]


def judged(item: Item, *rows: Scores | None, how: Reducer = "sum") -> Judged:
    votes = [Judgment(item.id, row, None if row else "unparsable: no box", j) for j, row in enumerate(rows)]
    return Judged(item, votes, vote(item.id, votes, item.n, how))


def single(reward: float, cluster: str | None = None) -> Item:
    source = {} if cluster is None else {"cluster": cluster}
    return Item((Message("user", "?"),), ("x",), rewards=(reward,), source=source)


def figures(*finished: Judged, how: Reducer = "sum") -> dict[str, Any]:
    summary = Summary()
    for one in finished:
        summary.add(one, how)
    return summary.to_json()


def test_single_responses_are_right_when_the_most_frequent_score_is_the_label() -> None:
    graded = [
        judged(single(4), (4,), (4,), (2,), how="majority"),
        judged(single(3), (2,), (3,), how="majority"),
        judged(single(1), None, how="majority"),
    ]
    found = figures(*graded, how="majority")
    assert found["accuracy"] is None
    assert (found["accuracy_singles"]["mean"], found["accuracy_singles"]["n"]) == (pytest.approx(1.5 / 3), 3)
    assert (found["accuracy_singles_valid_only"]["mean"], found["accuracy_singles_valid_only"]["n"]) == (0.75, 2)


def test_single_responses_with_binary_labels() -> None:
    rows = [judged(single(1), (1,), (1,), (0,)), judged(single(0), (1,)), judged(single(0), None)]
    found = figures(*rows)
    assert found["accuracy_singles"]["mean"] == pytest.approx((1 + 0 + 0.5) / 3)  # the missing one at chance
    assert found["accuracy_singles_valid_only"]["mean"] == 0.5
    assert not found["singles_undecided"]


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_a_sum_of_scores_is_no_score(how: Reducer) -> None:
    found = figures(judged(single(1), (1,)), judged(single(4), (4,), how=how), how=how)
    assert (found["accuracy_singles"], found["accuracy_singles_valid_only"]) == (None, None)
    assert found["singles_undecided"]


def test_intervals_are_clustered() -> None:
    right = [i % 8 < 4 for i in range(40)]
    rows = [judged(single(1, f"{i // 4}"), (float(hit),)) for i, hit in enumerate(right)]
    expected = share_interval(np.array(right, dtype=float), None, np.arange(40) // 4)
    found = figures(*rows)["accuracy_singles"]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(expected)
