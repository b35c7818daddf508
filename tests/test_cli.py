"""The command line end to end, against a local server that answers like a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from fake_server import Body, FakeServer, interrupted

from opengrm.cli.main import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["opengrm", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        sys.stdout.flush()
        return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture
def server() -> Any:
    with FakeServer() as running:
        yield running


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    rows = [{"id": f"q{i}", "prompt": f"Query {i}", "responses": ["one", "two"], "best": i % 2} for i in range(12)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_judge_a_file(run: Run, server: FakeServer, items: Path, tmp_path: Path) -> None:
    out, judgments = tmp_path / "v.jsonl", tmp_path / "j.jsonl"
    words = ("judge", items, "-o", out, "--judgments", judgments, "--engine", "openai", "--base-url", server.base_url)
    done = run(*words, "--model", "m", "-k", 4, "-q")
    assert done.code == 0, done.err
    verdicts, judged = lines(out), lines(judgments)
    assert [v["item"] for v in verdicts] == [f"q{i}" for i in range(12)]
    assert all(v["asked"] == v["valid"] == 4 and len(v["scores"]) == 2 for v in verdicts)
    for verdict in verdicts:
        own = [j["scores"] for j in judged if j["item"] == verdict["item"]]
        assert [sum(column) for column in zip(*own, strict=True)] == verdict["scores"]
    assert "12 items, 48 judgments (48 new)" in done.err
    assert "accuracy, missing at chance" in done.err

    asked = server.asked
    before = out.read_bytes(), judgments.read_bytes()
    again = run(*words, "--model", "m", "-k", 4, "-q", "--json")
    assert server.asked == asked, "the second run must find everything in the ledger"
    assert (out.read_bytes(), judgments.read_bytes()) == before
    assert again.json["judgments_new"] == 0
    assert again.json["ledger"] == str(tmp_path / "v.ledger.db")


def test_verdicts_go_to_standard_output(run: Run, server: FakeServer, items: Path) -> None:
    done = run("judge", items, "--engine", "openai", "--base-url", server.base_url, "--model", "m", "-k", 1, "-q")
    assert [json.loads(line)["item"] for line in done.out.splitlines()] == [f"q{i}" for i in range(12)]


def test_one_item_by_hand(run: Run, server: FakeServer) -> None:
    words = ("--engine", "openai", "--base-url", server.base_url, "--model", "m", "-k", 2)
    one = ("judge", "--prompt", "Name a prime.", "--response", "[bold]7[/bold]", "--response", "8")
    done = run(*one, *words)
    assert done.code == 0, done.err
    for part in ("principles:", "critique:", "scores:", "verdict", "[bold]7[/bold]", "2 of 2 judgments valid"):
        assert part in done.out
    found = run(*one, *words, "--json").json
    assert found["verdict"]["asked"] == 2
    assert [j["sample"] for j in found["judgments"]] == [0, 1]


def test_vote_over_what_was_judged(run: Run, server: FakeServer, items: Path, tmp_path: Path) -> None:
    run("judge", items, "-o", tmp_path / "v.jsonl", "--engine", "openai", "--base-url", server.base_url,
        "--model", "m", "-k", 4, "-q")  # fmt: skip
    report = run("vote", tmp_path / "v.ledger.db", "--items", items, "-k", "1,2,4", "--json")
    assert report.code == 0, report.err
    assert [row["k"] for row in report.json["rows"]] == [1, 2, 4]
    done = run("vote", tmp_path / "v.ledger.db", "--items", items, "-o", tmp_path / "again.jsonl")
    assert done.code == 0, done.err
    by_item = {v["item"]: v for v in lines(tmp_path / "again.jsonl")}
    assert [by_item[v["item"]] for v in lines(tmp_path / "v.jsonl")] == lines(tmp_path / "v.jsonl")


def test_ledger_round_trip(run: Run, server: FakeServer, items: Path, tmp_path: Path) -> None:
    run("judge", items, "-o", tmp_path / "v.jsonl", "--engine", "openai", "--base-url", server.base_url,
        "--model", "m", "-k", 2, "-q")  # fmt: skip
    exported = tmp_path / "j.jsonl.zst"
    assert run("ledger", "export", tmp_path / "v.ledger.db", "-o", exported).code == 0
    assert "24 judgments added" in run("ledger", "import", exported, tmp_path / "other.db").err
    again = run("ledger", "import", exported, tmp_path / "other.db")
    assert "0 judgments added, 24 were there already, 24 in" in again.err
    (group,) = run("ledger", "info", tmp_path / "other.db", "--json").json["groups"]
    assert (group["items"], group["judgments"], group["model"]) == (12, 24, "m")
    assert run("ledger", "export", tmp_path / "other.db", "-o", tmp_path / "b.jsonl.zst").code == 0
    assert (tmp_path / "b.jsonl.zst").read_bytes() == exported.read_bytes()


def test_equal_votes_of_two_runs_are_both_kept_by_name(run: Run, tmp_path: Path) -> None:
    votes, ledger = tmp_path / "j.jsonl", tmp_path / "kept"
    votes.write_text('{"item": "a", "scores": [2, 1]}\n')
    for name, said in (("one", "1 judgments added, 1 in"), ("two", "1 judgments added, 2 in")):
        assert said in run("ledger", "import", votes, ledger, "--as", name).err
    assert "1 were there already, 2 in" in run("ledger", "import", votes, ledger, "--as", "two").err
    mixed = run("vote", ledger)  # a ledger whatever its name
    assert (mixed.code, "sample 0 is there twice" in mixed.err, "--pool" in mixed.err) == (2, True, True)
    assert run("vote", ledger, "--pool", "--json").json["counts"]["judgments"] == 2


def test_an_import_that_fails_leaves_no_ledger(run: Run, tmp_path: Path) -> None:
    assert run("ledger", "import", tmp_path / "nope.jsonl", tmp_path / "new.db").code == 2
    (tmp_path / "bad.jsonl").write_text('{"item": "a", "scores": [2, 1]}\nnope\n')
    assert run("ledger", "import", tmp_path / "bad.jsonl", tmp_path / "new.db").code == 1
    assert not (tmp_path / "new.db").exists()
    (tmp_path / "good.jsonl").write_text('{"item": "a", "scores": [2, 1]}\n')
    assert run("ledger", "import", tmp_path / "good.jsonl", tmp_path / "new.db").code == 0
    assert run("ledger", "import", tmp_path / "bad.jsonl", tmp_path / "new.db").code == 1
    assert run("ledger", "info", tmp_path / "new.db", "--json").json["groups"][0]["judgments"] == 1


def test_items_from_a_pipe(run: Run, server: FakeServer, items: Path, tmp_path: Path) -> None:
    words = ["--engine", "openai", "--base-url", server.base_url, "--model", "m", "-k", "1", "-q"]
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for content, code, said in ((items.read_bytes(), 0, ""), (b"nope\n", 1, f"{pipe}:1: not JSON")):
        feeder = threading.Thread(target=pipe.write_bytes, args=(content,))
        feeder.start()
        done = run("judge", pipe, *words)
        feeder.join(10)
        assert done.code == code, done.err
        assert said in done.err
        assert len(done.out.splitlines()) == (12 if code == 0 else 0)


def test_the_default_ledger_is_named_after_the_output(
    run: Run, server: FakeServer, items: Path, tmp_path: Path
) -> None:
    words = ("--engine", "openai", "--base-url", server.base_url, "--model", "m", "-k", 1, "-q", "--json")
    for name in ("qwen2.5-7b.jsonl", "qwen2.5-7b.jsonl.zst"):
        done = run("judge", items, "-o", tmp_path / name, *words)
        assert done.json["ledger"] == str(tmp_path / "qwen2.5-7b.ledger.db")
    assert run("judge", items, "-o", "/dev/null", *words).json["ledger"] is None
    assert not Path("/dev/null.ledger.db").exists()
    done = run("judge", items, "-o", "-", *words)
    assert done.code == 0
    assert [json.loads(line)["item"] for line in done.out.splitlines()] == [f"q{i}" for i in range(12)]
    assert json.loads(done.err)["ledger"] is None  # one kind of row on standard output


def test_given_principles_and_references_are_shown(run: Run, server: FakeServer, tmp_path: Path) -> None:
    asked: list[str] = []

    def text(body: Body, index: int) -> str:
        asked.append(body["messages"][-1]["content"])
        return "\\boxed{3, 9}"

    one = ("judge", "--prompt", "Name a prime.", "--response", "7", "--response", "8", "--model", "m", "-k", 1)
    with FakeServer(text=text) as server:
        words = (*one, "--engine", "openai", "--base-url", server.base_url)
        for given in (["--reference", "THE REFERENCE"], ["--principle", "THE PRINCIPLE"]):
            assert run(*words, *given).code == 0
            assert given[1] in asked[-1]
            refused = run(*words, *given, "--template", "grm")
            assert refused.code == 2
            assert f"template grm does not show what {given[0]} gives" in refused.err
        assert run(*words, "--reference", "R", "--template", "grm+reference").code == 0
        assert len(asked) == 3


def test_options_reach_the_engine(run: Run, items: Path) -> None:
    bodies: list[Body] = []

    def text(body: Body, index: int) -> str:
        bodies.append(body)
        return "\\boxed{3, 9}"

    with FakeServer(text=text) as server:
        words = ("--extra-body", '{"top_k": -1}', "--chat-template-kwargs", '{"enable_thinking": false}')
        done = run(
            "judge", items, "--engine", "openai", "--base-url", server.base_url, "--model", "m", "-k", 1, *words
        )
    assert done.code == 0, done.err
    assert bodies[0]["top_k"] == -1
    assert bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_table_in_a_pipe_is_as_wide_as_it_has_to_be(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "i.jsonl").write_text('{"id": "a", "prompt": "p", "responses": ["x", "y"], "best": 0}\n')
    row = {"item": "a", "scores": [2, 1], "model": "m" * 70, "prompt_tokens": 123456, "completion_tokens": 123456}
    (tmp_path / "j.jsonl").write_text("".join(json.dumps({**row, "sample": j}) + "\n" for j in range(2)))
    done = run("vote", tmp_path / "j.jsonl", "--items", tmp_path / "i.jsonl")
    (line,) = [line for line in done.out.splitlines() if "\u2502 2 " in line]
    assert line.count("123,456") == 0
    assert line.count("246,912") == 2


def test_sources_are_named_by_the_settings_that_differ(run: Run, tmp_path: Path) -> None:
    rows = [
        {"item": "a", "scores": [2, 1], "sample": 0, "model": "m", "temperature": 1, "key": f"{orders}{most}",
         "order": [0, 1], "sampling": {"top_p": 1.0, "max_tokens": most, "orders": orders}}
        for orders, most in (("balanced", 64), ("fixed", 64))
    ]  # fmt: skip
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "i.jsonl").write_text('{"id": "a", "prompt": "p", "responses": ["x", "y"], "best": 0}\n')
    done = run("vote", tmp_path / "j.jsonl", "--items", tmp_path / "i.jsonl", "-k", "1,4,8")
    for plan in ("balanced", "fixed"):
        name = f"pairs \u00b7 m \u00b7 T = 1 \u00b7 {plan} orders"
        assert f"votes: {name} " in done.out
        assert f"{name}: no line for k = 4, 8: no item has more than 1 samples." in done.out
    assert done.out.count("the orders do not tell position bias") == 2


def test_world(run: Run, tmp_path: Path) -> None:
    assert run("world", "generate", "-c", 5, "-n", "2-4", "-o", tmp_path / "w.jsonl").code == 0
    rows = lines(tmp_path / "w.jsonl")
    assert len(rows) == 5
    assert all(2 <= len(r["responses"]) <= 4 and r["source"]["world"] == "rubric" for r in rows)
    shown = run("world", "show", "-c", 1)
    assert "query:" in shown.out
    assert "reward" in shown.out
    assert run("world", "generate", "-n", "2-9").code == 2
    assert run("world", "generate", "-n", "x").code == 2


def test_malformed_rows_stop_before_anything_is_asked_or_are_skipped_and_counted(
    run: Run, server: FakeServer, items: Path, tmp_path: Path
) -> None:
    with open(items, "a") as file:
        file.write('{"prompt": "no responses"}\nnot json\n')
    words = ("judge", items, "-o", tmp_path / "v.jsonl", "--engine", "openai", "--base-url", server.base_url,
             "--model", "m", "-k", 1, "-q")  # fmt: skip
    stopped = run(*words)
    assert stopped.code == 1
    assert f"{items}:13: " in stopped.err
    assert len(stopped.err.strip().splitlines()) == 1
    assert server.asked == 0
    assert not (tmp_path / "v.jsonl").exists()
    skipped = run(*words, "--on-bad", "skip")
    assert skipped.code == 0
    assert skipped.err.count("skipped ") == 2
    assert len(lines(tmp_path / "v.jsonl")) == 12


def test_a_server_that_answers_garbage_now_and_then(run: Run, items: Path, tmp_path: Path) -> None:
    def text(body: Body, index: int) -> str:
        return "Scores: \\boxed{3, 9}" if body["seed"] % 3 else "I cannot say."

    with FakeServer(text=text) as server:
        done = run("judge", items, "-o", tmp_path / "v.jsonl", "--engine", "openai", "--base-url", server.base_url,
                   "--model", "m", "-k", 8, "-q", "--json")  # fmt: skip
    assert done.code == 0
    assert 0 < done.json["missing"]["unparsable"] < 96
    verdicts = lines(tmp_path / "v.jsonl")
    assert sum(v["asked"] - v["valid"] for v in verdicts) == done.json["missing"]["unparsable"]


INTERRUPTED = [sys.executable, "-m", "opengrm", "judge", "{items}", "-o", "{out}", "--engine", "openai"]


def test_ctrl_c_keeps_what_was_judged_and_the_same_command_goes_on(items: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "v.jsonl"
    with FakeServer(latency=0.2) as server:
        words = [w.format(items=items, out=out) for w in INTERRUPTED]
        words += ["--base-url", server.base_url, "--model", "m", "-k", "8", "--concurrency", "4", "-q"]
        code, err = interrupted(words, server)
        assert code == 130, err
        assert "run the same command to go on" in err
        assert not out.exists()
        kept = int(err.split("interrupted; ")[1].split(" ")[0])
        assert 0 < kept < 96
        server.latency, server.asked = 0.0, 0
        assert subprocess.run(words, capture_output=True).returncode == 0
        assert server.asked == 96 - kept
    assert len(lines(out)) == 12


def test_output_to_a_closed_pipe_is_no_error(items: Path) -> None:
    command = f"{sys.executable} -m opengrm world generate -c 20000 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert json.loads(done.stdout)["responses"]
    assert "Traceback" not in done.stderr


def test_help_loads_nothing_heavy() -> None:
    heavy = "torch", "transformers", "numpy", "matplotlib", "httpx", "jinja2", "pyarrow", "zstandard"
    code = (
        "import sys; sys.argv = ['opengrm', '--help']\n"
        "import opengrm\nfrom opengrm.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"
    assert "judge" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(run: Run, tmp_path: Path) -> None:
    done = run("world", "generate", "-c", 5000, "-o", "/dev/full")
    assert done.code == 1
    assert done.err.strip() == "opengrm: error: /dev/full: No space left on device"


def test_choices_are_the_librarys() -> None:
    from opengrm.cli import judge_options, options
    from opengrm.engines import EngineKind
    from opengrm.voting import OrderKind, Reducer

    assert (options.Orders, judge_options.EngineName) == (OrderKind, EngineKind)
    assert get_args(options.Reduce) == (*get_args(Reducer), "meta")  # guided votes are no reducer: `voting/guided.py`
