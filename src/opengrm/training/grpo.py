"""TRL's GRPOTrainer with a cheaper step: the same loss and the same gradients from less arithmetic.

Three things differ from its base class, and each is compared with it in the tests:

- Log-probabilities of the policy and of the reference come from `shared_prompt`: one copy of each prompt, no padding,
  the language-model head only where a token is predicted.
- Micro-batches keep groups together (TRL shuffles them; the loss is a mean over all completions either way), sorted by
  length, so that one copy of a prompt is enough and attention pads little.
- Where beta is 0, completions of groups without signal (advantage 0) add nothing to the gradient and are left out.

Imports torch and TRL: import this module only where training starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import split_tensor_dict

from opengrm.engines.chat import ChatTokenizer
from opengrm.items import Message
from opengrm.training.shared_prompt import attending, can_share, completion_logprobs, pack


class GroupTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer as above.

    Args:
        chat: tokenizes prompts for every kind of rollout alike.
        share_prompts: False goes through TRL's own forward.
        others: GRPOTrainer's own arguments.
    """

    def __init__(self, *args: Any, chat: ChatTokenizer, share_prompts: bool = True, **others: Any) -> None:
        with _sharded_by_layer():
            super().__init__(*args, **others)
        self._chat = chat
        self._buffered_inputs: list[dict[str, Any]] | None
        self._share = share_prompts and can_share(self.model) and not (self.is_fsdp_enabled or self.aux_loss_enabled)

    def note(self, name: str, value: float) -> None:
        """Add a number to this step's metrics."""
        self._metrics["train"][name].append(value)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        encoded = [self._chat.encode([Message(m["role"], m["content"]) for m in prompt]) for prompt in prompts]
        return [list(ids) for ids in encoded], None, {}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """One micro-batch. Every `steps_per_generation * num_iterations` calls a new batch is generated and scored."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            if parts > 1:
                batch = _by_length(batch, self.num_generations)
            self._buffered_inputs = split_tensor_dict(batch, parts)
        return self._buffered_inputs[self._step % parts]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step. Checkpointed layers run again in the backward pass, so attention stays switched until then."""
        with ExitStack() as self._until_backward:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not self._share:
            found: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size,
                compute_entropy=compute_entropy, compute_aux_loss=compute_aux_loss, **others,
            )  # fmt: skip
            return found
        parts = []
        size = batch_size or len(input_ids)
        bare = self.accelerator.unwrap_model(model)
        kept_on = self.args.gradient_checkpointing and torch.is_grad_enabled()
        if kept_on:
            self._until_backward.enter_context(attending(bare))
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            layout = pack(input_ids[rows], attention_mask[rows], logits_to_keep)
            with nullcontext() if kept_on else attending(bare), self.accelerator.autocast():
                parts.append(completion_logprobs(model, layout, self.temperature))
        logprobs = torch.cat([part[0] for part in parts])
        return logprobs, torch.cat([part[1] for part in parts]) if compute_entropy else None, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        advantages: Tensor = inputs["advantages"]
        # Several processes gather metrics of equally many rows, so there every row stays.
        if self.beta != 0.0 or self.loss_type != "grpo" or self.accelerator.num_processes > 1:
            loss: Tensor = super()._compute_loss(model, inputs)
            return loss
        kept = (advantages != 0).nonzero()[:, 0]
        kept = kept if len(kept) else kept.new_zeros(1)
        chosen = {
            name: value[kept] if isinstance(value, Tensor) and value.dim() else value for name, value in inputs.items()
        }
        loss = super()._compute_loss(model, chosen)
        return loss * (len(kept) / len(advantages))


@contextmanager
def _sharded_by_layer() -> Iterator[None]:
    """While a trainer is made: under FSDP2 the reference model is sharded as the policy is, layer by layer.

    TRL would shard it as one piece: it would be whole on every device, in float32 at first and then in each forward
    pass.
    """
    theirs = grpo_trainer.prepare_fsdp
    grpo_trainer.prepare_fsdp = lambda model, accelerator: shard_by_layer(model, accelerator, theirs)
    try:
        yield
    finally:
        grpo_trainer.prepare_fsdp = theirs


def shard_by_layer(model: Any, accelerator: Any, otherwise: Any) -> Any:
    """A frozen model as accelerate shards what it trains under FSDP2; `otherwise` under FSDP1."""
    if accelerator.state.fsdp_plugin.fsdp_version != 2:
        return otherwise(model, accelerator)
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    return fsdp2_prepare_model(accelerator, model).eval()


def _by_length(batch: dict[str, Any], group: int) -> dict[str, Any]:
    """The batch with its groups sorted by the length of prompt and completions together; rows of a group stay put."""
    lengths = batch["prompt_mask"].sum(dim=1) + batch["completion_mask"].sum(dim=1)
    order = lengths.view(-1, group).sum(dim=1).argsort(stable=True)
    rows = (order[:, None] * group + torch.arange(group, device=order.device)[None]).flatten()
    return {k: v[rows] if isinstance(v, Tensor) and v.dim() else v for k, v in batch.items()}
