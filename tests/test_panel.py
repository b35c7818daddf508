"""Votes of a panel against values worked out by hand, and the linear meta RM against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from opengrm.errors import UsageError
from opengrm.items import Item, Message
from opengrm.judgments import Judgment
from opengrm.training.meta_head import train_head
from opengrm.voting.guided import Guide
from opengrm.voting.panel import panel_of

ASK = (Message("user", "Q"),)


def pair(name: str, best: int, cluster: str) -> Item:
    return Item(ASK, ("a", "b"), id=name, best=best, source={"cluster": cluster})


def said(item: str, winner: int | None) -> Judgment:
    if winner is None:
        return Judgment(item, None, error="unparsable: nothing")
    return Judgment(item, (float(winner == 0), float(winner == 1)))


def test_votes_of_unequal_size() -> None:
    items = {"x": pair("x", 0, "q"), "y": pair("y", 1, "q"), "z": pair("z", 0, "r")}
    judgments = [said("x", 0), said("x", 1), said("x", 1), said("y", 1), said("y", 0), said("z", None)]
    panel = panel_of(judgments, items)
    assert panel.scores_IKN.shape == (3, 3, 2)
    np.testing.assert_array_equal(panel.right_J, [1, 0, 0, 1, 0, np.nan])
    # x: 1 of 3 for the best; y: a tie; z: nothing valid.
    plain_I = panel.credits()
    assert plain_I.tolist() == [0, 0.5, 0.5]
    metas_J = np.array([2.0, 1.0, 0.0, -1.0, -2.0, np.nan])
    assert panel.credits(Guide(k_meta=1), metas_J).tolist() == [1, 1, 0.5]
    # No judgment of y reaches 0.5, so its best one counts; of x the first two tie.
    assert panel.credits(Guide(threshold=0.5), metas_J).tolist() == [0.5, 1, 0.5]
    assert panel.credits("sum", used_J=np.array([1, 0, 1, 1, 1, 1.0])).tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="needs meta scores"):
        panel.credits(Guide())


def test_gain_is_paired_and_clustered() -> None:
    items = {name: pair(name, 0, cluster) for name, cluster in (("x", "q"), ("y", "q"), ("z", "r"))}
    panel = panel_of([said(name, 0) for name in items], items)
    found = panel.gain(np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0]))
    assert found is not None
    assert found.mean == pytest.approx(2 / 3)
    # Residuals by cluster: 2/3 and -2/3; variance 2/(2-1) * (8/9) / 3^2.
    assert found.high - found.mean == pytest.approx(1.959964 * (16 / 81) ** 0.5)
    accuracy = panel.accuracy(np.array([1.0, 0.0, 1.0]), np.array([True, False, True]))
    assert accuracy is not None
    assert accuracy.mean == 1


def test_single_responses_vote_right_or_wrong() -> None:
    items = {name: Item(ASK, ("a",), id=name, rewards=(reward,)) for name, reward in (("x", 1.0), ("y", 0.0))}
    judgments = [Judgment("x", (1.0,)), Judgment("x", (0.0,)), Judgment("x", (1.0,)), Judgment("y", (1.0,))]
    panel = panel_of(judgments, items)
    assert panel.credits().tolist() == [1, 0]
    assert panel.right_J.tolist() == [1, 0, 1, 0]


def test_what_makes_no_panel() -> None:
    items = {"x": pair("x", 0, "q"), "l": Item(ASK, ("a", "b", "c"), id="l", best=0)}
    with pytest.raises(ValueError, match="one size"):
        panel_of([said("x", 0), Judgment("l", (1.0, 0.0, 0.0))], items)
    with pytest.raises(ValueError, match="without a label"):
        panel_of([said("n", 0)], {"n": Item(ASK, ("a", "b"), id="n")})


def test_head_without_information_says_the_share() -> None:
    labels = np.array([1.0, 1.0, 1.0, 0.0])
    head = train_head(np.full((4, 2), 7.0, dtype=np.float32), labels)
    # ln 3, whatever features say that never varied in training.
    np.testing.assert_allclose(head.logits(np.full((1, 2), 9.0, dtype=np.float32)), [np.log(3)], atol=1e-4)
    assert head.loss == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4, abs=1e-5)
    with pytest.raises(UsageError, match="all of one label"):
        train_head(np.ones((2, 1), dtype=np.float32), np.ones(2))


def test_head_is_the_minimum() -> None:
    """One feature of variance 1, labels right 3 of 4 times on both sides: the gradient at the minimum is zero."""
    sides = np.array([1.0, 1, 1, 1, -1, -1, -1, -1], dtype=np.float32)[:, None]
    labels = np.array([1.0, 1, 1, 0, 0, 0, 0, 1])
    free = train_head(sides, labels, l2=0.0)
    assert free.weights_D[0] == pytest.approx(np.log(3), abs=1e-3)
    weight = float(train_head(sides, labels, l2=0.5).weights_D[0])
    right = 1 / (1 + np.exp(-weight))
    assert 0 < weight < np.log(3)
    assert right - 0.75 + 0.5 * weight == pytest.approx(0, abs=1e-4)


def test_what_no_panel_and_no_head_takes() -> None:
    items = {"x": pair("x", 0, "q")}
    with pytest.raises(ValueError, match="item 'x': a judgment of 1 scores"):
        panel_of([Judgment("x", (1.0,))], items)
    panel = panel_of([said("x", 0), said("x", 1)], items)
    with pytest.raises(ValueError, match="numbers for"):
        panel.credits(Guide(k_meta=1), np.array([1.0]))
    one = np.ones((2, 1), dtype=np.float32)
    with pytest.raises(UsageError, match="0 and 1"):
        train_head(one, np.array([2.0, 5.0]))
    with pytest.raises(UsageError, match=r"row 1: a feature that is not a finite number \(1 such rows\)"):
        train_head(np.array([[1.0], [np.nan]], dtype=np.float32), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="at least 0"):
        train_head(one, np.array([0.0, 1.0]), l2=-1)
