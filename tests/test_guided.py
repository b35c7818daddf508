"""Meta-guided votes: the paper's own vectors, ties, thresholds, weights, and many subsets at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opengrm.errors import BadRow
from opengrm.judgments import Judgment
from opengrm.voting import vote
from opengrm.voting.guided import Guide, guided_totals, guided_vote, judgment_weights

FIGURE_3 = [(1, 5), (5, 6), (4, 8), (7, 6)]


def judged(scores: list[tuple[float, ...] | None], metas: list[float | None]) -> list[Judgment]:
    return [
        Judgment("q", s, None if s else "unparsable: no box", sample=j, meta=m)
        for j, (s, m) in enumerate(zip(scores, metas, strict=True))
    ]


def test_figure_3_of_the_paper() -> None:
    judgments = judged(FIGURE_3, [1.2, -0.3, 2.0, -1.5])  # type: ignore[arg-type]
    assert vote("q", judgments).scores == (17, 25)
    verdict = guided_vote("q", judgments)
    assert (verdict.scores, verdict.winner, verdict.asked, verdict.valid, verdict.used) == ((5, 13), 1, 4, 4, 2)


def test_table_17_of_the_paper() -> None:
    """Scores (8,8), (9,5), (10,7) as shown, samples 2 and 3 in reversed order; meta scores as printed there."""
    judgments = judged([(8, 8), (5, 9), (7, 10)], [-15.7781, 1.3126, 1.6739])
    assert vote("q", judgments).scores == (20, 27)
    assert guided_vote("q", judgments, guide=Guide(k_meta=1)).scores == (7, 10)
    assert guided_vote("q", judgments).scores == (12, 19)  # k = 3: two of three


@pytest.mark.parametrize(("valid", "kept"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (8, 4), (32, 16)])
def test_half_of_the_valid_judgments_count(valid: int, kept: int) -> None:
    judgments = judged([*[(1, 2)] * valid, None, None], [*range(valid), None, None])
    verdict = guided_vote("q", judgments)
    assert (verdict.valid, verdict.used, verdict.scores) == (valid, kept, (kept, 2 * kept))


def test_k_meta_beyond_the_valid_ones_is_the_plain_vote() -> None:
    judgments = judged(FIGURE_3, [0.0, 1.0, 2.0, 3.0])  # type: ignore[arg-type]
    assert guided_vote("q", judgments, guide=Guide(k_meta=9)).scores == (17, 25)


def test_ties_at_the_cut_share_the_places() -> None:
    # One place is taken by the first; the three that tie share the other one: 1/3 each.
    assert judgment_weights([5.0, 1.0, 1.0, 1.0]) == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    verdict = guided_vote("q", judged([(9, 1), (3, 6), (6, 3), (3, 3)], [5.0, 1.0, 1.0, 1.0]))
    assert verdict.scores == pytest.approx((9 + 4, 1 + 4))
    assert verdict.used == 4
    # The expected value of a random pick: every pair with the first, equally likely.
    pairs = [(9 + a, 1 + b) for a, b in ((3, 6), (6, 3), (3, 3))]
    assert verdict.scores == pytest.approx([sum(p[i] for p in pairs) / 3 for i in (0, 1)])


def test_order_of_the_judgments_does_not_matter() -> None:
    judgments = judged(FIGURE_3, [1.0, 1.0, 1.0, 0.0])  # type: ignore[arg-type]
    assert guided_vote("q", judgments) == guided_vote("q", judgments[::-1])


def test_judgments_without_a_meta_score_come_last() -> None:
    assert judgment_weights([None, -9.0, None, -8.0]) == [0, 1, 0, 1]
    assert judgment_weights([None, -9.0, None, None], Guide(k_meta=2)) == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])
    plain, guided = (f("q", judged(FIGURE_3, [None] * 4)) for f in (vote, guided_vote))  # type: ignore[arg-type]
    assert guided.scores == pytest.approx([s / 2 for s in plain.scores or ()])
    assert guided.ranking == plain.ranking


def test_threshold() -> None:
    metas = [0.5, -0.1, 0.0, -3.0]
    assert judgment_weights(metas, Guide(threshold=0)) == [1, 0, 1, 0]
    assert judgment_weights(metas, Guide(threshold=0, k_meta=1)) == [1, 0, 0, 0]
    assert judgment_weights(metas, Guide(threshold=2)) == [1, 0, 0, 0]  # none reaches it: the best one
    assert judgment_weights([0.5, 0.5, -1.0], Guide(threshold=2)) == [0.5, 0.5, 0]
    assert judgment_weights([None, -1.0], Guide(threshold=-2)) == [0, 1]


def test_weights() -> None:
    sigmoid = [1 / (1 + math.exp(-m)) for m in (2.0, 0.0, -2.0)]
    assert judgment_weights([2.0, 0.0, -2.0, None], Guide(weights=True)) == pytest.approx([*sigmoid, 0])
    assert judgment_weights([2.0, 0.0, -2.0], Guide(weights=True, k_meta=1)) == pytest.approx([sigmoid[0], 0, 0])
    assert judgment_weights([None, None], Guide(weights=True)) == [1, 1]
    assert judgment_weights([-1000.0, 1000.0], Guide(weights=True)) == [0, 1]
    verdict = guided_vote("q", judged([(1, 2), (2, 1)], [2.0, 0.0]), guide=Guide(weights=True))
    assert verdict.scores == pytest.approx((sigmoid[0] + 1, 2 * sigmoid[0] + 0.5))


def test_nothing_valid_and_wrong_sizes() -> None:
    verdict = guided_vote("q", judged([None, None], [None, None]))
    assert (verdict.scores, verdict.asked, verdict.valid, verdict.used) == (None, 2, 0, 0)
    with pytest.raises(BadRow, match="3 scores for 2 responses"):
        guided_vote("q", judged([(1, 2), (1, 2, 3)], [1.0, 2.0]))
    with pytest.raises(ValueError, match="k_meta is 0"):
        Guide(k_meta=0)
    with pytest.raises(ValueError, match="threshold"):
        Guide(threshold=math.nan)


@pytest.mark.parametrize(
    "guide",
    [
        Guide(), Guide(k_meta=1), Guide(k_meta=3), Guide(threshold=0.0), Guide(weights=True),
        Guide(k_meta=2, threshold=0.5, weights=True),
    ],
)  # fmt: skip
def test_many_subsets_at_once_equal_one_vote_each(guide: Guide) -> None:
    draw = np.random.default_rng(0)
    items, samples, n = 20, 6, 3
    scores_IKN = draw.integers(1, 11, size=(items, samples, n)).astype(float)
    scores_IKN[draw.random((items, samples)) < 0.2] = np.nan
    meta_IK = draw.integers(-2, 3, size=(items, samples)).astype(float)  # many ties
    meta_IK[draw.random((items, samples)) < 0.2] = np.nan
    masks_RK = (draw.random((15, samples)) < 0.6).astype(float)
    found = guided_totals(scores_IKN, meta_IK, masks_RK, guide)
    for i in range(items):
        for r, mask_K in enumerate(masks_RK):
            chosen = [k for k in range(samples) if mask_K[k]]
            judgments = [
                Judgment(
                    "q",
                    None if np.isnan(scores_IKN[i, k, 0]) else tuple(scores_IKN[i, k]),
                    "unparsable: x" if np.isnan(scores_IKN[i, k, 0]) else None,
                    sample=k,
                    meta=None if np.isnan(meta_IK[i, k]) else float(meta_IK[i, k]),
                )
                for k in chosen
            ]
            verdict = guided_vote("q", judgments, n, guide)
            assert verdict.used == found.used_IR[i, r]
            assert (found.weight_IR[i, r] > 0) == (verdict.scores is not None)
            if verdict.scores is not None:
                assert found.totals_IRN[i, r].tolist() == pytest.approx(verdict.scores, abs=1e-9)
