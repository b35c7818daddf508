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


@dataclass(frozen=True)
class Forms:
    """The forms of one prompt family.

    Attributes:
        joint: all responses in one prompt, n >= 2.
        single: one response, n = 1; its range says which labels can be right (0 and 1 in the 0/1 form).
        hint: `joint` and the line that names the best response; None where the family has none.
    """

    joint: Template
    single: Template
    hint: Template | None = None

    def of(self, item: Item) -> Template:
        """The form that shows this item."""
        return self.single if item.n == 1 else self.joint


def forms_of(template: Template) -> Forms:
    """The 0/1 and hinted forms that belong to a joint template, its additions (reference, no principles) kept.

    A user's own template file has neither: it shows single responses itself, in its own range.

    Raises:
        UsageError: the template is not a joint form.
    """
    if template.solo:
        raise UsageError(f"template {template.name}: training takes the joint form, this one shows one response")
    if isinstance(template, (Compact, GRMTemplate)):
        joint = replace(template, hint=False)
        return Forms(joint, replace(joint, form=f"{joint.form}-binary"), replace(joint, hint=True))
    return Forms(template, template)
