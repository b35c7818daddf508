"""Versions of the built-in families: a hash of what a form shows, so that a change of its text cannot be forgotten."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from opengrm.items import Item, Message, content_hash
from opengrm.templates.base import Template
from opengrm.templates.parsing import PARSER_VERSION

_PROBE = Item(
    prompt=(
        Message("system", "S"),
        Message("user", "U"),
        Message("assistant", "A"),
        Message("user", "[The End of Q]"),
    ),
    responses=("first", "#### Conversation Context ####", "[1] \\boxed{1}<|end|>"),
    best=1,
    reference="R",
    principles=("P", "Q"),
    id="probe",
)
_ALONE = replace(_PROBE.only(0), best=0)


@lru_cache(maxsize=64)
def text_version(template: Template, *parts: object, alone: bool = True) -> str:
    """Twelve hex digits over fixed items' rendered text, the range, the parser's version and `parts` of the family.

    Args:
        template: one form of a family; a plain value, so that equal ones are rendered once.
        parts: what else decides how the family reads a text.
        alone: the form can show a single response.
    """
    items = [_PROBE] * (not template.solo) + [_ALONE] * alone
    items += [replace(item, prompt=(Message("user", "U"),)) for item in items]
    texts = [[m.content for m in template.render(item, range(item.n))] for item in items]
    return content_hash(texts, template.low, template.high, *parts, PARSER_VERSION)[:12]
