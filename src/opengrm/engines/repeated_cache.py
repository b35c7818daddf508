"""Decoding with transformers' own cache, repeated for every sample: the plain path, for any architecture.

Prompts admitted together form a *cohort*: left-padded, prefilled once each, their cache rows then repeated. A cohort
keeps its own cache for as long as it has rows, so caches of different lengths are never merged, and sliding windows,
recurrent states and whatever else a model's cache holds are handled by the model's own code.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from opengrm.engines.shared_prefix import bundles

# Layers that an attention mask makes blind to padding. Others (recurrent states) see equal lengths only.
_MASKED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


@dataclass
class _Cohort:
    cache: Any
    mask_RN: Tensor
    positions_R1: Tensor
    rows: list[int]


class RepeatedCacheRows:
    """The batch's state on this path. Rows are numbered 0..R-1 in the order in which they were admitted or kept."""

    def __init__(self, model: Any, *, prefill_tokens: int) -> None:
        self.model = model
        self.device = model.device
        self.prefill_tokens = prefill_tokens
        self.cohorts: list[_Cohort] = []
        self._last_position = (getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31) - 1
        self._takes = set(inspect.signature(model.forward).parameters)
        layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
        self._padding = 0.5 if set(layers) <= _MASKED_LAYERS else 1.0

    def __len__(self) -> int:
        return sum(len(cohort.rows) for cohort in self.cohorts)

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Add a row for each prompt; equal prompts of one call share one prefill.

        Returns:
            logits_NV: the distribution of each new row's first token.
        """
        first = len(self)
        distinct = list(dict.fromkeys(prompts))
        found: dict[int, Tensor] = {}
        for group in bundles(distinct, self.prefill_tokens, share=self._padding):
            chosen = [distinct[i] for i in group]
            mine = [n for prompt in chosen for n, other in enumerate(prompts) if other == prompt]
            logits_GV, cohort = self._prefill(chosen)
            source = torch.tensor([chosen.index(prompts[n]) for n in mine], device=self.device)
            self._select(cohort, source)
            cohort.rows = [first + n for n in mine]
            self.cohorts.append(cohort)
            found.update(zip(mine, logits_GV[source], strict=True))
        return torch.stack([found[n] for n in range(len(prompts))])

    def step(self, tokens_R: Tensor) -> Tensor:
        """Feed one token to every row; returns logits_RV of the next."""
        results: dict[int, Tensor] = {}
        for cohort in self.cohorts:
            index = torch.tensor(cohort.rows, device=self.device)
            cohort.mask_RN = torch.cat([cohort.mask_RN, cohort.mask_RN.new_ones((len(cohort.rows), 1))], dim=1)
            logits_RV = self._forward(tokens_R[index][:, None], cohort.mask_RN, cohort.positions_R1, cohort.cache)
            # Finished rows that still stand in the batch may not walk off a learned position table.
            cohort.positions_R1 = (cohort.positions_R1 + 1).clamp(max=self._last_position)
            if len(self.cohorts) == 1 and cohort.rows == list(range(len(cohort.rows))):
                return logits_RV
            results.update(zip(cohort.rows, logits_RV, strict=True))
        return torch.stack([results[row] for row in range(len(results))])

    def keep(self, rows: Sequence[int], wanted: Collection[tuple[int, ...]] = ()) -> None:
        """Drop all rows but these. (`wanted` prompts are not kept here: their cache belongs to their rows.)"""
        new = {row: place for place, row in enumerate(rows)}
        for cohort in self.cohorts:
            alive = [i for i, row in enumerate(cohort.rows) if row in new]
            if alive and len(alive) < len(cohort.rows):
                self._select(cohort, torch.tensor(alive, device=self.device))
            cohort.rows = [new[row] for row in cohort.rows if row in new]
        self.cohorts = [cohort for cohort in self.cohorts if cohort.rows]

    def _prefill(self, prompts: list[tuple[int, ...]]) -> tuple[Tensor, _Cohort]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[*[p[0]] * (longest - len(p)), *p] for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        cache = DynamicCache(config=self.model.config)
        logits_GV = self._forward(ids, mask, (mask.cumsum(dim=-1) - 1).clamp(min=0), cache)
        lengths_G1 = torch.tensor([[len(p)] for p in prompts], device=self.device)
        return logits_GV, _Cohort(cache, mask, lengths_G1, [])

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        extra: dict[str, Any] = {}
        if "position_ids" in self._takes:
            extra["position_ids"] = positions
        if "logits_to_keep" in self._takes:
            extra["logits_to_keep"] = 1
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        logits: Tensor = output.logits[:, -1]
        return logits

    @staticmethod
    def _select(cohort: _Cohort, index: Tensor) -> None:
        cohort.cache.reorder_cache(index)
        cohort.mask_RN = cohort.mask_RN[index]
        cohort.positions_R1 = cohort.positions_R1[index]
