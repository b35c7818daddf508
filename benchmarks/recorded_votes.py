"""`opengrm vote` on judgments that others recorded: accuracy or correlation for every k.

    python benchmarks/recorded_votes.py DATA    # writes results/recorded-votes.json, .md and .png

DATA holds the public sets that examples/convert_recorded.py converts; the numbers are those that the command prints.
tests/test_recorded_votes.py checks each of them against a computation in plain Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from opengrm.reports.curves import plot_curves
from opengrm.reports.results import write_result
from opengrm.reports.tables import markdown, vote_cells

ROOT = Path(__file__).parents[1]
# file of judgments, file of items, the vote
SETS = (
    ("realmistake", "realmistake", "majority"),
    ("amel_pilot_fresh", "amel", "majority"),
    ("amel_pilot_batched", "amel", "majority"),
    ("amel_v2", "amel", "majority"),
    ("prometheus_mt_bench_eval", "prometheus_mt_bench_eval", "mean"),
    ("prometheus_vicuna_eval", "prometheus_vicuna_eval", "mean"),
)
PICTURED = "amel_pilot_fresh"
ORIGINS = (
    "Origins and licences: ReaLMistake (github.com/psunlpgroup/ReaLMistake: data CC BY-SA 4.0, the rest MIT); AMEL"
    " (github.com/chutapp/amel-llmbar-audit, on LLMBar items: data CC BY 4.0, code MIT); Prometheus"
    " (github.com/prometheus-eval/prometheus-eval: Apache-2.0)."
)


def main(data: Path) -> None:
    rows: list[dict[str, Any]] = []
    results = ROOT / "results"
    head = (
        "95 % intervals clustered by item. Missing judgments have no vote; items without a vote count at chance,"
        ' except under "valid only".'
    )
    page = [f"# Votes that others recorded\n\n{head}\n\n{ORIGINS}\n"]
    with tempfile.TemporaryDirectory() as folder:
        convert = [sys.executable, str(ROOT / "examples" / "convert_recorded.py"), str(data), folder]
        subprocess.run(convert, check=True, capture_output=True)
        for judgments, items, how in SETS:
            words = [
                f"{folder}/{judgments}.judgments.jsonl",
                "--items",
                f"{folder}/{items}.items.jsonl",
                "--reduce",
                how,
            ]
            command = [sys.executable, "-m", "opengrm", "vote", *words, "--json"]
            report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            sources = dict.fromkeys((r["model"], r["template"]) for r in report["rows"])
            for source in sources:
                found = [r for r in report["rows"] if (r["model"], r["template"]) == source]
                page.append(f"\n## {judgments}: {' · '.join(source)} ({how})\n\n{markdown(vote_cells(found))}")
            rows += [{"set": judgments, **row} for row in report["rows"]]

    def accuracy(name: str, model: str, k: int) -> float:
        (row,) = [r for r in rows if (r["set"], r["model"], r["k"]) == (name, model, k)]
        return float((row.get("accuracy") or row["pearson"])["mean"])

    haiku = "claude-haiku-4-5"
    write_result(
        results / "recorded-votes.json",
        command="python benchmarks/recorded_votes.py DATA",
        headline={
            "amel_fresh_haiku_k1": accuracy("amel_pilot_fresh", haiku, 1),
            "amel_fresh_haiku_k5": accuracy("amel_pilot_fresh", haiku, 5),
            "prometheus_mt_bench_k1": accuracy("prometheus_mt_bench_eval", "gpt-4", 1),
            "prometheus_mt_bench_k2": accuracy("prometheus_mt_bench_eval", "gpt-4", 2),
        },
        rows=rows,
    )
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["set"] == PICTURED:
            curves.setdefault(row["model"], []).append(row)
    title = "Pairs of LLMBar, majority of k recorded votes"
    picture = plot_curves(results / "recorded-votes.png", curves, title=title)
    page.insert(1, f"\n![{PICTURED}: accuracy against k]({picture.name})\n")
    (results / "recorded-votes.md").write_text("".join(page), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
