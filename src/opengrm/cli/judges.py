"""Which judge the options of `opengrm judge` name: what it can be shown, before its model is loaded, and the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.engines.base import Engine
    from opengrm.items import Item, Message
    from opengrm.judges.base import Judge, Paradigm
    from opengrm.judges.llm import LLMJudge
    from opengrm.ledger import Ledger
    from opengrm.templates.base import Template

JudgeName = Literal["grm", "llm", "tokenprob", "cloud", "bt", "pair"]


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
        scale: the range of a score; None where it has none.
        ordered: whether it shows an item's responses in planned orders.
    """

    paradigm: Paradigm
    reads: str
    shown: Callable[[Item], tuple[Message, ...]]
    open: Callable[[Ledger | None, ExitStack], Judge]
    scale: tuple[float, float] | None = None
    ordered: bool = False

    @property
    def compares(self) -> bool:
        """Whether it sees responses beside one another, so that benchmarks of long lists show it their pairs."""
        return self.paradigm.scoring == "pairwise" or self.paradigm.name == "grm"


def choose_judge(name: JudgeName, options: Options) -> Chosen:
    """The judge of that name.

    Raises:
        UsageError: options that it does not take, or that do not go together.
    """
    if options.head is not None and name != "cloud":
        raise UsageError("--head goes with --judge cloud")
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

    return Chosen(
        PARADIGMS["grm"],
        f"template {template.name}",
        lambda item: rendered(template, item),
        open_judge,
        (template.low, template.high),
        ordered=not template.solo,
    )


def _llm(options: Options) -> Chosen:
    from opengrm.judges.llm import LLMJudge, check_template

    return _comparing(options, LLMJudge, check_template)


def _tokenprob(options: Options) -> Chosen:
    from opengrm.judges.token_prob import TokenProb, check_locates

    return _comparing(options, TokenProb, check_locates)


def _comparing(options: Options, kind: type[LLMJudge], check: Callable[[Template], None]) -> Chosen:
    """A judge whose text names the best response."""
    from opengrm.cli.defaults import default_sampling, judge_template
    from opengrm.judges.base import PARADIGMS, check_responses
    from opengrm.templates import get_template

    template = get_template(options.template or "+".join([judge_template(options.model), *options.extras]))
    sampling = default_sampling(
        template, temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens
    )
    check(template)

    def shown(item: Item) -> tuple[Message, ...]:
        check_responses(kind.paradigm, item.n)
        return rendered(template, item)

    def open_judge(ledger: Ledger | None, stack: ExitStack) -> Judge:
        return kind(_engine(options, stack), template, sampling, options.orders, ledger)

    return Chosen(PARADIGMS[kind.paradigm], f"template {template.name}", shown, open_judge, (0.0, 1.0), ordered=True)


def _cloud(options: Options) -> Chosen:
    from opengrm.cli.defaults import default_sampling
    from opengrm.judges.base import PARADIGMS
    from opengrm.judges.cloud import CLoud, open_head
    from opengrm.templates.cloud import CloudTemplate, template_of_head

    critic, head = options.model, options.head
    if head is None:
        folder = Path(options.model)
        if not (folder / "critic").is_dir() or not (folder / "head").is_dir():
            raise UsageError(
                f"{folder}: holds no critic/ and head/, as opengrm train cloud writes; or give --model and --head"
            )
        critic, head = str(folder / "critic"), str(folder / "head")
    template = CloudTemplate(options.template or template_of_head(head) or "cloud")
    sampling = default_sampling(
        template, temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens
    )
    reading = {key: options.engine[key] for key in ("device", "dtype", "trust_remote_code") if key in options.engine}
    writing = dict(options.engine)
    if writing.get("kind") == "openai":  # a server has its own: these are the head's
        for key in reading:
            del writing[key]

    def open_judge(ledger: Ledger | None, stack: ExitStack) -> Judge:
        read = open_head(head, template, stack, **reading)
        return CLoud(_engine(replace(options, model=critic, engine=writing), stack), read, template, sampling, ledger)

    return Chosen(PARADIGMS["cloud"], f"template {template.name}", lambda item: rendered(template, item), open_judge)


def _bt(options: Options) -> Chosen:
    from opengrm.judges.base import PARADIGMS
    from opengrm.judges.bradley_terry import open_bradley_terry, shown

    settings = _classifier_settings("bt", options)
    return Chosen(
        PARADIGMS["bt"],
        "judge bt",
        shown,
        lambda ledger, stack: open_bradley_terry(options.model, ledger, stack, **settings),
    )


def _pair(options: Options) -> Chosen:
    from opengrm.judges.base import PARADIGMS
    from opengrm.judges.pair_rm import open_pair_rm, shown

    settings = _classifier_settings("pair", options)
    return Chosen(
        PARADIGMS["pair"],
        "judge pair",
        shown,
        lambda ledger, stack: open_pair_rm(options.model, ledger, stack, **settings),
    )


def _classifier_settings(name: str, options: Options) -> dict[str, Any]:
    """The arguments of `engines.classifier.Classifier`. Raises UsageError for options of judges that write text."""
    engine = options.engine
    given = {
        "--engine": engine.get("kind", "transformers") != "transformers",
        "--base-url": bool(engine.get("base_urls")),
        "--template": options.template is not None,
        "--temperature": options.temperature is not None,
        "--top-p": options.top_p != 1.0,
        "--max-tokens": options.max_tokens is not None,
        "--orders": options.orders != "balanced",
        **{
            f"--{option.replace('_', '-')}": engine.get(key) is not None
            for option, key in (
                ("concurrency", "concurrency"),
                ("timeout", "timeout"),
                ("chat_template_kwargs", "chat_template_kwargs"),
                ("extra_body", "extra_body"),
                ("engine_option", "engine_options"),
            )
        },
    }
    if refused := [option for option, is_given in given.items() if is_given]:
        raise UsageError(f"{', '.join(refused)}: for judges that write text; judge {name} reads one logit, in process")
    found = {key: engine[key] for key in ("device", "dtype", "trust_remote_code") if key in engine}
    return found if engine.get("batch") is None else {**found, "max_batch": engine["batch"]}


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


_CHOICES: dict[str, Callable[[Options], Chosen]] = {
    "grm": _grm, "llm": _llm, "tokenprob": _tokenprob, "cloud": _cloud, "bt": _bt, "pair": _pair,
}  # fmt: skip
