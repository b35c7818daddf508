"""What everything around the engine costs: judge, parse, ledger, vote, files.

    python benchmarks/throughput.py        # writes results/throughput.json, about ten minutes

Three measurements, each in a process of its own with one thread:
  1. judgments per second with an engine that answers at once (items from a file, ledger on disk, verdicts written);
  2. peak memory of the same run at 10 thousand and at 1 million judgments;
  3. judgments per second against a local server with 50 ms latency and 64 requests in flight, as a share of the ideal
     64 / 0.05 s. The server runs in a process of its own on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the instant engine and the local server are the tests' own

K = 8
IDEAL_IN_FLIGHT, LATENCY = 64, 0.05


def work(kind: str, judgments: int, folder: Path) -> dict[str, float]:
    """One measurement, in this process."""
    from opengrm.engines.base import Sampling
    from opengrm.jsonl import RowWriter
    from opengrm.judges.grm import GRM
    from opengrm.judges.run import Summary, verdicts
    from opengrm.ledger import Ledger
    from opengrm.reading import read_items
    from opengrm.templates import get_template

    path = folder / "items.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for i in range(judgments // K):
            pair = [f"Answer {i}: " + "seven is a prime number. " * 8, f"Answer {i}: " + "eight is one as well. " * 9]
            file.write(json.dumps({"id": str(i), "prompt": f"Query {i}: name a prime.", "responses": pair, "best": 0}))
            file.write("\n")
    if kind == "instant":
        from instant_engine import InstantEngine

        engine = InstantEngine()
        stop = lambda: None  # noqa: E731
    else:
        from opengrm.engines.openai import OpenAIEngine

        server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fake_server.py"), "--latency", str(LATENCY)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        engine = OpenAIEngine("fake", [url], concurrency=IDEAL_IN_FLIGHT)
        stop = server.terminate
    start, cpu = time.perf_counter(), time.process_time()
    summary = Summary()
    with Ledger(folder / "ledger.db") as ledger, RowWriter(folder / "verdicts.jsonl") as out:
        judge = GRM(engine, get_template("grm"), Sampling(), ledger=ledger)
        for judged in verdicts(judge, read_items(path), K, summary=summary):
            out.write(judged.verdict.to_json())
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    engine.close()
    stop()
    figures = summary.to_json()
    if figures["judgments"] != judgments or figures["parse_rate"] != 1.0:
        raise SystemExit(f"the run did not do its work: {figures}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "judgments": judgments,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "per_second": judgments / seconds,
        "peak_mib": peak,
    }


def measured(kind: str, judgments: int) -> dict[str, float]:
    """`work` in a fresh process with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--work", kind, "--judgments", str(judgments), "--folder", folder]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(kind, row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of measurements 1 and 3; the median is quoted")
    parser.add_argument("--large", type=int, default=1_000_000, help="judgments of the large memory run")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "throughput.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--judgments", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(args.work, args.judgments, args.folder)))
        return

    from opengrm.reports.results import write_result

    def median(rows: list[dict[str, float]]) -> dict[str, float]:
        return sorted(rows, key=lambda r: r["per_second"])[len(rows) // 2]

    instant = [measured("instant", 40_000) for _ in range(args.rounds)]
    server = [measured("server", 12_800) for _ in range(args.rounds)]
    small, large = measured("instant", 10_000), measured("instant", args.large)
    ideal = IDEAL_IN_FLIGHT / LATENCY
    rows = [{"measurement": "instant engine", **r} for r in instant]
    rows += [{"measurement": "server, 50 ms, 64 in flight", "ideal_per_second": ideal, **r} for r in server]
    rows += [{"measurement": "memory", **r} for r in (small, large)]
    write_result(
        args.output,
        command=f"python benchmarks/throughput.py --rounds {args.rounds} --large {args.large}",
        headline={
            "judgments_per_second": median(instant)["per_second"],
            "server_efficiency": median(server)["per_second"] / ideal,
            "rss_growth": large["peak_mib"] / small["peak_mib"],
        },
        rows=rows,
    )


if __name__ == "__main__":
    main()
