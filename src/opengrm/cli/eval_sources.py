"""What `opengrm eval` is to judge: the benchmarks asked for, where their rows are, and which items take part."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opengrm.cli.options import Bad, bad_rows
from opengrm.errors import BadRow, UsageError

if TYPE_CHECKING:
    from opengrm.benchmarks import Benchmark
    from opengrm.cli.judges import Chosen
    from opengrm.items import Item


@dataclass(frozen=True)
class Source:
    """A benchmark, where its rows are, and which of its items take part (all where `drawn` is None).

    `partial` is whether published items do not; None where that is not known. `skipped` rows could not be used.
    """

    benchmark: Benchmark
    data: str
    items: int
    partial: bool | None
    drawn: frozenset[str] | None
    chosen: Chosen | None
    as_pairs: bool
    skipped: int = 0

    def read(self) -> Iterator[Item]:
        """The items that take part; bad rows were reported before."""
        usable = _usable(self.benchmark, self.data, self.chosen, bad_rows("skip"), self.as_pairs)
        return (item for item in usable if self.drawn is None or item.id in self.drawn)


def placed(names: str, data: list[str]) -> list[tuple[Benchmark, str]]:
    """The benchmarks asked for, each with where its rows are. Raises UsageError."""
    from opengrm.benchmarks import BENCHMARKS
    from opengrm.benchmarks.files import HUB, own_folder

    own = {name: path for name, equals, path in (entry.partition("=") for entry in data) if equals}
    common = [entry for entry in data if "=" not in entry]
    if unknown := sorted(own.keys() - BENCHMARKS.keys()):
        raise UsageError(f"--data {unknown[0]}=...: no such benchmark; known are {', '.join(BENCHMARKS)}")
    if len(common) > 1:
        raise UsageError("--data: give one place for all, and NAME=PATH for others")
    wanted = [name.strip() for name in names.split(",")]
    if wanted == ["all"]:
        everywhere = not common or common[0] == HUB
        wanted = [
            name
            for name, benchmark in BENCHMARKS.items()
            if name in own
            or (benchmark.hub if everywhere else own_folder(benchmark, Path(common[0])) != Path(common[0]))
        ]
        if not wanted:
            raise UsageError(f"--data {common[0]}: holds no folder named like a benchmark ({', '.join(BENCHMARKS)})")
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        raise UsageError(f"{unknown[0]!r} is no benchmark; known are {', '.join(BENCHMARKS)}")
    for benchmark_name in wanted:
        if benchmark_name not in own and not common:
            raise UsageError(f'{benchmark_name}: give --data, a file or folder or "hub"')
    return [(BENCHMARKS[name], own.get(name) or common[0]) for name in dict.fromkeys(wanted)]


def checked(
    benchmark: Benchmark, data: str, chosen: Chosen | None, on_bad: Bad, limit: int | None, as_pairs: bool
) -> Source:
    """Every row read once, before a model is loaded: what is bad, how many items there are, and which are drawn."""
    skipped = bad_rows(on_bad)
    counts: Counter[str] = Counter()  # by subset; pairs of one list, which come one behind the other, count once
    places: list[tuple[bytes, bytes, str]] = []
    items = rows = 0
    last = ""

    def on_row() -> None:
        nonlocal rows
        rows += 1

    for item in _usable(benchmark, data, chosen, skipped, as_pairs, on_row):
        items += 1
        unit = item.cluster if as_pairs and item.cluster is not None else item.id
        counts[benchmark.subset(item)] += unit != last
        last = unit
        if limit is not None:
            group, own = (
                hashlib.blake2b(s.encode(), digest_size=8).digest() for s in (item.cluster or item.id, item.id)
            )
            places.append((group, own, item.id))
    skipped.report()
    if not items:
        raise UsageError(f"{data}: no item of {benchmark.title} to judge")
    drawn = None if limit is None or limit >= items else _drawn(places, limit)
    partial = True if drawn is not None else benchmark.partial(counts, rows - skipped.count)
    return Source(
        benchmark, data, items if drawn is None else len(drawn), partial, drawn, chosen, as_pairs, skipped.count
    )


def _drawn(places: list[tuple[bytes, bytes, str]], limit: int) -> frozenset[str]:
    """The first whole groups of at most so many items in all, by hash; at least one group."""
    places.sort()
    end = limit
    while end and places[end][0] == places[end - 1][0]:  # the group that the limit cuts is left out
        end -= 1
    if not end:
        end = sum(group == places[0][0] for group, *_ in places)
    return frozenset(name for *_, name in places[:end])


def _usable(
    benchmark: Benchmark,
    data: str,
    chosen: Chosen | None,
    on_bad: Callable[[BadRow], None],
    as_pairs: bool,
    on_row: Callable[[], None] = lambda: None,
) -> Iterator[Item]:
    """The benchmark's items that the judge can be shown; every other row goes to `on_bad` with its place."""
    from opengrm.benchmarks.files import load

    for where, item in load(benchmark, data, on_bad, as_pairs=as_pairs, on_row=on_row):
        try:
            if chosen is not None:
                chosen.shown(item)
        except ValueError as error:
            on_bad(BadRow(where, f"{chosen.reads if chosen else ''}: {error}"))
            continue
        yield item


def shows_pairs(form: str, benchmark: Benchmark, chosen: Chosen | None) -> bool:
    """Whether the benchmark's lists are shown as the pairs that its rule compares."""
    if form == "auto":
        compares = chosen is not None and chosen.compares
        return compares and not (benchmark.whole and chosen is not None and chosen.paradigm.name == "grm")
    return form == "pairs"
