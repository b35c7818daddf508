"""New tokens per second and peak memory of sampling k continuations: our engines, `generate`, and other CPU engines.

    python benchmarks/sampling.py            # writes results/sampling.json, .md and .png; twenty minutes on two cores
    python benchmarks/sampling.py --quick    # a smoke test of every engine; writes nothing unless given -o

Two models: the embedded one (--model: another folder in its place) and a Qwen3 of 25M parameters with random weights.
A cell is a model, a length of prompt (300 and 1,200 tokens) and a k (8 and 32). Within a cell every engine gets the
same prompts (different ones, equally long, of RubricWorld text, as token ids), draws k samples of each at temperature
1 from the whole vocabulary, and generates a fixed number of tokens: end tokens are switched off. The time is that of
the whole job, prefill included, from token ids to token ids (llama.cpp also makes text, which it cannot leave out),
after a warm-up with another prompt; loading is not in it.

Engines. OpenGRM's:
  - transformers: the sampling loop of `TransformersEngine` (`decoding.sample`), float32;
  - openvino: `OpenVINOEngine` on a GGUF file of our exporter, f16 and q8_0.
Outside of OpenGRM:
  - generate: `model.generate(num_return_sequences=k)` of transformers, float32, all prompts of the cell in one batch;
    generate by prompt: one call for each prompt, which can be faster where caches are large, so it is measured in the
    headline's cell; "generate" in a ratio is the faster of the two;
  - llama.cpp: the server inside xllamacpp, in process, all prompts at once with n=k (one prefill, copied to the k
    slots), every sample in a slot of its own, with flash attention where that is faster (300 tokens) and without it
    where it is not (1,200); f16 and q8_0;
  - openvino-genai: the library under our openvino engine used directly, `num_return_sequences=k`, equal scheduler
    settings; f16 and q8_0.
An engine whose package is not installed is a row that says so.

Reading the numbers:
  - Rounds: engine after engine on one cell, then the next cell, and all of it again. Tokens per second are medians of
    the rounds. A ratio is the median of the ratios within each round, because machines drift; of several candidates
    ("best"), the one with the highest median is taken first, then its ratios.
  - `ratio_generate_k32_long`: transformers / generate on the embedded model, 1,200 tokens, k = 32; `_short`: 300
    tokens; `_25m`: on the other model.
  - `ratio_best_cpu_engine`: the best of OpenGRM's engines / the best of all others, in the cell of
    `ratio_generate_k32_long`. OpenVINO GenAI used directly is one of the others: against it the ratio says what our
    scheduling costs: one request a sample, each with a seed of its own, instead of one a prompt.
    `ratio_best_cpu_engine_lowest` is the lowest over all cells. `ratio_best_cpu_engine_besides_openvino` leaves the
    library out.
  - `ratio_transformers_best`: the transformers engine alone / the fastest of all other engines, in the same cell.
  - Precision differs: q8_0 and f16 engines compute something slightly other than float32 ones do, and OpenVINO and
    llama.cpp keep keys and values in 8 or 16 bits. Speeds of rows of different precision compare deployments, not
    implementations.
  - `generate` prefills every sample's prompt by itself and keeps k copies of it. That is most of our lead on long
    prompts, and it shrinks where prompts are short, or answers long.
  - Each measurement is a process of its own (forked from one that has only imported the engine's packages).
    `peak_mib` is its highest resident memory, `growth_mib` how far that lies above the loaded model. llama.cpp takes
    the memory for all its caches while loading, the others while generating: compare peaks with it, not growth.
  - These are small models on a CPU. A large model, or a GPU, has other bottlenecks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
LENGTHS, KS = (300, 1200), (8, 32)
QUICK_LENGTHS = (30, 120)
ROOM = 16  # in llama.cpp's slots, beyond prompt and new tokens
CACHE_GIB = 2  # OpenVINO's most
SHORT = 600  # llama.cpp is faster without its flash attention where prompts are longer
OURS = "transformers f32"

Prompts = list[list[int]]
Run = Callable[[Prompts, int, int], int]  # prompts, k, new tokens of each sample -> tokens generated
Row = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    name: str
    precision: str
    needs: tuple[str, ...]
    ours: bool
    load: Callable[[Row], Run]
    imports: tuple[str, ...]
    only_headline: bool = False  # measured in the cells of the longest prompts and the largest k only

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision}"


@dataclass(frozen=True, eq=False)
class Model:
    name: str
    folder: Path
    prompts: dict[int, int]  # how many, for each k


Cell = tuple[Model, int, int]  # prompt tokens, k


def load_model(job: Row) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, local_files_only=True)
    return model.eval()


def load_ours(job: Row) -> Run:
    from opengrm.engines.base import Sampling
    from opengrm.engines.decoding import sample

    model = load_model(job)

    def run(prompts: Prompts, k: int, new: int) -> int:
        seeds = [range(k * i, k * i + k) for i in range(len(prompts))]
        found = sample(model, prompts, seeds, Sampling(temperature=1.0, max_tokens=new), stop_ids=())
        return sum(len(s.token_ids) for of_prompt in found for s in of_prompt)

    return run


def load_generate(job: Row) -> Run:
    import torch
    from transformers import GenerationConfig

    model = load_model(job)
    settings: Any = GenerationConfig
    model.generation_config = settings(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0)

    def run(prompts: Prompts, k: int, new: int) -> int:
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        made = model.generate(input_ids=ids, attention_mask=mask, num_return_sequences=k, max_new_tokens=new)
        return int(made.shape[0] * (made.shape[1] - ids.shape[1]))

    return run


def load_generate_by_prompt(job: Row) -> Run:
    run = load_generate(job)
    return lambda prompts, k, new: sum(run([prompt], k, new) for prompt in prompts)


def load_ours_openvino(job: Row) -> Run:
    from opengrm.engines.base import Request, Sampling
    from opengrm.engines.openvino import OpenVINOEngine
    from opengrm.items import Message

    class Endless(OpenVINOEngine):
        """Does not stop at end tokens."""

        def _config(self, *args: Any) -> Any:
            config = super()._config(*args)
            config.ignore_eos = True
            return config

    class Ids:
        """In place of tokenizer and chat template: a message holds token ids, written as numbers."""

        def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
            return tuple(map(int, messages[0].content.split()))

        def answer(self, *_: object) -> str:
            return ""

        decode = answer

    engine: Any = Endless(job["gguf"], cache_gib=CACHE_GIB, threads=job["threads"])
    engine._chat = Ids()

    def run(prompts: Prompts, k: int, new: int) -> int:
        sampling = Sampling(temperature=1.0, max_tokens=new)
        texts = [(Message("user", " ".join(map(str, ids))),) for ids in prompts]
        requests = [Request(i, text, tuple(range(k * i, k * i + k)), sampling) for i, text in enumerate(texts)]
        made = list(engine.generate(requests))
        for completion in made:
            if completion.error:
                raise RuntimeError(completion.error)
        return sum(completion.completion_tokens for completion in made)

    return run


def load_openvino(job: Row) -> Run:
    import numpy
    import openvino
    import openvino_genai

    settings = openvino_genai.SchedulerConfig()
    settings.cache_size, settings.enable_prefix_caching = CACHE_GIB, True
    settings.max_num_seqs, settings.max_num_batched_tokens = 128, 512
    options = {"INFERENCE_NUM_THREADS": job["threads"]}
    pipeline = openvino_genai.ContinuousBatchingPipeline(job["gguf"], settings, "CPU", options)

    def run(prompts: Prompts, k: int, new: int) -> int:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.num_return_sequences = new, k
        config.do_sample, config.temperature, config.top_p, config.ignore_eos = True, 1.0, 1.0, True
        ids = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        made = pipeline.generate(ids, [config] * len(ids))
        return sum(len(tokens) for result in made for tokens in result.m_generation_ids)

    return run


def load_llama(job: Row) -> Run:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["gguf"]
    params.n_parallel = len(job["prompts"]) * job["k"]
    params.n_ctx = params.n_parallel * (len(job["prompts"][0]) + job["new_tokens"] + ROOM)
    params.kv_unified = False
    params.cache_ram_mib = 0
    if len(job["prompts"][0]) > SHORT:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def run(prompts: Prompts, k: int, new: int) -> int:
        def ask(prompt: list[int]) -> int:
            settings = {"temperature": 1.0, "samplers": ["temperature"], "ignore_eos": True, "seed": 1}
            answer = server.handle_completions({"prompt": prompt, "n": k, "max_tokens": new, **settings})
            choices = answer.get("choices") or []
            # Its usage counts one choice only. With end tokens off, a choice that ended by its length is whole.
            if len(choices) != k or any(choice["finish_reason"] != "length" for choice in choices):
                raise RuntimeError(f"not {k} whole choices: {str(answer)[:200]}")
            return k * int(answer["usage"]["completion_tokens"])

        with ThreadPoolExecutor(len(prompts)) as pool:
            return sum(pool.map(ask, prompts))

    return run


TORCH = ("torch", "transformers.models.qwen3.modeling_qwen3")
OPENVINO = ("openvino", "openvino_genai", "numpy")
OURS_OPENVINO = (*OPENVINO, "gguf", "opengrm.engines.openvino")
NEEDS_TORCH, NEEDS_OPENVINO, NEEDS_LLAMA = ("torch", "transformers"), ("openvino_genai", "gguf"), ("xllamacpp", "gguf")
ENGINES = (
    Engine("transformers", "f32", NEEDS_TORCH, True, load_ours, (*TORCH, "opengrm.engines.decoding")),
    Engine("generate", "f32", NEEDS_TORCH, False, load_generate, TORCH),
    Engine("generate by prompt", "f32", NEEDS_TORCH, False, load_generate_by_prompt, TORCH, only_headline=True),
    Engine("openvino", "f16", NEEDS_OPENVINO, True, load_ours_openvino, OURS_OPENVINO),
    Engine("openvino-genai", "f16", NEEDS_OPENVINO, False, load_openvino, OPENVINO),
    Engine("openvino", "q8_0", NEEDS_OPENVINO, True, load_ours_openvino, OURS_OPENVINO),
    Engine("openvino-genai", "q8_0", NEEDS_OPENVINO, False, load_openvino, OPENVINO),
    Engine("llama.cpp", "f16", NEEDS_LLAMA, False, load_llama, ("xllamacpp",)),
    Engine("llama.cpp", "q8_0", NEEDS_LLAMA, False, load_llama, ("xllamacpp",)),
)


# A measurement, in a process of its own


def memory(name: str) -> float:
    """This process's VmRSS (resident now) or VmHWM (its peak), in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} here: peak memory needs Linux")


def measure(engine: Engine, job: Row) -> Row:
    run = engine.load(job)
    loaded = memory("VmRSS")
    run(job["warm_up"], 2, 8)
    start = time.perf_counter()
    tokens = run(job["prompts"], job["k"], job["new_tokens"])
    seconds = time.perf_counter() - start
    return {"tokens": tokens, "seconds": seconds, "loaded_mib": loaded, "peak_mib": memory("VmHWM")}


def serve(engine: Engine) -> None:
    """Import what the engine needs, then fork a process for each job that comes on the standard input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print
    for module in engine.imports:
        importlib.import_module(module)
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                found = measure(engine, json.loads(line))
            except BaseException as error:
                found = {"error": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(found), file=out, flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps({"error": f"the process ended with status {status}"}), file=out, flush=True)


class Worker:
    """An engine's process."""

    def __init__(self, engine: Engine, threads: int, log: Path) -> None:
        command = [sys.executable, __file__, "--serve", engine.label]
        env = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self.read()

    def read(self) -> Row:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine's process died:\n{self.log.read_text(errors='replace')[-4000:]}")
        found: Row = json.loads(line)
        return found

    def measure(self, job: Row) -> Row:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# Models and prompts


def build_25m(folder: Path, like: Path) -> Path:
    """Qwen3 with 8 layers and random weights. It has the other model's tokenizer, whose ids are all it is fed."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(like)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=max(8192, len(tokenizer)), hidden_size=512, intermediate_size=1280, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def parameters(folder: Path) -> int:
    """Numbers in the weights, tied ones counted once."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def rubric_prompts(folder: Path, length: int, count: int) -> Prompts:
    """Token ids of RubricWorld judge prompts, as many behind one another as fill the length; no two begin alike."""
    from transformers import AutoTokenizer

    from opengrm.engines.chat import ChatTokenizer
    from opengrm.templates.compact import Compact
    from opengrm.worlds.rubric import generate_items

    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat, template = ChatTokenizer(tokenizer), Compact()
    found: Prompts = []
    ids: list[int] = []
    for item in generate_items(50 * count * length, seed=0, split="test"):
        ids += chat.encode(template.render(item, (0, 1)))
        if len(ids) >= length:
            # The number in front keeps prefix caches from sharing the template's head between prompts.
            found.append([*tokenizer(str(len(found)), add_special_tokens=False)["input_ids"], *ids][:length])
            ids = []
        if len(found) == count:
            return found
    raise AssertionError("too few items")


# Results


def ratio(over: Row, under: Row) -> float:
    """Median over the rounds of the ratio within each round."""
    return float(statistics.median(a / b for a, b in zip(over["per_round"], under["per_round"], strict=True)))


def cell_rows(rows: list[Row], model: str, length: int, k: int) -> dict[str, Row]:
    """The measured rows of a cell, by engine."""
    wanted = (model, length, k)
    return {r["engine"]: r for r in rows if "per_round" in r and (r["model"], r["prompt_tokens"], r["k"]) == wanted}


def shapes_of(rows: list[Row]) -> list[tuple[int, int]]:
    """Length of the prompts, and k, of the cells that were measured, the longest last."""
    return sorted({(r["prompt_tokens"], r["k"]) for r in rows if "per_round" in r})


def generate_of(cell: dict[str, Row]) -> Row | None:
    """The faster one of the cell's `generate` rows."""
    return best(cell, lambda row: row["engine"].startswith("generate"))


def best(cell: dict[str, Row], keep: Callable[[Row], bool]) -> Row | None:
    return max((r for r in cell.values() if keep(r)), key=lambda r: r["tokens_per_second"], default=None)


def headline_of(rows: list[Row], models: Sequence[str]) -> dict[str, float]:
    def compare(cell: dict[str, Row], over: Callable[[Row], bool], under: Callable[[Row], bool]) -> float | None:
        first, second = best(cell, over), best(cell, under)
        return ratio(first, second) if first and second else None

    def is_library(row: Row) -> bool:
        return bool(row["engine"].startswith("openvino-genai"))

    def is_generate(row: Row) -> bool:
        return bool(row["engine"].startswith("generate"))

    def is_ours(row: Row) -> bool:
        return bool(row["ours"])

    def is_transformers(row: Row) -> bool:
        return bool(row["engine"] == OURS)

    shapes = shapes_of(rows)
    longest = shapes[-1]
    found: dict[str, float | None] = {}
    against_all = {}
    for model in models:
        suffix = "" if model == models[0] else "_25m"
        for length, k in shapes:
            cell = cell_rows(rows, model, length, k)
            against_all[model, length, k] = compare(cell, is_ours, lambda r: not r["ours"])
            kind = f"k{k}_{'long' if length == longest[0] else 'short'}{suffix}"
            found[f"ratio_generate_{kind}"] = compare(cell, is_transformers, is_generate)
        cell = cell_rows(rows, model, *longest)
        outside = compare(cell, is_ours, lambda r: not r["ours"] and not is_library(r))
        found[f"ratio_best_cpu_engine_besides_openvino{suffix}"] = outside
        found[f"ratio_best_cpu_engine{suffix}"] = against_all[model, *longest]
        found[f"ratio_transformers_best{suffix}"] = compare(cell, is_transformers, lambda r: not is_transformers(r))
        theirs = best(cell, is_generate)
        if theirs and OURS in cell:
            found[f"ratio_peak_memory_generate_k32_long{suffix}"] = cell[OURS]["peak_mib"] / theirs["peak_mib"]
    lowest = min((r for r in against_all.values() if r is not None), default=None)
    found["ratio_best_cpu_engine_lowest"] = lowest
    order = ("ratio_generate_k32_long", "ratio_best_cpu_engine")
    return {key: found[key] for key in (*order, *sorted(found.keys() - set(order))) if found[key] is not None}  # type: ignore[misc]


def page_of(rows: list[Row], heads: dict[str, str], threads: int, picture: str) -> str:
    from opengrm.reports.tables import markdown

    cells = shapes_of(rows)

    def table(model: str, show: Callable[[Row, dict[str, Row]], str]) -> str:
        lines = []
        for engine in ENGINES:
            line = {"engine": f"**{engine.label}**" if engine.ours else engine.label}
            for length, k in cells:
                cell = cell_rows(rows, model, length, k)
                known = engine.label in cell
                line[f"{length:,} tokens, k = {k}"] = show(cell[engine.label], cell) if known else "-"
            lines.append(line)
        return markdown(lines)

    def speed(row: Row, cell: dict[str, Row]) -> str:
        under = generate_of(cell)
        return f"{row['tokens_per_second']:,.0f}" + (f" ({ratio(row, under):.2f}x)" if under else "")

    page = [
        "# Sampling\n\nNew tokens per second of the whole job (prefill included), and in brackets the ratio to the "
        f"faster `generate`: medians of interleaved rounds. OpenGRM's engines in bold. {threads} threads, temperature "
        "1, end tokens off. What each engine is, and what the numbers mean: the head of `benchmarks/sampling.py`.\n"
    ]
    for model, head in heads.items():
        page.append(f"\n## {head}\n\n")
        page.append(table(model, speed))
        page.append("\nPeak resident memory in MiB, and in brackets the growth over the loaded model:\n\n")
        page.append(table(model, lambda row, _: f"{row['peak_mib']:,.0f} ({row['growth_mib']:,.0f})"))
    absent = {f"{r['engine']}: {r['absent']}" for r in rows if "absent" in r}
    failed = {f"{r['engine']}: {r['error']}" for r in rows if "error" in r}
    page += [f"\nNot measured: {line}\n" for line in sorted(absent | failed)]
    page.append(f"\n![new tokens per second]({picture})\n")
    return "".join(page)


def plot(path: Path, rows: list[Row], models: Sequence[str]) -> None:
    """Bars of tokens per second: a panel for each model, a group for each cell, a colour for each engine."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {
        "transformers": "C3",
        "generate": "0.3",
        "generate by prompt": "0.6",
        "openvino": "C1",
        "openvino-genai": "C0",
        "llama.cpp": "C2",
    }
    figure = Figure(figsize=(9, 4 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    cells = shapes_of(rows)
    for panel, model in enumerate(models, 1):
        axes = figure.add_subplot(len(models), 1, panel)
        seen: dict[str, int] = {}
        for place, engine in enumerate(ENGINES):
            shade = seen[engine.name] = seen.get(engine.name, 0) + 1
            measured = [cell_rows(rows, model, length, k).get(engine.label) for length, k in cells]
            x = [cell + (place - (len(ENGINES) - 1) / 2) * 0.9 / len(ENGINES) for cell in range(len(cells))]
            y = [row["tokens_per_second"] if row else 0 for row in measured]
            axes.bar(
                x, y, 0.9 / len(ENGINES), color=colours[engine.name], alpha=1.25 - 0.25 * shade,
                label=engine.label + (" (OpenGRM)" if engine.ours else ""),
            )  # fmt: skip
        axes.set_xticks(range(len(cells)), [f"{length:,} tokens, k = {k}" for length, k in cells])
        axes.set_ylabel("new tokens per second")
        axes.set_title(model)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=3)
    figure.savefig(path, dpi=150, metadata={"Software": None})


# The run


def start(threads: int, scratch: Path) -> tuple[dict[str, Worker], list[Row]]:
    """A process for each engine that can be imported, by label; for the others, rows that say why not."""
    workers, absent = {}, []
    for engine in ENGINES:
        missing = [package for package in engine.needs if not importlib.util.find_spec(package)]
        if missing:
            why = f"not installed: {', '.join(missing)}"
            absent.append({"engine": engine.label, "ours": engine.ours, "absent": why})
        else:
            workers[engine.label] = Worker(engine, threads, scratch / f"{engine.label}.log")
    return workers, absent


def measure_all(models: Sequence[Model], cells: Sequence[Cell], args: argparse.Namespace, scratch: Path) -> list[Row]:
    from opengrm.engines.gguf import export_gguf

    ggufs = {
        (model.name, dtype): str(export_gguf(model.folder, scratch / f"{number}-{dtype}.gguf", dtype))
        for number, model in enumerate(models)
        for dtype in ("f16", "q8_0")
        if importlib.util.find_spec("gguf")
    }
    most = max(max(model.prompts.values()) for model in models)
    shapes = sorted({(length, k) for _, length, k in cells})
    prompts = {length: rubric_prompts(models[0].folder, length, most + 1) for length, _ in shapes}
    workers, rows = start(args.threads, scratch)
    found: dict[tuple[Cell, Engine], list[Row]] = {}
    started = time.monotonic()
    for round_ in range(args.rounds):
        for cell in cells:
            model, length, k = cell
            warm_up, *measured = prompts[length]
            for engine in ENGINES:
                runs = found.setdefault((cell, engine), [])
                if engine.label not in workers or any("error" in run for run in runs):
                    continue
                if engine.only_headline and ((length, k) != shapes[-1] or model.prompts[k] == 1):
                    continue
                job = {
                    "model": str(model.folder), "gguf": ggufs.get((model.name, engine.precision)), "k": k,
                    "threads": args.threads, "new_tokens": args.new_tokens, "warm_up": [warm_up],
                    "prompts": measured[: model.prompts[k]],
                }  # fmt: skip
                run = workers[engine.label].measure(job)
                runs.append(run)
                shown = run.get("error") or (
                    f"{run['tokens'] / run['seconds']:8,.0f} tokens/s, {run['seconds']:6.2f} s, "
                    f"peak {run['peak_mib']:6,.0f} MiB, loaded {run['loaded_mib']:6,.0f}"
                )
                at = f"{time.monotonic() - started:4.0f} s, round {round_ + 1}"
                print(f"{at}: {model.name}, {length} tokens, k = {k}, {engine.label:19} {shown}", flush=True)
    for worker in workers.values():
        worker.close()
    rows += [summary(cell, engine, runs, args.new_tokens) for (cell, engine), runs in found.items() if runs]
    for model, length, k in cells:
        of_cell = cell_rows(rows, model.name, length, k)
        under = generate_of(of_cell)
        for row in of_cell.values():
            if under:
                row["ratio_generate"] = ratio(row, under)
    return rows


def summary(cell: Cell, engine: Engine, runs: Sequence[Row], new: int) -> Row:
    model, length, k = cell
    row: Row = {
        "model": model.name, "prompt_tokens": length, "k": k, "prompts": model.prompts[k],
        "engine": engine.label, "ours": engine.ours,
    }  # fmt: skip
    errors = [run["error"] for run in runs if "error" in run]
    if errors:
        return row | {"error": errors[0]}

    def median(value: Callable[[Row], float]) -> float:
        return float(statistics.median(value(run) for run in runs))

    speeds = [run["tokens"] / run["seconds"] for run in runs]
    return row | {
        "tokens_asked": model.prompts[k] * k * new,
        "tokens": round(median(lambda run: run["tokens"])),
        "seconds": median(lambda run: run["seconds"]),
        "tokens_per_second": statistics.median(speeds),
        "per_round": speeds,
        "loaded_mib": median(lambda run: run["loaded_mib"]),
        "peak_mib": median(lambda run: run["peak_mib"]),
        "growth_mib": median(lambda run: run["peak_mib"] - run["loaded_mib"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano-base", help="an embedded model or a checkpoint folder")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128, help="of every sample")
    parser.add_argument("--quick", action="store_true", help="one round, short prompts, 8 new tokens: a smoke test")
    parser.add_argument("-o", "--output", type=Path, help="results/sampling.json; with --quick nothing")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(next(engine for engine in ENGINES if engine.label == args.serve))
        return

    from opengrm.engines.checkpoints import is_embedded
    from opengrm.reports.results import write_result
    from opengrm.worlds.nano import nano_path

    lengths = LENGTHS
    if args.quick:
        lengths, args.rounds, args.new_tokens = QUICK_LENGTHS, 1, 8
    output: Path | None = args.output or (None if args.quick else RESULTS / "sampling.json")
    folder = nano_path(args.model) if is_embedded(args.model) else Path(args.model)
    if not (folder / "config.json").is_file():
        parser.error(f"{folder} is no checkpoint folder: give one with --model")
    context = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    if context < max(lengths) + args.new_tokens + ROOM:
        parser.error(f"{folder}: its context of {context} tokens is too short")
    name = "embedded model" if is_embedded(args.model) else folder.resolve().name
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        # The same number of samples for each k: 64 of the small model, 32 of the large one.
        counts = [{k: 1 if args.quick else samples // k for k in KS} for samples in (64, 32)]
        models = (
            Model(name, folder, counts[0]),
            Model("random Qwen3, 25M", build_25m(scratch / "25m", folder), counts[1]),
        )
        sizes = [parameters(model.folder) for model in models]
        cells = [(model, length, k) for model in models for length in lengths for k in KS]
        rows = measure_all(models, cells, args, scratch)
    headline = headline_of(rows, [model.name for model in models])
    print(json.dumps(headline, indent=2))
    if output is None:
        return
    notes = {
        "headline": f"in the cell of {max(lengths):,} tokens, k = {max(KS)} of the {name} unless the key names "
        "another; which engine counts as which: the head of benchmarks/sampling.py",
        "parameters": {model.name: size for model, size in zip(models, sizes, strict=True)},
        "threads": args.threads,
        "rounds": args.rounds,
        "new_tokens": args.new_tokens,
        "seconds": round(time.monotonic() - began),
    }
    write_result(output, headline=headline, rows=rows, notes=notes)
    heads = {
        model.name: f"{model.name} ({size / 1e6:.1f}M parameters)\n\nPrompts: "
        f"{' and '.join(f'{count} for k = {k}' for k, count in model.prompts.items())}; "
        f"{args.new_tokens} new tokens a sample."
        for model, size in zip(models, sizes, strict=True)
    }
    page = page_of(rows, heads, args.threads, output.with_suffix(".png").name)
    output.with_suffix(".md").write_text(page, encoding="utf-8")
    plot(output.with_suffix(".png"), rows, list(heads))


if __name__ == "__main__":
    main()
