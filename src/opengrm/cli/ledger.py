"""`opengrm ledger`: look into a ledger, write it out, read judgments in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from opengrm.cli.options import JsonOut, OnBad, bad_rows, different_files, print_table

app = typer.Typer(help="Judgments on disk: what is there, export, import.", no_args_is_help=True)
LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger file (SQLite).")]


@app.command()
def info(ledger: LedgerFile, as_json: JsonOut = False) -> None:
    """Show what a ledger holds: a line for each model, template and temperature."""
    from opengrm.ledger import Ledger

    with Ledger(ledger, create=False) as kept:
        rows = kept.info()
    if as_json:
        print(json.dumps({"ledger": str(ledger), "groups": rows}, ensure_ascii=False))
        return
    shown = []
    for row in rows:
        missing = sum(row["missing"].values())
        kinds = ", ".join(f"{kind} {count}" for kind, count in row["missing"].items())
        shown.append(
            {
                "model": row["model"] or "-",
                "template": row["template"] or "-",
                "T": "-" if row["temperature"] is None else f"{row['temperature']:g}",
                "items": f"{row['items']:,}",
                "judgments": f"{row['judgments']:,}",
                "missing": f"{missing:,}" + (f" ({kinds})" if kinds else ""),
                "tokens in": f"{row['prompt_tokens'] or 0:,}",
                "tokens out": f"{row['completion_tokens'] or 0:,}",
                "seconds": f"{row['seconds'] or 0:,.1f}",
            }
        )
    print_table(f"{ledger}", shown, empty="the ledger is empty")


@app.command()
def export(
    ledger: LedgerFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write: .jsonl, .jsonl.gz, .jsonl.zst, .parquet, or -.")
    ] = Path("-"),
) -> None:
    """Write all judgments as JSON Lines or Parquet, sorted by item, model, template, temperature and sample."""
    from opengrm.ledger import Ledger
    from opengrm.reading import write_judgments

    different_files({"LEDGER": ledger, "--output": output})
    with Ledger(ledger, create=False) as kept:
        count = write_judgments(output, kept.judgments())
    typer.echo(f"{count:,} judgments written to {output}", err=True)


@app.command(name="import")
def import_(
    judgments: Annotated[Path, typer.Argument(metavar="JUDGMENTS", help="Judgments, one JSON object a line.")],
    ledger: LedgerFile,
    run: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Name of the run that they are from: equal rows of different runs are votes of their own.",
        ),
    ] = None,
    on_bad: OnBad = "stop",
) -> None:
    """Read judgments into a ledger; a row needs `item` and `scores`, and is kept once however often it is read."""
    from opengrm.ledger import Ledger
    from opengrm.reading import read_judgments

    different_files({"JUDGMENTS": judgments, "LEDGER": ledger})
    skipped, there = bad_rows(on_bad), ledger.exists()
    try:
        with Ledger(ledger) as kept:
            added = kept.put_all(read_judgments(judgments, skipped), run)
            total = len(kept)
    except BaseException:
        if not there:  # nothing was read: leave no empty ledger behind
            ledger.unlink(missing_ok=True)
        raise
    skipped.report()
    already = f", {added.known:,} were there already" if added.known else ""
    typer.echo(f"{added.new:,} judgments added{already}, {total:,} in {ledger}", err=True)
