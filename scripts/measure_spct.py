"""Measure SPCT in RubricWorld: three seeds of the full recipe, the ablations of the paper's Table 4, and its Table 1.

    python scripts/measure_spct.py run main-0 main-1 main-2     training and evaluation, resumable; hours on one core
    python scripts/measure_spct.py run no-principles ...        an ablation each, from the runs of main-0
    python scripts/measure_spct.py run size-64 size-128         a shorter recipe on bases of two widths
    python scripts/measure_spct.py report                       results/spct-{main,ablation,principles,sizes}.json

Runs are independent processes on one folder each (set OMP_NUM_THREADS=1 when two run), but ablations copy what they
share with main-0, so that comes first. `report` writes what is there and says what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opengrm.engines.base import Sampling
from opengrm.engines.checkpoints import find_model
from opengrm.items import Item
from opengrm.judges.meta import open_meta_rm
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reports.results import commit, machine, versions, write_result
from opengrm.templates import get_template
from opengrm.templates.forms import forms_of
from opengrm.training.evaluation import EvaluationSettings, evaluate, judge_all
from opengrm.training.spct import STAGES, Stage, run
from opengrm.training.spct_config import Config, World, read_config
from opengrm.training.stage import read_json, write_json
from opengrm.voting.correctness import correct, label_of
from opengrm.voting.revote import Labels, revote
from opengrm.worlds.rubric import generate_items

RECIPE = Path("recipes/rubric-world.toml")
SEEDS = (0, 1, 2)
WIDTHS = (64, 128)  # 128 is nano-base
ABLATION_ITEMS = 500


@dataclass(frozen=True)
class Ablation:
    """One row of the paper's Table 4, or of a grid.

    Attributes:
        change: the recipe's configuration, changed.
        model: what is measured, "rft" or "rl".
        copied: what it shares with main-0.
    """

    change: Callable[[Config], Config]
    model: str
    copied: tuple[str, ...] = ()


def _rft(**values: Any) -> Callable[[Config], Config]:
    return lambda c: replace(c, rft=replace(c.rft, **values))


def _grpo(**values: Any) -> Callable[[Config], Config]:
    return lambda c: replace(c, rl=replace(c.rl, grpo=replace(c.rl.grpo, **values)))


SAMPLED = ("rft/collect.ledger.db",)
TUNED = ("rft",)
ABLATIONS: dict[str, Ablation] = {
    "full": Ablation(lambda c: c, "rl", TUNED),
    "no-principles": Ablation(lambda c: replace(c, template=f"{c.template}+no-principles"), "rl"),
    "no-rejective": Ablation(_rft(non_hinted=False, hinted=False), "rl"),
    "no-hinted": Ablation(_rft(hinted=False), "rft", SAMPLED),
    "no-non-hinted": Ablation(_rft(non_hinted=False), "rft", SAMPLED),
    "no-instructions": Ablation(lambda c: replace(c, data=replace(c.data, instructions=None)), "rft", SAMPLED),
    "beta-0": Ablation(_grpo(beta=0.0), "rl", TUNED),
    "beta-0.01": Ablation(_grpo(beta=0.01), "rl", TUNED),
    "beta-0.02": Ablation(_grpo(beta=0.02), "rl", TUNED),
    "g-2": Ablation(_grpo(generations=2), "rl", TUNED),
    "g-8": Ablation(_grpo(generations=8), "rl", TUNED),
}
# What the paper's Table 4 says of a row: Overall against DeepSeek-GRM-27B (RL rows) or its RFT model.
PAPER = {
    "no-principles": "-2.4 against the full model (67.5, 69.9)",
    "no-rejective": "-1.2 against the full model (68.7, 69.9)",
    "no-hinted": "-0.8 against RFT (68.0, 68.8)",
    "no-non-hinted": "-1.4 against RFT (67.4, 68.8)",
    "no-both": "-2.7 against RFT (66.1, 68.8)",
    "no-instructions": "-5.5 against RFT (63.3, 68.8)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    names = [*(f"main-{seed}" for seed in SEEDS), *ABLATIONS, "principles", *(f"size-{width}" for width in WIDTHS)]
    runs = commands.add_parser("run", help="train and measure")
    runs.add_argument("names", nargs="+", choices=names)
    runs.add_argument("--stage", nargs="*", choices=STAGES, default=list(STAGES), help="of main runs")
    commands.add_parser("report", help="write the results of what was measured")
    for command in commands.choices.values():
        command.add_argument("--folder", type=Path, default=Path("runs/spct"))
        command.add_argument("--output", type=Path, default=Path("results"))
    args = parser.parse_args()
    if args.what == "report":
        report(args.folder, args.output)
        return
    for name in args.names:
        if name.startswith("main-"):
            main_run(args.folder, int(name[5:]), args.stage)
        elif name.startswith("size-"):
            size_run(args.folder, int(name[5:]))
        elif name == "principles":
            principles(args.folder)
        else:
            ablation(args.folder, name)


# --- runs -------------------------------------------------------------------------------------------------------


def main_run(folder: Path, seed: int, stages: Sequence[Stage]) -> None:
    """One seed of the recipe, and its models on the large held-out sets."""
    config, place = read_config(RECIPE, seed=seed), folder / f"main-{seed}"
    about = {"versions": versions(), "machine": machine(), "commit": commit()}
    # The recipe's own, smaller evaluation is timed with the first seed; its judgments are used again here.
    run(config, place, stages=[s for s in stages if seed == 0 or s != "evaluate"], about=about)
    if "evaluate" not in stages or (place / "measured.json").exists():
        return
    models = {"rft": str(place / "rft" / "model"), "rl": str(place / "rl")}
    if seed == 0:
        models = {"base": config.base, **models}
    settings = replace(
        config.evaluation, votes={} if seed == 0 else config.evaluation.votes, guided=("base", "rl"), k_meta=(1, 8, 16)
    )
    found = measured(models, held_out(), config, place, settings, meta=place / "meta" / "model")
    write_json(place / "measured.json", found)


def size_run(folder: Path, width: int) -> None:
    """RFT and the ablations' shorter RL on a base of this width, and what 500 pairs say of both ends."""
    place, config = folder / f"size-{width}", shorter(read_config(RECIPE, seed=0))
    trained = folder / "full" / "rl"
    if width != 128:
        base, trained = folder / f"nano-{width}" / "faulty", place / "rl"
        if not base.exists():
            raise SystemExit(
                f"{base} is not there: python scripts/pretrain_nano.py --width {width} --output {base.parent} makes it"
            )
        config = replace(config, base=str(base))
        run(config, place, stages=STAGES[: STAGES.index("rl") + 1])
    elif not trained.exists():
        raise SystemExit(f"{trained} is not there: run full first")
    pairs = {"pairs": list(generate_items(ABLATION_ITEMS, split="test"))}
    settings = replace(config.evaluation, votes={}, k_meta=())
    found = measured({"base": config.base, "rl": str(trained)}, pairs, config, place, settings)
    write_json(place / "measured.json", {**found, "parameters": parameters(find_model(config.base)[0])})


def parameters(checkpoint: Path) -> int:
    """How many numbers the weights of a checkpoint are."""
    from safetensors import safe_open

    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def held_out() -> dict[str, list[Item]]:
    """The held-out sets: those of the recipe, longer (the items of a smaller set are the first of a larger one)."""
    return {
        "pairs": list(generate_items(2000, split="test")),
        "lists": list(generate_items(200, n=(3, 6), split="test", seed=1)),
        "singles": list(generate_items(200, n=1, split="test", seed=2, binary=True)),
    }


def measured(
    models: Mapping[str, str], sets: Mapping[str, Sequence[Item]], config: Config, place: Path,
    settings: EvaluationSettings, meta: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`evaluate` with this run's meta RM, if there is one; batches of 512 are a sixth faster than the default here."""
    config = replace(config, engine=replace(config.engine, batch=512))
    return evaluate(
        models, sets, config.open, forms_of(get_template(config.template)),
        place / "evaluation", settings,
        open_meta=None if meta is None else lambda ledger, stack: open_meta_rm(str(meta), None, ledger, stack),
        say=lambda line: print(line, flush=True),
    )  # fmt: skip


def shorter(config: Config) -> Config:
    """The recipe with a shorter RL stage, on pairs alone and without the too-easy filter: for ten runs of it."""
    grpo = replace(config.rl.grpo, steps=60, batch=128)
    data = replace(config.data, rl=World(count=2000, seed=3))
    return replace(config, data=data, rl=replace(config.rl, reference=None, grpo=grpo))


def ablation(folder: Path, name: str) -> None:
    """Train one ablation and measure it, its RFT model as well where that is a row of its own."""
    chosen, place, shared = ABLATIONS[name], folder / name, folder / "main-0"
    config = chosen.change(shorter(read_config(RECIPE, seed=0)))
    for part in chosen.copied:
        target = place / part
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (shared / part).is_dir() else shutil.copy
            copy(shared / part, target)
    last = STAGES.index("tune" if chosen.model == "rft" else "rl")
    run(config, place, stages=STAGES[: last + 1])
    models = {"rft": str(place / "rft" / "model"), "rl": str(place / "rl")}
    wanted = {chosen.model, "rft"} if name == "no-rejective" else {chosen.model}
    pairs = {"pairs": list(generate_items(ABLATION_ITEMS, split="test"))}
    settings = replace(config.evaluation, k=8, votes={}, k_meta=())
    found = measured({m: path for m, path in models.items() if m in wanted}, pairs, config, place, settings)
    write_json(place / "measured.json", found)


def principles(folder: Path) -> None:
    """The paper's Table 1 for the base and the trained GRM: whose principles, and what they are worth."""
    config, place = read_config(RECIPE, seed=0), folder / "principles"
    place.mkdir(parents=True, exist_ok=True)
    items = list(generate_items(ABLATION_ITEMS, split="test", principles=True))
    labels = Labels.of(items)
    sampling = Sampling(temperature=config.evaluation.temperature, max_tokens=config.evaluation.max_tokens)
    forms = {name: forms_of(get_template(f"compact{flag}")) for name, flag in
             (("none", "+no-principles"), ("self", ""), ("given", "+principles"))}  # fmt: skip
    rows = []
    for model, checkpoint in (("base", config.base), ("rl", str(folder / "main-0" / "rl"))):
        engine = config.open(checkpoint)
        with Ledger(place / f"{model}.ledger.db") as ledger:

            def judged(
                some: Iterable[Item], kind: str, engine: Any = engine, ledger: Ledger = ledger
            ) -> list[tuple[Item, list[Judgment]]]:
                return judge_all(some, engine, forms[kind], sampling, 4, ledger)

            own = judged(items, "self")
            filtered = [replace(item, principles=kept) for item, js in own if (kept := kept_principles(item, js))]
            sources = {
                "no principles": judged(items, "none"),
                "self-generated": own,
                # The paper's filter knows the test label: an oracle. Where no sample is right, the item's own stay.
                "filtered": [*judged(filtered, "given"), *(p for p in own if not kept_principles(*p))],
                "true": judged(items, "given"),
            }
        engine.close()
        for source, found in sources.items():
            votes = revote((j for _, js in found for j in js), labels, ks=[1, 4], pool=True)
            rows += [{"model": model, "principles": source, **row} for row in votes.rows]
        rows[-1]["filtered_items"] = len(filtered)
    write_json(place / "measured.json", {"rows": rows})


def kept_principles(item: Item, judgments: Iterable[Judgment]) -> tuple[str, ...]:
    """The principles of the first judgment whose ranking is right; empty where none is."""
    label = label_of(item)
    for judgment in judgments:
        if label is not None and judgment.scores is not None and correct(judgment.scores, label):
            return tuple(judgment.principles or ())
    return ()


# --- results ----------------------------------------------------------------------------------------------------


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
    notes = {
        "table": table, "process": process, "sets": {name: len(items) for name, items in held_out().items()},
        "meta_rm": {name: (read_json(folder / name / "meta" / "meta_rm.json") or {}).get("dev") for name in seeds},
        "stages": {name: (read_json(folder / name / "spct.json") or {}).get("stages") for name in seeds},
        "rl": {name: metrics(folder / name / "rl" / "metrics.jsonl") for name in seeds},
        "config": (read_json(folder / "main-0" / "spct.json") or {}).get("config"),
        "about_intervals": "rows: 95 %, clustered by item, of one seed; table: mean over seeds, the lowest and the"
                           " highest end of their intervals, and the standard deviation over seeds",
    }  # fmt: skip
    write_result(output / "spct-main.json", headline=headline, rows=rows, notes=notes)
    pictures(output, rows, notes["rl"])


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
                rows.append({"row": label, "model": model, "paper": PAPER.get(label), **cell})
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


if __name__ == "__main__":
    main()
