"""`opengrm plan`: from a pilot's judgments, what each number of votes and each stopping rule would cost and give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from opengrm.cli.options import (
    REDUCE_HELP,
    JsonOut,
    KMeta,
    MetaThreshold,
    MetaWeights,
    OnBad,
    Reduce,
    ScoreRange,
    Width,
    bad_rows,
    is_ledger,
    of_file,
    print_table,
    score_range,
    voting_rule,
)
from opengrm.cli.vote import numbers, open_judgments
from opengrm.errors import UsageError


def plan(
    pilot: Annotated[
        Path, typer.Argument(metavar="PILOT", help="Judgments of some items at the full k: a ledger, or JSON Lines.")
    ],
    items: Annotated[Path | None, typer.Option(help="The items, for their labels.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Also give the cost of so many items.")] = None,
    k: Annotated[
        str | None, typer.Option("-k", help="Numbers of votes, e.g. 1,2,4,8. Default: powers of two and all.")
    ] = None,
    aim: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of verdicts that may differ from the full vote's.")
    ] = 0.02,
    at_once: Annotated[
        float, typer.Option(min=1.0, help="Judgments that the engine makes at the same time, for the seconds.")
    ] = 1.0,
    reduce: Annotated[Reduce, typer.Option(help=REDUCE_HELP)] = "sum",
    k_meta: KMeta = None,
    meta_threshold: MetaThreshold = None,
    meta_weights: MetaWeights = False,
    width: Width = None,
    scores: ScoreRange = None,
    draws: Annotated[int, typer.Option(min=1, help="Orders in which each item's votes are read.")] = 50,
    on_bad: OnBad = "stop",
    as_json: JsonOut = False,
) -> None:
    """Choose how to spend votes before spending them.

    A pilot is a few hundred items judged k times (opengrm judge -k 32). From its recorded votes this gives, for every
    number of votes and every stopping rule, votes, tokens and seconds a verdict, how often the verdict would be that
    of all votes, and with labelled items its accuracy; and the cheapest plan that differs in at most --aim of them.

    Example: opengrm plan pilot.ledger.db --items pilot.jsonl --aim 0.01 --count 100000
    """
    from opengrm.ledger import Ledger
    from opengrm.reading import read_items
    from opengrm.reports.tables import adaptive_cells
    from opengrm.voting.recorded import as_json as source_json
    from opengrm.voting.recorded import collect
    from opengrm.voting.replay import adaptive_rows, cheapest, observed_range, usual_plans
    from opengrm.voting.revote import GROUPS, Labels, without_meta
    from opengrm.voting.stopping import Stop, check_width

    rule = voting_rule(reduce, k_meta, meta_threshold, meta_weights)
    wanted, given = None if k is None else numbers("-k", k), score_range(scores)
    guided = not isinstance(rule, str)
    try:
        check_width(Stop("exact", width=width), rule)
    except ValueError as error:
        raise UsageError(f"--width {width:g}: {error}") from error
    skipped = bad_rows(on_bad)
    labels = Labels() if items is None else Labels.of(read_items(items, skipped))
    with open_judgments(pilot, skipped) as judgments:
        recorded = collect(judgments, labels.sizes, on_bad=of_file(pilot, skipped))
    skipped.report()
    judged = [item for source in recorded for block in source.blocks for item in block.items]
    if items is not None and judged and not any(item in labels.sizes for item in judged):
        raise UsageError(f"{items}: no item of the pilot; ids are like {judged[0]!r:.80}")
    if guided:
        without_meta(block for source in recorded for block in source.blocks)
    latency: dict[tuple[Any, ...], float] = {}
    if is_ledger(pilot):
        with Ledger(pilot, create=False) as ledger:
            for group in ledger.info():
                name = (group["model"], group["template"], group["temperature"])
                latency[name] = (group["seconds"] or 0.0) / group["judgments"]
    found = []
    for source in recorded:
        for group_name in ("singles", "pairs", "lists"):
            blocks = [b for b in source.blocks if GROUPS[group_name](b.n) and b.samples >= 2]
            if not blocks:
                continue
            fewest = min(b.samples for b in blocks)
            try:
                plans = usual_plans(fewest, given or observed_range(blocks), wanted, width, guided=guided)
                rows = adaptive_rows(blocks, plans, rule, labels=labels.labels, clusters=labels.clusters, draws=draws)
            except ValueError as error:
                raise UsageError(f"{pilot}: {error}") from error
            each = latency.get(source.source[:3])
            for row in rows:
                row["seconds"] = None if not each else row["votes"]["mean"] * each / at_once
            found.append({
                **source_json(source.source), "group": group_name, "rows": rows, "chosen": cheapest(rows, aim),
                "unmet": [votes for votes in wanted or () if votes > fewest], "fewest": fewest,
                "left_out": ["anytime"] if guided else [],
            })  # fmt: skip
    if not found:
        raise UsageError(f"{pilot}: no item has two judgments or more with scores")
    if as_json:
        print(json.dumps({"aim": aim, "plans": found}, ensure_ascii=False, allow_nan=False))
        return
    for one in found:
        title = " · ".join(str(one[key]) for key in ("group", "model", "template", "temperature") if one.get(key))
        print_table(title, adaptive_cells(one["rows"]))
        if one["unmet"]:
            ks = ", ".join(map(str, one["unmet"]))
            print(f"No line for k = {ks}: of some item only {one['fewest']} judgments are recorded.")
        if one["left_out"]:
            print("anytime is left out: it seldom stops a guided vote and takes long to replay.")
        print(_sentence(one, aim, count))


def _sentence(found: dict[str, Any], aim: float, count: int | None) -> str:
    row = next((r for r in found["rows"] if r["plan"] == found["chosen"]), None)
    if row is None:
        return f"None of these surely differs in at most {aim:.1%} of the verdicts; a larger pilot could tell."
    text = (
        f"Cheapest that differs from all {row['k']} votes in at most {aim:.1%} of the verdicts: {row['plan']}"
        f" (upper bound {row['disagreement_bound']:.1%} of {row['items']:,} items), {row['votes']['mean']:.1f} votes."
    )
    if count is not None:
        costs = [("votes", row["votes"]["mean"]), ("tokens", row["tokens"]), ("seconds", row["seconds"])]
        text += f" For {count:,} items: " + ", ".join(f"{count * v:,.0f} {n}" for n, v in costs if v is not None) + "."
    return text
