"""Options that the trainers of one-logit models (meta RM, Bradley-Terry, PairRM) share, and their settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.training.scalar import ScalarSettings

    Settings = TypeVar("Settings", bound=ScalarSettings)

Output = Annotated[Path, typer.Option("--output", "-o", help="A folder for the model and all about its training.")]
Labelled = Annotated[
    list[Path],
    typer.Argument(metavar="ITEMS...", help="Items with labels or rewards, in any format of docs/formats.md."),
]
LearningRate = Annotated[float, typer.Option(help="A small model wants a higher one.")]
MicroBatch = Annotated[int, typer.Option(min=1, help="Most examples that a device holds at once.")]
Epochs = Annotated[float, typer.Option(help="Passes over the examples.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")]
DevShare = Annotated[float, typer.Option(help="Share of conversations kept back to measure on.")]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Longer conversations are left out. Default: the model's context.")
]
Truncate = Annotated[
    bool,
    typer.Option(
        "--truncate", help="Cut the beginning of conversations that are too long, instead of leaving them out."
    ),
]
EvalEvery = Annotated[int, typer.Option(min=1, help="Steps between looks at what is held out.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
Seed = Annotated[int, typer.Option(help="Of the order of the examples.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def settings_of(kind: type[Settings], **values: Any) -> Settings:
    """The settings of these values; the micro-batch is at most a batch. Raises UsageError."""
    try:
        return kind(**{**values, "micro_batch": min(values["micro_batch"], values["batch"])})
    except ValueError as error:
        raise UsageError(str(error)) from error


def report_pairs(report: Mapping[str, Any], output: Path, skipped: int, as_json: bool) -> None:
    """What training on pairs came to: JSON on standard output, or a few lines on standard error."""
    if as_json:
        print(json.dumps({**report, "skipped_rows": skipped}, ensure_ascii=False))
        return
    from opengrm.training.scalar import MODEL

    left_out = "".join(f", {reason} {count:,}" for reason, count in report["left_out"].items())
    pairs = f"{report['examples']:,} pairs of {report['items']:,} items"
    lines = [f"{pairs}; left out: too long {report['too_long']:,}{left_out}"]
    dev = report["dev"]
    if dev is not None:
        accuracy = dev["accuracy"]
        lines.append(
            f"held out: n = {dev['n']:,} pairs of {dev['conversations']:,} conversations, loss {dev['loss']:.3f},"
            f" accuracy {accuracy['mean']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}], a tie counted half"
        )
    print("\n".join([*lines, f"model: {output / MODEL}"]), file=sys.stderr)
