"""Judgments: the outcome of one sampled generation, scores in the item's own order or missing with a reason.

A judgment without scores carries `error`, "<kind>: <detail>". The kinds:

    unparsable    the text holds no scores where the template wants them
    wrong_count   a number of scores other than the number of responses
    out_of_range  a score outside the template's range, or not finite
    truncated     the generation hit its token limit before it gave scores
    too_long      the prompt does not fit the model's context
    template      the template cannot show this item (in this order)
    unscored      a critique that no head has read yet (`templates/cloud.py`)
    timeout       no answer in time            } transient: a resumed run asks again
    server        the server failed or refused }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opengrm.items import identifier, is_number

TRANSIENT_ERRORS = ("timeout", "server")

# Bounds of what a row may hold: whole numbers as SQLite, Parquet and int64 hold them, and scores whose sum over any
# number of votes stays finite.
MAX_WHOLE = 2**63 - 1
MAX_SCORE = 1e100


@dataclass(frozen=True, slots=True)
class Judgment:
    """One judgment of one item (docs/formats.md).

    Attributes:
        item: id of the item.
        scores: one score for each response in the item's own order; None when missing.
        error: None, or why there are no scores ("<kind>: <detail>").
        sample: index of this sample among the item's samples, from 0.
        key: content key: model, template and version, item content, order, sampling settings, sample index.
        order: `order[p]` is the index of the response that stood at position p; None where it is not known.
        text, principles, critique: what the model wrote, whole and in parts.
        meta: the meta RM's logit that this judgment is correct, where one was asked.
        seed: the sampling seed, derived from the key.
        prompt_tokens, completion_tokens: cost of this judgment alone (a shared prefill counts in each that read it).
        extra: unknown keys, kept. A judge of ours writes "sampling" here: {"top_p", "max_tokens", "orders"}.

    Raises:
        ValueError: both scores and an error or neither, an order that is none, or a number out of bounds.
    """

    item: str
    scores: tuple[float, ...] | None
    error: str | None = None
    sample: int = 0
    key: str | None = None
    order: tuple[int, ...] | None = None
    text: str | None = None
    principles: str | None = None
    critique: str | None = None
    meta: float | None = None
    model: str | None = None
    template: str | None = None
    temperature: float | None = None
    seed: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if (self.scores is None) == (self.error is None):
            raise ValueError("a judgment has either scores or an error, not both and not neither")
        if self.scores is not None:
            if not self.scores:
                raise ValueError("'scores' is empty")
            _check_bounds("scores", self.scores)
        for name in _WHOLE:
            whole = getattr(self, name)
            if whole is not None and not 0 <= whole <= MAX_WHOLE:
                raise ValueError(f"'{name}' is out of bounds: expected a whole number from 0 to 2**63 - 1")
        _check_bounds("meta", () if self.meta is None else (self.meta,))
        _check_bounds("temperature", () if self.temperature is None else (self.temperature,))
        if self.order is not None:
            n = len(self.order)
            if sorted(self.order) != list(range(n)):
                raise ValueError(f"'order' {list(self.order)} is not a permutation")
            if self.scores is not None and len(self.scores) != n:
                raise ValueError(f"'order' has {n} places for {len(self.scores)} scores")

    @property
    def error_kind(self) -> str | None:
        """The part of `error` before the colon."""
        return None if self.error is None else self.error.split(":", 1)[0]

    def to_json(self) -> dict[str, Any]:
        """The row of this judgment; `judgment_from_json` reads it back equal."""
        row: dict[str, Any] = {name: getattr(self, name) for name in JUDGMENT_KEYS}
        for name in ("order", "scores"):
            if row[name] is not None:
                row[name] = list(row[name])
        return {**row, **self.extra}


JUDGMENT_KEYS = (
    "item", "sample", "key", "order", "scores", "error", "text", "principles", "critique", "meta",
    "model", "template", "temperature", "seed", "prompt_tokens", "completion_tokens",
)  # fmt: skip
_WHOLE = ("sample", "seed", "prompt_tokens", "completion_tokens")
_TYPES: dict[str, tuple[type, ...]] = {
    "sample": (int,), "key": (str,), "error": (str,), "text": (str,), "principles": (str,), "critique": (str,),
    "meta": (int, float), "model": (str,), "template": (str,), "temperature": (int, float), "seed": (int,),
    "prompt_tokens": (int,), "completion_tokens": (int,),
}  # fmt: skip


def _check_bounds(name: str, values: Sequence[float]) -> None:
    if not all(abs(value) <= MAX_SCORE for value in values):  # not so for nan either
        raise ValueError(f"'{name}' holds a number that is not finite, or beyond {MAX_SCORE:g} either way")


def judgment_from_json(row: Mapping[str, Any], *, sample: int = 0) -> Judgment:
    """Read one row. Only `item` and `scores` are required, so that votes recorded by any other system can be re-voted.

    Args:
        row: the parsed JSON object; `scores: null` without an `error` reads as "unparsable: not said".
        sample: the sample index to give where the row has none.

    Raises:
        ValueError: with a sentence that names the key and what was expected.
    """
    if "item" not in row or "scores" not in row:
        raise ValueError("a judgment needs 'item' and 'scores'")
    item = identifier(row["item"])
    if not item:
        raise ValueError("'item' is empty")
    scores, order = row["scores"], row.get("order")
    if scores is not None and not (isinstance(scores, list) and all(is_number(s) for s in scores)):
        raise ValueError("'scores' must be a list of numbers, or null for a missing judgment")
    _check_bounds("scores", scores or ())  # before a whole number too large for a float becomes one
    if order is not None and not (isinstance(order, list) and all(type(i) is int for i in order)):
        raise ValueError("'order' must be a list of response indices")
    values: dict[str, Any] = {"sample": sample}
    for name, types in _TYPES.items():
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"'{name}' must be {' or '.join(t.__name__ for t in types)}, not {value!r:.80}")
        values[name] = value
    if scores is None and "error" not in values:
        values["error"] = "unparsable: not said"
    if scores is not None:
        values.pop("error", None)
    return Judgment(
        item=item,
        scores=None if scores is None else tuple(float(s) for s in scores),
        order=None if order is None else tuple(order),
        extra={k: v for k, v in row.items() if k not in JUDGMENT_KEYS},
        **values,
    )


def own_order(shown: Sequence[float], order: Sequence[int]) -> tuple[float, ...]:
    """Scores by response index from scores by position: `result[order[p]] = shown[p]`."""
    scores = [0.0] * len(order)
    for position, index in enumerate(order):
        scores[index] = shown[position]
    return tuple(scores)
