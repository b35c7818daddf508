"""Prompt families, and the one function that finds a template by name or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opengrm.errors import UsageError
from opengrm.templates.base import EXTRAS, Template

FILE_ENDINGS = (".jinja", ".jinja2", ".j2")
NAMES = (
    "grm", "grm-solo", "grm-binary", "compact", "compact-solo", "compact-binary",
    "judge", "compact-judge",
)  # fmt: skip


def get_template(name_or_path: str | Path, **options: Any) -> Template:
    """The template of this name, or the user's own file at this path.

    Args:
        name_or_path: one of NAMES, with additions joined by `+` such as "grm+reference" (see the file of the family);
            or a path that holds a "/" or ends in .jinja, .jinja2 or .j2.
        options: fields of the template's dataclass, such as `rule="released"`. A user's file takes none.

    Raises:
        UsageError: no such template or file, an option or addition that the template does not have, or a user's file
            that cannot be used (told with file and line).
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(FILE_ENDINGS):
        from opengrm.templates.user import load_user_template

        if options:
            raise UsageError(f"{text}: a template file takes no options, it declares them in its first comment")
        return load_user_template(Path(text))
    form, *extras = text.split("+")
    family = form.split("-")[0]
    if family not in ("grm", "compact", "judge"):
        additions = ", ".join(f"+{extra}" for extra in EXTRAS)
        raise UsageError(
            f"no template {text!r}: expected {', '.join(NAMES[:-1])} or {NAMES[-1]} (with {additions}), or the path "
            f"of a template file ({', '.join(FILE_ENDINGS)})"
        )
    if unknown := [extra for extra in extras if extra not in EXTRAS]:
        raise UsageError(f"template {text!r}: unknown addition {unknown[0]!r}, one of {', '.join(EXTRAS)}")
    fields = {**{extra.replace("-", "_"): True for extra in extras}, **options}
    try:
        if family == "compact":
            from opengrm.templates.compact import Compact

            return Compact(form=form, **fields)
        if family == "judge":
            from opengrm.templates.judge import JudgeTemplate

            return JudgeTemplate(form=form, **fields)
        from opengrm.templates.grm import GRMTemplate

        return GRMTemplate(form=form, **fields)
    except (TypeError, ValueError) as error:
        raise UsageError(f"template {text!r}: {error}") from error


def built_in(template: Template) -> bool:
    """Whether `get_template` finds this template again by its name: not so a user's own file."""
    try:
        return get_template(template.name) == template
    except UsageError:
        return False
