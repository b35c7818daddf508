"""`opengrm vote`: vote over recorded judgments again, and measure what more votes are worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opengrm.cli.options import (
    REDUCE_HELP,
    STOP_HELP,
    Alpha,
    BadRows,
    JsonOut,
    KMeta,
    MetaThreshold,
    MetaWeights,
    OnBad,
    Reduce,
    ScoreRange,
    StopName,
    Width,
    bad_rows,
    different_files,
    is_ledger,
    of_file,
    print_table,
    score_range,
    stopping_rule,
    voting_rule,
)
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.judgments import Judgment
    from opengrm.voting.guided import Rule
    from opengrm.voting.revote import Labels, Report
    from opengrm.voting.stopping import Stop

_DRAWS = 50  # orders in which recorded votes are read again


def vote(
    judgments: Annotated[
        Path,
        typer.Argument(
            metavar="JUDGMENTS",
            help="Judgments: JSON Lines (.gz, .zst; only 'item' and 'scores' are required) or a ledger.",
        ),
    ],
    items: Annotated[Path | None, typer.Option(help="The items, for their labels.")] = None,
    k: Annotated[
        str | None, typer.Option("-k", help="Numbers of votes, e.g. 1,2,4,8. Default: up to all recorded samples.")
    ] = None,
    reduce: Annotated[Reduce, typer.Option(help=REDUCE_HELP)] = "sum",
    k_meta: KMeta = None,
    meta_threshold: MetaThreshold = None,
    meta_weights: MetaWeights = False,
    subsets: Annotated[
        Literal["auto", "all", "planned"],
        typer.Option(
            help="Which k of the recorded samples vote: all subsets, or those that keep a balanced plan of orders."
            " auto: planned where the recorded orders are such a plan."
        ),
    ] = "auto",
    stop: Annotated[StopName | None, typer.Option(help=STOP_HELP)] = None,
    alpha: Alpha = None,
    width: Width = None,
    scores: ScoreRange = None,
    pool: Annotated[
        bool,
        typer.Option("--pool", help="Let judgments of different models, templates, settings or runs vote together."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the verdicts over all recorded samples here.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against k here (.png, .svg).")] = None,
    on_bad: OnBad = "stop",
    as_json: JsonOut = False,
) -> None:
    """Vote over recorded judgments again.

    Nothing is judged: the recorded samples are voted on k at a time. With labelled items this gives accuracy (or
    correlation) for each k, averaged over subsets of the samples, with 95 % intervals clustered by item (or by the
    prompt that items share); ties count as expected credit and as wrong, items without a verdict at chance and not at
    all. Without labels it gives how far the samples agree. Where orders are known, it also gives position bias and
    order consistency.

    Example: opengrm vote judgments.jsonl --items items.jsonl -k 1,2,4,8

    With meta scores (opengrm judge --meta) votes can be guided: opengrm vote run.ledger.db --reduce meta --k-meta 4

    What a stopping rule would have spent, and how often it would have agreed with all votes:

        opengrm vote run.ledger.db --items items.jsonl --stop posterior
    """
    from opengrm.reading import read_items
    from opengrm.voting.replay import observed_scores
    from opengrm.voting.revote import Labels, revote, verdicts

    if str(output) == "-":
        raise UsageError("--output -: the report goes to standard output; give the verdicts a file")
    ins = {"JUDGMENTS": judgments, "--items": items}
    outs = {"--output": output, "--plot": plot}
    different_files({name: path for name, path in (ins | outs).items() if str(path) != "-"})
    rule = voting_rule(reduce, k_meta, meta_threshold, meta_weights)
    ks = None if k is None else numbers("-k", k)
    given = score_range(scores)
    if given is not None and stop is None:
        raise UsageError("--range goes with --stop")
    stopping_rule(stop, alpha, width, given, rule)  # refused before anything is read
    skipped = bad_rows(on_bad)
    labels = None if items is None else Labels.of(read_items(items, skipped))
    with open_judgments(judgments, skipped) as rows:
        report = revote(rows, labels, ks=ks, how=rule, subsets=subsets, pool=pool, on_bad=of_file(judgments, skipped))
    skipped.report()
    if not report.counts["judgments"]:
        raise UsageError(f"{judgments}: no judgments")
    blocks = [b for r in report.recorded for b in r.blocks]
    most = max(block.samples for block in blocks)
    if ks is not None and max(ks) > most:
        typer.echo(f"-k {k}: at most {most} samples are recorded", err=True)
    early = None
    if stop is not None:
        from opengrm.voting.replay import observed_range
        from opengrm.voting.stopping import check_range

        early = stopping_rule(stop, alpha, width, given or observed_range(blocks), rule)
        assert early is not None
        try:
            for block in blocks:
                check_range(block.scores_IKN, early)
        except ValueError as error:
            raise UsageError(f"{judgments}: {error} by --range {scores}") from error
    if output is not None:
        from opengrm.jsonl import write_rows

        write_rows(output, (v.to_json() for v in verdicts(report.recorded, rule, stop=early, pooled=pool)))
    seen = observed_scores(blocks)
    adaptive = [] if early is None or seen is None else _replayed(report, labels, rule, early, pool)
    if as_json:
        row = {**report.to_json(), "skipped_rows": skipped.count}
        print(json.dumps(row if early is None else row | {"adaptive": adaptive}, ensure_ascii=False, allow_nan=False))
    else:
        _show(report, labelled=labels is not None)
        if early is not None and seen is not None:
            _show_adaptive(
                report, adaptive, early, "given" if given else "observed" if seen[0] < seen[1] else "assumed"
            )
    if plot is not None:
        _plot(plot, report)


def _replayed(report: Report, labels: Labels | None, how: Rule, stop: Stop, pooled: bool) -> list[dict[str, Any]]:
    """What the rule spends on every source and group, in many orders of the recorded votes."""
    from opengrm.voting.recorded import as_json
    from opengrm.voting.replay import adaptive_rows
    from opengrm.voting.revote import GROUPS

    found = []
    for source in report.recorded:
        for group in ("singles", "pairs", "lists"):
            blocks = [b for b in source.blocks if GROUPS[group](b.n)]
            known, clusters = ({}, {}) if labels is None else (labels.labels, labels.clusters)
            rows = adaptive_rows(blocks, [stop], how, labels=known, clusters=clusters, draws=_DRAWS, pooled=pooled)
            found += [{**as_json(source.source), "group": group, **row} for row in rows]
    return found


def _show_adaptive(
    report: Report, rows: list[dict[str, Any]], stop: Stop, scale: Literal["given", "observed", "assumed"]
) -> None:
    """What stopping early would have done; `scale` is where the range of scores is from."""
    from opengrm.reports.tables import adaptive_cells

    name_of = _namer(report)
    for row in rows:
        name = " · ".join(part for part in ("stopping early", row["group"], name_of(row)) if part)
        print_table(name, adaptive_cells([row]))
    if stop.width is None and any(row["group"] == "singles" for row in rows):
        print("Single responses never stop early without --width: how near the mean must be to that of all votes.")
    where = {
        "given": "as given",
        "observed": "the least and the largest recorded; --range gives the judge's",
        "assumed": "assumed, since all recorded scores are equal; --range gives the judge's",
    }[scale]
    print(f"Means over {_DRAWS} orders of the recorded votes; scores from {stop.low:g} to {stop.high:g}, {where}.")


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 1, separated by commas. Raises UsageError."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"{option} {text}: expected whole numbers from 1, separated by commas")
    return found


@contextmanager
def open_judgments(path: Path, skipped: BadRows) -> Iterator[Iterable[Judgment]]:
    """The judgments of a file or of a ledger, whatever its name."""
    if is_ledger(path):
        from opengrm.ledger import Ledger

        with Ledger(path, create=False) as ledger:
            yield ledger.judgments()
    else:
        from opengrm.reading import read_judgments

        yield read_judgments(path, skipped)


def _show(report: Report, *, labelled: bool) -> None:
    from opengrm.reports.tables import agreement_cells, percent, position_cells, vote_cells

    name_of = _namer(report)
    for name, rows in _series(report).items():
        print_table(f"votes: {name}", vote_cells(rows))
        print(_sentence(rows))
    for unmet in report.unmet:
        where = " · ".join(part for part in (unmet["group"], name_of(unmet)) if part)
        ks = ", ".join(map(str, unmet["ks"]))
        print(f"{where}: no line for k = {ks}: no item has more than {unmet['samples']} samples.")
    for name in dict.fromkeys(name_of(row) for row in report.agreement):
        print_table(
            " · ".join(["agreement between samples", *([name] if name else [])]),
            agreement_cells([row for row in report.agreement if name_of(row) == name]),
        )
    for found in report.positions:
        name = " · ".join(part for part in ("positions", f"{found['n']} responses", name_of(found)) if part)
        if found["first_preference"] is None:
            print(f"{name}: the orders do not tell position bias (every item was shown in one order, or in too few).")
            continue
        print_table(name, position_cells(found))
        if found["items_compared"]:
            print(
                "Judgments in different orders name the same best response"
                f" {percent(found['other_order_agreement'])} % of the time,"
                f" in equal orders {percent(found['same_order_agreement'])} % ({found['items_compared']:,} items)."
            )
    print(_counts(report, labelled=labelled))


def _series(report: Report) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by source and group, under the name they are shown by."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    name_of = _namer(report)
    for row in report.rows:
        series.setdefault(" · ".join(part for part in (row["group"], name_of(row)) if part), []).append(row)
    return series


def _namer(report: Report) -> Callable[[Mapping[str, Any]], str]:
    """How a person names a source: model, template and temperature, and of the other settings those that differ."""
    from opengrm.voting.recorded import as_json

    sources = [as_json(recorded.source) for recorded in report.recorded]
    forms = {"top_p": "top_p = {}", "max_tokens": "{} tokens", "orders": "{} orders"}
    differ = {key: form for key, form in forms.items() if len({source.get(key) for source in sources}) > 1}

    def name(row: Mapping[str, Any]) -> str:
        parts = [row.get("model"), row.get("template")]
        if row.get("temperature") is not None:
            parts.append(f"T = {row['temperature']:g}")
        parts += [form.format(row[key]) for key, form in differ.items() if row.get(key) is not None]
        return " · ".join(part for part in parts if part)

    return name


def _sentence(rows: list[Mapping[str, Any]]) -> str:
    from opengrm.reports.tables import number, percent

    first, last = rows[0], rows[-1]
    metric = next((m for m in ("accuracy", "auc", "pearson") if first.get(m) and last.get(m)), None)
    how = "all subsets of the recorded samples" if last["subsets"] == "all" else "subsets that keep the plan of orders"
    if not all(row["exact"] for row in rows):
        how += (
            f" (random ones where there are very many, {min(r['subsets_per_item'] for r in rows if not r['exact'])})"
        )
    text = f"Averaged over {how}; 95 % intervals clustered by item or shared prompt; {first['reduce']}."
    if metric is not None and len(rows) > 1:
        show, unit = (number, "") if metric == "pearson" else (percent, " %")
        name = {"accuracy": "Accuracy", "auc": "ROC-AUC", "pearson": "Pearson correlation"}[metric]
        start, end = (f"{show(row[metric])}{unit} at k = {row['k']}" for row in (first, last))
        text = f"{name} from {start} to {end}. {text}"
    if first["group"] == "singles" and first["accuracy"] is None:
        text += f" The {first['reduce']} of scores is no score: accuracy of single responses needs --reduce majority."
    if last["skipped"]:
        text += f" {last['skipped']:,} items with fewer than {last['k']} samples are not in the last line."
    return text


def _counts(report: Report, *, labelled: bool) -> str:
    counts = report.counts
    said = [f"{counts['judgments']:,} judgments of {counts['items']:,} items, {counts['missing']:,} without scores."]
    if not labelled:
        said.append("No labels: accuracy needs --items with labelled items.")
    else:
        said.append(f"{counts['labelled']:,} items have a label.")
    for name, text in (
        (
            "unknown_judgments",
            f"judgments of {counts['unknown_items']:,} items are not in ITEMS: not in any accuracy.",
        ),
        ("unjudged_items", "items of ITEMS have no judgment."),
        ("duplicates", "judgments with the key of a later one were left out."),
        ("without_meta", "valid judgments have no meta score and count only where others do not fill the places."),
        ("size_unknown", "items have only missing judgments and an unknown number of responses."),
    ):
        if counts.get(name):
            said.append(f"{counts[name]:,} {text}")
    return " ".join(said)


def _plot(path: Path, report: Report) -> None:
    from opengrm.reports.curves import plot_curves

    series = _series(report)
    metric = next((m for m in ("accuracy", "auc", "pearson") if any(r.get(m) for r in report.rows)), "accuracy")
    plot_curves(path, series, metric=metric)
