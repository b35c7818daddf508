"""Stopping rules against hand calculations, against every way a vote can go on, and their error over many items."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from opengrm.judgments import Judgment
from opengrm.voting import lead_probability, vote
from opengrm.voting.evidence import beta_tail, wealth
from opengrm.voting.guided import PAPER, Guide, Rule, guided_vote
from opengrm.voting.stopping import Stop, check_width, course, span, stopping_points, stops

NAN = math.nan


def test_beta_tail_is_scipys() -> None:
    draw = np.random.default_rng(0)
    a, b = 10 ** draw.uniform(-2, 2.5, (2, 2000))
    x = draw.uniform(-0.1, 1.1, 2000)
    np.testing.assert_allclose(beta_tail(a, b, x), stats.beta.sf(x, a, b), atol=1e-8)
    for a, b in ((900.0, 900.0), (50_000.0, 49_000.0)):
        x = a / (a + b) + np.linspace(-4, 4, 41) * np.sqrt(a * b / (a + b) ** 3)
        np.testing.assert_allclose(beta_tail(a, b, x), stats.beta.sf(x, a, b), atol=1e-8)


def test_wealth_by_hand() -> None:
    # Two values of 1 out of four, none below -1. The mean to come is at most 0, then -1/3: a bet g gains 1 + g, then
    # 1 + g (1 + 1/3) / (1 - 1/3). The third 1 leaves one value, which cannot bring the sum down to 0.
    bets = (np.arange(8) + 0.5) / 8
    found = wealth(np.ones((1, 3)), -1.0, 4)[0]
    assert found[:2] == pytest.approx([np.mean(1 + bets), np.mean((1 + bets) * (1 + 2 * bets))])
    assert found[2] == math.inf
    # "The sum is at most 2" is still possible then.
    assert wealth(np.ones((1, 3)), -1.0, 4, most=2.0)[0, 2] < math.inf


@pytest.mark.parametrize("population", [[1.0] * 8 + [-1.0] * 8, [3.0] * 2 + [0.0] * 11 + [-2.0] * 3])
def test_wealth_is_seldom_large_where_the_sum_is_zero(population: list[float]) -> None:
    draw = np.random.default_rng(1)
    values = draw.permuted(np.tile(population, (4000, 1)), axis=1)
    peak = wealth(values, -3.0, 16).max(axis=1)
    for alpha in (0.01, 0.05, 0.1):
        assert np.mean(peak >= 1 / alpha) <= alpha


def test_exact_by_hand() -> None:
    stop = Stop("exact", low=0, high=10)
    # Four votes: 30 ahead with one to come is safe; 20 ahead with two to come could still tie.
    scores = np.array([[[10.0, 0], [10, 0], [10, 0], [0, 10]]])
    found = course(scores, 4, stop)
    assert found.sure_XT.tolist() == [[0, 0, 1, 1]]
    assert found.leader_XT.tolist() == [[0, 0, 0, 0]]
    assert stopping_points(stops(found, stop, 4)).tolist() == [3]
    # In cycles of two the vote goes on to the end of the cycle.
    assert stopping_points(stops(course(scores, 4, stop, block=2), stop, 4, 2)).tolist() == [4]
    # A missing vote takes a place: 18 ahead with one of four to come.
    scores[0, 1] = NAN
    scores[0, 0] = [8, 0]
    assert course(scores, 4, stop).sure_XT.tolist() == [[0, 0, 1, 1]]
    # Majority: shared votes, so two of three are not safe with one to come, which could tie.
    scores = np.array([[[5.0, 0], [5, 5], [5, 0], [1, 2]]])
    assert course(scores, 4, stop, "majority").sure_XT.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("how", ["sum", "majority", PAPER, Guide(k_meta=3), Guide(threshold=0.5), Guide(weights=True)])
def test_exact_is_never_overturned_by_any_continuation(how: Rule) -> None:
    """Every continuation of short votes on 0..2, with every place of its meta score, and missing ones."""
    draw = np.random.default_rng(3)
    k, items = 5, 100
    scores = draw.choice([0.0, 0.0, 1.0, 2.0, 2.0], (items, k, 2))
    scores[draw.random((items, k)) < 0.1] = NAN
    scores[::2, :, 0] = np.where(np.isnan(scores[::2, :, 0]), NAN, 2)  # clear ones among them
    metas = draw.choice([-1.0, 0.4, 0.6, 2.0, NAN], (items, k))
    found = course(scores, k, Stop("exact", low=0, high=2), how, meta_XT=metas)
    nexts = [([a, b], m) for a, b in ((2, 0), (0, 2), (1, 1)) for m in (-9.0, 0.5, 9.0)] + [(None, NAN)]
    sure = 0
    for i in range(items):
        rows = [(None if np.isnan(s[0]) else list(s), m) for s, m in zip(scores[i], metas[i], strict=True)]
        for t in (3, 4):
            if found.sure_XT[i, t - 1]:
                sure += 1
                for rest in itertools.product(nexts, repeat=k - t):
                    assert _winner([*rows[:t], *rest], how, 2) == found.leader_XT[i, t - 1]
    assert sure > 5


def _winner(rows: list, how: Rule, n: int) -> int | None:
    judgments = [
        Judgment("i", s, error="unparsable: x" if s is None else None, sample=j, meta=None if np.isnan(m) else m)
        for j, (s, m) in enumerate(rows)
    ]
    verdict = guided_vote("i", judgments, n, how) if isinstance(how, Guide) else vote("i", judgments, n, how)
    return verdict.winner


@pytest.mark.parametrize("how", ["sum", "majority", PAPER])
def test_the_leader_after_t_votes_is_that_of_the_vote(how: Rule) -> None:
    draw = np.random.default_rng(4)
    scores = draw.integers(0, 4, (60, 5, 3)).astype(float)
    scores[draw.random((60, 5)) < 0.2] = NAN
    metas = draw.normal(size=(60, 5))
    found = course(scores, 5, Stop("posterior"), how, meta_XT=metas)
    for row, meta, leaders in zip(scores, metas, found.leader_XT, strict=True):
        for t in range(1, 6):
            rows = [(None if np.isnan(s[0]) else list(s), m) for s, m in zip(row[:t], meta[:t], strict=True)]
            winner = _winner(rows, how, 3)
            assert leaders[t - 1] == (-1 if winner is None else winner)


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (3, 0), (4, 1), (5, 3), (9, 2)])
def test_posterior_of_votes_of_one_size_is_that_of_the_uniform_prior(wins: int, losses: int) -> None:
    scores = np.array([[[6.0, 1.0]] * wins + [[1.0, 6.0]] * losses])
    found = course(scores, 10_000_000, Stop("posterior"))
    assert found.sure_XT[0, -1] == pytest.approx(lead_probability(wins, losses), abs=1e-4)


def test_posterior_at_the_end_is_certain_and_ties_are_never_sure() -> None:
    scores = np.array([[[1.0, 1.0], [2.0, 1.0], [1.0, 2.0], [3.0, 1.0]]])
    found = course(scores, 4, Stop("posterior"))
    assert found.leader_XT.tolist() == [[-1, 0, -1, 0]]
    assert found.sure_XT[0, [0, 2]].tolist() == [0, 0]
    assert found.sure_XT[0, 3] == 1
    assert 0.5 < found.sure_XT[0, 1] < 1


def test_posterior_counts_a_tie_with_the_full_vote_as_lost() -> None:
    # 16 : 14 with two of 32 to come: the urn of 17 and 15 loses both, which is a tie, with 15/32 * 16/33 = 0.227. The
    # Beta distribution of their mean, with a step's correction, is near it and on the safe side.
    scores = np.array([[[1.0, 0.0]] * 16 + [[0.0, 1.0]] * 14])
    for how in ("sum", "majority"):
        sure = course(scores, 32, Stop("posterior"), how).sure_XT[0, -1]
        assert 0.69 < sure < 1 - 15 / 32 * 16 / 33
    # The same of a guided vote that counts all votes.
    guided = course(scores, 32, Stop("posterior"), Guide(threshold=0.0), meta_XT=np.ones((1, 30)))
    assert guided.sure_XT[0, -1] == pytest.approx(sure, abs=1e-9)


def test_posterior_of_a_majority_is_near_the_urns_at_every_split() -> None:
    k = 16
    for seen in range(1, k):
        for losses in range((seen + 1) // 2):
            wins, left = seen - losses, k - seen
            scores = np.array([[[1.0, 0.0]] * wins + [[0.0, 1.0]] * losses])
            sure = course(scores, k, Stop("posterior"), "majority").sure_XT[0, -1]
            # Lost where so many of those to come are against the leader that all k tie, or more.
            needed = math.ceil((wins - losses + left) / 2)
            lost = stats.betabinom(left, losses + 1, wins + 1).sf(needed - 1)
            assert -0.1 < sure - (1 - lost) < 0.005


def simulated(items: int, k: int, n: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Judges with a bias for each item and noise on 0..10, and meta scores; close races, so that errors are possible.

    `ties`: scores rounded to 0, 5 and 10. `missing`: a fifth of the votes is not there.
    """
    draw = np.random.default_rng(seed)
    level = 5 + draw.normal(0, 0.7, (items, 1, n))
    scores = np.clip(np.rint(level + draw.normal(0, 2.5, (items, k, n))), 0, 10)
    if kind == "ties":
        scores = np.rint(scores / 5) * 5
    if kind == "missing":
        scores[draw.random((items, k)) < 0.2] = NAN
    return scores, draw.normal(size=(items, k))


@pytest.mark.parametrize("kind", ["plain", "ties", "missing"])
@pytest.mark.parametrize(("how", "n", "block"), [("sum", 2, 1), ("majority", 2, 2), ("majority", 3, 3)])
def test_anytime_keeps_its_error(kind: str, how: Rule, n: int, block: int) -> None:
    k = 17
    scores, _ = simulated(1500, k, n, kind, seed=n)
    for alpha in (0.01, 0.1):
        stop = Stop("anytime", alpha)
        found = course(scores, k, stop, how, block=block)
        t = stopping_points(stops(found, stop, k, block))
        other = found.leader_XT[np.arange(1500), t - 1] != found.leader_XT[:, -1]
        assert other.mean() <= alpha
        assert ((t % block == 0) | (t == k)).all()
        if alpha == 0.1 and n == 2:
            assert t.mean() < k - 1  # it does stop


def test_anytime_of_a_guided_vote_keeps_its_error_and_stops() -> None:
    k, items = 16, 24
    scores, metas = simulated(items, k, 2, "missing", seed=9)
    scores[:16, :, 0] = np.where(np.isnan(scores[:16, :, 0]), NAN, 10)  # most items are clear
    scores[:16, :, 1] = np.where(np.isnan(scores[:16, :, 1]), NAN, 0)
    stop = Stop("anytime", 0.1)
    found = course(scores, k, stop, PAPER, block=2, meta_XT=metas)
    t = stopping_points(stops(found, stop, k, 2))
    assert (found.leader_XT[np.arange(items), t - 1] != found.leader_XT[:, -1]).mean() <= 0.1
    assert t[:16].mean() < k - 1


def test_what_is_said_online_is_what_is_said_of_the_whole() -> None:
    """A rule that has seen t votes says what it says at t of all k: it looks at nothing else."""
    scores, metas = simulated(8, 12, 2, "missing", seed=5)
    for rule in ("exact", "posterior", "anytime"):
        for how in ("sum", "majority", PAPER):
            whole = course(scores, 12, Stop(rule), how, block=2, meta_XT=metas)
            for t in (2, 6, 7):
                part = course(scores[:, :t], 12, Stop(rule), how, block=2, meta_XT=metas[:, :t])
                np.testing.assert_allclose(part.sure_XT, whole.sure_XT[:, :t], atol=1e-12)
                np.testing.assert_array_equal(part.leader_XT, whole.leader_XT[:, :t])


def test_spans_by_hand() -> None:
    stop = Stop("exact", low=1, high=5, width=1.0)
    found = span(np.array([[4.0, NAN, 5.0, 3.0]]), 4, stop)
    assert found.mean_XT.tolist() == [[4, 4, 4.5, 4]]
    # After one vote three could be 1 or 5; after three (two valid) one could be.
    assert found.low_XT[0].tolist() == pytest.approx([7 / 4, 2, 10 / 3, 4])
    assert found.high_XT[0].tolist() == pytest.approx([19 / 4, 14 / 3, 14 / 3, 4])
    assert stopping_points(stops(found, stop, 4)).tolist() == [4]  # 4.5 - 10/3 is more than 1
    wide = Stop("exact", low=1, high=5, width=1.2)
    assert stopping_points(stops(found, wide, 4)).tolist() == [3]
    assert stopping_points(stops(found, Stop("exact", low=1, high=5), 4)).tolist() == [4]  # no width: never early


@pytest.mark.parametrize("rule", ["exact", "posterior", "anytime"])
def test_spans_hold_the_mean_of_all(rule: str) -> None:
    draw = np.random.default_rng(6)
    k = 20
    scores = np.clip(np.rint(draw.normal(draw.uniform(2, 9, (120, 1)), 2, (120, k))), 0, 10)
    scores[draw.random((120, k)) < 0.15] = NAN
    stop = Stop(rule, 0.1, width=1.5)
    found = span(scores, k, stop)
    truth = np.nanmean(scores, axis=1)[:, None]
    outside = ((found.low_XT > truth + 1e-9) | (found.high_XT < truth - 1e-9)).any(axis=1)
    assert outside.mean() <= {"exact": 0, "posterior": 0.3, "anytime": 0.1}[rule]
    t = stopping_points(stops(found, stop, k))
    away = np.abs(found.mean_XT[np.arange(120), t - 1] - truth[:, 0])
    assert np.mean(away > 1.5) <= 0.1
    assert t.mean() < k


def test_bad_arguments() -> None:
    for bad in ({"alpha": 0}, {"alpha": 1}, {"low": 3, "high": 3}, {"high": math.inf}, {"width": 0}, {"rule": "soon"}):
        with pytest.raises(ValueError, match=r"expected|no range"):
            Stop(**{"rule": "exact", **bad})
    with pytest.raises(ValueError, match="outside of 0 to 10"):
        course(np.array([[[11.0, 0]]]), 2, Stop("exact"))
    for how in ("majority", PAPER):
        with pytest.raises(ValueError, match="a width is for the mean"):
            check_width(Stop("exact", width=1.0), how)
    with pytest.raises(ValueError, match="meta scores"):
        course(np.array([[[1.0, 0]]]), 2, Stop("exact"), PAPER)
    with pytest.raises(ValueError, match="at least 2"):
        course(np.array([[[1.0]]]), 2, Stop("exact"))
