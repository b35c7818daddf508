"""Measure adaptive voting: what each stopping rule spends, and whether it agrees with the vote over all.

    python scripts/measure_adaptive.py RUN DATA     writes results/adaptive.json, .md and .png

RUN is a folder of `scripts/measure_spct.py` (runs/spct/main-0): its evaluation/ holds the ledgers of the trained and
of the base model, 32 judgments of each of 2,000 pairs of RubricWorld. They are copied before they are opened. DATA
holds the public sets that examples/convert_recorded.py converts, LLMBar's judge outputs and WildBench's.
"""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from measure_spct import held_out
from report_adaptive import save

from opengrm.engines import open_engine
from opengrm.engines.base import Sampling
from opengrm.items import Item
from opengrm.judges.adaptive import AdaptiveJudge
from opengrm.judges.grm import GRM
from opengrm.judges.run import Summary, verdicts
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reading import read_items, read_judgments
from opengrm.templates import get_template
from opengrm.voting.correctness import credit_rows
from opengrm.voting.guided import PAPER, Rule
from opengrm.voting.intervals import share_interval
from opengrm.voting.ranked import ranked_row
from opengrm.voting.recorded import POOLED, Block, Recorded, collect
from opengrm.voting.replay import Plan, adaptive_rows, cycle_of, draw_orders, observed_range, replay
from opengrm.voting.revote import Labels
from opengrm.voting.stopping import Stop, course, stopping_points, stops
from opengrm.voting.totals import shares_rows
from opengrm.worlds.rubric import generate_items

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
DRAWS = 200
ALPHAS = (0.01, 0.05, 0.1)
SEEN = (1, 2, 4, 6, 8, 12, 16, 24, 32)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def plans(low: float, high: float, fixed: Iterable[int], alphas: Iterable[float] = (0.01, 0.02, 0.05, 0.1, 0.2),
          width: float | None = None, anytime: bool = True) -> list[Plan]:  # fmt: skip
    """All rules, and always so many votes."""

    def stop(rule: Any, alpha: float = 0.05) -> Plan:
        return Stop(rule, alpha, low, high, width)

    guaranteed = [stop("anytime", a) for a in ALPHAS] if anytime else []
    return [stop("exact"), *(stop("posterior", a) for a in alphas), *guaranteed, *fixed]


# --- RubricWorld --------------------------------------------------------------------------------------------------


@lru_cache
def rubric_world(folder: Path, model: str) -> tuple[list[Block], list[Block]]:
    """The sampled judgments of a model: pairs and lists, and single responses."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "ledger.db"
        shutil.copy(folder / "evaluation" / f"{model}.ledger.db", copy)
        with Ledger(copy, create=False) as ledger:
            recorded = collect(ledger.judgments())
    sampled = [r for r in recorded if r.source.temperature == 1.0]
    ranked = next(r for r in sampled if all(b.n > 1 for b in r.blocks))
    singles = next(r for r in sampled if all(b.n == 1 for b in r.blocks))
    return list(ranked.blocks), list(singles.blocks)


def world_rows(folder: Path, model: str, part: str, labels: dict[str, float]) -> Iterator[Row]:
    """Every plan on the recorded judgments of a model: of pairs by the sum, or everything else."""
    ranked, singles = rubric_world(folder, model)
    pairs, lists = [b for b in ranked if b.n == 2], [b for b in ranked if b.n > 2]
    first = [b.rows(np.arange(len(b.items)) < 100) for b in pairs]
    few = [Stop("exact", 0.05, 0, 10), Stop("anytime", 0.05, 0, 10), 32]
    jobs: list[tuple[str, Sequence[Block], Rule, int, list[Plan]]] = (
        [("pairs", pairs, "sum", DRAWS if model == "rl" else 10, plans(0, 10, SEEN))]
        if part == "main"
        else [
            ("pairs", pairs, "majority", 20 if model == "rl" else 5, plans(0, 10, SEEN)),
            ("lists", lists, "sum", 10, plans(0, 10, SEEN)),
            ("lists", lists, "majority", 10, plans(0, 10, SEEN)),
            ("singles", singles, "mean", 4, plans(0, 1, SEEN, width=0.2)),
        ]
    )
    if model == "rl" and part != "main":
        jobs += [
            ("pairs", pairs, PAPER, 3, plans(0, 10, SEEN, anytime=False)),
            ("pairs, first 100", first, PAPER, 1, few),
        ]
    for name, blocks, how, times, wanted in jobs:
        for row in adaptive_rows(blocks, wanted, how, labels=labels, draws=times):
            yield {"set": f"RubricWorld {name}", "model": model, **row}
        say(f"{model} {name} {how}")


def calibrated_rows(block: Block, labels: dict[str, float]) -> Iterator[Row]:
    """The level that a pilot chooses: the loosest whose disagreement is surely below the aim, tried on other items.

    Levels are tried from strict to loose until the first whose one-sided 97.5 % bound is above the aim (fixed
    sequence testing; Angelopoulos et al. 2021, arXiv 2110.01052), on half of the items, over 20 splits.
    """
    levels = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4)
    paths = replay(block, [Stop("posterior", a) for a in levels], "sum", labels=labels, draws=10)
    draw = np.random.default_rng(0)
    for aim in (0.01, 0.02, 0.05):
        found: list[tuple[float, float, float, float]] = []
        for _ in range(20):
            pilot = np.zeros(len(block.items), dtype=bool)
            pilot[draw.permutation(len(pilot))[: len(pilot) // 2]] = True
            chosen = None
            for level, path in zip(levels, paths, strict=True):
                bound = share_interval(path.agrees_IR[pilot, 0])
                if bound is None or 1 - bound.low > aim:
                    break
                chosen = (level, path)
            if chosen is not None:
                level, path = chosen
                other = ~pilot
                found.append((level, 1 - path.agrees_IR[other].mean(), path.votes_IR[other].mean(),
                              (path.full_IR - path.credit_IR)[other].mean()))  # fmt: skip
        level, missed, votes, loss = np.array(found).T
        yield {
            "set": "RubricWorld pairs, level from a pilot of 1,000", "model": "rl", "reduce": "sum", "aim": aim,
            "splits": len(found), "levels": sorted(set(level.tolist())), "disagreement": float(missed.mean()),
            "splits_above_aim": float((missed > aim).mean()), "votes_mean": float(votes.mean()),
            "loss_mean": float(loss.mean()),
        }  # fmt: skip


# --- best use of a fixed number of votes --------------------------------------------------------------------------


def best_use(block: Block, labels: dict[str, float], model: str) -> Iterator[Row]:
    """Orders, rules, and what of the gain is the breaking of ties."""
    about = {"set": "RubricWorld pairs", "model": model}
    one_order = replace(
        block, scores_IKN=block.scores_IKN[:, ::2], order_IK=block.order_IK[:, ::2], meta_IK=block.meta_IK[:, ::2],
        prompt_tokens_IK=block.prompt_tokens_IK[:, ::2], completion_tokens_IK=block.completion_tokens_IK[:, ::2],
    )  # fmt: skip
    for k in (2, 4, 8, 16):
        for name, blocks, planned in (
            ("balanced", block, True),
            ("drawn", block, False),
            ("fixed", one_order, False),
        ):
            row = ranked_row([blocks], labels, k, "sum", planned, {}, 0)
            assert row is not None
            yield {**about, "question": "orders", "orders": name, "k": k, "accuracy": row["accuracy"],
                   "strict": row["strict"], "ties": row["ties"]}  # fmt: skip
    samples_IRK = draw_orders(block, 20, cycle_of(block))
    best_I = np.array([labels[i] for i in block.items], dtype=np.int64)
    scores_IRKN = block.scores_IKN[np.arange(len(best_I))[:, None, None], samples_IRK]
    for k in (1, 2, 4, 8, 16, 32):
        part = scores_IRKN[:, :, :k]
        valid_IR = (~np.isnan(part[..., 0])).any(axis=2)
        votes = {
            "sum": np.nansum(part, axis=2),
            "majority": shares_rows(part).sum(axis=2),
            "median": np.nan_to_num(_median(part), nan=-1.0),
        }
        for how, total_IRN in votes.items():
            credit_I = credit_rows(np.round(total_IRN, 9), best_I[:, None]).mean(axis=1)
            found = share_interval(credit_I)
            assert found is not None
            tied = ((total_IRN == total_IRN.max(axis=2, keepdims=True)).sum(axis=2) > 1) & valid_IR
            yield {**about, "question": "rule", "reduce": how, "k": k, "accuracy": found._asdict(),
                   "ties": float(tied.mean())}  # fmt: skip
    single_IKN = np.nan_to_num(block.scores_IKN)
    credit_IK, whole_I = credit_rows(single_IKN, best_I[:, None]), credit_rows(single_IKN.sum(axis=1), best_I)
    tied_IK = block.valid_IK & (single_IKN[..., 0] == single_IKN[..., 1])
    broken_IK = np.where(tied_IK, whole_I[:, None], credit_IK)
    one, broken, whole = (share_interval(v) for v in (credit_IK.mean(axis=1), broken_IK.mean(axis=1), whole_I))
    assert one is not None
    assert broken is not None
    assert whole is not None
    yield {**about, "question": "tie-breaking", "one_vote": one._asdict(), "ties_of_one": float(tied_IK.mean()),
           "one_vote_its_ties_by_32": broken._asdict(), "32_votes": whole._asdict(),
           "share_of_gain": (broken.mean - one.mean) / (whole.mean - one.mean)}  # fmt: skip


def _median(part: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(np.nanmedian(part, axis=2))


# --- new judgments of the embedded model --------------------------------------------------------------------------


def timed(items: list[Item]) -> Iterator[Row]:
    """The same items with 32 votes and with a rule: seconds, votes, accuracy. And temperatures, and joint or solo."""
    engine = open_engine("transformers", "nano", batch=256)
    try:

        def judge(temperature: float = 1.0, form: str = "compact") -> GRM:
            sampling = Sampling(temperature=temperature, max_tokens=192)
            return GRM(engine, get_template(form), sampling, ledger=Ledger(None))

        def few(made: GRM, k: int) -> Iterator[Row]:
            recorded = collect(j for _, js in made.judge(items, k) for j in js)
            labels = Labels.of(items).labels
            for votes in (v for v in (1, 2, 4) if v <= k):
                row = ranked_row(recorded[0].blocks, labels, votes, "sum", True, {}, 0)
                assert row is not None
                tokens = (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0)
                yield {"model": "nano", "items": len(items), "k": votes, "accuracy": row["accuracy"],
                       "ties": row["ties"], "parse_rate": row["parse_rate"], "tokens": tokens}  # fmt: skip

        next(judge().judge(items[:1], 2))  # the first call prepares
        for name, stop in (("32 votes", None), ("posterior 0.05", Stop("posterior", 0.05, 0, 10))):
            summary, start, cpu = Summary(), time.perf_counter(), time.process_time()
            run = judge() if stop is None else AdaptiveJudge(judge(), stop)
            winners = [v.verdict.winner for v in verdicts(run, items, 32, summary=summary)]
            took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            if stop is None:
                full = winners
            figures = summary.to_json()
            yield {
                "set": "wall clock", "model": "nano", "plan": name, "items": len(items), **took,
                "judgments": summary.judgments, "per_cpu_second": summary.judgments / took["cpu_seconds"],
                "accuracy": figures["accuracy"],
                "agreement": float(np.mean([a == b for a, b in zip(winners, full, strict=True)])),
            }  # fmt: skip
            say(f"timed {name}: {took}")
        for temperature in (0.0, 0.5, 1.0, 1.5):
            for row in few(judge(temperature), 4 if temperature else 2):
                yield {"set": "temperature", "temperature": temperature, **row}
            say(f"temperature {temperature}")
        for form, shown in (("compact", "joint"), ("compact-solo", "solo")):
            yield from ({"set": "joint or solo", "shown": shown, **row} for row in few(judge(form=form), 4))
            say(shown)
    finally:
        engine.close()


# --- recorded votes of real judges --------------------------------------------------------------------------------


def real_sets(data: Path) -> Iterator[tuple[str, list[Recorded], dict[str, float], Rule]]:
    with tempfile.TemporaryDirectory() as folder:
        convert = [sys.executable, str(ROOT / "examples" / "convert_recorded.py"), str(data), folder]
        subprocess.run(convert, check=True, capture_output=True)
        for name, items in (
            ("realmistake", "realmistake"), ("amel_pilot_fresh", "amel"), ("amel_pilot_batched", "amel"),
            ("amel_v2", "amel"), ("prometheus_mt_bench_eval", "prometheus_mt_bench_eval"),
            ("prometheus_vicuna_eval", "prometheus_vicuna_eval"),
        ):  # fmt: skip
            labels = Labels.of(read_items(f"{folder}/{items}.items.jsonl"))
            judgments = list(read_judgments(f"{folder}/{name}.judgments.jsonl"))
            if name.startswith("prometheus"):  # the third score is the label elsewhere; here it is the third vote
                judgments += [
                    replace(j, sample=2, scores=(labels.labels[j.item],)) for j in judgments if j.sample == 0
                ]
            known = {} if name.startswith("prometheus") else labels.labels
            yield name, collect(judgments), known, "mean" if labels_single(labels) else "majority"
    pairs, best = llmbar(data)
    yield "llmbar, judges and protocols", collect(pairs, pool=True), best, "majority"
    yield "wildbench, judges", collect(wildbench(data), pool=True), {}, "mean"


def labels_single(labels: Labels) -> bool:
    return set(labels.sizes.values()) == {1}


def llmbar(data: Path) -> tuple[list[Judgment], dict[str, float]]:
    """Every judge and protocol in both orders is a vote on its pair; the label is the authors'."""
    found, best, count = [], {}, {}
    with tarfile.open(data / "llmbar" / "judge_outputs.tar.xz", "r|xz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            file = archive.extractfile(member) if path.name == "result.json" else None
            if file is None:
                continue
            for index, row in enumerate(json.load(file)):
                item = f"{'/'.join(path.parts[1:-4])}/{index}"
                best[item] = float(row["label"] - 1)
                for swap in (False, True):
                    verdict = row["results"][-1].get(f"swap = {swap}")
                    if verdict is None:
                        continue
                    scores = {"1": (1.0, 0.0), "2": (0.0, 1.0)}.get(verdict["winner"])
                    count[item] = count.get(item, -1) + 1
                    error = None if scores else "unparsable: no winner"
                    found.append(Judgment(item, scores, error, sample=count[item]))
    return found, best


def wildbench(data: Path) -> Iterator[Judgment]:
    """Each judge of a response is a vote."""
    count: dict[str, int] = {}
    path = data / "wildbench_pointwise_judgments" / "score_v2_compact.jsonl.xz"
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            item = f"{row['session_id']}/{row['model']}"
            try:
                score = float(row["score"])
            except (TypeError, ValueError):
                continue
            count[item] = count.get(item, -1) + 1
            yield Judgment(item, (score,), sample=count[item])


def real_rows(data: Path) -> Iterator[Row]:
    for name, recorded, labels, how in real_sets(data):
        for source in recorded:
            blocks = [b for b in source.blocks if b.samples >= 2 and b.n >= 1]
            if not blocks:
                continue
            low, high = observed_range(blocks)
            low, high = (1.0, 10.0) if name.startswith("wildbench") else (low, high)
            fewest = min(b.samples for b in blocks)
            times = 2 if fewest == 2 else 50 if fewest < 16 else 10
            width = None if how == "majority" else (high - low) / 10 if high > 1 else 0.25
            wanted = plans(low, high, [k for k in (1, 2, 3, 5, 8, 16) if k <= fewest], width=width)
            pooled = source.source == POOLED
            for row in adaptive_rows(blocks, wanted, how, labels=labels, draws=times, pooled=pooled):
                who = {"model": source.source.model, "template": source.source.template}
                yield {"set": name, **{k: v for k, v in who.items() if v}, **row}
        say(name)


# --- simulated judges ---------------------------------------------------------------------------------------------


def simulated(items: int, k: int, n: int, kind: str, seed: int) -> np.ndarray:
    """Judges with a bias of each item (how far a response seems ahead) and noise, on 0..10; close races."""
    draw = np.random.default_rng(seed)
    level = 5 + draw.normal(0, 0.7, (items, 1, n))
    scores = np.clip(np.rint(level + draw.normal(0, 2.5, (items, k, n))), 0, 10)
    if kind == "heavy ties":
        scores = np.rint(scores / 5) * 5
    if kind == "missing":
        scores[draw.random((items, k)) < 0.2] = np.nan
    return scores


def simulated_rows(items: int = 10_000, k: int = 32) -> Iterator[Row]:
    for kind in ("plain", "heavy ties", "missing"):
        for n, how in ((2, "sum"), (2, "majority"), (4, "majority")):
            scores = simulated(items, k, n, kind, seed=n)
            for rule in ("exact", "anytime", "posterior"):
                found = course(scores, k, Stop(rule, 0.05, 0, 10), how, block=n)  # type: ignore[arg-type]
                for alpha in (0.05,) if rule == "exact" else ALPHAS:
                    stop = Stop(rule, alpha, 0, 10)  # type: ignore[arg-type]
                    t = stopping_points(stops(found, stop, k, n))
                    full = found.totals_XTN[:, -1]
                    tied = (full == full.max(axis=1, keepdims=True)).sum(axis=1) > 1
                    wrong = (found.leader_XT[np.arange(items), t - 1] != found.leader_XT[:, -1]).astype(float)
                    error, votes = share_interval(wrong), float(t.mean())
                    assert error is not None
                    yield {"set": f"simulated, {kind}", "n": n, "reduce": how, "rule": rule, "items": items, "k": k,
                           "alpha": None if rule == "exact" else alpha, "error": error._asdict(),
                           "votes_share": votes / k, "full_vote_ties": float(tied.mean())}  # fmt: skip
        say(f"simulated {kind}")


# --- all of it ----------------------------------------------------------------------------------------------------


def main(run: Path, data: Path) -> None:
    labels: dict[str, float] = Labels.of(chain(*held_out().values())).labels
    rows: list[Row] = []

    def world(model: str) -> Block:
        return next(b for b in rubric_world(run, model)[0] if b.n == 2)

    for section in (
        lambda: world_rows(run, "rl", "main", labels),
        lambda: timed(list(generate_items(200, split="test"))),
        simulated_rows,
        lambda: calibrated_rows(world("rl"), labels),
        lambda: real_rows(data),
        lambda: best_use(world("rl"), labels, "rl"),
        lambda: world_rows(run, "rl", "others", labels),
        lambda: world_rows(run, "base", "main", labels),
        lambda: best_use(world("base"), labels, "base"),
        lambda: world_rows(run, "base", "others", labels),
    ):
        rows += section()
        if any("error" in row for row in rows):  # what the headline needs is there
            save(rows, ROOT / "results")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
