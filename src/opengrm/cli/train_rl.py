"""`opengrm train rl`: rule-based online RL on labelled items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opengrm.cli.options import ChatVariables, HeldOutFiles, OnBad, Orders, bad_rows, json_object
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.engines.base import Engine

# The library's own literals, repeated because importing them here would load heavy libraries for `--help`.
Rollouts = Literal["own", "vllm", "trl"]
Precision = Literal["float32", "bfloat16"]
EngineName = Literal["transformers", "openai", "vllm", "openvino"]
METHOD, ROLLOUT, EASY, MACHINE = "Method", "Rollouts", "Too-easy filter", "Machine"


def rl(
    items: Annotated[Path, typer.Argument(metavar="ITEMS", help="Labelled items, see docs/formats.md.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model; the same command resumes.")],
    model: Annotated[str, typer.Option(help='Where to start: "nano-base", a folder, or a hub id.')],
    template: Annotated[
        str | None,
        typer.Option(help="Prompt family, joint form. Default: what the model was trained in, else grm."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates.", rich_help_panel=METHOD)] = 900,
    batch: Annotated[int, typer.Option(min=1, help="Judgments of an update.", rich_help_panel=METHOD)] = 512,
    generations: Annotated[
        int, typer.Option("--generations", "-g", min=2, help="Judgments of a prompt, G.", rich_help_panel=METHOD)
    ] = 4,
    beta: Annotated[float, typer.Option(min=0.0, help="KL coefficient.", rich_help_panel=METHOD)] = 0.08,
    epsilon: Annotated[float, typer.Option(help="Clip range.", rich_help_panel=METHOD)] = 0.2,
    learning_rate: Annotated[float, typer.Option(help="After the warm-up.", rich_help_panel=METHOD)] = 4e-7,
    warmup_steps: Annotated[int, typer.Option(min=0, help="Of a linear warm-up.", rich_help_panel=METHOD)] = 10,
    lora_rank: Annotated[
        int, typer.Option(min=0, help="Rank of low-rank adapters; 0 trains all weights.", rich_help_panel=METHOD)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of everything drawn.", rich_help_panel=METHOD)] = 0,
    orders: Annotated[
        Orders, typer.Option(help="How response orders are planned.", rich_help_panel=METHOD)
    ] = "balanced",
    rollouts: Annotated[
        Rollouts,
        typer.Option(
            help="own: our sampler in this process; vllm: a server; trl: TRL's generation.", rich_help_panel=ROLLOUT
        ),
    ] = "own",
    vllm_url: Annotated[
        str | None, typer.Option(help="The server, started with `vllm serve`.", rich_help_panel=ROLLOUT)
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the rollouts.", rich_help_panel=ROLLOUT)] = 1.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most new tokens of a judgment. Default: 1024; 256 in compact.", rich_help_panel=ROLLOUT
        ),
    ] = None,
    max_prompt: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest prompt in tokens; items with longer ones are dropped.", rich_help_panel=ROLLOUT
        ),
    ] = None,
    sample_batch: Annotated[
        int, typer.Option(min=1, help="Most samples decoded together, for own.", rich_help_panel=ROLLOUT)
    ] = 256,
    reference: Annotated[
        str | None,
        typer.Option(help="A model whose 3 judgments of 3 right make an item too easy.", rich_help_panel=EASY),
    ] = None,
    reference_engine: Annotated[EngineName, typer.Option(help="What runs it.", rich_help_panel=EASY)] = "transformers",
    reference_base_url: Annotated[
        list[str] | None, typer.Option(help="Its servers, for openai.", rich_help_panel=EASY)
    ] = None,
    reference_temperature: Annotated[float, typer.Option(min=0.0, help="Its sampling.", rich_help_panel=EASY)] = 0.5,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Judgments of one forward pass on a device. Default: all.", rich_help_panel=MACHINE),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the arithmetic. Default: bfloat16 on a GPU that has it.", rich_help_panel=MACHINE),
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, more time.", rich_help_panel=MACHINE)
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.", rich_help_panel=MACHINE)] = 50,
    report_to: Annotated[
        list[str] | None, typer.Option(help="tensorboard, trackio, ...; besides our own.", rich_help_panel=MACHINE)
    ] = None,
    chat_template_kwargs: ChatVariables = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the checkpoint's code.", rich_help_panel=MACHINE)
    ] = False,
    held_out: HeldOutFiles = None,
    on_bad: OnBad = "stop",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line a step.")] = False,
) -> None:
    """Train by GRPO with the outcome reward: +1 where the labelled best scores strictly highest, else -1.

    The defaults are the paper's for 27 billion parameters. A small model needs a larger learning rate:

        opengrm train rl items.jsonl -o grm-rl --model grm-rft --steps 200 --batch 192 --learning-rate 2e-4

    Drop what a reference model finds too easy, sample from a vLLM server, report to TensorBoard:

        opengrm train rl items.jsonl -o grm-rl --model grm-rft --reference small-chat --rollouts vllm
        --vllm-url http://127.0.0.1:8000 --report-to tensorboard

    Several devices: accelerate launch -m opengrm train rl ...
    """
    from opengrm.cli.defaults import default_sampling, default_template
    from opengrm.reading import read_items
    from opengrm.templates import get_template
    from opengrm.training.overlap import check_files
    from opengrm.training.rl import Reference, Settings, train

    chosen = get_template(template or default_template(model))
    tokens = default_sampling(chosen, max_tokens=max_tokens).max_tokens
    variables = json_object("--chat-template-kwargs", chat_template_kwargs)
    try:
        settings = Settings(
            steps=steps, batch=batch, generations=generations, beta=beta, epsilon=epsilon, learning_rate=learning_rate,
            warmup_steps=warmup_steps, temperature=temperature, max_tokens=tokens, micro_batch=micro_batch,
            sample_batch=sample_batch, rollouts=rollouts, vllm_url=vllm_url, orders=orders, precision=precision,
            checkpointing=checkpointing, lora_rank=lora_rank, save_every=save_every, seed=seed,
            report_to=tuple(report_to or ()), max_prompt=max_prompt, trust_remote_code=trust_remote_code,
            chat_template_kwargs=variables or {},
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    if reference is None and (reference_base_url or reference_engine != "transformers"):
        raise UsageError("--reference-engine and --reference-base-url go with --reference")
    check_files([items], held_out or [])
    skipped = bad_rows(on_bad)
    found = list(read_items(items, skipped))
    skipped.report()

    def open_reference() -> Engine:
        from opengrm import engines

        return engines.open_engine(
            reference_engine, str(reference), base_urls=reference_base_url or [],
            trust_remote_code=trust_remote_code and reference_engine != "openai",
        )  # fmt: skip

    easy = None
    if reference is not None:
        sampling = default_sampling(chosen, temperature=reference_temperature, max_tokens=tokens)
        easy = Reference(open_reference, sampling, output / "reference.ledger.db")
    train(
        found,
        model,
        output,
        settings,
        template=chosen,
        reference=easy,
        say=(lambda line: None) if quiet else (lambda line: typer.echo(line, err=True)),
    )
