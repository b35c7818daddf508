"""What is trained on may not be what is reported on (docs/design.md, rule 7).

Two conversations count as the same if they are equal but for case and spacing, or if what users say in them has a run
of 13 words in common: the span that GPT-3's authors looked for (arXiv:2005.14165, appendix C), and language-model
evaluations since. One of fewer words is compared as a whole only, and system messages, which many share, not by spans.

The held-out side is kept in memory as hashes; what is trained on streams past it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from opengrm.errors import UsageError
from opengrm.items import Message, conversation
from opengrm.jsonl import read_rows
from opengrm.reading import read_items

SPAN = 13  # words
_WORD = re.compile(r"\w+")


class HeldOut:
    """Conversations that may not be trained on.

    Attributes:
        count: how many there are.
    """

    def __init__(self) -> None:
        self.count = 0
        self._of: dict[int, set[int]] = {}  # hash of a whole conversation or of a span: which conversations hold it
        self._met: set[int] = set()

    def add(self, prompt: Sequence[Message]) -> None:
        """Keep a conversation."""
        for value in _hashes(prompt):
            self._of.setdefault(value, set()).add(self.count)
        self.count += 1

    def check(self, prompt: Sequence[Message]) -> bool:
        """Whether a conversation that is trained on is one of them."""
        if not self._of:
            return False
        met: set[int] = set().union(*(self._of.get(value, ()) for value in _hashes(prompt)))
        self._met |= met
        return bool(met)

    @property
    def met(self) -> int:
        """How many `check` has met."""
        return len(self._met)


def check_files(
    items: Sequence[str | Path], held_out: Sequence[str | Path], instructions: str | Path | None = None
) -> None:
    """`refuse_overlap` for a verb's files; malformed rows are left to whoever trains on them.

    Args:
        items: files of labelled items that are trained on.
        held_out: files of items that will be reported on.
        instructions: rows {"prompt", "completion"} that are trained on as well.
    """
    known = HeldOut()
    for path in held_out:
        for item in read_items(path):
            known.add(item.prompt)
    if not known.count:
        return
    way_out = "leave out --held-out"
    for path in items:
        refuse_overlap((item.prompt for item in read_items(path, lambda _: None)), known, str(path), way_out)
    if instructions is not None:
        asked = (conversation(row["prompt"]) for _, row in read_rows(instructions))
        refuse_overlap(asked, known, str(instructions), way_out)


def refuse_overlap(trained: Iterable[Sequence[Message]], held_out: HeldOut, what: str, way_out: str) -> None:
    """See that nothing held out is trained on.

    Args:
        trained: conversations.
        held_out: those that may not be among them.
        what: names what is trained on, for the message.
        way_out: how a user goes on all the same.

    Raises:
        UsageError: with how many are.
    """
    shared = sum(held_out.check(prompt) for prompt in trained)
    if shared:
        raise UsageError(
            f"{what}: {shared:,} conversations are also held out, {held_out.met:,} of {held_out.count:,} of those are"
            f" trained on (equal, or with {SPAN} words in a row in common); leave them out, or {way_out}"
        )


def _hashes(prompt: Sequence[Message]) -> Iterator[int]:
    """Of the whole conversation, and of every span of its user messages."""
    yield hash(tuple((m.role, " ".join(m.content.casefold().split())) for m in prompt))
    for message in prompt:
        words = _WORD.findall(message.content.casefold()) if message.role == "user" else []
        for start in range(len(words) - SPAN + 1):
            yield hash(tuple(words[start : start + SPAN]))
