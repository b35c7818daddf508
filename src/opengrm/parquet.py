"""Rows in Parquet files, through pyarrow (the extra `parquet`)."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from opengrm.errors import BadRow, MissingExtra, OpenGRMError, UsageError

GROUP = 4096  # rows of a row group that we write
BATCH = 256  # rows decoded at a time


def _pyarrow(doing: str) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(doing, "parquet") from None
    return pyarrow  # type: ignore[no-any-return]


def read_parquet(path: Path, name: str, report: Callable[[BadRow], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows with their places `name[index]`. Columns without a value are None; times become ISO 8601 texts.

    Raises:
        MissingExtra: pyarrow is not installed.
        UsageError: there is no such file, or it is a folder.
        OpenGRMError: the file is not Parquet, or is damaged.
    """
    arrow = _pyarrow(f"{name}: reading Parquet")
    if path.is_dir():
        raise UsageError(f"{name}: is a folder, expected a file")
    index = 0
    try:
        with arrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    where, index = f"{name}[{index}]", index + 1
                    try:
                        plain = {key: _plain(value) for key, value in row.items()}
                    except ValueError as error:
                        report(BadRow(where, str(error)))
                        continue
                    yield where, plain
    except FileNotFoundError as error:
        raise UsageError(f"{name}: no such file") from error
    except PermissionError as error:
        raise UsageError(f"{name}: no permission to read it") from error
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())[:200]
        raise OpenGRMError(f"{name}: not a readable Parquet file: {message}") from error


def _plain(value: Any) -> Any:
    """The value as JSON would hold it. NaN, a data frame's missing number, is null.

    Objects lose their nulls: a column of objects has the keys of all rows.
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    raise ValueError(f"not usable: a value of type {type(value).__name__} has no form in JSON")


class ParquetRows:
    """Rows of one file, whose columns are known only when the last row is: until then they lie in a temporary file.

    A column may be empty for a million rows before its first value (the errors of judgments), a later row may bring a
    new key, and a Parquet file has one schema.

    Args:
        raw: the file to write.
        name: how messages name it.
        folder: where the temporary file goes.

    Raises:
        MissingExtra: pyarrow is not installed.
        OpenGRMError: two rows differ in the type of a column.
    """

    def __init__(self, raw: IO[bytes], name: str, folder: Path) -> None:
        self._arrow = _pyarrow(f"{name}: writing Parquet")
        self._raw, self._name = raw, name
        self._spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- lives as long as the writer
        self._schema = self._arrow.schema([])
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        self._rows.append(dict(row))
        if len(self._rows) >= GROUP:
            self._set_aside()

    def _set_aside(self) -> None:
        names = dict.fromkeys(key for row in self._rows for key in row)
        try:
            table = self._arrow.table({name: [row.get(name) for row in self._rows] for name in names})
            self._schema = self._arrow.unify_schemas([self._schema, table.schema], promote_options="permissive")
        except (self._arrow.ArrowException, OverflowError) as error:
            raise self._misfit(error) from error
        content = json.dumps(self._rows, ensure_ascii=False, allow_nan=False)
        self._spool.write(content.encode("utf-8") + b"\n")
        self._rows = []

    def finish(self) -> None:
        """Write the file."""
        if self._rows:
            self._set_aside()
        self._spool.seek(0)
        schema = self._typed()
        with self._arrow.parquet.ParquetWriter(self._raw, schema) as writer:
            for line in self._spool:
                writer.write_table(self._arrow.Table.from_pylist(json.loads(line), schema=schema))

    def _typed(self) -> Any:
        """The columns; one without a single value gets the type that a judgment's or a verdict's has, or text."""
        arrow = self._arrow
        types = {name: arrow.float64() for name in ("meta", "temperature", "margin", "confidence")}
        types |= {name: arrow.int64() for name in ("sample", "seed", "winner", "prompt_tokens", "completion_tokens")}
        types |= {"scores": arrow.list_(arrow.float64()), "order": arrow.list_(arrow.int64())}
        return arrow.schema(
            arrow.field(field.name, types.get(field.name, arrow.string()))
            if arrow.types.is_null(field.type)
            else field
            for field in self._schema
        )

    def close(self) -> None:
        """Remove the temporary file."""
        self._spool.close()

    def _misfit(self, error: Exception) -> OpenGRMError:
        message = " ".join(str(error).split())[:200]
        return OpenGRMError(f"{self._name}: a column has values of several types, write .jsonl instead: {message}")
