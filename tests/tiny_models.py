"""Tiny random checkpoints of several architectures, with a byte-level BPE tokenizer trained on the fly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = (
    "The response answers the question and is polite.",
    "Critique: it is short, on topic, and holds a number like 12 or 345.",
    "Principle 1: honesty (weight 5). Principle 2: clarity (weight 3).",
    "A recipe for soup needs water, salt and time; a letter needs a greeting.",
    "\\boxed{7, 3} is the final score of both responses.",
)


def build_tokenizer(vocabulary: int = 400) -> Any:
    """Byte-level BPE with `<|endoftext|>`, `<|im_start|>`, `<|im_end|>` (the end token) and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([s for s in SENTENCES for _ in range(4)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def build_model(family: str, tokenizer: Any | None = None, *, seed: int = 0, **config: Any) -> Any:
    """A random causal LM of that family (`Qwen3`, `Llama`, `Gemma2`, ...), in evaluation mode."""
    import torch
    import transformers

    size = 400 if tokenizer is None else len(tokenizer)
    values: dict[str, Any] = {
        "vocab_size": size, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "bos_token_id": None, "initializer_range": 0.15,
        "eos_token_id": 2 if tokenizer is None else tokenizer.eos_token_id,
        "pad_token_id": 0 if tokenizer is None else tokenizer.pad_token_id,
    }  # fmt: skip
    name = f"{family}ForCausalLM"
    suffix = "TextConfig" if family in ("Gemma3",) else "Config"
    settings = getattr(transformers, family + suffix)(**{**values, **config})
    torch.manual_seed(seed)
    model = getattr(transformers, name)(settings).eval()
    with torch.no_grad():  # norms as a trained model has them: not all ones
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def build_checkpoint(folder: Path, family: str = "Qwen3", *, vocabulary: int = 400, **config: Any) -> Path:
    """Save a tiny model of that family with its tokenizer, as transformers saves them; returns the folder."""
    tokenizer = build_tokenizer(vocabulary)
    build_model(family, tokenizer, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
