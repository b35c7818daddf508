"""What RL trains on, and the outcome reward: +1 where a judgment is correct, -1 otherwise (paper v3 Eqs. 10 and 11).

There is no format reward and no partial credit: a text that cannot be parsed falls under "otherwise". Whether scores
are correct is decided by `voting.correctness.correct` and nowhere else.

A row is one item in one order, shown to the model G times. Rows come as a stream of epochs: each epoch shuffles the
items by (seed, epoch), and shows each in the next order of its balanced plan (design rule 4).

Choices where the paper is silent: a group shares one order (its rewards are compared with each other, so nothing but
the text should differ); single responses are asked for with the template's 0/1 form, as in the paper's training data.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opengrm.errors import UsageError
from opengrm.items import Item
from opengrm.judgments import own_order
from opengrm.templates.base import Template, read_answer
from opengrm.templates.forms import Forms
from opengrm.voting.correctness import correct, label_of
from opengrm.voting.orders import OrderKind, plan_orders


@dataclass(frozen=True)
class Usable:
    """Which items can be trained on, by their places, and how many cannot, by reason."""

    places: tuple[int, ...]
    dropped: Counter[str] = field(default_factory=Counter)


def usable_items(items: Sequence[Item], forms: Forms, fits: Callable[[Item], bool] = lambda _: True) -> Usable:
    """Drop what gives no reward or cannot be shown, and count it by reason.

    Args:
        items: candidates, in order.
        forms: how they are shown.
        fits: whether an item's prompt leaves room for a judgment.
    """
    dropped: Counter[str] = Counter()
    kept = []
    for place, item in enumerate(items):
        if not forms.shows(item):
            dropped["single response"] += 1
            continue
        template, label = forms.of(item), label_of(item)
        if label is None:
            dropped["no label"] += 1
        elif item.n == 1 and not (template.low <= label <= template.high and label == int(label)):
            dropped["label outside the single form's scores"] += 1
        elif not _shows(template, item):
            dropped["the template cannot show it"] += 1
        elif not fits(item):
            dropped["too long"] += 1
        else:
            kept.append(place)
    return Usable(tuple(kept), dropped)


def _shows(template: Template, item: Item) -> bool:
    try:
        template.render(item, range(item.n))
    except ValueError:
        return False
    return True


class Row(NamedTuple):
    """One group's prompt: which item, and in which order."""

    item: int
    order: tuple[int, ...]


def rows(items: Sequence[Item], count: int, seed: int, orders: OrderKind = "balanced") -> Iterator[Row]:
    """The first `count` rows of the stream of epochs.

    Raises:
        UsageError: there are no items.
    """
    if not items:
        raise UsageError("no item is left to train on")
    for epoch in range(-(-count // len(items))):
        places = list(range(len(items)))
        random.Random(f"rl {seed} epoch {epoch}").shuffle(places)
        for place in places[: count - epoch * len(items)]:
            item = items[place]
            yield Row(place, plan_orders(item.n, epoch + 1, item.key, orders)[epoch])


def outcome(
    item: Item, template: Template, order: Sequence[int], text: str, *, cut: bool = False, tokens: int = 0
) -> tuple[float, bool]:
    """The reward of one text, +1.0 or -1.0, and whether it could be parsed: as a judge reads it (`read_answer`).

    Args:
        item: labelled (see `label_of`).
        template: the form that the text answers.
        order: the order that the prompt showed.
        text: what the model wrote.
        cut: whether it ends at the token limit.
        tokens: how many there are.
    """
    parsed = read_answer(template, text, item.n, cut=cut, tokens=tokens)
    if parsed.scores is None:
        return -1.0, False
    label = label_of(item)
    assert label is not None
    return (1.0 if correct(own_order(parsed.scores, order), label) else -1.0), True


def outcome_reward(
    items: Sequence[Item], forms: Forms, answer: Callable[[Sequence[int]], tuple[str, bool]]
) -> Callable[..., list[float]]:
    """The reward function that TRL calls with a batch; it also reports `parse_rate`.

    Args:
        items: what the column `item` counts.
        forms: how they were shown.
        answer: of a completion's token ids the text that a judge would read, and whether it was cut off.
    """

    def reward(
        *, completion_ids: Sequence[Sequence[int]], item: Sequence[int], order: Sequence[Sequence[int]], **rest: Any
    ) -> list[float]:
        found = []
        for ids, place, shown in zip(completion_ids, item, order, strict=True):
            text, cut = answer(ids)
            template = forms.of(items[place])
            found.append(outcome(items[place], template, shown, text, cut=cut, tokens=len(ids)))
        if "log_metric" in rest:
            rest["log_metric"]("parse_rate", sum(parsed for _, parsed in found) / len(found))
        return [value for value, _ in found]

    return reward
