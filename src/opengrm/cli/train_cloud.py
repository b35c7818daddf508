"""`opengrm train cloud`: CLoud, a critic and a head that reads its critiques."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opengrm.cli.options import HeldOutFiles, JsonOut, OnBad, bad_rows
from opengrm.cli.progress import growing
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.engines.base import Engine
    from opengrm.training.critiques import Writer

# The library's own literals, repeated because importing them here would load heavy libraries for `--help`.
EngineName = Literal["transformers", "openai", "vllm", "openvino"]
Last = Literal["oracle", "critic", "critiques"]
FIRST, SECOND, THIRD, FOURTH, RUN = (
    "1. The oracle's critiques", "2. Critic", "3. The critic's own critiques", "4. Head and critic together", "Run",
)  # fmt: skip


def cloud(
    items: Annotated[
        Path, typer.Argument(metavar="ITEMS", help="Labelled items, perhaps with critiques. See docs/formats.md.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; the judge is its model/.")],
    model: Annotated[str, typer.Option(help='The base to train: "nano-base", a folder or a hub id.')],
    template: Annotated[
        Literal["auto", "cloud", "compact-cloud"],
        typer.Option(help="The critique prompt. auto: what fits the base."),
    ] = "auto",
    oracle: Annotated[
        str | None,
        typer.Option(help='Sample this model. Default: the items\' own "critiques".', rich_help_panel=FIRST),
    ] = None,
    oracle_engine: Annotated[EngineName, typer.Option(help="What runs it.", rich_help_panel=FIRST)] = "transformers",
    oracle_url: Annotated[
        list[str] | None, typer.Option(help="Its servers, for openai.", rich_help_panel=FIRST)
    ] = None,
    oracle_temperature: Annotated[float, typer.Option(min=0.0, help="Its sampling.", rich_help_panel=FIRST)] = 0.0,
    critic_learning_rate: Annotated[
        float, typer.Option(help="Peak (the authors': 5e-6, for 8B).", rich_help_panel=SECOND)
    ] = 5e-6,
    critic_steps: Annotated[
        int | None, typer.Option(min=1, help="Default: one pass over the critiques.", rich_help_panel=SECOND)
    ] = None,
    critic_batch: Annotated[
        int, typer.Option(min=1, help="Critiques a step (the authors': 96 pairs).", rich_help_panel=SECOND)
    ] = 96,
    engine: Annotated[EngineName, typer.Option(help="What runs the critic.", rich_help_panel=THIRD)] = "transformers",
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="Servers of OUTPUT/critic/model under that name, for openai.", rich_help_panel=THIRD),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of its critiques (the authors': 0).", rich_help_panel=THIRD)
    ] = 0.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest critique. Default: 1024; 256 for compact-cloud.", rich_help_panel=THIRD),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak (the authors': 1e-6).", rich_help_panel=FOURTH)] = 1e-6,
    lm_weight: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Of the critiques' loss (1.25 for 8B, 0.75 for 70B); 0: a head of its own, the critic stays.",
            rich_help_panel=FOURTH,
        ),
    ] = 1.25,
    batch: Annotated[
        int, typer.Option(min=1, help="Pairs of one step (the authors': 96).", rich_help_panel=FOURTH)
    ] = 96,
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.", rich_help_panel=FOURTH)] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.", rich_help_panel=FOURTH)] = None,
    dev_share: Annotated[
        float, typer.Option(help="Share of conversations kept back to measure on.", rich_help_panel=FOURTH)
    ] = 0.1,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Pairs of one forward pass on a device.", rich_help_panel=RUN)
    ] = 2,
    max_length: Annotated[
        int, typer.Option(min=1, help="Longest example in tokens; longer ones are left out.", rich_help_panel=RUN)
    ] = 8192,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, more time.", rich_help_panel=RUN)
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.", rich_help_panel=RUN)] = 100,
    seed: Annotated[int, typer.Option(help="Of the shuffles.", rich_help_panel=RUN)] = 0,
    device: Annotated[str, typer.Option(help="For --engine transformers.", rich_help_panel=RUN)] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the checkpoint's code.", rich_help_panel=RUN)
    ] = False,
    stop_after: Annotated[
        Last | None, typer.Option(help="Stop there; the same command without it goes on.", rich_help_panel=RUN)
    ] = None,
    held_out: HeldOutFiles = None,
    on_bad: OnBad = "stop",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=RUN)] = False,
    as_json: JsonOut = False,
) -> None:
    """Train CLoud: a critic writes about one response, and a head reads that and gives the score.

    Four stages, each done once and taken up where it was killed. Without --oracle the items bring a list "critiques",
    a text for each response:

        opengrm train cloud items.jsonl -o cloud --model my-base --oracle big-model --oracle-engine openai
        --oracle-url http://127.0.0.1:8000/v1

        opengrm judge items.jsonl -o verdicts.jsonl --judge cloud --model cloud/model

    On several GPUs sample in one process and train in many: --stop-after oracle, then accelerate launch with
    --stop-after critic, then --stop-after critiques in one process, then accelerate launch without.
    """
    from opengrm.cli.defaults import default_template
    from opengrm.engines.base import Sampling
    from opengrm.engines.fingerprint import fingerprint
    from opengrm.templates.cloud import CloudTemplate
    from opengrm.training import cloud as stages
    from opengrm.training.critiques import Writer, oracle_stage, own_stage
    from opengrm.training.overlap import check_files
    from opengrm.training.sft import SFTSettings
    from opengrm.training.stage import is_main

    if oracle is None and (oracle_url or oracle_engine != "transformers"):
        raise UsageError("--oracle-engine and --oracle-url go with --oracle")
    if engine != "openai" and base_url:
        raise UsageError("--base-url goes with --engine openai")
    family = "compact-cloud" if default_template(model).startswith("compact") else "cloud"
    shown = CloudTemplate(family if template == "auto" else template)
    longest = max_tokens or (256 if shown.compact else 1024)
    try:
        fine_tuning = SFTSettings(
            learning_rate=critic_learning_rate, batch=critic_batch, micro_batch=min(2 * micro_batch, critic_batch),
            max_length=max_length, warmup=stages.CRITIC_SETTINGS.warmup, checkpointing=checkpointing,
            save_every=save_every, seed=seed, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        settings = stages.CloudSettings(
            learning_rate=learning_rate, lm_weight=lm_weight, batch=batch, epochs=epochs, steps=steps,
            micro_batch=min(micro_batch, batch), max_length=max_length, dev_share=dev_share,
            checkpointing=checkpointing, save_every=save_every, seed=seed, trust_remote_code=trust_remote_code,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from error

    def writer(model: str, kind: EngineName, urls: Sequence[str], heat: float, name: str) -> Writer:
        def open_engine() -> Engine:
            from opengrm import engines

            where: dict[str, Any] = {"device": device} if kind == "transformers" else {}
            code = trust_remote_code and kind in ("transformers", "vllm")
            return engines.open_engine(kind, model, base_urls=urls, trust_remote_code=code, **where)

        return Writer(name, open_engine, Sampling(temperature=heat, max_tokens=longest))

    check_files([items], held_out or [])
    skipped = bad_rows(on_bad)
    skip = skipped if on_bad == "skip" else None
    quiet = quiet or not is_main()
    report: dict[str, Any] = {}
    with growing("oracle", quiet=quiet) as show:
        asked = None if oracle is None else writer(oracle, oracle_engine, oracle_url or [], oracle_temperature, oracle)
        report["oracle"] = oracle_stage(
            items, output / stages.ORACLE, shown, asked, dev_share=dev_share, on_bad=skip,
            on_progress=lambda there, planned: show(there, planned, ""),
        )  # fmt: skip
    skipped.report()
    if stop_after != "oracle":
        with growing("critic", quiet=quiet) as show:
            report["critic"] = stages.critic_stage(
                model, output, shown, fine_tuning, steps=critic_steps,
                on_step=lambda step, total, last: show(step, total, _note(last)),
            )  # fmt: skip
    if stop_after not in ("oracle", "critic"):
        with growing("critiques", quiet=quiet) as show:
            critic = output / stages.CRITIC / "model"
            own = writer(str(critic), engine, base_url or [], temperature, f"critic@{fingerprint(critic)}")
            report["critiques"] = own_stage(
                items, output / stages.OWN, shown, own, on_bad=skip,
                on_progress=lambda there, planned: show(there, planned, ""),
            )  # fmt: skip
    if stop_after is None:
        with growing("head", quiet=quiet) as show:
            report["head"] = stages.joint_stage(
                output, shown, settings, on_step=lambda step, total, last: show(step, total, _note(last))
            )
    if as_json:
        print(json.dumps({**report, "skipped_rows": skipped.count}, ensure_ascii=False))
    elif is_main():
        print("\n".join(_sentences(report, output)), file=sys.stderr)


def _note(last: Any) -> str:
    return f"loss {last['loss']:.3f}" if "loss" in last else ""


def _sentences(report: dict[str, Any], output: Path) -> list[str]:
    lines = []
    for name, whose in (("oracle", "oracle"), ("critiques", "critic")):
        if name in report:
            done = report[name]
            missing = ", ".join(f"{reason} {count:,}" for reason, count in done["missing"].items())
            text = f"{whose}: {done['critiques']:,} critiques of {done['responses']:,} responses"
            lines.append(text + (f"; missing: {missing}" if missing else ""))
    if "critic" in report:
        done = report["critic"]
        lines.append(f"critic: {done['steps']:,} steps, loss {done['first_loss']:.3f} -> {done['last_loss']:.3f}")
    if "head" in report:
        done, dev = report["head"], report["head"]["dev"]
        text = f"head: {done['pairs']:,} pairs, {done['steps']:,} steps"
        lines.append(f"{text}, BT {done['first_bt']:.3f} -> {done['last_bt']:.3f}")
        if dev is not None and dev["accuracy"] is not None:
            share = dev["accuracy"]
            lines.append(
                f"held out: n = {dev['n']:,}, accuracy {share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"
                + (f", {dev['missing']:,} missing at chance" if dev["missing"] else "")
            )
        lines.append(f"judge: opengrm judge ITEMS --judge cloud --model {output / 'model'}")
    return lines
