"""Reading the answer of `/v1/chat/completions`: nothing in it is taken for granted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opengrm.engines.base import Alternatives
from opengrm.engines.http import Answer, server_message
from opengrm.engines.pieces import served_pieces
from opengrm.engines.pool import Misunderstood

# "eos" and its like: older text-generation-inference. A judge may be set up with tools, which end a turn as well.
_STOPPED = (None, "stop", "eos", "eos_token", "tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Choice:
    """One sample of an answer; `error` is set where the server itself ended the text.

    `logprobs`, `pieces` and `alternatives` are as on a `Completion`; each None where the server does not give it.
    """

    text: str
    finish: str
    error: str | None
    logprobs: tuple[float, ...] | None
    prompt_tokens: int
    completion_tokens: int
    pieces: tuple[str, ...] | None = None
    alternatives: tuple[Alternatives, ...] | None = None


def read_answer(body: bytes, *, wanted: int = 1) -> list[Choice]:
    """The first `wanted` choices of a chat completion, in the order of their indices.

    Counts of tokens: a single choice has the server's count; several have the length of their log-probabilities where
    they come with any, else an equal share of the server's count (llama-server counts the first choice only).

    Raises:
        Misunderstood: the body is not a chat completion.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise Misunderstood("server", f"the answer is not JSON: {_shown(body)}") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
        raise Misunderstood("server", f"the answer has no choices: {_shown(body)}")
    if all(type(c.get("index")) is int for c in choices):
        choices = sorted(choices, key=lambda c: c["index"])
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_tokens, all_tokens = _whole(usage.get("prompt_tokens")), _whole(usage.get("completion_tokens"))
    found = []
    for choice in choices[:wanted]:
        text, logprobs, reason = _text(choice, body), _logprobs(choice), choice.get("finish_reason")
        if len(choices) == 1:
            tokens = all_tokens or len(logprobs or ())
        else:
            tokens = all_tokens // len(choices) if logprobs is None else len(logprobs)
        finish = "length" if reason == "length" else "stop" if reason in _STOPPED else "error"
        error = _ended(reason) if finish == "error" else None
        read = Choice(text, finish, error, logprobs, prompt_tokens, tokens)
        found.append(read if logprobs is None else _in_pieces(read, choice["logprobs"]["content"]))
    return found


def _ended(reason: object) -> str:
    """The error of a text that neither the model nor its limit ended: half a judgment is no judgment."""
    if reason == "content_filter":
        return "server: its content filter ended the text"
    return f"server: it ended the text with finish_reason {ascii(reason)[:60]}"


def _text(choice: Mapping[str, Any], body: bytes) -> str:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Misunderstood("server", f"the answer has a choice without a message: {_shown(body)}")
    text = message.get("content")
    if text is None:  # all tokens went into hidden reasoning, or the model refused
        return ""
    if not isinstance(text, str):
        raise Misunderstood("server", f"the answer has a message whose content is not text: {_shown(body)}")
    # A lone surrogate is legal JSON, but no UTF-8: the ledger could not keep it.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _logprobs(choice: Mapping[str, Any]) -> tuple[float, ...] | None:
    value = choice.get("logprobs")
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, list):
        return None
    numbers = [entry.get("logprob") if isinstance(entry, dict) else None for entry in content]
    finite = tuple(float(x) for x in numbers if isinstance(x, (int, float)) and math.isfinite(x))
    return finite if len(finite) == len(numbers) else None


def _in_pieces(choice: Choice, content: Sequence[Mapping[str, Any]]) -> Choice:
    """With the text of each token, and with its alternatives, if every entry has them."""
    tokens = [_bytes(entry) for entry in content]
    pieces = None if None in tokens else served_pieces([token for token in tokens if token is not None], choice.text)
    places = [_alternatives(entry.get("top_logprobs")) for entry in content]
    some = tuple(place for place in places if place is not None)
    return replace(choice, pieces=pieces, alternatives=some if len(some) == len(places) else None)


def _alternatives(entries: object) -> Alternatives | None:
    if not isinstance(entries, list):
        return None
    found = []
    for entry in entries:
        token = _bytes(entry) if isinstance(entry, dict) else None
        logprob = entry.get("logprob") if isinstance(entry, dict) else None
        if token is not None and isinstance(logprob, (int, float)) and math.isfinite(logprob):
            found.append((token.decode("utf-8", "replace"), float(logprob)))
    return tuple(found)


def _bytes(entry: Mapping[str, Any]) -> bytes | None:
    """A token's own bytes: its text alone cannot say them where it holds a part of a character."""
    raw, token = entry.get("bytes"), entry.get("token")
    if isinstance(raw, list) and all(type(b) is int and 0 <= b < 256 for b in raw):
        return bytes(raw)
    return token.encode("utf-8", "replace") if isinstance(token, str) else None


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0


def _shown(body: bytes) -> str:
    """The beginning of a body that makes no sense, on one line."""
    return server_message(Answer(200, {}, body))[:120] or "it is empty"
