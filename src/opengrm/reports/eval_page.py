"""The report of one or several `opengrm eval` runs: one HTML page that needs nothing but itself.

    write_page([RUN, ...], "page.html")

First how good each run is on each benchmark, then, for each benchmark, its subsets, what more votes, tokens and
seconds buy, and what position does to the judge; then the items themselves to read and search; last the settings.
Figures are those of eval.json. Text of items, models and judges is hostile: it reaches the page escaped, or as JSON
that the page's script puts in as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from opengrm.reports.eval_charts import AXES, Point, bar_svg, curves_svg, legend, shades
from opengrm.reports.eval_items import MOST_ITEMS, Embedded, embedded
from opengrm.reports.eval_positions import confusions
from opengrm.reports.eval_run import EvalRun, Row, interval, number, read_runs, rows, table, text
from opengrm.reports.page import Html, cell, document, fact_list, figure, folded, section, small
from opengrm.reports.page import table as html_table
from opengrm.reports.tables import count, decimals, duration, flat, percent, share
from opengrm.reports.tables import number as plain

PAGE = "report.html"
CORRELATIONS = ("pearson", "spearman", "kendall")  # not shown in percent
ABOUT = ("judge", "model", "template", "k", "temperature", "reduce")  # settings that a reader wants at once
MOST_SUBSETS = 60  # bars that are shown unasked

Runs = Sequence[EvalRun]


def write_page(
    folders: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    items: int = MOST_ITEMS,
    warn: Callable[[str], None] = lambda said: None,
) -> Path:
    """Write the page of these runs; the first folder's report.html where `output` is None.

    Args:
        folders: of runs, at least one, all different.
        output: where to write.
        items: most items that can be read on the page.
        warn: called with one sentence if there is what could not be read; the page says it, too.

    Raises:
        UsageError: a folder holds no run, or a damaged one.
    """
    runs = read_runs([Path(folder) for folder in folders])
    names = list(dict.fromkeys(name for run in runs for name in run.benchmarks))
    found = embedded(runs, items)
    title = f"Evaluation: {runs[0].label}" if len(runs) == 1 else f"Evaluation of {len(runs)} runs"
    parts = [
        f"<h1>{cell(title)}</h1>",
        _about(runs[0]) if len(runs) == 1 else "",
        _leaderboard(runs, names),
        *(_benchmark(runs, name) for name in names),
        _browser(runs, names, found),
        section("Settings", _settings(runs)),
    ]
    damaged = list(dict.fromkeys(f"{run.label}: {what}" for run in runs for what in run.damaged))
    if damaged:
        more = f" and {len(damaged) - 10:,} more" if len(damaged) > 10 else ""
        said = f"Could not be read: {'; '.join(damaged[:10])}{more}."
        parts.insert(1, f'<p class="note">{cell(said)}</p>')
        warn(said)
    body = "\n".join(filter(None, parts))
    path = Path(output) if output is not None else runs[0].folder / PAGE
    path.write_bytes(document(title, body, css=_part("eval_page.css"), script=_part("eval_page.js")))
    return path


def _part(name: str) -> str:
    return files("opengrm.reports").joinpath(name).read_text(encoding="utf-8")


# --- the whole --------------------------------------------------------------------------------------------------


def _about(run: EvalRun) -> Html:
    settings = table(run.about.get("settings"))
    said = {name: flat("", settings[name])[0][1] for name in ABOUT if settings.get(name) is not None}
    return fact_list(said | _whole(run) | {"time": duration(number(run.about.get("seconds")))})


def _whole(run: EvalRun) -> dict[str, str]:
    """The overall figure as the SPCT paper has it, where the run has all that it takes."""
    found = number(run.about.get("paper_overall"))
    return {} if found is None else {"overall as the SPCT paper has it": f"{share(found)} %"}


def _leaderboard(runs: Runs, names: Sequence[str]) -> Html:
    """One run: a benchmark a line. Several: a run a line, the best mean first."""
    if not names:
        return section("Results", str(small("No benchmark has been judged yet.")))
    partial = [name for name in names if any(_figures(run, name).get("partial") is True for run in runs)]
    unknown = [name for name in names if any(_figures(run, name).get("partial", False) is None for run in runs)]
    note = "95 % intervals, clustered by prompt where items share one. An item without a verdict counts at chance."
    note += " Seconds of an item are the sum over its judgments, also where several were made at once."
    if partial:
        note += f" * not all published rows were there ({', '.join(partial)}): not comparable with published figures."
    if unknown:
        note += f" Whether all published rows were there is not known of {', '.join(unknown)}."
    starred = [f"{name} *" if name in partial else name for name in names]
    if len(runs) == 1:
        lines = [_result_line(shown, _figures(runs[0], name)) for shown, name in zip(starred, names, strict=True)]
        heads = ["benchmark", "overall %\n[95 %]", "valid\nonly %", "items", "no\nverdict", "tied",
                 "judgments", "tokens out\nan item",
                 "seconds\nan item"]  # fmt: skip
        return section("Results", html_table(heads, lines, kind="sorted") + small(note))
    values = {run.label: [number(_figures(run, name).get("overall")) for name in names] for run in runs}
    best = [max((v[i] for v in values.values() if v[i] is not None), default=None) for i in range(len(names))]  # type: ignore[type-var]

    def mean(run: EvalRun) -> float | None:
        known = [value for value in values[run.label] if value is not None]
        return sum(known) / len(known) if len(known) == len(names) else None

    lines = []
    for run in sorted(runs, key=lambda run: (mean(run) is None, -(mean(run) or 0))):
        cells: list[str] = [run.label]
        if len(names) > 1:
            cells.append(share(mean(run)))
        for i, name in enumerate(names):
            shown = cell(_overall(_figures(run, name)))
            cells.append(
                Html(f"<b>{shown}</b>") if len(runs) > 1 and values[run.label][i] == best[i] is not None else shown
            )
        tokens = [number(table(_figures(run, name).get("cost")).get("completion_tokens")) for name in names]
        cells.append(count(sum(t for t in tokens if t is not None)) if any(t is not None for t in tokens) else "-")
        cells.append(duration(number(run.about.get("seconds"))))
        lines.append(cells)
    heads = [
        "run",
        *(["mean %"] if len(names) > 1 else []),
        *(f"{name}\n%" for name in starred),
        "tokens\nout",
        "time",
    ]
    if len(names) > 1:
        note += " The mean is over the benchmarks' overall figures, where a run has all of them."
    return section("Leaderboard", html_table(heads, lines, kind="sorted") + small(note))


def _result_line(name: str, figures: Row) -> list[str]:
    cost, items = table(figures.get("cost")), number(figures.get("items"))
    tokens, seconds = (number(cost.get(key)) for key in ("completion_tokens", "seconds"))
    return [
        name, _overall(figures), share(number(figures.get("overall_valid"))), count(items),
        count(number(figures.get("missing"))), count(number(figures.get("tied"))),
        count(number(cost.get("judgments"))), decimals(tokens / items if tokens is not None and items else None, 1),
        decimals(seconds / items if seconds is not None and items else None, 3),
    ]  # fmt: skip


def _overall(figures: Row) -> str:
    """The benchmark's overall figure, with its interval where it has one."""
    found = interval(figures.get("overall_interval"))
    return share(number(figures.get("overall"))) if found is None else percent(found)


def _figures(run: EvalRun, name: str) -> Row:
    return run.benchmarks.get(name, {})


# --- one benchmark ----------------------------------------------------------------------------------------------


def _benchmark(runs: Runs, name: str) -> Html:
    judged = [(i, run) for i, run in enumerate(runs) if name in run.benchmarks]
    said = {}
    for key in ("version", "licence"):
        values = dict.fromkeys(text(_figures(run, name).get(key)) for _, run in judged)
        said[key] = ", ".join(filter(None, values)) or "-"
    said["items"] = ", ".join(dict.fromkeys(count(number(_figures(run, name).get("items"))) for _, run in judged))
    skipped = [table(_figures(run, name).get("skipped")) for _, run in judged]
    for kind in ("rows", "judgments"):
        if any(number(row.get(kind)) for row in skipped):
            said[f"bad {kind} skipped"] = ", ".join(count(number(row.get(kind))) for row in skipped)
    parts = [
        fact_list(said),
        legend([run.label for run in runs]),
        _metrics(judged, name),
        _curves(judged, name),
        _subsets(judged, name, len(runs) > 1),
        *(_positions(run, name, len(runs) > 1) for _, run in judged),
        *(_statistics(run, name, len(runs) > 1) for _, run in judged),
    ]
    return section(name, "\n".join(filter(None, parts)))


def _metrics(judged: Sequence[tuple[int, EvalRun]], name: str) -> Html | str:
    """Every metric, a run a column."""
    metrics = list(dict.fromkeys(key for _, run in judged for key in table(_figures(run, name).get("metrics"))))
    lines = []
    for metric in metrics:
        values = [table(_figures(run, name).get("metrics")).get(metric) for _, run in judged]
        ns = dict.fromkeys(count(number(table(value).get("n"))) for value in values)
        shown = [_metric(metric, value) for value in values]
        if any(value != "-" for value in shown):  # a matrix or a curve is no cell
            lines.append([metric, *shown, ", ".join(ns)])
    heads = ["metric", *(run.label for _, run in judged), "n"] if len(judged) > 1 else ["metric", "value\n[95 %]", "n"]
    return html_table(heads, lines) if lines else ""


def _metric(name: str, value: Any) -> str:
    """A metric as tables show it: shares in percent."""
    found, in_percent = interval(value), not any(word in name.lower() for word in CORRELATIONS)
    if found is not None:
        return percent(found) if in_percent else plain(found)
    bare = number(table(value).get("mean")) if isinstance(value, Mapping) else number(value)
    return share(bare) if in_percent else decimals(bare, 2)


def _subsets(judged: Sequence[tuple[int, EvalRun]], name: str, several: bool) -> Html | str:
    """A bar for each subset and run."""
    by_subset: dict[str, list[tuple[int, EvalRun, dict[str, Any]]]] = {}
    for place, run in judged:
        for row in rows(_figures(run, name).get("subsets")):
            by_subset.setdefault(text(row.get("subset")), []).append((place, run, row))
    lines = []
    for subset, entries in by_subset.items():
        for i, (place, run, row) in enumerate(entries):
            accuracy = interval(row.get("accuracy"))
            chance = number(row.get("chance"))
            bar = "" if accuracy is None else bar_svg(place, **accuracy, chance=chance)
            cells: list[str] = [subset if i == 0 else "", *([run.label] if several else [])]
            cells += [Html(bar), percent(accuracy), share((interval(row.get("accuracy_valid")) or {}).get("mean"))]
            cells += [count(number(row.get(key))) for key in ("ties", "missing", "items")]
            lines.append(cells)
    if not lines:
        return ""
    heads = [
        "subset",
        *(["run"] if several else []),
        "",
        "accuracy %\n[95 %]",
        "valid\nonly %",
        "ties",
        "no\nverdict",
        "n",
    ]
    body = html_table(heads, lines, words=2 if several else 1, kind="bars")
    if len(lines) > MOST_SUBSETS:
        return folded(f"Subsets: {len(by_subset)}", body)
    return Html(f"<h3>Subsets</h3>{body}")


def _curves(judged: Sequence[tuple[int, EvalRun]], name: str) -> Html | str:
    """Accuracy against k, tokens and seconds; not where there is one place on the axis, and so no curve."""
    pictures = []
    for key, label in AXES.items():
        series = []
        for place, run in judged:
            points = []
            for row in rows(_figures(run, name).get("by_k")):
                x, y = number(row.get(key)), interval(row.get("accuracy"))
                if x is not None and x > 0 and y is not None:
                    said = f"{run.label}, k = {text(row.get('k'))}: {percent(y)} %"
                    said += "" if key == "k" else f" at {x:,.4g} {key}"
                    points.append(Point(x, y["mean"], y["low"], y["high"], said))
            if points:
                series.append((place, points))
        if len({point.x for _, points in series for point in points}) > 1:
            caption = f"Accuracy % against {label}"
            svg = curves_svg(series, x_label=label, alt=f"{name}: {caption}", whole=key == "k")
            pictures.append(figure(svg, caption))
    if not pictures:
        return ""
    lines = [
        [*([run.label] if len(judged) > 1 else []), text(row.get("k")), count(number(row.get("items"))),
         share(number(row.get("overall"))), percent(interval(row.get("accuracy"))),
         decimals(number(row.get("tokens")), 1), decimals(number(row.get("seconds")), 3)]
        for _, run in judged for row in rows(_figures(run, name).get("by_k"))
    ]  # fmt: skip
    heads = [*(["run"] if len(judged) > 1 else []), "k", "items", "overall %", "accuracy %\n[95 %]", "tokens\nan item",
             "seconds\nan item"]  # fmt: skip
    numbers = folded("Figures of these curves", html_table(heads, lines, words=len(heads) - 6))
    return Html(f'<h3>Votes and cost</h3><div class="small">{"".join(pictures)}</div>{numbers}')


def _positions(run: EvalRun, name: str, several: bool) -> Html | str:
    parts = []
    for found in confusions(run, name):
        named = [f"position {p + 1}" for p in range(found.n)]
        table_of = shades(
            ["best stood at", *(f"named\n{p}" for p in named), "a tie", "no scores"], named, found.counts
        )
        note = f"{found.judgments:,} single judgments of {found.items:,} labelled items with {found.n} responses; rows"
        note += " in %."
        parts.append(f"{table_of}{small(note)}")
    title = f"Confusion by position: {run.label}" if several else "Confusion by position"
    return Html(f"<h3>{cell(title)}</h3>{''.join(parts)}") if parts else ""


def _statistics(run: EvalRun, name: str, several: bool) -> Html | str:
    lines = flat("", _figures(run, name).get("statistics")) if _figures(run, name).get("statistics") else []
    title = f"Statistics: {run.label}" if several else "Statistics"
    return folded(title, html_table(["", "value"], lines, words=2)) if lines else ""


# --- the items --------------------------------------------------------------------------------------------------


def _browser(runs: Runs, names: Sequence[str], found: Embedded) -> Html:
    if not found.shown:
        return Html("")
    chosen = (
        f"All {found.total:,} items are here."
        if found.shown >= found.total
        else f"{found.shown:,} of {found.total:,} items are here: of each benchmark, in turn, items without a verdict,"
        " tied and wrong ones of every subset, and items drawn from all by a hash of their ids. Shares among them are"
        " therefore not those of the benchmark."
    )
    outcomes = [("all", "all"), ("trouble", "not right"), ("wrong", "wrong"), ("tied", "tied"),
                ("missing", "no verdict"), ("right", "right")]  # fmt: skip
    if len(runs) > 1:
        outcomes.append(("differ", "runs differ"))
    controls = [
        '<label>Search<input id="search" type="search" placeholder="text of query, response, judge" autocomplete="off"'
        ' aria-keyshortcuts="/"></label>',
        _select("outcome", "Outcome", outcomes),
        _select("benchmark", "Benchmark", [("all", "all benchmarks"), *((str(i), n) for i, n in enumerate(names))]),
        _select("subset", "Subset", [("all", "all subsets")]),
    ]
    if len(runs) > 1:
        controls.append(
            _select("run", "Run", [("any", "any run"), *((str(i), run.label) for i, run in enumerate(runs))])
        )
    body = (
        f"<p><small>{cell(chosen)} Long texts are cut in the middle, with a note. Characters that steer text are shown"
        " by their number. Keys: <kbd>/</kbd> search, <kbd>j</kbd> next, <kbd>k</kbd> previous, <kbd>Esc</kbd> clears"
        " the search.</small></p>"
        "\n<noscript><p>Reading items needs JavaScript; everything else on this page does not.</p></noscript>"
        f'<div class="controls" role="search">{"".join(controls)}</div>'
        '<div class="steps"><output id="count" aria-live="polite"></output>'
        '<button type="button" id="previous" aria-keyshortcuts="k">previous</button>'
        '<button type="button" id="next" aria-keyshortcuts="j">next</button></div>'
        '<div class="browser"><nav id="list" aria-label="Items"></nav>'
        '<article id="item" aria-label="Item" aria-live="off" tabindex="0"></article></div>'
        f'<script type="application/json" id="items-data">{found.data}</script>'
    )
    return section("Items", body)


def _select(name: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    hidden = " hidden" if name == "benchmark" and len(options) < 3 else ""
    entries = "".join(f'<option value="{value}">{cell(shown)}</option>' for value, shown in options)
    return f'<label{hidden}>{label}<select id="{name}">{entries}</select></label>'


def _settings(runs: Runs) -> str:
    parts = []
    for run in runs:
        lines = flat("", {key: value for key, value in run.about.items() if value not in (None, {})})
        body = html_table(["setting", "value"], lines, words=2)
        parts.append(folded(f"{run.label}: {len(lines)} settings", body))
    return "".join(parts)
