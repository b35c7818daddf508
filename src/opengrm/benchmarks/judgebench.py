"""JudgeBench: 350 pairs of GPT-4o's responses (and 270 of Claude 3.5 Sonnet's) to hard questions with checked answers.

    {"pair_id": "u", "source": "mmlu-pro-law", "question": "2+2?", "response_A": "4", "response_B": "5",
     "label": "A>B", "response_model": "gpt-4o-2024-05-13"}

Rule (utils/metrics.py of the authors): two games, one in each order; a pair is right if more games name the right
response than the wrong one. A game that is a tie or has no verdict counts for neither, and a pair that is level is not
right. Categories: mmlu-pro* is knowledge, livebench-reasoning, livebench-math, livecodebench coding; overall is over
all pairs. Without games apart (a judge of single responses) the one verdict is both games.

Traps: one game at k = 1 sees one order only; papers that ask for both games right (`both`) quote lower numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opengrm.benchmarks.base import Benchmark, Figures, Outcome, by_subset, share, share_of
from opengrm.items import Item
from opengrm.jsonl import Row
from opengrm.rows import judgebench

CATEGORIES = {"mmlu-pro": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math",
              "livecodebench": "coding"}  # fmt: skip
SIZES = {"knowledge": 154, "reasoning": 98, "math": 56, "coding": 42}  # of the GPT-4o file


def convert(row: Row, place: str) -> list[Item]:
    """A pair in the order of the row."""
    origin = str(row.get("source") or "")
    category = next((name for key, name in CATEGORIES.items() if origin.startswith(key)), origin or "all")
    return [replace(item, source={**item.source, "subset": category}) for item in judgebench(row)]


def wins(outcome: Outcome) -> list[int]:
    """For each game 1 (names the right one), -1 (the wrong one) or 0 (a tie, or no verdict)."""
    label = int(outcome.target.label or 0)
    games = outcome.games or (outcome.scores, outcome.scores)
    return [0 if g is None else (g[label] > g[1 - label]) - (g[label] < g[1 - label]) for g in games]


def credit(outcome: Outcome) -> float | None:
    """1 if more games are won than lost, else 0."""
    return None if outcome.scores is None else float(sum(wins(outcome)) > 0)


def rule(outcomes: Sequence[Outcome], valid_only: bool) -> Figures:
    """Categories, overall, and how the two games go together."""
    valid = [o for o in outcomes if o.scores is not None]
    metrics: dict[str, Any] = {name: share(own, valid_only) for name, own in by_subset(outcomes).items()}
    metrics["both"] = share_of((o.target, float(min(wins(o)) > 0)) for o in valid if len(wins(o)) == 2)
    metrics["consistent"] = share_of((o.target, float(len(set(wins(o))) == 1)) for o in valid if len(wins(o)) == 2)
    return Figures.of(share(outcomes, valid_only), metrics)


BENCHMARK = Benchmark(
    name="judgebench",
    title="JudgeBench",
    version="ScalerLab/JudgeBench, split gpt, 350 pairs",
    licence="MIT",
    source="https://github.com/ScalerLab/JudgeBench (arXiv 2410.12784)",
    hub=(("ScalerLab/JudgeBench", None, "gpt"),),
    sizes=SIZES,
    convert=convert,
    rule=rule,
    credit=credit,
)
