"""Picking tokens: the right distribution, from streams that depend on seed and position alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'local' is not installed")

from opengrm.engines.base import Sampling  # noqa: E402
from opengrm.engines.sampling import UniformStream, keep_nucleus, likeliest, pick_tokens, token_logprobs  # noqa: E402

LOGITS = [2.0, 1.0, 0.0, -1.0, 0.5]


def pick(logits: list[float], uniforms: list[float], temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
    count = len(uniforms)
    rows = torch.tensor([logits] * count)
    return pick_tokens(rows, uniforms, [temperature] * count, [top_p] * count).tolist()


def test_a_stream_depends_on_seed_and_position_alone() -> None:
    by_position = [UniformStream(7)[t] for t in (0, 3, 200)]
    whole = UniformStream(7)
    assert [whole[t] for t in range(201)][200] == by_position[2]
    assert [whole[0], whole[3]] == by_position[:2]
    assert UniformStream(8)[0] != by_position[0]
    assert UniformStream(2**63 - 1)[0] != UniformStream(2**62)[0]
    drawn = np.array([UniformStream(seed)[0] for seed in range(4000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # First numbers of neighbouring seeds: mean 1/2 and no correlation (standard errors 0.0046 and 0.016).
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.06


def test_inverse_cdf_by_hand() -> None:
    logits = [math.log(p) for p in (0.5, 0.25, 0.25)]
    assert pick(logits, [0.0, 0.49, 0.51, 0.74, 0.76, 0.9999999]) == [0, 0, 1, 1, 2, 2]


def test_a_token_without_weight_is_never_picked() -> None:
    assert pick([-math.inf, 0.0, -math.inf, 0.0, -math.inf], [0.0, 0.49, 0.51, 1 - 1e-17]) == [1, 1, 3, 3]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.8)])
def test_distribution(temperature: float, top_p: float) -> None:
    from scipy.stats import chisquare

    count = 20_000
    stream = UniformStream(5)
    tokens = pick(LOGITS, [stream[t] for t in range(count)], temperature, top_p)
    weights = np.exp(np.array(LOGITS) / temperature)
    weights /= weights.sum()
    if top_p < 1:  # 0.56 + 0.21 < 0.8, so the third (0.5) belongs to the nucleus and the fourth does not
        weights[[2, 3]] = 0
        weights /= weights.sum()
    seen = np.bincount(tokens, minlength=5)
    assert (seen[weights == 0] == 0).all()
    assert chisquare(seen[weights > 0], weights[weights > 0] * count).pvalue > 1e-3


def test_wide_vocabularies_reach_their_last_tokens() -> None:
    wide = torch.zeros((3, 50_000))
    assert pick_tokens(wide, [0.0, 0.5, 1 - 1e-9], [1.0] * 3, [1.0] * 3).tolist() == [0, 25_000, 49_999]


def test_zero_temperature_is_the_most_likely_and_rows_may_differ() -> None:
    rows = torch.tensor([[0.0, 3.0, 3.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    assert pick_tokens(rows, [0.9] * 3, [0.0] * 3, [1.0] * 3).tolist() == [1, 2, 0]
    assert pick_tokens(rows, [0.9] * 3, [0.0, 0.0, 1.0], [1.0] * 3).tolist() == [1, 2, 2]


def test_nucleus_keeps_the_smallest_set() -> None:
    weights = torch.tensor([[0.1, 0.5, 0.15, 0.25]] * 3)
    kept = keep_nucleus(weights, torch.tensor([0.5, 0.6, 1.0]))
    assert kept.tolist()[0] == pytest.approx([0, 0.5, 0, 0])
    assert kept.tolist()[1] == pytest.approx([0, 0.5, 0, 0.25])
    assert kept.tolist()[2] == weights.tolist()[2]


def test_nucleus_of_a_flat_wide_distribution() -> None:
    kept = keep_nucleus(torch.full((1, 5000), 1 / 5000), torch.tensor([0.9]))
    assert int((kept > 0).sum()) in (4500, 4501)


def test_logprobs_are_of_the_unscaled_distribution() -> None:
    got = token_logprobs(torch.tensor([LOGITS, LOGITS]), torch.tensor([0, 3])).tolist()
    total = math.log(sum(map(math.exp, LOGITS)))
    assert got == pytest.approx([2.0 - total, -1.0 - total], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_rows_without_a_distribution_are_marked(temperature: float) -> None:
    inf, nan = math.inf, math.nan
    rows = torch.tensor([[0.0, nan, 1.0], [0.0, inf, 1.0], [-inf, -inf, -inf], [-inf, 9.0, -inf]])
    for values in (rows, rows.bfloat16(), torch.cat([rows, torch.full((4, 5000), -inf)], dim=-1)):
        assert pick_tokens(values, [0.9] * 4, [temperature] * 4, [0.9] * 4).tolist() == [-1, -1, -1, 1]


@pytest.mark.parametrize("temperature", [1e-39, 1e-45, 1e-300, 1e-30])
def test_temperatures_next_to_zero_are_greedy(temperature: float) -> None:
    assert pick([1.0, 1000.0, 999.0], [0.0, 0.5, 1 - 1e-9], temperature) == [1, 1, 1]
    rows = torch.tensor([[1.0, 1000.0, 999.0]] * 2)
    assert pick_tokens(rows, [0.5] * 2, [temperature, 1.0], [1.0] * 2).tolist() == [1, 1]


def test_settings_are_finite_and_of_one_type() -> None:
    for temperature in (math.inf, math.nan, -1):
        with pytest.raises(ValueError, match="temperature is"):
            Sampling(temperature=temperature)
    with pytest.raises(ValueError, match="top_p is nan"):
        Sampling(top_p=math.nan)
    assert repr(Sampling(temperature=1, top_p=1)) == repr(Sampling(temperature=1.0, top_p=1.0))
    assert repr(Sampling(temperature=-0.0)) == repr(Sampling(temperature=0))


def test_the_likeliest_tokens_with_their_log_probabilities() -> None:
    rows = torch.tensor([LOGITS, LOGITS[::-1]])
    total = math.log(sum(math.exp(x) for x in LOGITS))
    first, second = likeliest(rows, 2)
    assert [token for token, _ in first] == [0, 1]
    assert [token for token, _ in second] == [4, 3]
    assert [value for _, value in first] == pytest.approx([2.0 - total, 1.0 - total])
    assert len(likeliest(rows, 20)[0]) == 5
    assert likeliest(rows, 0) == []


def test_alternatives_go_with_log_probabilities() -> None:
    assert Sampling(logprobs=True, alternatives=20).alternatives == 20
    for settings in ({"alternatives": 1}, {"logprobs": True, "alternatives": 21}, {"alternatives": -1}):
        with pytest.raises(ValueError, match="alternatives is"):
            Sampling(**settings)  # type: ignore[arg-type]
