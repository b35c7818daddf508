"""What Bradley-Terry and PairRM learn from: of two responses to one query, which is better.

An item with rewards gives every pair of responses whose rewards differ; one with a label alone gives the best response
against each other one. Each item counts once: its pairs have weight 1/(number of its pairs), as InstructGPT weighs the
comparisons of a prompt (arXiv:2203.02155, Eq. 1), so that an item with many responses does not dominate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opengrm.items import Item, Message, content_hash, is_number
from opengrm.jsonl import write_rows
from opengrm.voting.intervals import share_interval


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one query.

    Attributes:
        item: id of the item.
        chosen, rejected: which of the item's responses they are.
        group: hash of the conversation.
        prompt: the conversation.
        responses: the texts, the better one first.
        margin: how much better it is: the difference of the rewards, or what the row says ("margin"); 0 where neither
            is known.
        weight: 1/(number of pairs of the item).
    """

    item: str
    chosen: int
    rejected: int
    group: str
    prompt: tuple[Message, ...]
    responses: tuple[str, str]
    margin: float = 0.0
    weight: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "prompt": [m.to_json() for m in self.prompt]}


def pair_from_json(row: Mapping[str, Any]) -> Pair:
    """Read a row of examples.jsonl."""
    first, second = row["responses"]
    return Pair(**{**row, "prompt": tuple(Message(**m) for m in row["prompt"]), "responses": (first, second)})


def pairs_of(items: Iterable[Item], left_out: Counter[str]) -> Iterator[Pair]:
    """The pairs of these items, streamed. What gives none is counted by reason in `left_out`."""
    for item in items:
        found = list(_compared(item, left_out))
        group = content_hash([[m.role, m.content] for m in item.prompt]) if found else ""
        for chosen, rejected, margin in found:
            texts = (item.responses[chosen], item.responses[rejected])
            yield Pair(item.id, chosen, rejected, group, item.prompt, texts, margin, 1 / len(found))


def _compared(item: Item, left_out: Counter[str]) -> Iterator[tuple[int, int, float]]:
    """Better and worse response of each pair, and the margin."""
    if item.n < 2:
        left_out["items of one response"] += 1
        return
    if item.rewards is not None:
        rewards = item.rewards
        better = [(i, j, rewards[i] - rewards[j]) for i in range(item.n) for j in range(item.n)]
        better = [pair for pair in better if pair[2] > 0]
    elif item.best is not None:
        told = item.source.get("margin")
        margin = float(told) if told is not None and is_number(told) else 0.0
        better = [(item.best, j, margin) for j in range(item.n) if j != item.best]
    else:
        left_out["items without a label"] += 1
        return
    if not better:
        left_out["items in which no response is better than another"] += 1
    for chosen, rejected, margin in better:
        if item.responses[chosen] == item.responses[rejected]:
            left_out["pairs of equal responses"] += 1
        elif not 0 <= margin < float("inf"):
            left_out["pairs with a margin below 0"] += 1
        else:
            yield chosen, rejected, margin


def write_pairs(path: Path, items: Iterable[Item]) -> dict[str, Any]:
    """Write the pairs of these items; returns what a report tells of them."""
    left_out: Counter[str] = Counter()
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        last = None
        for pair in pairs_of(items, left_out):
            counts["pairs"] += 1
            counts["items"] += pair.item != last  # an item's pairs come one after the other
            last = pair.item
            yield pair.to_json()

    write_rows(path, rows())
    return {"examples": counts["pairs"], "items": counts["items"], "left_out": dict(sorted(left_out.items()))}


def pair_figures(differences_I: Any, clusters_I: Any) -> dict[str, Any]:
    """How often the better response scores higher, a tie counted half, with an interval clustered by conversation.

    Args:
        differences_I: the better response's score minus the other's.
        clusters_I: a number for each conversation.
    """
    accuracy = share_interval(pair_hits(differences_I), None, clusters_I)
    return {
        "n": len(differences_I),
        "conversations": len(set(clusters_I.tolist())),
        "accuracy": None if accuracy is None else accuracy._asdict(),
        "difference": float(np.mean(differences_I)),
    }


def pair_hits(differences_I: Any) -> Any:
    """1 where the better response scores higher, 1/2 for a tie, else 0."""
    return (np.sign(np.asarray(differences_I, dtype=np.float64)) + 1) / 2


def nothing_to_learn(targets: Any) -> str | None:
    """Why no examples are left; None where there are some."""
    return None if len(targets) else "no pairs to learn from"
