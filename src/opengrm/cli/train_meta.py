"""`opengrm train meta`: a meta RM from recorded judgments."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opengrm.cli.options import BadRows, HeldOutFiles, JsonOut, OnBad, bad_rows, is_ledger
from opengrm.cli.progress import growing
from opengrm.cli.scalar_options import (
    Checkpointing,
    DevShare,
    Epochs,
    EvalEvery,
    MaxTokens,
    MicroBatch,
    Output,
    Quiet,
    SaveEvery,
    Seed,
    Steps,
    TrustRemoteCode,
    settings_of,
)
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
    output: Output,
    model: Annotated[
        str, typer.Option(help='What it starts from: the GRM or its base. "nano", a folder or a hub id.')
    ],
    template: Annotated[
        Literal["auto", "meta", "meta-named", "meta-compact"],
        typer.Option(help="What the meta RM reads. auto: meta-compact for judgments of the compact family."),
    ] = "auto",
    learning_rate: Annotated[float, typer.Option(help="Of AdamW (paper: 1e-5, for 27B).")] = 1e-5,
    batch: Annotated[int, typer.Option(min=1, help="Judgments of one step (paper: 512).")] = 512,
    micro_batch: MicroBatch = 8,
    epochs: Epochs = 1.0,
    steps: Steps = None,
    dev_share: DevShare = 0.1,
    held_out: HeldOutFiles = None,
    max_tokens: MaxTokens = None,
    eval_every: EvalEvery = 50,
    save_every: SaveEvery = 50,
    seed: Seed = 0,
    checkpointing: Checkpointing = False,
    trust_remote_code: TrustRemoteCode = False,
    on_bad: OnBad = "stop",
    quiet: Quiet = False,
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
    from opengrm.training.overlap import check_files

    settings = settings_of(
        MetaSettings,
        learning_rate=learning_rate, batch=batch, epochs=epochs, steps=steps, micro_batch=micro_batch,
        dev_share=dev_share, max_tokens=max_tokens, eval_every=eval_every, save_every=save_every, seed=seed,
        checkpointing=checkpointing,
    )  # fmt: skip
    check_files(items, held_out or [])
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
        if is_ledger(path):
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
