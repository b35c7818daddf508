r"""LLM-as-a-judge: one text names the best of two responses or more (paper v3 Eq. 6), and k of them vote by majority.

It is the generative judge of `grm.py` with a template that names the best: prompts, orders, seeds, the ledger and what
is missing are the same, and one-hot scores carry the choice. Trained by the same RFT and RL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opengrm.errors import UsageError
from opengrm.items import Item
from opengrm.judges.base import check_responses
from opengrm.judges.grm import GRM, Rendered
from opengrm.templates.base import Template


@dataclass(frozen=True)
class LLMJudge(GRM):
    """A generative judge that compares. Attributes as for `GRM`.

    Raises:
        UsageError: the template does not name the best of several responses.
    """

    paradigm: ClassVar[str] = "llm"

    def __post_init__(self) -> None:
        check_template(self.template)

    def _render(self, item: Item, order: tuple[int, ...]) -> Rendered:
        try:
            check_responses(self.paradigm, item.n)
        except ValueError as error:
            return (), f"template: {error}"
        return super()._render(item, order)


def check_template(template: Template) -> None:
    """See that a template shows all responses and gives scores from 0 to 1, as one that names a winner does.

    Raises:
        UsageError: it rates responses.
    """
    if template.solo or (template.low, template.high) != (0, 1):
        raise UsageError(
            f"template {template.name} rates responses; a judge that compares takes one that names the best: judge, "
            "compact-judge, or a file of your own with low 0, high 1 and a rule such as boxed-winner"
        )
