r"""A cold start for LLM-as-a-judge in RubricWorld: a base model's GRM judgments, rewritten as the judge's.

The embedded base writes compact GRM judgments and has never seen `compact-judge`. Fine-tuned on these rows it writes
the same principles and findings, and then the best response's position instead of all scores:

    \boxed{10, 8}    ->    \boxed{1}

Nothing is filtered by correctness: the judge's base judges as the GRM's does, so both are trained from the same start.
A tie at the top is broken by a draw fixed by the judgment's content, as the paper picks among ties at random: leaving
ties out would keep the easier items, and the first of them would teach a preference for the first place.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from opengrm.errors import UsageError
from opengrm.items import Item, content_hash
from opengrm.judgments import Judgment
from opengrm.templates import get_template


def judge_rows(judgments: Iterable[Judgment], items: Mapping[str, Item]) -> Iterator[dict[str, Any]]:
    """Rows {"prompt", "completion", "item", "order"} for `training.sft`, one for each judgment that can be rewritten.

    Left out: judgments of single responses, without scores, with a hint, or of another form than `compact`. Additions
    such as `+no-principles` are kept.

    Args:
        judgments: of a base, e.g. `ledger.judgments()`; read lazily.
        items: what was judged, by id.

    Raises:
        UsageError: a judgment of an item that is not there.
    """
    for judgment in judgments:
        form, *additions = (judgment.template or "").split("@")[0].split("+")
        if form != "compact" or "hint" in additions or judgment.scores is None or len(judgment.scores) < 2:
            continue
        if judgment.item not in items:
            raise UsageError(f"a judgment is of item {judgment.item!r}, which is not among the items")
        text = named_best(judgment)
        if text is None or judgment.order is None:
            continue
        template = get_template("+".join(["compact-judge", *additions]))
        yield {
            "prompt": [m.to_json() for m in template.render(items[judgment.item], judgment.order)],
            "completion": [{"role": "assistant", "content": text}],
            "item": judgment.item,
            "order": list(judgment.order),
        }


def named_best(judgment: Judgment) -> str | None:
    """A judgment's text with the position of its best response in the last box; None where there is nothing to say."""
    if judgment.scores is None or judgment.order is None or judgment.text is None:
        return None
    shown = [judgment.scores[index] for index in judgment.order]
    top = [position for position, score in enumerate(shown, 1) if score == max(shown)]
    draw = int(content_hash("tie", judgment.key, judgment.item, judgment.text)[:8], 16)
    head, _, _ = judgment.text.rpartition("\\boxed{")
    return f"{head}\\boxed{{{top[draw % len(top)]}}}"


def comparisons(count: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    r"""Stream `count` rows {"prompt", "completion"} that practise what `judge_rows` alone teaches slowly.

    A GRM of this size copies its sums into the box; a judge has to compare them, and one token of a judgment is all
    that says how. Here nearly every token does: "Compare 5, 8." is answered by

        [1] = 5
        [2] = 8
        \boxed{2}

    Nothing of what counts in a response is in these rows. Three quarters have two numbers of 0..10, as most items have
    two responses, the others up to six; there are no ties.
    """
    rng = random.Random(f"comparisons {seed}")
    for _ in range(count):
        n = 2 if rng.random() < 0.75 else rng.randint(3, 6)
        sums = rng.sample(range(11), n)
        lines = [f"[{place}] = {total}" for place, total in enumerate(sums, 1)]
        yield {
            "prompt": f"Compare {', '.join(map(str, sums))}.",
            "completion": "\n".join([*lines, f"\\boxed{{{sums.index(max(sums)) + 1}}}"]),
        }
