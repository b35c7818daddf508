"""Which judge the options of `opengrm judge` name: what it can be shown, before its model is loaded, and the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.engines.base import Engine, Sampling
    from opengrm.items import Item, Message
    from opengrm.judges.base import Judge, Paradigm
    from opengrm.judges.llm import LLMJudge
    from opengrm.ledger import Ledger
    from opengrm.templates.base import Template

JudgeName = Literal["grm", "llm", "tokenprob"]


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
    from opengrm.judges.base import PARADIGMS
    from opengrm.judges.grm import GRM

    template, sampling = _template(options, "compact", "grm"), _sampling(options)

    def open_judge(ledger: Ledger | None, stack: ExitStack) -> Judge:
        return GRM(_engine(options, stack), template, sampling, options.orders, ledger)

    return Chosen(PARADIGMS["grm"], f"template {template.name}", lambda item: rendered(template, item), open_judge)


def _llm(options: Options) -> Chosen:
    from opengrm.judges.llm import LLMJudge, check_template

    return _comparing(options, LLMJudge, check_template)


def _tokenprob(options: Options) -> Chosen:
    from opengrm.judges.token_prob import TokenProb, check_locates

    return _comparing(options, TokenProb, check_locates)


def _comparing(options: Options, kind: type[LLMJudge], check: Callable[[Template], None]) -> Chosen:
    """A judge whose text names the best response."""
    from opengrm.judges.base import PARADIGMS, check_responses

    template, sampling = _template(options, "compact-judge", "judge"), _sampling(options)
    check(template)

    def shown(item: Item) -> tuple[Message, ...]:
        check_responses(kind.paradigm, item.n)
        return rendered(template, item)

    def open_judge(ledger: Ledger | None, stack: ExitStack) -> Judge:
        return kind(_engine(options, stack), template, sampling, options.orders, ledger)

    return Chosen(PARADIGMS[kind.paradigm], f"template {template.name}", shown, open_judge)


def rendered(template: Template, item: Item) -> tuple[Message, ...]:
    """The prompt of the item as it is; of its first response in a solo form. Raises ValueError."""
    shown = item.only(0) if template.solo else item
    return template.render(shown, range(shown.n))


def _template(options: Options, small: str, large: str) -> Template:
    """The template of that name; without one the default, for embedded models or others, with what it is to show."""
    from opengrm.engines.checkpoints import is_embedded
    from opengrm.templates import get_template

    default = "+".join([small if is_embedded(options.model) else large, *options.extras])
    return get_template(options.template or default)


def _sampling(options: Options) -> Sampling:
    from opengrm.engines.base import Sampling
    from opengrm.engines.checkpoints import is_embedded

    nano = is_embedded(options.model)
    try:
        return Sampling(
            temperature=options.temperature if options.temperature is not None else (1.0 if nano else 0.5),
            top_p=options.top_p,
            max_tokens=options.max_tokens or (256 if nano else 1024),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _engine(options: Options, stack: ExitStack) -> Engine:
    from opengrm import engines

    settings = dict(options.engine)
    opened = engines.open_engine(settings.pop("kind"), options.model, **settings)
    stack.callback(opened.close)
    return opened


_CHOICES: dict[str, Callable[[Options], Chosen]] = {"grm": _grm, "llm": _llm, "tokenprob": _tokenprob}
