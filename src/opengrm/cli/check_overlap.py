"""`opengrm check-overlap`: whether what is trained on is also reported on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengrm.cli.options import BadRows, JsonOut, OnBad, bad_rows, printable
from opengrm.errors import OpenGRMError, UsageError

if TYPE_CHECKING:
    from opengrm.training.overlap import Exchange

SHOWN = 20  # pairs in the text


def check_overlap(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRAIN... BENCH",
            help='Files that are trained on (items, or rows {"prompt", "completion"}), and last what is reported on: a'
            " file of items, or a benchmark of `eval` by name, with --data.",
        ),
    ],
    held_out: Annotated[
        list[Path] | None,
        typer.Option("--held-out", help="What is reported on, several times; then every argument is trained on."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help='Where a benchmark\'s rows are: a file, a folder, or "hub".')
    ] = None,
    on_bad: OnBad = "stop",
    as_json: JsonOut = False,
) -> None:
    """Look for benchmark prompts and responses in training data.

    Exit code 0: none; 1: there are some; 2: it could not look, for a wrong call or input that cannot be read.

    A row overlaps if its prompt or a response equals a held-out one (but for case, spacing, Unicode form and
    punctuation), or if it holds half of the 5-word spans of a held-out prompt, or four fifths of those of a held-out
    response. Rewordings are not found. docs/contamination.md has the rule and what it misses.

    Example: opengrm check-overlap preferences.jsonl benchmark.jsonl
    """
    from opengrm.benchmarks import BENCHMARKS
    from opengrm.training.overlap import HeldOut, exchanges

    trained, reported = (files, held_out) if held_out else (files[:-1], files[-1:])
    if not trained:
        raise UsageError("check-overlap takes at least two files: TRAIN and BENCH")
    if data is not None and not any(str(place) in BENCHMARKS for place in reported):
        names = ", ".join(map(str, reported))
        raise UsageError(f"--data goes with the name of a benchmark, and {names} is none: {', '.join(BENCHMARKS)}")
    skipped = bad_rows(on_bad)
    try:
        known = HeldOut(row for place in reported for row in _reported(place, data, skipped))
        found = known.check(row for path in trained for row in exchanges(path, skipped))
    except OpenGRMError as error:
        error.exit_code = 2  # 1 says that there is an overlap
        raise
    except OSError as error:
        raise UsageError(f"{error.filename or 'input'}: {error.strerror or error}") from error
    skipped.report()
    for rows, places in ((found.rows, trained), (found.held_out, reported)):
        if not rows:  # with --on-bad skip: nothing to compare is not "no overlap"
            raise UsageError(f"{', '.join(map(str, places))}: no row could be used, so there is nothing to compare")
    if as_json:
        print(json.dumps({**found.to_json(), "skipped_rows": skipped.count}, ensure_ascii=False))
    else:
        for match in found.matches[:SHOWN]:
            print(printable(str(match)))
        if found.pairs > SHOWN:
            print(f"... and {found.pairs - SHOWN:,} more pairs; --json lists the first {len(found.matches):,}.")
        print(
            f"{found.overlapping:,} of {found.rows:,} training rows overlap ({found.equal:,} of them are equal) with"
            f" {found.met:,} of {found.held_out:,} held-out prompts."
        )
        if found.short or found.shared:
            print(f"Compared as wholes only: {found.short:,} short prompts, {found.shared:,} of shared wording.")
    if found.overlapping:
        raise typer.Exit(1)


def _reported(place: Path, data: str | None, skipped: BadRows) -> Iterator[Exchange]:
    """What a file holds, or a benchmark. With --data a benchmark's name is one, whatever else is called so."""
    from opengrm.benchmarks import BENCHMARKS
    from opengrm.benchmarks.files import load
    from opengrm.training.overlap import exchanges, of_items

    benchmark = None if data is None and place.exists() else BENCHMARKS.get(str(place))
    if benchmark is None:
        return exchanges(place, skipped)
    if data is None:
        raise UsageError(f'{place}: give --data, a file or folder or "hub"')
    return of_items(load(benchmark, data, skipped))
