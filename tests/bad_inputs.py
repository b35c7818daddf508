"""Files that cannot be used, and the one line that each must give; `{path}` stands for the file.

A message that ends in "*" need only begin so: the rest comes from a library and changes with its version.
"""

# ruff: noqa: E501
from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

GOOD = b'{"id": "a", "prompt": "p", "responses": ["x", "y"], "best": 0}\n'
FOLDER = "folder"


@dataclass(frozen=True)
class BadInput:
    """A file to make, and what reading it says.

    `content` is bytes, None for no file at all, or FOLDER.
    """

    name: str
    file: str
    content: bytes | str | None
    said: str
    kind: str = "items"
    exit_code: int = 1

    def make(self, folder: Path) -> Path:
        path = folder / self.file
        if self.content == FOLDER:
            path.mkdir()
        elif isinstance(self.content, bytes):
            path.write_bytes(self.content)
        return path

    def matches(self, message: str, path: Path) -> bool:
        expected = self.said.replace("{path}", str(path))
        return message.startswith(expected[:-1]) if expected.endswith("*") else message == expected


def row(**changes: Any) -> bytes:
    return json.dumps({"prompt": "p", "responses": ["x", "y"], **changes}).encode() + b"\n"


def line(name: str, content: bytes, said: str) -> BadInput:
    """A good row and then this one, in a plain JSON Lines file."""
    return BadInput(name, "i.jsonl", GOOD + content, "{path}:2: " + said)


def message(**changes: Any) -> bytes:
    return row(prompt=[{"role": "user", "content": "hi"}, {"role": "user", "content": "p", **changes}])


ROLES = "expected one of system, developer, user, assistant, tool"

LINES = [
    line("a cut-off line", b'{"prompt": "p", "responses": ["x"', "not JSON: expecting ',' delimiter at column 34"),
    line("an unfinished text", b'{"prompt": "p\n', "not JSON: unterminated string starting at column 12"),
    line("a bare word", b"hello\n", "not JSON: expecting value at column 1"),
    line("two objects on a line", b'{"a": 1} {"b": 2}\n', "not JSON: extra data at column 10"),
    line("NaN", row(rewards=[float("nan"), 1]), "not JSON: NaN is no JSON number"),
    line("minus infinity", row(rewards=[float("-inf"), 1]), "not JSON: -Infinity is no JSON number"),
    line("1e999", b'{"prompt": "p", "responses": ["x"], "rewards": [1e999]}\n', "not usable: the number 1e999 is too large"),
    line("a huge whole number", b'{"id": ' + b"9" * 5000 + b"}\n", "not usable: a number of 5,000 digits is too large"),
    line("a key twice", b'{"best": 0, "best": 1}\n', "not usable: the key 'best' stands twice in one object"),
    line("an array", b"[1, 2]\n", "expected a JSON object, found an array"),
    line("a text", b'"hello"\n', "expected a JSON object, found a string"),
    line("null", b"null\n", "expected a JSON object, found null"),
    line("a byte that is not UTF-8", b'{"prompt": "\xff"}\n', "not UTF-8: byte 0xff at offset 12"),
    line("Latin-1", '{"prompt": "naïve"}\n'.encode("latin-1"), "not UTF-8: byte 0xef at offset 14"),
    line("half a surrogate pair", row(prompt="\ud800"), "not usable: a text holds half of a surrogate pair, which is no Unicode character"),
    line("half a pair in a key", row(extra={"\udc00": 1}), "not usable: a text holds half of a surrogate pair, which is no Unicode character"),
    line("65 levels", row(deep=json.loads("[" * 65 + "]" * 65)), "not usable: nested deeper than 64 levels"),
    line("900 levels", row(deep=json.loads("[" * 900 + "]" * 900)), "not usable: nested deeper than 64 levels"),
    line("100,000 levels", b"[" * 100_000 + b"]" * 100_000 + b"\n", "not usable: nested deeper than 64 levels"),
    line("no responses", row(responses=[]), "'responses' is empty: an item needs at least one response"),
    line("responses that are a text", row(responses="x"), "'responses' must be a list of strings"),
    line("a response that is a number", row(responses=["x", 3]), "'responses' must be a list of strings"),
    line("a response that is null", row(responses=["x", None]), "'responses' must be a list of strings"),
    line("no prompt", b'{"responses": ["x"]}\n', "'prompt' must be a string or a list of messages"),
    line("a prompt that is a number", row(prompt=3), "'prompt' must be a string or a list of messages"),
    line("an empty conversation", row(prompt=[]), "'prompt' is an empty list of messages"),
    line("a message without content", row(prompt=[{"role": "user"}]), "'prompt' holds a message without 'role' and 'content'"),
    line("an unknown role", message(role="king"), f"'prompt' holds a message of role 'king': {ROLES}"),
    line("content that is a number", message(content=3), "'prompt' holds a message whose content is not text"),
    line("content that is an image", message(content=[{"type": "image_url"}]), "'prompt' holds a message with a part that is not text"),
    line("best beyond the end", row(best=2), "'best' is 2, but there are 2 responses (0..1)"),
    line("a negative best", row(best=-1), "'best' is -1, but there are 2 responses (0..1)"),
    line("best that is a word", row(best="first"), "'best' must be an index, not 'first'"),
    line("best that is true", row(best=True), "'best' must be an index, not True"),
    line("best that is a half", row(best=0.5), "'best' must be an index, not 0.5"),
    line("best that is not the highest reward", row(best=0, rewards=[1, 2]), "'best' is 0, but 'rewards' has a higher one elsewhere"),
    line("a reward whose square is infinite", row(rewards=[1e200, 0]), "'rewards' holds a number beyond 1e+100"),
    line("too few rewards", row(rewards=[1.0]), "'rewards' has 1 numbers for 2 responses"),
    line("rewards that are words", row(rewards=["1", "2"]), "'rewards' must be a list of numbers, one for each response"),
    line("a reference that is a list", row(reference=["r"]), "'reference' must be a string"),
    line("principles that are a text", row(principles="be kind"), "'principles' must be a list of strings"),
    line("a source that is a text", row(source="web"), "'source' must be an object"),
    line("an id that is a list", row(id=["a"]), "'id' must be a string or a whole number, not ['a']"),
    line("one id, two contents", row(id="a", prompt="other"), "the id 'a' was there before with other content"),
    line("unknown columns", b'{"question": "q", "answer": "a"}\n', "no known schema has the keys 'question', 'answer'. Known are *"),
    line("a prompt alone", b'{"prompt": "p"}\n', "no known schema has the keys 'prompt'. Known are *"),
]  # fmt: skip

FILES = [
    BadInput("a missing file", "none.jsonl", None, "{path}: no such file", exit_code=2),
    BadInput("a missing array", "none.json", None, "{path}: no such file", exit_code=2),
    BadInput("a missing Parquet", "none.parquet", None, "{path}: no such file", exit_code=2),
    BadInput("a folder", "items.jsonl", FOLDER, "{path}: is a folder, expected a file", exit_code=2),
    BadInput("a folder named Parquet", "items.parquet", FOLDER, "{path}: is a folder, expected a file", exit_code=2),
    BadInput("an empty file", "i.jsonl", b"", "{path}: no rows"),
    BadInput("blank lines only", "i.jsonl", b"\n  \r\n", "{path}: no rows"),
    BadInput("an empty array", "i.json", b"[]", "{path}: no rows"),
    BadInput("an empty .json file", "i.json", b"", "{path}: no rows"),
    BadInput("UTF-16", "i.jsonl", GOOD.decode().encode("utf-16"), "{path}:1: not UTF-8: byte 0xff at offset 0"),
    BadInput("a gzip that is none", "i.jsonl.gz", GOOD, "{path}: cannot be decompressed: *"),
    BadInput("a cut-off gzip", "i.jsonl.gz", gzip.compress(GOOD * 1000)[:-20], "{path}: cannot be decompressed: *"),
    BadInput("a damaged gzip", "i.jsonl.gz", gzip.compress(GOOD)[:-6] + b"\0" * 6, "{path}: cannot be decompressed: *"),
    BadInput("a zstd that is none", "i.jsonl.zst", GOOD, "{path}: cannot be decompressed: *"),
    BadInput("a cut-off zstd", "i.jsonl.zst", zstandard.compress(GOOD * 1000)[:-2],
             "{path}: cannot be decompressed: the file ends before the end of its last frame"),
    BadInput("a cut-off second frame", "i.json.zst", zstandard.compress(b"[") + zstandard.compress(GOOD)[:-2],
             "{path}: cannot be decompressed: the file ends before the end of its last frame"),
    BadInput("a Parquet that is none", "i.parquet", GOOD, "{path}: not a readable Parquet file: *"),
    BadInput("a packed Parquet", "i.parquet.gz", GOOD, "{path}: Parquet is compressed inside; unpack the .gz", exit_code=2),
    BadInput("a broken array", "i.json", b"[\n{]", "{path}: not JSON: *"),
    BadInput("lines in a .json file", "i.json", GOOD * 2,
             "{path}: not JSON: extra data at line 2, column 1; if this is one object a line, name the file .jsonl"),
    BadInput("an array with a bad element", "i.json", b"[" + GOOD + b", 7]", "{path}[1]: expected a JSON object, found a number"),
    BadInput("an array with a bad item", "i.json.gz", gzip.compress(b"[" + GOOD + b"," + row(best=9) + b"]"),
             "{path}[1]: 'best' is 9, but there are 2 responses (0..1)"),
]  # fmt: skip


def vote(name: str, content: bytes, said: str) -> BadInput:
    return BadInput(name, "j.jsonl", content + b"\n", "{path}:1: " + said, kind="judgments")


JUDGMENTS = [
    vote("no scores", b'{"item": "a"}', "a judgment needs 'item' and 'scores'"),
    vote("no item", b'{"scores": [1]}', "a judgment needs 'item' and 'scores'"),
    vote("an empty item", b'{"item": "", "scores": [1]}', "'item' is empty"),
    vote("an item that is a list", b'{"item": ["a"], "scores": [1]}', "'id' must be a string or a whole number, not ['a']"),
    vote("scores that are words", b'{"item": "a", "scores": ["1"]}', "'scores' must be a list of numbers, or null for a missing judgment"),
    vote("scores that are one number", b'{"item": "a", "scores": 7}', "'scores' must be a list of numbers, or null for a missing judgment"),
    vote("scores that are booleans", b'{"item": "a", "scores": [true]}', "'scores' must be a list of numbers, or null for a missing judgment"),
    vote("empty scores", b'{"item": "a", "scores": []}', "'scores' is empty"),
    vote("an order that is none", b'{"item": "a", "scores": [1, 2], "order": [1, 1]}', "'order' [1, 1] is not a permutation"),
    vote("an order that counts from 1", b'{"item": "a", "scores": [1, 2], "order": [1, 2]}', "'order' [1, 2] is not a permutation"),
    vote("an order of other length", b'{"item": "a", "scores": [1, 2], "order": [0]}', "'order' has 1 places for 2 scores"),
    vote("an order of words", b'{"item": "a", "scores": [1, 2], "order": ["0"]}', "'order' must be a list of response indices"),
    vote("a sample that is a word", b'{"item": "a", "scores": [1], "sample": "x"}', "'sample' must be int, not 'x'"),
    vote("a meta that is a word", b'{"item": "a", "scores": [1], "meta": "high"}', "'meta' must be int or float, not 'high'"),
]  # fmt: skip

BAD_INPUTS = [*LINES, *FILES, *JUDGMENTS]
