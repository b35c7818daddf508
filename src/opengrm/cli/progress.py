"""Progress of a long run: rate and time left, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

PLAIN_EVERY = 30.0  # seconds between lines where standard error is not a terminal


class Update(Protocol):
    """Report progress: `done` units of the total so far, and a few words of how it goes.

    `new` of them were done by this run; the others were there, and say nothing about how long the rest takes.
    """

    def __call__(self, done: int, note: str = "", new: int | None = None) -> None: ...


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Update]:
    """A bar with rate and time left on a terminal, a line every 30 seconds elsewhere, nothing when quiet."""
    if quiet:
        yield lambda done, note="", new=None: None
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
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}", markup=False),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(what, total=total, rate="", left="", note="")

        def update(done: int, note: str = "", new: int | None = None) -> None:
            rate, left = _pace(total, done, done if new is None else new, time.monotonic() - start)
            bar.update(task, completed=done, rate=rate, left=left, note=note)

        yield update


@contextmanager
def growing(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """As `progress`, for work that tells how much there is with its first news: `show(done, total, note)`."""
    with ExitStack() as stack:
        opened: list[tuple[Update, int]] = []

        def show(done: int, total: int, note: str = "") -> None:
            if not opened:
                # What was done before this run says nothing about its pace.
                opened.append((stack.enter_context(progress(what, total, quiet=quiet)), max(done - 1, 0)))
            update, before = opened[0]
            update(done, note, done - before)

        yield show


def _plain(what: str, total: int) -> Update:
    start = last = time.monotonic()

    def update(done: int, note: str = "", new: int | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_EVERY or done == 0:
            return
        last = now
        rate, left = _pace(total, done, done if new is None else new, now - start)
        print(f"{what}: {done:,} of {total:,}, {rate}, {left} left {note}".rstrip(), file=sys.stderr)

    return update


def _pace(total: int, done: int, new: int, seconds: float) -> tuple[str, str]:
    """Rate and time left, "-" while nothing is known of them."""
    if not new or seconds <= 0:
        return "-/s", "-"
    rate = new / seconds
    left = round(max(total - done, 0) / rate)
    return f"{rate:,.1f}/s", f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
