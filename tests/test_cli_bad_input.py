"""Bad input at the front door: each gives one clear line and the right exit code, and no model is asked.

A row is (name, how to make the call, the code, what the line must say). `{items}` and `{dir}` are filled in.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_server import DROP, FakeServer, failure, reply
from test_cli import Run, run, server

__all__ = ["run", "server"]  # fixtures

GOOD = b'{"id": "a", "prompt": "p", "responses": ["x", "y"], "best": 0}\n'


def row(**changes: Any) -> bytes:
    return json.dumps({"prompt": "p", "responses": ["x", "y"], **changes}).encode() + b"\n"


# name, file name, content, what standard error must say after the place
FILES: list[tuple[str, str, bytes, str]] = [
    ("broken JSON", "i.jsonl", GOOD + b'{"prompt": "p", "responses": ["x"', "i.jsonl:2: not JSON"),
    ("not an object", "i.jsonl", b"[1, 2]\n", "i.jsonl:1: expected a JSON object"),
    ("a bare word", "i.jsonl", b"hello\n", "i.jsonl:1: not JSON"),
    ("NaN", "i.jsonl", b'{"prompt": "p", "responses": ["x"], "rewards": [NaN]}\n', "i.jsonl:1: not JSON: NaN"),
    ("an infinite reward", "i.jsonl", b'{"prompt": "p", "responses": ["x"], "rewards": [1e999]}\n', "too large"),
    ("wrong UTF-8", "i.jsonl", b'{"prompt": "\xff", "responses": ["x"]}\n', "i.jsonl:1: not UTF-8"),
    ("Latin-1", "i.jsonl", '{"prompt": "naïve", "responses": ["x"]}\n'.encode("latin-1"), "not UTF-8"),
    ("UTF-16", "i.jsonl", GOOD.decode().encode("utf-16"), "not UTF-8"),
    ("half a surrogate pair", "i.jsonl", b'{"prompt": "\\ud800", "responses": ["x"]}\n', "surrogate"),
    ("nested too deeply", "i.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"\n", "i.jsonl:1: not"),
    ("no responses", "i.jsonl", row(responses=[]), "'responses' is empty"),
    ("responses that are no list", "i.jsonl", row(responses="x"), "'responses' must be a list"),
    ("a response that is no text", "i.jsonl", row(responses=["x", 3]), "'responses' must be a list of strings"),
    ("a response that is null", "i.jsonl", row(responses=["x", None]), "'responses' must be a list of strings"),
    ("no prompt", "i.jsonl", b'{"responses": ["x"]}\n', "i.jsonl:1: "),
    ("a prompt that is a number", "i.jsonl", row(prompt=3), "'prompt' must be a string or a list of messages"),
    ("an empty conversation", "i.jsonl", row(prompt=[]), "empty list of messages"),
    ("an unknown role", "i.jsonl", row(prompt=[{"role": "king", "content": "x"}]), "role 'king'"),
    ("an image part", "i.jsonl", row(prompt=[{"role": "user", "content": [{"type": "image_url"}]}]), "not text"),
    ("best beyond the end", "i.jsonl", row(best=2), "'best' is 2, but there are 2 responses"),
    ("a negative best", "i.jsonl", row(best=-1), "'best' is -1"),
    ("best that is a word", "i.jsonl", row(best="first"), "'best' must be an index"),
    ("best that is true", "i.jsonl", row(best=True), "'best' must be an index"),
    ("too few rewards", "i.jsonl", row(rewards=[1.0]), "'rewards' has 1 numbers for 2 responses"),
    ("rewards that are words", "i.jsonl", row(rewards=["1", "2"]), "'rewards' must be a list of numbers"),
    ("an id that is a list", "i.jsonl", row(id=["a"]), "'id' must be"),
    ("one id, two contents", "i.jsonl", GOOD + row(id="a", prompt="other"), "i.jsonl:2: the id 'a'"),
    ("unknown columns", "i.jsonl", b'{"question": "q", "answer": "a"}\n', "i.jsonl:1: "),
    ("an empty file", "i.jsonl", b"", "no rows"),
    ("blank lines only", "i.jsonl", b"\n  \n", "no rows"),
    ("a gzip that is none", "i.jsonl.gz", GOOD, "cannot be decompressed"),
    ("a cut-off gzip", "i.jsonl.gz", gzip.compress(GOOD * 1000)[:-20], "cannot be decompressed"),
    ("a zstd that is none", "i.jsonl.zst", GOOD, "cannot be decompressed"),
    ("a Parquet that is none", "i.parquet", GOOD, "not a readable Parquet file"),
    ("a broken array", "i.json", b"[{]", "not JSON"),
    ("an array with a bad element", "i.json", b"[" + GOOD.strip() + b", 7]", "i.json[1]: expected a JSON object"),
]


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    assert line.startswith("opengrm: error: ")
    return line


@pytest.mark.parametrize(("file", "content", "said"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_files(run: Run, server: FakeServer, tmp_path: Path, file: str, content: bytes, said: str) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    done = run("judge", path, "--engine", "openai", "--base-url", server.base_url, "--model", "m", "-q")
    assert done.code == 1
    assert said in one_line(done.err)
    assert done.out == ""
    assert server.asked == 0


CALLS: list[tuple[str, list[str], int, str]] = [
    ("no items", [], 2, "give either a file of items"),
    ("both ways at once", ["{items}", "--prompt", "p", "--response", "x"], 2, "give either"),
    ("a prompt without responses", ["--prompt", "p"], 2, "needs at least one --response"),
    ("responses without a prompt", ["{items}", "--response", "x"], 2, "go with --prompt"),
    ("a missing file", ["{dir}/none.jsonl"], 2, "none.jsonl: no such file"),
    ("a folder", ["{dir}"], 2, "is a folder"),
    ("output into a missing folder", ["{items}", "-o", "{dir}/no/v.jsonl"], 2, "does not exist"),
    ("output onto a folder", ["{items}", "-o", "{dir}", "--ledger", "{dir}/l.db"], 2, "is a folder"),
    ("a ledger that is none", ["{items}", "--ledger", "{dir}/single.jsonl"], 1, "file is not a database"),
    ("a template that is not there", ["{items}", "--template", "{dir}/none.jinja"], 2, "none.jinja"),
    ("an unknown template", ["{items}", "--template", "grn"], 2, "no template 'grn'"),
    ("a template with a syntax error", ["{items}", "--template", "{dir}/bad.jinja"], 2, "bad.jinja:"),
    ("a hint without a label", ["{dir}/unlabelled.jsonl", "--template", "grm+hint"], 1, "unlabelled.jsonl:1: "),
    ("a reference that is not there", ["{items}", "--template", "grm+reference"], 1, "i.jsonl:1: "),
    ("one response for a pair", ["{dir}/single.jsonl", "--template", "{dir}/pair.jinja"], 1, "single.jsonl:1: "),
    ("a missing model folder", ["{items}", "--engine", "transformers", "--model", "{dir}/no-model"], 1, "no-model"),
    ("a folder that is no model", ["{items}", "--engine", "transformers", "--model", "{dir}"], 1, "config.json"),
    ("output onto the items", ["{items}", "-o", "{items}"], 2, "ITEMS and --output are both the same file"),
    ("output onto a link", ["{items}", "-o", "{dir}/link.jsonl"], 2, "ITEMS and --output are both the same file"),
    ("judgments onto the items", ["{items}", "--judgments", "{dir}/../{name}/i.jsonl"], 2, "ITEMS and --judgments"),
    ("judgments onto the output", ["{items}", "-o", "{dir}/v", "--judgments", "{dir}/v"], 2, "and --judgments"),
    ("judgments onto the ledger", ["{items}", "-o", "{dir}/v.jsonl", "--judgments", "{dir}/v.ledger.db"], 2, "--led"),
    ("verdicts among judgments", ["{items}", "--judgments", "-"], 2, "are both standard output"),
    ("a ledger onto the items", ["{items}", "--ledger", "{items}"], 2, "ITEMS and --ledger are both the same file"),
    ("template variables that are no JSON", ["{items}", "--chat-template-kwargs", "{think"], 2, "is not JSON"),
    ("template variables in a list", ["{items}", "--chat-template-kwargs", "[1]"], 2, "is no JSON object"),
    ("a body that is a number", ["{items}", "--extra-body", "3"], 2, "--extra-body '3' is no JSON object"),
    ("an engine option without a value", ["{items}", "--engine-option", "tp"], 2, "'tp': expected KEY=VALUE"),
    ("an engine option twice", ["{items}", *["--engine-option", "a=1"] * 2], 2, "--engine-option: a is given twice"),
    ("an engine option for another", ["{items}", "--engine-option", "a=1"], 2, "--engine-option"),
    ("a bad top_p", ["{items}", "--top-p", "0"], 2, "top_p is 0"),
    ("no base URL", ["{items}", "--engine", "openai", "--model", "m"], 2, "needs --base-url"),
    ("a base URL that is none", ["{items}", "--engine", "openai", "--base-url", "localhost"], 2, "base URL"),
    ("a file for one item by hand", ["--prompt", "p", "--response", "r", "-o", "v.jsonl"], 2, "with a file of items"),
    ("base URL for another", ["{items}", "--engine", "vllm", "--base-url", "http://x/v1"], 2, "--base-url goes with"),
]  # fmt: skip

FRONT = "{# opengrm\nname: mine\nlow: 1\nhigh: 10\nparse: boxed\nn: 2\n#}\n"
PAIR = FRONT + "{{ conversation }} A: {{ responses[0] }} B: {{ responses[1] }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "i.jsonl").write_bytes(GOOD)
    (tmp_path / "unlabelled.jsonl").write_bytes(row())
    (tmp_path / "single.jsonl").write_bytes(row(responses=["x"]))
    (tmp_path / "bad.jinja").write_text(FRONT + "{% for r in responses %}{{ r }")
    (tmp_path / "pair.jinja").write_text(PAIR)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "i.jsonl")
    return tmp_path


@pytest.mark.parametrize(("words", "code", "said"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_calls(run: Run, folder: Path, words: list[str], code: int, said: str) -> None:
    places = {"{items}": str(folder / "i.jsonl"), "{dir}": str(folder), "{name}": folder.name}
    filled = [functools.reduce(lambda w, place: w.replace(*place), places.items(), word) for word in words]
    done = run("judge", *filled, "-q")
    assert said in one_line(done.err)
    assert done.code == code


@pytest.mark.parametrize(
    "words", [["-k", "0"], ["-k", "many"], ["--orders", "random"], ["--temperature", "-1"], ["--nonsense"]]
)
def test_options_out_of_range(run: Run, folder: Path, words: list[str]) -> None:
    done = run("judge", folder / "i.jsonl", *words)
    assert done.code == 2
    assert words[0] in done.err


def test_a_dead_server(run: Run, folder: Path) -> None:
    words = ("--engine", "openai", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    done = run("judge", folder / "i.jsonl", *words, "-q")
    assert done.code == 1
    assert "http://127.0.0.1:9/v1" in one_line(done.err)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (failure(401, "bad key"), "bad key"),
        (failure(404, "no model m"), "no model m"),
        (reply(200, "<html>hello</html>"), "http://127.0.0.1"),
    ],
    ids=["a refused key", "an unknown model", "garbage from the first answer on"],
)
def test_a_server_that_cannot_be_used(run: Run, folder: Path, fault: Any, said: str) -> None:
    (folder / "many.jsonl").write_bytes(b"".join(row(prompt=f"p{i}") for i in range(40)))
    with FakeServer(fault=lambda number, body: fault) as server:
        words = ("--engine", "openai", "--base-url", server.base_url, "--model", "m")
        done = run("judge", folder / "many.jsonl", *words, "-q")
    assert done.code == 1
    assert said in one_line(done.err)


def test_a_server_that_drops_one_sample_leaves_it_missing(run: Run, folder: Path) -> None:
    broken: list[int] = []

    def fault(number: int, body: dict[str, Any]) -> Any:
        broken.append(body["seed"]) if not broken else None
        return failure(400, "cannot do that") if body["seed"] == broken[0] else None

    with FakeServer(fault=fault) as server:
        done = run("judge", folder / "i.jsonl", "--engine", "openai", "--base-url", server.base_url, "--model", "m",
                   "-k", 4, "-q", "--json", "-o", folder / "v.jsonl")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["missing"] == {"server": 1}


def test_every_connection_dropped_leaves_it_missing_and_is_no_hang(run: Run, folder: Path) -> None:
    with FakeServer(fault=lambda number, body: DROP) as server:
        done = run("judge", folder / "i.jsonl", "--engine", "openai", "--base-url", server.base_url, "--model", "m",
                   "-k", 1, "-q", "--json", "-o", folder / "v.jsonl")  # fmt: skip
    assert done.code == 0
    assert done.json["missing"] == {"server": 1}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(run: Run, server: FakeServer, folder: Path) -> None:
    done = run("judge", folder / "i.jsonl", "-o", "/dev/full", "--ledger", folder / "l.db", "--engine", "openai",
               "--base-url", server.base_url, "--model", "m", "-q")  # fmt: skip
    assert done.code == 1
    assert "/dev/full: No space left on device" in one_line(done.err)


def test_a_huge_response_is_judged(run: Run, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "i.jsonl").write_bytes(row(responses=["x" * 5_000_000, "y"]))
    done = run("judge", tmp_path / "i.jsonl", "--engine", "openai", "--base-url", server.base_url, "--model", "m",
               "-k", 1, "-q", "-o", tmp_path / "v.jsonl", "--json")  # fmt: skip
    assert done.code == 0
    assert done.json["judgments"] == 1


BAD_VOTES: list[tuple[str, bytes, str]] = [
    ("no scores", b'{"item": "a"}\n', "needs 'item' and 'scores'"),
    ("scores that are words", b'{"item": "a", "scores": ["1"]}\n', "'scores' must be a list of numbers"),
    ("empty scores", b'{"item": "a", "scores": []}\n', "'scores' is empty"),
    ("an order that is none", b'{"item": "a", "scores": [1, 2], "order": [1, 1]}\n', "not a permutation"),
    ("an order of other length", b'{"item": "a", "scores": [1, 2], "order": [0]}\n', "'order' has 1 places"),
    ("a sample that is a word", b'{"item": "a", "scores": [1], "sample": "x"}\n', "'sample' must be"),
    ("a score whose sum is infinite", b'{"item": "a", "scores": [1e308, 1]}\n', "'scores' holds a number"),
    ("other numbers of scores", b'{"item": "a", "scores": [1, 2]}\n{"item": "a", "scores": [1]}\n', "scores for"),
]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{j}", "-o", "{j}"], "JUDGMENTS and --output"),
        (["{j}", "--items", "{i}", "-o", "{i}"], "--items and --output"),
        (["{j}", "--plot", "{j}"], "JUDGMENTS and --plot"),
        (["{j}", "-o", "{p}", "--plot", "{p}"], "--output and --plot"),
        (["{j}", "-o", "-"], "give the verdicts a file"),
    ],
)
def test_votes_do_not_overwrite_what_they_read(run: Run, tmp_path: Path, words: list[str], said: str) -> None:
    paths = {"{j}": tmp_path / "j.jsonl", "{i}": tmp_path / "i.jsonl", "{p}": tmp_path / "p.png"}
    paths["{j}"].write_text('{"item": "a", "scores": [1, 2]}\n')
    paths["{i}"].write_bytes(GOOD)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("vote", *[paths.get(word, word) for word in words])
    assert done.code == 2
    assert said in one_line(done.err)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_export_does_not_overwrite_its_ledger(run: Run, tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"item": "a", "scores": [1, 2]}\n')
    assert run("ledger", "import", tmp_path / "j.jsonl", tmp_path / "l.db").code == 0
    done = run("ledger", "export", tmp_path / "l.db", "-o", tmp_path / "l.db")
    assert (done.code, "LEDGER and --output are both the same file" in done.err) == (2, True)
    assert run("ledger", "info", tmp_path / "l.db").code == 0


@pytest.mark.parametrize(("content", "said"), [v[1:] for v in BAD_VOTES], ids=[v[0] for v in BAD_VOTES])
def test_recorded_votes(run: Run, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "j.jsonl").write_bytes(content)
    done = run("vote", tmp_path / "j.jsonl")
    assert done.code == 1
    assert said in one_line(done.err)
