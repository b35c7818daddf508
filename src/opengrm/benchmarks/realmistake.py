"""ReaLMistake: 900 single responses of GPT-4 and Llama 2, labelled by experts as with or without an error.

    {"input": "Is 8 a prime?", "llm_response": "Yes.", "error_label": "error",
     "metadata": {"id": "i", "task_name": "answerability_classification", "llm_response_model": "gpt-4-0613"}}

Rule: ROC-AUC of the scores over all items, as the SPCT paper reports it (Table 13); the authors of the set report
binary error detection instead. An item's credit is the share of items with the other label that it is ranked against
rightly (ties half), so that the mean over either label is the AUC. Without a verdict: half (at chance), or left out.

Traps: the data come as data.zip, whose password the authors give in their README so that the rows do not stand in
plain text on the net: the archive is read as it is and never unpacked to disk; its example.jsonl repeats three rows.
Their README calls the label `label`, the files `error_label`. Task names differ between files; both labels must be
there for an AUC.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opengrm.benchmarks.base import Benchmark, Figures, Outcome, by_subset
from opengrm.benchmarks.ranks import auc, finish
from opengrm.errors import OpenGRMError
from opengrm.items import Item
from opengrm.jsonl import OnBad, Row, read_lines, read_rows
from opengrm.rows import realmistake

PASSWORD = b"open-realmistake"
TASKS = ("math_problem_generation", "finegrained_fact_verification", "answerability_classification")
SIZES = {f"{t}/{m}": n for t in TASKS for m, n in (("gpt-4-0613", 140), ("meta-llama/Llama-2-70b-chat-hf", 160))}


def read(path: Path, on_bad: OnBad | None) -> Iterator[tuple[str, str, Row]]:
    """The rows of the authors' archive, or of a plain file."""
    if path.suffix != ".zip":
        for where, row in read_rows(path, on_bad):
            yield where, path.name, row
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                if not member.endswith(".jsonl") or Path(member).name in ("example.jsonl", "sample.jsonl"):
                    continue
                with archive.open(member, pwd=PASSWORD) as raw:
                    for where, row in read_lines(raw, f"{path}/{member}", on_bad):
                        yield where, member, row
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise OpenGRMError(f"{path}: cannot be read: {error}") from error


def convert(row: Row, place: str) -> list[Item]:
    """A single response with reward 1 (no error) or 0."""
    metadata = row.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    subset = "/".join(str(known[key]) for key in ("task_name", "llm_response_model") if known.get(key)) or "all"
    found = []
    for item in realmistake(row):
        name = item.id if item.id == item.key else f"{subset}/{item.id}"
        found.append(replace(item, id=name, source={**item.source, "subset": subset}))
    return found


def credit(outcome: Outcome) -> float | None:
    """Replaced by `finish`: an item alone earns nothing."""
    return None if outcome.scores is None else 0.5


def detection(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The authors' figures of binary error detection, from scores of 1 (no error) and 0 (error).

    A missing verdict is never correct in `accuracy`, and counts as "no error" in all the others, as in their files.
    """
    found = [(o.scores is not None, o.scores is not None and o.scores[0] == 0, o.target.label == 0) for o in outcomes]
    total = len(found)
    hit = sum(said and gold for _, said, gold in found)
    said_error, gold_error = (sum(column) for column in ([s for _, s, _ in found], [g for _, _, g in found]))
    precision = hit / said_error if said_error else 0.0
    recall = hit / gold_error if gold_error else 0.0
    return {
        "accuracy": sum(valid and said == gold for valid, said, gold in found) / total,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hit else 0.0,
        "true_negative_rate": sum(not said and not gold for _, said, gold in found) / total,
        "false_positive_rate": sum(said and not gold for _, said, gold in found) / total,
        "false_negative_rate": sum(not said and gold for _, said, gold in found) / total,
        "true_positive_rate": hit / total,
    }


def rule(outcomes: Sequence[Outcome], valid_only: bool) -> Figures:
    """AUC over all items, and within each task and model; of 0/1 verdicts also the authors' own figures."""
    whole = auc(outcomes, valid_only)
    metrics: dict[str, Any] = {f"{name} auc": auc(own, valid_only) for name, own in by_subset(outcomes).items()}
    scores = {o.scores[0] for o in outcomes if o.scores is not None}
    if scores and scores <= {0.0, 1.0}:
        metrics |= detection(outcomes)
    return Figures.of(whole, {"auc": whole, **metrics})


BENCHMARK = Benchmark(
    name="realmistake",
    title="ReaLMistake",
    version="psunlpgroup/ReaLMistake, data.zip, 900 rows",
    licence="CC BY-SA 4.0",
    source="https://github.com/psunlpgroup/ReaLMistake (arXiv 2404.03602)",
    sizes=SIZES,
    convert=convert,
    rule=rule,
    credit=credit,
    read=read,
    finish=finish,
    ranks=True,
)
