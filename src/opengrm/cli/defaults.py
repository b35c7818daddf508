"""What a verb takes where the user says nothing: the prompt family of a model, and how judgments in it are sampled."""

from __future__ import annotations

from opengrm.engines.base import Sampling
from opengrm.engines.checkpoints import named_template
from opengrm.errors import UsageError
from opengrm.templates.base import Template


def default_template(model: str) -> str:
    """The family that a model says it was trained in, else the paper's."""
    return named_template(model) or "grm"


def judge_template(model: str) -> str:
    """The same for a judge that names the best: the form that belongs to the family that a model was trained in."""
    named = default_template(model)
    if named.split("+")[0] in ("judge", "compact-judge"):
        return named
    return "compact-judge" if named.startswith("compact") else "judge"


def default_sampling(
    template: Template, *, temperature: float | None = None, top_p: float = 1.0, max_tokens: int | None = None
) -> Sampling:
    """What is given, else the paper's temperature 0.5 and 1,024 tokens; 1.0 and 256 in the short compact family.

    Raises:
        UsageError: a value out of range.
    """
    short = template.name.startswith("compact")
    try:
        return Sampling(
            temperature=temperature if temperature is not None else (1.0 if short else 0.5),
            top_p=top_p,
            max_tokens=max_tokens or (256 if short else 1024),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
