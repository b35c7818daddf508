"""The front of the command line: the verbs, and errors as one line.

Exit codes: 0 done; 1 the input or the environment is at fault; 2 the call itself is wrong; 130 interrupted.
Nothing heavy is imported here, so that `opengrm --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from opengrm import __version__
from opengrm.cli import (
    check_overlap,
    compare,
    demo,
    eval,
    export,
    judge,
    ledger,
    plan,
    report,
    spct,
    train,
    vote,
    world,
)
from opengrm.errors import OpenGRMError

app = typer.Typer(
    help="Generative reward models: judge responses, vote over judgments, train by SPCT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(name="judge")(judge.judge)
app.command(name="vote")(vote.vote)
app.command(name="plan")(plan.plan)
app.command(name="eval")(eval.evaluate)
app.command(name="compare")(compare.compare)
app.add_typer(ledger.app, name="ledger")
app.add_typer(world.app, name="world")
app.add_typer(export.app, name="export")
app.add_typer(train.app, name="train")
app.command(name="spct")(spct.spct)
app.command(name="check-overlap")(check_overlap.check_overlap)
app.command(name="report")(report.report)
app.command(name="demo")(demo.demo)


def _version(asked: bool) -> None:
    if asked:
        print(f"opengrm {__version__}")
        raise typer.Exit


@app.callback()
def opengrm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Generative reward models: judge responses, vote over judgments, train by SPCT."""


def main() -> None:
    """Run the command line; errors that a user can act on become one line on standard error."""
    try:
        app()
    except OpenGRMError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (`opengrm ... | head`). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)


def _fail(message: str, code: int) -> None:
    print("opengrm: error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
