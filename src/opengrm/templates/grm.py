"""The GRM family (SPCT method, v3 Eqs. 7-9; text contract `formats.md` B.9): one text states the specific criteria,
analyses every response by them, and closes with all scores in one box.

The structure is the paper's: blocks, markers, three output lines and the names of the seed principles. The wording is
our own. A released checkpoint that wants its training prompt byte for byte takes it from a user's file (`user.py`).

Forms, as `get_template` names them:

    grm           all n >= 1 responses in one prompt, whole scores 1..10
    grm-solo      the same prompt with a single response; n generations make one judgment
    grm-binary    a single response, correct (1) or not (0); training only

and what can be added to the joint and solo forms, joined by `+` in this order:

    +reference        shows the item's reference answer
    +principles       shows the item's given principles, which take the place of self-generated ones (Eq. 8)
    +no-principles    asks for no specific criteria (the ablation of the paper's Table 4)
    +hint             tells which response is labelled best (rejective fine-tuning only; joint form)

Where the paper leaves a choice open:

- The hint is the last line of the prompt. The prompt without that line is the un-hinted prompt byte for byte, so a
  trainer that strips the hint (as it must) renders the un-hinted form.
- With given principles the output still has three lines: the first restates them with weights. One parser, one
  layout, and a judgment that can be read on its own.
- A conversation of one user turn is shown as it is; any other has a label before every turn.
- Without principles the seed criteria stay: what the ablation removes is generation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opengrm.items import Item, Message
from opengrm.templates.base import EXTRAS, Parsed, fence
from opengrm.templates.parsing import RULES, sections
from opengrm.templates.versions import text_version

FORMS = ("grm", "grm-solo", "grm-binary")

# What looks like one of this family's markers. A heading is matched from its last hash: `fence` puts its space behind
# the first character of a match, and behind the first hash of a longer run it would leave an exact heading standing.
MARKERS = (
    re.compile(r"\[\s*The\s+(?:Begin(?:ning)?|Start|End)\s+of\b", re.IGNORECASE),
    re.compile(
        r"#(?<=##)\s*(?:(?:General|Specific|Evaluation)\s+(?:Evaluation\s+)?Criteria|Conversation\s+Context"
        r"|Responses?\s+to\s+be\s+Scored|Reference\s+Answer|Output\s+Format(?:\s+Requirements)?)",
        re.IGNORECASE,
    ),
    re.compile(r"The\s+best\s+response\s+is\s*:\s*Response", re.IGNORECASE),
)
TURN = re.compile(r"^(?:System|Developer|User|Assistant|Tool)\s*:", re.IGNORECASE | re.MULTILINE)

ROLE = """\
You are a strict and careful judge of responses. You are given general criteria, a conversation, and the response or \
responses that were written to continue it."""

STEPS = {
    "own": """\
First work out what this particular query asks for beyond the general criteria: state specific criteria of your own, \
each with a weight in percent, and let the weights add up to 100%. Then analyse every response step by step by those \
criteria, and set the responses against each other where there are several.""",
    "given": """\
Specific criteria for this query are given below. Use them and add none of your own: state each one with a weight in \
percent, and let the weights add up to 100%. Then analyse every response step by step by those criteria, and set the \
responses against each other where there are several.""",
    "none": """\
Analyse every response step by step by the general criteria, and set the responses against each other where there are \
several.""",
}

_SCALE = """\
At the end give every response one overall score, a whole number from 1 to 10: 1 for a response that does nothing of \
what is asked, 6 for one that does a part of it, 10 for one that leaves nothing to wish for. Do not be generous: a \
fault that a careful reader would find has to cost points."""

_BINARY_SCALE = """\
At the end give the response one overall score, 0 or 1: 1 if it is correct, 0 if it is not. Do not be generous: an \
answer with a mistake that matters is not correct."""

REFERENCE_NOTE = """\
A reference answer is given as well. It is right; a response may say the same in other words."""

_CRITERIA = """\
1. Instruction Adherence
   - 9-10: does all that is asked, in the way that it is asked, with every constraint kept.
   - 6-8: does the main thing that is asked; a lesser wish or constraint is missed.
   - 3-5: does some of what is asked; an important part or constraint is missed.
   - 1-2: does something else, or does not answer.
   Example: asked for three tips in one line each, a response with three long paragraphs belongs in 6-8 at best.
2. Usefulness
   - 9-10: right and complete; the asker can act on it at once.
   - 6-8: mostly right; of real help, with a small mistake or gap.
   - 3-5: of limited help; has mistakes or gaps that the asker must repair.
   - 1-2: wrong, misleading, harmful or of no help.
   Example: code for the task that runs but fails for an empty input belongs in 6-8.
3. Level of Detail
   - 9-10: every point is as deep as the query needs, with nothing missing and no padding.
   - 6-8: deep enough in most places; a point is thin or a little too long.
   - 3-5: thin where it matters, or so long that the point is hard to find.
   - 1-2: a bare claim, or a flood of text without substance.
   Example: asked why the sky is blue, "because of scattering" and no more belongs in 3-5.
4. Relevance
   - 9-10: everything in it serves the query.
   - 6-8: keeps to the query, with a digression or two.
   - 3-5: much of it is beside the query.
   - 1-2: is about something else.
   Example: asked about training a puppy, a response half of which is about cats belongs in 3-5."""

_BINARY_CRITERIA = """\
1. Instruction Adherence: the response does what is asked and keeps every constraint.
2. Clarity: its reasoning and its result can be followed and are stated without contradiction.
3. Accuracy: facts, steps and the final result are right."""


@dataclass(frozen=True, slots=True)
class GRMTemplate:
    """One form of the family; see the top of this file.

    Attributes:
        form: "grm", "grm-solo" or "grm-binary".
        reference, principles, no_principles, hint: the additions.
        rule: name of the parse rule ("boxed", "released").

    Raises:
        ValueError: an unknown form or rule, or additions that do not go together.
    """

    form: str = "grm"
    reference: bool = False
    principles: bool = False
    no_principles: bool = False
    hint: bool = False
    rule: str = "boxed"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"unknown form {self.form!r}: expected one of {', '.join(FORMS)}")
        if self.rule not in RULES:
            raise ValueError(f"unknown parse rule {self.rule!r}: expected one of {', '.join(sorted(RULES))}")
        if self.principles and self.no_principles:
            raise ValueError("'principles' and 'no-principles' exclude each other")
        if self.hint and self.form != "grm":
            raise ValueError(f"'hint' names the best of several responses, {self.form} shows one")

    @property
    def name(self) -> str:
        flags = (self.reference, self.principles, self.no_principles, self.hint)
        return "+".join([self.form, *(name for name, on in zip(EXTRAS, flags, strict=True) if on)])

    @property
    def version(self) -> str:
        """Twelve hex digits over the rendered text of a fixed item, the parse rule and its version."""
        return text_version(self, self.rule)

    @property
    def low(self) -> float:
        return 0.0 if self.form == "grm-binary" else 1.0

    @property
    def high(self) -> float:
        return 1.0 if self.form == "grm-binary" else 10.0

    @property
    def solo(self) -> bool:
        return self.form != "grm"

    def render(self, item: Item, order: Sequence[int]) -> tuple[Message, ...]:
        """One user message: instructions, criteria, conversation, responses in shown order, output format.

        Raises:
            ValueError: no reference, principles or label where the form needs it; several responses in a solo form;
                an order that is not a permutation of the responses.
        """
        if sorted(order) != list(range(item.n)):
            raise ValueError(f"order {list(order)} is not a permutation of 0..{item.n - 1}")
        if self.solo and item.n != 1:
            raise ValueError(f"{self.name} shows one response a prompt, this item has {item.n}")
        return prompt(
            item, order, self._instructions(), self._criteria(), self._output_format(item.n),
            principles=self.principles, reference=self.reference, hint=self.hint,
            numbered=self.form != "grm-binary",
        )  # fmt: skip

    def parse(self, text: str, n: int) -> Parsed:
        """Scores by position shown, and the principles and critique that stand before them. Never raises."""
        parsed = RULES[self.rule](text, n, self.low, self.high)
        principles, critique = sections(text)
        return replace(parsed, principles=principles, critique=critique)

    def _instructions(self) -> str:
        steps = "given" if self.principles else "none" if self.no_principles else "own"
        parts = [ROLE, STEPS[steps], _BINARY_SCALE if self.form == "grm-binary" else _SCALE]
        if self.reference:
            parts.append(REFERENCE_NOTE)
        return "\n".join(parts)

    def _criteria(self) -> str:
        return _BINARY_CRITERIA if self.form == "grm-binary" else _CRITERIA

    def _output_format(self, n: int) -> str:
        count = "Three" if not self.no_principles else "Two"
        lines = [f"{count} lines, in this order and with these words in front:"]
        if not self.no_principles:
            lines.append("Specific Criteria: <the specific criteria, each with its weight>")
        lines.append("Analysis: <the analysis of every response by the criteria>")
        if n == 1:
            lines.append(r"Scores: <the overall score of the response, in a box: \boxed{x}>")
        else:
            box = ", ".join(["x"] * n)
            lines.append(
                f"Scores: <the {n} overall scores in the order of the responses, in one box: \\boxed{{{box}}}>"
            )
        return "\n".join(lines)


def prompt(
    item: Item, order: Sequence[int], instructions: str, criteria: str, output: str, *, principles: bool,
    reference: bool, hint: bool, numbered: bool = True,
) -> tuple[Message, ...]:  # fmt: skip
    """One user message in the family's blocks: what is asked, the item as text under judgment, the output's form.

    Args:
        item, order: response `order[p]` is shown at position p.
        instructions, criteria, output: template text.
        principles, reference, hint: what of the item is shown besides.
        numbered: responses carry their position.

    Raises:
        ValueError: the item lacks what is to be shown.
    """
    blocks = [instructions, _section("Evaluation Criteria", criteria)]
    if principles:
        blocks.append(_section("Specific Criteria", _given_principles(item)))
    blocks.append(_section("Conversation Context", conversation_text(item.prompt, *MARKERS)))
    if reference:
        blocks.append(_section("Reference Answer", _given_reference(item)))
    blocks.append(_section("Responses to be Scored", _responses(item, order, numbered)))
    blocks.append(_section("Output Format Requirements", output))
    if hint:
        blocks.append(_hint(item, order))
    return (Message("user", "\n\n".join(blocks)),)


def conversation_text(prompt: Sequence[Message], *markers: re.Pattern[str]) -> str:
    """A conversation, fenced, as the family shows it: a lone user turn as it is, several turns each with a label."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return fence(prompt[0].content, *markers)
    return "\n".join(f"{m.role.capitalize()}: " + fence(m.content, *markers, TURN) for m in prompt)


def _section(title: str, text: str) -> str:
    return "".join(("#### ", title, " ####\n", text))


def _responses(item: Item, order: Sequence[int], numbered: bool) -> str:
    shown = enumerate((item.responses[index] for index in order), start=1)
    return "\n\n".join(response_block(text, position if numbered else None) for position, text in shown)


def response_block(text: str, position: int | None, markers: Sequence[re.Pattern[str]] = MARKERS) -> str:
    """A response, fenced, between the lines that begin and end it; numbered by the position shown, if there is one."""
    number = "" if position is None else f" {position}"
    return "".join((f"[The Begin of Response{number}]\n", fence(text, *markers), f"\n[The End of Response{number}]"))


def _given_principles(item: Item) -> str:
    if not item.principles:
        raise ValueError("this form shows given principles, the item has none")
    return "\n".join(f"{i}. " + fence(p, *MARKERS) for i, p in enumerate(item.principles, start=1))


def _given_reference(item: Item) -> str:
    if item.reference is None:
        raise ValueError("this form shows a reference answer, the item has none")
    return fence(item.reference, *MARKERS)


def _hint(item: Item, order: Sequence[int]) -> str:
    if item.label is None:
        raise ValueError("this form hints at the best response, the item has no label (or several share the top)")
    return f"The best response is: Response {list(order).index(item.label) + 1}"
