"""`opengrm compare`: whether two runs of `opengrm eval` differ by more than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opengrm.cli.options import JsonOut, print_table, printable
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.benchmarks.statistics import Comparison, Scored
    from opengrm.reports.eval_run import EvalRun


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run of `opengrm eval`.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another run on the same items.")],
    benchmarks: Annotated[
        str | None, typer.Option("--benchmarks", help="Only these, separated by commas. Default: all in both runs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: JsonOut = False,
) -> None:
    """Compare two runs on the items that both have: for each benchmark, each subset, and over all items.

    Differences are B less A. Intervals are 95 %, from a bootstrap that draws whole clusters (items that share a
    prompt) in both runs at once; a difference whose interval holds 0 is within noise. "80 % power" is the smallest
    true difference that so many items would show in four of five such comparisons. McNemar's p looks at the items that
    only one run has right, a tie being wrong, and takes them as independent.

    Example: opengrm compare runs/base runs/trained
    """
    from opengrm.benchmarks.statistics import compared, compared_subsets, paired
    from opengrm.reports.eval_run import read_runs

    a, b = read_runs([run_a, run_b])
    names = _names(a, b, benchmarks)
    found: dict[str, Any] = {}
    everything: list[tuple[Scored, Scored]] = []
    told: list[str] = []
    rows: list[dict[str, str]] = []
    for name in names:
        try:
            pairs, only_a, only_b = paired(_scored(a, name), _scored(b, name))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        whole, subsets = compared(pairs, seed=seed), compared_subsets(pairs, seed=seed)
        # The same name in two benchmarks is not the same cluster.
        everything += [(replace(one, cluster=f"{name}\0{one.cluster}"), other) for one, other in pairs]
        found[name] = {
            "only_a": only_a,
            "only_b": only_b,
            "overall_a": a.benchmarks[name].get("overall"),
            "overall_b": b.benchmarks[name].get("overall"),
            "all": whole.to_json(),
            "subsets": {subset: one.to_json() for subset, one in subsets.items()},
        }
        rows.append(_cells(name, whole))
        if len(subsets) > 1:
            rows += [_cells(f"  {subset}", one) for subset, one in subsets.items()]
        told += _told(name, found[name], whole)
    total = compared(everything, seed=seed) if len(names) > 1 else None
    if total is not None:
        rows.append(_cells("all items", total))
    if as_json:
        result = {
            "a": a.label,
            "b": b.label,
            "settings_a": a.about.get("settings"),
            "settings_b": b.about.get("settings"),
            "seed": seed,
            "benchmarks": found,
            "all": None if total is None else total.to_json(),
        }
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
        return
    print_table(f"A: {a.label} ({run_a})   B: {b.label} ({run_b})", rows)
    several = sum(len(one["subsets"]) for one in found.values())
    if several >= 10:
        told.append(f"Of {several} subsets about {several / 20:.0f} would stand out by chance alone.")
    for line in told:
        print(printable(line))


def _names(a: EvalRun, b: EvalRun, asked: str | None) -> list[str]:
    """The benchmarks to compare. Raises UsageError."""
    both = [name for name in a.benchmarks if name in b.benchmarks]
    if asked is None:
        if not both:
            raise UsageError(
                f"the runs have no benchmark in common: A has {', '.join(a.benchmarks) or 'none'},"
                f" B has {', '.join(b.benchmarks) or 'none'}"
            )
        return both
    wanted = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    if unknown := [name for name in wanted if name not in both]:
        raise UsageError(f"--benchmarks: {unknown[0]!r} is not in both runs; those are {', '.join(both) or 'none'}")
    return wanted


def _scored(run: EvalRun, name: str) -> list[Scored]:
    """The lines of a benchmark's items.jsonl; one that cannot be read stops the comparison."""
    from opengrm.benchmarks import BENCHMARKS
    from opengrm.benchmarks.statistics import Scored
    from opengrm.errors import BadRow
    from opengrm.jsonl import read_rows
    from opengrm.reports.eval_run import ITEMS

    rows, pool = [], name if name in BENCHMARKS and BENCHMARKS[name].ranks else None
    for where, row in read_rows(run.file(name, ITEMS)):
        try:
            rows.append(Scored.of(row, pool))
        except ValueError as error:
            raise BadRow(where, str(error)) from None
    return rows


def _cells(name: str, found: Comparison) -> dict[str, str]:
    from opengrm.reports.tables import share

    low, high = found.interval or (None, None)
    test = found.mcnemar
    return {
        "benchmark": name,
        "items": f"{found.items:,}",
        "A %": share(found.a.mean),
        "B %": share(found.b.mean),
        "B - A\n[95 %]": f"{_signed(found.difference)} [{_signed(low)}, {_signed(high)}]",
        "valid\nonly": _signed(found.difference_valid),
        "only A /\nonly B right": "-" if test is None else f"{test.only_a:,} / {test.only_b:,}",
        "McNemar\np": "-" if test is None else f"{test.p:.3f}" if test.p >= 0.001 else f"{test.p:.0e}",
        "80 %\npower": share(found.detectable),
        "missing\nA / B": f"{found.missing_a:,} / {found.missing_b:,}",
        "": found.verdict,
    }


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def _told(name: str, row: Mapping[str, Any], found: Comparison) -> list[str]:
    """A benchmark's sentences: what the difference is worth, its own figure, and the items of one run only."""
    from opengrm.reports.eval_run import number
    from opengrm.reports.tables import share

    low, high = found.interval or (None, None)
    bounds = f"[{_signed(low)}, {_signed(high)}]"
    if found.verdict in ("A better", "B better"):
        text = f"{found.verdict[0]} earns more than {'AB'[found.verdict[0] == 'A']}"
    else:
        text = "The runs earn the same on every item" if found.verdict == "equal" else "The difference is within noise"
    said = [f"{name}: {text}: {_signed(found.difference)} points {bounds} on {found.items:,} items."]
    if found.verdict == "within noise" and found.detectable is not None:
        said.append(
            f"{name}: so many items show true differences from about {share(found.detectable)} points;"
            " smaller ones need more items."
        )
    if found.clusters < found.items:
        said.append(
            f"{name}: {found.items:,} items in {found.clusters:,} clusters; McNemar's p does not know of them."
        )
    own_a, own_b = number(row["overall_a"]), number(row["overall_b"])
    if own_a is not None and own_b is not None:
        said.append(
            f"{name}: overall by the benchmark's own rule, over each run's items: A {share(own_a)}, B {share(own_b)}."
        )
    for run, ids in (("A", row["only_a"]), ("B", row["only_b"])):
        if ids:
            said.append(f"{name}: {len(ids):,} items are in {run} only and not compared, such as {ids[0]!r}.")
    return said
