"""Options that name a judge, its model, how it samples and how its judgments vote, shared by the verbs that judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opengrm.cli.judges import JudgeName
from opengrm.cli.options import (
    REDUCE_HELP,
    STOP_HELP,
    Orders,
    Reduce,
    StopName,
    json_object,
    key_values,
    stopping_rule,
)
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.cli.judges import Chosen
    from opengrm.judges.adaptive import Budget
    from opengrm.judges.base import Paradigm
    from opengrm.judges.meta import MetaRM
    from opengrm.ledger import Ledger
    from opengrm.voting.guided import Rule
    from opengrm.voting.stopping import Stop

EngineName = Literal["transformers", "openai", "vllm", "openvino"]
VOTES, MOST_VOTES = 8, 100_000
MODEL, SAMPLING = "Model", "Sampling and voting"

By = Annotated[
    JudgeName,
    typer.Option(
        "--judge",
        help="The kind of judge: grm (pointwise generative), llm (names the best of several responses),"
        " tokenprob (pairs, by the probability of the answer's token), cloud (a critique, then a head);"
        " scalar ones, that opengrm train makes: bt (Bradley-Terry), pair (PairRM).",
        rich_help_panel=MODEL,
    ),
]
Model = Annotated[
    str,
    typer.Option(help='"nano" (embedded), a folder, a hub id, or the name a server uses.', rich_help_panel=MODEL),
]
Head = Annotated[
    str | None,
    typer.Option(
        help="For --judge cloud: what reads the critiques, a folder or hub id, always in process. Default: head/"
        " in the folder --model, beside critic/.",
        rich_help_panel=MODEL,
    ),
]
EngineKind = Annotated[
    EngineName,
    typer.Option(
        help="What runs it: transformers (in process), openai (any server that speaks its API; needs --base-url),"
        " vllm or openvino (in process; extras of their names).",
        rich_help_panel=MODEL,
    ),
]
BaseUrl = Annotated[
    list[str] | None,
    typer.Option(
        help="A server for --engine openai, e.g. http://127.0.0.1:8000/v1; several share the load.",
        rich_help_panel=MODEL,
    ),
]
TemplateName = Annotated[
    str | None,
    typer.Option(
        help="Prompt family (see docs/templates.md) or your own Jinja2 file. Default: compact for nano, else grm"
        " (of llm and tokenprob: compact-judge, else judge); with --reference or --principle the form that shows"
        " them.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ... for transformers.", rich_help_panel=MODEL)]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, ... for transformers and vllm.", rich_help_panel=MODEL)]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Most samples decoded together, in process.", rich_help_panel=MODEL)
]
Concurrency = Annotated[
    int | None,
    typer.Option(min=1, help="Most requests in flight to servers. Default: 64.", rich_help_panel=MODEL),
]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.1, help="Seconds one request may take. Default: 600.", rich_help_panel=MODEL),
]
RemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.", rich_help_panel=MODEL),
]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="Variables of the model's chat template, e.g. '{\"enable_thinking\": false}'.",
        rich_help_panel=MODEL,
    ),
]
ExtraBody = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="Further keys of every request, e.g. '{\"top_k\": -1}'; for --engine openai.",
        rich_help_panel=MODEL,
    ),
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="A further argument of the engine, e.g. tensor_parallel_size=8; for --engine vllm.",
        rich_help_panel=MODEL,
    ),
]
K = Annotated[
    int | None,
    typer.Option("-k", min=1, max=MOST_VOTES, help="Judgments of each item. Default: 8.", rich_help_panel=SAMPLING),
]
Temperature = Annotated[
    float | None,
    typer.Option(min=0.0, help="0 is greedy. Default: the paper's 0.5; 1.0 for nano.", rich_help_panel=SAMPLING),
]
TopP = Annotated[float, typer.Option(help="Nucleus; 1 is off.", rich_help_panel=SAMPLING)]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Most new tokens of a judgment. Default: 1024; 256 for nano.", rich_help_panel=SAMPLING),
]
OrdersOption = Annotated[
    Orders,
    typer.Option(
        help="Orders in which an item's responses are shown: balanced (each response in each place equally often),"
        " shuffle (drawn anew for each judgment, as the paper does), fixed (as given).",
        rich_help_panel=SAMPLING,
    ),
]
ReduceOption = Annotated[
    Reduce | None,
    typer.Option(help=REDUCE_HELP + " Default: sum; meta with --meta.", rich_help_panel=SAMPLING),
]
Meta = Annotated[
    str | None,
    typer.Option(help="A meta RM, folder or hub id: scores every judgment.", rich_help_panel=SAMPLING),
]
MetaTemplate = Annotated[
    Literal["meta", "meta-named", "meta-compact"] | None,
    typer.Option(help="What the meta RM reads. Default: what its config.json says.", rich_help_panel=SAMPLING),
]
StopOption = Annotated[StopName | None, typer.Option(help=STOP_HELP, rich_help_panel=SAMPLING)]
BudgetVotes = Annotated[
    int | None,
    typer.Option(min=1, help="With --stop: most judgments of all items together.", rich_help_panel=SAMPLING),
]
BudgetTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --stop: tokens of all items together; the last round may go beyond.",
        rich_help_panel=SAMPLING,
    ),
]


def engine_settings(
    kind: EngineName, base_url: Sequence[str] | None, batch: int | None, concurrency: int | None,
    timeout: float | None, device: str, dtype: str, trust_remote_code: bool, chat_template_kwargs: str | None,
    extra_body: str | None, engine_option: Sequence[str] | None,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of `engines.open_engine` that the options give. Raises UsageError."""
    return {
        "kind": kind, "base_urls": list(base_url or []), "batch": batch, "concurrency": concurrency,
        "timeout": timeout, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code,
        "chat_template_kwargs": json_object("--chat-template-kwargs", chat_template_kwargs),
        "extra_body": json_object("--extra-body", extra_body),
        "engine_options": key_values("--engine-option", engine_option or []),
    }  # fmt: skip


def votes(k: int | None, paradigm: Paradigm) -> int:
    """How many judgments of each item: one where every further one would be the same. Raises UsageError."""
    if paradigm.sampled:
        return k or VOTES
    if k not in (None, 1):
        raise UsageError(f"-k {k}: a {paradigm.title} judge gives the same scores every time, so -k is 1")
    return 1


def meta_opener(
    meta: str | None,
    template: Literal["meta", "meta-named", "meta-compact"] | None,
    device: str,
    dtype: str,
    trust_remote_code: bool,
) -> Callable[[Ledger | None, ExitStack], MetaRM | None]:
    """What loads the meta RM that the options name, if they name one."""

    def open_meta(kept: Ledger | None, stack: ExitStack) -> MetaRM | None:
        if meta is None:
            return None
        from opengrm.judges.meta import open_meta_rm

        return open_meta_rm(
            meta, template, kept, stack, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )

    return open_meta


def early_stop(
    stop: StopName | None, alpha: float | None, width: float | None, chosen: Chosen, rule: Rule,
    budget_votes: int | None, budget_tokens: int | None,
) -> tuple[Stop, Budget | None] | None:  # fmt: skip
    """When the votes stop and what they may cost in all, if the options say so. Raises UsageError."""
    early = stopping_rule(stop, alpha, width, chosen.scale, rule)
    if early is None:
        if budget_votes is not None or budget_tokens is not None:
            raise UsageError("--budget-votes and --budget-tokens go with --stop")
        return None
    if not chosen.paradigm.sampled:
        raise UsageError(f"--stop: a {chosen.paradigm.title} judge gives the same scores every time")
    if chosen.scale is None and rule != "majority":
        raise UsageError(f"--stop: scores of a {chosen.paradigm.title} judge have no range; use --reduce majority")
    if budget_votes is None and budget_tokens is None:
        return early, None
    from opengrm.judges.adaptive import Budget

    return early, Budget(budget_votes, budget_tokens)
