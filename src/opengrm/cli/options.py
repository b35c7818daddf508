"""Options and small helpers that several verbs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import typer

from opengrm.errors import BadRow

# The library's own literals, repeated because importing them here would load NumPy for `--help`.
Reduce = Literal["sum", "mean", "majority"]
Orders = Literal["balanced", "shuffle", "fixed"]
Bad = Literal["stop", "skip"]
OnBad = Annotated[Bad, typer.Option("--on-bad", help="A malformed row: stop, or skip it and count.")]
JsonOut = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class BadRows:
    """Counts malformed rows and keeps the first few for the report."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[BadRow] = []

    def __call__(self, row: BadRow) -> None:
        self.count += 1
        if len(self.first) < 5:
            self.first.append(row)

    def report(self) -> None:
        """Say on standard error what was skipped; silent if nothing was."""
        for row in self.first:
            typer.echo(f"skipped {row}", err=True)
        if self.count > len(self.first):
            typer.echo(f"skipped {self.count - len(self.first):,} more malformed rows", err=True)


class _StopAtFirst(BadRows):
    def __call__(self, row: BadRow) -> None:
        raise row


def bad_rows(on_bad: Bad) -> BadRows:
    """The policy that `--on-bad` names, to be handed to a reader."""
    return BadRows() if on_bad == "skip" else _StopAtFirst()


def print_table(title: str, rows: Sequence[Mapping[str, str]], *, empty: str = "nothing to show") -> None:
    """A table on standard output; the first row's keys are the heading. Text is shown as it is, never as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not rows:
        console.print(Text(f"{title}: {empty}"))
        return
    table = Table(title=Text(title), title_justify="left")
    for position, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row.values()))
    console.print(table)
