"""A run: items in, verdicts out, and what the run came to.

`verdicts` is the loop that every front door shares: judge, vote, count. It streams, so memory does not grow with the
number of items.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from opengrm.items import Item
from opengrm.judges.base import Judge
from opengrm.judges.meta import MetaRM
from opengrm.judgments import Judgment
from opengrm.verdicts import Verdict
from opengrm.voting import RunningShare, credit, vote
from opengrm.voting.correctness import label_of
from opengrm.voting.guided import Guide, Rule, guided_credit, guided_vote
from opengrm.voting.reducers import single_credit

OnProgress = Callable[[int, "Summary"], None]


class Judged(NamedTuple):
    """An item with its judgments and what they came to."""

    item: Item
    judgments: list[Judgment]
    verdict: Verdict


@dataclass
class _Accuracy:
    """Accuracy of one kind of items, in both senses.

    Attributes:
        open: whether a vote on a single response decided nothing; then there is no accuracy.
        graded: whether a label of a single response is not 0 or 1; then a missing verdict earns nothing.
    """

    open: bool = False
    graded: bool = False
    _guessed: RunningShare = field(default_factory=RunningShare)
    _wrong: RunningShare = field(default_factory=RunningShare)
    _valid: RunningShare = field(default_factory=RunningShare)

    def add(self, earned: float | None, chance: float, cluster: str | None) -> None:
        """Count an item; `earned` is None without a verdict."""
        self._guessed.add(chance if earned is None else earned, cluster)
        self._wrong.add(earned or 0.0, cluster)
        if earned is not None:
            self._valid.add(earned, cluster)

    def at_chance(self) -> dict[str, float] | None:
        """Items without a verdict counted at chance."""
        return self._figures(self._wrong if self.graded else self._guessed)

    def valid(self) -> dict[str, float] | None:
        """Items without a verdict left out."""
        return self._figures(self._valid)

    def _figures(self, share: RunningShare) -> dict[str, float] | None:
        interval = None if self.open else share.interval()
        return None if interval is None else {**interval._asdict(), "n": share.n}


@dataclass
class Summary:
    """Running counts of a run; `to_json` gives the figures.

    Accuracy follows design rules 1 and 2: ties at the top as expected credit, and items without a verdict both at
    chance and left out; intervals are clustered (`Item.cluster`). Items with n >= 2 and single responses, which are
    right when the most frequent score equals the label (`reducers.single_credit`), are two accuracies.
    """

    items: int = 0
    judgments: int = 0
    new: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    tied: int = 0
    no_verdict: int = 0
    stops: Counter[str] = field(default_factory=Counter)
    _ranked: _Accuracy = field(default_factory=_Accuracy)
    _singles: _Accuracy = field(default_factory=_Accuracy)

    def add(self, judged: Judged, reduce: Rule = "sum") -> None:
        """Count one finished item, voted on by `reduce`."""
        item, judgments, verdict = judged
        self.items += 1
        self.judgments += len(judgments)
        self.missing.update(j.error_kind for j in judgments if j.error_kind is not None)
        self.prompt_tokens += verdict.prompt_tokens
        self.completion_tokens += verdict.completion_tokens
        self.tied += bool(verdict.tied)
        self.no_verdict += verdict.scores is None
        if "stop" in verdict.extra:
            self.stops[verdict.extra["stop"]["reason"]] += 1
        label = label_of(item)
        if label is None:
            return
        if item.n >= 2:
            earned = None if verdict.scores is None else credit(verdict.scores, label)
            self._ranked.add(earned, 1 / item.n, item.cluster)
            return
        votes = [j.scores for j in judgments if j.scores is not None]
        if isinstance(reduce, Guide):
            earned = guided_credit(judgments, label, reduce)
        else:
            earned = single_credit(votes, label, reduce) if votes else None
        self._singles.open = self._singles.open or (bool(votes) and earned is None)
        self._singles.graded = self._singles.graded or label not in (0, 1)
        self._singles.add(earned, 0.5, item.cluster)

    @property
    def singles_undecided(self) -> bool:
        """Whether the vote on some single response decided nothing, so that they have no accuracy."""
        return self._singles.open

    def to_json(self) -> dict[str, Any]:
        """The figures of the run as one JSON object."""
        valid = self.judgments - sum(self.missing.values())
        return {
            "items": self.items,
            "judgments": self.judgments,
            "judgments_new": self.new,
            "stops": dict(self.stops),
            "missing": dict(self.missing),
            "parse_rate": valid / self.judgments if self.judgments else None,
            "no_verdict": self.no_verdict,
            "tied": self.tied,
            "accuracy": self._ranked.at_chance(),
            "accuracy_valid_only": self._ranked.valid(),
            "accuracy_singles": self._singles.at_chance(),
            "accuracy_singles_valid_only": self._singles.valid(),
            "singles_undecided": self.singles_undecided,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "tokens_per_judgment": (
                (self.prompt_tokens + self.completion_tokens) / self.judgments if self.judgments else None
            ),
            "seconds": time.monotonic() - self.started,
            "seconds_per_new_judgment": (time.monotonic() - self.started) / self.new if self.new else None,
        }


def verdicts(
    judge: Judge,
    items: Iterable[Item],
    k: int,
    *,
    reduce: Rule = "sum",
    meta: MetaRM | None = None,
    summary: Summary | None = None,
    on_progress: OnProgress | None = None,
    explain: Callable[[Item, list[Judgment]], dict[str, Any]] | None = None,
) -> Generator[Judged, None, None]:
    """Judge k times and vote, item by item, in the items' order.

    Args:
        judge: how judgments are made.
        items: read lazily.
        k: judgments of each item, or where the judge stops early the most.
        reduce: the vote.
        meta: gives every judgment its meta score before the vote.
        summary: counts are added to it as items finish.
        on_progress: called with the number of judgments that are there (new or from the ledger) or will not be asked
            for, and the summary.
        explain: further keys of an item's verdict.
    """
    summary = Summary() if summary is None else summary
    there = 0
    fresh: Counter[str] = Counter()

    def on_judgment(judgment: Judgment, _seconds: float) -> None:
        nonlocal there
        there += 1
        fresh[judgment.item] += 1
        summary.new += 1
        if on_progress is not None:
            on_progress(there, summary)

    with closing(judge.judge(items, k, on_judgment)) as run:
        for item, judgments in run if meta is None else meta.score(run):
            there += k - fresh.pop(item.id, 0)
            voted = (
                guided_vote(item.id, judgments, item.n, reduce)
                if isinstance(reduce, Guide)
                else vote(item.id, judgments, item.n, reduce)
            )
            if explain is not None:
                voted = replace(voted, extra={**voted.extra, **explain(item, judgments)})
            judged = Judged(item, judgments, voted)
            summary.add(judged, reduce)
            if on_progress is not None:
                on_progress(there, summary)
            yield judged
