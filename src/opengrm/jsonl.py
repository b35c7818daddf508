"""Rows in files: JSON Lines, plain or compressed, JSON arrays and Parquet; read as a stream, written atomically.

The ending decides: `.jsonl` (and anything unknown) is one JSON object a line, with `.gz` or `.zst` behind it that is
compressed, `.json` is an array of objects or one object, `.parquet` needs pyarrow. `-` is standard input or output.

A row that cannot be used is a `BadRow` that names its place; a file that cannot be read is a `UsageError` or an
`OpenGRMError`. Memory is bounded: a line longer than `MAX_LINE` is bad, a `.json` file larger than `MAX_JSON` is
refused.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import zstandard

from opengrm.errors import BadRow, MissingExtra, OpenGRMError, UsageError

Row = dict[str, Any]
OnBad = Callable[[BadRow], None]
MAX_LINE = 64 * 2**20  # bytes
MAX_JSON = 2**30  # bytes of a .json file, which is read whole
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_rows(path: str | Path, on_bad: OnBad | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of a file with their places ("file:line", or "file[index]" in an array or Parquet file).

    Args:
        path: the file, or "-".
        on_bad: called with each bad row, which is then left out; None raises it.

    Raises:
        BadRow: a row is not a JSON object in UTF-8 (only with `on_bad=None`), or the file holds no row.
        UsageError: there is no such file, or it is a folder.
        OpenGRMError: the file cannot be read or decompressed.
    """
    path = Path(path)
    report = _raise if on_bad is None else on_bad
    name = "stdin" if str(path) == "-" else str(path)
    endings = [s.lower() for s in path.suffixes[-2:]]
    kind = _parquet if endings[-1:] == [".parquet"] else _array if ".json" in endings else _lines
    found = False
    for row in kind(path, name, report):
        found = True
        yield row
    if not found:
        report(BadRow(name, "no rows"))


def _raise(row: BadRow) -> None:
    raise row


def _lines(path: Path, name: str, report: OnBad) -> Iterator[tuple[str, Row]]:
    with _opened(path, name) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{name}:{number}"
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                report(BadRow(where, f"the line is longer than {MAX_LINE // 2**20} MiB"))
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.isspace() or not line:
                continue
            row = _parsed(line, where, report)
            if row is not None:
                yield where, row


def _array(path: Path, name: str, report: OnBad) -> Iterator[tuple[str, Row]]:
    with _opened(path, name) as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise UsageError(
            f"{name}: larger than {MAX_JSON // 2**30} GiB; give it as JSON Lines, which is read as a stream"
        )
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        return
    try:
        value = _loads(content)
    except ValueError as error:
        raise BadRow(name, str(error)) from None
    rows = value if isinstance(value, list) else [value]
    for index, row in enumerate(rows):
        where = f"{name}[{index}]"
        problem = _problem(row)
        if problem:
            report(BadRow(where, problem))
        else:
            yield where, row


def _parquet(path: Path, name: str, report: OnBad) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(f"{name}: reading Parquet", "parquet") from None
    _check_readable(path, name)
    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    where, index = f"{name}[{index}]", index + 1
                    problem = _problem(row)
                    if problem:
                        report(BadRow(where, problem))
                    else:
                        yield where, row
    except (pyarrow.ArrowException, OSError) as error:
        raise OpenGRMError(f"{name}: not a readable Parquet file: {_one_line(error)}") from error


def _parsed(line: bytes, where: str, report: OnBad) -> Row | None:
    try:
        row = _loads(line)
    except ValueError as error:
        report(BadRow(where, str(error)))
        return None
    problem = _problem(row)
    if problem:
        report(BadRow(where, problem))
        return None
    return row  # type: ignore[no-any-return]


def _loads(content: bytes) -> Any:
    """Strict JSON. Raises ValueError with a sentence."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}") from None
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"not JSON: {error.msg[0].lower() + error.msg[1:]} at {place}") from None
    except RecursionError:
        raise ValueError("not usable: nested too deeply") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"not JSON: {name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"not usable: the number {digits[:40]} is too large")
    return value


def _problem(row: object) -> str | None:
    if not isinstance(row, dict):
        return f"expected a JSON object, found {_TYPE_NAMES.get(type(row), type(row).__name__)}"
    surrogate = _has_surrogate(row)
    return "a text holds half of a surrogate pair, which is no Unicode character" if surrogate else None


_TYPE_NAMES = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def _has_surrogate(value: object) -> bool:
    if isinstance(value, str):
        return not value.isascii() and _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_has_surrogate(k) or _has_surrogate(v) for k, v in value.items())
    return isinstance(value, list) and any(_has_surrogate(v) for v in value)


def _check_readable(path: Path, name: str) -> None:
    if path.is_dir():
        raise UsageError(f"{name}: is a folder, expected a file")
    if not path.exists():
        raise UsageError(f"{name}: no such file")


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The decompressed bytes; errors while reading name the file."""
    if name == "stdin":
        yield sys.stdin.buffer
        return
    _check_readable(path, name)
    ending = path.suffix.lower()
    try:
        with open(path, "rb") as raw:
            if ending == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=raw))
            elif ending == ".zst":
                yield io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise OpenGRMError(f"{name}: cannot be decompressed: {_one_line(error)}") from error
    except PermissionError as error:
        raise UsageError(f"{name}: no permission to read it") from error
    except OSError as error:
        raise OpenGRMError(f"{name}: {error.strerror or _one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class RowWriter:
    """Writes rows to a file that appears whole or not at all; use as a context manager.

    The rows go to a temporary file in the same folder, which takes the file's place when the block ends without an
    error. `-` (standard output) and devices are written to directly.

    Raises:
        UsageError: the folder is not there, or the path is a folder.
        OpenGRMError: the file cannot be written (no permission, disk full).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count = 0
        self._stdout = str(path) == "-"
        self._temporary: Path | None = None
        self._parquet: _ParquetRows | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RowWriter:
        with self._explained():
            self._file = self._open()
        return self

    def _open(self) -> IO[bytes]:
        if self._stdout:
            return sys.stdout.buffer
        if self.path.is_dir():
            raise UsageError(f"{self.path}: is a folder, expected a file to write")
        if not self.path.parent.is_dir():
            raise UsageError(f"{self.path}: the folder {self.path.parent} does not exist")
        target = self.path
        if not self.path.exists() or self.path.is_file():
            target = self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        raw: IO[bytes] = self._stack.enter_context(target.open("wb"))
        ending = self.path.suffix.lower()
        if ending == ".gz":  # no name and no time in the file: the same rows give the same bytes
            packed = self._stack.enter_context(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0))
            return cast(IO[bytes], packed)
        if ending == ".zst":
            stream = zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
            return cast(IO[bytes], self._stack.enter_context(stream))
        if ending == ".parquet":
            self._parquet = _ParquetRows(raw, str(self.path))
        return raw

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        with self._explained():
            if self._parquet is not None:
                self._parquet.write(row)
            else:
                self._file.write(_encode(row).encode("utf-8") + b"\n")
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._explained():
                if self._parquet is not None and error is None:
                    self._parquet.close()
                if self._stdout:
                    self._file.flush()
                self._stack.close()
                if self._temporary is not None and error is None:
                    with open(self._temporary, "rb") as file:
                        os.fsync(file.fileno())
                    os.replace(self._temporary, self.path)
        finally:
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OpenGRMError(
                f"{'stdout' if self._stdout else self.path}: {error.strerror or _one_line(error)}"
            ) from error


class _ParquetRows:
    """Rows gathered into row groups of a Parquet file. The first group fixes the columns, so rows must be flat."""

    GROUP = 4096

    def __init__(self, raw: IO[bytes], name: str) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtra(f"{name}: writing Parquet", "parquet") from None
        self._arrow, self._raw, self._name = pyarrow, raw, name
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def write(self, row: Mapping[str, Any]) -> None:
        for key, value in row.items():
            if isinstance(value, Mapping):
                raise OpenGRMError(f"{self._name}: '{key}' is an object, which has no column; write JSON Lines")
        self._rows.append(dict(row))
        if len(self._rows) >= self.GROUP:
            self._flush()

    def _flush(self) -> None:
        try:
            if self._writer is None:
                schema = self._schema()
                self._writer = self._arrow.parquet.ParquetWriter(self._raw, schema)
            schema = self._writer.schema
            if unknown := {key for row in self._rows for key in row} - set(schema.names):
                raise OpenGRMError(
                    f"{self._name}: '{min(unknown)}' came after the columns were fixed; write JSON Lines"
                )
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=schema))
        except self._arrow.ArrowException as error:
            raise OpenGRMError(f"{self._name}: a row does not fit the columns: {_one_line(error)}") from error
        self._rows = []

    def _schema(self) -> Any:
        """The first group's columns; one that is still all null gets the type that a judgment's or verdict's has."""
        arrow = self._arrow
        numbers = {name: arrow.float64() for name in ("meta", "temperature", "margin", "confidence")}
        whole = ("sample", "seed", "winner", "prompt_tokens", "completion_tokens")
        types = {**numbers, **{name: arrow.int64() for name in whole}}
        types |= {"scores": arrow.list_(arrow.float64()), "order": arrow.list_(arrow.int64())}
        fields = []
        for field in arrow.Table.from_pylist(self._rows).schema:
            empty = arrow.types.is_null(field.type)
            fields.append(arrow.field(field.name, types.get(field.name, arrow.string()) if empty else field.type))
        return arrow.schema(fields)

    def close(self) -> None:
        if self._rows or self._writer is None:
            self._flush()
        self._writer.close()


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write all rows as `RowWriter` does; returns how many."""
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)
    return writer.count
