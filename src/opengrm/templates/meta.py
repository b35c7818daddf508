r"""What the meta RM reads (the paper's appendix G): a conversation in which the judgment is the assistant's answer.

    meta            user: one sentence that asks for scores, the conversation, the responses; blocks as in `grm.py`
    meta-named      the same, and the assistant's turn begins with the judge's model and template: for judgments of
                    several judges in one vote, of which some are more often right than others
    meta-compact    user: the compact prompt (`compact.py`) as the judge saw it, for models of RubricWorld's size

The assistant's turn is the whole text that the judge wrote: principles, critique and scores. Responses stand in the
order in which the judgment saw them, since its critique calls them by those numbers. As in the paper the meta RM sees
neither criteria nor output format; a reference answer, given principles and a hint are not shown either.

The file does not sample: there is nothing to parse, the meta RM's answer is one logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from opengrm.errors import UsageError
from opengrm.items import Item, Message, content_hash
from opengrm.judgments import Judgment
from opengrm.templates.compact import Compact
from opengrm.templates.grm import MARKERS, conversation_text, response_block

FORMS = ("meta", "meta-named", "meta-compact")
_ASK = "Give the responses their scores."


@dataclass(frozen=True, slots=True)
class MetaTemplate:
    """One of the forms; see the top of this file.

    Raises:
        UsageError: an unknown form.
    """

    form: str = "meta"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"no meta template {self.form!r}: expected one of {', '.join(FORMS)}")

    @property
    def name(self) -> str:
        return self.form

    @property
    def version(self) -> str:
        """Twelve hex digits over the rendered text of a fixed item and judgment."""
        return _version(self.form)

    def render(self, item: Item, judgment: Judgment) -> tuple[Message, Message]:
        """The query with its responses as the judgment saw them, and the judgment's text.

        Raises:
            ValueError: the judgment has no text, or no order where there are several responses, or is of another item.
        """
        if judgment.text is None:
            raise ValueError("the judgment has no text")
        order = judgment.order if item.n > 1 else (0,)
        if order is None:
            raise ValueError("the order in which the judgment saw the responses is not known")
        if sorted(order) != list(range(item.n)):
            raise ValueError(f"the judgment's order {list(order)} does not fit {item.n} responses")
        if self.form == "meta-compact":
            (user,) = Compact(_compact_form(item, judgment)).render(item, order)
        else:
            blocks = [_ASK, "#### Conversation Context ####\n" + conversation_text(item.prompt, *MARKERS)]
            shown = [response_block(item.responses[index], position) for position, index in enumerate(order, start=1)]
            blocks.append("#### Responses to be Scored ####\n" + "\n\n".join(shown))
            user = Message("user", "\n\n".join(blocks))
        text = judgment.text
        if self.form == "meta-named":
            text = f"{judgment.model or '?'}, {judgment.template or '?'}: {text}"
        return user, Message("assistant", text)


def default_meta_template(judge_template: str | None) -> MetaTemplate:
    """The form that goes with a judge's template: `meta-compact` for the compact family, else `meta`."""
    compact = judge_template is not None and judge_template.split("@")[0].split("+")[0].split("-")[0] == "compact"
    return MetaTemplate("meta-compact" if compact else "meta")


def is_hinted(judgment: Judgment) -> bool:
    """Whether the judge was told the best response (its template's name carries the addition `hint`)."""
    return judgment.template is not None and "hint" in judgment.template.split("@")[0].split("+")[1:]


def _compact_form(item: Item, judgment: Judgment) -> str:
    binary = (judgment.template or "").startswith("compact-binary")
    return "compact-binary" if binary and item.n == 1 else "compact"


@lru_cache
def _version(form: str) -> str:
    turns = (Message("user", "U"), Message("assistant", "[The End of Response 1]"), Message("user", "Query: [1]"))
    item = Item(turns, ("first", "second"), id="probe")
    template = MetaTemplate(form)
    probes = [
        template.render(item, Judgment("probe", (1.0, 2.0), order=(1, 0), text="T")),
        template.render(item.only(0), Judgment("probe", (1.0,), text="T", template="compact-binary@1")),
    ]
    return content_hash([[m.content for m in messages] for messages in probes])[:12]
