"""Options and small helpers that several verbs share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opengrm.errors import BadRow, UsageError

if TYPE_CHECKING:
    from opengrm.voting.guided import Rule
    from opengrm.voting.stopping import Stop

# The library's own literals, repeated because importing them here would load NumPy for `--help`.
Reduce = Literal["sum", "mean", "majority", "meta"]
Orders = Literal["balanced", "shuffle", "fixed"]
Bad = Literal["stop", "skip"]
StopName = Literal["exact", "posterior", "anytime"]
REDUCE_HELP = (
    "How judgments become a verdict: sum (the paper's) or mean of the scores, or majority (each judgment votes for its"
    " best response; of single responses: the most frequent score); meta: the sum of those that a meta RM trusts."
)
OnBad = Annotated[Bad, typer.Option("--on-bad", help="A malformed row: stop, or skip it and count.")]
JsonOut = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


HeldOutFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--held-out",
        help="Items that will be reported on; refuse to train on copies and near copies of their prompts and responses"
        " (see check-overlap). May be given several times.",
    ),
]
ChatVariables = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="Variables of the model's chat template, e.g. '{\"enable_thinking\": false}'.",
    ),
]
KMeta = Annotated[
    int | None, typer.Option("--k-meta", min=1, help="With --reduce meta: how many judgments count. Default: k/2.")
]
MetaThreshold = Annotated[
    float | None, typer.Option("--meta-threshold", help="With --reduce meta: least meta score (logit) that counts.")
]
MetaWeights = Annotated[
    bool, typer.Option("--meta-weights", help="With --reduce meta: a judgment counts sigmoid(meta score).")
]
STOP_HELP = (
    "Stop an item's votes early: exact (nothing to come can change the leader), posterior (the leader will stay with"
    " probability 1 - alpha, if votes go on as they are), anytime (guaranteed: the vote differs from the full one with"
    " probability at most alpha). See docs/adaptive-voting.md."
)
Alpha = Annotated[
    float | None,
    typer.Option(help="With --stop posterior or anytime: the chance taken of another full vote. Default: 0.05."),
]
Width = Annotated[
    float | None,
    typer.Option(help="With --stop, for single responses: how near the mean so far must be to that of all votes."),
]
ScoreRange = Annotated[
    str | None,
    typer.Option(
        "--range", metavar="LOW,HIGH", help="The range of a score. Default: the least and the largest recorded."
    ),
]


def stopping_rule(
    stop: StopName | None, alpha: float | None, width: float | None, scale: tuple[float, float] | None, how: Rule
) -> Stop | None:
    """The stopping rule that the options name, for this vote of scores on this scale.

    Raises:
        UsageError: they do not fit.
    """
    if stop is None:
        if alpha is not None or width is not None:
            raise UsageError("--alpha and --width go with --stop")
        return None
    if stop == "exact" and alpha is not None:
        raise UsageError("--alpha has no effect with --stop exact, which takes no chance")
    from opengrm.voting.stopping import Stop, check_width

    low, high = scale or (-1e99, 1e99)
    try:
        found = Stop(stop, 0.05 if alpha is None else alpha, low, high, width)
        check_width(found, how)
    except ValueError as error:
        raise UsageError(f"--stop {stop}: {error}") from error
    return found


def score_range(text: str | None) -> tuple[float, float] | None:
    """The value of --range, LOW,HIGH. Raises UsageError."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--range {text!r:.80}: expected two numbers, such as 1,10") from None
    return low, high


def voting_rule(reduce: Reduce, k_meta: int | None, threshold: float | None, weights: bool) -> Rule:
    """The rule that the options name. Raises UsageError if they do not go together."""
    if reduce != "meta":
        if k_meta is not None or threshold is not None or weights:
            raise UsageError("--k-meta, --meta-threshold and --meta-weights go with --reduce meta")
        return reduce
    from opengrm.voting.guided import Guide

    try:
        return Guide(k_meta, threshold, weights)
    except ValueError as error:
        raise UsageError(str(error)) from error


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


def of_file(path: Path, on_bad: Callable[[BadRow], None]) -> Callable[[BadRow], None]:
    """`on_bad` for judgments that were read from this file: their places are items, not lines."""
    return lambda row: on_bad(BadRow(f"{path}: {row.where}", row.what))


def is_stream(path: Path) -> bool:
    """Whether it is standard input or output, a pipe or a device: read once, written in place, never compared."""
    return str(path) == "-" or (path.exists() and not path.is_file() and not path.is_dir())


def is_ledger(path: Path) -> bool:
    """Whether a file is a ledger, whatever it is called; one that is not there goes by its name."""
    if not path.is_file():
        return path.suffix == ".db" and not is_stream(path)
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def different_files(named: Mapping[str, Path | None]) -> None:
    """Refuse two that are one file, whatever they are called: what is written would destroy what is read or kept.

    Args:
        named: a file, or None, by the name that the user knows it by.

    Raises:
        UsageError: two resolve to the same file, or two are standard output.
    """
    seen: list[tuple[str, Path]] = []
    for name, path in named.items():
        if path is None or (is_stream(path) and str(path) != "-"):
            continue
        for other, known in seen:
            if _same(path, known):
                place = "standard output" if str(path) == "-" else f"the same file, {path}"
                raise UsageError(f"{other} and {name} are both {place}")
        seen.append((name, path))


def _same(a: Path, b: Path) -> bool:
    if "-" in (str(a), str(b)):
        return str(a) == str(b)
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


def json_object(option: str, text: str | None) -> dict[str, Any] | None:
    """The value of an option that takes a JSON object. Raises UsageError."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} {text!r:.80} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{option} {text!r:.80} is no JSON object, expected one such as '{{\"key\": false}}'")
    return value


def key_values(option: str, pairs: Sequence[str]) -> dict[str, Any] | None:
    """The values of a repeated option KEY=VALUE: what reads as JSON, else a text. Raises UsageError."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"{option} {pair!r:.80}: expected KEY=VALUE, such as tensor_parallel_size=8")
        if key in found:
            raise UsageError(f"{option}: {key} is given twice")
        try:
            found[key] = json.loads(text)
        except (ValueError, RecursionError):
            found[key] = text
    return found or None


def printable(text: str) -> str:
    """The text with control characters shown as a mark: what others wrote may not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_table(title: str, rows: Sequence[Mapping[str, str]], *, empty: str = "nothing to show") -> None:
    """A table on standard output; the first row's keys are the heading. Text is shown as it is, never as markup.

    Where standard output is no terminal a line is as wide as it has to be (or as `COLUMNS` says).
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 1000
    if not rows:
        console.print(Text(f"{title}: {empty}"))
        return
    table = Table(title=Text(title), title_justify="left")
    for position, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row.values()))
    console.print(table)
