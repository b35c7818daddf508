"""Which judge the options of `opengrm judge` name: what it can be shown, before its model is loaded, and the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.engines.base import Engine, Sampling
    from opengrm.items import Item, Message
    from opengrm.judges.base import Judge, Paradigm
    from opengrm.ledger import Ledger
    from opengrm.templates.base import Template

JudgeName = Literal["grm", "cloud"]


@dataclass(frozen=True)
class Options:
    """What the user said of the model, the template and the sampling; None and "auto" are not said.

    Attributes:
        engine: arguments of `engines.open_engine`, the kind first.
        extras: additions to the default template that show what was given by hand.
        head: the model that reads critiques, for cloud.
    """

    model: str
    template: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int | None = None
    orders: Literal["balanced", "shuffle", "fixed"] = "balanced"
    extras: Sequence[str] = ()
    head: str | None = None


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
    if options.head is not None and name != "cloud":
        raise UsageError("--head goes with --judge cloud")
    return _CHOICES[name](options)


def _grm(options: Options) -> Chosen:
    from opengrm.judges.base import PARADIGMS
    from opengrm.judges.grm import GRM

    template, sampling = _template(options, "compact", "grm"), _sampling(options)

    def open_judge(ledger: Ledger | None, stack: ExitStack) -> Judge:
        return GRM(_engine(options, stack), template, sampling, options.orders, ledger)

    return Chosen(PARADIGMS["grm"], f"template {template.name}", lambda item: rendered(template, item), open_judge)


def _cloud(options: Options) -> Chosen:
    from opengrm.judges.base import PARADIGMS
    from opengrm.judges.cloud import CLoud
    from opengrm.templates.cloud import CloudTemplate, named_template

    critic, head = options.model, options.head
    if head is None:
        folder = Path(options.model)
        if not (folder / "critic").is_dir() or not (folder / "head").is_dir():
            raise UsageError(
                f"{folder}: holds no critic/ and head/, as opengrm train cloud writes; or give --model and --head"
            )
        critic, head = str(folder / "critic"), str(folder / "head")
    template = CloudTemplate(options.template or named_template(head) or "cloud")
    sampling = _sampling(options, small=template.compact)
    # With the critic behind a server, device and precision are the head's.
    here = {name: options.engine[name] for name in ("device", "dtype", "trust_remote_code") if name in options.engine}
    behind = dict.fromkeys(here, "auto") | {"trust_remote_code": False}
    away = options.engine["kind"] == "openai"
    writing = replace(options, model=critic, engine={**options.engine, **behind} if away else options.engine)

    def open_judge(ledger: Ledger | None, stack: ExitStack) -> Judge:
        from opengrm.engines.classifier import Classifier

        read = stack.enter_context(Classifier(head, **here))
        return CLoud(_engine(writing, stack), read, template, sampling, ledger)

    return Chosen(PARADIGMS["cloud"], f"template {template.name}", lambda item: rendered(template, item), open_judge)


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


def _sampling(options: Options, small: bool = False) -> Sampling:
    """The sampling asked for; the defaults are the paper's, or those of models of RubricWorld's size."""
    from opengrm.engines.base import Sampling
    from opengrm.engines.checkpoints import is_embedded

    nano = small or is_embedded(options.model)
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


_CHOICES: dict[str, Callable[[Options], Chosen]] = {"grm": _grm, "cloud": _cloud}
