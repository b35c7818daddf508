"""`opengrm eval`: benchmarks in, a folder with every figure, verdict and judgment out."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    print_table,
    voting_rule,
)
from opengrm.cli.progress import progress
from opengrm.errors import BadRow, UsageError

if TYPE_CHECKING:
    from opengrm.benchmarks import Benchmark
    from opengrm.benchmarks.run import Gathered
    from opengrm.cli.judges import Chosen
    from opengrm.items import Item
    from opengrm.judges.base import Judge
    from opengrm.judges.meta import MetaRM
    from opengrm.judgments import Judgment
    from opengrm.ledger import Ledger
    from opengrm.voting.guided import Rule

LEDGER, RESULT, ITEMS = "judgments.ledger.db", "eval.json", "items.jsonl"
RUN = "Run"


@dataclass(frozen=True)
class _Source:
    """A benchmark, where its rows are, and which of its items take part."""

    benchmark: Benchmark
    data: str
    counts: Counter[str]
    drawn: frozenset[str] | None

    @property
    def items(self) -> int:
        return sum(self.counts.values()) if self.drawn is None else len(self.drawn)

    @property
    def partial(self) -> bool:
        return self.drawn is not None or self.benchmark.missing_rows(self.counts) > 0


def evaluate(
    benchmarks: Annotated[str, typer.Argument(metavar="BENCH[,BENCH...]", help="Benchmarks by name, or all.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run's folder; the same command goes on where it stopped.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help='Their rows: a file, a folder (with a folder for each benchmark where there are several), "hub", or'
            " NAME=PATH for one benchmark; may be given several times."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only this many items of each benchmark: a fixed draw.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help=f"Keep judgments in this file. Default: OUTPUT/{LEDGER}.", rich_help_panel=RUN)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="How reports call the run. Default: the judge and its model.")
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

    settings = engine_settings(
        engine, base_url, batch, concurrency, timeout, device, dtype, trust_remote_code, chat_template_kwargs,
        extra_body, engine_option,
    )  # fmt: skip
    options = Options(model, template, settings, temperature, top_p, max_tokens, orders, [], head)
    chosen = choose_judge(by, options)
    rule = voting_rule(
        reduce or ("meta" if meta is not None else chosen.paradigm.reduce), k_meta, meta_threshold, meta_weights
    )
    k = votes(k, chosen.paradigm)
    open_meta = meta_opener(meta, meta_template, device, dtype, trust_remote_code)
    sources = [
        _checked(benchmark, place, chosen, on_bad, limit) for benchmark, place in _placed(benchmarks, data or [])
    ]
    from opengrm.ledger import Ledger
    from opengrm.voting.guided import rule_name

    output.mkdir(parents=True, exist_ok=True)
    about = {
        "judge": by, "model": model, "template": template, "k": k, "temperature": temperature, "top_p": top_p,
        "max_tokens": max_tokens, "orders": orders, "reduce": rule_name(rule), "meta": meta, "engine": engine,
        "limit": limit,
    }  # fmt: skip
    run = _Run(output, name or f"{by} {model}", about)
    with ExitStack() as stack:
        kept = stack.enter_context(Ledger(ledger or output / LEDGER))
        judging = _Judging(chosen.open(kept, stack), open_meta(kept, stack), kept, k)
        show = stack.enter_context(progress("judging", k * sum(source.items for source in sources), quiet=quiet))
        judging.show = show
        for source in sources:
            try:
                gathered = judging.gather(source, chosen)
            except KeyboardInterrupt:
                where = ledger or output / LEDGER
                print(f"interrupted; {len(kept):,} judgments are in {where}: run the same command to go on",
                      file=sys.stderr)  # fmt: skip
                raise
            run.settings.update({key: value for key, value in judging.seen.items() if value is not None})
            run.add(source, gathered, rule)
    run.show(as_json)


def _placed(names: str, data: list[str]) -> list[tuple[Benchmark, str]]:
    """The benchmarks asked for, each with where its rows are. Raises UsageError."""
    from opengrm.benchmarks import BENCHMARKS
    from opengrm.benchmarks.files import HUB, own_folder

    own = {name: path for name, equals, path in (entry.partition("=") for entry in data) if equals}
    common = [entry for entry in data if "=" not in entry]
    if unknown := sorted(own.keys() - BENCHMARKS.keys()):
        raise UsageError(f"--data {unknown[0]}=...: no such benchmark; known are {', '.join(BENCHMARKS)}")
    if len(common) > 1:
        raise UsageError("--data: give one place for all, and NAME=PATH for others")
    wanted = [name.strip() for name in names.split(",")]
    if wanted == ["all"]:
        everywhere = not common or common[0] == HUB
        wanted = [
            name
            for name, benchmark in BENCHMARKS.items()
            if name in own
            or (benchmark.hub if everywhere else own_folder(benchmark, Path(common[0])) != Path(common[0]))
        ]
        if not wanted:
            raise UsageError(f"--data {common[0]}: holds no folder named like a benchmark ({', '.join(BENCHMARKS)})")
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        raise UsageError(f"{unknown[0]!r} is no benchmark; known are {', '.join(BENCHMARKS)}")
    for benchmark_name in wanted:
        if benchmark_name not in own and not common:
            raise UsageError(f'{benchmark_name}: give --data, a file or folder or "hub"')
    return [(BENCHMARKS[name], own.get(name) or common[0]) for name in dict.fromkeys(wanted)]


def _checked(benchmark: Benchmark, data: str, chosen: Chosen | None, on_bad: Bad, limit: int | None) -> _Source:
    """Every row read once, before a model is loaded: what is bad, how many items there are, and which are drawn."""
    import hashlib

    skipped = bad_rows(on_bad)
    counts: Counter[str] = Counter()
    places: list[tuple[bytes, bytes, str]] = []
    for item in _usable(benchmark, data, chosen, skipped):
        counts[benchmark.subset(item)] += 1
        if limit is not None:
            group, own = (
                hashlib.blake2b(s.encode(), digest_size=8).digest() for s in (item.cluster or item.id, item.id)
            )
            places.append((group, own, item.id))
    skipped.report()
    if not counts:
        raise UsageError(f"{data}: no item of {benchmark.title} to judge")
    drawn = None if limit is None or limit >= len(places) else frozenset(name for *_, name in sorted(places)[:limit])
    return _Source(benchmark, data, counts, drawn)


def _usable(
    benchmark: Benchmark, data: str, chosen: Chosen | None, on_bad: Callable[[BadRow], None]
) -> Iterator[Item]:
    """The benchmark's items that the judge can be shown; every other row goes to `on_bad` with its place."""
    from opengrm.benchmarks.files import load

    for where, item in load(benchmark, data, on_bad, as_pairs=chosen is not None and chosen.compares):
        try:
            if chosen is not None:
                chosen.shown(item)
        except ValueError as error:
            on_bad(BadRow(where, f"{chosen.reads if chosen else ''}: {error}"))
            continue
        yield item


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

    def gather(self, source: _Source, chosen: Chosen) -> Gathered:
        """Judge the benchmark's items."""
        from opengrm.benchmarks.run import gather

        usable = _usable(source.benchmark, source.data, chosen, bad_rows("skip"))
        items = (item for item in usable if source.drawn is None or item.id in source.drawn)
        found = gather(source.benchmark, items, self._judgments)
        for item, seconds in self.ledger.seconds().items():
            if item in found.targets:
                found.seconds[item] = seconds
        return found

    def _judgments(self, items: Iterable[Item]) -> Iterator[Judgment]:
        def on_judgment(_judgment: Judgment, _seconds: float) -> None:
            self.new += 1

        with closing(self.judge.judge(items, self.k, on_judgment)) as judged:
            for _, judgments in judged if self.meta is None else self.meta.score(judged):
                for judgment in judgments:
                    if not self.seen:
                        self.seen = {name: getattr(judgment, name) for name in ("template", "temperature")}
                    yield judgment
                self.done += len(judgments)
                self.show(self.done, "", self.new)


class _Run:
    """The run's folder."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self.folder, self.name, self.settings = folder, name, settings
        self.started = time.monotonic()
        self.benchmarks: dict[str, Any] = {}

    def add(self, source: _Source, gathered: Gathered, how: Rule) -> None:
        """Score one benchmark and write all that there is so far."""
        from opengrm.benchmarks.run import outcomes, report
        from opengrm.jsonl import write_rows

        found = outcomes(source.benchmark, gathered, how)
        folder = self.folder / source.benchmark.name
        folder.mkdir(exist_ok=True)
        write_rows(folder / ITEMS, (outcome.to_json() for outcome in found))
        self.benchmarks[source.benchmark.name] = report(source.benchmark, gathered, found, how, source.partial)
        self.write()

    def write(self) -> None:
        """Write eval.json."""
        from opengrm.benchmarks import paper_overall
        from opengrm.reports import results

        row = {
            "name": self.name, "command": results.command_line(), "commit": results.commit(),
            "versions": results.versions(), "machine": results.machine(), "settings": self.settings,
            "seconds": time.monotonic() - self.started,
            "paper_overall": paper_overall({name: found["overall"] for name, found in self.benchmarks.items()}),
            "benchmarks": self.benchmarks,
        }  # fmt: skip
        part = self.folder / f".{RESULT}.part"
        part.write_text(json.dumps(row, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(self.folder / RESULT)

    def show(self, as_json: bool) -> None:
        """Print the figures."""
        if as_json:
            print((self.folder / RESULT).read_text(encoding="utf-8"), end="")
            return
        rows = [
            {
                "benchmark": name + (" (partial)" if found["partial"] else ""),
                "overall": _percent(found["overall"]),
                "valid only": _percent(found["overall_valid"]),
                "items": f"{found['items']:,}",
                "missing": f"{found['missing']:,}",
                "ties": f"{found['tied']:,}",
            }
            for name, found in self.benchmarks.items()
        ]
        print_table(self.name, rows)
        print(f"figures: {self.folder / RESULT}", file=sys.stderr)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
