from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs import BAD_INPUTS, GOOD, LINES, BadInput

from opengrm.errors import BadRow, OpenGRMError
from opengrm.reading import read_items, read_judgments


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=[bad.name for bad in BAD_INPUTS])
def test_each_gives_its_one_line(bad: BadInput, tmp_path: Path) -> None:
    path = bad.make(tmp_path)
    with pytest.raises(OpenGRMError) as caught:
        list(read_items(path) if bad.kind == "items" else read_judgments(path))
    assert bad.matches(str(caught.value), path), str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == bad.exit_code


@pytest.mark.parametrize("bad", LINES, ids=[bad.name for bad in LINES])
def test_each_bad_line_can_be_left_out(bad: BadInput, tmp_path: Path) -> None:
    path = tmp_path / bad.file
    assert isinstance(bad.content, bytes)
    path.write_bytes(bad.content.rstrip(b"\n") + b"\n" + GOOD)
    seen: list[BadRow] = []
    assert len(list(read_items(path, seen.append))) == 2  # the good row before it and the one after it
    (only,) = seen
    assert only.where == f"{path}:2"
    assert bad.matches(str(only), path)


def test_a_file_of_bad_lines_only_is_not_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    path.write_bytes(b"nope\nnope\n")
    seen: list[BadRow] = []
    assert list(read_items(path, seen.append)) == []
    assert [bad.where for bad in seen] == [f"{path}:1", f"{path}:2"]
