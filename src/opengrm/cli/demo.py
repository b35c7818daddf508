"""`opengrm demo`: the main job in about a minute, with nothing but this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengrm.cli.options import print_table
from opengrm.cli.progress import Update, progress

if TYPE_CHECKING:
    from opengrm.jsonl import RowWriter
    from opengrm.judges.grm import GRM
    from opengrm.judges.run import Judged
    from opengrm.judgments import Judgment


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files that it writes.")] = Path("demo"),
    count: Annotated[int, typer.Option("--count", "-c", min=1, help="How many pairs to judge.")] = 300,
    k: Annotated[int, typer.Option("-k", min=1, help="Judgments of each pair.")] = 16,
    seed: Annotated[int, typer.Option(help="Another seed makes other pairs.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Make pairs of RubricWorld, judge them k times with the embedded model, vote, and draw accuracy against k."""
    from opengrm.cli.judge import print_judgments
    from opengrm.engines import Sampling, open_engine
    from opengrm.errors import MissingExtra
    from opengrm.jsonl import RowWriter
    from opengrm.judges.grm import GRM
    from opengrm.judges.run import Summary, verdicts
    from opengrm.ledger import Ledger
    from opengrm.reading import read_items, write_items
    from opengrm.reports.curves import plot_curves
    from opengrm.reports.tables import vote_cells
    from opengrm.templates import get_template
    from opengrm.voting.revote import Labels, revote
    from opengrm.worlds.rubric import generate_items

    out.mkdir(parents=True, exist_ok=True)
    items, picture = out / "items.jsonl", out / "accuracy.png"
    write_items(items, generate_items(count, seed=seed, split="test"))

    summary = Summary()
    first: list[Judged] = []

    def judgments(judge: GRM, show: Update, output: RowWriter) -> Iterator[Judgment]:
        """This run's judgments alone, whatever the ledger holds of earlier ones."""
        run = verdicts(judge, read_items(items), k, summary=summary, on_progress=lambda done, s: show(done, new=s.new))
        for judged in run:
            if not first:
                first.append(judged)
            output.write(judged.verdict.to_json())
            yield from judged.judgments

    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(out / "ledger.db"))
        engine = open_engine("transformers", "nano")
        stack.callback(engine.close)
        show = stack.enter_context(progress("judging", count * k, quiet=quiet))
        output = stack.enter_context(RowWriter(out / "verdicts.jsonl"))
        judge = GRM(engine, get_template("compact"), Sampling(temperature=1.0, max_tokens=256), ledger=ledger)
        report = revote(judgments(judge, show, output), Labels.of(read_items(items)))

    print("\nOne pair, its first judgment, and the verdict of all of them:\n")
    print_judgments(first[0].item, first[0].judgments, first[0].verdict, how="sum", shown=1)
    print_table(
        f"\n{count} pairs of RubricWorld, embedded model, T = 1: accuracy against votes", vote_cells(report.rows)
    )
    try:
        plot_curves(picture, {"sum of k votes": report.rows}, title="RubricWorld pairs, embedded model")
        pictured = f", {picture.name}"
    except MissingExtra as error:
        pictured = f" (no picture: {error})"
    figures = summary.to_json()
    print(
        f"{summary.judgments:,} judgments in {figures['seconds']:,.0f} s,"
        f" {figures['tokens_per_judgment']:,.0f} tokens each, {figures['parse_rate']:.1%} valid.\n"
        f"Written to {out}: items.jsonl, ledger.db, verdicts.jsonl{pictured}.\n"
        f"RubricWorld is a proving ground: these figures show that the method and the code work,\n"
        f"not how well a large model judges real text."
    )
