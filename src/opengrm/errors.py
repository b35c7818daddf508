"""Errors that a user can act on: each says what was wrong, where, and what to do.

The CLI prints their text on one line and exits with `exit_code`; library callers catch `OpenGRMError`.
"""

from __future__ import annotations


class OpenGRMError(Exception):
    """Base of every error that is the input's or the environment's fault, not a bug. Exit code 1."""

    exit_code = 1


class UsageError(OpenGRMError):
    """The call itself is wrong: an option, a combination of options, a path that is not there. Exit code 2."""

    exit_code = 2


class BadRow(OpenGRMError):
    """One row of an input file cannot be used.

    Args:
        where: `file:line`, or `file[index]` inside a JSON array.
        what: what is wrong, and what was expected.
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


class EngineError(OpenGRMError):
    """The engine cannot work at all (no server, no model, no memory): the run stops and can be resumed."""


class MissingExtra(OpenGRMError):
    """A part of OpenGRM was asked for whose libraries are not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra '{extra}': pip install -e '.[{extra}]' in a checkout of OpenGRM,"
            f" pip install 'opengrm[{extra}]' where an index has it"
        )
