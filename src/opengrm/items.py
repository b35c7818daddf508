"""Items: a conversation, its candidate responses, and perhaps a label.

An item is plain frozen data. Its `key` is a hash of what a judge can see (conversation, responses, reference, given
principles) and of nothing else: the label, the id and the source do not change it, so a judgment can be found again
by content wherever the row came from.

Example row (JSON Lines, `docs/formats.md`):

    {"id": "q1", "prompt": "Name a prime.", "responses": ["7", "8"], "best": 0}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

LARGEST = 1e100  # size of a reward: sums and squares of many stay finite
ROLES = ("system", "developer", "user", "assistant", "tool")


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def content_hash(*parts: object) -> str:
    """SHA-256 (hex, 64 characters) of the canonical JSON of `parts`: sorted keys, no spaces, UTF-8."""
    return hashlib.sha256(_canonical(parts).encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def to_json(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Item:
    """What is judged: a conversation and its 1..n candidate responses (docs/design.md, the words).

    Attributes:
        prompt: the conversation, at least one message.
        responses: the candidates, n >= 1. An empty string is a response (a model can answer nothing).
        best: index of the best response, in 0..n-1.
        rewards: a ground-truth reward for each response (n numbers of at most 1e100 in size; `best`, where given, has
            the highest). For n = 1 this is the label of Eq. 10.
        reference: a reference answer that the judge may be shown.
        principles: principles given by the user instead of self-generated ones (Eq. 8).
        id: the caller's name for the item; the content hash where none was given.
        source: where the row came from (dataset, subset, row, ..., `cluster`), kept as it is.
        extra: unknown keys of the row, written back as they were read.
    """

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    best: int | None = None
    rewards: tuple[float, ...] | None = None
    reference: str | None = None
    principles: tuple[str, ...] | None = None
    id: str = ""
    source: Mapping[str, Any] = field(default_factory=dict, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("the prompt is empty: expected a string or a list of messages")
        if not self.responses:
            raise ValueError("'responses' is empty: an item needs at least one response")
        n = len(self.responses)
        if self.best is not None and not 0 <= self.best < n:
            raise ValueError(f"'best' is {self.best}, but there are {n} responses (0..{n - 1})")
        if self.rewards is not None:
            if len(self.rewards) != n:
                raise ValueError(f"'rewards' has {len(self.rewards)} numbers for {n} responses")
            if not all(math.isfinite(r) for r in self.rewards):
                raise ValueError("'rewards' holds a number that is not finite")
            if any(abs(r) > LARGEST for r in self.rewards):
                raise ValueError(f"'rewards' holds a number beyond {LARGEST:g}")
            if self.best is not None and self.rewards[self.best] < max(self.rewards):
                raise ValueError(f"'best' is {self.best}, but 'rewards' has a higher one elsewhere")
        if not self.id:
            object.__setattr__(self, "id", self.key)

    @property
    def n(self) -> int:
        """Number of responses."""
        return len(self.responses)

    @property
    def cluster(self) -> str | None:
        """What makes items depend on one another (a shared prompt), by `source["cluster"]`: intervals go by it."""
        cluster = self.source.get("cluster")
        return None if cluster is None else str(cluster)

    @cached_property
    def key(self) -> str:
        """Hash of what a judge can see of this item; independent of label, id and source."""
        return content_hash(
            [[m.role, m.content] for m in self.prompt], self.responses, self.reference, self.principles
        )

    @property
    def label(self) -> int | None:
        """Index of the response labelled best: `best`, else the unique maximum of `rewards` (n >= 2), else None."""
        if self.best is not None:
            return self.best
        if self.rewards is None or self.n < 2:
            return None
        top = max(self.rewards)
        return self.rewards.index(top) if self.rewards.count(top) == 1 else None

    def permute(self, order: Sequence[int]) -> Item:
        """The same item with response `order[p]` at position p; the label moves along. The id stays."""
        if sorted(order) != list(range(self.n)):
            raise ValueError(f"{list(order)} is not a permutation of 0..{self.n - 1}")
        return replace(
            self,
            responses=tuple(self.responses[i] for i in order),
            rewards=None if self.rewards is None else tuple(self.rewards[i] for i in order),
            best=None if self.best is None else list(order).index(self.best),
        )

    def swap(self) -> Item:
        """A pair with its two responses exchanged."""
        if self.n != 2:
            raise ValueError(f"swap needs exactly 2 responses, this item has {self.n}")
        return self.permute((1, 0))

    def only(self, index: int) -> Item:
        """The single-response item of one candidate, as the solo form shows it. Keeps its reward, drops `best`."""
        return replace(
            self,
            responses=(self.responses[index],),
            rewards=None if self.rewards is None else (self.rewards[index],),
            best=None,
        )

    def to_json(self) -> dict[str, Any]:
        """The row of this item in OpenGRM's own schema; `item_from_json` reads it back equal."""
        row: dict[str, Any] = {"id": self.id}
        plain = len(self.prompt) == 1 and self.prompt[0].role == "user"
        row["prompt"] = self.prompt[0].content if plain else [m.to_json() for m in self.prompt]
        row["responses"] = list(self.responses)
        if self.best is not None:
            row["best"] = self.best
        if self.rewards is not None:
            row["rewards"] = list(self.rewards)
        if self.reference is not None:
            row["reference"] = self.reference
        if self.principles is not None:
            row["principles"] = list(self.principles)
        if self.source:
            row["source"] = dict(self.source)
        return {**row, **self.extra}


OWN_KEYS = frozenset({"id", "prompt", "responses", "best", "rewards", "reference", "principles", "source"})


def item_from_json(row: Mapping[str, Any]) -> Item:
    """Read one row of OpenGRM's own schema.

    Raises:
        ValueError: with a sentence that names the key and what was expected.
    """
    responses = row.get("responses")
    if not isinstance(responses, list) or not all(isinstance(r, str) for r in responses):
        raise ValueError("'responses' must be a list of strings")
    best = row.get("best")
    if isinstance(best, float) and best.is_integer():  # a column of a data frame that also holds missing labels
        best = int(best)
    if best is not None and (isinstance(best, bool) or not isinstance(best, int)):
        raise ValueError(f"'best' must be an index, not {best!r}")
    rewards = row.get("rewards")
    if rewards is not None and not (isinstance(rewards, list) and all(is_number(r) for r in rewards)):
        raise ValueError("'rewards' must be a list of numbers, one for each response")
    reference = row.get("reference")
    if reference is not None and not isinstance(reference, str):
        raise ValueError("'reference' must be a string")
    principles = row.get("principles")
    if principles is not None and not (isinstance(principles, list) and all(isinstance(p, str) for p in principles)):
        raise ValueError("'principles' must be a list of strings")
    source = row.get("source")
    if source is not None and not isinstance(source, dict):
        raise ValueError("'source' must be an object")
    return Item(
        prompt=conversation(row.get("prompt")),
        responses=tuple(responses),
        best=best,
        rewards=None if rewards is None else tuple(float(r) for r in rewards),
        reference=reference,
        principles=None if principles is None else tuple(principles),
        id=identifier(row.get("id")),
        source=source or {},
        extra={k: v for k, v in row.items() if k not in OWN_KEYS},
    )


def conversation(prompt: object, *, name: str = "prompt") -> tuple[Message, ...]:
    """Messages from a string (one user turn) or a list of `{"role", "content"}`.

    Raises:
        ValueError: the value is neither, is empty, or holds a message that is not text.
    """
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if not isinstance(prompt, Iterable) or isinstance(prompt, Mapping):
        raise ValueError(f"'{name}' must be a string or a list of messages")
    messages = tuple(_message(m, name) for m in prompt)
    if not messages:
        raise ValueError(f"'{name}' is an empty list of messages")
    return messages


def _message(value: object, name: str) -> Message:
    if not isinstance(value, Mapping) or "role" not in value or "content" not in value:
        raise ValueError(f"'{name}' holds a message without 'role' and 'content'")
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise ValueError(f"'{name}' holds a message of role {role!r}: expected one of {', '.join(ROLES)}")
    if isinstance(content, list):  # the wire format's list of parts
        if not all(
            isinstance(p, Mapping) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content
        ):
            raise ValueError(f"'{name}' holds a message with a part that is not text")
        content = "".join(p["text"] for p in content)
    if not isinstance(content, str):
        raise ValueError(f"'{name}' holds a message whose content is not text")
    return Message(role, content)


def identifier(value: object) -> str:
    """An id as a string: numbers are written out, None becomes the empty string (the item then uses its hash)."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"'id' must be a string or a whole number, not {value!r}")
    return str(value)


def is_number(value: object) -> bool:
    """A JSON number: int or float, but not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
