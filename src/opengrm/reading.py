"""Items, judgments and verdicts in files: typed reading and writing over `jsonl`."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from opengrm.errors import BadRow
from opengrm.items import Item
from opengrm.jsonl import OnBad, Row, read_rows, write_rows
from opengrm.judgments import Judgment, judgment_from_json
from opengrm.rows import items_from_row
from opengrm.verdicts import Verdict

T = TypeVar("T")


def read_located_items(
    path: str | Path, on_bad: OnBad | None = None, *, name: str | None = None
) -> Iterator[tuple[str, Item]]:
    """The items of a file with their places, in any schema of `rows.py`; arguments and errors as in `jsonl.read_rows`.

    A second item with an id that was there with other content is bad: verdicts could not be told apart. The same id
    with the same content is read again.
    """
    seen = _Seen()
    for where, item in _typed(path, items_from_row, on_bad, name):
        if item.id != item.key and seen.clashes(item.id, item.key):
            _report(BadRow(where, f"the id {item.id!r} was there before with other content"), on_bad)
            continue
        yield where, item


def read_items(path: str | Path, on_bad: OnBad | None = None) -> Iterator[Item]:
    """The items of a file; see `read_located_items`."""
    return (item for _, item in read_located_items(path, on_bad))


def read_judgments(path: str | Path, on_bad: OnBad | None = None) -> Iterator[Judgment]:
    """The judgments of a file; rows without `sample` are numbered for each item as they come, from 0."""
    counts: Counter[str] = Counter()

    def convert(row: Row) -> list[Judgment]:
        if row.get("sample") is not None:
            return [judgment_from_json(row)]
        judgment = judgment_from_json(row, sample=counts[str(row.get("item"))])
        counts[judgment.item] += 1
        return [judgment]

    return (judgment for _, judgment in _typed(path, convert, on_bad))


def write_items(path: str | Path, items: Iterable[Item]) -> int:
    """Write items in OpenGRM's own schema; returns how many."""
    return write_rows(path, (item.to_json() for item in items))


def write_judgments(path: str | Path, judgments: Iterable[Judgment]) -> int:
    """Write judgments; returns how many."""
    return write_rows(path, (judgment.to_json() for judgment in judgments))


def write_verdicts(path: str | Path, verdicts: Iterable[Verdict]) -> int:
    """Write verdicts; returns how many."""
    return write_rows(path, (verdict.to_json() for verdict in verdicts))


def _typed(
    path: str | Path, convert: Callable[[Row], list[T]], on_bad: OnBad | None, name: str | None = None
) -> Iterator[tuple[str, T]]:
    for where, row in read_rows(path, on_bad, name=name):
        try:
            values = convert(row)
        except ValueError as error:
            _report(BadRow(where, str(error)), on_bad)
            continue
        for value in values:
            yield where, value


def _report(row: BadRow, on_bad: OnBad | None) -> None:
    if on_bad is None:
        raise row
    on_bad(row)


class _Seen:
    """Ids and contents so far, as 8-byte hashes in one flat table: at most 48 bytes an id, a third of a dict's."""

    def __init__(self) -> None:
        self._slots = array("q", bytes(16 * 1024))  # pairs (hash of the id or 0, hash of the content)
        self._count = 0

    def clashes(self, name: str, content: str) -> bool:
        """Whether the name was there with other content; remembers a new one."""
        tag, value = hash(name) or 1, hash(content)
        at = self._place(tag)
        if self._slots[at]:
            return self._slots[at + 1] != value
        self._slots[at], self._slots[at + 1] = tag, value
        self._count += 1
        if 3 * self._count > len(self._slots):  # two thirds full
            self._grow()
        return False

    def _place(self, tag: int) -> int:
        """Where the pair of this tag is, or would be."""
        at = 2 * tag % len(self._slots)
        while self._slots[at] not in (0, tag):
            at = (at + 2) % len(self._slots)
        return at

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("q", bytes(2 * len(old) * old.itemsize))
        for start in range(0, len(old), 2):
            if old[start]:
                at = self._place(old[start])
                self._slots[at], self._slots[at + 1] = old[start], old[start + 1]
