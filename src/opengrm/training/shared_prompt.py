"""Log-probabilities of many completions, with one copy of each prompt in the forward and backward pass.

A GRPO batch holds G completions of each prompt, and a judge's prompt is long: it is most of the tokens, G times over.
Here a micro-batch becomes ONE packed row without padding (`engines/packed.py`),

    prompt 1, prompt 2, ...            each without its last token
    completion 1, completion 2, ...    each as its prompt's last token and its own tokens but the last

so that the language-model head, too, works on nothing but the positions that predict a completion's token.

Shape letters: B completions, T padded row length, C padded completion length, G distinct prompts, P padded prompt
length without its last token, N packed tokens, K completion tokens (the last K of the N).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opengrm.engines.packed import Layout, attending, lay_out
from opengrm.engines.shared_prefix import serves

__all__ = ["Layout", "attending", "can_share", "completion_logprobs", "pack"]

_MANY_LOGITS = 2**26  # above this many, log-probabilities are computed in tiles by TRL's fused head


def can_share(model: Any) -> bool:
    """Whether this model can train on this path: full softmax attention without dropout, through the interface."""
    return serves(model) and not getattr(model.config, "attention_dropout", 0.0)


def pack(input_ids_BT: Tensor, attention_mask_BT: Tensor, completion: int) -> Layout:
    """The layout of a padded batch.

    Args:
        input_ids_BT: prompts padded on the left, then completions padded on the right. Equal neighbouring prompts are
            taken together, so completions of one prompt should stand next to each other.
        attention_mask_BT: 1 on tokens. Every prompt has at least 2 tokens and every completion at least 1.
        completion: C, the number of columns that belong to completions.
    """
    start = input_ids_BT.shape[1] - completion
    mask_BT = attention_mask_BT.bool()
    new_B = torch.ones(len(input_ids_BT), dtype=torch.bool, device=input_ids_BT.device)
    same = (input_ids_BT[1:, :start] == input_ids_BT[:-1, :start]) & (mask_BT[1:, :start] == mask_BT[:-1, :start])
    new_B[1:] = ~same.all(dim=1)
    group_B = new_B.cumsum(0) - 1
    first_G = new_B.nonzero()[:, 0]
    layout = lay_out(
        input_ids_BT[first_G, : start - 1],
        mask_BT[first_G, : start - 1],
        group_B,
        input_ids_BT[:, start - 1 : -1],
        mask_BT[:, start:],
    )
    return replace(layout, targets_K=input_ids_BT[:, start:][mask_BT[:, start:]])


def completion_logprobs(model: Any, layout: Layout, temperature: float) -> tuple[Tensor, Tensor]:
    """One forward: the log-probability of each completion token, and the entropy at its place (without gradient).

    The model must be under `attending`, until the backward pass is over if its layers are checkpointed.

    Args:
        model: patched with TRL's fused head, or any causal LM while its logits are few.
        temperature: logits are divided by it, as at sampling.

    Returns:
        logprobs_BC and entropy_BC, 0 where there is no token.
    """
    targets_K = layout.targets_K
    assert targets_K is not None, "a layout of `pack`"
    kept = len(targets_K)
    inputs = {"input_ids": layout.tokens_1N, "position_ids": layout.positions_1N, "use_cache": False}
    config = getattr(model, "module", model).config  # DistributedDataParallel has none
    if kept * config.get_text_config().vocab_size > _MANY_LOGITS:
        labels = layout.tokens_1N.new_full(layout.tokens_1N.shape, -100)
        labels[0, -kept:] = targets_K
        output = model(**inputs, shift_labels=labels, fused_lm_head=True, opengrm_layout=layout)
        logprobs_K, entropy_K = output.log_probs[0, -kept:], output.entropy[0, -kept:]
    else:
        logits_KV = model(**inputs, logits_to_keep=kept, opengrm_layout=layout).logits[0].float()
        if temperature != 1.0:
            logits_KV = logits_KV / temperature
        logprobs_KV = torch.log_softmax(logits_KV, dim=-1)
        logprobs_K = logprobs_KV.gather(-1, targets_K[:, None])[:, 0]
        with torch.no_grad():
            entropy_K = torch.special.entr(logprobs_KV.detach().exp()).sum(dim=-1)
    empty_BC = logprobs_K.new_zeros(layout.mask_BC.shape)
    return (
        empty_BC.masked_scatter(layout.mask_BC, logprobs_K),
        empty_BC.masked_scatter(layout.mask_BC, entropy_K.detach()),
    )
