"""Instruction data of RubricWorld: tasks that keep reading and writing skills and are not judgments.

The paper mixes 1070K general instruction rows into rejective fine-tuning (186K trajectories), and loses most without
them (its Table 4: 68.8 -> 63.3). This is their counterpart here. Three tasks, none of which a template asks for:

    name     Query: Write a tweet about bees for parents.          short 5, clean 3, polite 2
             Name criteria.
    check    Query: Write a tweet about bees for parents.          [1] polite yes, number no
             [1] Bees can help, thanks!
             Check polite, number.
    write    Query: Write a tweet about bees for parents.          Our small bees can help, please!
             Write a response.

The answers are true: criteria from the query, findings from `english.meets`, a response of full reward. So the data
carries truth that a faulty base lacks; what it alone does to judging is the ablation "instruction data only".
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from typing import Any

from opengrm.items import Item
from opengrm.templates.compact import Compact
from opengrm.worlds.english import CRITERIA, meets
from opengrm.worlds.rubric import Split, generate_items, query_of

SHARES = {"name": 0.25, "check": 0.5, "write": 0.25}
FEWEST_CHECKED = 5  # criteria in one task "check"
_SEED = 500_000  # apart from the seeds of items


def generate_instructions(
    count: int, *, seed: int = 0, split: Split = "train", tasks: Collection[str] = tuple(SHARES)
) -> Iterator[dict[str, Any]]:
    """Stream `count` rows {"prompt", "completion", "task"}; the rows of a smaller count are the first of a larger one.

    Args:
        count: how many.
        seed: another seed gives other rows of the same split.
        split: the split of the queries; no query is in two of them.
        tasks: which of SHARES, in their proportions. A base that has never written a response finds "write" so
            unlikely (15 nats a token were seen) that these rows carry most of the gradient: leave it out there.

    Raises:
        ValueError: an unknown split or task.
    """
    if not tasks or not set(tasks) <= set(SHARES):
        raise ValueError(f"tasks are {', '.join(tasks) or 'missing'}, expected some of {', '.join(SHARES)}")
    shares = {task: share for task, share in SHARES.items() if task in tasks}
    items = generate_items(count, seed=_SEED + seed, split=split, n=(1, 2), reference=True)
    for index, item in enumerate(items):
        rng = random.Random(f"rubric instructions {seed} {split} {index}")
        (task,) = rng.choices(tuple(shares), tuple(shares.values()))
        prompt, completion = {"name": _name, "check": _check, "write": _write}[task](rng, item)
        yield {"prompt": prompt, "completion": completion, "task": task}


def _name(rng: random.Random, item: Item) -> tuple[str, str]:
    return f"{_query(item)}\nName criteria.", ", ".join(f"{name} {weight}" for name, weight in query_of(item).criteria)


def _check(rng: random.Random, item: Item) -> tuple[str, str]:
    topic = query_of(item).topic
    names = rng.sample(CRITERIA, rng.randint(FEWEST_CHECKED, len(CRITERIA)))
    lines = []
    for position, text in enumerate(item.responses, 1):
        found = ", ".join(f"{name} {'yes' if meets(name, text, topic) else 'no'}" for name in names)
        lines.append(f"[{position}] {found}")
    return f"{_shown(item)}\nCheck {', '.join(names)}.", "\n".join(lines)


def _write(rng: random.Random, item: Item) -> tuple[str, str]:
    assert item.reference is not None
    return f"{_query(item)}\nWrite a response.", item.reference


def _query(item: Item) -> str:
    return _shown(item).split("\n", 1)[0]


def _shown(item: Item) -> str:
    """The compact prompt without its last line, which asks for a judgment."""
    return Compact().render(item, range(item.n))[0].content.rsplit("\n", 1)[0]
