"""`opengrm train judge`: an LLM-as-a-judge from labelled pairs and lists, RFT and RL in one verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengrm.cli.options import HeldOutFiles, JsonOut, OnBad, Orders, bad_rows
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.engines.base import Engine

COLLECT, TUNE, RL, RUN = "Sampling", "Rejective fine-tuning", "RL", "Run"


def judge(
    items: Annotated[
        Path, typer.Argument(metavar="ITEMS", help="Labelled items of 2 or more responses. See docs/formats.md.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; the judge is its rl/.")],
    model: Annotated[str, typer.Option(help="The base to train: a folder or a hub id.")],
    template: Annotated[
        str | None,
        typer.Option(help="A family that names the best. Default: what fits the base, else judge."),
    ] = None,
    n_rft: Annotated[
        int, typer.Option(min=1, help="Non-hinted judgments of each item (paper: 3).", rich_help_panel=COLLECT)
    ] = 3,
    hinted: Annotated[
        bool, typer.Option("--hinted/--no-hinted", help="One hinted sample an item.", rich_help_panel=COLLECT)
    ] = True,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Default: 0.5; 1.0 in compact.", rich_help_panel=COLLECT)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most new tokens, here and in RL. Default: 1024; 256 in compact.", rich_help_panel=COLLECT
        ),
    ] = None,
    orders: Annotated[
        Orders, typer.Option(help="How response orders are planned, here and in RL.", rich_help_panel=COLLECT)
    ] = "balanced",
    sample_batch: Annotated[
        int | None, typer.Option(min=1, help="Most samples decoded together.", rich_help_panel=COLLECT)
    ] = None,
    device: Annotated[str, typer.Option(help="That samples.", rich_help_panel=COLLECT)] = "auto",
    instructions: Annotated[
        Path | None, typer.Option(help='Rows {"prompt", "completion"} to mix in.', rich_help_panel=TUNE)
    ] = None,
    instruction_share: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.999, help="Their share of the training set (paper: 0.852).", rich_help_panel=TUNE),
    ] = None,
    rft_learning_rate: Annotated[float, typer.Option(help="Peak (paper: 5e-6).", rich_help_panel=TUNE)] = 5e-6,
    rft_batch: Annotated[
        int, typer.Option(min=1, help="Rows of one step (paper: 1024).", rich_help_panel=TUNE)
    ] = 1024,
    rft_steps: Annotated[int, typer.Option(min=1, help="Steps (paper: 900).", rich_help_panel=TUNE)] = 900,
    max_length: Annotated[int, typer.Option(min=1, help="Longest example in tokens.", rich_help_panel=TUNE)] = 8192,
    rl_learning_rate: Annotated[float, typer.Option(help="After the warm-up.", rich_help_panel=RL)] = 4e-7,
    rl_batch: Annotated[int, typer.Option(min=1, help="Judgments of an update.", rich_help_panel=RL)] = 512,
    rl_steps: Annotated[int, typer.Option(min=1, help="Updates.", rich_help_panel=RL)] = 900,
    generations: Annotated[
        int, typer.Option("--generations", "-g", min=2, help="Judgments of a prompt, G.", rich_help_panel=RL)
    ] = 4,
    beta: Annotated[float, typer.Option(min=0.0, help="KL coefficient.", rich_help_panel=RL)] = 0.08,
    reference: Annotated[
        str | None,
        typer.Option(help="A model whose 3 judgments of 3 right make an item too easy.", rich_help_panel=RL),
    ] = None,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Rows or judgments of one forward pass on a device.", rich_help_panel=RUN)
    ] = 8,
    lora_rank: Annotated[
        int, typer.Option(min=0, help="Rank of adapters, merged after each stage; 0: all.", rich_help_panel=RUN)
    ] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.", rich_help_panel=RUN)] = 50,
    seed: Annotated[int, typer.Option(help="Of everything drawn.", rich_help_panel=RUN)] = 0,
    held_out: HeldOutFiles = None,
    on_bad: OnBad = "stop",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=RUN)] = False,
    as_json: JsonOut = False,
) -> None:
    """Train a judge that names the best response: rejective fine-tuning, then RL with the outcome reward.

        opengrm train judge pairs.jsonl -o judge --model my-base --instructions instructions.jsonl

    Both stages are those of a GRM, with a template that names the best; the same command goes on where it was killed.
    OUTPUT/rl judges with `opengrm judge --judge llm`, and with `--judge tokenprob`. What the stages can besides
    (servers, several GPUs, ablations) is in `train rft` and `train rl`, which take `--template judge`.
    """
    from opengrm.cli.defaults import default_sampling, judge_template
    from opengrm.templates import get_template
    from opengrm.training.llm_judge import JudgeSettings, train_judge
    from opengrm.training.overlap import check_files
    from opengrm.training.rft import INSTRUCTION_SHARE
    from opengrm.training.rl import Reference, Settings
    from opengrm.training.sft import SFTSettings
    from opengrm.training.trajectories import CollectSettings

    def open_model(name: str) -> Engine:
        from opengrm.engines import open_engine

        return open_engine("transformers", name, batch=sample_batch, device=device)

    chosen = get_template(template or judge_template(model))
    sampling = default_sampling(chosen, temperature=temperature, max_tokens=max_tokens)
    try:
        settings = JudgeSettings(
            collect=CollectSettings(n_rft=n_rft, hinted=hinted, sampling=sampling, orders=orders),
            sft=SFTSettings(
                learning_rate=rft_learning_rate, batch=rft_batch, steps=rft_steps, micro_batch=micro_batch,
                max_length=max_length, lora_rank=lora_rank, save_every=save_every, seed=seed,
            ),
            grpo=Settings(
                learning_rate=rl_learning_rate, batch=rl_batch, steps=rl_steps, generations=generations, beta=beta,
                max_tokens=sampling.max_tokens, orders=orders, micro_batch=micro_batch, lora_rank=lora_rank,
                save_every=save_every, seed=seed,
            ),
            instruction_share=INSTRUCTION_SHARE if instruction_share is None else instruction_share,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from error
    easy = None
    if reference is not None:
        ledger = output / "rl" / "reference.ledger.db"
        easy = Reference(lambda: open_model(str(reference)), sampling, ledger)
    check_files([items], held_out or [], instructions)
    skipped = bad_rows(on_bad)
    report = train_judge(
        items, model, output, chosen,
        lambda: open_model(model), settings, instructions=instructions, reference=easy,
        on_bad=skipped if on_bad == "skip" else None,
        say=(lambda line: None) if quiet else (lambda line: typer.echo(line, err=True)),
    )  # fmt: skip
    skipped.report()
    if as_json:
        print(json.dumps({**report, "skipped_rows": skipped.count}, ensure_ascii=False))
