"""Log-probabilities of many completions, with one copy of each prompt in the forward and backward pass.

A GRPO batch holds G completions of each prompt, and a judge's prompt is long: it is most of the tokens, G times over.
Here a micro-batch becomes ONE packed row without padding,

    prompt 1, prompt 2, ...            each without its last token
    completion 1, completion 2, ...    each as its prompt's last token and its own tokens but the last

so that every layer but attention works on distinct tokens only, and the language-model head on nothing but the
positions that predict a completion's token. In attention a prompt attends to itself, and a completion to its prompt
and to itself: the same function as the padded batch, so the same values and the same gradients up to rounding. (The
idea is Prefix Grouper's, arXiv:2506.05433.)

The attention function is registered with transformers' `AttentionInterface`, as the sampler's is; the model's own
forward runs, wrapped or not (DistributedDataParallel, PEFT).

Shape letters: B completions, T padded row length, C padded completion length, G distinct prompts, P padded prompt
length without its last token, N packed tokens, K completion tokens (the last K of the N), H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from opengrm.engines.shared_prefix import serves

NAME = "opengrm_shared_prompt_training"
_MANY_LOGITS = 2**26  # above this many, log-probabilities are computed in tiles by TRL's fused head


def can_share(model: Any) -> bool:
    """Whether this model can train on this path: full softmax attention without dropout, through the interface."""
    return serves(model) and not getattr(model.config, "attention_dropout", 0.0)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of a micro-batch stand in its packed row.

    Attributes:
        tokens_1N, positions_1N: the packed row.
        targets_K: the completion tokens, each predicted at the place N - K + k.
        mask_BC: which places of the padded completions hold a token.
        group_B: which of the G prompts a completion has.
        prompt_pad, prompt_unpad, completion_pad, completion_unpad: index maps between the packed row and the padded
            forms that attention works on, see `_Move`; counted from the first prompt's or completion's token.
        prompts_GP: which places of the padded prompts (on the right) hold a token.
        seen_B1CS: what a completion's query may see: its prompt (P places), then its own tokens (C places).
    """

    tokens_1N: Tensor
    positions_1N: Tensor
    targets_K: Tensor
    mask_BC: Tensor
    group_B: Tensor
    prompt_pad: Tensor
    prompt_unpad: Tensor
    completion_pad: Tensor
    completion_unpad: Tensor
    prompts_GP: Tensor
    seen_B1CS: Tensor


def pack(input_ids_BT: Tensor, attention_mask_BT: Tensor, completion: int) -> Layout:
    """The layout of a padded batch.

    Args:
        input_ids_BT: prompts padded on the left, then completions padded on the right. Equal neighbouring prompts are
            taken together, so completions of one prompt should stand next to each other.
        attention_mask_BT: 1 on tokens. Every prompt has at least 2 tokens and every completion at least 1.
        completion: C, the number of columns that belong to completions.
    """
    device = input_ids_BT.device
    start = input_ids_BT.shape[1] - completion
    mask_BT = attention_mask_BT.bool()
    new_B = torch.ones(len(input_ids_BT), dtype=torch.bool, device=device)
    same = (input_ids_BT[1:, :start] == input_ids_BT[:-1, :start]) & (mask_BT[1:, :start] == mask_BT[:-1, :start])
    new_B[1:] = ~same.all(dim=1)
    group_B = new_B.cumsum(0) - 1
    first_G = new_B.nonzero()[:, 0]

    held_GP = mask_BT[first_G, : start - 1]  # padded on the left
    length_G = held_GP.sum(dim=1)
    longest = int(length_G.max())
    prompts_GP = torch.arange(longest, device=device)[None] < length_G[:, None]
    prompt_tokens = input_ids_BT[first_G, : start - 1][held_GP]
    prompt_positions = torch.arange(longest, device=device).expand(len(first_G), -1)[prompts_GP]

    mask_BC = mask_BT[:, start:]
    steps_C = torch.arange(completion, device=device)
    positions_BC = length_G[group_B][:, None] + steps_C[None]
    causal_CC = steps_C[:, None] >= steps_C[None]
    seen_BCP = prompts_GP[group_B][:, None].expand(-1, completion, -1)
    seen_BCS = torch.cat([seen_BCP, causal_CC.expand(len(group_B), -1, -1)], dim=-1)
    prompt_pad, prompt_unpad = _maps(prompts_GP)
    completion_pad, completion_unpad = _maps(mask_BC)
    return Layout(
        tokens_1N=torch.cat([prompt_tokens, input_ids_BT[:, start - 1 : -1][mask_BC]])[None],
        positions_1N=torch.cat([prompt_positions, positions_BC[mask_BC]])[None],
        targets_K=input_ids_BT[:, start:][mask_BC],
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


def completion_logprobs(model: Any, layout: Layout, temperature: float) -> tuple[Tensor, Tensor]:
    """One forward: the log-probability of each completion token, and the entropy at its place (without gradient).

    The model must be under `attending`, until the backward pass is over if its layers are checkpointed.

    Args:
        model: patched with TRL's fused head, or any causal LM while its logits are few.
        temperature: logits are divided by it, as at sampling.

    Returns:
        logprobs_BC and entropy_BC, 0 where there is no token.
    """
    kept = len(layout.targets_K)
    inputs = {"input_ids": layout.tokens_1N, "position_ids": layout.positions_1N, "use_cache": False}
    if kept * model.config.get_text_config().vocab_size > _MANY_LOGITS:
        labels = layout.tokens_1N.new_full(layout.tokens_1N.shape, -100)
        labels[0, -kept:] = layout.targets_K
        output = model(**inputs, shift_labels=labels, fused_lm_head=True, opengrm_layout=layout)
        logprobs_K, entropy_K = output.log_probs[0, -kept:], output.entropy[0, -kept:]
    else:
        logits_KV = model(**inputs, logits_to_keep=kept, opengrm_layout=layout).logits[0].float()
        if temperature != 1.0:
            logits_KV = logits_KV / temperature
        logprobs_KV = torch.log_softmax(logits_KV, dim=-1)
        logprobs_K = logprobs_KV.gather(-1, layout.targets_K[:, None])[:, 0]
        with torch.no_grad():
            entropy_K = torch.special.entr(logprobs_KV.detach().exp()).sum(dim=-1)
    empty_BC = logprobs_K.new_zeros(layout.mask_BC.shape)
    return (
        empty_BC.masked_scatter(layout.mask_BC, logprobs_K),
        empty_BC.masked_scatter(layout.mask_BC, entropy_K.detach()),
    )


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

    def padded(which: int, prompts: bool) -> Tensor:
        """(G, H, P, D) or (B, H, C, D) of the query, key or value."""
        size, length = (groups, longest) if prompts else (rows, columns)
        part = flat[which][:prompt_tokens] if prompts else flat[which][prompt_tokens:]
        there = layout.prompt_pad if prompts else layout.completion_pad
        back = layout.prompt_unpad if prompts else layout.completion_unpad
        moved: Tensor = _Move.apply(part, there, back, None)  # type: ignore[no-untyped-call]
        return moved.view(size, length, heads[which], -1).transpose(1, 2)

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
