r"""The compact form: a prompt and a judgment that a model of a million parameters can learn.

The model reads

    Query: Write a tweet about bees for parents.
    [1] Hello, our old bees can help, please!
    [2] Bees may last for 3 days.
    Judge by criteria.

and writes principles with weights, findings per response with their sum, and the scores by position shown:

    short 5, clean 3, polite 2
    [1] short yes, clean yes, polite yes = 10
    [2] short yes, clean yes, polite no = 8
    \boxed{10, 8}

Only the boxed scores decide (DESIGN rule 3); the lines above them are kept as principles and critique.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from opengrm.items import Item, Message
from opengrm.templates.base import Parsed, fence

_MARKERS = (
    re.compile(r"\[\s*\d+\s*\]"),
    re.compile(r"\\+boxed", re.IGNORECASE),
    re.compile(r"\b(?:Query|User|Assistant|System|Developer|Tool|Reference|Criteria|Hint)[^\S\n]*:", re.IGNORECASE),
    re.compile(r"\bJudge (?:by criteria|without criteria|by the criteria)\b", re.IGNORECASE),
)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_FINDING = re.compile(r"^\[\d+\]")


@dataclass(frozen=True)
class Compact:
    """The compact template and its forms; each form has its own `name`, so that judgments of two never mix.

    Attributes:
        hinted: adds which response is the labelled best, by position shown (the hint of rejective fine-tuning).
        given: shows `item.principles` and asks to judge by these (Eq. 8).
        reference: shows `item.reference`.
        principles: False asks for findings without a line of principles (the ablation "w/o principle generation").
        binary: a single response, scored 0 or 1 (the paper's training form for single responses).
        solo: one response a prompt, so that n generations make one judgment.
    """

    hinted: bool = False
    given: bool = False
    reference: bool = False
    principles: bool = True
    binary: bool = False
    solo: bool = False

    def __post_init__(self) -> None:
        if self.given and not self.principles:
            raise ValueError("given principles and no principles exclude each other")

    @property
    def name(self) -> str:
        forms = {
            "hinted": self.hinted,
            "given": self.given,
            "reference": self.reference,
            "noprinciples": not self.principles,
            "binary": self.binary,
            "solo": self.solo,
        }
        return "-".join(["compact", *(form for form, on in forms.items() if on)])

    @property
    def version(self) -> str:
        return "1"

    @property
    def low(self) -> float:
        return 0.0

    @property
    def high(self) -> float:
        return 1.0 if self.binary else 10.0

    def render(self, item: Item, order: Sequence[int]) -> tuple[Message, ...]:
        """One user message (see the file's docstring).

        Raises:
            ValueError: the form wants a hint, principles or a reference that the item lacks, or the binary or the solo
                form is given more than one response.
        """
        if (self.binary or self.solo) and item.n != 1:
            raise ValueError(f"the {self.name} form shows a single response, this item has {item.n}")
        lines = [_turn(m.role, m.content) for m in item.prompt[:-1]]
        last = item.prompt[-1]
        lines.append(_turn("query" if last.role == "user" else last.role, last.content))
        if self.reference:
            if item.reference is None:
                raise ValueError(f"the reference form needs 'reference', item {item.id!r} has none")
            lines.append(f"Reference: {fence(item.reference, *_MARKERS)}")
        lines += [f"[{p + 1}] {fence(item.responses[i], *_MARKERS)}" for p, i in enumerate(order)]
        if self.given:
            if not item.principles:
                raise ValueError(f"the given form needs 'principles', item {item.id!r} has none")
            lines.append(f"Criteria: {', '.join(fence(p, *_MARKERS) for p in item.principles)}")
        if self.hinted:
            if item.n < 2 or item.label is None:
                raise ValueError(f"the hinted form needs a labelled best of 2 or more responses, item {item.id!r}")
            lines.append(f"Hint: the best is [{list(order).index(item.label) + 1}]")
        lines.append(self._task)
        return (Message("user", "\n".join(lines)),)

    @property
    def _task(self) -> str:
        task = "Judge by the criteria" if self.given else "Judge by criteria" if self.principles else "Judge"
        if not self.principles:
            task = "Judge without criteria"
        return f"{task}, 0 or 1." if self.binary else f"{task}."

    def parse(self, text: str, n: int) -> Parsed:
        r"""Scores from the last `\boxed{...}`: exactly n numbers in range, by position shown. Never raises."""
        principles, critique = _parts(text)
        found = _BOXED.findall(text)

        def missing(error: str) -> Parsed:
            return Parsed(None, error, principles, critique)

        if not found:
            return missing("unparsable: no \\boxed{...} in the text")
        fields = [f.strip() for f in found[-1].split(",")]
        if not all(_NUMBER.fullmatch(f) for f in fields):
            return missing(f"unparsable: the last box holds {found[-1]!r:.80}")
        if len(fields) != n:
            return missing(f"wrong_count: {len(fields)} scores for {n} responses")
        scores = tuple(float(f) for f in fields)
        outside = [s for s in scores if not self.low <= s <= self.high]
        if outside:
            return missing(f"out_of_range: {outside[0]:g} is not in {self.low:g}..{self.high:g}")
        return Parsed(scores, None, principles, critique)


def _turn(role: str, content: str) -> str:
    return f"{role.capitalize()}: {fence(content, *_MARKERS)}"


def _parts(text: str) -> tuple[str | None, str | None]:
    """The principles (what stands before the first finding) and the critique (from there to the last box)."""
    end = text.rfind("\\boxed{")
    lines = (text if end < 0 else text[:end]).strip().split("\n")
    first = next((i for i, line in enumerate(lines) if _FINDING.match(line)), len(lines))
    return "\n".join(lines[:first]).strip() or None, "\n".join(lines[first:]).strip() or None
