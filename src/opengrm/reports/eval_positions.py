"""Confusion by position: where the labelled best response stood, and which position the judgment named.

A judge that reads well names the position where the best stood, whatever that was; one that prefers a position fills
that column. Single judgments are counted, not votes, since a vote has no order. Needs items with a `label`, the index
of the best response, and the order of each judgment.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass

from opengrm.errors import OpenGRMError
from opengrm.ledger import Ledger
from opengrm.reports.eval_run import EvalRun, number, text

MOST_ITEMS = 5_000  # looked at, drawn by a hash of their ids
MOST_POSITIONS = 8  # of a table


@dataclass(frozen=True)
class Confusion:
    """Judgments of items with n responses.

    Attributes:
        n: number of responses.
        items, judgments: that were looked at.
        counts: n rows (position of the best) of n + 2 counts: the position named, a tie at the top, no scores.
    """

    n: int
    items: int
    judgments: int
    counts: list[list[int]]


def confusions(run: EvalRun, benchmark: str, most: int = MOST_ITEMS) -> list[Confusion]:
    """The tables of a benchmark, one for each number of responses 2 ... 8; none without labels or a ledger."""
    labelled = (
        (hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest(), name, int(label or 0), n)
        for row in run.items(benchmark)
        if (name := text(row.get("item")))
        and isinstance(n := row.get("n"), int)
        and 2 <= n <= MOST_POSITIONS
        and (label := number(row.get("label"))) in range(n)
    )
    drawn = heapq.nsmallest(most, labelled)
    if not drawn or not run.ledger.is_file():
        return []
    sizes = sorted({n for *_, n in drawn})
    counts = {n: [[0] * (n + 2) for _ in range(n)] for n in sizes}
    items = dict.fromkeys(sizes, 0)
    try:
        with Ledger(run.ledger, create=False) as ledger:
            for _, name, best, n in drawn:
                judgments = [j for j in run.own(ledger.judgments(name)) if j.order is not None and len(j.order) == n]
                items[n] += bool(judgments)
                for judgment in judgments:
                    order, scores = judgment.order or (), judgment.scores
                    if scores is None:
                        column = n + 1
                    elif scores.count(top := max(scores)) > 1:
                        column = n
                    else:
                        column = order.index(scores.index(top))
                    counts[n][order.index(best)][column] += 1
    except OpenGRMError as error:
        run.damaged.append(str(error))
        return []
    found = (Confusion(n, items[n], sum(map(sum, counts[n])), counts[n]) for n in sizes)
    return [confusion for confusion in found if confusion.judgments]
