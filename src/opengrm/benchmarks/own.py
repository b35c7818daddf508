"""Any labelled items as a benchmark: a user's own held-out set, or RubricWorld's.

    {"prompt": "Name a prime.", "responses": ["7", "8"], "best": 0, "source": {"subset": "numbers"}}

Rows are read in every schema of docs/formats.md. Rule: design rule 1, all items alike: 1/(tied at the top) if the best
response is among them. Single responses have a reward of 0 or 1 and count by ROC-AUC, as in ReaLMistake, since each
judge has a scale of its own. Overall is accuracy over pairs and lists; of single responses alone it is their AUC. A
subset is what `source.subset` says, else single responses, pairs and lists.

Traps: several sets in one file weigh by their sizes. The licence is that of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from opengrm.benchmarks.base import Benchmark, Figures, Outcome, best_credit, micro
from opengrm.benchmarks.ranks import auc, finish
from opengrm.items import Item
from opengrm.jsonl import Row
from opengrm.rows import items_from_row
from opengrm.voting import label_of


def convert(row: Row, place: str) -> list[Item]:
    """The items of a row, all of which must have a label."""
    items = items_from_row(row)
    if any(label_of(item) is None for item in items):
        raise ValueError("has no label of the best response (or no reward of a single one), so nothing to score by")
    if any(item.n == 1 and label_of(item) not in (0.0, 1.0) for item in items):
        raise ValueError("a single response needs a reward of 0 or 1")
    return items


def subset(item: Item) -> str:
    """What the item says, else the kind of task that it is."""
    kind = "singles" if item.n == 1 else "pairs" if item.n == 2 else "lists"
    return str(item.source.get("subset") or kind)


def credit(outcome: Outcome) -> float | None:
    """Design rule 1; a single response earns nothing alone (see `ranks.finish`)."""
    return best_credit(outcome) if outcome.target.n > 1 or outcome.scores is None else 0.5


def rule(outcomes: Sequence[Outcome], valid_only: bool) -> Figures:
    """Accuracy over pairs and lists; ROC-AUC of single responses beside it, or alone."""
    singles = [o for o in outcomes if o.target.n == 1]
    found = micro([o for o in outcomes if o.target.n > 1], valid_only)
    if not singles:
        return found
    area = auc(singles, valid_only)
    if len(singles) == len(outcomes):
        return Figures.of(area, {"singles auc": area})
    return found._replace(metrics={**found.metrics, "singles auc": area})


BENCHMARK = Benchmark(
    name="items",
    title="Labelled items",
    version="the file's own",
    licence="the file's own",
    source="--data",
    complete=True,
    convert=convert,
    rule=rule,
    credit=credit,
    subset=subset,
    finish=finish,
    ranks=True,
)
