"""`opengrm spct`: the whole of SPCT in one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from opengrm.errors import MissingExtra, UsageError

# The library's own, repeated because importing it here would load heavy libraries for `--help`.
STAGES = ("data", "collect", "tune", "rl", "fresh", "meta", "evaluate")


def spct(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, see recipes/ and docs/spct.md.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder. Default: runs/<name of the file>.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the file's; of training and its data.")] = None,
    stage: Annotated[list[str] | None, typer.Option(help=f"Only these, of {', '.join(STAGES)}. Default: all.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train and measure a generative reward model: base, RFT, RL, meta RM, evaluation.

        opengrm spct recipes/rubric-world-smoke.toml

    The same command goes on where a killed one stopped. OUTPUT/report.html tells how it went; OUTPUT/rft/model,
    OUTPUT/rl and OUTPUT/meta/model are ordinary Hugging Face folders.
    """
    from opengrm.reports.results import commit, machine, versions
    from opengrm.training.spct import is_launched, run
    from opengrm.training.spct_config import read_config

    if unknown := sorted(set(stage or ()) - set(STAGES)):
        raise UsageError(f"--stage {unknown[0]}: expected one of {', '.join(STAGES)}")
    folder = output or Path("runs") / config.stem
    command = ["-m", "opengrm", "spct", str(config), "-o", str(folder)]
    if seed is not None:
        command += ["--seed", str(seed)]
    run(
        read_config(config, seed=seed),
        folder,
        stages=[name for name in STAGES if not stage or name in stage],  # type: ignore[misc]
        about={"versions": versions(), "machine": machine(), "commit": commit()},
        command=command,
        say=(lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True)),
    )
    if is_launched():
        return
    try:
        from opengrm.reports.spct_page import write_page

        page = write_page(folder)
    except MissingExtra as error:
        print(f"no report page: {error}", file=sys.stderr)
        return
    if not quiet:
        print(f"report: {page}", file=sys.stderr)
