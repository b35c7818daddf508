"""results/paradigms.json and its page, from what `scripts/measure_paradigms.py` has measured.

python scripts/report_paradigms.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure_paradigms import JUDGED, PAIRS, SOLO, VOTES, models, paradigm_of, reported, sets
from measure_spct import parameters

from opengrm.engines.checkpoints import find_model
from opengrm.items import Item
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reports.results import write_result
from opengrm.reports.tables import count, markdown, percent, share
from opengrm.voting.correctness import credit
from opengrm.voting.intervals import normal_interval
from opengrm.voting.reducers import Reducer, verdict_of

ORDERLESS = ("cloud", "bt", "pair", SOLO)  # one response at a time, or both orders in one judgment
COLUMNS = {"greedy": "greedy, or one pass", "k1": "@1", "k8": "@8", "k32": "@32"}
INTRODUCTION = """\
# Six paradigms in RubricWorld

One base, {sizes} parameters each, one set of 6,000 labelled items (who learns from which part of it:
docs/paradigms.md); {pairs:,} held-out pairs, 200 lists of 3 to 6,
200 single responses. Per cent with 95 % intervals; a missing verdict counts as chance; sampled judgments at
temperature 1. The world is a proving ground: this shows what the methods make of one small model and the same labels,
not how large models judge real text. Measured by `scripts/measure_paradigms.py`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/paradigms"))
    parser.add_argument("--grm", type=Path, default=Path("runs/spct/main-0"))
    parser.add_argument("--output", type=Path, default=Path("results"))
    args = parser.parse_args()
    judged = {name: json.loads((args.folder / "judged" / f"{name}.json").read_text()) for name in JUDGED}
    once = json.loads((args.folder / "judged" / "one-pass.json").read_text())
    times = json.loads((args.folder / "timed.json").read_text())
    rows = [summary(name, judged[name], times["rows"]) for name in JUDGED]
    sizes = {
        name: parameters(find_model(f"{path}/head" if name == "cloud" else path)[0])
        for name, path in models(args.folder, args.grm).items()
    }
    gains = compared(args.folder)
    notes = {
        "parameters": sizes, "pair_one_pass_consistency": once, "timed_pairs": times["items"], "gains": gains,
        "scalar_training": {name: reported(args.folder, name) for name in ("bt", "pair")},
        "training_seconds": training_seconds(args.folder, args.grm),
    }  # fmt: skip
    write_result(
        args.output / "paradigms.json",
        headline={f"{row['judge']}_{how}": told["mean"] for row in rows for how, told in row["pairs"].items()},
        rows=[*rows, *({"row": "votes", **row} for told in judged.values() for row in told["rows"])],
        notes=notes,
    )
    span = " to ".join(f"{size:,}" for size in sorted({min(sizes.values()), max(sizes.values())}))
    page = [INTRODUCTION.format(sizes=span, pairs=PAIRS), *sentences(gains), "", *tables(rows, once, times["items"])]
    (args.output / "paradigms.md").write_text("\n".join(page), encoding="utf-8")


def summary(name: str, judged: Mapping[str, Any], times: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One paradigm: accuracy on pairs and lists, ROC-AUC on single responses, positions, cost of a verdict."""
    paradigm = paradigm_of(name)
    found: dict[str, Any] = {
        "row": "summary", "judge": name, "title": title(name), "generation": paradigm.generation,
        "scoring": paradigm.scoring, "vote": paradigm.reduce if paradigm.sampled else None,
        "takes": [n for n in (1, 2, 3) if paradigm.takes(n)],
    }  # fmt: skip
    for kind, measure in (("pairs", "accuracy"), ("lists", "accuracy"), ("singles", "auc")):
        of_kind = {
            "greedy" if row["how"] == "greedy" else f"k{row['k']}": row for row in judged["rows"] if row["set"] == kind
        }
        found[kind] = {how: row[measure] for how, row in of_kind.items()}
        if kind == "pairs":
            found["valid"] = {how: row["parse_rate"] for how, row in of_kind.items()}
    for how, positions in judged["positions"].items():
        found[f"consistency_{how}"] = positions[0]["other_order_agreement"] if positions else None
        found[f"first_preference_{how}"] = positions[0]["first_preference"] if positions else None
    for k in (1, 8, 32):
        own = [row for row in times if row["judge"] == name and row["k"] == k]
        if own:
            found[f"tokens_{k}"] = own[0]["tokens"]
            found[f"seconds_{k}"] = statistics.median(row["seconds"] for row in own)
    return found


def title(name: str) -> str:
    """What people call the judge."""
    return paradigm_of(name).title + (", one response a prompt" if name == SOLO else "")


def compared(folder: Path) -> list[dict[str, Any]]:
    """Each sampled judge against each scalar one on the same items: the difference in accuracy, paired by item."""
    rows = []
    for kind, items in sets().items():
        credits: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
        for name in JUDGED:
            paradigm = paradigm_of(name)
            if kind == "singles" or not all(paradigm.takes(item.n) for item in items):
                continue
            with Ledger(folder / "judged" / f"{name}.ledger.db", create=False) as ledger:
                made: dict[tuple[str, bool], list[Judgment]] = {}
                for judgment in ledger.judgments():
                    made.setdefault((judgment.item, not judgment.temperature), []).append(judgment)
            for greedy in (True, False) if paradigm.sampled else (True,):
                credits[name, "greedy" if greedy else "votes"] = np.array([
                    _credit(item, made[item.id, greedy], paradigm.reduce, greedy)
                    for item in items
                ])  # fmt: skip
        rows += [
            {"set": kind, "judge": name, "how": how, "scalar": scalar, "gain": gain._asdict()}
            for (name, how), own in credits.items() if paradigm_of(name).sampled
            for scalar in ("bt", "pair")
            if (gain := normal_interval(own - credits[scalar, "greedy"])) is not None
        ]  # fmt: skip
    return rows


def _credit(item: Item, judgments: Sequence[Judgment], reduce: Reducer, greedy: bool) -> float:
    """What the verdicts earn: the mean over greedy judgments (a pair's two orders), or that of all sampled ones.

    A missing verdict earns what a blind guess does.
    """
    votes = [[judgment] for judgment in judgments] if greedy else [list(judgments)]
    earned = []
    for some in votes:
        scores = [judgment.scores for judgment in some if judgment.scores is not None]
        told = verdict_of(item.id, scores, reduce, asked=len(some)).scores
        earned.append(1 / item.n if told is None or item.best is None else credit(told, item.best))
    return statistics.mean(earned)


def training_seconds(folder: Path, grm: Path) -> dict[str, Any]:
    """Seconds of the generative judges' stages, as they wrote them down; other load made them longer."""
    stages = ("collect", "tune", "rl")
    runs = {"grm": grm, "llm": folder / "llm" / "run"}
    found: dict[str, Any] = {
        name: {
            stage: json.loads((run / "spct.json").read_text())["stages"][stage]["seconds"] or None for stage in stages
        }
        for name, run in runs.items()
    }
    found["llm"]["cold start"] = json.loads((folder / "llm" / "cold" / "train.json").read_text()).get("seconds")
    return found


def sentences(gains: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the scalar models win, lose, and cannot be told apart from the others: from the paired intervals alone."""
    said = {"greedy": "greedy", "votes": f"with {VOTES} votes"}
    outcomes: dict[str, list[str]] = {"**Scalar models win**": [], "Scalar models lose": [], "No difference": []}
    for row in gains:
        mean, low, high = (0.0 - 100 * row["gain"][part] for part in ("mean", "high", "low"))
        scalar, judge = title(row["scalar"]), f"{title(row['judge'])} {said[row['how']]}"
        outcome = list(outcomes)[0 if low > 0 else 1 if high < 0 else 2]
        outcomes[outcome].append(
            f"- {row['set']}: {scalar} against {judge}: {mean:+.1f} points [{low:+.1f}, {high:+.1f}]"
        )
    lines = []
    for outcome, found in outcomes.items():
        if found:
            lines += [f"{outcome}:", "", *found, ""]
    return lines


def tables(rows: Sequence[Mapping[str, Any]], once: Mapping[str, float], timed: int) -> list[str]:
    """The page's tables."""

    def figures(kind: str) -> str:
        cells = []
        for row in rows:
            if row[kind]:
                paradigm = f"{row['title']} ({row['generation']}, {row['scoring']})"
                numbers = {title: percent(row[kind].get(how)) for how, title in COLUMNS.items()}
                cells.append({"judge": row["judge"], "paradigm": paradigm, **numbers})
        return markdown(cells)

    takes, cost = [], []
    for row in rows:
        able = {title: "yes" if n in row["takes"] else "no" for n, title in enumerate(("single", "pair", "list"), 1)}
        takes.append({"judge": row["judge"], **able, "vote": row["vote"] or "none: every sample is the same"})
        ordered = row["judge"] not in ORDERLESS
        cells = {
            "judge": row["judge"],
            "same winner in both orders %": percent(row["consistency_greedy"]) if ordered else "100 by construction",
            "preference for the first %": percent(row["first_preference_greedy"]) if ordered else "-",
            "valid %": share(row["valid"].get("k32", row["valid"]["greedy"])),
        }
        for k in (1, 8, 32):
            cells[f"tokens @{k}"] = count(row.get(f"tokens_{k}"))
            cells[f"ms @{k}"] = f"{1000 * row[f'seconds_{k}']:.2f}" if f"seconds_{k}" in row else "-"
        cost.append(cells)
    return [
        "## Pairs", "", figures("pairs"), "## Lists", "", figures("lists"),
        "## Single responses: ROC-AUC against the 0/1 label", "", figures("singles"),
        "## What they take", "", markdown(takes),
        f"## Positions (greedy) and cost of a verdict ({timed} pairs, one thread of a shared machine)", "",
        markdown(cost),
        "PairRM reads both orders, so that its sum cannot depend on them; its two passes prefer the same response for",
        f"{percent(once)} % of the pairs.", "",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
