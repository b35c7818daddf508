"""Process measures of RubricWorld: not only whether a judgment is right, but whether for the right reasons.

`measure` reads a judgment text strictly in the compact form and compares its principles with the item's hidden
criteria, and its findings with what `english.meets` reads in the same texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from opengrm.items import Item
from opengrm.judgments import own_order
from opengrm.templates.compact import Compact
from opengrm.voting.correctness import correct, label_of
from opengrm.worlds.english import CRITERIA, meets
from opengrm.worlds.rubric import query_of

_PRINCIPLE = re.compile(r"([a-z]+) (\d{1,2})")
_LINE = re.compile(r"\[(\d+)\] ([a-z]+ (?:yes|no)(?:, [a-z]+ (?:yes|no))*) = (\d{1,2})")


@dataclass(frozen=True, slots=True)
class Reading:
    """A judgment text of this world in parts.

    Attributes:
        principles: (criterion, weight) as written; empty in a form without principles.
        findings: for each position shown, (criterion, met) as written.
        totals: for each position shown, the number behind the equals sign.
    """

    principles: tuple[tuple[str, int], ...]
    findings: tuple[tuple[tuple[str, bool], ...], ...]
    totals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Process:
    """How one judgment came about; each value is 0..1, or None where it does not apply.

    Attributes:
        readable: the text has the compact form exactly. If not, every other value is None.
        principle_precision: share of the written criteria that are hidden criteria of the query.
        principle_recall: share of the hidden criteria that were written.
        principles_exact: criteria and weights are all right.
        critique_accuracy: share of the findings that agree with what code reads in the text.
        sums_right: share of the responses whose total is the sum of the written weights found met.
        correct: the verdict is right (n >= 2: the labelled best strictly on top; n = 1: the score is the label).
        sound: right verdict for right reasons: correct, criteria and weights exact, every finding true, sums right.
    """

    readable: bool
    principle_precision: float | None = None
    principle_recall: float | None = None
    principles_exact: bool | None = None
    critique_accuracy: float | None = None
    sums_right: float | None = None
    correct: bool | None = None
    sound: bool | None = None


def read(text: str, n: int) -> Reading | None:
    """The parts of a judgment of n responses, or None where the text departs from the compact form in any way."""
    lines = text.strip().split("\n")
    principles: tuple[tuple[str, int], ...] = ()
    if lines and not lines[0].startswith("["):
        matches = [_PRINCIPLE.fullmatch(part) for part in lines.pop(0).split(", ")]
        if any(m is None or m[1] not in CRITERIA for m in matches):
            return None
        principles = tuple((m[1], int(m[2])) for m in matches if m is not None)
        if len({name for name, _ in principles}) != len(principles):
            return None
    if len(lines) != n + 1 or not lines[-1].startswith("\\boxed{"):
        return None
    findings, totals = [], []
    for position, line in enumerate(lines[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None or int(match[1]) != position:
            return None
        found = tuple((part.split(" ")[0], part.endswith(" yes")) for part in match[2].split(", "))
        if any(name not in CRITERIA for name, _ in found):
            return None
        findings.append(found)
        totals.append(int(match[3]))
    return Reading(principles, tuple(findings), tuple(totals))


def measure(item: Item, order: Sequence[int], text: str, template: Compact | None = None) -> Process:
    """The process measures of one judgment.

    Args:
        item: an item of RubricWorld, in its own order.
        order: `order[p]` is the index of the response shown at position p.
        text: what the model wrote.
        template: the form that was asked for; the plain one where None.

    Raises:
        ValueError: the item does not come from RubricWorld.
    """
    query = query_of(item)
    template = template or Compact()
    reading, scores = read(text, len(order)), template.parse(text, len(order)).scores
    if reading is None or scores is None or (not template.no_principles and not reading.principles):
        return Process(readable=False)
    true, written = set(query.criteria), set(reading.principles)
    true_names, written_names = {name for name, _ in true}, {name for name, _ in written}
    hits = len(true_names & written_names)
    checked = [
        found == meets(name, item.responses[index], query.topic)
        for index, findings in zip(order, reading.findings, strict=True)
        for name, found in findings
    ]
    weights = dict(reading.principles)
    sums = [
        sum(weights.get(name, 0) for name, found in findings if found) == total
        for findings, total in zip(reading.findings, reading.totals, strict=True)
    ]
    label = label_of(item)
    verdict = None if label is None else correct(own_order(scores, order), label)
    exact = written == true
    complete = all(tuple(name for name, _ in f) == tuple(weights) for f in reading.findings)
    return Process(
        readable=True,
        principle_precision=hits / len(written_names) if written_names else None,
        principle_recall=hits / len(true_names) if written_names else None,
        principles_exact=exact if written_names else None,
        critique_accuracy=sum(checked) / len(checked),
        sums_right=sum(sums) / len(sums) if written_names else None,
        correct=verdict,
        sound=verdict and exact and complete and all(checked) and all(sums),
    )


@dataclass(frozen=True, slots=True)
class ProcessSummary:
    """Means of process measures over judgments; each None where no judgment had a value.

    Attributes:
        judgments: how many there were.
        readable: share with the exact form; the other means are over these.
        sound_of_correct: share of the correct judgments that are sound.
    """

    judgments: int
    readable: float | None
    principle_precision: float | None
    principle_recall: float | None
    principles_exact: float | None
    critique_accuracy: float | None
    sums_right: float | None
    correct: float | None
    sound: float | None
    sound_of_correct: float | None


def summarise(processes: Iterable[Process]) -> ProcessSummary:
    """Means over judgments."""
    rows = list(processes)
    right = [p for p in rows if p.correct]

    def mean(name: str) -> float | None:
        values = [float(v) for p in rows if (v := getattr(p, name)) is not None]
        return sum(values) / len(values) if values else None

    return ProcessSummary(
        judgments=len(rows),
        readable=mean("readable"),
        principle_precision=mean("principle_precision"),
        principle_recall=mean("principle_recall"),
        principles_exact=mean("principles_exact"),
        critique_accuracy=mean("critique_accuracy"),
        sums_right=mean("sums_right"),
        correct=mean("correct"),
        sound=mean("sound"),
        sound_of_correct=sum(bool(p.sound) for p in right) / len(right) if right else None,
    )
