"""`opengrm train meta`: a meta RM from recorded judgments."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opengrm.cli.options import BadRows, JsonOut, OnBad, bad_rows
from opengrm.cli.progress import growing
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.items import Item
    from opengrm.judgments import Judgment


def meta(
    judgments: Annotated[
        list[Path],
        typer.Argument(metavar="LEDGER...", help="Ledgers (.db) or judgments as JSON Lines, with their texts."),
    ],
    items: Annotated[
        list[Path], typer.Option(help="The items that were judged, with labels; may be given several times.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the model and all about its training.")],
    model: Annotated[
        str, typer.Option(help='What it starts from: the GRM or its base. "nano", a folder or a hub id.')
    ],
    template: Annotated[
        Literal["auto", "meta", "meta-compact"],
        typer.Option(help="What the meta RM reads. auto: meta-compact for judgments of the compact family."),
    ] = "auto",
    learning_rate: Annotated[float, typer.Option("--lr", help="Learning rate (paper: 1e-5, for 27B).")] = 1e-5,
    batch: Annotated[int, typer.Option(min=1, help="Judgments of one step (paper: 512).")] = 512,
    micro_batch: Annotated[int, typer.Option(min=1, help="Most judgments that a device holds at once.")] = 8,
    epochs: Annotated[float, typer.Option(help="Passes over the judgments.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of conversations held out for accuracy and AUC.")] = 0.1,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longer judgments are left out. Default: the model's context.")
    ] = None,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between looks at the held-out judgments.")] = 50,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the order of the judgments.")] = 0,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
    on_bad: OnBad = "stop",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: JsonOut = False,
) -> None:
    """Train a meta RM: is this judgment's ranking correct?

    Judgments of labelled items become examples: hinted ones and those without scores are left out and counted. The
    same command goes on where a killed one stopped. The model, an ordinary Hugging Face sequence classifier with one
    label, is written to OUTPUT/model; beside it lie meta_rm.json (the report), metrics.jsonl and examples.jsonl.

    Example: opengrm train meta rft.ledger.db fresh.ledger.db --items train.jsonl -o meta-rm --model my-grm
    """
    from opengrm.templates.meta import MetaTemplate, default_meta_template
    from opengrm.training.meta_rm import MetaSettings, train_meta

    try:
        settings = MetaSettings(
            learning_rate=learning_rate,
            batch=batch,
            epochs=epochs,
            steps=steps,
            micro_batch=min(micro_batch, batch),
            dev_share=held_out,
            max_tokens=max_tokens,
            eval_every=eval_every,
            save_every=save_every,
            seed=seed,
            checkpointing=checkpointing,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    skipped = bad_rows(on_bad)
    known = _items(items, skipped)
    shown = MetaTemplate(template) if template != "auto" else default_meta_template(_first_template(judgments))
    with growing("training", quiet=quiet) as show:
        report = train_meta(
            _judgments(judgments, skipped), known, model, output, shown, settings,
            trust_remote_code=trust_remote_code, on_progress=show,
        )  # fmt: skip
    skipped.report()
    if as_json:
        print(json.dumps({**report, "skipped_rows": skipped.count}, ensure_ascii=False))
    else:
        print("\n".join(_sentences(report, output)), file=sys.stderr)


def _items(paths: Sequence[Path], skipped: BadRows) -> dict[str, Item]:
    from opengrm.reading import read_items

    known: dict[str, Item] = {}
    for path in paths:
        for item in read_items(path, skipped):
            if known.setdefault(item.id, item) != item:
                raise UsageError(f"{path}: the id {item.id!r} is also another item's: ids must differ")
    return known


def _judgments(paths: Sequence[Path], skipped: BadRows) -> Iterator[Judgment]:
    """The judgments of all ledgers and files, one after the other."""
    for path in paths:
        if path.suffix == ".db":
            from opengrm.ledger import Ledger

            with Ledger(path, create=False) as ledger:
                yield from ledger.judgments()
        else:
            from opengrm.reading import read_judgments

            yield from read_judgments(path, skipped)


def _first_template(paths: Sequence[Path]) -> str | None:
    """The template of the first judgment that names one."""
    return next((j.template for j in _judgments(paths, bad_rows("skip")) if j.template is not None), None)


def _sentences(report: dict[str, Any], output: Path) -> list[str]:
    from opengrm.training.meta_rm import MODEL

    left_out = ", ".join(f"{reason} {count:,}" for reason, count in report["left_out"].items())
    lines = [
        f"{report['examples']:,} judgments, {report['correct'] / max(report['examples'], 1):.1%} of them correct"
        + (f"; left out: {left_out}" if left_out else "")
    ]
    dev = report["dev"]
    if dev is not None:
        accuracy, auc = dev["accuracy"], dev["auc"]
        text = f"held out: n = {dev['n']:,} of {dev['conversations']:,} conversations, {dev['correct']:.1%} correct"
        text += f", loss {dev['loss']:.3f}"
        for name, value in (("accuracy", accuracy), ("AUC", auc)):
            if value is not None:
                text += f", {name} {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        lines.append(text)
    return [*lines, f"meta RM: {output / MODEL}"]
