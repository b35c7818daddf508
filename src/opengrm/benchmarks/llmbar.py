"""LLMBar: 419 pairs whose better output follows the instruction, in one natural and four adversarial sets.

    {"input": "Name a prime.", "output_1": "7", "output_2": "8", "label": 1}

Rule (the authors' statistics.json): accuracy in each order, and their mean; a game that is a tie or has no verdict is
wrong. `both` is the share of pairs that are right in both orders, `equal` of those that get the same verdict in both.
Overall is the plain mean over the sets that are there of accuracy with ties as one half.

Traps: rows do not name their set, the file does (its path in the authors' repository with / or __); these are
RewardBench's llmbar-* subsets. FairEval, LLMEval2 and MT-Bench in the same repository are other people's sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opengrm.benchmarks.base import Benchmark, Figures, Outcome, by_subset, mean_share, plain_mean, share, squeezed
from opengrm.benchmarks.judgebench import wins
from opengrm.items import Item
from opengrm.jsonl import Row
from opengrm.rows import llmbar

SIZES = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
OTHERS = ("FairEval", "LLMEval2", "MT-Bench", "Base_9", "Base_10", "Constraint", "Negation", "Normal")


def convert(row: Row, place: str) -> list[Item]:
    """A pair in the order of the row; nothing for the other sets of the repository."""
    named = squeezed(str(row.get("subset") or place))
    if any(squeezed(other) in named for other in OTHERS):
        return []
    subset = next((name for name in SIZES if squeezed(name) in named), None)
    if subset is None:
        raise ValueError(f"neither 'subset' nor the place {place!r} names one of {', '.join(SIZES)}")
    return [
        replace(item, id=f"{subset}/{item.id[:16] if item.id == item.key else item.id}",
                source={**item.source, "subset": subset})
        for item in llmbar(row)
    ]  # fmt: skip


def rule(outcomes: Sequence[Outcome], valid_only: bool) -> Figures:
    """Sets, overall, and the authors' figures over the two games."""
    metrics: dict[str, Any] = {name: share(own, valid_only) for name, own in by_subset(outcomes).items()}
    whole = mean_share((part, 1) for part in metrics.values())
    return Figures.of(whole, {**metrics, **games(outcomes)})


def games(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """The authors' figures: accuracy in each order, mean, right in both, equal verdicts; over pairs with two games."""
    played = [(wins(o), o) for o in outcomes if len(wins(o)) == 2]
    orders = [plain_mean(float(won[g] > 0) for won, _ in played) for g in (0, 1)]
    return {
        "first_order": orders[0],
        "second_order": orders[1],
        "games": plain_mean(orders),
        "both": plain_mean(float(min(won) > 0) for won, _ in played),
        "equal": plain_mean(float(won[0] == won[1]) for won, _ in played),
    }


BENCHMARK = Benchmark(
    name="llmbar",
    title="LLMBar",
    version="princeton-nlp/LLMBar, 419 pairs",
    licence="MIT",
    source="https://github.com/princeton-nlp/LLMBar (arXiv 2310.07641)",
    sizes=SIZES,
    convert=convert,
    rule=rule,
)
