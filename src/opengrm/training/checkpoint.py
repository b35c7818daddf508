"""The folder that a training stage leaves: an ordinary Hugging Face checkpoint that judges as it was trained to.

Weights are trained in float32; they are written in bfloat16 if the base is, with the base's generation settings, the
end token that was learned, and the chat template. A reader needs nothing of this project.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opengrm.errors import EngineError, UsageError

# The engine's plain form for a tokenizer without a chat template (`engines/chat.py`), as a chat template.
PLAIN_TEMPLATE = (
    "{% set names = {'user': 'User', 'assistant': 'Assistant', 'tool': 'Tool'} %}"
    "{% for m in messages %}{{ names.get(m['role'], 'System') + ': ' + m['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def write_checkpoint(
    raw: Path, target: Path, *, base: Path, tokenizer: Any, end: int, template: str | None, options: Mapping[str, Any]
) -> None:
    """Make an ordinary folder of what a Trainer saved; it appears whole or not at all. For one process.

    Args:
        raw: what was saved: whole weights, or adapters, which are merged into the base.
        target: the folder; what is there is replaced.
        base: what was trained; its precision and generation settings are kept.
        tokenizer: is written beside the weights.
        end: a token that ends a judgment.
        template: the prompt family that was learned, for config.json.
        options: of `from_pretrained` (trust_remote_code, local_files_only).

    Raises:
        EngineError: the weights are not numbers.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, **options)
    dtype = torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32
    adapted = (raw / "adapter_config.json").exists()
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(
        base if adapted else raw, dtype=torch.float32 if adapted else dtype, **options
    )
    if adapted:
        import peft

        network = peft.PeftModel.from_pretrained(network, str(raw)).merge_and_unload().to(dtype)
    check_weights(network)
    network.config.use_cache = getattr(config, "use_cache", True)  # training switches it off
    if template is not None:
        network.config.opengrm_template = template
    generation = transformers.GenerationConfig.from_model_config(config)
    if (base / "generation_config.json").exists():
        generation = transformers.GenerationConfig.from_pretrained(base)
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if end not in ends:
        generation.eos_token_id = [end, *(e for e in ends if e is not None)]
    network.generation_config = generation
    part = target.with_name(f".{target.name}.part")
    remove(part)
    network.save_pretrained(part)
    tokenizer.save_pretrained(part)
    remove(target)
    os.replace(part, target)


def check_weights(network: Any) -> None:
    """See that training ended in numbers.

    Raises:
        EngineError: it did not.
    """
    broken = [name for name, tensor in network.named_parameters() if not tensor.isfinite().all()]
    if broken:
        raise EngineError(
            f"training diverged: {len(broken)} tensors are not finite, e.g. {broken[0]}; begin again in another folder"
            " with a lower learning rate"
        )


def give_chat_template(tokenizer: Any) -> None:
    """To a tokenizer without a chat template, the engine's plain form as one, so that any server can use it."""
    if tokenizer.chat_template:
        return
    ids, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    begins = ids[: len(ids) - len(bare)] if ids[len(ids) - len(bare) :] == bare else []
    start = "".join(tokenizer.convert_ids_to_tokens(begins))
    tokenizer.chat_template = "{{ " + json.dumps(start) + " }}" + PLAIN_TEMPLATE if start else PLAIN_TEMPLATE


def end_token(tokenizer: Any) -> int:
    """The token that ends an assistant turn in the chat template, else the tokenizer's end-of-sequence token.

    Raises:
        UsageError: there is neither, so a model could not learn to stop.
    """
    mark = "OpenGRM turn"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    for token in tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]:
        if token in special:
            return int(token)
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no end-of-sequence token, and its chat template none behind a turn")
    return int(tokenizer.eos_token_id)


def lora(rank: int) -> Any:
    """LoRA of this rank on all linear layers (Hu et al. 2021), scaled by 2; None for rank 0."""
    if not rank:
        return None
    import peft

    return peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
