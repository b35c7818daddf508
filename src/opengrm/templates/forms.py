"""The forms of one prompt family: several responses, a single one, and with a hint.

Training and evaluation show items of n >= 2 in the joint form and, where labels are 0 or 1, single responses in the
0/1 form of the same family (the paper's appendix G has the single one).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from opengrm.errors import UsageError
from opengrm.items import Item
from opengrm.templates.base import Template
from opengrm.templates.compact import Compact
from opengrm.templates.grm import GRMTemplate
from opengrm.templates.judge import JudgeTemplate


@dataclass(frozen=True)
class Forms:
    """The forms of one prompt family.

    Attributes:
        joint: all responses in one prompt, n >= 2.
        single: one response, n = 1; its range says which labels can be right (0 and 1 in the 0/1 form). None where the
            family compares responses and has no form for one.
        hint: `joint` and the line that names the best response; None where the family has none.
    """

    joint: Template
    single: Template | None
    hint: Template | None = None

    def shows(self, item: Item) -> bool:
        """Whether a form takes items of this many responses."""
        return item.n > 1 or self.single is not None

    def of(self, item: Item) -> Template:
        """The form that shows this item.

        Raises:
            ValueError: a single response, and the family has no form for one.
        """
        form = self.single if item.n == 1 else self.joint
        if form is None:
            raise ValueError(f"template {self.joint.name} compares responses, item {item.id} has one")
        return form


def forms_of(template: Template) -> Forms:
    """The 0/1 and hinted forms that belong to a joint template, its additions (reference, no principles) kept.

    A template that names the best has no 0/1 form. A user's own file has neither: it shows single responses itself, in
    its own range.

    Raises:
        UsageError: the template is not a joint form.
    """
    if template.solo:
        raise UsageError(f"template {template.name}: training takes the joint form, this one shows one response")
    if isinstance(template, JudgeTemplate) or (isinstance(template, Compact) and template.names_best):
        return Forms(replace(template, hint=False), None, replace(template, hint=True))
    if isinstance(template, (Compact, GRMTemplate)):
        joint = replace(template, hint=False)
        return Forms(joint, replace(joint, form=f"{joint.form}-binary"), replace(joint, hint=True))
    return Forms(template, template)
