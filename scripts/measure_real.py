"""Real text, a small real encoder: a Bradley-Terry model on human preferences, a meta RM on real judges' critiques.

    python scripts/measure_real.py bt DATA         train and judge, resumable
    python scripts/measure_real.py vectors DATA    a vector of every text that the meta RM's linear head reads
    python scripts/measure_real.py tune DATA       fine-tune a meta RM on critiques and score the others, resumable

Then scripts/report_real.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from real_data import llmbar, preferences, realmistake
from real_meta import folds_of

from opengrm.engines.vectors import TextVectors
from opengrm.items import Item, content_hash
from opengrm.jsonl import write_rows
from opengrm.judges.meta import open_meta_rm
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.templates.meta import MetaTemplate
from opengrm.training.meta_rm import MetaSettings, train_meta
from opengrm.training.scalar_examples import held_out
from opengrm.training.stage import write_json

BASE = "all-minilm-l6-v2"
TEST_SHARE = 0.2
TRAINED = 2048
TUNED_ON, CLIP = 1200, 40  # critiques that the meta RM is fine-tuned on; words of each text that it reads
DEV, TEST = (
    2,
    (3, 4),
)  # folds of the fine-tuned meta RM: the first two train it, one chooses the rule, two are reported
TUNED = "tuned.json"
PIECE = 500  # texts that are encoded between two writes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps: dict[str, Callable[[Path, Path], None]] = {"bt": bt, "vectors": vectors, "tune": tune}
    parser.add_argument("steps", nargs="+", choices=list(steps))
    parser.add_argument("data", type=Path, help="the folder that holds the data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for step in args.steps:
        steps[step](args.data, args.folder)


def bt(data: Path, folder: Path) -> None:
    """One model on the training pairs of all sources, and its verdicts on the held-out ones."""
    train, test = folder / "bt-train.jsonl", folder / "bt-test.jsonl"
    if not test.exists():
        for path, side in ((train, False), (test, True)):
            items = [i for i in preferences(data) if held_out(str(i.cluster), TEST_SHARE) is side]
            if not side:  # an even sample of all sources: what one core trains on in a quarter of an hour
                items = sorted(items, key=lambda item: content_hash(item.id))[:TRAINED]
            print(path, Counter(i.source["dataset"] for i in items), flush=True)
            write_rows(path, (item.to_json() for item in items))
    opengrm(
        "train", "bt", train, "-o", folder / "bt", "--model", BASE, "--margin", "--truncate", "--max-tokens", 256,
        "--batch", 16, "--micro-batch", 4, "--learning-rate", 1e-4, "--epochs", 1, "--dev-share", 0,
        "--save-every", 20, "--eval-every", 1000,
    )  # fmt: skip
    opengrm("judge", test, "--judge", "bt", "--model", folder / "bt" / "model", "-o", folder / "bt-verdicts.jsonl")


# --- meta RM --------------------------------------------------------------------------------------------------------


def vectors(data: Path, folder: Path, max_tokens: int = 256) -> None:
    """Encode what is not encoded yet, in pieces that a killed run keeps."""
    items, judgments = llmbar(data)
    texts = [text for item in items.values() for text in (item.prompt[0].content, *item.responses)]
    texts += [j.text or "" for j in judgments if is_critique(j)]
    texts += [j.text or "" for j in realmistake(data)[1]]
    known = known_vectors(folder)
    missing = sorted({text for text in texts if content_hash(text) not in known}, key=lambda text: (len(text), text))
    place = folder / "vectors"
    place.mkdir(exist_ok=True)
    if missing:
        encoder = TextVectors(BASE, max_tokens=max_tokens)
    print(f"{len(known):,} known, {len(missing):,} to encode", flush=True)
    for start in range(0, len(missing), PIECE):
        some, begun = missing[start : start + PIECE], time.monotonic()
        keys = np.array([content_hash(text) for text in some])
        number = len(list(place.glob("*.npz")))
        np.savez(place / f"{number:04}.part.npz", keys=keys, vectors=encoder.encode(some))
        (place / f"{number:04}.part.npz").rename(place / f"{number:04}.npz")
        print(start + len(some), f"{len(some) / (time.monotonic() - begun):.1f} texts/s", flush=True)


def known_vectors(folder: Path) -> dict[str, Any]:
    """What has been encoded: a vector by the text's hash."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "vectors").glob("[0-9]*[0-9].npz")):
        with np.load(path, allow_pickle=False) as piece:
            found.update(zip(piece["keys"].tolist(), piece["vectors"], strict=True))
    return found


def is_critique(judgment: Judgment) -> bool:
    """Whether the judge wrote more than its verdict."""
    return judgment.template in ("CoT", "Swap", "Swap_CoT") and len((judgment.text or "").split()) > 4


def tuned_panel(judgment: Judgment) -> bool:
    """Whether the fine-tuned meta RM takes part in the vote over this judgment: each judge's CoT critique."""
    return judgment.template == "CoT"


def tune(data: Path, folder: Path) -> None:
    """Fine-tune all of the encoder on critiques of two folds of items; score those of the other three."""
    items, judgments = llmbar(data)
    folds = folds_of(items)
    short = {name: clipped(item) for name, item in items.items()}
    chosen = [replace(j, text=words(j.text or "", -CLIP * 2)) for j in judgments if tuned_panel(j) and j.scores]
    fold = {name: folds[str(item.cluster)] for name, item in items.items()}
    train = sorted(
        (j for j in chosen if fold[j.item] not in (DEV, *TEST)),
        key=lambda j: content_hash([j.item, j.model, j.sample]),
    )
    settings = MetaSettings(
        learning_rate=1e-4, batch=16, micro_batch=4, epochs=1, dev_share=0, max_tokens=384, save_every=10
    )
    template = MetaTemplate("meta-named")
    report = train_meta(train[:TUNED_ON], short, BASE, folder / "tuned", template, settings, on_progress=said)
    print({key: report[key] for key in ("examples", "correct", "left_out", "too_long", "steps")}, flush=True)
    metas: dict[str, float | None] = {}
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / "tuned.ledger.db"))
        meta = open_meta_rm(str(folder / "tuned" / "model"), None, ledger, stack)
        by_item: dict[str, list[Judgment]] = {}
        for judgment in chosen:
            if fold[judgment.item] in (DEV, *TEST):
                by_item.setdefault(judgment.item, []).append(judgment)
        for number, (_, scored) in enumerate(meta.score((short[name], found) for name, found in by_item.items())):
            metas |= {f"{j.item}|{j.model}|{j.sample}": j.meta for j in scored}
            if number % 32 == 0:
                print(f"{number}/{len(by_item)} items scored", flush=True)
    write_json(folder / TUNED, metas)


def clipped(item: Item) -> Item:
    """The item with the first words of each text."""
    prompt = tuple(replace(turn, content=words(turn.content, CLIP)) for turn in item.prompt)
    return replace(item, prompt=prompt, responses=tuple(words(text, CLIP) for text in item.responses))


def words(text: str, most: int) -> str:
    """The first words of a text, or the last where `most` is below 0."""
    found = text.split()
    if len(found) <= abs(most):
        return text
    return " ".join([*found[:most], "..."]) if most > 0 else " ".join(["...", *found[most:]])


def said(step: int, total: int, note: str) -> None:
    """Progress in a log."""
    if step % 5 == 0:
        print(f"{step}/{total} {note}", flush=True)


def opengrm(*arguments: object) -> None:
    """Run a command of the package as a user does."""
    subprocess.run([sys.executable, "-m", "opengrm", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
