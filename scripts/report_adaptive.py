"""The result, the page and the picture of adaptive voting, from the rows that `measure_adaptive.py` measured.

python scripts/report_adaptive.py     writes results/adaptive.md and .png again, from results/adaptive.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opengrm.reports.curves import plot_curves
from opengrm.reports.results import write_result
from opengrm.reports.tables import adaptive_cells, markdown, number

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
LEVEL = 0.05  # of the headline: the default
TABLES = {  # of rows that replay no recorded votes: the key that tells them, and the columns
    "Simulated close races": ("error", "set n reduce rule alpha error votes_share full_vote_ties"),
    "The level that a pilot chooses": ("splits", "aim levels disagreement splits_above_aim votes_mean loss_mean"),
    "Orders": ("orders", "model orders k accuracy strict ties"),
    "Votes": ("question:rule", "model reduce k accuracy ties"),
    "What breaking ties gains": (
        "one_vote",
        "model one_vote ties_of_one one_vote_its_ties_by_32 32_votes share_of_gain",
    ),
    "Temperatures": ("temperature", "model items temperature k accuracy ties parse_rate"),
    "Joint or solo": ("shown", "model items shown k accuracy ties parse_rate tokens"),
    "Seconds": ("cpu_seconds", "model plan items judgments seconds cpu_seconds per_cpu_second accuracy agreement"),
}


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """Every plan on the trained model's pairs, sum of scores."""
    wanted = ("RubricWorld pairs", "rl", "sum")
    return [r for r in rows if "rule" in r and (r["set"], r.get("model"), r.get("reduce")) == wanted]


def ratio(row: Row) -> float:
    """How often the outcome was another than the full vote's, over the alpha allowed."""
    other = row["error"]["mean"] if "error" in row else 1 - row["agreement"]["mean"]
    return float(other / row["alpha"])


def worst_of(rows: Sequence[Row], rule: str) -> Row:
    """Where a rule differed from the full vote most often, over alpha."""
    return max((r for r in rows if r.get("rule") == rule and r["alpha"]), key=ratio)


def headline(rows: Sequence[Row]) -> dict[str, float]:
    """`posterior` and `anytime` at 0.05, the default level, on the trained model's pairs."""
    main = main_rows(rows)
    usual, sure = (
        next(r for r in main if r["rule"] == rule and r["alpha"] == LEVEL) for rule in ("posterior", "anytime")
    )
    full, timed = (next(r for r in rows if r["set"] == "wall clock" and r["plan"] == p)
                   for p in ("32 votes", "posterior 0.05"))  # fmt: skip
    simulations = [r for r in rows if "error" in r]
    return {
        "votes_share": usual["votes_share"], "accuracy_loss": usual["accuracy_loss"]["mean"],
        "agreement": usual["agreement"]["mean"], "alpha": LEVEL,
        "posterior_worst_over_alpha": ratio(worst_of(rows, "posterior")),
        "posterior_simulated_worst_over_alpha": ratio(worst_of(simulations, "posterior")),
        "anytime_votes_share": sure["votes_share"], "anytime_agreement": sure["agreement"]["mean"],
        "anytime_worst_over_alpha": ratio(worst_of(rows, "anytime")),
        "anytime_simulated_worst_over_alpha": ratio(worst_of(simulations, "anytime")),
        "seconds_share": timed["seconds"] / full["seconds"],
        "cpu_seconds_share": timed["cpu_seconds"] / full["cpu_seconds"],
        "timed_votes_share": timed["judgments"] / full["judgments"],
    }  # fmt: skip


def picture(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against votes spent, a line for each rule."""
    main = main_rows(rows)
    series = {
        name: sorted(
            ({"k": r["votes"]["mean"], "accuracy": r["accuracy"]} for r in main if r["rule"] == rule),
            key=lambda r: r["k"],
        )
        for name, rule in (("always k votes", "fixed"), ("posterior", "posterior"), ("anytime", "anytime"),
                           ("exact", "exact"))
    }  # fmt: skip
    plot_curves(path, series, title="RubricWorld, trained GRM: accuracy against votes spent (k = 32)")


def save(rows: Sequence[Row], out: Path) -> None:
    """The result so far; the last one is whole."""
    write_result(
        out / "adaptive.json",
        headline=headline(rows),
        rows=rows,
        notes={
            "votes": "RubricWorld: judgments of the seed-0 run at temperature 1, balanced orders, k = 32.",
            "headline": "alpha is the default. Worst: the highest disagreement over alpha of a rule's rows.",
            "worst": {rule: worst_of(rows, rule) for rule in ("posterior", "anytime")},
            "real_sets": "Pooled sets (LLMBar, WildBench) have as many votes as judges and protocols of an item.",
            "wall_clock": "seconds on two cores that other work may share; cpu_seconds tell the work done.",
        },
    )
    draw(rows, out)


def draw(rows: Sequence[Row], out: Path) -> None:
    """The page and its picture."""
    picture(rows, out / "adaptive.png")
    (out / "adaptive.md").write_text(page(rows), encoding="utf-8")


def page(rows: Sequence[Row]) -> str:
    """The tables: of the rows that replay recorded votes, then of all others."""
    text = ["# Adaptive voting\n\nMade by `scripts/measure_adaptive.py`; docs/adaptive-voting.md explains.\n"
            "\n![accuracy against votes spent](adaptive.png)\n"]  # fmt: skip
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if "plan" in row and "votes" in row:
            name = " · ".join(str(row[key]) for key in ("set", "model", "template", "reduce") if row.get(key))
            groups.setdefault(name, []).append(row)
    text += [f"\n## {name}\n\n{markdown(adaptive_cells(found))}" for name, found in groups.items()]
    text.append("\nThe tables below give shares with an interval in percent [95 %], all others of 1.\n")
    for name, (key, columns) in TABLES.items():
        found = [row for row in rows if key in (*row, f"question:{row.get('question')}")]
        cells = [{column.replace("_", " "): _cell(row[column]) for column in columns.split()} for row in found]
        text.append(f"\n## {name}\n\n{markdown(cells)}")
    return "".join(text)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return number({part: 100 * share for part, share in value.items()})
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    known = json.loads((ROOT / "results" / "adaptive.json").read_text(encoding="utf-8"))["rows"]
    draw(known, ROOT / "results")
