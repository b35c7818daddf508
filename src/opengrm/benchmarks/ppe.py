"""PPE (Preference Proxy Evaluations): human preference, and correctness with 32 responses a prompt.

    {"question_id": "q", "prompt": "Name a prime.", "response_1": "7", "response_2": "8", "winner": "model_a",
     "model_a": "x", "model_b": "y", "language": "English", "hard_prompt": false}
    {"question_id": "q", "model_name": "x", "prompt": "2+2?", "response_1": "4", ..., "response_32": "5",
     "scores": [true, ..., false], "conflict_pairs": [[0, 31]]}

Rules. Preference: accuracy over the pairs with a winner, and the agreement on the ranking of the models
(`benchmarks.battles`; of the paper's figures, separability, confidence agreement and the Brier score of ratings are
not here: its description leaves them open). Correctness: accuracy over each data set's `conflict_pairs` (one right,
one wrong), and the plain mean of the five data sets. Best-of-k curve: the expected correctness of the response that
the scores pick among k random ones of the 32, exact over all subsets, ties shared; `end` is its value
at 32, `max` its highest, `loss` its mean squared distance to the curve of a perfect judge (the paper's three best-of-k
measures, arXiv 2410.14872, by its description: not checked against the authors' code); `auc` is the mean ROC-AUC
within prompts.

Traps: rows whose winner is neither model are ties, which have no accuracy: they are not read. A row does not say which
data set it is of; its file or hub name has to (mmlu, math, gpqa, ifeval, mbpp). Judges that compare see each conflict
pair by itself (then there is no curve); judges that score each response alone see the list of 32. Sizes are those that
the hub's pages of MATH, IFEval and MBPP-Plus show; MMLU-Pro and GPQA are taken to be like MATH: 2,555 lists of five
pairs, the 12.7K of the SPCT paper.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.benchmarks.base import (
    Benchmark,
    Figures,
    Outcome,
    Target,
    by_subset,
    mean_share,
    micro,
    plain_mean,
    share,
    share_of,
    squeezed,
)
from opengrm.benchmarks.battles import ranking_figures
from opengrm.items import Item
from opengrm.jsonl import Row
from opengrm.rows import ppe_human, ppe_list
from opengrm.voting.association import roc_auc_at_chance

SIZES = {"MMLU-Pro": 512, "GPQA": 512, "IFEval": 512, "MBPP-Plus": 507, "MATH": 512}
DATASETS = {"mmlu": "MMLU-Pro", "gpqa": "GPQA", "ifeval": "IFEval", "mbpp": "MBPP-Plus", "math": "MATH"}


def preference(row: Row, place: str) -> list[Item]:
    """A pair with a winner; nothing for a tie."""
    if row.get("winner") not in ("model_a", "model_b") and not re.match("tie|bothbad", squeezed(str(row["winner"]))):
        raise ValueError(f"'winner' is {row['winner']!r:.80}, expected 'model_a', 'model_b' or 'tie'")
    return [
        replace(item, source={**item.source, "subset": str(row.get("language") or "all")})
        for item in ppe_human(row)
        if row["winner"] in ("model_a", "model_b")
    ]


def correctness(row: Row, place: str) -> list[Item]:
    """A row as a list of responses with rewards 1 and 0."""
    named = squeezed(str(row.get("dataset") or place))
    subset = next((title for key, title in DATASETS.items() if key in named), None)
    if subset is None:
        said = repr(row["dataset"])[:80] if row.get("dataset") else repr(place)
        raise ValueError(f"{said} does not say which data set it is: a name with {', '.join(DATASETS)}")
    (item,) = ppe_list(row)
    pairs = row.get("conflict_pairs")
    if not isinstance(pairs, list) or not all(_is_conflict(pair, item.rewards or ()) for pair in pairs):
        raise ValueError("'conflict_pairs' must be pairs of indices of a right and a wrong response")
    name = f"{subset}/{item.id}"
    return [replace(item, id=name, source={**item.source, "subset": subset, "cluster": name})]


def _is_conflict(pair: object, rewards: Sequence[float]) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(i) is int and 0 <= i < len(rewards) for i in pair)
        and rewards[pair[0]] != rewards[pair[1]]
    )


def pairs(item: Item) -> list[Item]:
    """The item's conflict pairs as items of two responses."""
    found = []
    for a, b in item.source["conflict_pairs"]:
        assert item.rewards is not None
        source = {"subset": item.source["subset"], "cluster": item.source["cluster"], "schema": "ppe-pair"}
        found.append(
            Item(
                item.prompt,
                (item.responses[a], item.responses[b]),
                best=int(item.rewards[b] > item.rewards[a]),
                id=f"{item.id}/{a}-{b}",
                source=source,
            )
        )
    return found


def credit(outcome: Outcome) -> float | None:
    """The share of the item's conflict pairs whose right response scores higher, ties as half."""
    target, scores = outcome.target, outcome.scores
    if scores is None:
        return None
    rewards = target.rewards
    if rewards is None:
        return 0.5 if scores[0] == scores[1] else float(scores[int(target.label or 0)] == max(scores))
    earned = [
        0.5 if scores[a] == scores[b] else float((scores[a] > scores[b]) == (rewards[a] > rewards[b]))
        for a, b in target.facts["conflict_pairs"]
    ]
    return plain_mean(earned) if earned else correctness_chance(target)  # nothing to get wrong, and no weight


def best_of(scores: Sequence[float] | None, right: Sequence[float]) -> list[float]:
    """Expected correctness of the top response among k random ones, for k = 1..n.

    Args:
        scores: what picks, ties shared; None picks at random.
        right: 1 or 0 for each response.
    """
    n = len(right)
    score_N = np.zeros(n) if scores is None else np.asarray(scores, dtype=np.float64)
    _, level_N, counts_L = np.unique(-score_N, return_inverse=True, return_counts=True)
    # What a level is worth stands at each of its ranks: a subset's top is equally likely any of those tied there.
    worth_L = np.bincount(level_N, weights=np.asarray(right, dtype=np.float64)) / counts_L
    found: list[float] = (np.repeat(worth_L, counts_L) @ _top_ranks(n)).tolist()
    return found


@lru_cache(maxsize=8)
def _top_ranks(n: int) -> npt.NDArray[np.float64]:
    """How likely the response at rank r (row) is the top of k random ones of n (column k - 1)."""
    return np.array([[math.comb(n - 1 - r, k - 1) / math.comb(n, k) for k in range(1, n + 1)] for r in range(n)])


def curve_figures(outcomes: Sequence[Outcome], valid_only: bool) -> dict[str, Any]:
    """Best-of-k figures of lists: the mean curve, and what is quoted of it."""
    lists = [o for o in outcomes if o.target.rewards is not None and (o.scores is not None or not valid_only)]
    if not lists or len({o.target.n for o in lists}) > 1:
        return {}
    curves = [best_of(o.scores, o.target.rewards or ()) for o in lists]
    perfect = [best_of(o.target.rewards, o.target.rewards or ()) for o in lists]
    mean, best = ([sum(column) / len(lists) for column in zip(*c, strict=True)] for c in (curves, perfect))
    areas = share_of((o.target, _auc(o.scores, o.target.rewards or ())) for o in lists)
    return {
        "best_of_k": mean,
        "perfect_of_k": best,
        "end": mean[-1],
        "max": max(mean),
        "loss": sum((a - b) ** 2 for a, b in zip(mean, best, strict=True)) / len(mean),
        "auc": areas,
    }


def _auc(scores: Sequence[float] | None, rewards: Sequence[float]) -> float | None:
    score_N = np.full(len(rewards), np.nan) if scores is None else np.asarray(scores, dtype=np.float64)
    area = roc_auc_at_chance(score_N, np.asarray(rewards, dtype=np.float64), np.ones((1, len(rewards))))[0]
    return None if np.isnan(area) else float(area)


def rule(outcomes: Sequence[Outcome], valid_only: bool) -> Figures:
    """Each data set's accuracy over its conflict pairs, their plain mean, and best-of-k figures."""
    metrics: dict[str, Any] = {
        name: share_of(((o.target, o.earned(valid_only)) for o in own), _conflicts)
        for name, own in by_subset(outcomes).items()
    }
    whole = mean_share((part, 1) for part in metrics.values())
    for name, own in by_subset(outcomes).items():
        metrics |= {f"{name} {key}": value for key, value in curve_figures(own, valid_only).items()}
    return Figures.of(whole, metrics)


def _conflicts(target: Target) -> int:
    """A list counts as often as it has conflict pairs."""
    return len(target.facts["conflict_pairs"]) if "conflict_pairs" in target.facts else 1


def preference_rule(outcomes: Sequence[Outcome], valid_only: bool) -> Figures:
    """Accuracy over all pairs and over those in English."""
    found = micro(outcomes, valid_only)
    english = share((o for o in outcomes if o.target.subset == "English"), valid_only)
    return found._replace(metrics={**found.metrics, "English": english})


def correctness_chance(target: Target) -> float:
    """A coin for each pair."""
    return 0.5


PREFERENCE = Benchmark(
    name="ppe-preference",
    title="PPE Preference",
    version="lmarena-ai/PPE-Human-Preference-V1, split test, 16,038 rows with ties",
    licence="prompts CC-BY-4.0; responses under their models' terms",
    source="https://github.com/lmarena/PPE (arXiv 2410.14872)",
    hub=(("lmarena-ai/PPE-Human-Preference-V1", None, "test"),),
    rows=16_038,
    convert=preference,
    rule=preference_rule,
    more=ranking_figures,
)
CORRECTNESS = Benchmark(
    name="ppe-correctness",
    title="PPE Correctness",
    version="lmarena-ai/PPE-*-Best-of-K, split train, 2,555 prompts of five data sets",
    licence="as stated on each data set's card",
    source="https://github.com/lmarena/PPE (arXiv 2410.14872)",
    hub=tuple((f"lmarena-ai/PPE-{name}-Best-of-K", None, "train") for name in DATASETS.values()),
    sizes=SIZES,
    convert=correctness,
    rule=rule,
    credit=credit,
    chance=correctness_chance,
    pairs=pairs,
)
