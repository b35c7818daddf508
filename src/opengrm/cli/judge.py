"""`opengrm judge`: items in, verdicts out; or one item by hand."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from opengrm.cli.judge_options import (
    BaseUrl,
    Batch,
    BudgetTokens,
    BudgetVotes,
    By,
    ChatTemplateKwargs,
    Concurrency,
    Device,
    Dtype,
    EngineKind,
    EngineOption,
    ExtraBody,
    Head,
    K,
    MaxTokens,
    Meta,
    MetaTemplate,
    Model,
    OrdersOption,
    ReduceOption,
    RemoteCode,
    StopOption,
    Temperature,
    TemplateName,
    Timeout,
    TopP,
    early_stop,
    engine_settings,
    meta_opener,
    votes,
)
from opengrm.cli.options import (
    Alpha,
    BadRows,
    JsonOut,
    KMeta,
    MetaThreshold,
    MetaWeights,
    OnBad,
    Width,
    bad_rows,
    different_files,
    is_stream,
    voting_rule,
)
from opengrm.cli.progress import progress
from opengrm.errors import BadRow, UsageError

if TYPE_CHECKING:
    from opengrm.cli.judges import Chosen
    from opengrm.items import Item
    from opengrm.judges.base import SampledJudge
    from opengrm.judges.run import Summary


HAND, RUN = "One item by hand", "Run"


def judge(
    items: Annotated[
        Path | None,
        typer.Argument(
            metavar="ITEMS", help="Items: JSON Lines (.gz, .zst), a JSON array, Parquet, or -. See docs/formats.md."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write verdicts here instead of standard output.", rich_help_panel=RUN),
    ] = None,
    judgments: Annotated[
        Path | None, typer.Option(help="Also write every judgment (texts, scores, orders) here.", rich_help_panel=RUN)
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Keep judgments in this file and resume from it. Default: OUTPUT with the ending .ledger.db, none for"
            " standard output and devices.",
            rich_help_panel=RUN,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The query of one item.", rich_help_panel=HAND)] = None,
    response: Annotated[
        list[str] | None, typer.Option(help="A response to it; give one or more.", rich_help_panel=HAND)
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="A reference answer to judge by.", rich_help_panel=HAND)
    ] = None,
    principle: Annotated[
        list[str] | None, typer.Option(help="A principle to judge by; give one or more.", rich_help_panel=HAND)
    ] = None,
    by: By = "grm",
    model: Model = "nano",
    head: Head = None,
    engine: EngineKind = "transformers",
    base_url: BaseUrl = None,
    template: TemplateName = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch: Batch = None,
    concurrency: Concurrency = None,
    timeout: Timeout = None,
    trust_remote_code: RemoteCode = False,
    chat_template_kwargs: ChatTemplateKwargs = None,
    extra_body: ExtraBody = None,
    engine_option: EngineOption = None,
    k: K = None,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = None,
    orders: OrdersOption = "balanced",
    reduce: ReduceOption = None,
    meta: Meta = None,
    meta_template: MetaTemplate = None,
    k_meta: KMeta = None,
    meta_threshold: MetaThreshold = None,
    meta_weights: MetaWeights = False,
    stop: StopOption = None,
    alpha: Alpha = None,
    width: Width = None,
    budget_votes: BudgetVotes = None,
    budget_tokens: BudgetTokens = None,
    on_bad: OnBad = "stop",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=RUN)] = False,
    as_json: JsonOut = False,
) -> None:
    """Judge every item k times and vote.

    A file of items, verdicts to another file (judgments stay in a ledger beside it; the same command resumes):

        opengrm judge items.jsonl -o verdicts.jsonl -k 8 --model MODEL

    A model behind a server, or a checkpoint of your own:

        opengrm judge items.jsonl -o v.jsonl --engine openai --base-url http://127.0.0.1:8000/v1 --model my-grm

    Votes guided by a meta RM (opengrm train meta):

        opengrm judge items.jsonl -o v.jsonl -k 8 --model MODEL --meta meta-rm/model

    At most 32 votes an item, fewer where they agree:

        opengrm judge items.jsonl -o v.jsonl -k 32 --model MODEL --stop posterior

    One item by hand:

        opengrm judge --prompt "Name a prime." --response "7" --response "8"
    """
    from opengrm.cli.by_hand import item_by_hand, judge_by_hand
    from opengrm.cli.judges import Options, choose_judge
    from opengrm.jsonl import bare_name

    if (items is None) == (prompt is None):
        raise UsageError("give either a file of items, or one item by hand with --prompt and --response")
    if prompt is None and (response or reference or principle):
        raise UsageError("--response, --reference and --principle go with --prompt")
    if reduce == "meta" and meta is None:
        raise UsageError("--reduce meta needs --meta, the model that scores the judgments")
    settings = engine_settings(
        engine, base_url, batch, concurrency, timeout, device, dtype, trust_remote_code, chat_template_kwargs,
        extra_body, engine_option,
    )  # fmt: skip
    given = [*(["reference"] if reference is not None else []), *(["principles"] if principle else [])]
    options = Options(model, template, settings, temperature, top_p, max_tokens, orders, given, head)
    chosen = choose_judge(by, options)
    rule = voting_rule(
        reduce or ("meta" if meta is not None else chosen.paradigm.reduce), k_meta, meta_threshold, meta_weights
    )
    k = votes(k, chosen.paradigm)
    early = early_stop(stop, alpha, width, chosen, rule, budget_votes, budget_tokens)
    open_meta = meta_opener(meta, meta_template, device, dtype, trust_remote_code)

    if prompt is not None:
        if any((output, judgments, ledger, on_bad != "stop", stop)):
            raise UsageError(
                "--output, --judgments, --ledger, --stop and --on-bad go with a file of items, not with --prompt"
            )
        item = item_by_hand(prompt, response or [], reference, principle, chosen)
        with ExitStack() as stack:
            judge_by_hand(chosen.open(None, stack), open_meta(None, stack), item, k, rule, as_json)
        return

    assert items is not None
    from opengrm.engines.checkpoints import is_embedded
    from opengrm.jsonl import RowWriter
    from opengrm.judges.run import Summary, verdicts
    from opengrm.ledger import Ledger

    if output is not None and (not output.name or output.is_dir()):
        raise UsageError(f"--output {output}: is a folder, expected a file")
    if ledger is None and output is not None and not is_stream(output):
        ledger = output.with_name(bare_name(output) + ".ledger.db")
    different_files(
        {
            "ITEMS": None if str(items) == "-" else items,
            "--output": output or Path("-"),
            "--judgments": judgments,
            "--ledger": ledger,
        }
    )
    skipped = bad_rows(on_bad)
    name = "stdin" if str(items) == "-" else str(items)
    with ExitStack() as stack:
        if is_stream(items):  # read twice: once to check every row before a model is loaded, once to judge
            items = _spooled(items, stack)
        count, real = 0, False
        for item in _usable(items, name, chosen, skipped):
            count, real = count + 1, real or item.source.get("world") != "rubric"
        skipped.report()
        if not count:
            raise UsageError(f"{name}: no item to judge")
        if real and not quiet and is_embedded(model):
            print(f"{model} can judge RubricWorld only: name a model for real text with --model", file=sys.stderr)
        kept = stack.enter_context(Ledger(ledger))
        verdict_rows = stack.enter_context(RowWriter(output or "-"))
        judgment_rows = None if judgments is None else stack.enter_context(RowWriter(judgments))
        opened, scorer = chosen.open(kept, stack), open_meta(kept, stack)
        explain = None
        if early is not None:
            from opengrm.judges.adaptive import AdaptiveJudge

            sampled = cast("SampledJudge", opened)
            balanced = chosen.ordered and orders == "balanced"
            adaptive = AdaptiveJudge(sampled, early[0], rule, balanced, scorer, early[1])
            opened, scorer, explain = adaptive, None, lambda item, found: adaptive.explain(item, found, k)
        summary = Summary()
        show = stack.enter_context(progress("judging", count * k, quiet=quiet))
        usable = _usable(items, name, chosen, bad_rows("skip"))
        run = verdicts(
            opened,
            usable,
            k,
            reduce=rule,
            meta=scorer,
            summary=summary,
            on_progress=lambda done, s: show(done, _note(s), s.new),
            explain=explain,
        )
        try:
            for judged in run:
                verdict_rows.write(judged.verdict.to_json())
                if judgment_rows is not None:
                    for judgment in judged.judgments:
                        judgment_rows.write(judgment.to_json())
        except KeyboardInterrupt:
            run.close()
            where = (
                f"{len(kept):,} judgments are in {ledger}: run the same command to go on" if ledger else "no --ledger"
            )
            print(f"interrupted; {where}", file=sys.stderr)
            raise
    rows_shown = "-" in (str(output or "-"), str(judgments))
    budget = {name: most for name, most in (("votes", budget_votes), ("tokens", budget_tokens)) if most is not None}
    _report(summary, k, budget, ledger, output, as_json, sys.stderr if rows_shown else sys.stdout)


def _usable(path: Path, name: str, chosen: Chosen, on_bad: BadRows) -> Iterator[Item]:
    """The file's items that the judge can be shown; every other row goes to `on_bad` with its place."""
    from opengrm.reading import read_located_items

    for where, item in read_located_items(path, on_bad, name=name):
        try:
            chosen.shown(item)
        except ValueError as error:
            on_bad(BadRow(where, f"{chosen.reads}: {error}"))
            continue
        yield item


def _spooled(path: Path, stack: ExitStack) -> Path:
    """A copy of what can be read only once, under its own name (whose ending says how to read it)."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opengrm-")))
    copy = folder / ("stdin" if str(path) == "-" else path.name)
    with ExitStack() as files:
        source = sys.stdin.buffer if str(path) == "-" else files.enter_context(path.open("rb"))
        shutil.copyfileobj(source, files.enter_context(copy.open("wb")))
    return copy


def _note(summary: Summary) -> str:
    missing = sum(summary.missing.values())
    return f"{missing:,} missing" if missing else ""


def _report(
    summary: Summary,
    k: int,
    budget: dict[str, int],
    ledger: Path | None,
    output: Path | None,
    as_json: bool,
    stream: TextIO,
) -> None:
    """What the run came to: JSON on the stream if asked, else a few lines on standard error."""
    figures = summary.to_json()
    spent = {"votes": summary.judgments, "tokens": summary.prompt_tokens + summary.completion_tokens}
    if as_json:
        row = {**figures, "k": k, "ledger": str(ledger) if ledger else None}
        row |= (
            {"budget": {name: {"spent": spent[name], "of": most} for name, most in budget.items()}} if budget else {}
        )
        print(json.dumps(row, ensure_ascii=False), file=stream)
        return
    possible = k * summary.items
    missing = ", ".join(f"{kind} {count:,}" for kind, count in sorted(summary.missing.items()))
    lines = [
        f"{summary.items:,} items, {summary.judgments:,} judgments ({summary.new:,} new), {figures['seconds']:,.1f} s",
        f"valid judgments {figures['parse_rate']:.1%}"
        + (f" (missing: {missing})" if missing else "")
        + f"; verdicts with a tie at the top {summary.tied:,}, without a verdict {summary.no_verdict:,}",
        f"tokens: {summary.prompt_tokens:,} in, {summary.completion_tokens:,} out"
        f" ({figures['tokens_per_judgment']:,.0f} a judgment)",
    ]
    if summary.judgments < possible:
        stops = ", ".join(f"{reason} {count:,}" for reason, count in sorted(summary.stops.items()))
        lines.append(f"votes: {summary.judgments / possible:.1%} of {possible:,}; items stopped by: {stops}")
    if budget:
        lines.append("budget: " + ", ".join(f"{spent[name]:,} of {most:,} {name}" for name, most in budget.items()))
    for name, key in (("accuracy", "accuracy"), ("accuracy of single responses", "accuracy_singles")):
        for sense, accuracy in (("missing at chance", figures[key]), ("valid only", figures[f"{key}_valid_only"])):
            if accuracy is not None:
                lines.append(
                    f"{name}, {sense}: {accuracy['mean']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}],"
                    f" n = {accuracy['n']:,}, ties as expected credit"
                )
    if summary.singles_undecided:
        lines.append("accuracy of single responses: none, a sum or mean is no score; see --reduce majority")
    lines += [f"verdicts: {output}"] if output else []
    lines += [f"ledger: {ledger}"] if ledger else []
    print("\n".join(lines), file=sys.stderr)
