"""`opengrm report`: the page of one or several evaluations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from opengrm.cli.options import different_files, printable
from opengrm.errors import UsageError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `opengrm eval` wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page. Default: report.html in the first folder.")
    ] = None,
    items: Annotated[int, typer.Option(min=0, help="Most items that can be read on the page.")] = 400,
) -> None:
    """Write the page of one or several evaluations: results, subsets, votes and cost, positions, items.

        opengrm report runs/a runs/b -o compared.html

    The page is one file that loads nothing. Where matplotlib is installed (the extra 'plots'), the pictures of a
    single run are also written into its folder as PNG files.
    """
    from opengrm.reports.eval_page import write_page
    from opengrm.reports.eval_pictures import write_pictures

    if output is not None and output.is_dir():
        raise UsageError(f"--output {output}: is a folder; give the page's file, such as {output / 'report.html'}")
    different_files({"--output": output} | {str(run / "eval.json"): run / "eval.json" for run in runs})

    def warn(said: str) -> None:
        print(f"opengrm: warning: {' '.join(printable(said).split())}", file=sys.stderr)

    print(write_page(runs, output, items=items, warn=warn))
    if len(runs) == 1:
        for picture in write_pictures(runs[0]):
            print(picture)
