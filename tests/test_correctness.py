"""The one rule (paper v3 Eq. 10): strict in training, expected credit in evaluation, and the paper's examples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from opengrm.items import Item, Message
from opengrm.voting import correct, correct_rows, credit, credit_rows, label_of


def item(responses: int, **label: object) -> Item:
    return Item((Message("user", "?"),), tuple("abcdef"[:responses]), **label)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "best", "strict", "expected"),
    [
        ((5, 3), 0, True, 1.0),
        ((5, 3), 1, False, 0.0),
        ((4, 4), 0, False, 0.5),
        ((4, 4, 4), 2, False, 1 / 3),
        ((4, 4, 1), 0, False, 0.5),
        ((4, 4, 1), 2, False, 0.0),
        ((9, 1, 1), 0, True, 1.0),  # the order among the others does not matter
        ((-15.78, 1.3126, 1.6739), 2, True, 1.0),
        ((1,), 1.0, True, 1.0),  # n = 1: equal to the label
        ((0,), 1.0, False, 0.0),
        ((7.5,), 7.5, True, 1.0),
    ],
)
def test_rule(scores: tuple[float, ...], best: float, strict: bool, expected: float) -> None:
    assert correct(scores, best) is strict
    assert credit(scores, best) == expected


def test_rows_follow_the_rule() -> None:
    scores_XN = np.array(list(itertools.product([1.0, 2.0, 3.0], repeat=3)))
    for best in range(3):
        label_X = np.full(len(scores_XN), best)
        assert correct_rows(scores_XN, label_X).tolist() == [correct(s, best) for s in scores_XN]
        assert credit_rows(scores_XN, label_X).tolist() == [credit(s, best) for s in scores_XN]


def test_rows_broadcast_a_label_over_subsets() -> None:
    scores_IRN = np.array([[[1.0, 2.0], [2.0, 2.0]], [[1.0, 2.0], [3.0, 2.0]]])
    assert credit_rows(scores_IRN, np.array([1, 0])[:, None]).tolist() == [[1.0, 0.5], [0.0, 1.0]]


def test_label_of_an_item() -> None:
    assert label_of(item(2, best=1)) == 1
    assert label_of(item(3, rewards=(0.1, 0.9, 0.3))) == 1
    assert label_of(item(2, rewards=(1.0, 1.0))) is None  # no unique maximum: the rule has no answer
    assert label_of(item(1, rewards=(0.0,))) == 0.0
    assert label_of(item(1)) is None
    assert label_of(item(2)) is None


@pytest.mark.parametrize("label", [2, -1, 0.5])
def test_a_label_that_is_no_index_is_refused(label: float) -> None:
    with pytest.raises(ValueError, match="no index"):
        correct((1, 2), label)
    with pytest.raises(ValueError, match="no index"):
        credit((1, 2), label)
