from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from opengrm import jsonl, parquet
from opengrm.errors import BadRow, MissingExtra, OpenGRMError, UsageError
from opengrm.items import Item, Message
from opengrm.jsonl import RowWriter, read_rows, write_rows
from opengrm.judgments import Judgment
from opengrm.reading import read_items, read_judgments, write_items, write_judgments, write_verdicts
from opengrm.verdicts import Verdict

ROWS: list[dict[str, Any]] = [
    {"b": 1, "a": "naïve 日本 \u2028 😀", "n": None},
    {"a": "line\nbreak", "b": -2, "list": [1, None, {"b": True}]},
]
LINES = ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst", "r.txt"]
ENDINGS = [*LINES, "r.json", "r.JSON.GZ", "r.json.zst"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize("name", ENDINGS)
def test_rows_come_back_equal_and_files_are_reproducible(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write_rows(path, ROWS * 100) == 200
    first = path.read_bytes()
    assert rows_of(path) == ROWS * 100
    assert [list(row) for row in rows_of(path)[:2]] == [list(row) for row in ROWS]  # keys keep their order
    write_rows(path, ROWS * 100)
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [name]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=5))
@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.jsonl.zst"])
def test_any_row_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    write_rows(path, rows)
    assert rows_of(path) == rows


def test_places_count_every_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \r\n{"a": 2}\r\n{"a": 3}')
    assert [where for where, _ in read_rows(path)] == [f"{path}:1", f"{path}:4", f"{path}:5"]


def test_an_array_and_a_single_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff[{"a": 1},\n {"a": 2}]', encoding="utf-8")
    (tmp_path / "b.json").write_text('{"a": 1}')
    assert [where for where, _ in read_rows(tmp_path / "a.json")] == [f"{tmp_path}/a.json[0]", f"{tmp_path}/a.json[1]"]
    assert rows_of(tmp_path / "b.json") == [{"a": 1}]


def test_only_the_last_ending_counts(tmp_path: Path) -> None:
    (tmp_path / "export.json.old").write_text('{"a": 1}\n{"a": 2}\n')
    assert rows_of(tmp_path / "export.json.old") == [{"a": 1}, {"a": 2}]


def test_a_file_named_stdin_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stdin").write_text('{"a": 1}\n')
    assert list(read_rows("stdin")) == [("stdin:1", {"a": 1})]


def test_standard_input_and_output(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": "x"}\nno\n')))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    rows = read_rows("-")
    assert next(rows) == ("stdin:1", {"a": "x"})
    with pytest.raises(BadRow, match=r"^stdin:2: not JSON: expecting value at column 1$"):
        next(rows)
    assert write_rows("-", ROWS) == 2
    assert [json.loads(line) for line in out.getvalue().split(b"\n")[:-1]] == ROWS


def test_zstd_frames_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(b'{"a": %d}\n' % i * 5000) for i in range(3)))
    assert [row["a"] for row in rows_of(path)] == [0] * 5000 + [1] * 5000 + [2] * 5000


def test_a_line_too_long_is_bad_and_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE", 2**20)
    path = tmp_path / "r.jsonl"
    fits = b'{"a": "' + b"x" * (2**20 - 9) + b'"}\n'
    assert len(fits) == 2**20 + 1
    path.write_bytes(b'{"a": "' + b"x" * 5 * 2**20 + b'"}\n{"a": 2}\n' + fits + b"y" * (2**20 + 1))
    bad: list[BadRow] = []
    assert [where for where, _ in read_rows(path, bad.append)] == [f"{path}:2", f"{path}:3"]
    assert [str(b) for b in bad] == [f"{path}:{n}: the line is longer than 1 MiB" for n in (1, 4)]


def test_an_array_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_JSON", 2**20)
    (tmp_path / "r.json.zst").write_bytes(zstandard.compress(b"[" + b" " * 2**22 + b"]"))
    with pytest.raises(UsageError, match="larger than 1 MiB; give it as JSON Lines"):
        rows_of(tmp_path / "r.json.zst")


def test_sixty_four_levels_are_read(tmp_path: Path) -> None:
    deep = json.loads("[" * 63 + "]" * 63)  # and the row itself
    write_rows(tmp_path / "r.jsonl", [{"deep": deep, "text": "{[" * 100}])
    assert rows_of(tmp_path / "r.jsonl") == [{"deep": deep, "text": "{[" * 100}]


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=r"r\.jsonl: no permission to read it"):
        rows_of(tmp_path / "r.jsonl")
    with pytest.raises(OpenGRMError, match=r"r\.jsonl: Permission denied"):
        write_rows(tmp_path / "r.jsonl", ROWS)


# Parquet


def test_parquet_judgments_with_columns_that_start_out_empty(tmp_path: Path) -> None:
    path = tmp_path / "j.parquet"
    judgments = [Judgment("q", (1.0, 2.0), sample=i) for i in range(5000)]
    judgments[4500] = Judgment("q", None, error="timeout: none", sample=4500, meta=-1.5)
    write_judgments(path, judgments)
    assert list(read_judgments(path)) == judgments
    assert os.listdir(tmp_path) == ["j.parquet"]


def test_parquet_takes_keys_that_come_late_and_objects(tmp_path: Path) -> None:
    pair = (Message("user", "p"),), ("a", "b")
    items = [Item(*pair, id=str(i), source={"x": 1}) for i in range(5000)]
    items.append(Item((Message("user", "q"),), ("a",), rewards=(0.5,), id="z", source={"y": ["t"]}, extra={"late": 2}))
    write_items(tmp_path / "i.parquet", items)
    back = list(read_items(tmp_path / "i.parquet"))
    assert back == items
    assert (back[0].source, back[-1].source, back[-1].extra["late"]) == ({"x": 1}, {"y": ["t"]}, 2)


def test_parquet_columns_have_one_type(tmp_path: Path) -> None:
    for rows in ([{"a": 1}, {"a": "x"}], [*({"a": 1} for _ in range(5000)), {"a": "x"}]):
        with pytest.raises(OpenGRMError, match=r"r\.parquet: a column has values of several types, write \.jsonl"):
            write_rows(tmp_path / "r.parquet", rows)
    assert os.listdir(tmp_path) == []


def test_parquet_without_rows_and_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.parquet"
    assert write_rows(path, []) == 0
    with pytest.raises(OpenGRMError, match="no rows"):
        rows_of(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"r\.parquet: reading Parquet needs the extra 'parquet'"):
        rows_of(path)
    path.unlink()
    with pytest.raises(MissingExtra, match=r"r\.parquet: writing Parquet needs the extra 'parquet'"):
        write_rows(path, ROWS)
    assert os.listdir(tmp_path) == []


def test_parquet_of_others_with_times_and_bytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import datetime

    moment = datetime.datetime(2024, 5, 17, 12, 30)
    table = pyarrow.table({"when": [moment, moment], "data": [None, b"\0"], "text": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    bad: list[BadRow] = []
    assert [row for _, row in read_rows(tmp_path / "r.parquet", bad.append)] == [
        {"when": "2024-05-17T12:30:00", "data": None, "text": "a"}
    ]
    assert [b.where for b in bad] == [f"{tmp_path}/r.parquet[1]"]


# Writing


def stop_after(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield row
    raise RuntimeError("stop")


@pytest.mark.parametrize("name", [*ENDINGS, "r.parquet"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_rows(path, stop_after({"a": 1}))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "Out of range float"), ("\ud800", "surrogates not allowed")]
)
def test_what_json_cannot_hold_is_not_written(tmp_path: Path, value: object, said: str) -> None:
    with pytest.raises(OpenGRMError, match=rf"r\.jsonl: row 1 cannot be written: .*{said}"):
        write_rows(tmp_path / "r.jsonl", [{"a": 1}, {"a": value}])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [*ENDINGS, "r.parquet"])
def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OpenGRMError, match=f"{name}: No space left on device"):
        write_rows(path, [{"a": 1}])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("count", [1, 100_000])
def test_a_full_device(count: int) -> None:
    with pytest.raises(OpenGRMError, match=r"^/dev/full: No space left on device$"):
        write_rows("/dev/full", ({"a": i} for i in range(count)))


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from opengrm.jsonl import RowWriter\n"
        "with RowWriter(sys.argv[1]) as writer:\n"
        "    for i in range(9999): writer.write({'a': i})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "r.jsonl"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
        assert os.listdir(tmp_path) == [".r.jsonl.part"]
    write_rows(path, [{"a": 1}])
    assert os.listdir(tmp_path) == ["r.jsonl"]
    assert rows_of(path) == [{"a": 1}]


def test_two_writers_of_a_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with RowWriter(path) as writer:
        writer.write({"a": 1})
        with pytest.raises(OpenGRMError, match=r"r\.jsonl: another process is writing it"):
            write_rows(path, [{"a": 2}])
        writer.write({"a": 3})
    assert rows_of(path) == [{"a": 1}, {"a": 3}]
    assert os.listdir(tmp_path) == ["r.jsonl"]


@pytest.mark.parametrize("between", [lambda part, end: part.rename(end), lambda part, end: part.unlink()])
def test_a_writer_that_ends_between_our_opening_and_locking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: Callable[[Path, Path], object]
) -> None:
    path, part, lock = tmp_path / "r.jsonl", tmp_path / ".r.jsonl.part", jsonl._lock

    def late(descriptor: int) -> bool:
        monkeypatch.setattr(jsonl, "_lock", lock)
        between(part, tmp_path / "theirs.jsonl")
        return lock(descriptor)

    part.write_text("theirs")
    monkeypatch.setattr(jsonl, "_lock", late)
    write_rows(path, [{"a": 1}])
    assert rows_of(path) == [{"a": 1}]
    assert not (tmp_path / "theirs.jsonl").exists() or (tmp_path / "theirs.jsonl").read_text() == "theirs"


@pytest.mark.parametrize(
    ("name", "bare"),
    [("v.jsonl", "v"), ("qwen2.5-7b.jsonl", "qwen2.5-7b"), ("a.b.JSON.gz", "a.b"), ("v.jsonl.zst", "v"),
     ("v.parquet", "v"), ("v.txt", "v.txt"), ("v", "v"), (".jsonl", ".jsonl"), ("v1.5", "v1.5")],
)  # fmt: skip
def test_known_endings_come_off(name: str, bare: str) -> None:
    assert jsonl.bare_name(Path(name)) == bare


def test_a_link_and_permissions_stay(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text("old")
    kept.chmod(0o600)
    (tmp_path / "link.jsonl").symlink_to(kept)
    write_rows(tmp_path / "link.jsonl", ROWS)
    assert (tmp_path / "link.jsonl").is_symlink()
    assert rows_of(kept) == ROWS
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "is a folder, expected a file to write"), ("no/r.jsonl", "/no does not exist"),
     ("r.parquet.gz", r"leave off the \.gz")],
)  # fmt: skip
def test_places_that_cannot_be_written(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        write_rows(tmp_path / name, ROWS)


def test_rows_can_be_written_one_by_one(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "r.json") as writer:
        assert not (tmp_path / "r.json").exists()
        writer.write({"a": 1})
        assert writer.count == 1
    assert (tmp_path / "r.json").read_text() == '[\n{"a": 1}\n]\n'


def test_verdicts_are_rows(tmp_path: Path) -> None:
    verdict = Verdict("q", (3.0, 1.0), (0, 1), 0, (), 2.0, 0.9, 4, 3, 3, 100, 20)
    write_verdicts(tmp_path / "v.jsonl", [verdict])
    assert rows_of(tmp_path / "v.jsonl") == [
        {"item": "q", "scores": [3.0, 1.0], "ranking": [0, 1], "winner": 0, "tied": [], "margin": 2.0,
         "confidence": 0.9, "asked": 4, "valid": 3, "used": 3, "prompt_tokens": 100, "completion_tokens": 20}
    ]  # fmt: skip


def test_parquet_group_size_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP", 3)
    rows: list[dict[str, Any]] = [{"a": i, "b": None if i < 5 else i / 2, "c": {"k": str(i)}} for i in range(10)]
    write_rows(tmp_path / "r.parquet", rows)
    assert rows_of(tmp_path / "r.parquet") == rows
