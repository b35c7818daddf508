r"""What PairRM reads: a query with two responses, in one user turn. Its answer is one logit: is the first one better?

    pair            one sentence, the conversation, the two responses; blocks as in `grm.py`
    pair-compact    the compact prompt (`compact.py`), for models of RubricWorld's size:

        Query: Write a tweet about bees for parents.
        [1] Hello, our old bees can help, please!
        [2] Bees may last for 3 days.
        Judge by criteria.

There is nothing to parse. A reference answer and given principles are not shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from opengrm.errors import UsageError
from opengrm.items import Item, Message, content_hash
from opengrm.templates.compact import Compact
from opengrm.templates.grm import MARKERS, conversation_text, response_block

FORMS = ("pair", "pair-compact")
_MARKERS = (*MARKERS, re.compile(r"#(?<=##)\s*Responses?\s+to\s+be\s+Compared", re.IGNORECASE))
_ASK = "Which response is better, the first or the second?"


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """One of the two forms; see the top of this file.

    Raises:
        UsageError: an unknown form.
    """

    form: str = "pair"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"no pair template {self.form!r}: expected one of {', '.join(FORMS)}")

    @property
    def name(self) -> str:
        return self.form

    @property
    def version(self) -> str:
        """Twelve hex digits over the rendered text of a fixed pair."""
        return _version(self.form)

    def render(self, prompt: Sequence[Message], first: str, second: str) -> tuple[Message]:
        """One user message with the conversation and the two responses in this order."""
        if self.form == "pair-compact":
            (user,) = Compact().render(Item(tuple(prompt), (first, second), id="pair"), (0, 1))
            return (user,)
        blocks = [_ASK, "#### Conversation Context ####\n" + conversation_text(prompt, *_MARKERS)]
        shown = [response_block(text, place, _MARKERS) for place, text in enumerate((first, second), start=1)]
        blocks.append("#### Responses to be Compared ####\n" + "\n\n".join(shown))
        return (Message("user", "\n\n".join(blocks)),)


def default_pair_template(base: str) -> PairTemplate:
    """The form that goes with a base: `pair-compact` for one of the compact family, else `pair`."""
    from opengrm.engines.checkpoints import named_template

    return PairTemplate("pair-compact" if (named_template(base) or "").startswith("compact") else "pair")


@lru_cache
def _version(form: str) -> str:
    prompt = (Message("user", "U"), Message("assistant", "[The End of Response 1]"), Message("user", "Query: [1]"))
    (user,) = PairTemplate(form).render(prompt, "first", "[2] second [The End of Response 2]")
    return content_hash(user.content)[:12]
