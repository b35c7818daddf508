"""RubricWorld: items with hidden weighted criteria and exact labels (docs/rubric-world.md).

A query asks for a short text of some kind, about a topic, for an audience. The kind fixes the criteria of weight 5 and
3, the audience the one of weight 2 (or the kind does, where the audience's is taken). A response's true reward is the
sum of the weights of the criteria that its text meets: 0, 2, 3, 5, 7, 8 or 10.

    items = generate_items(1000, seed=0, split="train", n=2)

Nothing depends on Python's `hash` or on how many items are asked for: item i of a seed and split is always the same.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from opengrm.items import Item, Message
from opengrm.worlds.english import CRITERIA, TOPICS, meets, write

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
WEIGHTS = (5, 3, 2)
HIGHEST = sum(WEIGHTS)
PASS_MARK = 7  # the 0/1 label of a single response: the criterion of weight 5 and at least one other

# kind -> its criteria of weight 5 and 3, and the one of weight 2 where the audience's is one of those two
KINDS: dict[str, tuple[str, str, str]] = {
    "letter": ("greet", "polite", "stop"),
    "tweet": ("short", "clean", "topic"),
    "recipe": ("number", "example", "plain"),
    "report": ("topic", "number", "reason"),
    "notice": ("plain", "short", "stop"),
    "review": ("reason", "example", "topic"),
    "memo": ("stop", "short", "topic"),
    "toast": ("polite", "greet", "number"),
    "guide": ("example", "plain", "number"),
    "story": ("clean", "topic", "stop"),
    "speech": ("reason", "greet", "polite"),
    "poem": ("topic", "clean", "short"),
}
# audience -> the criterion of weight 2
AUDIENCES: dict[str, str] = {
    "children": "plain", "experts": "number", "parents": "polite", "students": "example", "neighbours": "greet",
    "officials": "stop", "workers": "short", "voters": "reason", "guests": "clean", "beginners": "topic",
}  # fmt: skip
_PHRASINGS = (
    ("Write a ", " about ", " for ", "."),
    ("I need a ", " on ", " for ", "."),
    ("Could you draft a ", " about ", " for ", "?"),
    ("Help me with a ", " on ", " for ", "."),
    ("We want a ", " about ", ", to be read by ", "."),
    ("Give me a ", " on ", ", meant for ", "."),
)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for; everything that decides the hidden criteria, and the wording, which does not."""

    kind: str
    topic: str
    audience: str
    phrasing: int = 0

    @property
    def text(self) -> str:
        a, b, c, d = _PHRASINGS[self.phrasing]
        return f"{a}{self.kind}{b}{self.topic}{c}{self.audience}{d}"

    @property
    def criteria(self) -> tuple[tuple[str, int], ...]:
        """The hidden criteria with their weights, heaviest first."""
        first, second, _ = KINDS[self.kind]
        return complete_criteria(self.kind, self.audience, first, second)

    @property
    def split(self) -> Split:
        """8/10 train, 1/10 dev, 1/10 test, by a hash of kind, topic and audience: rewording does not cross splits."""
        digest = hashlib.sha256(f"{self.kind}|{self.topic}|{self.audience}".encode()).digest()
        bucket = int.from_bytes(digest[:4], "big") % 10
        return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def complete_criteria(kind: str, audience: str, first: str, second: str) -> tuple[tuple[str, int], ...]:
    """`first` and `second` with weights 5 and 3, and the criterion of weight 2 that then follows for this query."""
    choices = (AUDIENCES[audience], KINDS[kind][2], *KINDS[kind], *CRITERIA)
    third = next(c for c in choices if c not in (first, second))
    return tuple(zip((first, second, third), WEIGHTS, strict=True))


def generate_items(
    count: int,
    *,
    seed: int = 0,
    split: Split = "train",
    n: int | tuple[int, int] | Literal["mixed"] = 2,
    difficulty: float = 0.5,
    label_noise: float = 0.0,
    binary: bool = False,
    principles: bool = False,
    reference: bool = False,
) -> Iterator[Item]:
    """Stream `count` labelled items.

    Args:
        count: how many; the items of a smaller count are the first of a larger one.
        seed: another seed gives other items of the same split.
        split: "train", "dev" or "test"; no query is in two of them.
        n: responses of each item; (low, high) draws evenly from that range; "mixed" is mostly pairs, up to 6.
        difficulty: 0 (rewards far apart, responses alike in what does not count) to 1 (the best response ahead by
            little, and responses that differ in everything that does not count).
        label_noise: share of items whose label is wrong; the truth stays in `source`.
        binary: a single response's `rewards` is 1.0 for a true reward of at least PASS_MARK, else 0.0.
        principles: put the true criteria into `Item.principles` ("short 5").
        reference: put a response of full reward into `Item.reference`.

    Yields:
        Items with `best` (n >= 2: the unique maximum of the true rewards) or `rewards` (n = 1: 0..10, or 0/1), and
        the hidden truth in `source`: world, kind, topic, audience, criteria [[name, weight]], met (for each response,
        in the order of `criteria`), rewards (true, for each response), split, seed, index.

    Raises:
        ValueError: an argument out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    for name, value in (("difficulty", difficulty), ("label_noise", label_noise)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected 0 to 1")
    if isinstance(n, str) and n != "mixed":
        raise ValueError(f"n is {n!r}, expected a number, a range (low, high) or 'mixed'")
    low, high = (1, 6) if isinstance(n, str) else (n, n) if isinstance(n, int) else n
    if not 1 <= low <= high <= 6:
        raise ValueError(f"n is {n!r}, expected 1 to 6 responses")
    if binary and low > 1:
        raise ValueError("only single responses have a 0/1 label: pass n=1, a range from 1, or 'mixed'")
    for index in range(count):
        rng = random.Random(f"rubric world {seed} {split} {index}")
        size = rng.choice(_MIXED) if n == "mixed" else rng.randint(low, high)
        item = _item(rng, split, size, difficulty, {"seed": seed, "index": index})
        query = Query(item.source["kind"], item.source["topic"], item.source["audience"])
        if principles:
            item = replace(item, principles=tuple(f"{name} {weight}" for name, weight in query.criteria), id="")
        if reference:
            item = replace(item, reference=_reference(rng, query), id="")
        yield _labelled(rng, item, binary, label_noise)


_MIXED = (*[2] * 30, *[1] * 4, 3, 3, 4, 4, 5, 6)  # three quarters pairs


def _item(rng: random.Random, split: Split, n: int, difficulty: float, where: dict[str, Any]) -> Item:
    """An unlabelled item with its truth in `source`."""
    query = _query(rng, split)
    names = [name for name, _ in query.criteria]
    wishes = _wishes(rng, query, n, difficulty)
    responses = tuple(write(rng, query.topic, wish) for wish in wishes)
    met = [[meets(name, text, query.topic) for name in names] for text in responses]
    return Item(
        prompt=(Message("user", query.text),),
        responses=responses,
        source={
            "world": "rubric",
            "kind": query.kind,
            "topic": query.topic,
            "audience": query.audience,
            "criteria": [[name, weight] for name, weight in query.criteria],
            "met": met,
            "rewards": [true_reward(query, text) for text in responses],
            "split": split,
            **where,
        },
    )


def _query(rng: random.Random, split: Split) -> Query:
    while True:
        query = Query(
            rng.choice(tuple(KINDS)), rng.choice(TOPICS), rng.choice(tuple(AUDIENCES)), rng.randrange(len(_PHRASINGS))
        )
        if query.split == split:
            return query


def _wishes(rng: random.Random, query: Query, n: int, difficulty: float) -> list[set[str]]:
    """For each response the criteria it is to meet; for n >= 2 with a unique maximum of the rewards.

    A set whose best leads by a margin of m (1..10) is kept with probability (1 - d) m/10 + d (1 - m/10).
    """
    weights = dict(query.criteria)
    shared = {c for c in CRITERIA if rng.random() < 0.5}
    while True:
        wishes = []
        for _ in range(n):
            wish = {c for c in weights if rng.random() < 0.5}
            for c in CRITERIA:
                met = rng.random() < 0.5 if rng.random() < difficulty else c in shared
                if c not in weights and met:
                    wish.add(c)
            wishes.append(wish)
        if n == 1:
            return wishes
        rewards = sorted((sum(weights.get(c, 0) for c in wish) for wish in wishes), reverse=True)
        margin = (rewards[0] - rewards[1]) / HIGHEST
        if margin > 0 and rng.random() < (1 - difficulty) * margin + difficulty * (1 - margin):
            return wishes


def _reference(rng: random.Random, query: Query) -> str:
    wish = {name for name, _ in query.criteria}
    return write(rng, query.topic, wish | {c for c in CRITERIA if rng.random() < 0.5})


def _labelled(rng: random.Random, item: Item, binary: bool, noise: float) -> Item:
    rewards: list[int] = item.source["rewards"]
    wrong = rng.random() < noise
    if item.n >= 2:
        best = rewards.index(max(rewards))
        if wrong:
            best = rng.choice([i for i in range(item.n) if i != best])
        return replace(item, best=best)
    if binary:
        return replace(item, rewards=(float((rewards[0] >= PASS_MARK) != wrong),))
    label = rng.choice([r for r in (0, 2, 3, 5, 7, 8, 10) if r != rewards[0]]) if wrong else rewards[0]
    return replace(item, rewards=(float(label),))


def true_reward(query: Query, text: str) -> int:
    """The sum of the weights of the hidden criteria that the text meets, 0..10."""
    return sum(weight for name, weight in query.criteria if meets(name, text, query.topic))


def query_of(item: Item) -> Query:
    """The query behind an item of this world (wording left at its first form).

    Raises:
        ValueError: the item's source does not say that it comes from RubricWorld.
    """
    if item.source.get("world") != "rubric":
        raise ValueError(f"item {item.id!r} has no RubricWorld truth in its source")
    return Query(item.source["kind"], item.source["topic"], item.source["audience"])
