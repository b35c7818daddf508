"""What scalar judges share: sampling does not change their judgment, so one is computed and k are given.

It streams: items come in, a window of them is looked up in the ledger, what is not there is judged in one go, and the
items go out in the order they came in. Items of the same content in a window are judged once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from opengrm.items import Item, Message, content_hash
from opengrm.judges.base import OnJudgment
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger

if TYPE_CHECKING:
    from opengrm.engines.classifier import Reading

Fits = Callable[[tuple[Message, ...]], bool]


class Reader(Protocol):
    """What reads conversations: `engines.classifier.Classifier`, or the like. `model` identifies the weights."""

    @property
    def model(self) -> str: ...

    @property
    def context(self) -> int | None: ...

    @property
    def truncates(self) -> bool: ...

    def read(
        self, conversations: Sequence[Sequence[Message]], prompts: Sequence[Hashable] | None = None
    ) -> list[Reading]: ...

    def fits(self, messages: Sequence[Message]) -> bool: ...


def judge_repeatedly(
    items: Iterable[Item],
    k: int,
    judged: Callable[[Sequence[Item]], list[Judgment]],
    *,
    name: str,
    model: str,
    ledger: Ledger | None,
    window: int,
    on_judgment: OnJudgment | None,
) -> Generator[tuple[Item, list[Judgment]], None, None]:
    """k equal judgments of each item, see `judges.base.Judge.judge`.

    A judgment's key is over model, template, the item's content and the sample's index (design rule 5).

    Args:
        judged: one judgment of each of these items, in their order.
        name: the template's name and version.
        window: most items open at a time; bounds memory and delay.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    feed = iter(items)
    while opened := list(islice(feed, window)):
        keys = {item.key: [content_hash("judgment", model, name, item.key, j) for j in range(k)] for item in opened}
        known = [{} if ledger is None else ledger.get(keys[item.key], item.id) for item in opened]
        fresh = {item.key: item for item, there in zip(opened, known, strict=True) if not there}
        start = time.perf_counter()
        found = dict(zip(fresh, judged(list(fresh.values())), strict=True)) if fresh else {}
        seconds = {key: (time.perf_counter() - start) / len(found) for key in found}
        for item, there in zip(opened, known, strict=True):
            first = next(iter(there.values())) if there else found[item.key]
            judgments = []
            for sample, key in enumerate(keys[item.key]):
                judgment = there.get(key)
                if judgment is None:
                    judgment = replace(first, item=item.id, sample=sample, key=key)
                    took = seconds.pop(item.key, 0.0)  # the others are copies
                    if ledger is not None:
                        ledger.put(judgment, took)
                    if on_judgment is not None:
                        on_judgment(judgment, took)
                judgments.append(judgment)
            yield item, judgments


def too_long(what: str, longest: Reading, context: int | None) -> str:
    """The error of a judgment that has no scores because something does not fit."""
    return f"too_long: {what} has {longest.tokens:,} tokens, the model takes {context:,}"


def shortened(prompt: Sequence[Message], fits: Callable[[tuple[Message, ...]], bool]) -> tuple[Message, ...] | None:
    """The longest end of a prompt that fits: earlier turns go, then the beginning of the first that is left.

    None where not even its last character fits.
    """
    if fits(tuple(prompt)):
        return tuple(prompt)

    def end(kept: int) -> tuple[Message, ...]:
        """The turns with their last `kept` characters."""
        found: list[Message] = []
        for turn in reversed(prompt):
            if kept <= 0:
                break
            found.append(Message(turn.role, turn.content[max(len(turn.content) - kept, 0) :]))
            kept -= len(turn.content)
        return tuple(reversed(found))

    if not fits(end(1)):  # with a long answer the search would read it many times
        return None
    low, high = 1, sum(len(turn.content) for turn in prompt)  # `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(end(middle)) else (low, middle)
    return end(low)
