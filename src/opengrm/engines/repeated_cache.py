"""Decoding with transformers' own cache, repeated for every sample: the plain path, for any architecture.

Prompts admitted together are left-padded, prefilled once each, and their cache rows repeated: a *cohort*, with one
cache and one forward a step. Cohorts of like lengths are merged where every layer of the cache is one of attention
(padded on the left to the longest), so that all prompts really decode together. Recurrent states and whatever else a
model's cache holds are left to the model's own code: there a cohort stays by itself for as long as it has rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from opengrm.engines.shared_prefix import bundles, innermost, rope_types
from opengrm.errors import EngineError

# Layers that an attention mask makes blind to padding. Others (recurrent states) see equal lengths only.
_MASKED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_PADDING = 0.5  # rows of a padded cohort are at least this share of its longest


def forward_parameters(model: Any) -> frozenset[str]:
    """Names that the model's own forward takes, whatever wraps it.

    Raises:
        EngineError: `past_key_values` is not among them. Such a model (Mamba, RWKV) would swallow our cache unread,
            and continue every sample from its last token alone.
    """
    inner = innermost(model)
    taken = frozenset(inspect.signature(inner.forward).parameters)
    if "past_key_values" not in taken:
        raise EngineError(
            f"{type(inner).__name__} keeps its state elsewhere than in past_key_values, so the transformers engine "
            "cannot run it: serve it (vLLM, for instance) and use the openai engine"
        )
    return taken


def rope_turn(model: Any) -> int | None:
    """The length at which a longrope model changes its rotary embedding; None for others.

    Its frequencies are one set where the longest row of a forward has at most so many tokens, and another beyond,
    while the cache keeps keys of the set that held when they were made. So every sample has to stay on one side, and
    rows of the two sides never share a forward.
    """
    config = innermost(model).config.get_text_config()
    if "longrope" not in rope_types(config):
        return None
    each = [config.rope_parameters, *(p for p in config.rope_parameters.values() if isinstance(p, dict))]
    return min(int(p["original_max_position_embeddings"]) for p in each if p.get("rope_type") == "longrope")


@dataclass
class _Cohort:
    cache: Any
    mask_RN: Tensor
    positions_R1: Tensor
    last_position: int  # finished rows that still stand in the batch may not walk further
    rows: list[int]

    def select(self, kept: list[int]) -> None:
        """Take these rows, in this order; and drop columns that are padding in all of them."""
        index = torch.tensor(kept, device=self.mask_RN.device)
        self.cache.reorder_cache(index)
        self.mask_RN = self.mask_RN[index]
        self.positions_R1 = self.positions_R1[index]
        unused = int(self.mask_RN.any(dim=0).int().argmax())
        if unused and self.attention_only:
            self._resize(self.mask_RN.shape[1] - unused)

    @property
    def attention_only(self) -> bool:
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.cache.layers)

    def takes(self, other: _Cohort, share: float) -> bool:
        """Whether the two can be merged: caches of attention alone, like lengths, one side of `rope_turn`.

        Rows of like lengths are at least `share` of the longest; a share of 1 is for rows without any padding.
        """
        longest = max(self.mask_RN.shape[1], other.mask_RN.shape[1])
        shortest = min(int(cohort.mask_RN.sum(dim=1).min()) for cohort in (self, other))
        alike = shortest >= share * longest and self.last_position == other.last_position
        return alike and self.attention_only and other.attention_only

    def merge(self, other: _Cohort) -> None:
        """Append the other's rows."""
        longest = max(self.mask_RN.shape[1], other.mask_RN.shape[1])
        self._resize(longest)
        other._resize(longest)
        for mine, its in zip(self.cache.layers, other.cache.layers, strict=True):
            if mine.is_initialized:  # layers that share another's keys stay empty
                mine.keys, mine.values = torch.cat([mine.keys, its.keys]), torch.cat([mine.values, its.values])
        self.mask_RN = torch.cat([self.mask_RN, other.mask_RN])
        self.positions_R1 = torch.cat([self.positions_R1, other.positions_R1])
        self.rows += other.rows

    def _resize(self, columns: int) -> None:
        """Add columns of padding in front, or take such columns away."""
        more = columns - self.mask_RN.shape[1]
        if more == 0:
            return
        self.mask_RN = pad(self.mask_RN, (more, 0))  # a negative pad cuts
        for layer in self.cache.layers:
            if not layer.is_initialized:
                continue
            held = columns
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = columns
                held = min(columns, layer.sliding_window - 1)
            lacking = held - layer.keys.shape[2]
            layer.keys, layer.values = (pad(t, (0, 0, lacking, 0)) for t in (layer.keys, layer.values))


class RepeatedCacheRows:
    """The batch's state on this path. Rows are numbered 0..R-1 in the order in which they were admitted or kept."""

    def __init__(self, model: Any, *, prefill_tokens: int) -> None:
        inner = innermost(model)
        self.model = model
        self.device = inner.device
        self.prefill_tokens = prefill_tokens
        self.cohorts: list[_Cohort] = []
        self._takes = forward_parameters(model)
        self._config = inner.config
        self._turn = rope_turn(model)
        text_config = inner.config.get_text_config()
        self._last_position = (getattr(text_config, "max_position_embeddings", None) or 2**31) - 1
        layers = getattr(text_config, "layer_types", None) or ()
        # Without `position_ids` a model may number padding like tokens.
        padded = set(layers) <= _MASKED_LAYERS and "position_ids" in self._takes
        self._padding = _PADDING if padded else 1.0

    def __len__(self) -> int:
        return sum(len(cohort.rows) for cohort in self.cohorts)

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Add a row for each prompt; equal prompts of one call share one prefill.

        Returns:
            logits_NV: the distribution of each new row's first token.
        """
        first = len(self)
        found: dict[int, Tensor] = {}
        for side in (True, False):
            distinct = [p for p in dict.fromkeys(prompts) if self._short(p) == side]
            for group in bundles(distinct, self.prefill_tokens, share=self._padding):
                chosen = [distinct[i] for i in group]
                mine = [n for prompt in chosen for n, other in enumerate(prompts) if other == prompt]
                logits_GV, cohort = self._prefill(chosen)
                source = [chosen.index(prompts[n]) for n in mine]
                cohort.select(source)
                cohort.rows = [first + n for n in mine]
                self._join(cohort)
                found.update(zip(mine, logits_GV[source], strict=True))
        return torch.stack([found[n] for n in range(len(prompts))])

    def step(self, tokens_R: Tensor) -> Tensor:
        """Feed one token to every row; returns logits_RV of the next."""
        results: list[Tensor] = []
        order: list[int] = []
        for cohort in self.cohorts:
            index = torch.tensor(cohort.rows, device=self.device)
            cohort.mask_RN = pad(cohort.mask_RN, (0, 1), value=1)
            logits_RV = self._forward(tokens_R[index][:, None], cohort.mask_RN, cohort.positions_R1, cohort.cache)
            cohort.positions_R1 = (cohort.positions_R1 + 1).clamp(max=cohort.last_position)
            results.append(logits_RV)
            order.extend(cohort.rows)
        if len(results) == 1 and order == list(range(len(order))):
            return results[0]
        return torch.cat(results)[torch.tensor(order, device=self.device).argsort()]

    def keep(self, rows: Sequence[int], wanted: Collection[tuple[int, ...]] = ()) -> None:
        """Drop all rows but these. (`wanted` prompts are not kept here: their cache belongs to their rows.)"""
        new = {row: place for place, row in enumerate(rows)}
        for cohort in self.cohorts:
            alive = [i for i, row in enumerate(cohort.rows) if row in new]
            if alive and len(alive) < len(cohort.rows):
                cohort.select(alive)
            cohort.rows = [new[row] for row in cohort.rows if row in new]
        self.cohorts = [cohort for cohort in self.cohorts if cohort.rows]

    def _short(self, prompt: tuple[int, ...]) -> bool:
        return self._turn is None or len(prompt) <= self._turn

    def _join(self, new: _Cohort) -> None:
        for cohort in self.cohorts:
            if cohort.takes(new, self._padding):
                cohort.merge(new)
                return
        self.cohorts.append(new)

    def _prefill(self, prompts: list[tuple[int, ...]]) -> tuple[Tensor, _Cohort]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[*[p[0]] * (longest - len(p)), *p] for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        cache = DynamicCache(config=self._config)
        logits_GV = self._forward(ids, mask, (mask.cumsum(dim=-1) - 1).clamp(min=0), cache)
        lengths_G1 = torch.tensor([[len(p)] for p in prompts], device=self.device)
        last = self._last_position
        if self._turn is not None and self._short(prompts[0]):
            last = self._turn - 1
        return logits_GV, _Cohort(cache, mask, lengths_G1.clamp(max=last), last, [])

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        extra: dict[str, Any] = {}
        if "position_ids" in self._takes:
            extra["position_ids"] = positions
        if "logits_to_keep" in self._takes:
            extra["logits_to_keep"] = 1
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        logits: Tensor = output.logits[:, -1]
        return logits
