"""A run: items in, verdicts out, and what the run came to.

`verdicts` is the loop that every front door shares: judge, vote, count. It streams, so memory does not grow with the
number of items.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opengrm.items import Item
from opengrm.judges.grm import GRM
from opengrm.judgments import Judgment
from opengrm.verdicts import Verdict
from opengrm.voting import Reducer, credit, mean_interval, vote

OnProgress = Callable[[int, "Summary"], None]


class Judged(NamedTuple):
    """An item with its judgments and what they came to."""

    item: Item
    judgments: list[Judgment]
    verdict: Verdict


@dataclass
class Summary:
    """Running counts of a run; `to_json` gives the figures.

    Accuracy follows DESIGN rules 1 and 2: ties at the top as expected credit, and items without a verdict both at
    chance (1/n) and left out. Only items with n >= 2 and a label count.
    """

    items: int = 0
    judgments: int = 0
    new: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    tied: int = 0
    decided: int = 0
    no_verdict: int = 0
    _credits: dict[str, list[float]] = field(default_factory=lambda: {"at chance": [0, 0, 0], "valid": [0, 0, 0]})

    def add(self, judged: Judged) -> None:
        """Count one finished item."""
        item, judgments, verdict = judged
        self.items += 1
        self.judgments += len(judgments)
        self.missing.update(j.error_kind for j in judgments if j.error_kind is not None)
        self.prompt_tokens += verdict.prompt_tokens
        self.completion_tokens += verdict.completion_tokens
        self.tied += bool(verdict.tied)
        self.decided += verdict.winner is not None
        self.no_verdict += verdict.scores is None
        if item.n < 2 or item.label is None:
            return
        if verdict.scores is None:
            self._count("at chance", 1 / item.n)
        else:
            earned = credit(verdict.scores, item.label)
            self._count("at chance", earned)
            self._count("valid", earned)

    def _count(self, sense: str, value: float) -> None:
        sums = self._credits[sense]
        sums[0] += 1
        sums[1] += value
        sums[2] += value * value

    def accuracy(self, sense: str = "at chance") -> dict[str, float] | None:
        """Mean credit with its 95 % interval and n; None without labelled items. `sense`: "at chance" or "valid"."""
        n, total, squares = self._credits[sense]
        if not n:
            return None
        mean, low, high = mean_interval(total, squares, int(n))
        return {"mean": mean, "low": low, "high": high, "n": int(n)}

    def to_json(self) -> dict[str, Any]:
        """The figures of the run as one JSON object."""
        valid = self.judgments - sum(self.missing.values())
        return {
            "items": self.items,
            "judgments": self.judgments,
            "judgments_new": self.new,
            "missing": dict(self.missing),
            "parse_rate": valid / self.judgments if self.judgments else None,
            "no_verdict": self.no_verdict,
            "tied": self.tied,
            "accuracy": self.accuracy("at chance"),
            "accuracy_valid_only": self.accuracy("valid"),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "tokens_per_judgment": (
                (self.prompt_tokens + self.completion_tokens) / self.judgments if self.judgments else None
            ),
            "seconds": time.monotonic() - self.started,
            "seconds_per_new_judgment": (time.monotonic() - self.started) / self.new if self.new else None,
        }


def verdicts(
    judge: GRM,
    items: Iterable[Item],
    k: int,
    *,
    reduce: Reducer = "sum",
    summary: Summary | None = None,
    on_progress: OnProgress | None = None,
) -> Generator[Judged, None, None]:
    """Judge k times and vote, item by item, in the items' order.

    Args:
        judge: how judgments are made.
        items: read lazily.
        k: judgments of each item.
        reduce: the vote.
        summary: counts are added to it as items finish.
        on_progress: called with the number of judgments that are there (new or from the ledger) and the summary.
    """
    summary = Summary() if summary is None else summary
    there = 0
    fresh: Counter[str] = Counter()

    def on_judgment(judgment: Judgment, seconds: float) -> None:
        nonlocal there
        there += 1
        fresh[judgment.item] += 1
        summary.new += 1
        summary.engine_seconds += seconds
        if on_progress is not None:
            on_progress(there, summary)

    with closing(judge.judge(items, k, on_judgment)) as run:
        for item, judgments in run:
            there += len(judgments) - fresh.pop(item.id, 0)
            judged = Judged(item, judgments, vote(item.id, judgments, item.n, reduce))
            summary.add(judged)
            if on_progress is not None:
                on_progress(there, summary)
            yield judged
