"""Put the models of a RubricWorld run into the package: `nano` (after RL) and `nano-meta`, weights in float16.

    opengrm spct recipes/rubric-world.toml
    python scripts/embed_nano.py runs/rubric-world

`nano-base`, what both are trained from, comes from scripts/pretrain_nano.py. Load the weights as float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from opengrm.worlds.nano import nano_path

KEPT = ("README.md",)  # written by hand


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `opengrm spct`")
    run = parser.parse_args().run
    for name, source, kind in (
        ("nano", run / "rl", AutoModelForCausalLM),
        ("nano-meta", run / "meta" / "model", AutoModelForSequenceClassification),
    ):
        target = nano_path(name)
        target.mkdir(parents=True, exist_ok=True)
        for old in target.iterdir():
            if old.name not in KEPT:
                old.unlink()
        model = kind.from_pretrained(source, dtype=torch.float32, local_files_only=True)
        model.half().save_pretrained(target)
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)
        print(name, sum(p.stat().st_size for p in target.iterdir()), "bytes in", target)


if __name__ == "__main__":
    main()
