"""What `opengrm demo` shows: its tables, the bars of a training run, two pictures, and the page that holds them.

Rows are those of a re-vote (`voting.revote`) with `model`, the name that a reader sees, and `how`: "greedy", "sum" or
"meta". Steps are the lines of a training run's metrics.jsonl.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opengrm.errors import MissingExtra
from opengrm.reports.tables import Cells, count, markdown, percent
from opengrm.voting.intervals import Interval, wilson

PAGE = "report.md"
PROVING_GROUND = (
    "RubricWorld is a proving ground: a small language world whose true rewards are known exactly. The numbers show\n"
    "that the method and this code work, not how well a large model judges real text."
)
BAR = 40  # characters of a bar
SMOOTH = 5  # steps that a bar is a mean of

Row = Mapping[str, Any]


# --- tables -----------------------------------------------------------------------------------------------------


def greedy_cells(rows: Sequence[Row]) -> Cells:
    """One greedy judgment an item: how often it is right, and how often for the right reasons."""
    return [
        {
            "model": row["model"],
            "n": count(row["items"]),
            "accuracy %\n[95 %]": percent(row["accuracy"]),
            "criteria and weights\nall right % [95 %]": percent(row["principles_exact"]),
            "right for the right\nreasons % [95 %]": percent(row["sound"]),
            "parsed %\n[95 %]": percent(row["parsed"]),
        }
        for row in rows
        if row["how"] == "greedy"
    ]


def vote_cells(rows: Sequence[Row], hows: Sequence[str]) -> Cells:
    """Accuracy at each k, a column for each model and kind of vote."""
    chosen = [row for row in rows if row["how"] in hows]
    by_k: dict[int, dict[str, str]] = {}
    for row in chosen:
        cells = by_k.setdefault(row["k"], {"votes k": str(row["k"]), "n": count(row["items"])})
        cells[series_name(row) + "\n% [95 %]"] = percent(row["accuracy"])
    return [by_k[k] for k in sorted(by_k)]


def gain_cells(gains: Sequence[Row]) -> Cells:
    """What one model has ahead of another on the same items."""
    return [
        {
            "vote": gain["vote"],
            "n": count(gain["items"]),
            f"{gain['before']}\n% [95 %]": percent(gain["accuracy_before"]),
            f"{gain['after']}\n% [95 %]": percent(gain["accuracy_after"]),
            "difference, points\n[95 %, same items]": _points(gain["difference"]),
        }
        for gain in gains
    ]


def cost_cells(costs: Sequence[Row]) -> Cells:
    """Judgments and their tokens; seconds are of those that this run made, the others were in the ledger."""
    return [
        {
            "judgments of": cost["model"],
            "all": count(cost["judgments"]),
            "made now": count(cost["new"]),
            "tokens in": count(cost["prompt_tokens"]),
            "tokens out": count(cost["completion_tokens"]),
            "tokens each": count((cost["prompt_tokens"] + cost["completion_tokens"]) / max(cost["judgments"], 1)),
            "seconds each": "-" if not cost["new"] else f"{cost['seconds'] / cost['new']:.4f}",
        }
        for cost in costs
    ]


def series_name(row: Row) -> str:
    """A model's kind of vote as tables and pictures name it."""
    return f"{row['model']}, guided" if row["how"] == "meta" else str(row["model"])


def _points(interval: Mapping[str, float]) -> str:
    mean, low, high = (100 * interval[part] for part in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


# --- a training run ---------------------------------------------------------------------------------------------


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mean_reward(steps: Sequence[Row], prompts: int) -> Interval:
    """The mean reward of these steps' judgments.

    The interval takes all judgments of a prompt for one, as if they always agreed: it is never too narrow.

    Args:
        steps: at least one.
        prompts: of a step.
    """
    correct = math.fsum(step["correct"] for step in steps) / len(steps)
    groups = len(steps) * prompts
    found = wilson(correct, correct * (1 - correct) / groups, groups)
    return Interval(*(2 * value - 1 for value in found))


def step_bar(steps: Sequence[Row], total: int, batch: int, generations: int) -> str:
    """The last of these steps for people: the mean reward of the newest judgments as a number and as a bar.

    The bar is empty at -1 (all wrong) and full at +1 (all right).
    """
    newest = steps[-SMOOTH:]
    reward = mean_reward(newest, batch // generations)
    full = round(BAR * (reward.mean + 1) / 2)
    return (
        f"step {steps[-1]['step']:>3} of {total}  {'█' * full}{'·' * (BAR - full)}  reward {reward.mean:+.2f}"
        f" [{reward.low:+.2f}, {reward.high:+.2f}] n {len(newest) * batch}, kl {steps[-1]['kl']:.3f}"
    )


def climb_text(climb: Row) -> str:
    """The training run in a few sentences: the reward at its two ends, and what it cost."""
    begin, end, steps = climb["first"], climb["last"], climb["rows"]
    judgments, seconds = climb["steps"] * climb["batch"], math.fsum(step["seconds"] for step in steps)
    return (
        f"GRPO from {climb['start']}, {climb['steps']} steps of {climb['batch']} judgments. Mean reward (+1 right, "
        f"-1 wrong) of the first {begin['steps']} steps (n = {begin['judgments']:,}) {_signed(begin['reward'])}, "
        f"of the last {end['steps']} (n = {end['judgments']:,}) {_signed(end['reward'])}. It took "
        f"{math.fsum(step['tokens'] for step in steps):,.0f} tokens and {seconds:,.0f} s: {seconds / judgments:.4f} s "
        f"for a judgment and learning from it."
    )


def plot_steps(path: Path, steps: Sequence[Row], *, title: str) -> Path:
    """Reward and KL against the step, each faint as it was and smoothed over it.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("drawing a picture", "plots") from None
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = zip(figure.subplots(2, sharex=True), (("reward", "mean reward", "C0"), ("kl", "KL", "C1")), strict=True)
    x = [step["step"] for step in steps]
    for axes, (name, label, colour) in panels:
        y = [step[name] for step in steps]
        axes.plot(x, y, color=colour, alpha=0.35, linewidth=0.8)
        windows = [y[max(0, i - SMOOTH + 1) : i + 1] for i in range(len(y))]
        axes.plot(x, [sum(w) / len(w) for w in windows], color=colour, linewidth=1.8)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    figure.suptitle(title)
    # No library version in the file: the same numbers give the same bytes.
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


# --- the page ---------------------------------------------------------------------------------------------------


def write_page(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write `folder`/report.md.

    Args:
        folder: where the pictures lie.
        result: what `opengrm demo` writes as demo.json: its `rows`, and in `notes` plan, example, gains, climb, costs,
            seconds, and why there is no live run or no picture.
    """
    rows, notes = result["rows"], result["notes"]
    plan, gains, climb = notes["plan"], notes["gains"], notes["climb"]
    live = [row for row in rows if row["part"] == "live"]
    first = [row for row in rows if row["part"] != "live"]
    parts = [
        "# OpenGRM: the story of SPCT in RubricWorld",
        PROVING_GROUND,
        f"{plan['count']:,} held-out pairs (split `test`, seed {plan['seed']}); greedy decoding, and {plan['k']} "
        "judgments of each pair at T = 1 that vote by the sum of their scores. Brackets are 95 % intervals over items;"
        " a tie at the top earns 1/2, and so does a pair without a verdict.",
        "## 1. The base against the trained model",
        markdown(greedy_cells(first)) + "\n" + markdown(gain_cells([g for g in gains if g["part"] == "trained"])),
        _example(notes["example"]),
        "## 2. Votes",
        markdown(vote_cells(first, ["sum"])),
        "## 3. Votes guided by the meta RM",
        "The sum of the half of the judgments that the meta RM trusts most.",
        markdown(vote_cells(first, ["sum", "meta"])),
        "" if "curves.png" in notes["missing"] else "![accuracy against votes](curves.png)",
        "## 4. A short RL run",
        climb_text(climb) if climb else f"Not run: {notes['missing'].get('live', '')}.",
        "" if "rl.png" in notes["missing"] else "![reward and KL against the step](rl.png)",
        markdown(greedy_cells([*(r for r in first if r["part"] == "base"), *live])) if live else "",
        markdown(gain_cells([g for g in gains if g["part"] == "live"])),
        markdown(vote_cells([*(r for r in first if r["part"] == "base"), *live], ["sum"])) if live else "",
        "## Cost",
        f"{notes['seconds']:,.0f} seconds for this run, RL and the meta RM's reading included.",
        markdown(cost_cells(notes["costs"])),
        "All numbers are in `demo.json`; `opengrm ledger info ledger.db` says what was judged, and"
        " `opengrm vote ledger.db --items items.jsonl` votes again.",
    ]
    path = folder / PAGE
    path.write_text("\n\n".join(part.strip() for part in parts if part.strip()) + "\n", encoding="utf-8")
    return path


def _example(example: Mapping[str, Any]) -> str:
    """One item and a greedy judgment of it by each model, in the order that they were shown."""
    shown = [f"[{i}] {text}" for i, text in enumerate(example["responses"], 1)]
    texts = [f"{name}\n{'-' * len(name)}\n{text}" for name, text in example["judgments"].items()]
    return (
        "```text\n"
        + "\n\n".join(["\n".join([example["why"], example["query"], *shown]), example["truth"], *texts])
        + "\n```"
    )


def _signed(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]"
