"""`opengrm world`: items of RubricWorld, the proving ground."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opengrm.cli.options import JsonOut
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.items import Item

app = typer.Typer(help="RubricWorld, the proving ground: make items, look at them.", no_args_is_help=True)


SplitName = Annotated[Literal["train", "dev", "test"], typer.Option(help="No query is in two splits.")]
Responses = Annotated[
    str, typer.Option("--responses", "-n", help='Responses an item: a number, a range such as 2-6, or "mixed".')
]
Difficulty = Annotated[float, typer.Option(help="0 (rewards far apart) to 1 (close, with many distractions).")]


def _responses(text: str) -> int | tuple[int, int] | Literal["mixed"]:
    if text == "mixed":
        return "mixed"
    low, _, high = text.partition("-")
    if not low.isdecimal() or not (high or low).isdecimal():
        raise UsageError(f"--responses is {text!r}, expected a number, a range such as 2-6, or mixed")
    return (int(low), int(high)) if high else int(low)


@app.command()
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the items.")] = Path("-"),
    count: Annotated[int, typer.Option("--count", "-c", min=1, help="How many items.")] = 1000,
    responses: Responses = "2",
    split: SplitName = "test",
    seed: Annotated[int, typer.Option(help="Another seed gives other items.")] = 0,
    difficulty: Difficulty = 0.5,
    label_noise: Annotated[float, typer.Option(help="Share of labels that are wrong.")] = 0.0,
    binary: Annotated[bool, typer.Option("--binary", help="Single responses with a 0/1 label.")] = False,
    principles: Annotated[bool, typer.Option("--principles", help="Give the true principles with each item.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="Give a reference answer with each item.")] = False,
) -> None:
    """Write labelled items; the hidden truth is in each item's `source`."""
    from opengrm.reading import write_items
    from opengrm.worlds.rubric import generate_items

    def items(wanted: int) -> Iterator[Item]:
        return generate_items(
            wanted, seed=seed, split=split, n=_responses(responses), difficulty=difficulty,
            label_noise=label_noise, binary=binary, principles=principles, reference=reference,
        )  # fmt: skip

    try:
        next(items(1))  # an argument out of range shows before anything is written
    except ValueError as error:
        raise UsageError(str(error)) from error
    written = write_items(output, items(count))
    typer.echo(f"{written:,} items written to {output}", err=True)


@app.command()
def instructions(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the rows.")] = Path("-"),
    count: Annotated[int, typer.Option("--count", "-c", min=1, help="How many rows.")] = 1000,
    split: SplitName = "train",
    seed: Annotated[int, typer.Option(help="Another seed gives other rows.")] = 0,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task (name, check or write); may be given again.")
    ] = None,
) -> None:
    """Write instruction rows {"prompt", "completion", "task"} for `opengrm train rft --instructions`."""
    from opengrm.jsonl import write_rows
    from opengrm.worlds.instructions import SHARES, generate_instructions

    rows = generate_instructions(count, seed=seed, split=split, tasks=task or tuple(SHARES))
    try:
        written = write_rows(output, rows)
    except ValueError as error:
        raise UsageError(str(error)) from error
    typer.echo(f"{written:,} rows written to {output}", err=True)


@app.command()
def show(
    count: Annotated[int, typer.Option("--count", "-c", min=1, help="How many items.")] = 3,
    responses: Responses = "2",
    split: SplitName = "test",
    seed: Annotated[int, typer.Option(help="Another seed gives other items.")] = 0,
    difficulty: Difficulty = 0.5,
    as_json: JsonOut = False,
) -> None:
    """Print a few items with what is hidden from the judge: criteria, who meets them, true rewards."""
    from rich.console import Console
    from rich.text import Text

    from opengrm.cli.options import print_table
    from opengrm.worlds.rubric import generate_items

    try:
        items = list(generate_items(count, seed=seed, split=split, n=_responses(responses), difficulty=difficulty))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if as_json:
        print(json.dumps([item.to_json() for item in items], ensure_ascii=False, indent=2))
        return
    console = Console()
    for item in items:
        truth = item.source
        console.print(Text.assemble(("query: ", "bold"), item.prompt[-1].content))
        rows = []
        for i, text in enumerate(item.responses):
            row = {"": f"[{i + 1}]", "response": text}
            for (name, weight), met in zip(truth["criteria"], truth["met"][i], strict=True):
                row[f"{name} {weight}"] = "yes" if met else "no"
            rows.append({**row, "reward": f"{truth['rewards'][i]}" + (" *" if i == item.label else "")})
        print_table("", rows)
