"""`opengrm eval` of the embedded GRM in RubricWorld, and of the small Bradley-Terry model on real rows.

    python scripts/measure_spct.py main-0            makes the held-out sets (their items are RubricWorld's)
    python scripts/measure_real.py bt DATA           makes the Bradley-Terry model
    python scripts/measure_eval.py DATA              results/eval.json and results/eval.md, a quarter of an hour

The pages of the runs are runs/eval/*/report.html. RubricWorld shows that the code works; the Bradley-Terry model has
learned next to nothing (results/bt-real.md), so its figures on real rows say what such a model gets, not what one can.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from opengrm.reports.results import write_result
from opengrm.reports.tables import markdown, percent, share

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds the data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/eval"))
    args = parser.parse_args()
    world = args.folder / "world"
    world.mkdir(parents=True, exist_ok=True)
    for name in ("pairs", "lists", "singles"):
        shutil.copy(Path("runs/spct/main-0/data") / f"{name}.jsonl", world)
    places = {"llmbar": "llmbar", "rm-bench": "rm_bench_4of5", "rewardbench": "rewardbench_2k"}
    real = [f"--data={name}={args.data / place}" for name, place in places.items()]
    bt = ["--judge", "bt", "--model", "runs/real/bt/model"]
    runs = {
        "nano": ["items", "--data", str(world), "--model", "nano", "-k", "8"],
        "nano-solo": ["items", "--data", str(world), "--model", "nano", "--template", "compact-solo", "-k", "8"],
        "bt": [",".join(places), *real, *bt],
    }
    rows: list[dict[str, Any]] = []
    for run, words in runs.items():
        command = [sys.executable, "-m", "opengrm", "eval", *words, "-o", str(args.folder / run), "-q"]
        subprocess.run(command, check=True)
        for name, found in json.loads((args.folder / run / "eval.json").read_text())["benchmarks"].items():
            kept = ("items", "missing", "tied", "partial", "overall", "overall_valid", "overall_interval", "metrics")
            rows.append({"run": run, "benchmark": name, **{key: found[key] for key in kept},
                         "subsets": found["subsets"], "cost": found["cost"]})  # fmt: skip
    headline = {f"{row['run']}_{row['benchmark']}": row["overall"] for row in rows}
    path = write_result(ROOT / "results" / "eval.json", headline=headline, rows=rows)
    cells = []
    for row in rows:
        whole = {"subset": "overall", "items": row["items"], "missing": row["missing"],
                 "accuracy": row["overall_interval"]}  # fmt: skip
        for part in (whole, *row["subsets"]):
            cells.append({
                "run": row["run"], "benchmark": row["benchmark"] + (" (part of its rows)" if row["partial"] else ""),
                "subset": part["subset"], "items": f"{part['items']:,}", "no verdict": f"{part['missing']:,}",
                "% [95 %]": percent(part["accuracy"]),
                "with a verdict": share(row["overall_valid"]) if part is whole else percent(part["accuracy_valid"]),
            })  # fmt: skip
    path.with_suffix(".md").write_text(f"# `opengrm eval`\n\n{__doc__.split(chr(10) * 2)[-1]}\n{markdown(cells)}")


if __name__ == "__main__":
    main()
