"""`opengrm demo`: the story of SPCT on two cores, with nothing but this package.

Base against trained model, votes, votes guided by the meta RM, and a short RL run whose reward climbs, all on held-out
pairs of RubricWorld. Judgments are kept in a ledger and the RL run has checkpoints, so a run that was stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opengrm.cli.options import print_table, printable
from opengrm.cli.progress import progress
from opengrm.errors import MissingExtra

if TYPE_CHECKING:
    from opengrm.engines.base import Engine
    from opengrm.items import Item
    from opengrm.judges.meta import MetaRM
    from opengrm.judges.run import Judged
    from opengrm.ledger import Ledger
    from opengrm.voting.guided import Rule

Row = dict[str, Any]
GENERATIONS = 4  # judgments of a prompt in RL, the paper's G
BETA = 0.02  # at the paper's 0.08 runs of this length stayed much closer to the start (KL 0.02) and gained less
TRAIN_SEED = 1000  # away from the seeds that the embedded models were trained on
BEGIN, END = 10, 10  # steps at either end of the RL run whose rewards are compared


@dataclass(frozen=True)
class Plan:
    """What the demo does.

    Attributes:
        base, trained, meta: the models: embedded names or folders.
        count: held-out pairs.
        k: judgments of each pair.
        seed: of the pairs and of RL.
        steps: updates of the RL run; 0 leaves it out.
        batch: judgments of an update.
        max_tokens: most new tokens of a judgment; one of a pair takes 45.
    """

    base: str = "nano-base"
    trained: str = "nano"
    meta: str = "nano-meta"
    count: int = 200
    k: int = 16
    seed: int = 0
    steps: int = 60
    batch: int = 192
    max_tokens: int = 96


def demo(
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files that it writes.")] = Path("demo"),
    count: Annotated[int, typer.Option("--count", "-c", min=1, help="How many pairs to judge.")] = Plan.count,
    k: Annotated[int, typer.Option("-k", min=1, help="Judgments of each pair.")] = Plan.k,
    seed: Annotated[int, typer.Option(help="Another seed makes other pairs.")] = Plan.seed,
    steps: Annotated[int, typer.Option(min=0, help="Updates of the RL run; 0 leaves it out.")] = Plan.steps,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Base against trained judge, votes, meta-guided votes, and a short RL run, on pairs of RubricWorld.

    Stop it where you like: the same command goes on, and asks for nothing that is in the folder already.
    """
    run(out, Plan(count=count, k=k, seed=seed, steps=steps), quiet=quiet)


def run(out: Path, plan: Plan, *, quiet: bool = False) -> None:
    """Do what the plan says, print it, and write it to the folder `out`."""
    from opengrm import engines
    from opengrm.judges.meta import open_meta_rm
    from opengrm.ledger import Ledger
    from opengrm.reading import write_items
    from opengrm.reports import demo_page as page
    from opengrm.worlds.rubric import generate_items

    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    items = tuple(generate_items(plan.count, seed=plan.seed, split="test"))
    write_items(out / "items.jsonl", items)
    names = {part: Path(model).name for part, model in (("base", plan.base), ("trained", plan.trained))}
    print(f"{page.PROVING_GROUND}\nStop with Ctrl-C where you like: the same command goes on.")

    gains: list[Row] = []
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(out / "ledger.db"))
        bench = Bench(items, ledger, plan, quiet)

        print(f"\n1. THE BASE AGAINST THE TRAINED MODEL, one greedy judgment of each of {plan.count:,} held-out pairs")
        opened: dict[str, Engine] = {}
        greedy: dict[str, list[Judged]] = {}
        votes: dict[str, list[Judged]] = {}
        for part, model in (("base", plan.base), ("trained", plan.trained)):
            opened[part] = engines.open_engine("transformers", model)
            stack.callback(opened[part].close)
            greedy[part] = bench.greedy(part, names[part], opened[part])
        example = choose_example(items, greedy["base"], greedy["trained"], names)
        print_example(example)
        gains.append(
            bench.gain("trained", "greedy", names["base"], greedy["base"], names["trained"], greedy["trained"])
        )
        print_table("\nAll pairs", page.greedy_cells(bench.rows))
        print_table("", page.gain_cells(gains))

        print(f"\n2. VOTES: {plan.k} judgments of each pair at T = 1, their scores summed")
        for part, engine in opened.items():
            votes[part] = bench.votes(part, names[part], engine)
        write_verdicts(out / "verdicts.jsonl", votes["trained"])
        gains.append(
            bench.gain("trained", f"{plan.k} votes", names["base"], votes["base"], names["trained"], votes["trained"])
        )
        print_table("Accuracy against votes", page.vote_cells(bench.rows, ["sum"]))
        print_table("", page.gain_cells(gains[-1:]))

        print("\n3. GUIDED VOTES: a meta RM says which half of the judgments counts")
        meta = open_meta_rm(plan.meta, None, ledger, stack)
        for part in opened:
            bench.guided(part, names[part], votes[part], meta)
        print_table("Accuracy against votes", page.vote_cells(bench.rows, ["sum", "meta"]))

        print(f"\n4. A SHORT RL RUN from {names['base']}: {plan.steps} steps of {plan.batch} judgments")
        live = out / f"live-{plan.steps}-steps-seed-{plan.seed}"  # other settings are another run
        missing: dict[str, str] = {}
        climb: Row | None = None
        try:
            climb = train_live(live, plan, quiet) if plan.steps else None
        except MissingExtra as error:
            missing["live"] = str(error)
        if climb is not None:
            after = f"{names['base']} after {plan.steps} steps"
            engine = engines.open_engine("transformers", str(live))
            stack.callback(engine.close)
            for vote, before, now in (
                ("greedy", greedy["base"], bench.greedy("live", after, engine)),
                (f"{plan.k} votes", votes["base"], bench.votes("live", after, engine)),
            ):
                gains.append(bench.gain("live", vote, names["base"], before, after, now))
            print(f"\n{page.climb_text(climb)}")
            both = [row for row in bench.rows if row["part"] in ("base", "live")]
            print_table("\nThe same held-out pairs, before and after", page.gain_cells(gains[-2:]))
            print_table("Accuracy against votes", page.vote_cells(both, ["sum"]))
        else:
            missing.setdefault("live", "it was left out (--steps 0)")
            print(f"Not run: {missing['live']}")

    missing |= draw(out, bench.rows, plan, climb)
    seconds = time.monotonic() - started
    write_page(out, bench, gains, example, climb, missing, seconds)
    print_table("\n5. WHAT IT COST", page.cost_cells(bench.costs))
    drawn = [name for name in ("curves.png", "rl.png") if name not in missing]
    files = ["report.md", "demo.json", *drawn, "items.jsonl", "ledger.db", "verdicts.jsonl"]
    if climb is not None:
        files.append(f"{live.name}/ (the model)")
    print(f"{seconds:,.0f} seconds. Written to {out}: {', '.join(files)}.")
    for name, why in missing.items():
        if name != "live":
            print(f"No {name}: {why}")


@dataclass
class Bench:
    """The held-out pairs and what was measured on them.

    Attributes:
        rows: a row for each model, kind of vote and k, see `reports.demo_page`; `part` is "base", "trained" or "live".
        costs: judgments and tokens of each run over the pairs.
    """

    items: Sequence[Item]
    ledger: Ledger
    plan: Plan
    quiet: bool
    rows: list[Row] = field(default_factory=list)
    costs: list[Row] = field(default_factory=list)

    def greedy(self, part: str, name: str, engine: Engine) -> list[Judged]:
        """One greedy judgment of each pair, measured for process as well."""
        from opengrm.voting.intervals import share_interval
        from opengrm.worlds.process import measure

        judged = self._judge(f"{name}, greedy", engine, 1, 0.0)
        process = [measure(item, js[0].order or (), js[0].text or "") for item, js, _ in judged]
        shares: dict[str, list[bool | None]] = {
            "principles_exact": [p.principles_exact for p in process],
            "sound": [p.sound for p in process],
            "parsed": [js[0].scores is not None for _, js, _ in judged],
        }
        for row in self._voted(part, name, "greedy", judged, "sum"):
            row |= {what: _interval(share_interval(_array(bool(x) for x in found))) for what, found in shares.items()}
        return judged

    def votes(self, part: str, name: str, engine: Engine) -> list[Judged]:
        """k judgments of each pair at T = 1, and their plain votes."""
        judged = self._judge(f"{name}, {self.plan.k} votes", engine, self.plan.k, 1.0)
        self._voted(part, name, "sum", judged, "sum")
        return judged

    def guided(self, part: str, name: str, judged: Sequence[Judged], meta: MetaRM) -> None:
        """Votes of the same judgments, guided by the meta RM."""
        from opengrm.voting.guided import Guide

        scored: list[Judged] = []
        with progress(f"meta RM reads {name}", len(judged) * self.plan.k, quiet=self.quiet) as show:
            for _, judgments in meta.score((item, js) for item, js, _ in judged):
                scored.append(judged[len(scored)]._replace(judgments=judgments))
                show(len(scored) * self.plan.k)
        self._voted(part, name, "meta", scored, Guide())

    def gain(
        self, part: str, vote: str, before: str, judged_before: Sequence[Judged], after: str,
        judged_after: Sequence[Judged],
    ) -> Row:  # fmt: skip
        """How far `after` is ahead of `before`, item by item."""
        from opengrm.voting.intervals import normal_interval, share_interval

        earned = [_array(_credit(j) for j in judged) for judged in (judged_before, judged_after)]
        return {
            "part": part, "vote": vote, "items": len(self.items), "before": before, "after": after,
            "accuracy_before": _interval(share_interval(earned[0])),
            "accuracy_after": _interval(share_interval(earned[1])),
            "difference": _interval(normal_interval(earned[1] - earned[0])),
        }  # fmt: skip

    def _judge(self, what: str, engine: Engine, k: int, temperature: float) -> list[Judged]:
        """k judgments of each pair, from the ledger where they are there."""
        from opengrm.engines.base import Sampling
        from opengrm.judges.grm import GRM
        from opengrm.judges.run import Summary, verdicts
        from opengrm.templates import get_template

        sampling = Sampling(temperature=temperature, max_tokens=self.plan.max_tokens)
        judge = GRM(engine, get_template("compact"), sampling, ledger=self.ledger)
        summary = Summary()
        with progress(what, len(self.items) * k, quiet=self.quiet) as show:
            judging = verdicts(judge, self.items, k, summary=summary, on_progress=lambda n, s: show(n, new=s.new))
            judged = list(judging)
        kept = ("judgments", "new", "prompt_tokens", "completion_tokens")
        cost = {name: getattr(summary, name) for name in kept}
        self.costs.append({"model": what, **cost, "seconds": time.monotonic() - summary.started})
        return judged

    def _voted(self, part: str, name: str, how: str, judged: Sequence[Judged], rule: Rule) -> list[Row]:
        from opengrm.voting.revote import Labels, revote

        k = 1 if how == "greedy" else self.plan.k
        ks = sorted({2**e for e in range(k.bit_length())} | {k})
        report = revote((j for _, js, _ in judged for j in js), Labels.of(self.items), ks=ks, how=rule)
        rows = [{**row, "part": part, "checkpoint": row["model"], "model": name, "how": how} for row in report.rows]
        self.rows += rows
        return rows


def train_live(folder: Path, plan: Plan, quiet: bool) -> Row:
    """The RL run, from the base model on fresh items; a bar of the mean reward every few steps."""
    from opengrm.reports.demo_page import mean_reward, read_steps, step_bar
    from opengrm.templates import get_template
    from opengrm.training.rl import Settings, train
    from opengrm.worlds.rubric import generate_items

    settings = Settings(
        steps=plan.steps, batch=plan.batch, generations=GENERATIONS, beta=BETA, learning_rate=4e-4, warmup_steps=5,
        max_tokens=plan.max_tokens, save_every=10, seed=plan.seed,
    )  # fmt: skip
    items = list(generate_items(plan.steps * settings.prompts, seed=plan.seed + TRAIN_SEED, split="train"))
    every, metrics = max(1, plan.steps // 20), folder / "metrics.jsonl"
    shown = 0

    def bars(since: int) -> Iterator[str]:
        rows = read_steps(metrics)
        for step in range(since + 1, len(rows) + 1):
            if step % every == 0 or step == plan.steps:
                yield step_bar(rows[:step], plan.steps, plan.batch, GENERATIONS)

    def say(line: str) -> None:
        """A bar in place of the trainer's line of a step, whose numbers are in the file by then."""
        nonlocal shown
        if not line.startswith("step "):
            print(line, flush=True)
            return
        for bar in bars(shown):
            print(bar, flush=True)
        shown = len(read_steps(metrics))

    train(items, plan.base, folder, settings, template=get_template("compact"), say=(lambda _: None) if quiet else say)
    rows = read_steps(metrics)
    if not quiet and not shown:  # trained by an earlier run: the bars once more
        print("\n".join(bars(0)))
    ends = {
        name: {
            "steps": len(part),
            "judgments": len(part) * plan.batch,
            "reward": mean_reward(part, settings.prompts)._asdict(),
        }
        for name, part in (("first", rows[:BEGIN]), ("last", rows[-END:]))
    }
    return {"start": Path(plan.base).name, "steps": plan.steps, "batch": plan.batch, **ends, "rows": rows}


def choose_example(
    items: Sequence[Item], before: Sequence[Judged], after: Sequence[Judged], names: dict[str, str]
) -> Row:
    """A pair that the base gets wrong and the trained model right, where there is one; everything as it was shown."""
    chosen = max(range(len(items)), key=lambda i: _credit(after[i]) - _credit(before[i]))
    item, order = items[chosen], before[chosen].judgments[0].order or ()
    criteria = ", ".join(f"{name} {weight}" for name, weight in item.source["criteria"])
    rewards = ", ".join(str(item.source["rewards"][i]) for i in order)
    differ = _credit(after[chosen]) > _credit(before[chosen])
    return {
        "why": f"One pair that {names['trained']} gets right and {names['base']} wrong:" if differ else "One pair:",
        "query": item.prompt[-1].content,
        "responses": [item.responses[i] for i in order],
        "truth": f"the truth, hidden from the judges: {criteria}; rewards {rewards}",
        "judgments": {
            names[part]: judged[chosen].judgments[0].text or ""
            for part, judged in (("base", before), ("trained", after))
        },
    }


def print_example(example: Row) -> None:
    """The pair, and the judgments of it side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    responses = [f"[{position}] {text}" for position, text in enumerate(example["responses"], 1)]
    for line in (example["why"], example["query"], *responses, example["truth"]):
        console.print(Text(printable(line)))
    table = Table(title_justify="left")
    for name in example["judgments"]:
        table.add_column(Text(name), justify="left", overflow="fold")
    table.add_row(*(Text(printable(text.strip())) for text in example["judgments"].values()))
    console.print(table)


def write_verdicts(path: Path, judged: Sequence[Judged]) -> None:
    """The verdicts of the trained model's votes."""
    from opengrm.jsonl import RowWriter

    with RowWriter(path) as output:
        for _, _, verdict in judged:
            output.write(verdict.to_json())


def draw(out: Path, rows: Sequence[Row], plan: Plan, climb: Row | None) -> dict[str, str]:
    """Draw the pictures; returns why one is not there."""
    from opengrm.reports.curves import plot_curves
    from opengrm.reports.demo_page import plot_steps, series_name

    series: dict[str, list[Row]] = {}
    for row in rows:
        if row["how"] != "greedy":
            series.setdefault(series_name(row), []).append(row)
    missing = {} if climb else {"rl.png": "there was no RL run"}
    title = f"{plan.count:,} held-out pairs of RubricWorld"
    try:
        plot_curves(out / "curves.png", series, title=title)
        if climb:
            title = f"{climb['steps']} steps of {climb['batch']} judgments from {climb['start']} in RubricWorld"
            plot_steps(out / "rl.png", climb["rows"], title=title)
    except MissingExtra as error:
        missing |= dict.fromkeys(("curves.png", "rl.png"), str(error))
    return missing


def write_page(
    out: Path, bench: Bench, gains: Sequence[Row], example: Row, climb: Row | None, missing: dict[str, str],
    seconds: float,
) -> None:  # fmt: skip
    """demo.json and the page made from it."""
    import json

    from opengrm.reports import demo_page
    from opengrm.reports.results import write_result

    k = bench.plan.k
    best = {
        (row["part"], row["how"]): row["accuracy"]["mean"]
        for row in bench.rows
        if row["k"] == (1 if row["how"] == "greedy" else k)
    }
    notes = {
        "plan": asdict(bench.plan), "example": example, "gains": list(gains), "climb": climb, "costs": bench.costs,
        "missing": missing, "seconds": seconds,
    }  # fmt: skip
    headline = {f"{part}_{how}" + ("" if how == "greedy" else f"_at_{k}"): mean for (part, how), mean in best.items()}
    path = write_result(out / "demo.json", headline=headline, rows=bench.rows, notes=notes)
    demo_page.write_page(out, json.loads(path.read_text(encoding="utf-8")))


def _credit(judged: Judged) -> float:
    """What the verdict earns; chance where there is none, as in the tables."""
    from opengrm.voting.correctness import credit, label_of

    label, scores = label_of(judged.item), judged.verdict.scores
    return 1 / judged.item.n if scores is None or label is None else credit(scores, label)


def _array(values: Any) -> Any:
    import numpy as np

    return np.fromiter(values, dtype=np.float64)


def _interval(found: Any) -> dict[str, float] | None:
    return None if found is None else dict(found._asdict())
