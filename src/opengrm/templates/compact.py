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

Only the boxed scores decide (design rule 3), and they close the text: words behind the last box mean that it was
quoted from a response. The lines above are kept as principles and critique. Forms and additions have the names of the
GRM family (`grm.py`): `compact-solo`, `compact-binary`, `+reference`, `+principles`, `+no-principles`, `+hint`. A
hinted prompt without its line "Hint: ..." is the un-hinted prompt byte for byte.

LLM-as-a-judge in this form is `compact-judge`, for two responses or more: the last line of the prompt is "Name the
best by criteria.", and the box holds one number, the position of the best response.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opengrm.items import Item, Message
from opengrm.templates.base import EXTRAS, Parsed, fence
from opengrm.templates.parsing import boxed_scores
from opengrm.templates.recorded import boxed_winner
from opengrm.templates.versions import text_version

_MARKERS = (
    re.compile(r"\[\s*\d+\s*\]"),
    re.compile(r"\\boxed", re.IGNORECASE),
    re.compile(r"\b(?:Query|User|Assistant|System|Developer|Tool|Reference|Criteria|Hint)[^\S\n]*:", re.IGNORECASE),
    re.compile(r"\b(?:Judge|Name the best) (?:by criteria|without criteria|by the criteria)\b", re.IGNORECASE),
)
_FINDING = re.compile(r"^\[\d+\]")

FORMS = ("compact", "compact-solo", "compact-binary", "compact-judge")


@dataclass(frozen=True, slots=True)
class Compact:
    """The compact template and its forms; each form has its own `name`, so that judgments of two never mix.

    Attributes:
        form: "compact" (all responses in one prompt, scores 0..10), "compact-solo" (one response a prompt, n
            generations make one judgment), "compact-binary" (one response, scored 0 or 1; a training form),
            "compact-judge" (two responses or more in one prompt; 1 for the one named best, 0 for the others).
        reference: shows `item.reference`.
        principles: shows `item.principles` and asks to judge by these (Eq. 8).
        no_principles: asks for findings without a line of principles (the ablation "w/o principle generation").
        hint: tells which response is labelled best, by position shown (rejective fine-tuning).

    Raises:
        ValueError: an unknown form, or additions that do not go together.
    """

    form: str = "compact"
    reference: bool = False
    principles: bool = False
    no_principles: bool = False
    hint: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"unknown form {self.form!r}: expected one of {', '.join(FORMS)}")
        if self.principles and self.no_principles:
            raise ValueError("'principles' and 'no-principles' exclude each other")
        if self.hint and self.solo:
            raise ValueError(f"'hint' names the best of several responses, {self.form} shows one")

    @property
    def name(self) -> str:
        flags = (self.reference, self.principles, self.no_principles, self.hint)
        return "+".join([self.form, *(name for name, on in zip(EXTRAS, flags, strict=True) if on)])

    @property
    def version(self) -> str:
        """Twelve hex digits over the rendered text of fixed items and the parser's version."""
        if self.names_best:
            return text_version(self, "boxed-winner", alone=False)
        return text_version(self, alone=not self.hint)

    @property
    def low(self) -> float:
        return 0.0

    @property
    def high(self) -> float:
        return 1.0 if self.form in ("compact-binary", "compact-judge") else 10.0

    @property
    def solo(self) -> bool:
        return self.form in ("compact-solo", "compact-binary")

    @property
    def names_best(self) -> bool:
        """Whether the box holds the position of the best response instead of scores."""
        return self.form == "compact-judge"

    def render(self, item: Item, order: Sequence[int]) -> tuple[Message, ...]:
        """One user message (see the file's docstring).

        Raises:
            ValueError: no reference, principles or label where the form needs it; several responses in a solo form; an
                order that is not a permutation of the responses; a single response where the best is to be named.
        """
        if sorted(order) != list(range(item.n)):
            raise ValueError(f"order {list(order)} is not a permutation of 0..{item.n - 1}")
        if self.solo and item.n != 1:
            raise ValueError(f"{self.name} shows one response a prompt, this item has {item.n}")
        if self.names_best and item.n < 2:
            raise ValueError(f"{self.name} compares responses, this item has one")
        last = item.prompt[-1]
        lines = [_turn(m.role, m.content) for m in item.prompt[:-1]]
        lines.append(_turn("query" if last.role == "user" else last.role, last.content))
        if self.reference:
            if item.reference is None:
                raise ValueError(f"{self.name} shows a reference answer, item {item.id} has none")
            lines.append(f"Reference: {_data(item.reference)}")
        lines += [f"[{position}] {_data(item.responses[index])}" for position, index in enumerate(order, 1)]
        if self.principles:
            if not item.principles:
                raise ValueError(f"{self.name} shows given principles, item {item.id} has none")
            lines.append(f"Criteria: {', '.join(_data(p) for p in item.principles)}")
        if self.hint:
            if item.n < 2 or item.label is None:
                raise ValueError(
                    f"{self.name} names the best of several responses, item {item.id} has no label for it"
                )
            lines.append(f"Hint: the best is [{list(order).index(item.label) + 1}]")
        lines.append(self._task())
        return (Message("user", "\n".join(lines)),)

    def parse(self, text: str, n: int) -> Parsed:
        """Scores by position shown from the box that closes the text: n numbers in range, or the best's position.

        Never raises.
        """
        principles, critique = _parts(text)
        parsed = (boxed_winner if self.names_best else boxed_scores)(text, n, self.low, self.high)
        if parsed.scores is not None and parsed.followed:
            parsed = Parsed(None, "unparsable: the text goes on behind the last box")
        return replace(parsed, principles=principles, critique=critique)

    def _task(self) -> str:
        by = "by the criteria" if self.principles else "without criteria" if self.no_principles else "by criteria"
        if self.names_best:
            return f"Name the best {by}."
        return f"Judge {by}, 0 or 1." if self.form == "compact-binary" else f"Judge {by}."


def _data(text: str) -> str:
    return fence(text, *_MARKERS)


def _turn(role: str, content: str) -> str:
    return f"{role.capitalize()}: {_data(content)}"


def _parts(text: str) -> tuple[str | None, str | None]:
    """The principles (what stands before the first finding) and the critique (from there to the last box)."""
    end = text.rfind("\\boxed{")
    lines = (text if end < 0 else text[:end]).strip().split("\n")
    first = next((i for i, line in enumerate(lines) if _FINDING.match(line)), len(lines))
    return "\n".join(lines[:first]).strip() or None, "\n".join(lines[first:]).strip() or None
