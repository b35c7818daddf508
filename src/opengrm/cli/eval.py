"""`opengrm eval`: benchmarks in, a folder with every figure, verdict and judgment out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opengrm.cli.eval_sources import Source, checked, placed, shows_pairs
from opengrm.cli.judge_options import (
    BaseUrl,
    Batch,
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
    Temperature,
    TemplateName,
    Timeout,
    TopP,
    engine_settings,
    meta_opener,
    votes,
)
from opengrm.cli.options import (
    Bad,
    JsonOut,
    KMeta,
    MetaThreshold,
    MetaWeights,
    OnBad,
    bad_rows,
    is_ledger,
    of_file,
    print_table,
    voting_rule,
)
from opengrm.cli.progress import progress
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.benchmarks.run import Gathered
    from opengrm.items import Item
    from opengrm.judges.base import Judge
    from opengrm.judges.meta import MetaRM
    from opengrm.judgments import Judgment
    from opengrm.ledger import Ledger
    from opengrm.voting.guided import Rule

RUN, GIVEN = "Run", "Judgments that are there"


def run_folder(text: str) -> Path:
    """The value of --output: a folder that is there or can be made. Raises UsageError."""
    if not text:
        raise UsageError("--output '': give a folder for the run, such as runs/my-grm")
    path = Path(text)
    if found := next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None):
        raise UsageError(f"--output {path}: {found} is a file; give a folder for the run")
    return path


def evaluate(
    benchmarks: Annotated[str, typer.Argument(metavar="BENCH[,BENCH...]", help="Benchmarks by name, or all.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            parser=run_folder,
            help="The run's folder; the same command goes on where it stopped.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help='Their rows: a file, a folder (with a folder for each benchmark where there are several), "hub", or'
            " NAME=PATH for one benchmark; may be given several times."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="At most this many items of each benchmark: a fixed draw of whole prompts, at least one."
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(help="Keep judgments in this file. Default: OUTPUT/judgments.ledger.db.", rich_help_panel=RUN),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="How reports call the run. Default: the judge and its model.")
    ] = None,
    judgments: Annotated[
        Path | None,
        typer.Option(
            help="Score these judgments instead of judging: JSON Lines, a ledger, or RewardBench's per-item files.",
            rich_help_panel=GIVEN,
        ),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            help='Score these scores: {"item", "scores"} a line; the same as --judgments.', rich_help_panel=GIVEN
        ),
    ] = None,
    form: Annotated[
        Literal["auto", "pairs", "lists"],
        typer.Option(
            help="How benchmarks of lists (PPE correctness, RMB) are shown: lists whole, or the pairs that their rules"
            " compare. auto: pairs for judges that see responses beside one another, else lists; RMB's whole for grm."
        ),
    ] = "auto",
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
    on_bad: OnBad = "stop",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=RUN)] = False,
    as_json: JsonOut = False,
) -> None:
    """Score a judge on benchmarks, each by its own published rule.

    Judgments stay in the run's ledger; the same command resumes, another -k or --reduce votes over them again:

        opengrm eval rewardbench,rm-bench --data benchmarks/ --model MODEL -k 8 -o runs/my-grm

    A scalar reward model:

        opengrm eval all --data hub --judge bt --model bt/model -o runs/my-bt
    """
    from opengrm.cli.judges import Options, choose_judge
    from opengrm.ledger import Ledger
    from opengrm.reports.eval_run import LEDGER
    from opengrm.voting.guided import rule_name

    if judgments is not None and scores is not None:
        raise UsageError("give either --judgments or --scores")
    given = judgments or scores
    if given is not None and (k is not None or ledger is not None or meta is not None):
        raise UsageError("-k, --ledger and --meta are for judging, not for --judgments and --scores")
    settings = engine_settings(
        engine, base_url, batch, concurrency, timeout, device, dtype, trust_remote_code, chat_template_kwargs,
        extra_body, engine_option,
    )  # fmt: skip
    options = Options(model, template, settings, temperature, top_p, max_tokens, orders, [], head)
    chosen = choose_judge(by, options) if given is None else None
    if reduce == "meta" and chosen is not None and meta is None:
        raise UsageError("--reduce meta needs --meta, the model that scores the judgments")
    plain = reduce or ("meta" if meta is not None else "sum" if chosen is None else chosen.paradigm.reduce)
    rule = voting_rule(plain, k_meta, meta_threshold, meta_weights)
    sources = [
        checked(benchmark, place, chosen, on_bad, limit, shows_pairs(form, benchmark, chosen))
        for benchmark, place in placed(benchmarks, data or [])
    ]
    output.mkdir(parents=True, exist_ok=True)
    if chosen is None:
        assert given is not None
        about: dict[str, Any] = {"judge": None, "model": None, "given": given.name, "reduce": rule_name(rule)}
        run = _Run(output, name or given.name, {**about, "limit": limit})
        if is_ledger(given):
            run.settings["ledger"] = _named(given, output)
        for source in sources:
            gathered, seen, skipped = _given(source, given, rule, on_bad)
            run.settings.update(seen)
            run.add(source, gathered, rule, skipped)
        run.show(as_json)
        return
    k = votes(k, chosen.paradigm)
    open_meta = meta_opener(meta, meta_template, device, dtype, trust_remote_code)
    about = {
        "judge": by, "model": model, "template": template, "k": k, "temperature": temperature, "top_p": top_p,
        "max_tokens": max_tokens, "orders": orders, "reduce": rule_name(rule), "meta": meta, "engine": engine,
        "form": form, "limit": limit,
    }  # fmt: skip
    place = ledger or output / LEDGER
    run = _Run(output, name or f"{by} {model}", about | {"ledger": _named(place, output)})
    with ExitStack() as stack:
        kept = stack.enter_context(Ledger(place))
        judging = _Judging(chosen.open(kept, stack), open_meta(kept, stack), kept, k)
        judging.show = stack.enter_context(
            progress("judging", k * sum(source.items for source in sources), quiet=quiet)
        )
        for source in sources:
            try:
                gathered = judging.gather(source)
            except KeyboardInterrupt:
                said = f"interrupted; {len(kept):,} judgments are in {place}: run the same command to go on"
                print(said, file=sys.stderr)
                raise
            run.settings.update(judging.seen)
            run.add(source, gathered, rule)
    run.show(as_json)


def _named(ledger: Path, output: Path) -> str:
    """The ledger as the run's reports find it: by its place in the run's folder, which may move, or else whole."""
    whole, folder = ledger.resolve(), output.resolve()
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)


def _given(source: Source, path: Path, how: Rule, on_bad: Bad) -> tuple[Gathered, dict[str, Any], int]:
    """The judgments of a file or a ledger that are of the benchmark's items, who made them, and how many were bad."""
    from opengrm.benchmarks.given import given_judgments
    from opengrm.benchmarks.run import gather
    from opengrm.ledger import Ledger
    from opengrm.reports.eval_run import judged_by
    from opengrm.voting.guided import Guide
    from opengrm.voting.revote import without_meta

    skipped = bad_rows(on_bad)
    seen: dict[str, Any] = {}

    def judging(items: Iterable[Item]) -> Iterator[Judgment]:
        known = {item.id for item in items}
        with ExitStack() as stack:
            if is_ledger(path):
                rows = stack.enter_context(Ledger(path, create=False)).judgments()
            else:
                rows = given_judgments(path, skipped)
            for row in rows:
                if row.item in known:
                    seen.update({} if seen else judged_by(row))
                    yield row

    try:
        found = gather(source.benchmark, source.read(), judging, of_file(path, skipped), pool=False)
        if isinstance(how, Guide):
            without_meta(found.blocks)
    except UsageError as error:
        raise (error if str(path) in str(error) else UsageError(f"{path}: {error}")) from None
    skipped.report()
    if not found.judgments:
        raise UsageError(
            f"{path}: no judgment of an item of {source.benchmark.title}; ids are like {next(iter(found.targets))!r}"
        )
    return found, seen, skipped.count


@dataclass
class _Judging:
    """A judge at work on one benchmark after the other."""

    judge: Judge
    meta: MetaRM | None
    ledger: Ledger
    k: int
    show: Callable[[int, str, int], None] = lambda done, note, new: None
    done: int = 0
    new: int = 0

    def __post_init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def gather(self, source: Source) -> Gathered:
        """Judge the benchmark's items."""
        from opengrm.benchmarks.run import gather

        seconds: dict[str, float] = {}
        found = gather(source.benchmark, source.read(), lambda items: self._timed(items, seconds))
        found.seconds.update(seconds)
        return found

    def _timed(self, items: Iterable[Item], seconds: dict[str, float]) -> Iterator[Judgment]:
        """The judgments of items; adds up what those of each item took, where the ledger knows it."""
        own: dict[str, str] = {}  # the item of each key that is not looked up yet: a ledger has other runs' judgments

        def look_up() -> None:
            for (key, item), spent in self.ledger.seconds(list(own)).items():
                if own[key] == item:
                    seconds[item] = seconds.get(item, 0.0) + spent
            own.clear()

        for judgment in self._judgments(items):
            if judgment.key is not None:
                if len(own) >= 500 or judgment.key in own:
                    look_up()
                own[judgment.key] = judgment.item
            yield judgment
        look_up()

    def _judgments(self, items: Iterable[Item]) -> Iterator[Judgment]:
        from opengrm.reports.eval_run import judged_by

        def on_judgment(_judgment: Judgment, _seconds: float) -> None:
            self.new += 1

        with closing(self.judge.judge(items, self.k, on_judgment)) as judged:
            for _, judgments in judged if self.meta is None else self.meta.score(judged):
                for judgment in judgments:
                    self.seen = self.seen or judged_by(judgment)
                    yield judgment
                self.done += len(judgments)
                self.show(self.done, "", self.new)


class _Run:
    """The run's folder."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self.folder, self.name, self.settings = folder, name, settings
        self.started = time.monotonic()
        self.benchmarks: dict[str, Any] = {}

    def add(self, source: Source, gathered: Gathered, how: Rule, bad_judgments: int = 0) -> None:
        """Score one benchmark and write all that there is so far; `bad_judgments` were left out."""
        from opengrm.benchmarks.rewardbench_files import write_files
        from opengrm.benchmarks.run import outcomes, report
        from opengrm.jsonl import write_rows
        from opengrm.reports.eval_items import keep_shown
        from opengrm.reports.eval_run import ITEMS

        found = outcomes(source.benchmark, gathered, how)
        folder = self.folder / source.benchmark.name
        folder.mkdir(exist_ok=True)
        write_rows(folder / ITEMS, (outcome.to_json() for outcome in found))
        keep_shown(self.folder, source.benchmark.name, source.read())
        if source.benchmark.name in ("rewardbench", "rewardbench-2"):
            model, judge = (str(self.settings.get(key) or "given") for key in ("model", "judge"))
            write_files(folder / "rewardbench", found, source.read(), model, judge)
        row = report(source.benchmark, gathered, found, how, source.partial)
        if source.benchmark.pairs is not None:
            row["form"] = "pairs" if source.as_pairs else "lists"
        row["skipped"] = {"rows": source.skipped, "judgments": bad_judgments}
        self.benchmarks[source.benchmark.name] = row
        self.write()

    def write(self) -> None:
        """Write eval.json."""
        from opengrm.benchmarks import paper_overall
        from opengrm.reports import results
        from opengrm.reports.eval_run import RESULT

        row = {
            "name": self.name, "command": results.command_line(), "commit": results.commit(),
            "versions": results.versions(), "machine": results.machine(), "settings": self.settings,
            "seconds": time.monotonic() - self.started,
            "paper_overall": paper_overall(
                {name: row["overall"] if row["partial"] is False else None for name, row in self.benchmarks.items()}
            ),
            "benchmarks": self.benchmarks,
        }  # fmt: skip
        part = self.folder / f".{RESULT}.part"
        part.write_text(json.dumps(row, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(self.folder / RESULT)

    def show(self, as_json: bool) -> None:
        """Write the page and its pictures, and print the figures."""
        from opengrm.reports.eval_page import write_page
        from opengrm.reports.eval_pictures import write_pictures
        from opengrm.reports.eval_run import RESULT
        from opengrm.reports.tables import percent, share

        page = write_page([self.folder])
        write_pictures(self.folder)
        if as_json:
            print((self.folder / RESULT).read_text(encoding="utf-8"), end="")
            return
        rows = [
            {
                "benchmark": name + ({True: " (partial)", None: " (perhaps partial)"}.get(found["partial"], "")),
                "overall %\n[95 %]": percent(found["overall_interval"]),
                "valid\nonly %": share(found["overall_valid"]),
                "items": f"{found['items']:,}",
                "missing": f"{found['missing']:,}",
                "ties": f"{found['tied']:,}",
            }
            for name, found in self.benchmarks.items()
        ]
        print_table(self.name, rows)
        for name, found in self.benchmarks.items():
            if any(found["skipped"].values()):
                left = " and ".join(f"{count:,} {what}" for what, count in found["skipped"].items() if count)
                print(f"{name}: {left} could not be used and were skipped (--on-bad skip).")
        print(f"figures: {self.folder / RESULT}; page: {page}", file=sys.stderr)
