"""Scoring a run of PPE's size: 16,038 pairs, and five data sets of 512 prompts with 32 responses each.

    python benchmarks/benchmark_scale.py        # writes results/benchmark-scale.json, about half a minute

Rows in PPE's schema are made up (texts of the length of real ones), as are the scores, so that all that is measured is
`opengrm eval ppe-preference,ppe-correctness --scores FILE`: reading and checking every row twice, voting, both rules
with their best-of-k curves, and writing the run's folder and page. Seconds and the largest resident memory are those
of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAIRS, SETS, PROMPTS, RESPONSES = 16_038, ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus"), 512, 32
PROMPT_WORDS, PAIR_WORDS, LIST_WORDS = 60, 250, 200


def make(folder: Path, scores: Path, pairs: int, prompts: int) -> int:
    """Write rows and scores; returns how many responses are scored."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(2000)]

    def text(count: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(count // 2, count * 3 // 2)))

    scored = 0
    with scores.open("w", encoding="utf-8") as scored_file:

        def write(file: Any, row: dict[str, Any], item: str, n: int) -> None:
            nonlocal scored
            file.write(json.dumps(row) + "\n")
            scored_file.write(json.dumps({"item": item, "scores": [rng.gauss(0, 1) for _ in range(n)]}) + "\n")
            scored += n

        path = folder / "ppe-preference" / "rows.jsonl"
        path.parent.mkdir(parents=True)
        with path.open("w", encoding="utf-8") as file:
            for i in range(pairs):
                row = {
                    "question_id": f"q{i}", "model_a": "a", "model_b": "b", "winner": f"model_{'ab'[i % 2]}",
                    "prompt": text(PROMPT_WORDS), "response_1": text(PAIR_WORDS), "response_2": text(PAIR_WORDS),
                    "language": "English",
                }  # fmt: skip
                write(file, row, f"q{i}", 2)
        for name in SETS:
            path = folder / "ppe-correctness" / f"PPE-{name}-Best-of-K.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                for i in range(prompts):
                    right = [bool(j % 2) for j in range(RESPONSES)]
                    rng.shuffle(right)
                    row = {
                        "question_id": f"q{i}", "model_name": "m", "prompt": text(PROMPT_WORDS), "scores": right,
                        **{f"response_{j + 1}": text(LIST_WORDS) for j in range(RESPONSES)},
                        "conflict_pairs": [
                            [a, b] for a, b in zip(range(0, 10), range(10, 20), strict=True) if right[a] != right[b]
                        ],
                    }  # fmt: skip
                    write(file, row, f"{name}/m/q{i}", RESPONSES)
    return scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of PPE's size")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark-scale.json")
    args = parser.parse_args()
    from opengrm.reports.results import write_result

    pairs, prompts = round(PAIRS * args.share), round(PROMPTS * args.share)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scored = make(folder / "data", folder / "scores.jsonl", pairs, prompts)
        size = sum(path.stat().st_size for path in (folder / "data").rglob("*.jsonl"))
        words = [
            "eval", "ppe-preference,ppe-correctness", "--data", str(folder / "data"), "--scores",
            str(folder / "scores.jsonl"), "-o", str(folder / "run"), "-q",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "opengrm", *words], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads((folder / "run" / "eval.json").read_text(encoding="utf-8"))["benchmarks"]
    rows = [
        {"benchmark": name, "items": own["items"], "missing": own["missing"], "overall": own["overall"]}
        for name, own in found.items()
    ]
    headline = {
        "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "rss_gb": usage.ru_maxrss * 1024 / 1e9,
        "responses": scored, "data_mb": size / 1e6,
    }  # fmt: skip
    notes = {
        "scores": "random: accuracy is near one half",
        "load": f"one-minute load average when it ended: {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(headline))
    write_result(args.output, headline=headline, rows=rows, notes=notes)


if __name__ == "__main__":
    main()
