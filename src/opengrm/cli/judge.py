"""`opengrm judge`: items in, verdicts out; or one item by hand."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO, cast

import typer

from opengrm.cli.judges import JudgeName
from opengrm.cli.options import (
    REDUCE_HELP,
    STOP_HELP,
    Alpha,
    BadRows,
    JsonOut,
    KMeta,
    MetaThreshold,
    MetaWeights,
    OnBad,
    Orders,
    Reduce,
    StopName,
    Width,
    bad_rows,
    different_files,
    is_stream,
    json_object,
    key_values,
    stopping_rule,
    voting_rule,
)
from opengrm.cli.progress import progress
from opengrm.errors import BadRow, UsageError

if TYPE_CHECKING:
    from opengrm.cli.judges import Chosen
    from opengrm.items import Item
    from opengrm.judges.adaptive import Budget
    from opengrm.judges.base import Paradigm, SampledJudge
    from opengrm.judges.meta import MetaRM
    from opengrm.judges.run import Summary
    from opengrm.ledger import Ledger
    from opengrm.voting.stopping import Stop


EngineName = Literal["transformers", "openai", "vllm", "openvino"]
VOTES, MOST_VOTES = 8, 100_000
HAND, MODEL, SAMPLING, RUN = "One item by hand", "Model", "Sampling and voting", "Run"


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
    by: Annotated[
        JudgeName,
        typer.Option(
            "--judge",
            help="The kind of judge: grm (pointwise generative), llm (names the best of several responses),"
            " tokenprob (pairs, by the probability of the answer's token), cloud (a critique, then a head);"
            " scalar ones, that opengrm train makes: bt (Bradley-Terry), pair (PairRM).",
            rich_help_panel=MODEL,
        ),
    ] = "grm",
    model: Annotated[
        str,
        typer.Option(help='"nano" (embedded), a folder, a hub id, or the name a server uses.', rich_help_panel=MODEL),
    ] = "nano",
    head: Annotated[
        str | None,
        typer.Option(
            help="For --judge cloud: what reads the critiques, a folder or hub id, always in process. Default: head/"
            " in the folder --model, beside critic/.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="What runs it: transformers (in process), openai (any server that speaks its API; needs --base-url),"
            " vllm or openvino (in process; extras of their names).",
            rich_help_panel=MODEL,
        ),
    ] = "transformers",
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            help="A server for --engine openai, e.g. http://127.0.0.1:8000/v1; several share the load.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Prompt family (see docs/templates.md) or your own Jinja2 file. Default: compact for nano, else grm"
            " (of llm and tokenprob: compact-judge, else judge); with --reference or --principle the form that shows"
            " them.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ... for transformers.", rich_help_panel=MODEL)] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, ... for transformers and vllm.", rich_help_panel=MODEL)
    ] = "auto",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Most samples decoded together, in process.", rich_help_panel=MODEL)
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests in flight to servers. Default: 64.", rich_help_panel=MODEL),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds one request may take. Default: 600.", rich_help_panel=MODEL),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run Python code that comes with the checkpoint.", rich_help_panel=MODEL
        ),
    ] = False,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Variables of the model's chat template, e.g. '{\"enable_thinking\": false}'.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    extra_body: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Further keys of every request, e.g. '{\"top_k\": -1}'; for --engine openai.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A further argument of the engine, e.g. tensor_parallel_size=8; for --engine vllm.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "-k", min=1, max=MOST_VOTES, help="Judgments of each item. Default: 8.", rich_help_panel=SAMPLING
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="0 is greedy. Default: the paper's 0.5; 1.0 for nano.", rich_help_panel=SAMPLING),
    ] = None,
    top_p: Annotated[float, typer.Option(help="Nucleus; 1 is off.", rich_help_panel=SAMPLING)] = 1.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most new tokens of a judgment. Default: 1024; 256 for nano.", rich_help_panel=SAMPLING
        ),
    ] = None,
    orders: Annotated[
        Orders,
        typer.Option(
            help="Orders in which an item's responses are shown: balanced (each response in each place equally often),"
            " shuffle (drawn anew for each judgment, as the paper does), fixed (as given).",
            rich_help_panel=SAMPLING,
        ),
    ] = "balanced",
    reduce: Annotated[
        Reduce | None,
        typer.Option(help=REDUCE_HELP + " Default: sum; meta with --meta.", rich_help_panel=SAMPLING),
    ] = None,
    meta: Annotated[
        str | None,
        typer.Option(help="A meta RM, folder or hub id: scores every judgment.", rich_help_panel=SAMPLING),
    ] = None,
    meta_template: Annotated[
        Literal["meta", "meta-named", "meta-compact"] | None,
        typer.Option(help="What the meta RM reads. Default: what its config.json says.", rich_help_panel=SAMPLING),
    ] = None,
    k_meta: KMeta = None,
    meta_threshold: MetaThreshold = None,
    meta_weights: MetaWeights = False,
    stop: Annotated[StopName | None, typer.Option(help=STOP_HELP, rich_help_panel=SAMPLING)] = None,
    alpha: Alpha = None,
    width: Width = None,
    budget_votes: Annotated[
        int | None,
        typer.Option(min=1, help="With --stop: most judgments of all items together.", rich_help_panel=SAMPLING),
    ] = None,
    budget_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --stop: tokens of all items together; the last round may go beyond.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
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
    engine_settings = {
        "kind": engine, "base_urls": base_url or [], "batch": batch, "concurrency": concurrency, "timeout": timeout,
        "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code,
        "chat_template_kwargs": json_object("--chat-template-kwargs", chat_template_kwargs),
        "extra_body": json_object("--extra-body", extra_body),
        "engine_options": key_values("--engine-option", engine_option or []),
    }  # fmt: skip
    given = [*(["reference"] if reference is not None else []), *(["principles"] if principle else [])]
    options = Options(model, template, engine_settings, temperature, top_p, max_tokens, orders, given, head)
    chosen = choose_judge(by, options)
    rule = voting_rule(
        reduce or ("meta" if meta is not None else chosen.paradigm.reduce), k_meta, meta_threshold, meta_weights
    )
    k = _votes(k, chosen.paradigm)
    early = stopping_rule(stop, alpha, width, chosen.scale)
    budget = _budget(early, budget_votes, budget_tokens)
    if early is not None and not chosen.paradigm.sampled:
        raise UsageError(f"--stop: a {chosen.paradigm.title} judge gives the same scores every time")
    if early is not None and chosen.scale is None and rule != "majority":
        raise UsageError(f"--stop: scores of a {chosen.paradigm.title} judge have no range; use --reduce majority")

    def open_meta(kept: Ledger | None, stack: ExitStack) -> MetaRM | None:
        if meta is None:
            return None
        from opengrm.judges.meta import open_meta_rm

        return open_meta_rm(
            meta, meta_template, kept, stack, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )

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

            adaptive = AdaptiveJudge(cast("SampledJudge", opened), early, rule, orders == "balanced", scorer, budget)
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
    _report(summary, k, ledger, output, as_json, sys.stderr if rows_shown else sys.stdout)


def _votes(k: int | None, paradigm: Paradigm) -> int:
    """How many judgments of each item: one where every further one would be the same."""
    if paradigm.sampled:
        return k or VOTES
    if k not in (None, 1):
        raise UsageError(f"-k {k}: a {paradigm.title} judge gives the same scores every time, so -k is 1")
    return 1


def _budget(stop: Stop | None, votes: int | None, tokens: int | None) -> Budget | None:
    if votes is None and tokens is None:
        return None
    if stop is None:
        raise UsageError("--budget-votes and --budget-tokens go with --stop")
    from opengrm.judges.adaptive import Budget

    return Budget(votes, tokens)


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


def _report(summary: Summary, k: int, ledger: Path | None, output: Path | None, as_json: bool, stream: TextIO) -> None:
    """What the run came to: JSON on the stream if asked, else a few lines on standard error."""
    figures = summary.to_json()
    if as_json:
        row = {**figures, "k": k, "ledger": str(ledger) if ledger else None}
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
