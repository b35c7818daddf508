"""`opengrm train bt`: a Bradley-Terry reward model from labelled items."""

from __future__ import annotations

from typing import Annotated

import typer

from opengrm.cli.options import HeldOutFiles, JsonOut, OnBad, bad_rows
from opengrm.cli.progress import growing
from opengrm.cli.scalar_options import (
    Checkpointing,
    DevShare,
    Epochs,
    EvalEvery,
    Labelled,
    LearningRate,
    MaxTokens,
    MicroBatch,
    Output,
    Quiet,
    SaveEvery,
    Seed,
    Steps,
    Truncate,
    TrustRemoteCode,
    report_pairs,
    settings_of,
)


def bt(
    items: Labelled,
    output: Output,
    model: Annotated[
        str, typer.Option(help='What it starts from: a causal LM or an encoder. "nano-base", a folder or a hub id.')
    ],
    margin: Annotated[
        bool,
        typer.Option("--margin", help="Scores are to differ by the rewards' difference, or by a row's \"margin\"."),
    ] = False,
    center: Annotated[
        float, typer.Option(min=0.0, help="Coefficient that keeps scores near 0; 0.01 is usual, 0 is off.")
    ] = 0.0,
    learning_rate: LearningRate = 1e-5,
    batch: Annotated[int, typer.Option(min=1, help="Pairs of one step.")] = 128,
    micro_batch: MicroBatch = 8,
    epochs: Epochs = 1.0,
    steps: Steps = None,
    dev_share: DevShare = 0.1,
    held_out: HeldOutFiles = None,
    max_tokens: MaxTokens = None,
    truncate: Truncate = False,
    eval_every: EvalEvery = 50,
    save_every: SaveEvery = 50,
    seed: Seed = 0,
    checkpointing: Checkpointing = False,
    trust_remote_code: TrustRemoteCode = False,
    on_bad: OnBad = "stop",
    quiet: Quiet = False,
    as_json: JsonOut = False,
) -> None:
    """Train a Bradley-Terry reward model: the better of two responses gets the higher score.

    Items with rewards give every pair whose rewards differ, others the best response against each other one; an item
    counts once, however many pairs it gives. The same command goes on where a killed one stopped. The model, an
    ordinary Hugging Face sequence classifier with one label, is written to OUTPUT/model; beside it lie
    bradley_terry.json (the report), metrics.jsonl and examples.jsonl.

    Example: opengrm train bt preferences.jsonl -o bt --model my-base, then opengrm judge items.jsonl --judge bt
    --model bt/model
    """
    from opengrm.reading import read_items
    from opengrm.training.bradley_terry import BradleyTerrySettings, train_bradley_terry
    from opengrm.training.overlap import check_files

    settings = settings_of(
        BradleyTerrySettings,
        margin=margin, center_coefficient=center, truncate=truncate, learning_rate=learning_rate, batch=batch,
        epochs=epochs, steps=steps, micro_batch=micro_batch, dev_share=dev_share, max_tokens=max_tokens,
        eval_every=eval_every, save_every=save_every, seed=seed, checkpointing=checkpointing,
    )  # fmt: skip
    check_files(items, held_out or [])
    skipped = bad_rows(on_bad)
    with growing("training", quiet=quiet) as show:
        report = train_bradley_terry(
            (item for path in items for item in read_items(path, skipped)), model, output, settings,
            trust_remote_code=trust_remote_code, on_progress=show,
        )  # fmt: skip
    skipped.report()
    report_pairs(report, output, skipped.count, as_json)
