"""Votes: the paper's worked examples, missing votes, ties, rounding, confidence."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from opengrm.errors import BadRow
from opengrm.judgments import Judgment
from opengrm.voting import confidence, correct, lead_probability, reduce_votes, vote
from opengrm.voting.totals import subset_modes, subset_totals


def judgments(*rows: tuple[float, ...] | None, tokens: int | None = None) -> list[Judgment]:
    return [
        Judgment(
            "q", row, None if row else "unparsable: no box", sample, prompt_tokens=tokens, completion_tokens=tokens
        )
        for sample, row in enumerate(rows)
    ]


FIGURE_3 = [(1, 5), (5, 6), (4, 8), (7, 6)]


def test_figure_3_of_the_paper() -> None:
    verdict = vote("q", judgments(*FIGURE_3))
    assert verdict.scores == (17, 25)
    assert (verdict.winner, verdict.ranking, verdict.margin) == (1, (1, 0), 8)
    assert vote("q", judgments(FIGURE_3[0], FIGURE_3[2])).scores == (5, 13)  # the two that the meta RM keeps


def test_table_17_of_the_paper() -> None:
    shown = [(8, 8), (9, 5), (10, 7)]  # the input order was reversed in samples 2 and 3
    verdict = vote("q", judgments(shown[0], shown[1][::-1], shown[2][::-1]))
    assert verdict.scores == (20, 27)
    assert verdict.scores is not None
    assert correct(verdict.scores, 1)


def test_missing_votes_are_dropped_and_counted() -> None:
    verdict = vote("q", judgments((3, 1), None, (4, 2), None), how="mean")
    assert verdict.scores == (3.5, 1.5)
    assert (verdict.asked, verdict.valid, verdict.used) == (4, 2, 2)


def test_no_valid_vote_has_no_verdict() -> None:
    verdict = vote("q", judgments(None, None, tokens=7), n=2)
    assert verdict.scores is None
    assert (verdict.ranking, verdict.winner, verdict.tied, verdict.margin, verdict.confidence) == (
        (),
        None,
        (),
        None,
        None,
    )
    assert (verdict.asked, verdict.valid, verdict.prompt_tokens) == (2, 0, 14)


def test_a_tie_has_no_winner() -> None:
    verdict = vote("q", judgments((5, 3, 5), (4, 1, 4)))
    assert (verdict.winner, verdict.tied, verdict.margin) == (None, (0, 2), 0)
    assert verdict.ranking == (0, 2, 1)
    assert verdict.confidence == 0.5


def test_majority_shares_a_tied_vote() -> None:
    verdict = vote("q", judgments((9, 1, 1), (2, 2, 1), (1, 1, 1)), how="majority")
    assert verdict.scores == pytest.approx((1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3))
    assert verdict.winner == 0


def test_majority_ignores_how_large_a_lead_is() -> None:
    rows = [(10, 1), (4, 5), (4, 5)]
    assert vote("q", judgments(*rows), how="majority").winner == 1
    assert vote("q", judgments(*rows), how="sum").winner == 0


@pytest.mark.parametrize(
    ("scores", "expected"), [([3, 4, 4], 4), ([1, 0], 0.5), ([1, 2, 2, 7, 7], 4.5), ([5], 5), ([0, 0, 1], 0)]
)
def test_majority_of_single_responses(scores: list[float], expected: float) -> None:
    verdict = vote("q", judgments(*[(s,) for s in scores]), how="majority")
    assert verdict.scores == (expected,)
    assert (verdict.winner, verdict.margin, verdict.confidence, verdict.ranking) == (None, None, None, (0,))


def test_another_number_of_scores_is_an_error() -> None:
    with pytest.raises(BadRow, match="item 'q', sample 1: 3 scores for 2 responses"):
        vote("q", judgments((1, 2), (1, 2, 3)))
    with pytest.raises(BadRow, match="sample 0: 2 scores for 3 responses"):
        vote("q", judgments((1, 2)), n=3)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of sum, mean, majority"):
        reduce_votes([(1, 2)], "median")  # type: ignore[arg-type]


def test_totals_that_differ_by_rounding_only_tie() -> None:
    rows = [(0.1, 0.3), (0.2, 0.0)]  # 0.1 + 0.2 is not 0.3 in binary
    assert vote("q", judgments(*rows)).tied == (0, 1)
    assert vote("q", judgments(*rows)).scores == (0.3, 0.3)


@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3) | st.none(), min_size=1, max_size=8),
    st.sampled_from(["sum", "mean", "majority"]),
    st.randoms(use_true_random=False),
)
def test_the_order_of_judgments_changes_nothing(rows: list, how: str, shuffler: random.Random) -> None:
    asked = judgments(*rows)
    mixed = asked.copy()
    shuffler.shuffle(mixed)
    assert vote("q", asked, how=how) == vote("q", mixed, how=how)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["sum", "majority"])
@pytest.mark.parametrize("step", [1.0, 0.1])
def test_many_subsets_at_once_agree_with_one_vote(how: str, step: float) -> None:
    draw = np.random.default_rng(0)
    scores_IKN = np.round(draw.integers(1, 6, size=(50, 4, 3)) * step, 10)
    scores_IKN[draw.random((50, 4)) < 0.2] = np.nan
    masks_RK = np.array(list(itertools.product([0.0, 1.0], repeat=4))[1:])
    totals_IRN, valid_IR = subset_totals(scores_IKN, masks_RK, how)  # type: ignore[arg-type]
    for i, r in itertools.product(range(50), range(len(masks_RK))):
        rows = [tuple(s) for s, m in zip(scores_IKN[i], masks_RK[r], strict=True) if m and not np.isnan(s[0])]
        expected = reduce_votes(rows, how)  # type: ignore[arg-type]
        assert valid_IR[i, r] == len(rows)
        if expected is not None:
            assert totals_IRN[i, r] == pytest.approx(expected, abs=1e-9)
            assert [t == max(totals_IRN[i, r]) for t in totals_IRN[i, r]] == [e == max(expected) for e in expected]


def test_modes_of_many_subsets_agree_with_one_vote() -> None:
    draw = np.random.default_rng(1)
    scores_IK = draw.integers(0, 3, size=(60, 5)).astype(float)
    scores_IK[draw.random((60, 5)) < 0.3] = np.nan
    rewards_I = draw.integers(0, 3, size=60).astype(float)
    masks_RK = np.array([(1, 1, 1, 1, 1), (0, 1, 1, 0, 1), (1, 0, 0, 0, 0)], dtype=float)
    mode_IR, credit_IR, tied_IR = subset_modes(scores_IK, masks_RK, rewards_I)
    for i, r in itertools.product(range(60), range(len(masks_RK))):
        values = [s for s, m in zip(scores_IK[i], masks_RK[r], strict=True) if m and not math.isnan(s)]
        modes = [v for v in set(values) if values.count(v) == max(map(values.count, values))]
        if not values:
            assert math.isnan(mode_IR[i, r])
            assert credit_IR[i, r] == 0
            continue
        assert mode_IR[i, r] == pytest.approx(sum(modes) / len(modes))
        assert credit_IR[i, r] == pytest.approx((rewards_I[i] in modes) / len(modes))
        assert tied_IR[i, r] == (len(modes) > 1)


@pytest.mark.parametrize("wins", range(0, 7))
@pytest.mark.parametrize("losses", range(0, 7))
def test_lead_probability_is_the_posterior(wins: int, losses: int) -> None:
    m = wins + losses + 1
    exact = Fraction(sum(math.comb(m, j) for j in range(wins + 1)), 2**m)
    assert lead_probability(wins, losses) == pytest.approx(float(exact), abs=1e-15)
    assert lead_probability(wins, losses) == pytest.approx(stats.beta(wins + 1, losses + 1).sf(0.5), abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(600, 500), (5, 2000), (2000, 5), (51_000, 50_000), (500_000, 500_001)])
def test_lead_probability_at_large_k(wins: int, losses: int) -> None:
    expected = stats.binom.cdf(wins, wins + losses + 1, 0.5)
    assert lead_probability(wins, losses) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_confidence_is_that_of_the_closest_rival() -> None:
    votes = [(5, 1, 4), (5, 2, 6), (5, 3, 4), (5, 5, 4)]
    # Against response 1: three wins and a tie. Against response 2: three wins and a loss.
    assert confidence(votes, [0]) == lead_probability(3, 1) == 13 / 16
    assert lead_probability(3, 0) == 15 / 16
    assert confidence([(1,), (2,)], [0]) is None
    assert confidence([], []) is None


def test_confidence_of_a_tie_is_at_most_one_half() -> None:
    # Equal sums, but response 0 wins twice by little and loses once by much.
    verdict = vote("q", judgments((3, 2), (3, 2), (1, 3)))
    assert verdict.tied == (0, 1)
    assert verdict.confidence == lead_probability(1, 2)
