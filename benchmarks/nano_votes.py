"""What votes are worth to the embedded model: held-out RubricWorld pairs, greedy and k = 1..32, three order plans.

    python benchmarks/nano_votes.py    # writes results/nano-votes.json, .md and .png, about half an hour on two cores

The ledger (results/nano-votes.ledger.db, not kept in git) makes the run resumable.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opengrm.engines import Sampling, open_engine
from opengrm.judges.grm import GRM
from opengrm.judges.run import Summary, verdicts
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reports.curves import plot_curves
from opengrm.reports.results import write_result
from opengrm.reports.tables import markdown, percent, share, vote_cells
from opengrm.templates import get_template
from opengrm.voting.revote import Labels, Report, revote
from opengrm.worlds.process import measure, summarise
from opengrm.worlds.rubric import generate_items

RESULTS = Path(__file__).parents[1] / "results"
KS = (1, 2, 4, 8, 16, 32)
PLANS = ("balanced", "shuffle", "fixed")
MAX_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="nano-base")
    parser.add_argument("--output", type=Path, default=RESULTS / "nano-votes.json")
    args = parser.parse_args()

    items = list(generate_items(args.items, seed=args.seed, split="test"))
    labels = Labels.of(items)
    engine, template = open_engine("transformers", args.model), get_template("compact")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    cost: dict[str, dict[str, Any]] = {}

    def judged(name: str, temperature: float, orders: str, k: int) -> list[Judgment]:
        sampling, summary = Sampling(temperature=temperature, max_tokens=MAX_TOKENS), Summary()
        judge = GRM(engine, template, sampling, orders, ledger)  # type: ignore[arg-type]
        started, judgments = time.monotonic(), []
        for found in verdicts(judge, items, k, summary=summary):
            judgments += found.judgments
        cost[name] = summary.to_json()
        print(f"{name}: {time.monotonic() - started:.0f} s, {summary.to_json()['accuracy']}", flush=True)
        return judgments

    with Ledger(args.output.with_suffix(".ledger.db")) as ledger:
        greedy = revote(judged("greedy", 0.0, "balanced", 1), labels, ks=(1,)).rows[0]
        sampled: dict[str, list[Judgment]] = {plan: judged(plan, 1.0, plan, max(KS)) for plan in PLANS}
    # The plan decides how a smaller k is taken from the 32: balanced plans by subsets that stay balanced.
    reports: dict[str, Report] = {plan: revote(sampled[plan], labels, ks=KS) for plan in PLANS}
    rows = [{"orders": "balanced", "decoding": "greedy", **greedy}]
    for plan in PLANS:
        rows += [{"orders": plan, "decoding": "T = 1", **row} for row in reports[plan].rows]
    by_id = {item.id: item for item in items}
    processes = [measure(by_id[j.item], j.order or (), j.text or "") for j in sampled["balanced"]]
    balanced = {row["k"]: row["accuracy"]["mean"] for row in reports["balanced"].rows}

    write_result(
        args.output,
        command=f"python benchmarks/nano_votes.py --items {args.items} --seed {args.seed}",
        headline={"greedy": greedy["accuracy"]["mean"], **{f"k{k}": balanced[k] for k in KS}},
        rows=rows,
        notes={
            "items": f"{args.items} RubricWorld pairs of the test split, seed {args.seed}",
            "model": engine.model,
            "cost": cost,
            "positions": {plan: reports[plan].positions for plan in PLANS},
            "process": asdict(summarise(processes)),
        },
    )
    series = {f"{plan} orders": reports[plan].rows for plan in PLANS}
    title = f"{Path(args.model).name}, {args.items:,} RubricWorld pairs"
    plot_curves(args.output.with_suffix(".png"), series, levels={"greedy": greedy["accuracy"]}, title=title)
    head = f"{title}, test split, T = 1, sum of votes. Accuracy in percent with 95 % intervals."
    page = [f"# Votes of {Path(args.model).name}\n\n{head}\n"]
    page.append(f"\nGreedy, one order: {percent(greedy['accuracy'])}, tied {share(greedy['ties'])} %.\n")
    page += [f"\n## {plan} orders\n\n{markdown(vote_cells(reports[plan].rows))}" for plan in PLANS]
    page.append(f"\n![accuracy against k]({args.output.with_suffix('.png').name})\n")
    args.output.with_suffix(".md").write_text("".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
