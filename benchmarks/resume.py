"""Batch invariance and resume: does the same run always end with the same ledger?

Judges the same RubricWorld pairs with the embedded model through `opengrm judge`: with several batch sizes, in another
item order, and killed (SIGKILL) at random moments and resumed. Compares the exports byte for byte, and where they
differ counts the texts that do (floating-point sums depend on the shape of a batch).

    python benchmarks/resume.py            # writes results/resume.json, a few minutes on two cores
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reading import write_items
from opengrm.reports.results import write_result
from opengrm.worlds.rubric import generate_items

RESULT = Path(__file__).parents[1] / "results" / "resume.json"


def command(items: Path, ledger: Path, k: int, batch: int) -> list[str]:
    opengrm = [sys.executable, "-m", "opengrm"]
    run = ["judge", str(items), "-o", os.devnull, "--ledger", str(ledger), "--model", "nano-base", "-k", str(k)]
    return [*opengrm, *run, "--batch", str(batch), "-q"]


def judged(ledger: Path) -> int:
    """Judgments in the ledger right now; 0 before it exists."""
    if not ledger.exists():
        return 0
    with Ledger(ledger, create=False) as kept:
        return len(kept)


def run_with_kills(
    words: list[str], ledger: Path, kills: int, total: int, rng: random.Random
) -> tuple[int, list[int]]:
    """Run the command, SIGKILL it at random moments, resume until done. Returns the kills and the counts then."""
    counts: list[int] = []
    while True:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if len(counts) >= kills:
            if process.wait() != 0:
                raise SystemExit(f"the resumed run failed: {' '.join(words)}")
            return len(counts), counts
        # A random moment of the working part: somewhere within the next twentieth of the judgments.
        goal = (counts[-1] if counts else 0) + rng.randint(1, max(1, total // (kills + 1)))
        while judged(ledger) < goal and process.poll() is None:
            time.sleep(rng.uniform(0.001, 0.02))
        if process.poll() is not None:
            return len(counts), counts
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        counts.append(judged(ledger))


def export(ledger: Path) -> tuple[bytes, dict[str, Judgment]]:
    out = ledger.with_suffix(".jsonl")
    words = [sys.executable, "-m", "opengrm", "ledger", "export", str(ledger), "-o", str(out)]
    subprocess.run(words, check=True, capture_output=True)
    with Ledger(ledger, create=False) as kept:
        return out.read_bytes(), {j.key or "": j for j in kept.judgments()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("-k", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        items = list(generate_items(args.items, split="test"))
        forward, shuffled = base / "items.jsonl", base / "shuffled.jsonl"
        write_items(forward, items)
        write_items(shuffled, random.Random(args.seed).sample(items, len(items)))
        total = args.items * args.k

        runs: list[tuple[str, Path, int, int]] = [
            ("uninterrupted, batch 256", forward, 256, 0),
            ("the same again", forward, 256, 0),
            ("batch 64", forward, 64, 0),
            ("batch 7", forward, 7, 0),
            ("other item order, batch 256", shuffled, 256, 0),
            (f"killed {args.kills} times and resumed, batch 256", forward, 256, args.kills),
        ]
        rows = []
        reference: tuple[bytes, dict[str, Judgment]] | None = None
        for number, (name, path, batch, kills) in enumerate(runs):
            ledger = base / f"{number}.db"
            started = time.monotonic()
            words = command(path, ledger, args.k, batch)
            made, counts = run_with_kills(words, ledger, kills, total, random.Random(args.seed))
            seconds = time.monotonic() - started
            content, judgments = export(ledger)
            reference = reference or (content, judgments)
            differing = sum(judgments[key].text != reference[1][key].text for key in reference[1])
            row = {
                "run": name, "judgments": len(judgments), "kills": made, "judgments_at_kill": counts,
                "export_identical": content == reference[0], "texts_differing": differing,
                "share_differing": differing / total, "seconds": round(seconds, 1),
            }  # fmt: skip
            if judgments.keys() != reference[1].keys():
                raise SystemExit(f"{name}: the ledger holds other keys than the first run's")
            print(row)
            rows.append(row)

    write_result(
        args.output,
        command=f"python benchmarks/resume.py --items {args.items} -k {args.k} --kills {args.kills}",
        headline={
            "identical_after_kills": float(rows[-1]["export_identical"]),
            "share_differing_worst": max(r["share_differing"] for r in rows),
        },
        rows=rows,
    )


if __name__ == "__main__":
    main()
