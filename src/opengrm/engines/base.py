"""The engine interface: where tokens and logits come from. An engine knows nothing about judging.

One `Request` is one distinct prompt and the seeds of all samples wanted from it, so that an engine can prefill the
prompt once. `Engine.generate` pulls requests lazily (it keeps only as many in flight as it can work on) and yields a
`Completion` for each sample as it finishes, in any order. A sample's text depends on its prompt, its settings and its
seed, not on what else is in flight.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from opengrm.items import Message

HOTTEST = 1000.0  # beyond it sampling is uniform for all purposes
MOST_ALTERNATIVES = 20  # servers give no more
LEAST_TOP_P = 1e-6  # below it float32 may leave no token
MOST_TOKENS = 2**31 - 1


Alternatives = tuple[tuple[str, float], ...]  # texts of tokens with their log-probabilities


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample.

    Attributes:
        temperature: >= 0; 0 is greedy. The paper samples at 0.5 (its appendix); RubricWorld at 1.
        top_p: in (0, 1]; 1 switches the nucleus off.
        max_tokens: most new tokens of a completion.
        logprobs: also return the log-probability of each new token under the unscaled model distribution.
        alternatives: with logprobs, also those of so many most likely tokens in each place.
    """

    temperature: float = 0.5
    top_p: float = 1.0
    max_tokens: int = 1024
    logprobs: bool = False
    alternatives: int = 0

    def __post_init__(self) -> None:
        # 1 and 1.0, or 0.0 and -0.0, are the same setting: they must not give two keys.
        object.__setattr__(self, "temperature", float(self.temperature) + 0.0)
        object.__setattr__(self, "top_p", float(self.top_p))
        if not 0 <= self.temperature <= HOTTEST:
            raise ValueError(f"temperature is {self.temperature}, expected a finite number, 0 (greedy) to {HOTTEST:g}")
        if not LEAST_TOP_P <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected {LEAST_TOP_P:g} to 1")
        if not 1 <= self.max_tokens <= MOST_TOKENS:
            raise ValueError(f"max_tokens is {self.max_tokens}, expected 1 to {MOST_TOKENS}")
        if not 0 <= self.alternatives <= (MOST_ALTERNATIVES if self.logprobs else 0):
            raise ValueError(
                f"alternatives is {self.alternatives}, expected 0 to {MOST_ALTERNATIVES}, and 0 without logprobs"
            )


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and its samples.

    Attributes:
        id: the caller's number for this request, given back on every completion.
        messages: the chat to complete; the engine applies the model's own chat template.
        seeds: one seed for each sample wanted, in 0..2**63-1.
        sampling: settings shared by these samples.
    """

    id: int
    messages: tuple[Message, ...]
    seeds: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished (or failed) sample.

    Attributes:
        request: `Request.id`.
        index: which of the request's seeds this is.
        text: the generated text without special tokens; what there was of it if it failed. Where the chat template
            itself opened a `<think>` block for the model, the text begins with `<think>`, as if the model had.
        finish: "stop" (the model ended it), "length" (token limit), or "error".
        error: None, or "<kind>: <detail>" with a kind of `judgments.py` (timeout, server, too_long).
        prompt_tokens, completion_tokens: counts; 0 where the server does not tell.
        token_ids: generated ids without the end token, where the engine knows them.
        logprobs: one per generated token, end token included, where asked for and available.
        pieces: one per log-probability: what of `text` that token is, together all of it (`pieces.py`); None where
            the engine cannot tell.
        alternatives: one per log-probability: the most likely tokens in its place, each by its text and
            log-probability, where asked for and available; the generated one may or may not be among them.
        seconds: wall-clock time from the request's start to this sample's end.
    """

    request: int
    index: int
    text: str
    finish: str
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    pieces: tuple[str, ...] | None = None
    alternatives: tuple[Alternatives, ...] | None = None
    seconds: float = 0.0


class Engine(Protocol):
    """Anything that completes chats. `model` identifies the weights and goes into every judgment's key."""

    @property
    def model(self) -> str: ...

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Complete every sample of every request, in any order. Closing the generator gives up what is in flight.

        `requests` is advanced in the caller's thread.

        Raises:
            EngineError: the engine cannot go on at all. A sample that fails alone is a Completion with an error.
        """
        ...

    def close(self) -> None: ...
