"""Where the embedded model `opengrm-nano` lies: an ordinary Hugging Face checkpoint folder inside the package."""

from __future__ import annotations

from pathlib import Path

from opengrm.engines.checkpoints import nano_folder


def nano_path() -> Path:
    """The folder of `opengrm-nano`: config, weights (float16; load as float32), tokenizer, chat template."""
    return nano_folder()
