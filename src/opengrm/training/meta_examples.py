"""What the meta RM learns from: judgments, whether each is correct, and what is left out and why.

Hinted judgments are left out: their text argues for a label that the meta RM will not have. Judgments without scores
are left out: nothing can be right or wrong about a ranking that is not there, and a vote drops them anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opengrm.items import Item, Message, content_hash
from opengrm.judgments import Judgment
from opengrm.templates.meta import MetaTemplate, is_hinted
from opengrm.training.scalar_examples import held_out
from opengrm.voting.correctness import correct, label_of


@dataclass(frozen=True, slots=True)
class Example:
    """One judgment to learn from.

    Attributes:
        item, sample, key: which judgment it is.
        group: hash of the conversation that the item continues.
        label: 1 if the judgment is correct, else 0.
        messages: what the meta RM reads.
    """

    item: str
    sample: int
    key: str | None
    group: str
    label: int
    messages: tuple[Message, ...]

    def held_out(self, share: float) -> bool:
        """Whether the example is for development; the same for all examples of a conversation."""
        return held_out(self.group, share)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "messages": [m.to_json() for m in self.messages]}


def example_from_json(row: Mapping[str, Any]) -> Example:
    """Read a row of examples.jsonl."""
    return Example(**{**row, "messages": tuple(Message(**m) for m in row["messages"])})


def examples(
    judgments: Iterable[Judgment], items: Mapping[str, Item], template: MetaTemplate, left_out: Counter[str]
) -> Iterator[Example]:
    """The examples that judgments make, streamed; every other judgment is counted by reason in `left_out`.

    Args:
        judgments: of any judge, with and without scores. One with the key and item of an earlier one counts once.
        items: by id.
        template: what the meta RM will read.
        left_out: counts are added to it.
    """
    seen: set[int] = set()
    for judgment in judgments:
        if judgment.key is not None:
            name = hash((judgment.key, judgment.item))
            if name in seen:
                left_out["there before"] += 1
                continue
            seen.add(name)
        found = _example(judgment, items.get(judgment.item), template)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            yield found


def _example(judgment: Judgment, item: Item | None, template: MetaTemplate) -> Example | str:
    """The example, or why there is none."""
    if judgment.scores is None:
        return "no scores"
    if is_hinted(judgment):
        return "hinted"
    if item is None:
        return "item not in the items"
    label = label_of(item)
    if label is None:
        return "item without a label"
    if len(judgment.scores) != item.n:
        return "other number of scores than responses"
    try:
        messages = template.render(item, judgment)
    except ValueError as error:
        return str(error)
    group = content_hash([[m.role, m.content] for m in item.prompt])
    return Example(item.id, judgment.sample, judgment.key, group, int(correct(judgment.scores, label)), messages)
