"""Rollouts by the project's own sampler, on the model that is being trained.

A group's prompt is prefilled once and its G samples decode together with those of all other groups. A sample's seed
comes from (run seed, step, place in the batch), so a resumed run repeats what it was doing, and two processes draw
what one would. TRL's other ways (its default generation, a vLLM server) need nothing from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from opengrm.engines.base import Sampling
from opengrm.engines.chat import ChatTokenizer
from opengrm.errors import EngineError, UsageError
from opengrm.items import Message, content_hash

Rollout = Callable[[list[list[dict[str, str]]], Any], dict[str, Any]]


def rollout_seed(seed: int, step: int, place: int) -> int:
    """The seed, 60 bits, of the sample at this place of this step's batch."""
    return int(content_hash("rollout", seed, step, place)[:15], 16)


def own_rollouts(chat: ChatTokenizer, sampling: Sampling, seed: int, max_batch: int = 128) -> Rollout:
    """A `rollout_func` for TRL's GRPOTrainer.

    Args:
        chat: renders and tokenizes the prompts, with control tokens inside of text under judgment made harmless.
        sampling: temperature, nucleus and most new tokens.
        seed: the run's.
        max_batch: most samples decoded together.

    The function it returns gives `prompt_ids`, `completion_ids` with the end token, and `logprobs`: under the unscaled
    distribution, which is the trainer's at temperature 1; None at any other.

    Raises (when called):
        UsageError: the model's weights are sharded over processes, which the sampler cannot step through together, or
            a prompt leaves no room in the model's context.
        EngineError: the model's numbers are not finite.
    """
    from opengrm.engines.decoding import Sample
    from opengrm.engines.decoding import sample as decode

    def rollout(prompts: list[list[dict[str, str]]], trainer: Any) -> dict[str, Any]:
        from trl.models import unwrap_model_for_generation

        if trainer.is_fsdp_enabled:
            raise UsageError("own rollouts need whole weights in each process, FSDP shards them: choose vllm rollouts")
        began = time.perf_counter()
        first = trainer.accelerator.process_index * len(prompts)
        groups = runs(prompts)
        tokens = [chat.encode([Message(m["role"], m["content"]) for m in prompts[start]]) for start, _ in groups]
        seeds = [[rollout_seed(seed, trainer.state.global_step, first + i) for i in range(*span)] for span in groups]
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            found = decode(model, tokens, seeds, sampling, stop_ids=trainer.eos_token_ids, max_batch=max_batch)
        samples: list[Sample] = [s for of_group in found for s in of_group]
        broken = next((s.error for s in samples if s.error is not None), None)
        if broken is not None and broken.startswith("too_long"):
            raise UsageError(f"{broken}: leave out items that long")
        if broken is not None:
            said = broken.removeprefix("server: ")
            step = trainer.state.global_step
            raise EngineError(f"a rollout failed at step {step}: {said}; try a lower learning rate, or float32")
        trainer.note("seconds/rollout", time.perf_counter() - began)
        return {
            "prompt_ids": [
                list(ids) for ids, (start, end) in zip(tokens, groups, strict=True) for _ in range(start, end)
            ],
            "completion_ids": [[*s.token_ids, *(() if s.end_id is None else (s.end_id,))] for s in samples],
            "logprobs": [list(s.logprobs or ()) for s in samples] if sampling.logprobs else None,
        }

    return rollout


def runs(values: Sequence[Any]) -> list[tuple[int, int]]:
    """Spans (start, end) of equal neighbours."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))
