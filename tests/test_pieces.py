"""Pieces: the text of each token, whatever the vocabulary does, and what of it a server's tokens are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from opengrm.engines.answers import read_answer
from opengrm.engines.pieces import served_pieces, token_pieces


def test_bytes_of_one_character_go_to_the_token_that_completes_it() -> None:
    tokens = [b"a", b"\xe2", b"\x82", b"\xac", b"b"]  # the euro sign in three tokens

    def decode(ids: Sequence[int]) -> str:
        return b"".join(tokens[i] for i in ids).decode("utf-8", "replace")

    assert token_pieces(decode, range(5)) == ("a", "", "", "€", "b")
    assert token_pieces(decode, range(3)) == ("a", "", "\ufffd")  # cut off inside
    assert token_pieces(decode, ()) == ()


def test_a_decoder_that_drops_the_first_space_and_skips_special_tokens() -> None:
    words = ["▁He", "llo", "<s>", "▁you", "▁2"]

    def decode(ids: Sequence[int]) -> str:
        text = "".join(words[i] for i in ids if words[i] != "<s>").replace("▁", " ")
        return text[1:] if text.startswith(" ") else text

    assert token_pieces(decode, range(5)) == ("He", "llo", "", " you", " 2")


def test_a_decoder_that_writes_tokens_together_otherwise() -> None:
    assert token_pieces(lambda ids: "x" * (len(ids) % 2), range(4)) is None


@pytest.mark.parametrize(
    ("tokens", "text", "pieces"),
    [
        ([b"\\box", b"ed{", b"2", b"}"], "\\boxed{2}", ("\\box", "ed{", "2", "}")),
        ([b"ab", b"<|im_end|>"], "ab", ("ab", "")),
        ([b"<think>", b"1", b"</think>", b" 1", b"2"], "12", ("", "", "", "1", "2")),  # hidden thoughts, and a strip
        ([b"x\xe2", b"\x82\xac", b"y"], "x€y", ("x", "€", "y")),
        ([b"x\xe2"], "x\ufffd", ("x\ufffd",)),
        ([b"other"], "text", None),
        ([], "", ()),
    ],
)
def test_what_a_server_gives(tokens: list[bytes], text: str, pieces: tuple[str, ...] | None) -> None:
    assert served_pieces(tokens, text) == pieces


def test_an_answer_with_log_probabilities() -> None:
    import json

    content = [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.5}]},
        {
            "token": "\\xe2\\x82",
            "logprob": -1.5,
            "bytes": [0xE2, 0x82],
            "top_logprobs": [
                {"token": "\\xe2\\x82", "logprob": -1.5, "bytes": [0xE2, 0x82]},
                {"token": "b", "logprob": -2, "bytes": None},
                {"token": "c", "logprob": None},
                "no entry",
            ],
        },
        {"token": "?", "logprob": -2.5, "bytes": [0xAC], "top_logprobs": []},
    ]
    choice = {"index": 0, "message": {"content": "a€"}, "finish_reason": "stop", "logprobs": {"content": content}}
    (read,) = read_answer(json.dumps({"choices": [choice]}).encode())
    assert read.pieces == ("a", "", "€")
    assert read.alternatives == ((("a", -0.5),), (("\ufffd", -1.5), ("b", -2.0)), ())
    for entry in content:
        del entry["top_logprobs"]
    content[0]["token"], content[0]["bytes"] = None, [999]
    (read,) = read_answer(json.dumps({"choices": [choice]}).encode())
    assert read.logprobs == (-0.5, -1.5, -2.5)
    assert (read.pieces, read.alternatives) == (None, None)
