"""PandaLM's test set: 999 pairs, each judged by three people as a tie (0) or for the first (1) or second (2) response.

    {"idx": 0, "instruction": "Name a prime.", "input": "", "response1": "7", "response2": "8",
     "annotator1": 1, "annotator2": 1, "annotator3": 0, "cmp_key": "bloom-7b_llama-7b"}

Rule: the label is the majority of the three (in all 999 rows two agree). Accuracy of the three-way verdict (equal
scores are a tie), and macro precision, recall and F1 over the three classes. In the published figures a text without
a verdict is a tie: so it is in `accuracy_published`, `precision`, `recall` and `f1`; in overall it counts 1/3.

Traps: judges whose scores seldom tie cannot name ties (105 of 999). Class means are over the three classes of the
labels only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opengrm.benchmarks.base import Benchmark, Figures, Outcome, Target, plain_mean, share
from opengrm.items import Item, conversation
from opengrm.jsonl import Row
from opengrm.preferences import item_of, text

CLASSES = (0, 1, 2)


def convert(row: Row, place: str) -> list[Item]:
    """A pair; a tie has no `best`. Nothing for rows of the judges' results."""
    if "annotator1" not in row:
        return []
    said = Counter(int(row[f"annotator{i}"]) for i in (1, 2, 3))
    majority, times = said.most_common(1)[0]
    if times < 2 or majority not in CLASSES:
        raise ValueError("'annotator1' to 'annotator3' must be 0, 1 or 2, two of them equal")
    prompt = "\n\n".join([text(row, "instruction"), *([text(row, "input")] if row.get("input") else [])])
    item = item_of(
        row, "pandalm", conversation(prompt), (_answer(row, "response1"), _answer(row, "response2")),
        best=majority - 1 if majority else None, name=row.get("idx"), keep=("cmp_key", "motivation_app"),
        used=("instruction", "input", "response1", "response2", "idx"), source={"majority": majority},
    )  # fmt: skip
    return [replace(item, source={**item.source, "subset": "all"})]


def _answer(row: Row, key: str) -> str:
    """A response; a bare number or boolean as text."""
    return text(row, key) if isinstance(row[key], str) else json.dumps(row[key])


def verdict(outcome: Outcome) -> int | None:
    """0 for equal scores, 1 or 2 for the higher one; None where there are none."""
    if outcome.scores is None:
        return None
    first, second = outcome.scores
    return 0 if first == second else 1 if first > second else 2


def credit(outcome: Outcome) -> float | None:
    """Whether the three-way verdict is the majority's."""
    said = verdict(outcome)
    return None if said is None else float(said == outcome.target.facts["majority"])


def chance(target: Target) -> float:
    """One class of three."""
    return 1 / 3


def rule(outcomes: Sequence[Outcome], valid_only: bool) -> Figures:
    """Accuracy, and macro precision, recall and F1."""
    pairs = [(verdict(o) or 0, int(o.target.facts["majority"])) for o in outcomes]
    rows = []
    for name in CLASSES:
        hit = sum(said == gold == name for said, gold in pairs)
        said_so, are_so = (
            (sum(value == name for value in column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
        )
        precision, recall = hit / said_so if said_so else 0.0, hit / are_so if are_so else 0.0
        rows.append((precision, recall, 2 * precision * recall / (precision + recall) if hit else 0.0))
    metrics: dict[str, Any] = {"accuracy_published": plain_mean(float(said == gold) for said, gold in pairs)}
    metrics |= {
        name: plain_mean(column)
        for name, column in zip(("precision", "recall", "f1"), zip(*rows, strict=True), strict=True)
    }
    return Figures.of(share(outcomes, valid_only), metrics)


BENCHMARK = Benchmark(
    name="pandalm",
    title="PandaLM test set",
    version="testset-v1, 999 pairs",
    licence="Apache-2.0",
    source="https://github.com/WeOpenML/PandaLM (arXiv 2306.05087)",
    sizes={"all": 999},
    convert=convert,
    rule=rule,
    credit=credit,
    chance=chance,
)
