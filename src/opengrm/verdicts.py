"""Verdicts: what k judgments of one item came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a vote (docs/formats.md).

    Attributes:
        item: id of the item.
        scores: one for each response in the item's own order (unit: the reducer's), or None with no valid vote.
        ranking: response indices, best first; equal scores in index order. Empty with no valid vote.
        winner: the one response at the top, None if several tie there, if n = 1, or with no valid vote.
        tied: the responses that share the top when more than one does, else empty.
        margin: top score minus the next one, in the unit of `scores`; None for n = 1 or no valid vote.
        confidence: probability that the leader is really ahead (see `voting.confidence`), in [0, 1]; None for n = 1.
        asked, valid, used: votes asked for, with scores, and counted by the reducer.
        prompt_tokens, completion_tokens: cost of all judgments asked for.
    """

    item: str
    scores: tuple[float, ...] | None
    ranking: tuple[int, ...]
    winner: int | None
    tied: tuple[int, ...]
    margin: float | None
    confidence: float | None
    asked: int
    valid: int
    used: int
    prompt_tokens: int
    completion_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The row of this verdict."""
        row: dict[str, Any] = {name: getattr(self, name) for name in VERDICT_KEYS}
        for name in ("scores", "ranking", "tied"):
            if row[name] is not None:
                row[name] = list(row[name])
        return {**row, **self.extra}


VERDICT_KEYS = (
    "item", "scores", "ranking", "winner", "tied", "margin", "confidence", "asked", "valid", "used",
    "prompt_tokens", "completion_tokens",
)  # fmt: skip
