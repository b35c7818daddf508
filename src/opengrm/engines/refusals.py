"""What a server's refusal teaches: which spelling of a request it takes, and how much room a prompt leaves.

Servers differ in the fields that they know, and say so only when asked: newer OpenAI models want
`max_completion_tokens` for `max_tokens`, Mistral's API knows no `seed`, and vLLM refuses a limit that does not fit
behind the prompt, where other servers shorten it. Such a request is written anew instead of being given up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

LEAST_ROOM = 16  # fewer tokens than this are no answer worth searching for


@dataclass(frozen=True, slots=True)
class Form:
    """How the fields of a request that servers disagree about are written.

    Attributes:
        limit: the name of the field for the most new tokens.
        seed: whether a seed is sent.
        most: the most new tokens; None sends no limit.
    """

    limit: str = "max_tokens"
    seed: bool = True
    most: int | None = None


def corrected(form: Form, message: str) -> tuple[Form, str] | None:
    """The form that the server asks for and a note about it; None if the refusal is about something else."""
    text = message.lower()
    if not any(phrase in text for phrase in _UNKNOWN_FIELD):
        return None
    if form.limit == "max_tokens" and re.search(r"\bmax_tokens\b", text):
        return replace(form, limit="max_completion_tokens"), "does not take max_tokens: max_completion_tokens is sent"
    if form.seed and re.search(r"\bseed\b", text):
        return replace(form, seed=False), "does not take a seed: its samples cannot be repeated"
    return None


_UNKNOWN_FIELD = (
    "unsupported parameter", "not supported", "unknown", "unrecognized", "unexpected", "extra_forbidden",
    "extra inputs", "extra fields", "not permitted", "not allowed",
)  # fmt: skip


def is_too_long(status: int, message: str) -> bool:
    """Whether prompt and answer together do not fit the model's context."""
    return status in (400, 413, 422) and any(phrase in message.lower() for phrase in _TOO_LONG)


_TOO_LONG = (
    "context length", "context_length", "context size", "context window", "context_size", "too long", "max_model_len",
    "maximum model length", "longer than the maximum", "maximum input length", "max_position_embeddings",
)  # fmt: skip


def room_left(message: str, most: int | None) -> int | None:
    """How many new tokens to ask for after a refusal of `most`, where the message says how long the prompt is.

    vLLM stops counting a prompt that does not fit ("at least 3097 input tokens"): then half of `most` is tried.

    Returns:
        Fewer than `most`; None if the prompt leaves no room or the message does not tell.
    """
    context = re.search(r"maximum context length (?:is|of) (\d+)", message)
    prompt = re.search(r"(at least )?(\d+) (?:input tokens|tokens from the input|in the (?:messages|prompt))", message)
    if most is None or context is None or prompt is None:
        return None
    room = int(context[1]) - int(prompt[2])
    if prompt[1] is None and room < most:
        return room if room > 0 else None
    return most // 2 if room > 0 and most // 2 >= LEAST_ROOM else None
