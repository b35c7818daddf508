r"""LLM-as-a-judge (paper v3, Eq. 6 and its appendix of prompts): one text names the best of two responses or more.

The structure is the paper's for this baseline: the GRM's prompt with the same four criteria, without their points; the
best response is to be selected among all candidates, and the last line is `Scores: \boxed{x}` with its number. The
wording is our own, and the blocks are the GRM family's (`grm.py`), so that the two judges differ in nothing else.

    judge         all n >= 2 responses in one prompt; 1 for the one named, 0 for the others

`+reference`, `+principles`, `+no-principles` and `+hint` are the GRM family's additions. Scores are one-hot, by
position shown: what is correct, training, ledgers and votes need to know nothing of this family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from opengrm.items import Item, Message
from opengrm.templates.base import EXTRAS, Parsed
from opengrm.templates.grm import REFERENCE_NOTE, ROLE, STEPS, prompt
from opengrm.templates.parsing import sections
from opengrm.templates.recorded import boxed_winner
from opengrm.templates.versions import text_version

_CHOICE = """\
At the end select the best response among all candidates and give its number. Name exactly one: where two are close, \
decide which of them serves the query better. Neither its place in the list nor its length makes a response better."""

_CRITERIA = """\
1. Instruction Adherence: does all that is asked, in the way that it is asked, with every constraint kept.
2. Usefulness: right and complete; the asker can act on it at once.
3. Level of Detail: every point is as deep as the query needs, with nothing missing and no padding.
4. Relevance: everything in it serves the query."""


@dataclass(frozen=True, slots=True)
class JudgeTemplate:
    """The family; see the top of this file.

    Attributes:
        form: "judge", the only one.
        reference, principles, no_principles, hint: the additions.

    Raises:
        ValueError: an unknown form, or additions that do not go together.
    """

    form: str = "judge"
    reference: bool = False
    principles: bool = False
    no_principles: bool = False
    hint: bool = False

    def __post_init__(self) -> None:
        if self.form != "judge":
            raise ValueError(f"unknown form {self.form!r}: expected judge")
        if self.principles and self.no_principles:
            raise ValueError("'principles' and 'no-principles' exclude each other")

    @property
    def name(self) -> str:
        flags = (self.reference, self.principles, self.no_principles, self.hint)
        return "+".join([self.form, *(name for name, on in zip(EXTRAS, flags, strict=True) if on)])

    @property
    def version(self) -> str:
        """Twelve hex digits over the rendered text of a fixed item, the parse rule and its version."""
        return text_version(self, "boxed-winner", alone=False)

    @property
    def low(self) -> float:
        return 0.0

    @property
    def high(self) -> float:
        return 1.0

    @property
    def solo(self) -> bool:
        return False

    def render(self, item: Item, order: Sequence[int]) -> tuple[Message, ...]:
        """One user message: instructions, criteria, conversation, responses in shown order, output format.

        Raises:
            ValueError: a single response; no reference, principles or label where the form needs it; an order that is
                not a permutation of the responses.
        """
        if sorted(order) != list(range(item.n)):
            raise ValueError(f"order {list(order)} is not a permutation of 0..{item.n - 1}")
        if item.n < 2:
            raise ValueError(f"{self.name} compares responses, this item has one")
        return prompt(
            item, order, self._instructions(), _CRITERIA, self._output_format(),
            principles=self.principles, reference=self.reference, hint=self.hint,
        )  # fmt: skip

    def parse(self, text: str, n: int) -> Parsed:
        """1 for the position named in the last box, 0 for the others; principles and critique. Never raises."""
        principles, critique = sections(text)
        return replace(boxed_winner(text, n, self.low, self.high), principles=principles, critique=critique)

    def _instructions(self) -> str:
        steps = "given" if self.principles else "none" if self.no_principles else "own"
        return "\n".join([ROLE, STEPS[steps], _CHOICE, *([REFERENCE_NOTE] if self.reference else [])])

    def _output_format(self) -> str:
        lines = [f"{'Two' if self.no_principles else 'Three'} lines, in this order and with these words in front:"]
        if not self.no_principles:
            lines.append("Specific Criteria: <the specific criteria, each with its weight>")
        lines.append("Analysis: <the analysis of every response by the criteria>")
        lines.append(r"Scores: <the number of the best response, in a box: \boxed{x}>")
        return "\n".join(lines)
