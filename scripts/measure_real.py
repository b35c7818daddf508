"""Real text, a small real encoder: a Bradley-Terry model on human preferences, a meta RM on the critiques of real judges.

    python scripts/measure_real.py bt DATA       train and judge, resumable; then results/bt-real.json, .md
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

from real_data import preferences

from opengrm.jsonl import write_rows
from opengrm.training.scalar_examples import held_out

BASE = "all-minilm-l6-v2"
TEST_SHARE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["bt"])
    parser.add_argument("data", type=Path, help="the folder that holds the data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    bt(args.data, args.folder)


def bt(data: Path, folder: Path) -> None:
    """One model on the training pairs of all sources, and its verdicts on the held-out ones."""
    train, test = folder / "bt-train.jsonl", folder / "bt-test.jsonl"
    if not test.exists():
        for path, side in ((train, False), (test, True)):
            items = [i for i in preferences(data) if held_out(str(i.cluster), TEST_SHARE) is side]
            print(path, Counter(i.source["dataset"] for i in items), flush=True)
            write_rows(path, (item.to_json() for item in items))
    opengrm(
        "train", "bt", train, "-o", folder / "bt", "--model", BASE, "--margin", "--truncate", "--max-tokens", 256,
        "--batch", 32, "--micro-batch", 4, "--learning-rate", 1e-4, "--epochs", 1, "--dev-share", 0,
        "--save-every", 20, "--eval-every", 1000,
    )  # fmt: skip
    opengrm("judge", test, "--judge", "bt", "--model", folder / "bt" / "model", "-o", folder / "bt-verdicts.jsonl")


def opengrm(*words: object) -> None:
    """Run a command of the package as a user does."""
    subprocess.run([sys.executable, "-m", "opengrm", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
