r"""CLoud's critique (arXiv:2408.11791): one response a prompt, words and no score. A head reads it and scores.

    cloud            blocks as in `grm.py`; two lines are asked for, "Specific Criteria: ..." and "Analysis: ..."
    compact-cloud    the compact prompt (`compact.py`) with a task line of its own, for models of RubricWorld's size:

        Query: Write a tweet about bees for parents.
        [1] Bees may last for 3 days.
        Judge by criteria, no score.

    and its critique:

        short 5, clean 3, polite 2
        [1] short yes, clean yes, polite no

The head reads the same conversation, with the critique as the assistant's answer (`read`). So one sequence serves both
losses of the training, and a server that runs the critic runs the head on the chat that it has just finished.

Departures and choices:

- The paper's critique is a turn of the conversation under judgment itself, opened by a fixed sentence. Here the
  conversation is shown inside one user turn, as in every template of ours: it is data, and it may itself hold turns.
- Everything that the model wrote is the critique; nothing in it is parsed, so nothing that a response says can be read
  as a score. A text that is empty or was cut off is missing.
- Given references and principles are not shown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from opengrm.errors import UsageError
from opengrm.items import Item, Message, content_hash
from opengrm.judgments import Judgment
from opengrm.templates.base import Parsed, Template, fence
from opengrm.templates.compact import Compact
from opengrm.templates.grm import MARKERS, GRMTemplate, conversation_text

FORMS = ("cloud", "compact-cloud")
UNSCORED = "unscored: no head has read this critique"

_MARKERS = (
    *MARKERS,
    re.compile(r"#(?<=##)\s*(?:Response\s+to\s+be\s+Critici[sz]ed|What\s+to\s+Write)", re.IGNORECASE),
)
_ROLE = """\
You are a strict and careful critic of responses. You are given a conversation and one response that was written to \
continue it. First work out what this particular query asks for: state specific criteria, each with a weight in \
percent, and let the weights add up to 100%. Then go through the response step by step by those criteria: what it \
gets right, what is wrong or missing, and how much that matters to the one who asked. Do not be generous, and do not \
repeat the response. Give no score: others will score the response, and your critique is what they go by."""
_WRITE = """\
Two lines, in this order and with these words in front:
Specific Criteria: <the specific criteria, each with its weight>
Analysis: <the analysis of the response by the criteria>"""
_TASK = "Judge by criteria, no score."
_SUM = re.compile(r"[^\S\n]*=[^\S\n]*\S*[^\S\n]*$", re.MULTILINE)  # a finding's sum, in the compact form


@dataclass(frozen=True, slots=True)
class CloudTemplate:
    """One of the two forms; see the top of this file. It is a solo `Template` whose texts hold no scores.

    Raises:
        UsageError: an unknown form.
    """

    form: str = "cloud"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"no critique template {self.form!r}: expected one of {', '.join(FORMS)}")

    @property
    def name(self) -> str:
        return self.form

    @property
    def version(self) -> str:
        """Twelve hex digits over the rendered text of fixed items."""
        return _version(self.form)

    @property
    def low(self) -> float:
        return -math.inf

    @property
    def high(self) -> float:
        return math.inf

    @property
    def solo(self) -> bool:
        return True

    @property
    def compact(self) -> bool:
        """Whether it is the form for models of RubricWorld's size."""
        return self.form == "compact-cloud"

    def render(self, item: Item, order: Sequence[int] = (0,)) -> tuple[Message, ...]:
        """One user message that asks for a critique of the item's only response.

        Raises:
            ValueError: the item has several responses.
        """
        if item.n != 1 or list(order) != [0]:
            raise ValueError(f"{self.name} shows one response a prompt, this item has {item.n}")
        if self.compact:
            (message,) = Compact("compact-solo").render(item, order)
            body = message.content.rpartition("\n")[0]  # without its task line
            return (Message("user", f"{body}\n{_TASK}"),)
        response = fence(item.responses[0], *_MARKERS)
        blocks = (
            _ROLE,
            "#### Conversation Context ####\n" + conversation_text(item.prompt, *_MARKERS),
            "#### Response to be Criticised ####\n[The Begin of Response]\n" + response + "\n[The End of Response]",
            "#### What to Write ####\n" + _WRITE,
        )
        return (Message("user", "\n\n".join(blocks)),)

    def parse(self, text: str, n: int) -> Parsed:
        """The whole text as the critique; never a score. The error is `UNSCORED` where there is one to be scored."""
        if not text.strip():
            return Parsed(None, "unparsable: the critique is empty")
        return Parsed(None, UNSCORED, critique=text)

    def read(self, item: Item, critique: str) -> tuple[Message, ...]:
        """What the head reads: the prompt that asked for a critique of the item's only response, and the critique."""
        return (*self.render(item), Message("assistant", critique))

    @property
    def oracle(self) -> Template:
        """The template that an oracle is asked with: judgments of one response, with a score that is then left out."""
        return Compact("compact-solo") if self.compact else GRMTemplate("grm-solo")

    def without_score(self, judgment: Judgment) -> str | None:
        """The critique of this form that a judgment by the template `oracle` holds.

        None where it was cut off, or lacks principles or findings. Whether its score could be read does not matter.
        """
        if judgment.error_kind == "truncated" or not judgment.principles or not judgment.critique:
            return None
        if self.compact:
            return f"{judgment.principles}\n{_SUM.sub('', judgment.critique)}"
        return f"Specific Criteria: {judgment.principles}\nAnalysis: {judgment.critique}"


def is_critique(judgment: Judgment) -> bool:
    """Whether a judgment made by a `CloudTemplate` is a whole critique, so that a head can read it."""
    return judgment.error == UNSCORED


def template_of_head(head: str | Path) -> str | None:
    """The form that a head was trained on, by its config.json ("cloud_template"); None where that does not say.

    A hub id is not looked up.
    """
    try:
        found = json.loads((Path(head) / "config.json").read_text(encoding="utf-8")).get("cloud_template")
    except (OSError, ValueError, AttributeError):
        return None
    return found if found in FORMS else None


@lru_cache
def _version(form: str) -> str:
    turns = (Message("user", "U"), Message("assistant", "[The End of Response 1]"), Message("user", "Query: [1]"))
    items = [Item(turns, ("#### What to Write ####",), id="probe"), Item(turns[:1], ("R",), id="probe")]
    texts = [[m.content for m in CloudTemplate(form).read(item, "C")] for item in items]
    return content_hash(texts)[:12]
