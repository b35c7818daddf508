"""A judge that stops early: votes go to items until a stopping rule is sure of them (docs/adaptive-voting.md).

Items that are open are asked for whole cycles of their planned orders, so that positions stay balanced wherever a vote
stops: first as many as the rule needs if they all agree, later half as many votes again as there are, since few items
stay open for long and an engine that waits for two votes at a time is idle. While new items come, whenever the engine
has room the next request is that of an open item whose judgments are in, else the first of a new item. The tail comes
in rounds: once there are no new items, or the window is full, the run waits until the items asked for are in, and asks
again for those that are open. A judge that works a window of items at a time (CLoud) waits for each of its windows.

With a budget over the whole data set there are rounds from the start, since who gets the last votes depends on all
items: in each round every open item is asked once, and where the budget does not reach for all, the least sure items
are. Then all items are held in memory. What a judgment costs in tokens is known only afterwards, so that with a bound
on tokens the first round comes in slices that double from one item, each asked for only if the budget reaches for it
at the mean cost so far.

What an item gets depends on its own judgments alone (with a budget: on all items'), never on timing: a resumed run
finds the same judgments in the ledger, decides the same, and asks only for what is missing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from opengrm.errors import UsageError
from opengrm.items import Item
from opengrm.judges.base import OnJudgment, SampledJudge
from opengrm.judges.meta import MetaRM
from opengrm.judgments import Judgment
from opengrm.voting.decision import Decision, decide, earliest, said
from opengrm.voting.guided import Rule
from opengrm.voting.stopping import Stop

Judged = tuple[Item, list[Judgment]]
_KNOWN = 8  # items whose mean cost speaks for all


@dataclass(frozen=True, slots=True)
class Budget:
    """What a whole data set may cost; None is no bound.

    Attributes:
        votes: judgments. Never exceeded.
        tokens: prompt and completion tokens, a meta RM's not among them. What a judgment costs is known afterwards: a
            round is planned at the mean cost so far, so the last one can go beyond it.
    """

    votes: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class AdaptiveJudge:
    """A judge and when it stops.

    Attributes:
        sampled: makes the judgments; it must have a ledger (one in memory will do), where earlier votes are found.
        stop: the rule.
        how: the vote.
        balanced: whether the judge's orders are a balanced plan: votes then stop after whole cycles of n. False for a
            judge that plans no orders.
        meta: scores judgments for a guided vote.
        budget: of all items together; None is no bound but k an item.
        window: most items open, or finished and waiting for an earlier one.
        growth: by how much an item's votes grow each time it is asked, at least by a cycle; 1 is a cycle each time.

    Raises:
        UsageError: the judge has no ledger.
    """

    sampled: SampledJudge
    stop: Stop
    how: Rule = "sum"
    balanced: bool = True
    meta: MetaRM | None = None
    budget: Budget | None = None
    window: int = 1024
    growth: float = 1.5

    def __post_init__(self) -> None:
        if self.sampled.ledger is None:
            raise UsageError("a judge that stops early needs a ledger: it asks again and again for the same item")

    def judge(
        self, items: Iterable[Item], k: int, on_judgment: OnJudgment | None = None
    ) -> Generator[Judged, None, None]:
        """Up to k judgments of each item; see `judges.base.Judge.judge`.

        Raises:
            UsageError: a budget that does not reach for one cycle of each item. For one of tokens that is known only
                after some judgments, which stay in the ledger.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        if self.budget is not None:
            return self._within(list(items), k, self.budget, on_judgment)
        return self._streamed(iter(items), k, on_judgment)

    def decide(self, item: Item, judgments: list[Judgment], k: int) -> Decision:
        """What the rule says of an item's judgments so far."""
        return decide(judgments, item.n, k, self.stop, self.how, block=self._cycle(item))

    def explain(self, item: Item, judgments: list[Judgment], k: int) -> dict[str, Any]:
        """What the verdict says of the decision."""
        return said(self.decide(item, judgments, k), self.stop, len(judgments), k)

    def _cycle(self, item: Item) -> int:
        return item.n if self.balanced else 1

    def _next(self, item: Item, there: int, k: int) -> int:
        """How many votes an item with so many is asked to have; at first as many as the rule needs to stop at all."""
        cycle = self._cycle(item)
        if not there and self.budget is None:
            return earliest(item.n, k, self.stop, self.how, cycle)
        return min(max(there + cycle, math.ceil(self.growth * there / cycle) * cycle), k)

    def _scored(self, judged: Iterator[Judged]) -> Iterator[Judged]:
        return judged if self.meta is None else self.meta.score(judged)

    def _streamed(
        self, items: Iterator[Item], k: int, on_judgment: OnJudgment | None
    ) -> Generator[Judged, None, None]:
        flow = _Flow(items, self.window)
        while not flow.ended:
            with closing(self.sampled.judge_each(self._asked(flow, k), on_judgment)) as run:
                for item, judgments in self._scored(run):
                    place = flow.asked.popleft()
                    if len(judgments) >= k or self.decide(item, judgments, k).stopped:
                        flow.finished[place] = (item, judgments)
                        yield from flow.leaving()
                    else:
                        flow.ready.append((place, item, len(judgments)))

    def _asked(self, flow: _Flow, k: int) -> Iterator[tuple[Item, int]]:
        """The next request, whenever the engine has room: an open item's, else a new item's."""
        while (found := flow.next()) is not None:
            place, item, there = found
            flow.asked.append(place)
            yield item, self._next(item, there, k)

    def _within(
        self, items: list[Item], k: int, budget: Budget, on_judgment: OnJudgment | None
    ) -> Generator[Judged, None, None]:
        first = [self._next(item, 0, k) for item in items]
        if budget.votes is not None and budget.votes < sum(first):
            raise UsageError(
                f"a budget of {budget.votes:,} votes does not reach for {len(items):,} items: one cycle of the orders"
                f" of each is {sum(first):,} votes"
            )
        there: list[list[Judgment]] = [[] for _ in items]
        sure = [0.0] * len(items)
        open_items = set(range(len(items)))

        def ask(numbers: list[int]) -> None:
            wanted = [(items[i], self._next(items[i], len(there[i]), k)) for i in numbers]
            with closing(self.sampled.judge_each(wanted, on_judgment)) as run:
                for i, (_, judgments) in zip(numbers, self._scored(run), strict=True):
                    there[i] = judgments
            for i in numbers:
                decision = self.decide(items[i], there[i], k)
                sure[i] = decision.sure
                if decision.stopped:
                    open_items.remove(i)

        for numbers in _opening(first, there, budget):
            ask(numbers)
        while open_items:
            costs = {i: self._next(items[i], len(there[i]), k) - len(there[i]) for i in open_items}
            numbers = _affordable(costs, sure, there, budget)
            if not numbers:
                break
            ask(numbers)
        yield from zip(items, there, strict=True)


def _spent(there: list[list[Judgment]]) -> tuple[int, int]:
    """Votes and tokens so far."""
    tokens = sum((j.prompt_tokens or 0) + (j.completion_tokens or 0) for row in there for j in row)
    return sum(map(len, there)), tokens


def _opening(first: list[int], there: list[list[Judgment]], budget: Budget) -> Iterator[list[int]]:
    """Which items are asked first, and next: all at once, or with a bound on tokens twice as many each time.

    Args:
        first: votes of each item's first cycle.
        there: the judgments so far, read between slices.

    Raises:
        UsageError: at the mean cost so far the budget does not reach for the next slice, or where `_KNOWN` items are
            in for all that are left.
    """
    done = 0
    while done < len(first):
        end = len(first) if budget.tokens is None else min(max(1, 2 * done), len(first))
        if budget.tokens is not None and done:
            votes, tokens = _spent(there)
            each = tokens / votes
            if tokens + each * sum(first[done:] if done >= _KNOWN else first[done:end]) > budget.tokens:
                raise UsageError(
                    f"a budget of {budget.tokens:,} tokens does not reach for {len(first):,} items: the first cycle of"
                    f" {done:,} took {tokens:,}, that of all takes about {each * sum(first):,.0f}"
                )
        yield list(range(done, end))
        done = end


def _affordable(costs: dict[int, int], sure: list[float], there: list[list[Judgment]], budget: Budget) -> list[int]:
    """Which open items get more, in their order: all, or as many of the least sure as the budget reaches for.

    Args:
        costs: votes that each open item would get.
    """
    votes, tokens = _spent(there)
    left = float("inf") if budget.votes is None else float(budget.votes - votes)
    if budget.tokens is not None:
        left = min(left, (budget.tokens - tokens) / max(tokens / votes, 1e-9))
    chosen = []
    for i in sorted(costs, key=lambda i: (sure[i], i)):
        if costs[i] > left:
            break
        left -= costs[i]
        chosen.append(i)
    return sorted(chosen)


class _Flow:
    """Items on their way: new ones, those whose judgments are in and who want more, those asked for, those done."""

    def __init__(self, items: Iterator[Item], window: int) -> None:
        self.asked: deque[int] = deque()  # places, in the order asked for
        self.ready: deque[tuple[int, Item, int]] = deque()
        self.finished: dict[int, Judged] = {}
        self._items, self._window = items, window
        self._taken = self._left = 0
        self._exhausted = False

    def next(self) -> tuple[int, Item, int] | None:
        """Place, item and how many votes it has; None where nothing can be asked for now."""
        if self.ready:
            return self.ready.popleft()
        if self._exhausted or self._taken - self._left >= self._window:
            return None
        item = next(self._items, None)
        if item is None:
            self._exhausted = True
            return None
        self._taken += 1
        return self._taken - 1, item, 0

    @property
    def ended(self) -> bool:
        return self._exhausted and self._left == self._taken

    def leaving(self) -> Iterator[Judged]:
        """Finished items in the order they came in."""
        while self._left in self.finished:
            self._left += 1
            yield self.finished.pop(self._left - 1)
