"""Where a benchmark's rows come from: a file, a folder, or the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from opengrm.benchmarks.base import Benchmark, convert_rows, data_files
from opengrm.errors import MissingExtra, OpenGRMError, UsageError
from opengrm.items import Item
from opengrm.jsonl import OnBad, Row, read_rows

HUB = "hub"


def load(
    benchmark: Benchmark,
    data: str,
    on_bad: OnBad | None = None,
    *,
    as_pairs: bool = False,
    on_row: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, Item]]:
    """The benchmark's items with the places of their rows, streamed.

    Args:
        benchmark: which.
        data: a file, a folder (all its data files, or those of its folder named like the benchmark), or "hub".
        on_bad: called with each row that cannot be used; None raises it.
        as_pairs: whether lists are taken apart into the pairs that their rule compares.
        on_row: called at each row, also of those that are no items.

    Raises:
        BadRow: a row cannot be used (only with `on_bad=None`).
        UsageError: there is no such file, or the folder holds no data.
        MissingExtra: "hub" without the package `datasets`.
    """
    rows = _hub_rows(benchmark) if data == HUB else _file_rows(benchmark, Path(data), on_bad)

    def counted() -> Iterator[tuple[str, str, Row]]:
        for row in rows:
            on_row()
            yield row

    for where, item in convert_rows(counted(), benchmark.convert, on_bad):
        for part in benchmark.pairs(item) if as_pairs and benchmark.pairs is not None else [item]:
            yield where, part


def _file_rows(benchmark: Benchmark, path: Path, on_bad: OnBad | None) -> Iterator[tuple[str, str, Row]]:
    root = own_folder(benchmark, path)
    files = data_files(root)
    if not files:
        raise UsageError(
            f"{root}: holds no data files of {benchmark.title} (.jsonl, .json, .parquet, compressed or not)"
        )
    for file in files:
        name = str(file.relative_to(root)) if root.is_dir() else file.name
        if benchmark.read is not None:
            yield from benchmark.read(file, on_bad)
            continue
        if file.name.endswith(".zip"):
            continue
        for where, row in read_rows(file, on_bad):
            yield where, name, row


def own_folder(benchmark: Benchmark, path: Path) -> Path:
    """The folder's own folder for this benchmark, where it has one (`NAME` with - or _); else the path itself."""
    for name in (benchmark.name, benchmark.name.replace("-", "_")):
        if (path / name).is_dir():
            return path / name
    return path


def _hub_rows(benchmark: Benchmark) -> Iterator[tuple[str, str, Row]]:
    if not benchmark.hub:
        raise UsageError(f"{benchmark.name}: is on no hub; get it from {benchmark.source} and give --data")
    try:
        import datasets
    except ImportError:
        raise MissingExtra("--data hub", "train") from None
    for name, configuration, split in benchmark.hub:
        try:
            rows = datasets.load_dataset(name, configuration, split=split, streaming=True)
            for index, row in enumerate(rows):
                yield f"{name}[{index}]", name, dict(row)
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise OpenGRMError(f"{name} (split {split}) cannot be loaded from the hub: {said}") from error
