"""Results of what `scripts/measure_spct.py` has measured: JSON files with pictures and pages beside them.

    python scripts/report_spct.py        results/spct-{main,ablation,principles,sizes}.{json,md,png}

It writes what is there and says what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure_spct import ABLATION_ITEMS, ABLATIONS, held_out

from opengrm.items import Item
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reports.results import write_result
from opengrm.training.stage import read_json
from opengrm.worlds.rubric import generate_items

# What the paper's Table 4 says of a row: change of its overall score, against DeepSeek-GRM-27B (rows trained by RL) or
# against the model after rejective fine-tuning.
PAPER = {
    "no-principles": -2.4, "no-rejective": -1.2, "no-hinted": -0.8, "no-non-hinted": -1.4, "no-both": -2.7,
    "no-instructions": -5.5,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/spct"))
    parser.add_argument("--output", type=Path, default=Path("results"))
    args = parser.parse_args()
    report(args.folder, args.output)


def report(folder: Path, output: Path) -> None:
    """Write the result files of whatever was measured."""
    found = {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.glob("*/measured.json"))}
    seeds = {name: value for name, value in found.items() if name.startswith("main-")}
    if seeds:
        report_main(folder, output, seeds)
    if "main-0" in found and "full" in found:
        report_ablation(folder, output, found)
    sizes = {name: value for name, value in found.items() if name.startswith("size-")}
    if len(sizes) > 1:
        report_sizes(output, sizes)
    if "principles" in found:
        rows = found["principles"]["rows"]
        headline = {
            f"{r['model']}_{r['principles'].replace(' ', '_').replace('-', '_')}": r["accuracy"]["mean"]
            for r in rows if r["k"] == 1
        }  # fmt: skip
        write_result(output / "spct-principles.json", headline=headline, rows=rows)
        title = f"The principle experiment (paper, Table 1): {ABLATION_ITEMS} held-out pairs"
        write_page(output / "spct-principles.md", title, principle_lines(rows))


def report_main(folder: Path, output: Path, seeds: Mapping[str, Mapping[str, Any]]) -> None:
    """Means over seeds; a row of every seed is kept with its own interval."""
    rows, process = [], []
    for name, measured in seeds.items():
        rows += [{"seed": int(name[5:]), **row} for row in measured["rows"]]
        process += [{"seed": int(name[5:]), **row} for row in measured["process"]]
    means: dict[str, float] = {}
    table = []
    for key in sorted({(r["model"], r["set"], r["how"], r["k"]) for r in rows}):
        same = [r for r in rows if (r["model"], r["set"], r["how"], r["k"]) == key]
        values = [r["accuracy"]["mean"] for r in same]
        model, name, how, k = key
        row = {
            "model": model, "set": name, "how": how, "k": k, "seeds": len(values), "items": same[0]["items"],
            "mean": statistics.mean(values), "sd_over_seeds": statistics.stdev(values) if len(values) > 1 else None,
            "lowest": min(r["accuracy"]["low"] for r in same), "highest": max(r["accuracy"]["high"] for r in same),
        }  # fmt: skip
        table.append(row)
        if name == "pairs":
            short = "greedy" if how == "greedy" else f"k{k}"
            means[f"meta_k{k}" if how == "meta" and model == "rl" else f"{model}_{how.replace(' ', '')}_{short}"] = (
                row["mean"]
            )
    wanted = {
        "base_greedy": "base_greedy_greedy", "rft_greedy": "rft_greedy_greedy", "rl_greedy": "rl_greedy_greedy",
        "base_k1": "base_sum_k1", "base_k8": "base_sum_k8", "base_k32": "base_sum_k32",
        "rft_k1": "rft_sum_k1", "rft_k8": "rft_sum_k8", "rft_k32": "rft_sum_k32",
        "rl_k1": "rl_sum_k1", "rl_k8": "rl_sum_k8", "rl_k32": "rl_sum_k32",
        "meta_k8": "meta_k8", "meta_k32": "meta_k32",
    }  # fmt: skip
    headline = {key: means[name] for key, name in wanted.items() if name in means}
    training = {name: metrics(folder / name / "rl" / "metrics.jsonl") for name in seeds}
    notes = {
        "table": table, "process": process, "sets": {name: len(items) for name, items in held_out().items()},
        "meta_rm": {name: (read_json(folder / name / "meta" / "meta_rm.json") or {}).get("dev") for name in seeds},
        "runs": {
            name: {key: (read_json(folder / name / "spct.json") or {}).get(key) for key in ("commit", "machine")}
            for name in seeds
        },
        "stages": {name: (read_json(folder / name / "spct.json") or {}).get("stages") for name in seeds},
        "rl": training,
        "config": (read_json(folder / "main-0" / "spct.json") or {}).get("config"),
        "about_intervals": "rows: 95 %, clustered by item, of one seed; table: mean over seeds, the lowest and the"
                           " highest end of their intervals, and the standard deviation over seeds",
    }  # fmt: skip
    write_result(output / "spct-main.json", headline=headline, rows=rows, notes=notes)
    title = f"SPCT in RubricWorld: means of {len(seeds)} seeds"
    write_page(output / "spct-main.md", title, main_lines(table, process))
    pictures(output, rows, training)


def report_sizes(output: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy against votes for each size of model: base, and after the shorter recipe."""
    from opengrm.reports.curves import plot_curves

    rows, series, headline = [], {}, {}
    for name, measured in sorted(found.items(), key=lambda pair: pair[1]["parameters"]):
        size, width = measured["parameters"], name[5:]
        same = [r for r in measured["rows"] if r["set"] == "pairs"]
        rows += [{"width": int(width), "parameters": size, **row} for row in same]
        for model in ("base", "rl"):
            votes = [r for r in same if r["model"] == model and r["how"] == "sum"]
            series[f"{size / 1e6:.2f} M, {'base' if model == 'base' else 'after SPCT'}"] = votes
            wanted = {"greedy": ("greedy", 1), "k1": ("sum", 1), "k8": ("sum", 8), "k32": ("sum", 32)}
            for key, place in wanted.items():
                value = next(r for r in same if r["model"] == model and (r["how"], r["k"]) == place)
                headline[f"w{width}_{model}_{key}"] = value["accuracy"]["mean"]
    plot_curves(output / "spct-sizes.png", series, title="RubricWorld, 500 held-out pairs, one seed")
    write_result(output / "spct-sizes.json", headline=headline, rows=rows)


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of an RL run that are drawn."""
    names = ("step", "reward", "correct", "kl", "completion_tokens", "parse_rate", "no_signal")
    return [{n: row.get(n) for n in names} for row in map(json.loads, path.read_text().splitlines())]


def pictures(
    output: Path, rows: Sequence[Mapping[str, Any]], training: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Accuracy against k, and RL as it went."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from opengrm.reports.curves import plot_curves

    first = [r for r in rows if r["seed"] == 0 and r["set"] == "pairs"]
    series = {
        f"{model}, {label}": [r for r in first if r["model"] == model and r["how"] == how]
        for model in ("base", "rft", "rl") for how, label in (("sum", "plain votes"), ("meta", "meta-guided votes"))
    }  # fmt: skip
    plot_curves(
        output / "spct-votes.png", {name: found for name, found in series.items() if found},
        title="RubricWorld, 2,000 held-out pairs, seed 0",
    )  # fmt: skip
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    for axes, (name, label) in zip(
        panels.flat,
        (("reward", "reward"), ("kl", "KL to the RFT model"), ("completion_tokens", "tokens of a judgment"),
         ("parse_rate", "share parsed")), strict=True,
    ):  # fmt: skip
        for run_name, steps in training.items():
            axes.plot([s["step"] for s in steps], [s[name] for s in steps], linewidth=1, label=run_name[5:])
        axes.set_title(label)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    panels[0, 0].legend(title="seed", frameon=False)
    figure.savefig(output / "spct-rl.png", dpi=150, metadata={"Software": None})


def report_ablation(folder: Path, output: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Every ablation against the whole on the same 500 pairs, paired by item: RL rows to "full" (see `shorter`)."""
    pairs = list(generate_items(ABLATION_ITEMS, split="test"))
    full = {"rft": credits(folder / "main-0", "rft", pairs), "rl": credits(folder / "full", "rl", pairs)}
    rows = [{"row": f"full ({m})", "model": m, **cell} for m in ("rft", "rl") for cell in cells(full[m], full[m])]
    headline = {f"full_{m}_{r['how']}": r["accuracy"] for m in ("rft", "rl") for r in cells(full[m], full[m])}
    for name, chosen in ABLATIONS.items():
        if name not in found or name == "full":
            continue
        models = ["rft", "rl"] if name == "no-rejective" else [chosen.model]
        for model in models:
            label = "no-both" if (name, model) == ("no-rejective", "rft") else name
            for cell in cells(credits(folder / name, model, pairs), full[model]):
                paper = PAPER.get(label)
                rows.append({"row": label, "model": model, "paper": paper, "agrees": agrees(paper, cell), **cell})
                headline[f"{label.replace('-', '_')}_{cell['how']}"] = cell["accuracy"]
    votes = [r for r in found["main-0"]["rows"] if r["set"] == "pairs" and r["how"].startswith("meta")]
    places = {"meta top 1": 1, "meta top 8": 8, "meta top 16": 16}
    for row in votes:
        if row["how"] in places and row["model"] == "rl":
            rows.append({"row": f"k_meta {places[row['how']]}", **row})
            headline[f"k_meta_{places[row['how']]}"] = row["accuracy"]["mean"]
    missing = [name for name in ABLATIONS if name not in found]
    if missing:
        print("not measured:", ", ".join(missing))
    write_result(output / "spct-ablation.json", headline=headline, rows=rows, notes={"missing": missing})
    title = f"Ablations of SPCT in RubricWorld: {ABLATION_ITEMS} held-out pairs, one seed"
    write_page(output / "spct-ablation.md", title, ablation_lines(rows))


def credits(place: Path, model: str, items: Sequence[Item]) -> dict[str, list[float]]:
    """What each item earns, greedy and by the sum of 8 votes, in the items' order."""
    from opengrm.voting.correctness import credit
    from opengrm.voting.reducers import vote

    ids = {item.id: item for item in items}
    by: dict[tuple[str, str], list[Judgment]] = {}
    with Ledger(place / "evaluation" / f"{model}.ledger.db", create=False) as ledger:
        for j in ledger.judgments():
            if j.item in ids and (j.temperature == 0 or j.sample < 8):
                by.setdefault(("greedy" if j.temperature == 0 else "k8", j.item), []).append(j)
    earned: dict[str, list[float]] = {"greedy": [], "k8": []}
    for how, values in earned.items():
        for item in items:
            verdict = vote(item.id, by.get((how, item.id), []), item.n)
            values.append(1 / item.n if verdict.scores is None else credit(verdict.scores, item.best or 0))
    return earned


def cells(mine: Mapping[str, Sequence[float]], full: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Accuracy, and the difference to the full recipe with a paired interval, for each way of voting."""
    rows = []
    for how, values in mine.items():
        differences = [a - b for a, b in zip(values, full[how], strict=True)]
        half = [1.96 * statistics.stdev(v) / len(v) ** 0.5 for v in (values, differences)]
        mean, change = statistics.mean(values), statistics.mean(differences)
        rows.append(
            {"how": how, "items": len(values), "accuracy": mean, "low": mean - half[0], "high": mean + half[0],
             "change": change, "change_low": change - half[1], "change_high": change + half[1]}
        )  # fmt: skip
    return rows


def agrees(paper: float | None, cell: Mapping[str, float]) -> str | None:
    """Whether a change goes the paper's way; "not seen" where its interval holds 0."""
    if paper is None:
        return None
    if cell["change_low"] <= 0 <= cell["change_high"]:
        return "not seen"
    return "yes" if (cell["change"] < 0) == (paper < 0) else "no"


# --- pages --------------------------------------------------------------------------------------------------------


def write_page(path: Path, title: str, lines: Iterable[str]) -> None:
    """A page of text beside a result."""
    path.write_text("\n".join([f"# {title}", "", *lines, ""]), encoding="utf-8")


def percent(mean: float, low: float | None = None, high: float | None = None) -> str:
    """ "71.1" or "71.1 [69.3, 72.8]"."""
    return f"{100 * mean:.1f}" + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def main_lines(table: Sequence[Mapping[str, Any]], process: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy by model, set and way of voting; process measures."""
    ks = (1, 2, 4, 8, 16, 32)
    lines = [
        "Accuracy in per cent; in brackets the lowest and the highest end of the seeds' 95 % intervals. Lists: 3 to 6"
        " responses; singles: labels 0 and 1. Guided: half of the votes, chosen by the meta RM.",
    ]
    for name in ("pairs", "lists", "singles"):
        lines += ["", f"## {name}", "", "| model | votes | seeds | greedy | " + " | ".join(f"@{k}" for k in ks) + " |"]
        lines += ["| --- | --- | ---: | ---: |" + " ---: |" * len(ks)]
        for model in ("base", "rft", "rl"):
            for how, label in (("sum", "plain"), ("meta", "guided")):
                own = {r["k"]: r for r in table if (r["model"], r["set"], r["how"]) == (model, name, how)}
                greedy = [r for r in table if (r["model"], r["set"], r["how"]) == (model, name, "greedy")]
                if not own:
                    continue
                cells = [percent(own[k]["mean"], own[k]["lowest"], own[k]["highest"]) if k in own else "" for k in ks]
                first = percent(greedy[0]["mean"], greedy[0]["lowest"], greedy[0]["highest"]) if how == "sum" else ""
                seeds = max(r["seeds"] for r in own.values())
                lines.append(f"| {model} | {label} | {seeds} | {first} | " + " | ".join(cells) + " |")
    lines += [
        "", "## Process, on pairs (sampled judgments)", "",
        "| model | seed | " + " | ".join(PROCESS.values()) + " |", "| --- | ---: |" + " ---: |" * len(PROCESS),
    ]  # fmt: skip
    for row in process:
        if row["set"] == "pairs":
            cells = [percent(row[key]) if row.get(key) is not None else "" for key in PROCESS]
            lines.append(f"| {row['model']} | {row['seed']} | " + " | ".join(cells) + " |")
    return lines


PROCESS = {
    "principle_precision": "principle precision", "principle_recall": "principle recall",
    "critique_accuracy": "findings true", "sound": "sound reasoning",
}  # fmt: skip


def ablation_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every row with its change, and whether that goes the paper's way."""
    lines = [
        'Rows of "rft" are compared with the model after rejective fine-tuning, rows of "rl" with "full", which has'
        " the ablations' shorter RL stage; changes are paired by item, in points. Paper: change of its overall score"
        " (Table 4); \"not seen\": our interval holds 0.",
        "", "| row | model | votes | accuracy % | change | paper | agrees |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for row in rows:
        if "change" in row:
            change = f"{100 * row['change']:+.1f} [{100 * row['change_low']:+.1f}, {100 * row['change_high']:+.1f}]"
            paper = "" if row.get("paper") is None else f"{row['paper']:+.1f}"
            accuracy = percent(row["accuracy"], row["low"], row["high"])
            cells = (row["row"], row["model"], row["how"], accuracy, change, paper, row.get("agrees") or "")
        else:
            found = row["accuracy"]
            accuracy = percent(found["mean"], found["low"], found["high"])
            cells = (row["row"], "rl", f"guided, k = {row['k']}", accuracy, "", "", "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def principle_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whose principles, and what they are worth."""
    lines = [
        "Accuracy in per cent with a 95 % interval. Filtered: those of a judgment whose ranking was right (an oracle:"
        " it knows the label), given to another; where none of 4 was right, the judgments with own ones stand.", "",
        "| model | principles | 1 vote | 4 votes |", "| --- | --- | ---: | ---: |",
    ]  # fmt: skip
    for model, source in dict.fromkeys((r["model"], r["principles"]) for r in rows):
        own = {r["k"]: r["accuracy"] for r in rows if (r["model"], r["principles"]) == (model, source)}
        cells = [percent(own[k]["mean"], own[k]["low"], own[k]["high"]) for k in (1, 4)]
        lines.append(f"| {model} | {source} | {cells[0]} | {cells[1]} |")
    return lines


if __name__ == "__main__":
    main()
