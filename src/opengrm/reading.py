"""Items, judgments and verdicts in files: typed reading and writing over `jsonl`."""

from __future__ import annotations

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


def read_located_items(path: str | Path, on_bad: OnBad | None = None) -> Iterator[tuple[str, Item]]:
    """The items of a file with their places, in any schema of `rows.py`; errors as in `jsonl.read_rows`.

    A second item with an id that was there with other content is bad: verdicts could not be told apart.
    """
    seen: dict[int, int] = {}  # 8-byte hashes of ids and contents: ids of millions of items fit
    for where, item in _typed(path, items_from_row, on_bad):
        known = seen.setdefault(_short(item.id), _short(item.key))
        if known != _short(item.key):
            _report(BadRow(where, f"the id {item.id!r} was there before with other content"), on_bad)
            continue
        yield where, item


def read_items(path: str | Path, on_bad: OnBad | None = None) -> Iterator[Item]:
    """The items of a file; see `read_located_items`."""
    return (item for _, item in read_located_items(path, on_bad))


def read_judgments(path: str | Path, on_bad: OnBad | None = None) -> Iterator[Judgment]:
    """The judgments of a file; where rows have no `sample`, an item's are numbered as they come."""
    counts: Counter[str] = Counter()

    def convert(row: Row) -> list[Judgment]:
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


def _typed(path: str | Path, convert: Callable[[Row], list[T]], on_bad: OnBad | None) -> Iterator[tuple[str, T]]:
    for where, row in read_rows(path, on_bad):
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


def _short(text: str) -> int:
    return hash(text)
