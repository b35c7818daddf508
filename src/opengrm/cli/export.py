"""`opengrm export`: checkpoints in other programs' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Write a checkpoint in another program's format.", no_args_is_help=True)


@app.callback()
def _export() -> None:
    """Write a checkpoint in another program's format."""


@app.command()
def gguf(
    model: Annotated[str, typer.Argument(metavar="MODEL", help='"nano", or a folder (Llama or Qwen3 family).')],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .gguf file to write.")],
    dtype: Annotated[
        Literal["f32", "f16", "q8_0"], typer.Option(help="Precision of the matrices; norms stay float32.")
    ] = "f16",
) -> None:
    """Write a GGUF file for llama.cpp, OpenVINO and everything that reads it."""
    from opengrm.engines.checkpoints import is_embedded
    from opengrm.engines.gguf import export_gguf
    from opengrm.worlds.nano import nano_path

    folder = nano_path(model) if is_embedded(model) else Path(model)
    written = export_gguf(folder, output, dtype)
    typer.echo(f"{written} written, {written.stat().st_size / 2**20:,.1f} MiB", err=True)
