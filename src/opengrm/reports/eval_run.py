"""The folder of an `opengrm eval` run as a report reads it: eval.json, a line an item, the ledger.

    RUN/eval.json             settings, and for each benchmark its figures (docs/reports.md)
    RUN/NAME/items.jsonl      one line an item: its verdict and credit by the benchmark's rule
    RUN/NAME/shown.jsonl      the items themselves, of those that the page shows
    RUN/judgments.ledger.db   every judgment

Figures come from eval.json as they are: a report computes none of them anew. A value of an unexpected type is not
known, and a file that cannot be read is named on the page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opengrm.errors import BadRow, OpenGRMError, UsageError
from opengrm.jsonl import read_rows
from opengrm.judgments import Judgment
from opengrm.reports.results import finite_json
from opengrm.voting.recorded import as_json, source_of

RESULT = "eval.json"
LEDGER = "judgments.ledger.db"
ITEMS = "items.jsonl"
SHOWN = "shown.jsonl"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class EvalRun:
    """One run of `opengrm eval`.

    Attributes:
        folder: where it lies.
        label: how tables name it; differs from that of other runs on the page.
        about: eval.json without its benchmarks.
        benchmarks: figures by the benchmark's name.
        damaged: what could not be read, as the page names it.
    """

    folder: Path
    label: str
    about: Row
    benchmarks: Mapping[str, Row]
    damaged: list[str] = field(default_factory=list)

    @property
    def ledger(self) -> Path:
        """The ledger of its judgments, in the run's folder if eval.json names no other."""
        return self.folder / (text(self._settings.get("ledger")) or LEDGER)

    @property
    def _settings(self) -> Row:
        return table(self.about.get("settings"))

    def own(self, judgments: Iterable[Judgment]) -> list[Judgment]:
        """Those of an item's judgments in the ledger that the run voted over: a ledger can hold other runs' too.

        Raises:
            BadRow: a judgment does not say how it was made in the form that judges write.
        """
        source, k = self._settings.get("source"), number(self._settings.get("k"))
        kept = (j for j in judgments if source is None or as_json(source_of(j)) == source)
        return [j for j in kept if k is None or j.sample < k]

    def file(self, benchmark: str, name: str) -> Path:
        """A file of a benchmark."""
        return place(self.folder, benchmark, name)

    def bad(self, benchmark: str) -> Callable[[BadRow], None]:
        """What to do with a line that cannot be read: name it on the page."""
        return lambda row: self.damaged.append(f"{benchmark}/{Path(row.where).name}")

    def items(self, benchmark: str) -> Iterator[Row]:
        """The lines of a benchmark's items, without those that cannot be read."""
        return self.lines(benchmark, ITEMS)

    def lines(self, benchmark: str, name: str) -> Iterator[Row]:
        """The lines of a file of a benchmark; what cannot be read, is not there or is empty is named on the page."""
        path = self.file(benchmark, name)
        try:
            for _, row in read_rows(path, self.bad(benchmark)):
                yield row
        except OpenGRMError as error:
            self.damaged.append(f"{benchmark}/{name} ({str(error).removeprefix(f'{path}: ')})")


def judged_by(judgment: Judgment) -> dict[str, Any]:
    """What eval.json's settings say of who judged, from a judgment: the same for all of a run.

    Returns:
        `source`, by which its judgments are told from others in the ledger, and of that `template` and `temperature`.
    """
    source = as_json(source_of(judgment))
    return {"source": source, **{name: source[name] for name in ("template", "temperature") if name in source}}


def place(folder: Path, benchmark: str, name: str) -> Path:
    """A file of a benchmark; its name is data, and leads nowhere out of the run's folder."""
    return folder / re.sub(r"[/\\\\\0]|^\.+", "_", benchmark)[:100] / name


def read_runs(folders: list[Path]) -> list[EvalRun]:
    """The runs in these folders, with labels that tell them apart.

    Raises:
        UsageError: a folder holds no eval.json, or one that is not of the form that `opengrm eval` writes, or is
            given twice.
    """
    found = [(folder, _result(folder)) for folder in folders]
    places = [folder.resolve() for folder in folders]
    for at, folder in zip(places, folders, strict=True):
        if places.count(at) > 1:
            raise UsageError(f"{folder}: is given twice")
    names = [text(result.get("name")) or at.name for at, (_, result) in zip(places, found, strict=True)]
    runs: list[EvalRun] = []
    for at, name, (folder, result) in zip(places, names, found, strict=True):
        label = name if names.count(name) == 1 else f"{name} ({at.name})"
        if label in [run.label for run in runs]:
            label = f"{label} {len(runs) + 1}"
        benchmarks = _benchmarks(folder / RESULT, result.get("benchmarks"))
        about = {key: value for key, value in result.items() if key != "benchmarks"}
        runs.append(EvalRun(folder, label, about, benchmarks))
    return runs


def _result(folder: Path) -> dict[str, Any]:
    path = folder / RESULT
    try:
        result = finite_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: no such file; give the folder that `opengrm eval` wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if not isinstance(result, dict):
        raise UsageError(f"{path}: expected a JSON object as `opengrm eval` writes it")
    return result


def _benchmarks(path: Path, value: object) -> dict[str, Row]:
    """The figures by benchmark. Raises UsageError."""
    again = "must be an object; run opengrm eval again"
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: 'benchmarks' {again}")
    for bench, figures in value.items():
        if not isinstance(figures, Mapping):
            raise UsageError(f"{path}: 'benchmarks'.'{bench:.80}' {again}")
    return {str(bench): table(figures) for bench, figures in value.items()}


# --- values that may be of any type -----------------------------------------------------------------------------


def number(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and _finite(value) else None


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def interval(value: object) -> dict[str, float] | None:
    """{"mean", "low", "high"} that is known as a whole, with the mean between the others, or None."""
    mean, low, high = (number(table(value).get(part)) for part in ("mean", "low", "high"))
    if mean is None or low is None or high is None or not low - 1e-9 <= mean <= high + 1e-9:
        return None
    return {"mean": mean, "low": min(low, mean), "high": max(high, mean)}


def text(value: object) -> str:
    """A text, a number as text, or nothing."""
    return "" if value is None else value if isinstance(value, str) else str(value)


def table(value: object) -> dict[str, Any]:
    """A JSON object, or an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def rows(value: object) -> list[dict[str, Any]]:
    """The objects of a JSON array."""
    return [table(row) for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
