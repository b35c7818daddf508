"""The report of a whole SPCT run: one HTML page that needs nothing but itself, made from what the stages left on disk.

    write_page(folder) -> folder/report.html

A stage that has not run is shown as not done, a number that is not known as an en dash, and a file that cannot be read
is named at the top. All text is escaped where it is put into the page; `Html` marks what is HTML already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from opengrm.reports.curves import steps_svg, votes_svg
from opengrm.reports.page import Html, cell, document, fact_list, figure, folded, section, small, table
from opengrm.reports.results import finite_json
from opengrm.reports.tables import count, decimals, duration, flat, number, percent, share

PAGE = "report.html"
PAPER_K = {1, 8, 32}  # rows of the paper's Tables 2 and 3
STAGES = {
    "data": "Data", "collect": "Collecting", "tune": "Rejective fine-tuning", "rl": "RL", "fresh": "Fresh judgments",
    "meta": "Meta RM", "evaluate": "Evaluation",
}  # fmt: skip
MODELS = {"base": "Base", "rft": "RFT", "rl": "RL"}
PLAIN_COLOURS = {"base": "#8a8f98", "rft": "#c98a1b", "rl": "#2f6fde"}
GUIDED_COLOURS = {"base": "#a86fb0", "rft": "#b5532a", "rl": "#12936f"}
METRICS = {
    "accuracy": ("accuracy %", percent), "auc": ("ROC-AUC %", percent), "pearson": ("Pearson", number),
    "spearman": ("Spearman", number),
}  # fmt: skip

# Curves of a stage's metrics.jsonl: name -> title, factor, decimals, unit
Curves = Mapping[str, tuple[str, int, int, str]]
RFT_CURVES: Curves = {"loss": ("Training loss", 1, 3, "")}
RL_CURVES: Curves = {
    "reward": ("Reward", 1, 3, ""),
    "correct": ("Judgments correct", 100, 1, " %"),
    "kl": ("KL from the starting model", 1, 4, ""),
    "completion_tokens": ("Length of a judgment", 1, 1, " tokens"),
    "parse_rate": ("Judgments that can be read", 100, 1, " %"),
    "no_signal": ("Groups without a signal", 100, 1, " %"),
    "entropy": ("Entropy", 1, 3, " nats"),
    "truncated": ("Cut at the token limit", 100, 1, " %"),
}
META_CURVES: Curves = {
    "loss": ("Training loss", 1, 3, ""),
    "dev_loss": ("Held-out loss", 1, 3, ""),
    "dev_accuracy": ("Held-out accuracy", 100, 1, " %"),
    "dev_auc": ("Held-out ROC-AUC", 100, 1, " %"),
}
PROCESS = (
    "readable", "principle_precision", "principle_recall", "principles_exact", "critique_accuracy", "sums_right",
    "correct", "sound", "sound_of_correct",
)  # fmt: skip

PROVING_GROUND = """<p class="note"><b>RubricWorld is a proving ground.</b> The items of this run come from a small
language world with hidden ground truth, and its models are tiny. The numbers show that the method and this code work
and how they scale, not how well any large model judges real text.</p>"""

Row = Mapping[str, Any]


def write_page(folder: str | Path) -> Path:
    """Write `folder`/report.html from whatever files of the run are there.

    Raises:
        MissingExtra: there is something to draw, and matplotlib is not installed.
    """
    folder, damaged = Path(folder), list[str]()
    spct, evaluation = _table_of(folder, "spct.json", damaged), _table_of(folder, "evaluation.json", damaged)
    collected, trained = _table_of(folder, "rft/collect.json", damaged), _table_of(folder, "rft/train.json", damaged)
    items, meta = _table_of(folder, "rl/items.json", damaged), _table_of(folder, "meta/meta_rm.json", damaged)
    steps = {stage: _steps_of(folder, f"{stage}/metrics.jsonl", damaged) for stage in ("rft", "rl", "meta")}
    stages, votes = _part(spct, "stages"), _votes_of(evaluation)
    state = {
        "RFT": _state("tune" in stages or trained, collected or steps["rft"]),
        "RL": _state("rl" in stages or (folder / "rl" / "config.json").exists(), items or steps["rl"]),
        "Meta RM": _state("meta" in stages or "dev" in meta, meta or steps["meta"]),
        "Evaluation": _state(evaluation, False),
    }
    name = folder.resolve().name
    body = [
        f"<h1>SPCT run: {cell(name)}</h1>",
        f'<p class="headline">{_headline(votes)}</p>',
        '<ul class="stages">' + "".join(f"<li><b>{stage}</b> {said}</li>" for stage, said in state.items()) + "</ul>",
        f'<p class="note">Could not be read: {escape(", ".join(damaged))}.</p>' if damaged else "",
        PROVING_GROUND if evaluation.get("world") is True else "",
        section("Accuracy", _accuracy(votes)),
        section("Accuracy against the number of votes", _curves(votes)),
        section("Rejective fine-tuning", _rft(collected, trained) + _pictures("rft", steps["rft"], RFT_CURVES)),
        section("Reinforcement learning", _rl(items, steps["rl"])),
        section("Meta RM", _meta(meta) + _pictures("meta", steps["meta"], META_CURVES)),
        section("Process: right for the right reasons", _process(evaluation)) if evaluation.get("process") else "",
        section("Cost", _cost(stages, evaluation, steps["rl"])) if stages or evaluation else "",
        section("All measured votes", _every_vote(votes)) if votes else "",
        section("Configuration", _configuration(spct)) if spct else "",
    ]
    path = folder / PAGE
    path.write_bytes(document(f"SPCT run: {name}", "\n".join(filter(None, body)), styled=True))
    return path


# --- what lies in the folder ------------------------------------------------------------------------------------


def _table_of(folder: Path, name: str, damaged: list[str]) -> dict[str, Any]:
    """The JSON object of a file; empty where the file is not there, or cannot be read."""
    try:
        return dict(finite_json((folder / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        damaged.append(name)
        return {}


def _steps_of(folder: Path, name: str, damaged: list[str]) -> list[Row]:
    """The lines of a metrics file, up to one that a running or killed stage has not finished."""
    found: list[Row] = []
    try:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            row = finite_json(line)
            if row["step"] is not None:
                found.append(row)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError):
        damaged.append(f"{name} from line {len(found) + 1}")
    return found


def _votes_of(evaluation: Row) -> list[Row]:
    """The rows of the evaluation; models in the order of training, the largest set first, greedy before votes."""
    rows, groups = evaluation.get("rows") or [], dict[str, set[Any]]()
    for row in rows:
        groups.setdefault(row["set"], set()).add(row.get("group"))
    # A set may hold lists and single responses, which have a row each.
    rows = [{**r, "set": f"{r['set']}, {r['group']}" if len(groups[r["set"]]) > 1 else r["set"]} for r in rows]
    models = [*MODELS, *dict.fromkeys(row["model"] for row in rows)]
    sizes = {row["set"]: max(r.get("items") or 0 for r in rows if r["set"] == row["set"]) for row in rows}
    sets = sorted(sizes, key=lambda name: -sizes[name])
    hows = ["greedy", "sum", *sorted({row["how"] for row in rows}, key=lambda how: (_guided(how), how))]
    rank = lambda row: (models.index(row["model"]), sets.index(row["set"]), hows.index(row["how"]), row["k"])  # noqa: E731
    return sorted(({**row, **{name: _interval(row, name) for name in METRICS}} for row in rows), key=rank)


def _interval(row: Row, name: str) -> dict[str, float] | None:
    """An interval that is known as a whole, or None."""
    parts = {part: value for part in ("mean", "low", "high") if (value := _part(row, name).get(part)) is not None}
    return parts if len(parts) == 3 else None


def _part(row: Row, name: str) -> dict[str, Any]:
    return dict(row.get(name) or {})


def _state(done: Any, begun: Any) -> str:
    return "done" if done else "under way" if begun else "not done"


# --- the evaluation ---------------------------------------------------------------------------------------------


def _columns(votes: Sequence[Row]) -> dict[tuple[str, str], int]:
    """The number of items of each set and metric that was measured, the largest set first."""
    found: dict[tuple[str, str], int] = {}
    for name in METRICS:
        for row in votes:
            if row[name]:
                found[row["set"], name] = max(found.get((row["set"], name), 0), row.get("items") or 0)
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _headline(votes: Sequence[Row]) -> str:
    """The main numbers in a sentence: greedy judgments of the models, then the largest votes of the last one."""
    columns = _columns(votes)
    if not columns:
        return "Not evaluated yet."
    (place, metric), items = next(iter(columns.items()))
    label, form = METRICS[metric]
    rows = [row for row in votes if row["set"] == place and row[metric]]
    greedy = [f"{_model(row)} {cell(form(row[metric]))}" for row in rows if row["how"] == "greedy"]
    last = {row["how"]: row for row in rows if row["model"] == rows[-1]["model"]}  # the largest k stays
    plain = next((row for how, row in last.items() if how != "greedy" and not _guided(how)), None)
    guided = last.get("meta") or next((row for how, row in last.items() if _guided(how)), None)
    said = f"On {escape(place)} (n = {items:,}; {label}, 95 % intervals), greedy: {' → '.join(greedy) or '–'}"
    for row, words in ((plain, "votes"), (guided, "votes guided by the meta RM")):
        said += f"; {_model(row)} with {row['k']} {words}: {cell(form(row[metric]))}" if row else ""
    return f"{said}."


def _accuracy(votes: Sequence[Row]) -> str:
    """The shape of the paper's Tables 2 and 3: a model's vote a row, a set a column."""
    columns = _columns(votes)
    if not columns:
        return ""
    first = next(iter(columns))[0]
    heads = [f"{place}\n{METRICS[metric][0]}\nn = {items:,}" for (place, metric), items in columns.items()]
    ks = PAPER_K | {max(row["k"] for row in votes)}
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in votes:
        if row["k"] in ks and not (_guided(row["how"]) and row["k"] == 1):  # guided, one vote is one plain vote
            lines.setdefault((_model(row), _vote(row)), {})[row["set"]] = row
    cells, before = [], None
    means = {(place, metric): [by_set[place][metric]["mean"] for by_set in lines.values()
                               if place in by_set and by_set[place][metric]] for place, metric in columns}  # fmt: skip
    for (model, vote), by_set in lines.items():
        values = []
        for place, metric in columns:
            found = by_set.get(place, {}).get(metric)
            text = cell(METRICS[metric][1](found))
            best = found and found["mean"] == max(means[place, metric])
            values.append(Html(f"<b>{text}</b>" if best else text))
        tokens = count(by_set.get(first, {}).get("completion_tokens"))
        cells.append([Html("" if model == before else f"<b>{model}</b>"), vote, *values, tokens])
        before = model
    return table(["model", "vote", *heads, f"tokens out\na verdict,\n{first}"], cells, words=2) + small(
        "95 % intervals. @k: the sum of k sampled judgments; guided: of those that the meta RM trusts (its own tokens"
        " are not counted). An item without a verdict counts at chance, a tie at the top earns its share. Bold: the"
        " best of a column."
    )


def _curves(votes: Sequence[Row]) -> str:
    """A picture for each set and metric."""
    figures, models = [], list(dict.fromkeys(row["model"] for row in votes))
    for index, (place, metric) in enumerate(_columns(votes)):
        series: dict[str, list[Row]] = {}
        styles: dict[str, dict[str, Any]] = {}
        levels = []
        for row in votes:
            if row["set"] != place or not row[metric]:
                continue
            guided = _guided(row["how"])
            colour = (GUIDED_COLOURS if guided else PLAIN_COLOURS).get(row["model"], f"C{models.index(row['model'])}")
            if row["how"] == "greedy":
                levels.append((row[metric]["mean"], colour))
                continue
            how = {"sum": "votes", "meta": "guided votes"}.get(row["how"], row["how"])
            # matplotlib cannot measure half a surrogate pair
            name = f"{MODELS.get(row['model'], row['model'])}, {how}".encode(errors="replace").decode()
            series.setdefault(name, []).append(row)
            styles[name] = {"color": colour, "linestyle": "--" if guided else "-"}
        if series:
            caption = f"{place}: {METRICS[metric][0]} against votes"
            svg = votes_svg(f"votes{index}", series, metric=metric, styles=styles, levels=levels, alt=caption)
            figures.append(figure(svg, caption))
    note = small("Bands: 95 % intervals. Dotted: one greedy judgment of the model that has this colour.")
    return f'<div class="large">{"".join(figures)}</div>{note}' if figures else ""


def _process(evaluation: Row) -> str:
    lines = [
        [Html(_model(row)), str(row["set"]), count(row.get("judgments")), *(share(row.get(name)) for name in PROCESS)]
        for row in evaluation["process"]
    ]
    heads = ["model", "set", "judgments", *(name.replace("_", "\n", 1).replace("_", " ") + " %" for name in PROCESS)]
    return table(heads, lines, words=2) + small(
        "Sound: the right verdict, with exactly the hidden criteria and weights, true findings and right sums."
    )


def _every_vote(votes: Sequence[Row]) -> str:
    metrics = [name for name in METRICS if any(row[name] for row in votes)]
    lines = [
        [Html(_model(row)), row["set"], _vote(row), count(row.get("items")),
         *(METRICS[name][1](row[name]) for name in metrics),
         *(percent(_interval(row, name)) for name in ("accuracy_valid", "strict")),
         *(share(row.get(name)) for name in ("ties", "no_verdict", "parse_rate")),
         *(count(row.get(name)) for name in ("prompt_tokens", "completion_tokens"))]
        for row in votes
    ]  # fmt: skip
    heads = ["model", "set", "vote", "n", *(METRICS[name][0] for name in metrics), "valid\nonly %", "ties\nwrong %"]
    heads += ["tied %", "none %", "parsed %", "tokens\nin", "tokens\nout"]
    return f"<details><summary>{len(lines)} rows</summary>{table(heads, lines, words=3)}</details>"


def _guided(how: str) -> bool:
    return how.startswith("meta")


def _vote(row: Row) -> str:
    """A vote as tables name it."""
    how, k = str(row["how"]), row["k"]
    if _guided(how):
        rule = how.removeprefix("meta").strip()
        return f"guided @{k}" + (f", {rule}" if rule else "")
    return how if how == "greedy" else f"@{k}" if how == "sum" else f"{how} @{k}"


def _model(row: Row) -> str:
    return escape(MODELS.get(row["model"], str(row["model"])))


# --- the stages -------------------------------------------------------------------------------------------------


def _rft(collected: Row, trained: Row) -> str:
    """What was kept, why the rest was not, and the training on it."""
    halves = [_part(collected, "non-hinted"), _part(collected, "hinted")]

    def line(said: str, key: str, reason: str | None = None, of: str = "judgments") -> list[str]:
        counts = [_part(half, key).get(reason, 0) if reason is not None else half.get(key) for half in halves]
        return [said, *(_counted(n, half.get(of), key) for n, half in zip(counts, halves, strict=True))]

    lines = [line("items", "items", of=""), line("judgments", "judgments", of=""), line("kept", "kept")]
    for key, said, of in (("dropped", "dropped", "judgments"), ("not_sampled", "items not sampled", "items")):
        reasons = dict.fromkeys(reason for half in halves for reason in _part(half, key))
        lines += [line(f"{said}: {reason}", key, reason, of) for reason in reasons]
    lines.append(line("items with a judgment kept", "items_kept", of="items"))
    facts = {}
    if trained:
        names = ("trajectories", "instructions", "examples", "too_long", "steps", "batch")
        facts = {name.replace("_", " "): count(trained[name]) for name in names if name in trained}
        ends = (trained.get("first_loss"), trained.get("last_loss"))
        facts["loss"] = " → ".join("–" if loss is None else decimals(loss, 3) for loss in ends)
        facts["time"] = duration(trained.get("seconds"))
    return (table(["", "non-hinted", "hinted"], lines) if collected else "") + fact_list(facts)


def _rl(items: Row, steps: Sequence[Row]) -> str:
    facts = {}
    if items:
        facts = {"items given": count(items.get("given")), "trained on": count(items.get("kept"))}
        facts |= {f"dropped: {reason}": count(n) for reason, n in _part(items, "dropped").items()}
    if steps:
        facts |= {"steps": count(steps[-1]["step"]), "tokens": count(steps[-1].get("tokens_so_far"))}
        facts["time of a step"] = duration(_mean(steps, "seconds"))
    return fact_list(facts) + _pictures("rl", steps, RL_CURVES)


def _meta(meta: Row) -> str:
    dev, facts = _part(meta, "dev"), {}
    if meta:
        facts = {f"held-out {METRICS[name][0]}": percent(_interval(dev, name)) for name in ("accuracy", "auc")}
        facts |= {"held-out loss": decimals(dev.get("loss"), 3), "held-out judgments": count(dev.get("n"))}
        facts |= {"of conversations": count(dev.get("conversations")), "correct of them %": share(dev.get("correct"))}
        facts |= {"examples": count(meta.get("examples")), "correct of these": count(meta.get("correct"))}
        facts |= {f"left out: {reason}": count(n) for reason, n in _part(meta, "left_out").items()}
    return fact_list(facts)


def _cost(stages: Row, evaluation: Row, rl_steps: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for name in stages:
        spent = rl_steps[-1].get("tokens_so_far") if name == "rl" and rl_steps else None
        took = duration(_part(stages, name).get("seconds"))
        lines.append([STAGES.get(name, name), took, "" if spent is None else f"tokens {count(spent)}"])
    judgments, tokens, seconds = (evaluation.get(name) for name in ("judgments", "tokens", "seconds"))
    facts = {}
    if judgments:
        facts = {
            "judgments of the evaluation": count(judgments),
            "tokens a judgment": decimals(None if tokens is None else tokens / judgments, 1),
            "seconds a judgment": decimals(None if seconds is None else seconds / judgments, 4),
        }
    return (table(["stage", "time", "and"], lines) if lines else "") + fact_list(facts)


def _configuration(spct: Row) -> str:
    names = ("config", "versions", "machine", "commit")
    lines = [line for name in names for line in flat(name, spct.get(name))]
    return folded(f"{len(lines)} settings", table(["setting", "value"], lines, words=2))


def _pictures(stage: str, steps: Sequence[Row], curves: Curves) -> str:
    """The curves that a stage has, each with its mean over the first and the last tenth of the steps."""
    figures = []
    for name, (title, unit, places, after) in curves.items():
        rows = [row for row in steps if row.get(name) is not None]
        if rows:
            tenth = math.ceil(len(rows) / 10)
            ends = [decimals(unit * (_mean(part, name) or 0), places) for part in (rows[:tenth], rows[-tenth:])]
            caption = f"{title}: {' → '.join(dict.fromkeys(ends))}{after}"
            colour = PLAIN_COLOURS.get(stage, GUIDED_COLOURS["rl"])
            points = [(row["step"], unit * row[name]) for row in rows]
            figures.append(figure(steps_svg(f"{stage}-{name}", points, colour=colour, alt=caption), caption))
    note = small("Captions: the mean of the first and of the last tenth of the steps. Strong lines: moving averages.")
    return f'<div class="small">{"".join(figures)}</div>{note}' if figures else ""


# --- text and numbers -------------------------------------------------------------------------------------------


def _counted(n: float | None, whole: float | None, kind: str) -> str:
    """A count, and as a number and a bar its share of the whole."""
    if n is None or not whole:
        return count(n)
    part = 100 * n / whole
    return Html(f'{n:,.0f} <small>{part:.1f} %</small> <i class="bar {kind}"><i style="width:{part:.1f}%"></i></i>')


def _mean(rows: Iterable[Row], name: str) -> float | None:
    found = [row[name] for row in rows if row.get(name) is not None]
    return sum(found) / len(found) if found else None
