"""The report of a whole SPCT run: one HTML page that needs nothing but itself, made from what the stages left on disk.

    write_page(folder) -> folder/report.html

A stage that has not run is shown as not done, a number that is not known as an en dash, and a file that cannot be read
is named at the top. All text is escaped where it is put into the page; `_Html` marks what is HTML already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from opengrm.reports.curves import steps_svg, votes_svg
from opengrm.reports.tables import count, number, percent, share

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
    name = escape(folder.resolve().name)
    body = [
        f"<h1>SPCT run: {name}</h1>",
        f'<p class="headline">{_headline(votes)}</p>',
        '<ul class="stages">' + "".join(f"<li><b>{stage}</b> {said}</li>" for stage, said in state.items()) + "</ul>",
        f'<p class="note">Could not be read: {escape(", ".join(damaged))}.</p>' if damaged else "",
        PROVING_GROUND if evaluation.get("world") is True else "",
        _section("Accuracy", _accuracy(votes)),
        _section("Accuracy against the number of votes", _curves(votes)),
        _section("Rejective fine-tuning", _rft(collected, trained) + _pictures("rft", steps["rft"], RFT_CURVES)),
        _section("Reinforcement learning", _rl(items, steps["rl"])),
        _section("Meta RM", _meta(meta) + _pictures("meta", steps["meta"], META_CURVES)),
        _section("Process: right for the right reasons", _process(evaluation)) if evaluation.get("process") else "",
        _section("Cost", _cost(stages, evaluation, steps["rl"])) if stages or evaluation else "",
        _section("All measured votes", _every_vote(votes)) if votes else "",
        _section("Configuration", _configuration(spct)) if spct else "",
    ]
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>SPCT run: {name}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{CSS}</style></head>\n<body><main>\n" + "\n".join(filter(None, body)) + "\n</main></body></html>\n"
    )
    path = folder / PAGE
    path.write_bytes(page.encode(errors="replace"))  # JSON may hold half a surrogate pair
    return path


# --- what lies in the folder ------------------------------------------------------------------------------------


def _loads(line: str) -> Any:
    """JSON in which whatever is no finite number is not known."""
    return json.loads(
        line, parse_constant=lambda _: None, parse_float=lambda text: x if math.isfinite(x := float(text)) else None
    )


def _table_of(folder: Path, name: str, damaged: list[str]) -> dict[str, Any]:
    """The JSON object of a file; empty where the file is not there, or cannot be read."""
    try:
        return dict(_loads((folder / name).read_text(encoding="utf-8")))
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
            row = _loads(line)
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
    greedy = [f"{_model(row)} {_cell(form(row[metric]))}" for row in rows if row["how"] == "greedy"]
    last = {row["how"]: row for row in rows if row["model"] == rows[-1]["model"]}  # the largest k stays
    plain = next((row for how, row in last.items() if how != "greedy" and not _guided(how)), None)
    guided = last.get("meta") or next((row for how, row in last.items() if _guided(how)), None)
    said = f"On {escape(place)} (n = {items:,}; {label}, 95 % intervals), greedy: {' → '.join(greedy) or '–'}"
    for row, words in ((plain, "votes"), (guided, "votes guided by the meta RM")):
        said += f"; {_model(row)} with {row['k']} {words}: {_cell(form(row[metric]))}" if row else ""
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
            text = _cell(METRICS[metric][1](found))
            best = found and found["mean"] == max(means[place, metric])
            values.append(_Html(f"<b>{text}</b>" if best else text))
        tokens = count(by_set.get(first, {}).get("completion_tokens"))
        cells.append([_Html("" if model == before else f"<b>{model}</b>"), vote, *values, tokens])
        before = model
    return _table(["model", "vote", *heads, f"tokens out\na verdict,\n{first}"], cells, words=2) + _small(
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
            figures.append(_figure(svg, caption))
    note = _small("Bands: 95 % intervals. Dotted: one greedy judgment of the model that has this colour.")
    return f'<div class="large">{"".join(figures)}</div>{note}' if figures else ""


def _process(evaluation: Row) -> str:
    lines = [
        [_Html(_model(row)), str(row["set"]), count(row.get("judgments")), *(share(row.get(name)) for name in PROCESS)]
        for row in evaluation["process"]
    ]
    heads = ["model", "set", "judgments", *(name.replace("_", "\n", 1).replace("_", " ") + " %" for name in PROCESS)]
    return _table(heads, lines, words=2) + _small(
        "Sound: the right verdict, with exactly the hidden criteria and weights, true findings and right sums."
    )


def _every_vote(votes: Sequence[Row]) -> str:
    metrics = [name for name in METRICS if any(row[name] for row in votes)]
    lines = [
        [_Html(_model(row)), row["set"], _vote(row), count(row.get("items")),
         *(METRICS[name][1](row[name]) for name in metrics),
         *(percent(_interval(row, name)) for name in ("accuracy_valid", "strict")),
         *(share(row.get(name)) for name in ("ties", "no_verdict", "parse_rate")),
         *(count(row.get(name)) for name in ("prompt_tokens", "completion_tokens"))]
        for row in votes
    ]  # fmt: skip
    heads = ["model", "set", "vote", "n", *(METRICS[name][0] for name in metrics), "valid\nonly %", "ties\nwrong %"]
    heads += ["tied %", "none %", "parsed %", "tokens\nin", "tokens\nout"]
    return f"<details><summary>{len(lines)} rows</summary>{_table(heads, lines, words=3)}</details>"


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
        facts["loss"] = f"{_decimals(trained.get('first_loss'), 3)} → {_decimals(trained.get('last_loss'), 3)}"
        facts["time"] = _time(trained.get("seconds"))
    return (_table(["", "non-hinted", "hinted"], lines) if collected else "") + _facts(facts)


def _rl(items: Row, steps: Sequence[Row]) -> str:
    facts = {}
    if items:
        facts = {"items given": count(items.get("given")), "trained on": count(items.get("kept"))}
        facts |= {f"dropped: {reason}": count(n) for reason, n in _part(items, "dropped").items()}
    if steps:
        facts |= {"steps": count(steps[-1]["step"]), "tokens": count(steps[-1].get("tokens_so_far"))}
        facts["time of a step"] = _time(_mean(steps, "seconds"))
    return _facts(facts) + _pictures("rl", steps, RL_CURVES)


def _meta(meta: Row) -> str:
    dev, facts = _part(meta, "dev"), {}
    if meta:
        facts = {f"held-out {METRICS[name][0]}": percent(_interval(dev, name)) for name in ("accuracy", "auc")}
        facts |= {"held-out loss": _decimals(dev.get("loss"), 3), "held-out judgments": count(dev.get("n"))}
        facts |= {"of conversations": count(dev.get("conversations")), "correct of them %": share(dev.get("correct"))}
        facts |= {"examples": count(meta.get("examples")), "correct of these": count(meta.get("correct"))}
        facts |= {f"left out: {reason}": count(n) for reason, n in _part(meta, "left_out").items()}
    return _facts(facts)


def _cost(stages: Row, evaluation: Row, rl_steps: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for name in stages:
        spent = rl_steps[-1].get("tokens_so_far") if name == "rl" and rl_steps else None
        took = _time(_part(stages, name).get("seconds"))
        lines.append([STAGES.get(name, name), took, "" if spent is None else f"tokens {count(spent)}"])
    judgments, tokens, seconds = (evaluation.get(name) for name in ("judgments", "tokens", "seconds"))
    facts = {}
    if judgments:
        facts = {
            "judgments of the evaluation": count(judgments),
            "tokens a judgment": _decimals(None if tokens is None else tokens / judgments, 1),
            "seconds a judgment": _decimals(None if seconds is None else seconds / judgments, 4),
        }
    return (_table(["stage", "time", "and"], lines) if lines else "") + _facts(facts)


def _configuration(spct: Row) -> str:
    names = ("config", "versions", "machine", "commit")
    return _table(["setting", "value"], [line for name in names for line in _flat(name, spct.get(name))], words=2)


def _flat(name: str, value: Any) -> list[list[str]]:
    """A value, or all values of a nested table, each with its dotted name."""
    if isinstance(value, Mapping) and value:
        return [line for key, part in value.items() for line in _flat(f"{name}.{key}", part)]
    return [[name, _plain(value)]]


def _pictures(stage: str, steps: Sequence[Row], curves: Curves) -> str:
    """The curves that a stage has, each with its mean over the first and the last tenth of the steps."""
    figures = []
    for name, (title, unit, decimals, after) in curves.items():
        rows = [row for row in steps if row.get(name) is not None]
        if rows:
            tenth = math.ceil(len(rows) / 10)
            ends = [_decimals(unit * (_mean(part, name) or 0), decimals) for part in (rows[:tenth], rows[-tenth:])]
            caption = f"{title}: {' → '.join(dict.fromkeys(ends))}{after}"
            colour = PLAIN_COLOURS.get(stage, GUIDED_COLOURS["rl"])
            points = [(row["step"], unit * row[name]) for row in rows]
            figures.append(_figure(steps_svg(f"{stage}-{name}", points, colour=colour, alt=caption), caption))
    note = _small("Captions: the mean of the first and of the last tenth of the steps. Strong lines: moving averages.")
    return f'<div class="small">{"".join(figures)}</div>{note}' if figures else ""


# --- text and numbers -------------------------------------------------------------------------------------------


class _Html(str):
    """Text that is HTML already; every other text is escaped when it is put into the page."""


def _cell(value: str) -> str:
    """Text of a cell as HTML: an en dash for what is not known, intervals small."""
    if isinstance(value, _Html):
        return value
    text = escape("–" if value == "-" else value).replace("\n", "<br>")
    mean, bracket, rest = text.partition(" [")
    return f"{mean} <small>[{rest}</small>" if bracket and rest.endswith("]") else text


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table; the first columns hold words, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="w"' if place < words else "" for place in range(len(cells))]
        return "".join(f"<{tag}{kind}>{_cell(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "\n".join(f"<tr>{line(cells, 'td')}</tr>" for cells in lines)
    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{head}\n<tbody>{body}</tbody></table></div>'


def _facts(facts: Mapping[str, str]) -> str:
    entries = "".join(f"<div><dt>{escape(name)}</dt><dd>{_cell(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{entries}</dl>" if facts else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body or '<p>not done</p>'}</section>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _small(text: str) -> str:
    return f"<p><small>{escape(text)}</small></p>"


def _counted(n: float | None, whole: float | None, kind: str) -> str:
    """A count, and as a number and a bar its share of the whole."""
    if n is None or not whole:
        return count(n)
    part = 100 * n / whole
    return _Html(f'{n:,.0f} <small>{part:.1f} %</small> <i class="bar {kind}"><i style="width:{part:.1f}%"></i></i>')


def _decimals(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}"


def _plain(value: Any) -> str:
    """A value of a configuration as people write it."""
    return value or "–" if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _time(seconds: float | None) -> str:
    if seconds is None or seconds < 100:
        return "–" if seconds is None else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _mean(rows: Iterable[Row], name: str) -> float | None:
    found = [row[name] for row in rows if row.get(name) is not None]
    return sum(found) / len(found) if found else None


CSS = """
:root{color-scheme:light dark;--ink:#1d2430;--soft:#5d6675;--line:#dfe3e9;--page:#fff;--tint:#f5f7fa;--mark:#2f6fde}
@media (prefers-color-scheme:dark){:root{--ink:#e3e6eb;--soft:#9aa3b0;--line:#333a45;--page:#14181e;--tint:#1c222b}}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:64rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2.5rem 0 .75rem}.headline{font-size:1.1rem}
small,figcaption,dt,th{color:var(--soft)}small{font-size:.8em;font-weight:400}
dd,figure{margin:0}.stages{display:flex;flex-wrap:wrap;gap:.5rem;list-style:none;padding:0}
.stages li{border:1px solid var(--line);border-radius:1rem;padding:.1rem .8rem;font-size:.85rem}
.note{border-left:3px solid var(--mark);background:var(--tint);padding:.6rem 1rem}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:.75rem 0}
th,td{padding:.3rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
dt{font-size:.8rem}th{font-weight:500;vertical-align:bottom}td{vertical-align:top}td small{margin-left:.2em}
.w{text-align:left;padding-left:0;white-space:normal;overflow-wrap:anywhere;min-width:5.5rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.6rem 1rem}
.large,.small{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}
figcaption{font-size:.85rem}.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
svg{display:block;width:100%;height:auto;stroke-linejoin:round}svg text{font-family:inherit!important}
.bar{display:inline-block;width:5rem;height:.5rem;background:var(--tint)}
.bar i{display:block;height:100%;background:var(--soft)}.bar.kept i,.bar.items_kept i{background:var(--mark)}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#ccc;--page:#fff;--tint:#f5f5f5}
main{max-width:none}body{font-size:10pt}table{font-size:8pt}.scroll{overflow:visible}figure,tr{break-inside:avoid}}
"""
