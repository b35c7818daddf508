"""`opengrm train rft`: rejective fine-tuning, from labelled items to a checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opengrm.cli.options import ChatVariables, HeldOutFiles, JsonOut, OnBad, Orders, bad_rows, json_object
from opengrm.cli.progress import growing, progress
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.engines.base import Engine

EngineName = Literal["transformers", "openai", "vllm", "openvino"]
COLLECT, FILTER, MIX, TRAIN, RUN = "Sampling", "What is kept", "Mixing", "Training", "Run"


def rft(
    items: Annotated[Path, typer.Argument(metavar="ITEMS", help="Labelled items. See docs/formats.md.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of this stage; the checkpoint is its model/.")
    ],
    model: Annotated[str, typer.Option(help='The base to train: "nano-base", a folder or a hub id.')] = "nano-base",
    sampler: Annotated[
        str | None, typer.Option(help="The model that is sampled. Default: the base.", rich_help_panel=COLLECT)
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="What runs the sampler.", rich_help_panel=COLLECT)
    ] = "transformers",
    base_url: Annotated[
        list[str] | None, typer.Option(help="A server for --engine openai.", rich_help_panel=COLLECT)
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Prompt family. Default: what the model was trained in, else grm.",
            rich_help_panel=COLLECT,
        ),
    ] = None,
    n_rft: Annotated[
        int, typer.Option(min=1, help="Non-hinted judgments of each item (paper: 3).", rich_help_panel=COLLECT)
    ] = 3,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Default: 0.5; 1.0 in compact.", rich_help_panel=COLLECT)
    ] = None,
    top_p: Annotated[float, typer.Option(help="Nucleus; 1 is off.", rich_help_panel=COLLECT)] = 1.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most new tokens. Default: 1024; 256 in compact.", rich_help_panel=COLLECT),
    ] = None,
    orders: Annotated[
        Orders, typer.Option(help="How response orders are planned.", rich_help_panel=COLLECT)
    ] = "balanced",
    device: Annotated[str, typer.Option(help="For --engine transformers.", rich_help_panel=COLLECT)] = "auto",
    dtype: Annotated[str, typer.Option(help="For --engine transformers.", rich_help_panel=COLLECT)] = "auto",
    sample_batch: Annotated[
        int | None, typer.Option(min=1, help="Most samples decoded together, in process.", rich_help_panel=COLLECT)
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Most requests in flight to servers.", rich_help_panel=COLLECT)
    ] = None,
    hinted: Annotated[
        bool, typer.Option("--hinted/--no-hinted", help="One hinted sample an item.", rich_help_panel=FILTER)
    ] = True,
    non_hinted: Annotated[
        bool, typer.Option("--non-hinted/--no-non-hinted", help="N_RFT plain samples an item.", rich_help_panel=FILTER)
    ] = True,
    principles: Annotated[
        bool,
        typer.Option(
            "--principles/--no-principles", help="Whether judgments state principles.", rich_help_panel=FILTER
        ),
    ] = True,
    instructions: Annotated[
        Path | None,
        typer.Option(help='Rows {"prompt", "completion"} to mix in (plain or conversational).', rich_help_panel=MIX),
    ] = None,
    instruction_share: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.999, help="Their share of the training set (paper: 0.852).", rich_help_panel=MIX),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak (paper: 5e-6).", rich_help_panel=TRAIN)] = 5e-6,
    batch: Annotated[int, typer.Option(min=1, help="Rows of one step (paper: 1024).", rich_help_panel=TRAIN)] = 1024,
    steps: Annotated[int, typer.Option(min=1, help="Steps (paper: 900).", rich_help_panel=TRAIN)] = 900,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Rows of one forward pass on a device.", rich_help_panel=TRAIN)
    ] = 8,
    max_length: Annotated[
        int, typer.Option(min=1, help="Longest example in tokens; longer ones are left out.", rich_help_panel=TRAIN)
    ] = 8192,
    lora_rank: Annotated[
        int,
        typer.Option(
            min=0, help="Rank of LoRA adapters, merged at the end; 0 trains all weights.", rich_help_panel=TRAIN
        ),
    ] = 0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Save memory, compute twice.", rich_help_panel=TRAIN)
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.", rich_help_panel=TRAIN)] = 100,
    seed: Annotated[int, typer.Option(help="Of the shuffle.", rich_help_panel=TRAIN)] = 0,
    report_to: Annotated[
        list[str] | None, typer.Option(help="Trackers: tensorboard, trackio, ...", rich_help_panel=TRAIN)
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the checkpoint's code.", rich_help_panel=RUN)
    ] = False,
    chat_template_kwargs: ChatVariables = None,
    collect_only: Annotated[
        bool, typer.Option("--collect-only", help="Stop before training.", rich_help_panel=RUN)
    ] = False,
    held_out: HeldOutFiles = None,
    on_bad: OnBad = "stop",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=RUN)] = False,
    as_json: JsonOut = False,
) -> None:
    """Rejective fine-tuning: sample judgments, keep what is right and not too easy, fine-tune on it.

        opengrm train rft items.jsonl -o rft --model nano-base --instructions instructions.jsonl

    Both halves are done once and go on where they were killed. What was kept is OUTPUT/kept.jsonl; why the rest was
    dropped, OUTPUT/collect.json. On several GPUs collect first, then train:

        opengrm train rft items.jsonl -o rft --model M --collect-only
        accelerate launch -m opengrm train rft items.jsonl -o rft --model M
    """
    from opengrm.cli.defaults import default_sampling, default_template
    from opengrm.templates import built_in, get_template
    from opengrm.templates.forms import forms_of
    from opengrm.training.overlap import check_files
    from opengrm.training.rft import INSTRUCTION_SHARE, collect_stage, count_rows, tune_stage
    from opengrm.training.sft import SFTSettings
    from opengrm.training.stage import is_main
    from opengrm.training.trajectories import CollectSettings

    chosen = get_template(template or default_template(sampler or model))
    if not principles:
        chosen = _without_principles(chosen)
    if instruction_share is not None and instructions is None:
        raise UsageError("--instruction-share goes with --instructions")
    share = INSTRUCTION_SHARE if instruction_share is None else instruction_share
    variables = json_object("--chat-template-kwargs", chat_template_kwargs)
    try:  # all that can be wrong is told before the sampling
        settings = CollectSettings(
            n_rft=n_rft,
            non_hinted=non_hinted,
            hinted=hinted,
            sampling=default_sampling(chosen, temperature=temperature, top_p=top_p, max_tokens=max_tokens),
            orders=orders,
        )
        training = SFTSettings(
            learning_rate=learning_rate, batch=batch, steps=steps, micro_batch=micro_batch, max_length=max_length,
            lora_rank=lora_rank, checkpointing=checkpointing, save_every=save_every, seed=seed,
            report_to=tuple(report_to or ()), trust_remote_code=trust_remote_code,
            chat_template_kwargs=variables or {},
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    options: dict[str, Any] = {
        "base_urls": base_url or [], "batch": sample_batch, "concurrency": concurrency, "device": device,
        "dtype": dtype, "trust_remote_code": trust_remote_code, "chat_template_kwargs": variables,
    }  # fmt: skip
    bad = bad_rows(on_bad)
    if instructions is not None and not collect_only:
        count_rows(instructions)  # a malformed row is told now, not after hours of sampling
    check_files([items], held_out or [], instructions)
    try:
        with growing("collecting", quiet=quiet) as show:
            collected = collect_stage(
                items, output, sampler or model, lambda: _open(engine, sampler or model, options), forms_of(chosen),
                settings, on_bad=bad if on_bad == "skip" else None,
                on_progress=lambda there, planned, kept: show(there, planned, f"{kept:,} kept"),
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"interrupted; what was judged is in {output}: run the same command to go on", file=sys.stderr)
        raise
    bad.report()
    report: dict[str, Any] = {"collect": collected}
    if not collect_only:
        with progress("training", steps, quiet=quiet or not is_main()) as told:
            report["train"] = tune_stage(
                model, output, instructions, training, share=share,
                template=chosen.name if built_in(chosen) else None,
                on_step=lambda step, last: told(step, f"loss {last['loss']:.3f}" if "loss" in last else ""),
            )  # fmt: skip
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    elif is_main():
        _say(report, output)


def _without_principles(template: Any) -> Any:
    from dataclasses import replace

    try:
        return replace(template, no_principles=True)
    except (TypeError, ValueError) as error:
        raise UsageError(f"template {template.name} has no form without principles: {error}") from None


def _open(engine: Any, model: str, options: dict[str, Any]) -> Engine:
    from opengrm.engines import open_engine

    return open_engine(engine, model, **options)


def _say(report: dict[str, Any], output: Path) -> None:
    """A few lines on standard error."""
    lines = []
    for origin in ("non-hinted", "hinted"):
        half = report["collect"][origin]
        reasons = {**half["not_sampled"], **half["dropped"]}
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "nothing"
        lines.append(f"{origin}: {half['judgments']:,} judgments, kept {half['kept']:,}; dropped: {why}")
    lines.append(f"kept: {output / 'kept.jsonl'}")
    if "train" in report:
        done = report["train"]
        lines.append(
            f"trained on {done['trajectories']:,} trajectories and {done['instructions']:,} instruction rows, "
            f"{done['steps']:,} steps of {done['batch']:,}: loss {done['first_loss']:.3f} -> {done['last_loss']:.3f}"
        )
        lines.append(f"model: {output / 'model'}")
    print("\n".join(lines), file=sys.stderr)
