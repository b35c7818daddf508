from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from opengrm import jsonl
from opengrm.errors import BadRow, OpenGRMError, UsageError
from opengrm.items import Item, Message
from opengrm.jsonl import RowWriter, read_rows, write_rows
from opengrm.judgments import Judgment
from opengrm.reading import read_items, read_judgments, write_items, write_judgments

ROWS: list[dict[str, Any]] = [
    {"a": 1, "text": "naïve 日本 \u2028 😀"},
    {"a": -2.5, "text": "line\nbreak", "list": [1, None, {"b": True}]},
]


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst", "r.txt"])
def test_rows_come_back_equal_and_files_are_reproducible(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write_rows(path, ROWS * 100) == 200
    first = path.read_bytes()
    assert [row for _, row in read_rows(path)] == ROWS * 100
    write_rows(path, ROWS * 100)
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [name]


def test_places_count_every_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \r\n{"a": 2}\r\n{"a": 3}')
    assert [where.rsplit(":", 1)[1] for where, _ in read_rows(path)] == ["1", "4", "5"]


def test_an_array_and_a_single_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1},\n {"a": 2}]')
    (tmp_path / "b.json").write_text('{"a": 1}')
    assert [where.rsplit("/", 1)[1] for where, _ in read_rows(tmp_path / "a.json")] == ["a.json[0]", "a.json[1]"]
    assert [row for _, row in read_rows(tmp_path / "b.json")] == [{"a": 1}]


def test_parquet_judgments_with_columns_that_start_out_empty(tmp_path: Path) -> None:
    path = tmp_path / "j.parquet"
    judgments = [Judgment("q", (1.0, 2.0), sample=i) for i in range(5000)]
    judgments[4500] = Judgment("q", None, error="timeout: none", sample=4500, meta=-1.5)
    write_judgments(path, judgments)
    assert list(read_judgments(path)) == judgments


def test_parquet_refuses_what_it_would_lose(tmp_path: Path) -> None:
    item = Item((Message("user", "p"),), ("a",), source={"x": 1})
    with pytest.raises(OpenGRMError, match="'source' is an object"):
        write_items(tmp_path / "i.parquet", [item])
    with pytest.raises(OpenGRMError, match="'late' came after"):
        write_rows(tmp_path / "i.parquet", [*({"a": 1} for _ in range(5000)), {"a": 1, "late": 2}])
    assert os.listdir(tmp_path) == []


def test_bad_rows_are_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": 1}\nnope\n[1]\n{"a": "\xff"}\n{"a": NaN}\n{"a": "\\udc00"}\n{"a": 2}\n')
    bad: list[BadRow] = []
    assert [row for _, row in read_rows(path, bad.append)] == [{"a": 1}, {"a": 2}]
    assert [b.where for b in bad] == [f"{path}:{i}" for i in (2, 3, 4, 5, 6)]
    with pytest.raises(BadRow, match=r"r\.jsonl:2: not JSON: expecting value at column 1"):
        list(read_rows(path))


def test_a_line_too_long_is_bad_and_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE", 2**20)
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 5 * 2**20 + b'"}\n{"a": 2}\n')
    bad: list[BadRow] = []
    assert [row for _, row in read_rows(path, bad.append)] == [{"a": 2}]
    assert str(bad[0]) == f"{path}:1: the line is longer than 1 MiB"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("old")

    def rows() -> Any:
        yield {"a": 1}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_rows(path, rows())
    assert path.read_text() == "old"
    with pytest.raises(ValueError, match="Out of range float"):
        write_rows(path, [{"a": float("nan")}])
    assert os.listdir(tmp_path) == ["r.jsonl"]


class Full:
    def write(self, data: bytes) -> int:
        raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    opened = RowWriter._open
    monkeypatch.setattr(RowWriter, "_open", lambda self: (opened(self), Full())[1])
    with pytest.raises(OpenGRMError, match=r"r\.jsonl: No space left"):
        write_rows(path, ROWS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "said"), [("", "is a folder"), ("none.jsonl", "no such file")])
def test_files_that_are_not_there(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(read_rows(tmp_path / name))


def test_samples_are_numbered_per_item_where_rows_have_none(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text(
        '{"item": "a", "scores": [1]}\n{"item": "b", "scores": null}\n{"item": "a", "scores": [2], "mine": 3}\n'
    )
    a0, b0, a1 = read_judgments(tmp_path / "j.jsonl")
    assert (a0.sample, b0.sample, a1.sample) == (0, 0, 1)
    assert b0.error == "unparsable: not said"
    assert a1.extra == {"mine": 3}


def test_items_with_everything_come_back_equal(tmp_path: Path) -> None:
    item = Item(
        (Message("system", "s"), Message("user", "u")), ("a", ""), rewards=(1.0, -0.5), reference="r",
        principles=("p", "q"), id="7", source={"set": "x"}, extra={"mine": [1]},
    )  # fmt: skip
    write_items(tmp_path / "i.jsonl", [item])
    (back,) = read_items(tmp_path / "i.jsonl")
    assert back == item
    assert (back.source, back.extra) == (item.source, item.extra)
