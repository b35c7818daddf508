"""Bad input of `eval`, `compare`, `report` and `check-overlap`: refused or told, never a good-looking figure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, interrupted
from instant_engine import InstantEngine
from typer.testing import CliRunner, Result

from opengrm import engines
from opengrm.cli.main import app
from opengrm.errors import BadRow, OpenGRMError, UsageError

Row = dict[str, Any]


def run(*words: object) -> Result:
    """The command's result; errors that a user can act on are raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, OpenGRMError):
        raise result.exception
    return result


def write(path: Path, *rows: Row | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def pairs(count: int, subset: str = "donotanswer") -> list[Row]:
    return [
        {"id": i, "subset": subset, "prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four rows of RewardBench."""
    return write(tmp_path / "rows.jsonl", *pairs(4))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Scores of them: three right, one wrong."""
    rows = [{"item": f"donotanswer/{i}", "scores": [1.0, 2.0 if i == 3 else 0.0]} for i in range(4)]
    return write(tmp_path / "scores.jsonl", *rows)


@pytest.fixture
def folder(data: Path, scores: Path, tmp_path: Path) -> Path:
    """A run over them."""
    out = tmp_path / "run"
    assert run("eval", "rewardbench", "--data", data, "--scores", scores, "-o", out).exit_code == 0
    return out


# --- eval -------------------------------------------------------------------------------------------------------


def test_a_misspelt_subset_stops_the_run_or_is_skipped_and_counted(data: Path, scores: Path, tmp_path: Path) -> None:
    """Five wrong rows of an unknown subset once vanished from an overall of 100 %."""
    write(data, *pairs(1), *pairs(5, "donotanswr"))
    rows = [{"item": "donotanswer/0", "scores": [1, 0]}]
    write(scores, *rows, *({"item": f"donotanswr/{i}", "scores": [0, 1]} for i in range(5)), "{broken")
    words = ("eval", "rewardbench", "--data", data, "--scores", scores, "-o", tmp_path / "run")
    with pytest.raises(BadRow, match=re.escape(f"{data}:2: 'subset' is 'donotanswr', none of RewardBench's, perhaps")):
        run(*words)
    done = run(*words, "--on-bad", "skip")
    assert "rewardbench: 5 rows and 1 judgments could not be used and were skipped (--on-bad skip)." in done.output
    found = json.loads((tmp_path / "run" / "eval.json").read_text())["benchmarks"]["rewardbench"]
    assert (found["items"], found["overall"], found["skipped"]) == (1, 1.0, {"rows": 5, "judgments": 1})
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<dt>bad rows skipped</dt><dd>5</dd>" in page
    assert "<dt>bad judgments skipped</dt><dd>1</dd>" in page


def test_nothing_skipped_is_said_too(folder: Path) -> None:
    found = json.loads((folder / "eval.json").read_text())["benchmarks"]["rewardbench"]
    assert found["skipped"] == {"rows": 0, "judgments": 0}
    assert "skipped" not in (folder / "report.html").read_text(encoding="utf-8").split("<style>")[0]


def test_a_guided_vote_needs_meta_scores(data: Path, scores: Path, tmp_path: Path) -> None:
    words = ("eval", "rewardbench", "--data", data, "-o", tmp_path / "run", "--reduce", "meta")
    with pytest.raises(UsageError, match=re.escape(f"{scores}: no judgment has a meta score")):
        run(*words, "--scores", scores)
    with pytest.raises(UsageError, match="--reduce meta needs --meta"):
        run(*words, "--model", "m")
    rows = [{"item": f"donotanswer/{i}", "scores": [1, 0], "meta": 0.5} for i in range(4)]
    assert run(*words, "--scores", write(scores, *rows)).exit_code == 0
    assert "meta" in json.loads((tmp_path / "run" / "eval.json").read_text())["settings"]["reduce"]


def test_unlike_scores_name_their_file(data: Path, scores: Path, tmp_path: Path) -> None:
    words = ("eval", "rewardbench", "--data", data, "--scores", scores, "-o", tmp_path / "run")
    write(scores, {"item": "donotanswer/0", "scores": [1]})
    with pytest.raises(BadRow) as refused:
        run(*words)
    assert str(refused.value) == f"{scores}: item 'donotanswer/0', sample 0: 1 scores for 2 responses"
    write(scores, *({"item": "donotanswer/0", "scores": [1, 0], "sample": 0, "model": m} for m in "ab"))
    with pytest.raises(UsageError, match=re.escape(f"{scores}: judgments of 2 judges")):
        run(*words)


def test_the_runs_folder_must_be_one(data: Path, scores: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(write(tmp_path / "here" / "keep.txt", "x").parent)
    words = ("eval", "rewardbench", "--data", data, "--scores", scores, "-o")
    with pytest.raises(UsageError, match="--output '': give a folder for the run"):
        run(*words, "")
    for place in (scores, scores / "inside"):
        with pytest.raises(UsageError, match=re.escape(f"--output {place}: {scores} is a file; give a folder")):
            run(*words, place)
    assert os.listdir(tmp_path / "here") == ["keep.txt"]


def test_ctrl_c_keeps_what_was_judged_and_the_same_command_goes_on(tmp_path: Path) -> None:
    data, out = write(tmp_path / "rows.jsonl", *pairs(12)), tmp_path / "run"
    with FakeServer(latency=0.2) as server:
        words = [sys.executable, "-m", "opengrm", "eval", "rewardbench", "--data", str(data), "-o", str(out)]
        words += ["--engine", "openai", "--base-url", server.base_url, "--model", "m", "-k", "4", "-q"]
        words += ["--concurrency", "4"]
        code, err = interrupted(words, server)
        assert code == 130, err
        assert f"judgments are in {out / 'judgments.ledger.db'}: run the same command to go on" in err
        assert not (out / "eval.json").exists()
        kept = int(err.split("interrupted; ")[1].split(" ")[0])
        assert 0 < kept < 48
        server.latency, server.asked = 0.0, 0
        assert subprocess.run(words, capture_output=True).returncode == 0
        assert server.asked == 48 - kept
    found = json.loads((out / "eval.json").read_text())["benchmarks"]["rewardbench"]
    assert (found["items"], found["cost"]["judgments"]) == (12, 48)


# --- the page and the comparison of a damaged run ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "'benchmarks' must be an object; run opengrm eval again"),
        ({"benchmarks": [1]}, "'benchmarks' must be an object; run opengrm eval again"),
        ({"benchmarks": {"rewardbench": 3}}, "'benchmarks'.'rewardbench' must be an object; run opengrm eval again"),
    ],
)
def test_a_damaged_result_is_refused(folder: Path, tmp_path: Path, content: Row, said: str) -> None:
    broken = tmp_path / "broken"
    write(broken / "eval.json", content)
    for words in (("report", broken), ("compare", folder, broken)):
        with pytest.raises(UsageError, match=re.escape(f"{broken / 'eval.json'}: {said}")):
            run(*words)


def test_an_interval_that_is_none_is_not_drawn(folder: Path) -> None:
    """Matplotlib refused it with a traceback."""
    path = folder / "eval.json"
    content = json.loads(path.read_text())
    content["benchmarks"]["rewardbench"]["subsets"][0]["accuracy"] |= {"low": 0.9, "high": 0.1}
    write(path, content)
    assert run("report", folder).exit_code == 0


def test_damaged_files_of_items_are_told_in_one_line(folder: Path) -> None:
    whole = run("report", folder)
    assert (whole.exit_code, whole.stderr) == (0, "")
    items, shown = folder / "rewardbench" / "items.jsonl", folder / "rewardbench" / "shown.jsonl"
    kept = items.read_bytes()
    cases: list[tuple[Path, bytes | None, str]] = [
        (items, b"", "rewardbench/items.jsonl (no rows)"),
        (items, None, "rewardbench/items.jsonl (no such file)"),
        (items, kept + b'{"item": "\xff"}\n', "rewardbench/items.jsonl:5"),
        (shown, b"\xff\n", "rewardbench/shown.jsonl:1"),
        (shown, b"", "rewardbench/shown.jsonl (no rows)"),
        (shown, None, "rewardbench/shown.jsonl (no such file)"),
    ]
    for path, content, said in cases:
        items.write_bytes(kept)
        path.unlink() if content is None else path.write_bytes(content)
        done = run("report", folder)
        assert done.exit_code == 0
        assert done.stderr == f"opengrm: warning: Could not be read: scores.jsonl: {said}.\n"
        assert f"Could not be read: scores.jsonl: {said}." in (folder / "report.html").read_text(encoding="utf-8")


def test_a_page_is_a_file(folder: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--output {folder}: is a folder; give the page's file, such as")):
        run("report", folder, "-o", folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"credit": ...}, "has no 'credit'"),
        ({"credit": "1"}, "'credit' must be a number or null"),
        ({"n": None}, "'n' must be a whole number from 1"),
        ({"n": 1.5}, "'n' must be a whole number from 1"),
        ({"chance": [1]}, "'chance' must be a number or null"),
        ({"seconds": True}, "'seconds' must be a number or null"),
        ({"credit": 2}, "must be from 0 to 1"),
    ],
)
def test_damaged_items_are_told_without_names_of_python(folder: Path, tmp_path: Path, change: Row, said: str) -> None:
    path = folder / "rewardbench" / "items.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    other = tmp_path / "other"
    (other / "rewardbench").mkdir(parents=True)
    (other / "eval.json").write_bytes((folder / "eval.json").read_bytes())
    broken = {key: value for key, value in (rows[0] | change).items() if value is not ...}
    file = write(other / "rewardbench" / "items.jsonl", broken, *rows[1:])
    with pytest.raises(BadRow) as refused:
        run("compare", folder, other)
    assert str(refused.value).startswith(f"{file}:1: ")
    assert said in str(refused.value)
    assert "Error" not in str(refused.value)


def test_one_vote_is_no_curve_and_a_matrix_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "open_engine", lambda *_args, **_settings: InstantEngine())
    styles = {"chosen": ["7", "the 7", "**7**"], "rejected": ["8", "the 8", "**8**"]}
    data = write(tmp_path / "chat.jsonl", {"id": "1", "prompt": "q", **styles})
    for k, curves in ((1, False), (2, True)):
        out = tmp_path / str(k)
        done = run("eval", "rm-bench", "--data", data, "--model", "m", "-k", k, "-o", out, "-q")
        assert done.exit_code == 0, done.output
        found = json.loads((out / "eval.json").read_text())["benchmarks"]["rm-bench"]
        assert len(found["metrics"]["matrix"]) == 3
        page = (out / "report.html").read_text(encoding="utf-8")
        assert ">easy<" in page
        assert ">matrix<" not in page
        assert ("Votes and cost" in page) == curves
        assert curves or not (out / "rm-bench-curves.png").exists()


# --- check-overlap ----------------------------------------------------------------------------------------------


def code(*words: object) -> tuple[int, str]:
    """The exit code, and what is said of an error."""
    try:
        return run("check-overlap", *words).exit_code, ""
    except OpenGRMError as error:
        return error.exit_code, str(error)


def test_exit_code_1_is_an_overlap_and_nothing_else(data: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"prompt": "Else", "responses": ["a"]})
    assert code(train, data) == (0, "")
    assert code(data, data) == (1, "")
    broken = write(tmp_path / "broken.jsonl", "{broken")
    for words, said in (
        ((broken, data), "broken.jsonl:1: "),
        ((train, broken), "broken.jsonl:1: "),
        ((tmp_path / "none.jsonl", data), "none.jsonl"),
        ((tmp_path, data), str(tmp_path)),
        ((train, "rewardbench", "--data", broken), "broken.jsonl:1: "),
        ((train,), "at least two files"),
        ((train, data, "--data", data), "--data goes with the name of a benchmark"),
    ):
        found, told = code(*words)
        assert (found, said in told) == (2, True), (words, told)


def test_nothing_to_compare_is_not_no_overlap(data: Path, tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.jsonl", "{broken")
    for words in ((data, broken), (broken, data)):
        assert code(*words, "--on-bad", "skip") == (
            2, f"{broken}: no row could be used, so there is nothing to compare",
        )  # fmt: skip


def test_with_data_a_benchmarks_name_is_the_benchmark(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rewardbench" / "rows.jsonl", *pairs(2))
    train = write(tmp_path / "train.jsonl", {"prompt": "Else", "responses": ["a"]})
    for place in (data, "."):
        done = run("check-overlap", train, "rewardbench", "--data", place)
        assert (done.exit_code, "0 of 1 training rows overlap" in done.output) == (0, True), done.output
