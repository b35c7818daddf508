"""`opengrm train`: the stages of SPCT and the baselines, one verb each."""

from __future__ import annotations

import typer

from opengrm.cli import train_bt, train_cloud, train_judge, train_meta, train_pair, train_rft, train_rl

app = typer.Typer(help="Train a generative reward model, stage by stage.", no_args_is_help=True)
app.command(name="rft")(train_rft.rft)
app.command(name="rl")(train_rl.rl)
app.command(name="meta")(train_meta.meta)
app.command(name="judge")(train_judge.judge)
app.command(name="bt")(train_bt.bt)
app.command(name="pair")(train_pair.pair)
app.command(name="cloud")(train_cloud.cloud)
