"""The template interface: `render(item, order) -> messages` and `parse(text, n) -> scores or a reason`, side by side.

Text under judgment is data. `render` never formats over it, and makes whatever in it looks like a template's own
marker harmless (`fence`). `parse` reads only what the model wrote, and returns scores by *position shown*.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from opengrm.items import Item, Message

# What can be added to a form of a built-in family, in the order in which names have them.
EXTRAS = ("reference", "principles", "no-principles", "hint")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser found: scores by position shown, or an error "<kind>: <detail>" (kinds in `judgments.py`).

    `followed` says, for a rule that reads the last of what it looks for, that words stand behind it: had the text been
    cut off there, it need not have been the last. `at` is where in the text the number of a named response begins, for
    a rule that tells (`recorded.boxed_winner`).
    """

    scores: tuple[float, ...] | None
    error: str | None = None
    principles: str | None = None
    critique: str | None = None
    followed: bool = field(default=False, compare=False)
    at: int | None = field(default=None, compare=False)


class Template(Protocol):
    """A prompt family. `name` and `version` go into every judgment's key: change the version with the text.

    Attributes:
        low, high: the range of a score, inclusive.
        solo: True where one prompt shows one response, so that n generations make one judgment.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def solo(self) -> bool: ...

    def render(self, item: Item, order: Sequence[int]) -> tuple[Message, ...]:
        """The chat that asks for a judgment of `item` with response `order[p]` shown at position p.

        A solo template is given single-response items and the order (0,).

        Raises:
            ValueError: the item lacks what this form needs (a reference, principles, a label to hint at) or has a
                number of responses that it cannot show.
        """
        ...

    def parse(self, text: str, n: int) -> Parsed:
        """Scores of the n responses shown, from the generated text alone. Never raises."""
        ...


def read_answer(template: Template, text: str, n: int, *, cut: bool, tokens: int) -> Parsed:
    """What the template reads of a model's text; of one that was cut off, only scores that nothing but punctuation
    follows. Further on the model would have written its own box: the last one so far may be a quote.

    Args:
        template: the form that the text answers.
        text: a completion, behind `<think>` where the prompt opened a thought.
        n: responses shown.
        cut: whether the text ends at the token limit.
        tokens: how many there are, for the message.
    """
    parsed = template.parse(text, n)
    if cut and (parsed.error is not None or parsed.followed):
        return replace(parsed, scores=None, error=f"truncated: no scores within {tokens} tokens")
    return parsed


# Control tokens of common chat formats. A response that spells one must not end its turn in the prompt. Words in
# square brackets are listed, as they are spelt: "[NAME]", "[TODO]" and "[sic]" are ordinary text.
CONTROL = re.compile(
    r"<\|[^<>|\s]{1,64}\|>|<｜[^<>｜]{1,64}｜>|<</?SYS>>|\[/?INST\]"
    r"|</?(?:(?:start|end)_of_(?:turn|image)|bos|eos|s|pad|unk|mask|sop|eop|think|tool_(?:call|response)s?"
    r"|unused_?\d{1,5}|fim_(?:prefix|middle|suffix|pad)|file_sep|repo_name)>"
    r"|(?-i:\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|MODEL_SETTINGS|CALL_ID|ARGS|THINK"
    r"|IMG(?:_BREAK|_END)?|(?:BEGIN_)?AUDIO|PREFIX|MIDDLE|SUFFIX|[gs]?MASK|CLS|SEP|PAD|UNK|control_\d{1,5})\])",
    re.IGNORECASE,
)
ZERO_WIDTH = "\u200b"


def fence(text: str, *markers: re.Pattern[str]) -> str:
    """Text under judgment with anything that looks like one of our markers or a control token made harmless.

    A zero-width space goes in behind the first character of every match: a person and a model read the same words,
    but no exact marker is left, so the prompt's structure stays the one that `render` built. Text without a match
    comes back unchanged. A marker must not begin with a repeat: what is left behind the break may match again.
    """
    for pattern in (CONTROL, *markers):
        text = broken_up(text, pattern)
    return text


def broken_up(text: str, pattern: re.Pattern[str]) -> str:
    """`text` with a zero-width space behind the first character of every match."""
    return pattern.sub(lambda match: match.group()[0] + ZERO_WIDTH + match.group()[1:], text)
