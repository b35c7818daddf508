"""`opengrm train`: the stages of SPCT, one verb each."""

from __future__ import annotations

import typer

from opengrm.cli import train_cloud, train_meta, train_rft, train_rl

app = typer.Typer(help="Train a generative reward model, stage by stage.", no_args_is_help=True)
app.command(name="rft")(train_rft.rft)
app.command(name="rl")(train_rl.rl)
app.command(name="meta")(train_meta.meta)
app.command(name="cloud")(train_cloud.cloud)
