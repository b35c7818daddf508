"""Progress of a long run: rate and time left, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_EVERY = 30.0  # seconds between lines where standard error is not a terminal


class Update(Protocol):
    """Report progress: `done` units of the total so far, and a few words of how it goes."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Update]:
    """A bar with rate and time left on a terminal, a line every 30 seconds elsewhere, nothing when quiet."""
    if quiet:
        yield lambda done, note="": None
        return
    if not sys.stderr.isatty():
        yield _plain(what, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def update(done: int, note: str = "") -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, rate=f"{rate:,.1f}/s", note=note)

        yield update


def _plain(what: str, total: int) -> Update:
    start = last = time.monotonic()

    def update(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_EVERY or done == 0:
            return
        last = now
        rate = done / (now - start)
        left = max(total - done, 0) / rate
        print(f"{what}: {done:,} of {total:,}, {rate:,.1f}/s, {left:,.0f} s left {note}".rstrip(), file=sys.stderr)

    return update
