"""Rows in files: JSON Lines, JSON arrays and Parquet; read as a stream, written whole or not at all.

The ending decides: `.json` is an array of objects or one object, `.parquet` needs pyarrow, anything else is one JSON
object a line. `.gz` or `.zst` behind it: compressed. `-` is standard input or output, as JSON Lines.

A row that cannot be used is a `BadRow` that names its place; a file that cannot be read is a `UsageError` or an
`OpenGRMError`. Memory is bounded: a line longer than `MAX_LINE` is bad, a `.json` file larger than `MAX_JSON` is
refused.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import math
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, cast

import zstandard

from opengrm.errors import BadRow, OpenGRMError, UsageError
from opengrm.parquet import ParquetRows, read_parquet

Row = dict[str, Any]
OnBad = Callable[[BadRow], None]
MAX_LINE = 64 * 2**20  # bytes
MAX_JSON = 2**30  # bytes of a .json file, which is read whole
MAX_DEPTH = 64  # of nested arrays and objects
MAX_DIGITS = 300  # of a whole number, so that it fits a double


def read_rows(path: str | Path, on_bad: OnBad | None = None, *, name: str | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of a file with their places ("file:line", or "file[index]" in an array or Parquet file).

    Empty lines and a byte order mark at the start are passed over.

    Args:
        path: the file, or "-".
        on_bad: called with each bad row, which is then left out; None raises it.
        name: what places call the file, where it is a copy of something else.

    Raises:
        BadRow: a row is not a JSON object in UTF-8 (only with `on_bad=None`).
        UsageError: there is no such file, it is a folder, or it may not be read.
        OpenGRMError: the file cannot be read or decompressed, or holds no row at all.
    """
    path = Path(path)
    name = name or _place_of(path)
    seen = False

    def report(row: BadRow) -> None:
        nonlocal seen
        seen = True
        if on_bad is None:
            raise row
        on_bad(row)

    for row in _reader(path)(path, name, report):
        seen = True
        yield row
    if not seen:
        raise OpenGRMError(f"{name}: no rows")


def _raised(row: BadRow) -> NoReturn:
    raise row


def bare_name(path: Path) -> str:
    """The file's name without those of its endings that say how rows are stored."""
    name = path.name
    for endings in ((".gz", ".zst"), (".jsonl", ".json", ".parquet")):
        name = next((name[: -len(e)] for e in endings if name.lower().endswith(e) and len(name) > len(e)), name)
    return name


def _place_of(path: Path) -> str:
    """How messages name the file."""
    return "stdin" if str(path) == "-" else str(path)


def _endings(path: Path) -> tuple[str, str]:
    """What is in the file and how it is compressed: `("json" | "parquet" | "lines", "gz" | "zst" | "")`."""
    name = path.name.lower()
    packed = next((p for p in ("gz", "zst") if name.endswith(f".{p}")), "")
    inner = name.removesuffix(f".{packed}") if packed else name
    return next((kind for kind in ("json", "parquet") if inner.endswith(f".{kind}")), "lines"), packed


def _reader(path: Path) -> Callable[[Path, str, OnBad], Iterator[tuple[str, Row]]]:
    kind, packed = _endings(path)
    if kind != "parquet":
        return _array if kind == "json" else _lines
    if packed:
        raise UsageError(f"{path}: Parquet is compressed inside; unpack the .{packed}")
    return read_parquet


def _lines(path: Path, name: str, report: OnBad) -> Iterator[tuple[str, Row]]:
    with _opened(path) as file:
        yield from read_lines(file, name, report)


def read_lines(file: IO[bytes], name: str, on_bad: OnBad | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of an open file of JSON Lines with their places, as `read_rows` reads them.

    Args:
        file: bytes, read to the end.
        name: what places call it.
        on_bad: called with each bad row, which is then left out; None raises it.

    Raises:
        BadRow: a row is not a JSON object in UTF-8 (only with `on_bad=None`).
    """
    report, number = on_bad or _raised, 0
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
        line = line.rstrip()
        if not line:
            continue
        try:
            row = _object(_loads(line), checked=_suspicious(line))
        except ValueError as error:
            report(BadRow(where, str(error)))
            continue
        yield where, row


def _array(path: Path, name: str, report: OnBad) -> Iterator[tuple[str, Row]]:
    with _opened(path) as file:
        content = _bounded(file, name)
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        return
    try:
        value = _loads(content)
    except ValueError as error:
        hint = "; if this is one object a line, name the file .jsonl" if "extra data" in str(error) else ""
        raise BadRow(name, f"{error}{hint}") from None
    checked = _suspicious(content)
    for index, row in enumerate(value if isinstance(value, list) else [value]):
        where = f"{name}[{index}]"
        try:
            row = _object(row, checked=checked)
        except ValueError as error:
            report(BadRow(where, str(error)))
            continue
        yield where, row


def _bounded(file: IO[bytes], name: str) -> bytes:
    """All of a file, in pieces, so that a small file does not ask for memory of the largest one."""
    pieces, size = [], 0
    while piece := file.read(2**20):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_JSON:
            raise UsageError(f"{name}: larger than {MAX_JSON // 2**20} MiB; give it as JSON Lines, which is streamed")
    return b"".join(pieces)


def _loads(content: bytes) -> Any:
    """Strict JSON. Raises ValueError with a sentence."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}") from None
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        what = error.msg[0].lower() + error.msg[1:].removesuffix(" at")
        raise ValueError(f"not JSON: {what} at {place}") from None
    except RecursionError:
        raise ValueError(f"not usable: nested deeper than {MAX_DEPTH} levels") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"not usable: the number {digits[:40]} is too large")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"not usable: a number of {len(digits):,} digits is too large")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"not usable: the key {twice!r} stands twice in one object")
    return row


_decode = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
).decode


def _object(value: object, *, checked: bool) -> Row:
    """The value as a row; `checked` also walks through it. Raises ValueError with a sentence."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {_TYPE_NAMES.get(type(value), type(value).__name__)}")
    if checked:
        _check(value, MAX_DEPTH)
    return value


_TYPE_NAMES = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def _suspicious(content: bytes) -> bool:
    """Whether the parsed value must be walked through: only then can it hold a surrogate or be nested too deeply."""
    many = content.count(b"[") + content.count(b"{") > MAX_DEPTH
    return many or _SURROGATE_ESCAPE.search(content) is not None


def _check(value: object, depth: int) -> None:
    if isinstance(value, str):
        if not value.isascii() and _SURROGATE.search(value):
            raise ValueError("not usable: a text holds half of a surrogate pair, which is no Unicode character")
        return
    if not isinstance(value, (dict, list)):
        return
    if not depth:
        raise ValueError(f"not usable: nested deeper than {MAX_DEPTH} levels")
    for key in value:
        _check(key, depth - 1)
    if isinstance(value, dict):
        for inner in value.values():
            _check(inner, depth - 1)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file or of standard input; errors while reading name the file."""
    name = _place_of(path)
    if name != str(path):
        yield sys.stdin.buffer
        return
    packed = _endings(path)[1]
    try:
        with path.open("rb") as raw:
            if packed == "gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=raw))
            elif packed == "zst":
                yield io.BufferedReader(_ZstdFile(raw), 2**17)
            else:
                yield raw
    except FileNotFoundError as error:
        raise UsageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise UsageError(f"{name}: is a folder, expected a file") from error
    except PermissionError as error:
        raise UsageError(f"{name}: no permission to read it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise OpenGRMError(f"{name}: cannot be decompressed: {_one_line(error)}") from error
    except OSError as error:
        raise OpenGRMError(f"{name}: {error.strerror or _one_line(error)}") from error


class _ZstdFile(io.RawIOBase):
    """Zstandard frames one after the other. The library's own stream reader takes a cut-off frame for the end."""

    PIECE = 2048  # compressed bytes a step: bounds what a hostile file can blow up to at once (32 MiB)

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._rest, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            piece = self._rest or self._raw.read(self.PIECE)
            self._rest = b""
            if not piece and self._frame is not None:
                raise EOFError("the file ends before the end of its last frame")
            if not piece:
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(piece))
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _one_line(error: BaseException) -> str:
    """An error's text without line breaks, at most 200 characters."""
    return " ".join(str(error).split())[:200]


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class RowWriter:
    """Writes rows to a file that appears whole or not at all; use as a context manager.

    The rows go to a temporary file in the same folder, which takes the file's place (through a link, and with its
    permissions) when the block ends without an error; otherwise it is removed and the old file stays. Its name is
    always the same, so that what a killed writer left is written over, and it is locked, so that two writers do not
    mix. `-` (standard output) and devices are written to directly. Keys keep their order.

    Raises:
        UsageError: the folder is not there, or the path is a folder.
        OpenGRMError: the file cannot be written (no permission, disk full, another writer at it), or a row cannot.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count = 0
        self._name = "stdout" if str(path) == "-" else str(path)
        self._kind, self._packed = ("lines", "") if str(path) == "-" else _endings(self.path)
        self._target = self.path
        self._temporary: Path | None = None
        self._descriptor = -1  # of the temporary file; open, and with it the lock, until the file has its name
        self._parquet: ParquetRows | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RowWriter:
        try:
            with self._explained():
                self._file = self._open()
                if self._kind == "json":
                    self._file.write(b"[")
        except BaseException:
            self._abandon()
            raise
        return self

    def _open(self) -> IO[bytes]:
        if _place_of(self.path) != str(self.path):
            return sys.stdout.buffer
        if self._kind == "parquet" and self._packed:
            raise UsageError(f"{self._name}: Parquet is compressed inside; leave off the .{self._packed}")
        self._target = Path(os.path.realpath(self.path))
        if self._target.is_dir():
            raise UsageError(f"{self._name}: is a folder, expected a file to write")
        if not self._target.parent.is_dir():
            raise UsageError(f"{self._name}: the folder {self._target.parent} does not exist")
        there = self._target.exists()
        if there and not self._target.is_file():  # a device or a pipe
            raw = self._stack.enter_context(self._target.open("wb"))
        else:
            part = self._target.with_name(f".{self._target.name}.part")
            self._descriptor = _locked(part, self._name)
            self._temporary = part
            raw = self._stack.enter_context(os.fdopen(self._descriptor, "wb", closefd=False))
            if there:
                self._temporary.chmod(stat.S_IMODE(self._target.stat().st_mode))
        if self._packed == "gz":  # no name and no time in the file: the same rows give the same bytes
            packed = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)
            return cast("IO[bytes]", self._stack.enter_context(packed))
        if self._packed == "zst":
            stream = zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
            return cast("IO[bytes]", self._stack.enter_context(stream))
        if self._kind == "parquet":
            self._parquet = ParquetRows(raw, self._name, self._target.parent)
            self._stack.callback(self._parquet.close)
        return raw

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        with self._explained():
            if self._parquet is not None:
                self._parquet.write(row)
            elif self._kind == "json":
                separator = b",\n" if self.count else b"\n"
                self._file.write(separator + _encode(row).encode("utf-8"))
            else:
                self._file.write(_encode(row).encode("utf-8") + b"\n")
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with self._explained():
                    self._finish()
        finally:
            self._abandon()

    def _finish(self) -> None:
        if self._parquet is not None:
            self._parquet.finish()
        if self._kind == "json":
            self._file.write(b"\n]\n")
        if self._file is sys.stdout.buffer:
            self._file.flush()
        self._stack.close()
        if self._temporary is not None:
            os.fsync(self._descriptor)
            os.replace(self._temporary, self._target)
            self._temporary = None

    def _abandon(self) -> None:
        """Close what is open and remove the temporary file, if it is still there."""
        with contextlib.suppress(OSError):
            self._stack.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OpenGRMError(f"{self._name}: {error.strerror or _one_line(error)}") from error
        except ValueError as error:  # NaN, or a surrogate
            raise OpenGRMError(f"{self._name}: row {self.count} cannot be written: {_one_line(error)}") from error


def _locked(path: Path, name: str) -> int:
    """The file, made or emptied, as a descriptor that holds its lock. Raises OpenGRMError where another one does."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _lock(descriptor):
                raise OpenGRMError(f"{name}: another process is writing it")
            # Between opening and locking, the writer before us may have given the file its name, or removed it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    os.truncate(descriptor, 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows, where a file that is open cannot be replaced anyway
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
            raise
    return True


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write all rows as `RowWriter` does; returns how many."""
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)
    return writer.count
