"""Picking the next token: inverse-CDF sampling from per-sample random streams.

A sample's random numbers come from a counter-based generator keyed by its own seed (Philox4x32-10: Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"), one uniform for each position. The token at position t is the first
one whose cumulative probability exceeds u_t, so it depends on the seed, the position and the row's own logits, and on
nothing else in the batch. It is also much cheaper than `torch.multinomial`, whose generator runs on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BLOCK = 64  # uniforms drawn at a time
_NARROW = 1024  # the nucleus is looked for among this many most likely tokens first
_EXACT_IN_FLOAT32 = 4096  # a longer running sum is kept in float64
_COLDEST = 1e-30  # lower temperatures count as this one: logits divided by less leave the range of float32


class UniformStream:
    """Uniforms in [0, 1) by position; `stream[t]` depends on the seed and t alone. Read t in rising order."""

    __slots__ = ("_drawn", "_generator")

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=seed))
        self._drawn: list[float] = []

    def __getitem__(self, position: int) -> float:
        while position >= len(self._drawn):
            self._drawn.extend(self._generator.random(_BLOCK).tolist())
        return self._drawn[position]


def pick_tokens(
    logits_BV: Tensor, uniforms_B: Sequence[float], temperatures_B: Sequence[float], top_ps_B: Sequence[float]
) -> Tensor:
    """The next token of each row.

    Args:
        logits_BV: the model's logits.
        uniforms_B: one number in [0, 1) for each row.
        temperatures_B: >= 0; 0 takes the most likely token (the first of equals).
        top_ps_B: in (0, 1]; the smallest set of most likely tokens that holds at least this mass is sampled from.

    Returns:
        tokens_B: int64, on the logits' device; -1 for a row that is no distribution (NaN, +inf, or -inf throughout).
    """
    # NaN wins over every number here, so the largest logit tells for the whole row.
    broken_B = ~logits_BV.amax(dim=-1).isfinite()
    return _pick(logits_BV, uniforms_B, temperatures_B, top_ps_B).masked_fill(broken_B, -1)


def _pick(
    logits_BV: Tensor, uniforms_B: Sequence[float], temperatures_B: Sequence[float], top_ps_B: Sequence[float]
) -> Tensor:
    if not any(temperatures_B):
        return logits_BV.argmax(dim=-1)
    device = logits_BV.device
    scaled_BV = logits_BV.float()
    safe = [max(t, _COLDEST) if t else 1.0 for t in temperatures_B]
    first = safe[0]
    if any(t != first for t in safe):
        scaled_BV = scaled_BV / torch.tensor(safe, dtype=torch.float32, device=device)[:, None]
    elif first != 1.0:
        scaled_BV = scaled_BV / first
    weights_BV = torch.softmax(scaled_BV, dim=-1)
    if any(p < 1.0 for p in top_ps_B):
        weights_BV = keep_nucleus(weights_BV, torch.tensor(list(top_ps_B), dtype=torch.float32, device=device))
    wide = weights_BV.shape[-1] > _EXACT_IN_FLOAT32 and device.type != "mps"
    cdf_BV = weights_BV.cumsum(dim=-1, dtype=torch.float64 if wide else torch.float32)
    aims_B1 = torch.tensor(list(uniforms_B), dtype=cdf_BV.dtype, device=device)[:, None] * cdf_BV[:, -1:]
    # u * total may round up to the total itself; the last token with any weight is then meant.
    aims_B1 = torch.minimum(aims_B1, torch.nextafter(cdf_BV[:, -1:], torch.zeros_like(aims_B1)))
    tokens_B = torch.searchsorted(cdf_BV, aims_B1, right=True)[:, 0]
    if all(temperatures_B):
        return tokens_B
    greedy_B = torch.tensor([t == 0 for t in temperatures_B], device=device)
    return torch.where(greedy_B, logits_BV.argmax(dim=-1), tokens_B)


def keep_nucleus(weights_BV: Tensor, top_ps_B: Tensor) -> Tensor:
    """Probabilities with everything outside of each row's nucleus set to 0 (not renormalised).

    The nucleus (Holtzman et al. 2020, arXiv:1904.09751) is the smallest set of most likely tokens with a mass of at
    least top_p. Rows with top_p = 1 come back unchanged.
    """
    vocabulary = weights_BV.shape[-1]
    for width in (min(_NARROW, vocabulary), vocabulary):
        top_BW, where_BW = weights_BV.topk(width, dim=-1)
        mass_BW = top_BW.cumsum(dim=-1, dtype=torch.float64 if top_BW.device.type != "mps" else torch.float32)
        found_B = (mass_BW[:, -1] >= top_ps_B) | (top_ps_B >= 1)
        if width == vocabulary or bool(found_B.all()):
            break
    before_BW = mass_BW - top_BW
    inside_BW = torch.where(before_BW < top_ps_B[:, None], top_BW, torch.zeros_like(top_BW))
    kept_BV = torch.zeros_like(weights_BV).scatter_(-1, where_BW, inside_BW)
    return torch.where((top_ps_B >= 1)[:, None], weights_BV, kept_BV)


def token_logprobs(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """Log-probability of each row's token under the unscaled distribution, in float32: shape B."""
    logits_BV = logits_BV.float()
    chosen_B = logits_BV.gather(-1, tokens_B[:, None])[:, 0]
    return chosen_B - torch.logsumexp(logits_BV, dim=-1)


def likeliest(logits_BV: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """For each row the `count` most likely tokens with their log-probabilities, unscaled, in float32."""
    if not count:
        return []
    logits_BV = logits_BV.float()
    top_BW, ids_BW = logits_BV.topk(min(count, logits_BV.shape[-1]), dim=-1)
    top_BW = top_BW - torch.logsumexp(logits_BV, dim=-1, keepdim=True)
    return [list(zip(ids, top, strict=True)) for ids, top in zip(ids_BW.tolist(), top_BW.tolist(), strict=True)]
