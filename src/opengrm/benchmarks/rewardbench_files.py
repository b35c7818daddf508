"""RewardBench's own result files, which its leaderboards take (reference: docs/benchmarks.md).

    eval-set/ORG/MODEL.json          {"model", "model_type", "chat_template", SUBSET: accuracy, ...}
    eval-set-scores/ORG/MODEL.json   one column for each field of the items

As its runners do, a scalar model's tie is wrong and a generative one's counts half; a missing verdict counts half, or
1/n, as its generative runner's random pick does on average.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from opengrm.benchmarks.base import Outcome, by_subset, mean_of
from opengrm.benchmarks.rewardbench2 import ties_score
from opengrm.items import Item

MODEL_TYPES = {"bt": "Seq. Classifier", "grm": "Generative RM", "llm": "Generative RM", "tokenprob": "Generative RM"}


def write_files(folder: Path, outcomes: Sequence[Outcome], items: Iterable[Item], model: str, judge: str) -> None:
    """Write both files below the folder.

    Args:
        folder: made if it is not there.
        outcomes: of RewardBench 1 or 2.
        items: the same items, for their texts; read once.
        model: its name; the last two parts of a path are ORG and MODEL.
        judge: the kind of judge, from which `model_type` follows.
    """
    parts = [re.sub(r"[^\w.\-]+", "_", part).strip(".") or "_" for part in model.replace("\\", "/").split("/") if part]
    org, name = ["local", *parts][-2:] if parts else ("local", "model")
    head: dict[str, Any] = {
        "model": f"{org}/{name}", "model_type": MODEL_TYPES.get(judge, "Custom Classifier"),
        "chat_template": "tokenizer",
    }  # fmt: skip
    half = head["model_type"] == "Generative RM"
    results = {o.target.item: _result(o, half) for o in outcomes}
    summary = dict(head)
    for subset, own in by_subset(outcomes).items():
        summary[subset] = (
            mean_of(ties_score(own, False))
            if subset == "Ties"
            else sum(results[o.target.item] for o in own) / len(own)
        )
    _write(folder / "eval-set" / org / f"{name}.json", summary)
    scored = {o.target.item: o for o in outcomes}
    columns: dict[str, list[Any]] = {}
    for item in items:
        outcome = scored.get(item.id)
        if outcome is not None:
            for key, value in _row(item, outcome, results[item.id]).items():
                columns.setdefault(key, []).append(value)
    _write(folder / "eval-set-scores" / org / f"{name}.json", {**head, **columns})


def _result(outcome: Outcome, half: bool) -> float:
    if outcome.credit is None:
        return outcome.chance
    return outcome.credit if half else float(outcome.credit == 1)


def _row(item: Item, outcome: Outcome, result: float) -> dict[str, Any]:
    row: dict[str, Any] = {"id": item.source.get("id"), "subset": outcome.target.subset, "results": result}
    scores = outcome.scores
    if "num_correct" in item.source:
        return {
            **row, "text": list(item.responses), "scores": None if scores is None else list(scores),
            "num_correct": item.source["num_correct"], "total_completions": item.n,
        }  # fmt: skip
    return {
        **row, "text_chosen": item.responses[0], "text_rejected": item.responses[1],
        "scores_chosen": None if scores is None else scores[0],
        "scores_rejected": None if scores is None else scores[1],
    }  # fmt: skip


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
