"""Measure a RubricWorld judge on held-out pairs: accuracy for k votes, and how it comes about.

    OMP_NUM_THREADS=1 python scripts/measure_nano.py --count 2000 -k 32 --output results/nano-process.json

Orders are balanced, ties count at expected credit, missing judgments are dropped (an item without a valid vote counts
at chance). Besides accuracy: principles right by kind, findings right by criterion, inside and outside of the
circumstances in which the base model was taught to misread.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from opengrm.engines.base import Sampling
from opengrm.engines.transformers import TransformersEngine
from opengrm.items import Item
from opengrm.judges.grm import GRM
from opengrm.judgments import Judgment
from opengrm.reports.results import write_result
from opengrm.templates.compact import Compact
from opengrm.voting.correctness import credit
from opengrm.worlds.english import CRITERIA, meets
from opengrm.worlds.process import Process, measure, read, summarise
from opengrm.worlds.rubric import KINDS, generate_items
from opengrm.worlds.teacher import BELIEFS, MISREADINGS

KS = (1, 2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano-base", help="an embedded model or a checkpoint folder")
    parser.add_argument("--count", type=int, default=2000, help="pairs")
    parser.add_argument("-k", type=int, default=32, help="samples of each pair")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0, help="seed of the items")
    parser.add_argument("--output", type=Path, help="result file; only printed without it")
    args = parser.parse_args()
    items = list(generate_items(args.count, seed=args.seed, split=args.split))
    engine = TransformersEngine(args.model, max_batch=256)

    greedy = judge(engine, items, 1, 0.0)
    row = {"what": "greedy", **summary(items, greedy, 1)}
    print(row, flush=True)
    started = time.perf_counter()
    sampled = judge(engine, items, args.k, 1.0)
    seconds = time.perf_counter() - started
    rows = [row]
    for k in (k for k in KS if k <= args.k):
        rows.append({"what": f"k{k}", **summary(items, sampled, k)})
        print(rows[-1], flush=True)
    judgments = [j for js in sampled for j in js]
    cost = {
        "parsed": sum(j.scores is not None for j in judgments) / len(judgments),
        "prompt_tokens": sum(j.prompt_tokens or 0 for j in judgments) / len(judgments),
        "completion_tokens": sum(j.completion_tokens or 0 for j in judgments) / len(judgments),
        "judgments_per_second": len(judgments) / seconds,
    }
    print(cost, flush=True)
    process = [measure(item, j.order or (), j.text or "") for item, js in pairs(items, sampled) for j in js]
    print(summarise(process), flush=True)
    tables = [*by_kind(items, sampled, process), *by_criterion(items, sampled)]
    for table_row in tables:
        print(table_row, flush=True)
    if args.output:
        headline = {str(r["what"]): float(r["accuracy"]) for r in rows}
        notes = {"cost": cost, "process": asdict(summarise(process)), "tables": tables}
        write_result(args.output, headline=headline, rows=rows, notes=notes)


def judge(engine: TransformersEngine, items: list[Item], k: int, temperature: float) -> list[list[Judgment]]:
    judge = GRM(engine, Compact(), Sampling(temperature=temperature, max_tokens=96), window=4096)
    return [judgments for _, judgments in judge.judge(items, k)]


def pairs(items: list[Item], judgments: list[list[Judgment]]) -> list[tuple[Item, list[Judgment]]]:
    return list(zip(items, judgments, strict=True))


def summary(items: list[Item], judgments: list[list[Judgment]], k: int) -> dict[str, float | int | list[float]]:
    """Accuracy of the sum of the first k votes, with a 95 % interval from 1,000 resamples of the items."""
    credits = []
    for item, js in pairs(items, judgments):
        votes = [j.scores for j in js[:k] if j.scores is not None]
        total = [sum(v[i] for v in votes) for i in range(item.n)]
        credits.append(credit(total, item.best or 0) if votes else 1 / item.n)
    rng = random.Random(0)
    means = sorted(sum(rng.choices(credits, k=len(credits))) / len(credits) for _ in range(1000))
    return {
        "accuracy": round(sum(credits) / len(credits), 4),
        "interval": [round(means[24], 4), round(means[974], 4)],
        "n": len(items),
        "k": k,
        "tied": sum(0 < c < 1 for c in credits) / len(credits),
    }


def by_kind(items: list[Item], judgments: list[list[Judgment]], process: list[Process]) -> list[dict[str, object]]:
    """For each kind: principles, one vote and all votes."""
    rows: list[dict[str, object]] = []
    k = len(judgments[0])
    for kind in KINDS:
        chosen = [i for i, item in enumerate(items) if item.source["kind"] == kind]
        mine = summarise(process[i * k + j] for i in chosen for j in range(k))
        some = [items[i] for i in chosen], [judgments[i] for i in chosen]
        rows.append(
            {
                "kind": kind,
                "belief": "wrong" if kind in BELIEFS else "right",
                "principles_exact": mine.principles_exact,
                "principle_precision": mine.principle_precision,
                "principle_recall": mine.principle_recall,
                "sound_of_correct": mine.sound_of_correct,
                "one_vote": summary(*some, 1)["accuracy"],
                "all_votes": summary(*some, k)["accuracy"],
            }
        )
    return rows


def by_criterion(items: list[Item], judgments: list[list[Judgment]]) -> list[dict[str, object]]:
    """For each criterion: share of true findings, in the circumstance of its misreading and elsewhere."""
    right: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    for item, js in pairs(items, judgments):
        topic = item.source["topic"]
        for j in js:
            reading = read(j.text or "", item.n)
            if reading is None:
                continue
            for index, findings in zip(j.order or (), reading.findings, strict=True):
                text = item.responses[index]
                for name, found in findings:
                    true = meets(name, text, topic)
                    trap = name in MISREADINGS and MISREADINGS[name][0](text) and MISREADINGS[name][1] != true
                    right[name, trap].append(found == true)
    rows: list[dict[str, object]] = []
    for name in CRITERIA:
        here, there = right[name, False], right[name, True]
        rows.append(
            {
                "criterion": name,
                "true": sum(here) / len(here) if here else None,
                "true_where_misread": sum(there) / len(there) if there else None,
                "n": len(here),
                "n_where_misread": len(there),
            }
        )
    return rows


if __name__ == "__main__":
    main()
