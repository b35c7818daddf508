"""Where the engine's time goes when items stop early: 32 votes of each pair against `--stop posterior`, in one run.

    python benchmarks/adaptive_rate.py            # writes results/adaptive-rate.json; three minutes of one core

The embedded model judges 300 pairs of RubricWorld in batches of 64 rows, once with each plan. CPU time of one thread:
`prefill_share` is reading prompts, `step_ms_per_row` a decoding step divided by the rows in it. `rows_per_step` says
how full the batches are, `rows_per_prompt` how many samples share the one copy of a prompt.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opengrm.engines import open_engine
from opengrm.engines.base import Sampling
from opengrm.engines.shared_prefix import SharedPrefixRows
from opengrm.judges.adaptive import AdaptiveJudge
from opengrm.judges.grm import GRM
from opengrm.judges.run import Summary, verdicts
from opengrm.ledger import Ledger
from opengrm.reports.results import write_result
from opengrm.templates import get_template
from opengrm.voting.intervals import share_interval
from opengrm.voting.stopping import Stop
from opengrm.worlds.rubric import generate_items

RESULTS = Path(__file__).parents[1] / "results"
BATCH = 64


def timed(method: Callable[..., Any], name: str, found: Counter[str]) -> Callable[..., Any]:
    def call(rows: SharedPrefixRows, *words: Any, **values: Any) -> Any:
        if name == "step":
            found["steps"] += 1
            found["rows"] += len(rows)
            found["prompts"] += len(set(rows.row_prompts))
        start = time.thread_time()
        result = method(rows, *words, **values)
        found[name] += time.thread_time() - start  # type: ignore[assignment]
        return result

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "adaptive-rate.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    for name, label in (("step", "step"), ("_prefill", "prefill")):
        setattr(SharedPrefixRows, name, timed(getattr(SharedPrefixRows, name), label, found))
    items = list(generate_items(args.items, split="test", seed=11))
    engine = open_engine("transformers", "nano", batch=BATCH, device="cpu")

    def judge() -> GRM:
        sampling = Sampling(temperature=1.0, max_tokens=192)
        return GRM(engine, get_template("compact"), sampling, ledger=Ledger(None))

    list(judge().judge(items[:1], 2))  # the first call prepares
    rows: list[dict[str, Any]] = []
    full: list[int | None] = []
    for plan, stop in (("32 votes", None), ("posterior 0.05", Stop("posterior", 0.05, 0, 10))):
        found.clear()
        summary, start = Summary(), time.process_time()
        run = judge() if stop is None else AdaptiveJudge(judge(), stop)
        winners = [v.verdict.winner for v in verdicts(run, items, 32, summary=summary)]
        seconds = time.process_time() - start
        full = full or winners
        agreement = share_interval(np.array([a == b for a, b in zip(winners, full, strict=True)], dtype=np.float64))
        assert agreement is not None
        rows.append({
            "plan": plan, "items": len(items), "batch": BATCH, "judgments": summary.judgments, "cpu_seconds": seconds,
            "judgments_per_cpu_second": summary.judgments / seconds, "agreement": agreement._asdict(),
            "prefill_share": found["prefill"] / seconds, "rows_per_step": found["rows"] / found["steps"],
            "rows_per_prompt": found["rows"] / found["prompts"],
            "step_ms_per_row": 1000 * found["step"] / found["rows"],
        })  # fmt: skip
        print(rows[-1], flush=True)
    engine.close()
    whole, early = rows
    headline = {
        "votes_share": early["judgments"] / whole["judgments"],
        "cpu_seconds_share": early["cpu_seconds"] / whole["cpu_seconds"],
        "rate_share": early["judgments_per_cpu_second"] / whole["judgments_per_cpu_second"],
    }
    write_result(args.output, headline=headline, rows=rows, notes={"runs": "one of each plan, in one process"})


if __name__ == "__main__":
    main()
