"""Any labelled items as a benchmark: a user's own held-out set, or RubricWorld's.

    {"prompt": "Name a prime.", "responses": ["7", "8"], "best": 0, "source": {"subset": "numbers"}}

Rows are read in every schema of docs/formats.md. Rule: design rule 1, all items alike: 1/(tied at the top) if the best
response is among them; a single response's vote must equal its reward. A subset is what `source.subset` says, else
single responses, pairs and lists.

Traps: several sets in one file weigh by their sizes. The licence is that of the rows.
"""

from __future__ import annotations

from opengrm.benchmarks.base import Benchmark, micro
from opengrm.items import Item
from opengrm.jsonl import Row
from opengrm.rows import items_from_row
from opengrm.voting import label_of


def convert(row: Row, place: str) -> list[Item]:
    """The items of a row, all of which must have a label."""
    items = items_from_row(row)
    if any(label_of(item) is None for item in items):
        raise ValueError("has no label of the best response (or no reward of a single one), so nothing to score by")
    return items


def subset(item: Item) -> str:
    """What the item says, else the kind of task that it is."""
    kind = "singles" if item.n == 1 else "pairs" if item.n == 2 else "lists"
    return str(item.source.get("subset") or kind)


BENCHMARK = Benchmark(
    name="items",
    title="Labelled items",
    version="the file's own",
    licence="the file's own",
    source="--data",
    convert=convert,
    rule=micro,
    subset=subset,
)
