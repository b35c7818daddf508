"""Which judge the options of `opengrm judge` name: what it can be shown, before its model is loaded, and the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from opengrm.engines.base import Engine
    from opengrm.items import Item, Message
    from opengrm.judges.base import Judge, Paradigm
    from opengrm.ledger import Ledger
    from opengrm.templates.base import Template

JudgeName = Literal["grm"]


@dataclass(frozen=True)
class Options:
    """What the user said of the model, the template and the sampling; None and "auto" are not said.

    Attributes:
        engine: arguments of `engines.open_engine`, the kind first.
        extras: additions to the default template that show what was given by hand.
    """

    model: str
    template: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int | None = None
    orders: Literal["balanced", "shuffle", "fixed"] = "balanced"
    extras: Sequence[str] = ()


@dataclass(frozen=True)
class Chosen:
    """A judge whose model is not loaded yet.

    Attributes:
        paradigm: what kind of judge it is.
        reads: what its messages to a user call the form that it reads items in.
        shown: all that the model would read of an item, in its own order. Raises ValueError where it cannot be shown.
        open: loads the model; what is opened is closed by the stack.
    """

    paradigm: Paradigm
    reads: str
    shown: Callable[[Item], tuple[Message, ...]]
    open: Callable[[Ledger | None, ExitStack], Judge]


def choose_judge(name: JudgeName, options: Options) -> Chosen:
    """The judge of that name.

    Raises:
        UsageError: options that it does not take, or that do not go together.
    """
    return _CHOICES[name](options)


def _grm(options: Options) -> Chosen:
    from opengrm.cli.defaults import default_sampling, default_template
    from opengrm.judges.base import PARADIGMS
    from opengrm.judges.grm import GRM
    from opengrm.templates import get_template

    template = get_template(options.template or "+".join([default_template(options.model), *options.extras]))
    sampling = default_sampling(
        template, temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens
    )

    def open_judge(ledger: Ledger | None, stack: ExitStack) -> Judge:
        return GRM(_engine(options, stack), template, sampling, options.orders, ledger)

    return Chosen(PARADIGMS["grm"], f"template {template.name}", lambda item: rendered(template, item), open_judge)


def rendered(template: Template, item: Item) -> tuple[Message, ...]:
    """The prompt of the item as it is; of its first response in a solo form. Raises ValueError."""
    shown = item.only(0) if template.solo else item
    return template.render(shown, range(shown.n))


def _engine(options: Options, stack: ExitStack) -> Engine:
    from opengrm import engines

    settings = dict(options.engine)
    opened = engines.open_engine(settings.pop("kind"), options.model, **settings)
    stack.callback(opened.close)
    return opened


_CHOICES: dict[str, Callable[[Options], Chosen]] = {"grm": _grm}
