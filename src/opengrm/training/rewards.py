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
from opengrm.templates.base import Template
from opengrm.templates.forms import Forms
from opengrm.voting.correctness import correct, label_of
from opengrm.voting.orders import OrderKind, plan_orders


@dataclass(frozen=True)
class Usable:
    """The items that can be trained on, and how many cannot, by reason."""

    items: tuple[Item, ...]
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
    for item in items:
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
            kept.append(item)
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


def outcome(item: Item, template: Template, order: Sequence[int], text: str) -> tuple[float, bool]:
    """The reward of one text, +1.0 or -1.0, and whether it could be parsed.

    Args:
        item: labelled (see `label_of`).
        template: the form that the text answers.
        order: the order that the prompt showed.
        text: what the model wrote.
    """
    parsed = template.parse(text, item.n)
    if parsed.scores is None:
        return -1.0, False
    label = label_of(item)
    assert label is not None
    return (1.0 if correct(own_order(parsed.scores, order), label) else -1.0), True


def outcome_reward(
    items: Sequence[Item], forms: Forms, decode: Callable[[Sequence[int]], str]
) -> Callable[..., list[float]]:
    """The reward function that TRL calls with a batch; it also reports `parse_rate`."""

    def reward(
        *, completion_ids: Sequence[Sequence[int]], item: Sequence[int], order: Sequence[Sequence[int]], **rest: Any
    ) -> list[float]:
        found = [
            outcome(items[place], forms.of(items[place]), shown, decode(ids))
            for ids, place, shown in zip(completion_ids, item, order, strict=True)
        ]
        if "log_metric" in rest:
            rest["log_metric"]("parse_rate", sum(parsed for _, parsed in found) / len(found))
        return [value for value, _ in found]

    return reward
