"""A packed row: many continuations behind few prompts in one forward and backward pass, with one copy of each prompt.

A micro-batch becomes ONE row without padding,

    prompt 1, prompt 2, ...
    continuation 1, continuation 2, ...

so that every layer but attention works on distinct tokens only. In attention a prompt attends to itself, and a
continuation to its prompt and to itself: the same function as the padded batch, so the same values and the same
gradients up to rounding. (The idea is Prefix Grouper's, arXiv:2506.05433.)

The attention function is registered with transformers' `AttentionInterface`, as the sampler's is; the model's own
forward runs, wrapped or not (DistributedDataParallel, PEFT). `shared_prefix.serves` says which models can.

Shape letters: B continuations, C padded continuation length, G distinct prompts, P padded prompt length, N packed
tokens (prompts first), K continuation tokens (the last K of the N), H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "opengrm_packed"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of a micro-batch stand in its packed row.

    Attributes:
        tokens_1N, positions_1N: the packed row.
        mask_BC: which places of the padded continuations hold a token.
        group_B: which of the G prompts a continuation has.
        prompt_pad, prompt_unpad, completion_pad, completion_unpad: index maps between the packed row and the padded
            forms that attention works on, see `_Move`; counted from the first prompt's or continuation's token.
        prompts_GP: which places of the padded prompts (on the right) hold a token.
        seen_B1CS: what a continuation's query may see: its prompt (P places), then its own tokens (C places).
        targets_K: where tokens are predicted, the one that follows each continuation token.
    """

    tokens_1N: Tensor
    positions_1N: Tensor
    mask_BC: Tensor
    group_B: Tensor
    prompt_pad: Tensor
    prompt_unpad: Tensor
    completion_pad: Tensor
    completion_unpad: Tensor
    prompts_GP: Tensor
    seen_B1CS: Tensor
    targets_K: Tensor | None = None

    @property
    def last_B(self) -> Tensor:
        """Where in the packed row each continuation's last token stands."""
        return len(self.prompt_unpad) + self.mask_BC.sum(dim=1).cumsum(0) - 1

    def to(self, device: Any, **options: Any) -> Layout:
        """The same on that device, as `Tensor.to`; loaders move a batch's parts by it."""
        held = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {name: None if v is None else v.to(device, **options) for name, v in held}
        return Layout(**moved)


def lay_out(prompt_ids_GP: Tensor, held_GP: Tensor, group_B: Tensor, ids_BC: Tensor, mask_BC: Tensor) -> Layout:
    """The layout of these prompts and continuations.

    Args:
        prompt_ids_GP, held_GP: the prompts, padded on either side, and which places hold a token. One may be empty.
        group_B: the prompt of each continuation.
        ids_BC, mask_BC: the continuations, padded on the right, and which places hold a token: at least one in a row.
    """
    device, columns = ids_BC.device, ids_BC.shape[1]
    length_G = held_GP.sum(dim=1)
    longest = int(length_G.max())
    prompts_GP = torch.arange(longest, device=device)[None] < length_G[:, None]
    prompt_positions = torch.arange(longest, device=device).expand(len(length_G), -1)[prompts_GP]
    steps_C = torch.arange(columns, device=device)
    positions_BC = length_G[group_B][:, None] + steps_C[None]
    causal_CC = steps_C[:, None] >= steps_C[None]
    seen_BCP = prompts_GP[group_B][:, None].expand(-1, columns, -1)
    seen_BCS = torch.cat([seen_BCP, causal_CC.expand(len(group_B), -1, -1)], dim=-1)
    prompt_pad, prompt_unpad = _maps(prompts_GP)
    completion_pad, completion_unpad = _maps(mask_BC)
    return Layout(
        tokens_1N=torch.cat([prompt_ids_GP[held_GP], ids_BC[mask_BC]])[None],
        positions_1N=torch.cat([prompt_positions, positions_BC[mask_BC]])[None],
        mask_BC=mask_BC,
        group_B=group_B,
        prompt_pad=prompt_pad,
        prompt_unpad=prompt_unpad,
        completion_pad=completion_pad,
        completion_unpad=completion_unpad,
        prompts_GP=prompts_GP,
        seen_B1CS=seen_BCS[:, None],
    )


def _maps(held_XY: Tensor) -> tuple[Tensor, Tensor]:
    """For each padded place the packed one (any one for padding), and for each packed place the padded one."""
    pad = (held_XY.flatten().cumsum(0) - 1).clamp(min=0)
    return pad, held_XY.flatten().nonzero()[:, 0]


@contextmanager
def attending(*models: Any) -> Iterator[None]:
    """These models attend by the layout that their forward is given; afterwards they are as they were."""
    configs = [model.config for model in models]
    before = [config._attn_implementation_internal for config in configs]
    for config in configs:
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


class _Move(torch.autograd.Function):
    """Rows from one form to the other, `result[i] = source[there[i]]`, with a gather for the backward pass as well.

    Padding reads an arbitrary row on the way into the padded form, and its gradient is 0 because nothing real sees it;
    on the way out it is not read, so its gradient must be set to 0 (`real`).
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, there: Tensor, back: Tensor, real: Tensor | None) -> Tensor:
        ctx.back, ctx.real = back, real
        return source.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        moved = gradient.index_select(0, ctx.back)
        if ctx.real is not None:
            moved = moved.masked_fill(~ctx.real[:, None], 0.0)
        return moved, None, None, None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    opengrm_layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """One layer's attention: (1, H, N, D) in, (1, N, H, D) out."""
    assert opengrm_layout is not None, "this attention needs the layout of a packed micro-batch"
    layout = opengrm_layout
    groups, longest = layout.prompts_GP.shape
    rows, columns = layout.mask_BC.shape
    prompt_tokens = len(layout.prompt_unpad)
    flat = [x[0].transpose(0, 1).flatten(1) for x in (query, key, value)]
    heads = [x.shape[1] for x in (query, key, value)]
    sizes = [x.shape[-1] for x in (query, key, value)]

    def padded(which: int, prompts: bool) -> Tensor:
        """(G, H, P, D) or (B, H, C, D) of the query, key or value."""
        size, length = (groups, longest) if prompts else (rows, columns)
        part = flat[which][:prompt_tokens] if prompts else flat[which][prompt_tokens:]
        there = layout.prompt_pad if prompts else layout.completion_pad
        back = layout.prompt_unpad if prompts else layout.completion_unpad
        moved: Tensor = _Move.apply(part, there, back, None)  # type: ignore[no-untyped-call]
        return moved.view(size, length, heads[which], sizes[which]).transpose(1, 2)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    shared = heads[0] != heads[1]
    keys, values = padded(1, True), padded(2, True)
    on_prompts = sdpa(padded(0, True), keys, values, is_causal=True, scale=scaling, enable_gqa=shared)
    all_keys = torch.cat([keys.index_select(0, layout.group_B), padded(1, False)], dim=2)
    all_values = torch.cat([values.index_select(0, layout.group_B), padded(2, False)], dim=2)
    on_completions = sdpa(
        padded(0, False), all_keys, all_values, attn_mask=layout.seen_B1CS, scale=scaling, enable_gqa=shared
    )
    parts = []
    for out, there, back, real in (
        (on_prompts, layout.prompt_unpad, layout.prompt_pad, layout.prompts_GP),
        (on_completions, layout.completion_unpad, layout.completion_pad, layout.mask_BC),
    ):
        rows_XE = out.transpose(1, 2).flatten(2).flatten(0, 1)
        parts.append(_Move.apply(rows_XE, there, back, real.flatten()))  # type: ignore[no-untyped-call]
    return torch.cat(parts).view(1, -1, heads[0], value.shape[-1]), None


# No mask function is registered under this name, so the models build no masks.
AttentionInterface.register(NAME, _attention)
