"""Where the embedded models lie: ordinary Hugging Face checkpoint folders inside the package."""

from __future__ import annotations

from pathlib import Path

from opengrm.engines.checkpoints import embedded_folder


def nano_path(name: str = "nano") -> Path:
    """The folder of "nano" (the trained judge), "nano-base" or "nano-meta": config, weights, tokenizer, chat template.

    The weights are float16; load them as float32.
    """
    return embedded_folder(name)
