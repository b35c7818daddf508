"""On a CUDA GPU: sampling against `generate`, and what votes saved are worth in seconds.

    python benchmarks/cuda.py            # writes results/cuda.json; minutes on an H100
    python benchmarks/cuda.py --quick    # tiny models, any device: a smoke test; writes nothing unless given -o

Sampling. Two Qwen3 models with random weights in bfloat16, of the sizes of Qwen3-0.6B and Qwen3-8B. A cell is a
model, a length of prompt and a k; every cell is 128 samples of 128 new tokens at temperature 1 from the whole
vocabulary, with end tokens off, all in one batch: 128 / k prompts of random ids, k samples each. The time is that of
the whole job, prefill included. Rounds are interleaved, and a ratio is the median of the ratios within a round. The
first round is not counted (`generate` is up to 2.4 times slower when its caches have a size for the first time); its
speeds are kept as `first_tokens_per_second`.
  - opengrm: the loop of the `transformers` engine (`decoding.sample`), which keeps one copy of each prompt;
  - generate: `model.generate(num_return_sequences=k)` of transformers, with its defaults (a cache that grows, SDPA);
  - by definition: the first with attention written out instead of the kernel, to show what the kernel is for.
`peak_gib` is the most memory allocated, the weights included. Engines that are served (vLLM, SGLang) are not
measured here; OpenGRM drives them through its `vllm` and `openai` engines.

Judging. The embedded model judges 1,000 pairs of RubricWorld with 32 votes and then with `--stop posterior`, for two
sizes of batch. Where a larger batch makes more judgments a second, a batch that is not full wastes time, and votes
saved are not all saved seconds: the shares of both are in the rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from opengrm.engines import open_engine, shared_prefix
from opengrm.engines.base import Sampling
from opengrm.engines.decoding import sample
from opengrm.errors import EngineError
from opengrm.judges.adaptive import AdaptiveJudge
from opengrm.judges.grm import GRM
from opengrm.judges.run import Summary, verdicts
from opengrm.ledger import Ledger
from opengrm.reports.results import write_result
from opengrm.templates import get_template
from opengrm.voting.stopping import Stop
from opengrm.worlds.rubric import generate_items

RESULTS = Path(__file__).parents[1] / "results"
SHARED = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 40_960}
SIZES: dict[str, dict[str, Any]] = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "tie_word_embeddings": True, **SHARED},
    "8B": {"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32,
           "tie_word_embeddings": False, **SHARED},
}  # fmt: skip
TINY = {"tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512}}  # fmt: skip
CELLS = {"0.6B": ((300, 8), (300, 32), (1200, 8), (1200, 32)), "8B": ((1200, 8), (1200, 32)), "tiny": ((30, 4),)}
SAMPLES, NEW = 128, 128

Row = dict[str, Any]
Prompts = list[list[int]]
Run = Callable[[Any, Prompts, int, int], int]  # model, prompts, k, new tokens of each sample -> tokens generated


def build(size: dict[str, Any], device: str) -> Any:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = Qwen3ForCausalLM(Qwen3Config(**size))
    finally:
        torch.set_default_dtype(before)
    settings: Any = GenerationConfig
    model.generation_config = settings(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0)
    return model.eval()


def ours(model: Any, prompts: Prompts, k: int, new: int) -> int:
    seeds = [range(k * i, k * i + k) for i in range(len(prompts))]
    found = sample(model, prompts, seeds, Sampling(temperature=1.0, max_tokens=new), stop_ids=(), max_batch=SAMPLES)
    return sum(len(s.token_ids) for of_prompt in found for s in of_prompt)


def generate(model: Any, prompts: Prompts, k: int, new: int) -> int:
    ids = torch.tensor(prompts, device=model.device)
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), num_return_sequences=k, max_new_tokens=new
    )
    return int(made.shape[0] * (made.shape[1] - ids.shape[1]))


@contextmanager
def attention_written_out() -> Iterator[None]:
    before = shared_prefix.attention_and_lse
    shared_prefix.attention_and_lse = shared_prefix.attention_by_definition
    try:
        yield
    finally:
        shared_prefix.attention_and_lse = before


def by_definition(model: Any, prompts: Prompts, k: int, new: int) -> int:
    with attention_written_out():
        return ours(model, prompts, k, new)


ENGINES: dict[str, Run] = {
    "opengrm": ours, "generate": generate, "by definition": by_definition,
}  # fmt: skip


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(run: Run, *job: Any) -> Row:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    wait()
    start = time.perf_counter()
    try:
        tokens = run(*job)
    except (torch.OutOfMemoryError, EngineError) as error:
        return {"error": str(error).split(". ")[0]}
    wait()
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"tokens": tokens, "seconds": time.perf_counter() - start, "peak_gib": peak}


def sampling_rows(name: str, size: dict[str, Any], device: str, rounds: int, new: int) -> Iterator[Row]:
    model = build(size, device)
    drawn = np.random.default_rng(0)
    for length, k in CELLS[name]:
        count = max(1, SAMPLES // k)
        prompts: Prompts = drawn.integers(3, size["vocab_size"], (count, length)).tolist()
        runs: dict[str, list[Row]] = {engine: [] for engine in ENGINES}
        for _ in range(1 + rounds):
            for engine, run in ENGINES.items():
                runs[engine].append(measured(run, model, prompts, k, new))
        for engine, found in runs.items():
            row: Row = {"set": "sampling", "model": name, "prompt_tokens": length, "prompts": count, "k": k,
                        "engine": engine}  # fmt: skip
            broken = [one["error"] for one in found if "error" in one]
            if broken:
                yield row | {"error": broken[0]}
                continue
            first, *speeds = (one["tokens"] / one["seconds"] for one in found)
            row |= {
                "tokens": found[0]["tokens"], "tokens_per_second": statistics.median(speeds), "per_round": speeds,
                "first_tokens_per_second": first, "peak_gib": found[-1]["peak_gib"],
            }  # fmt: skip
            under = runs["generate"]
            if all("error" not in one for one in under):
                row["ratio_generate"] = statistics.median(
                    theirs["seconds"] / mine["seconds"] for theirs, mine in zip(under[1:], found[1:], strict=True)
                )
            print(row, flush=True)
            yield row
    del model


def judging_rows(device: str, count: int, batches: tuple[int, ...]) -> Iterator[Row]:
    items = list(generate_items(count, seed=11, split="test"))
    for batch in batches:
        engine = open_engine("transformers", "nano", batch=batch, device=device)
        try:

            def judge(engine: Any = engine) -> GRM:
                sampling = Sampling(temperature=1.0, max_tokens=192)
                return GRM(engine, get_template("compact"), sampling, ledger=Ledger(None))

            list(judge().judge(items[:4], 4))  # the first call prepares
            full: list[Any] = []
            for plan, stop in (("32 votes", None), ("posterior 0.05", Stop("posterior", 0.05, 0, 10))):
                run = judge() if stop is None else AdaptiveJudge(judge(), stop)
                summary = Summary()
                start = time.perf_counter()
                winners = [v.verdict.winner for v in verdicts(run, items, 32, summary=summary)]
                seconds = time.perf_counter() - start
                full = full or winners
                row = {
                    "set": "judging", "model": "nano", "batch": batch, "plan": plan, "items": count,
                    "seconds": seconds, "judgments": summary.judgments,
                    "judgments_per_second": summary.judgments / seconds, "accuracy": summary.to_json()["accuracy"],
                    "agreement": sum(a == b for a, b in zip(winners, full, strict=True)) / count,
                }  # fmt: skip
                print(row, flush=True)
                yield row
        finally:
            engine.close()


def headline_of(rows: list[Row]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        if row["set"] == "sampling" and row["engine"] == "opengrm" and "ratio_generate" in row:
            name = f"{row['model']}_{row['prompt_tokens']}_k{row['k']}"
            found[f"ratio_generate_{name}"] = row["ratio_generate"]
            (theirs,) = (
                r for r in rows
                if r["set"] == "sampling" and r["engine"] == "generate"
                and (r["model"], r["prompt_tokens"], r["k"]) == (row["model"], row["prompt_tokens"], row["k"])
            )  # fmt: skip
            if row["peak_gib"] and "peak_gib" in theirs:
                found[f"memory_share_{name}"] = row["peak_gib"] / theirs["peak_gib"]
    judged = [row for row in rows if row["set"] == "judging"]
    for full, early in zip(judged[::2], judged[1::2], strict=True):
        found[f"votes_share_batch_{full['batch']}"] = early["judgments"] / full["judgments"]
        found[f"seconds_share_batch_{full['batch']}"] = early["seconds"] / full["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="counted ones: one more comes before them")
    parser.add_argument("--quick", action="store_true", help="tiny models, any device: a smoke test")
    parser.add_argument("-o", "--output", type=Path, help="results/cuda.json; with --quick nothing")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.quick:
        parser.error("no CUDA device here: --quick runs anywhere")
    began = time.monotonic()
    rows: list[Row] = []
    for name, size in (TINY if args.quick else SIZES).items():
        rows += sampling_rows(name, size, device, 1 if args.quick else args.rounds, 8 if args.quick else NEW)
    rows += judging_rows(device, 4 if args.quick else 1000, (16,) if args.quick else (256, 1024))
    headline = headline_of(rows)
    print(headline)
    output: Path | None = args.output or (None if args.quick else RESULTS / "cuda.json")
    if output is not None:
        gpu = torch.cuda.get_device_name() if device == "cuda" else None
        notes = {"gpu": gpu, "rounds": args.rounds, "new_tokens": NEW, "seconds": round(time.monotonic() - began)}
        write_result(output, headline=headline, rows=rows, notes=notes)


if __name__ == "__main__":
    main()
