"""Any OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`, a hosted one) as an engine.

Samples of one prompt go out as single requests, each with its own seed: a sample's text then depends on its own seed
alone, and servers share the prefill through their prefix caches. `use_n=True` asks for all samples of a prompt in one
request (`n`, with the first seed): fewer requests, but a sample then depends on its group.

What a server does not do is noticed from its answers: choices are counted, missing log-probabilities are None; a
refused field is spelled another way or left out (`refusals.py`). It is said once, in `notes` and as a warning.

Of sampling, only temperature, top_p, the limit and the seed are sent. The rest is the server's: `vllm serve` takes
top_k and penalties from the checkpoint's generation_config.json unless started with `--generation-config vllm`,
llama-server has top_k 40 and min_p 0.05. No spelling of "off" is taken by all of them, so `extra_body` is the place:
{"top_k": 0, "min_p": 0} for both.

An event loop in one background thread does the network work; it starts with the first `generate` and ends with
`close`. Requests are pulled in the caller's thread, at most two `concurrency` of samples ahead of what was yielded, so
memory does not grow with their number.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from opengrm.engines.answers import Choice, read_answer
from opengrm.engines.base import Completion, Request
from opengrm.engines.fingerprint import short_hash
from opengrm.engines.http import Settings, open_transport
from opengrm.engines.pool import Endpoint, Failed, Misunderstood, Pool
from opengrm.engines.refusals import Form
from opengrm.errors import EngineError, UsageError

GARBAGE_BOUND = 16
REPEATS_BOUND = 16
SEED_BITS = 0x7FFFFFFF  # llama.cpp reads a seed as 32 bits, and takes the largest for "random"
_RESERVED = ("messages", "n", "stream")


class OpenAIEngine:
    """Completes chats through `/v1/chat/completions` of one or several servers of the same model.

    Args:
        model: the name that the servers give the model; nothing of the host goes into `model`.
        base_urls: e.g. "http://127.0.0.1:8000/v1"; without a path, /v1 is added. Each request goes to the one with the
            fewest in flight; a failing one is set aside for a while.
        api_key: sent as a bearer token; the environment's OPENAI_API_KEY where None. Never shown or logged.
        concurrency: most requests in flight, over all servers and all running `generate` calls.
        timeout: seconds that one request may take, queueing in the server included.
        connect_timeout: seconds that one connection may take to open.
        retries: tries after the first (see `pool.py` for what is tried again).
        max_response_bytes: largest answer that is read.
        extra_body: further keys of every request ({"top_k": 20}); they replace ours, None drops one ({"seed": None}).
        use_n: ask for a prompt's samples in one request.
        start_bound, dead_after: seconds until servers that were never reached, or that have all been failing, are
            given up with an EngineError.

    Attributes:
        notes: what was noticed about the servers, a sentence each.

    Raises:
        UsageError: an argument that cannot work.
    """

    def __init__(
        self,
        model: str,
        base_urls: Sequence[str],
        *,
        api_key: str | None = None,
        concurrency: int = 64,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        retries: int = 4,
        max_response_bytes: int = 16 * 2**20,
        extra_body: Mapping[str, Any] | None = None,
        use_n: bool = False,
        start_bound: float = 10.0,
        dead_after: float = 120.0,
    ) -> None:
        if not model:
            raise UsageError("the model's name is empty: give the name that the server lists under /v1/models")
        if isinstance(base_urls, str) or not base_urls:
            raise UsageError("base_urls needs at least one URL, e.g. http://127.0.0.1:8000/v1")
        if concurrency < 1 or retries < 0 or max_response_bytes < 1:
            raise UsageError("concurrency and max_response_bytes must be at least 1, retries at least 0")
        if not (timeout > 0 and connect_timeout > 0):
            raise UsageError("timeout and connect_timeout must be more than 0 seconds")
        extra = dict(extra_body or {})
        for key in extra:
            if key in _RESERVED or (key == "seed" and extra[key] is not None):
                raise UsageError(f"extra_body cannot set '{key}': the engine sets it")
        if not isinstance(extra.get("max_tokens"), int | None):
            raise UsageError("extra_body's max_tokens is not a whole number")
        secret = (os.environ.get("OPENAI_API_KEY") if api_key is None else api_key) or None
        if secret is not None and not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise UsageError("the API key holds a character that cannot stand in an HTTP header")
        self._name = model
        self._model = f"{model}+{short_hash('extra_body', extra, use_n)}" if extra or use_n else model
        self._urls = tuple(dict.fromkeys(_checked_url(url) for url in base_urls))
        self._settings = Settings(secret, timeout, connect_timeout, max_response_bytes)
        self._bounds = {"retries": retries, "start_bound": start_bound, "dead_after": dead_after}
        self._concurrency = concurrency
        self._extra_body = extra
        self._use_n = use_n
        self._lock = threading.Lock()
        self._loop_thread: _LoopThread | None = None
        self.notes: list[str] = []

    @property
    def model(self) -> str:
        """The model's name, as given, and a hash of `extra_body` and `use_n` where set: both change the text."""
        return self._model

    def __repr__(self) -> str:
        return f"OpenAIEngine({self._name!r}, {list(self._urls)!r})"

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Complete every sample of every request, in the order in which they finish.

        Closing the generator (or leaving its loop) cancels what is in flight.

        Raises:
            EngineError: no server answers, they refuse the key or the model, all have been failing for `dead_after`
                seconds, or the first answers all make no sense.
        """
        loop_thread = self._started()
        run = _Run(queue.SimpleQueue())
        jobs = (job for request in requests for job in self._jobs(run, request))
        open_samples, warned, exhausted = 0, len(self.notes), False
        loop_thread.open(run)
        try:
            while True:
                fresh: list[_Job] = []
                while not exhausted and open_samples < 2 * self._concurrency:
                    job = next(jobs, None)
                    if job is None:
                        exhausted = True
                    else:
                        fresh.append(job)
                        open_samples += len(job.indices)
                if fresh:
                    loop_thread.submit(fresh)
                if not open_samples:
                    return
                # Half of the look-ahead is drained before more is asked for: fewer wake-ups of the loop's thread.
                for _ in range(min(open_samples, max(self._concurrency // 2, 1))):
                    try:
                        result = run.results.get(block=not _)
                    except queue.Empty:
                        break
                    if isinstance(result, BaseException):
                        raise result
                    open_samples -= 1
                    for note in self.notes[warned:]:
                        warnings.warn(note, RuntimeWarning, stacklevel=2)
                        warned += 1
                    yield result
                    # A busy caller would hold the interpreter lock for whole switch intervals (5 ms) while answers
                    # wait: letting go once per completion took 79 % of the ideal rate to 91 % at 50 ms latency.
                    time.sleep(0)
        finally:
            loop_thread.discard(run)

    def close(self) -> None:
        """End the background thread and its connections. A later `generate` starts afresh."""
        with self._lock:
            loop_thread, self._loop_thread = self._loop_thread, None
        if loop_thread is not None:
            self._finalizer.detach()
            loop_thread.stop()

    def _started(self) -> _LoopThread:
        with self._lock:
            if self._loop_thread is None:
                endpoints = [
                    Endpoint(url, open_transport(url + "/chat/completions", self._settings)) for url in self._urls
                ]
                pool = Pool(endpoints, self.notes, **self._bounds)  # type: ignore[arg-type]
                self._loop_thread = _LoopThread(_Client(pool, self.notes), self._concurrency)
                self._finalizer = weakref.finalize(self, self._loop_thread.stop)
            return self._loop_thread

    def _jobs(self, run: _Run, request: Request) -> Iterator[_Job]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._name,
            "messages": [m.to_json() for m in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if sampling.logprobs:
            body["logprobs"] = True
        if sampling.alternatives:
            body["top_logprobs"] = sampling.alternatives
        body |= self._extra_body
        most, seeded = body.pop("max_tokens"), "seed" not in body
        fixed = {key: value for key, value in body.items() if value is not None}
        prefix = json.dumps(fixed, separators=(",", ":"))[:-1].encode("ascii")
        # Greedy samples are all alike, and vLLM refuses n > 1 for them.
        if self._use_n and len(request.seeds) > 1 and sampling.temperature > 0:
            yield _Job(run, request, prefix, most, seeded, tuple(range(len(request.seeds))))
        else:
            for index in range(len(request.seeds)):
                yield _Job(run, request, prefix, most, seeded, (index,))


def _checked_url(url: str) -> str:
    """The base URL without a trailing slash, with /v1 where it has no path; no user, query or fragment."""
    hint = "expected e.g. http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise UsageError(f"base URL {url!r} cannot be read: {hint}") from None
    if parts.username or parts.password:
        raise UsageError(f"a base URL holds a user name or password; give the key as OPENAI_API_KEY: {hint}")
    if not valid or parts.query or parts.fragment or not re.fullmatch(r"[\x21-\x7e]+", url.strip()):
        raise UsageError(f"base URL {url!r} is not usable: {hint}")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


@dataclass(eq=False)
class _Run:
    """One `generate` call: where its completions go, and its tasks."""

    results: queue.SimpleQueue[Completion | BaseException]
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    closed: bool = False
    ok: int = 0
    failed: int = 0
    first_texts: dict[int, str] = field(default_factory=dict)
    repeats: int = 0
    samples_differ: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One HTTP request: the body without limit and seed, and which of the request's samples it is for."""

    run: _Run
    request: Request
    prefix: bytes
    most: int | None
    seeded: bool
    indices: tuple[int, ...]

    def body(self, form: Form) -> bytes:
        """What is sent to a server that wants this form."""
        fields = {}
        if form.most is not None:
            fields[form.limit.encode()] = form.most
        if len(self.indices) > 1:
            fields[b"n"] = len(self.indices)
        if self.seeded and form.seed:
            fields[b"seed"] = self.request.seeds[self.indices[0]] & SEED_BITS
        return self.prefix + b"".join(b',"%b":%d' % field for field in fields.items()) + b"}"


class _LoopThread:
    """An event loop in a thread: at most `concurrency` jobs at a time, the rest wait in order."""

    def __init__(self, client: _Client, concurrency: int) -> None:
        self._client = client
        self._concurrency = concurrency
        self._waiting: deque[_Job] = deque()
        self._runs: set[_Run] = set()
        self._active = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="opengrm-openai", daemon=True)
        self._thread.start()

    # Called from other threads.

    def open(self, run: _Run) -> None:
        self._call(self._open, run)

    def submit(self, jobs: list[_Job]) -> None:
        self._call(self._submit, jobs)

    def discard(self, run: _Run) -> None:
        self._call(self._discard, run)

    def stop(self) -> None:
        self._call(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self, function: Any, *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nothing left to do
            for job in args[0] if args and isinstance(args[0], list) else ():
                job.run.results.put(EngineError("the engine was closed while it was generating"))

    # Called in the loop's thread.

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            for run in list(self._runs):
                run.results.put(EngineError("the engine was closed while it was generating"))
                self._discard(run)
            self._loop.run_until_complete(self._client.close())
            tasks = asyncio.all_tasks(self._loop)
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks))
            self._loop.run_until_complete(asyncio.sleep(0))  # lets aborted transports close their sockets
        finally:
            self._loop.close()

    def _open(self, run: _Run) -> None:
        if not self._runs:  # old troubles are forgotten
            self._client.pool.start_again()
        self._runs.add(run)

    def _submit(self, jobs: list[_Job]) -> None:
        self._waiting.extend(jobs)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and self._active < self._concurrency:
            job = self._waiting.popleft()
            if job.run.closed:
                continue
            self._active += 1
            task = self._loop.create_task(self._work(job))
            job.run.tasks.add(task)
            task.add_done_callback(job.run.tasks.discard)

    async def _work(self, job: _Job) -> None:
        try:
            # What a server ignored of a group goes out next, as single requests.
            self._waiting.extendleft(reversed(await self._client.complete(job)))
        except EngineError as error:
            for run in list(self._runs):
                run.results.put(error)
        except Exception as error:  # a bug of ours must end the run, not hang it
            job.run.results.put(error)
        finally:
            self._active -= 1
            self._fill()

    def _discard(self, run: _Run) -> None:
        run.closed = True
        self._runs.discard(run)
        self._waiting = deque(job for job in self._waiting if job.run is not run)
        for task in list(run.tasks):
            task.cancel()


class _Client:
    """Turns jobs into completions: asks the pool, reads the answers, fans out what a server ignored."""

    def __init__(self, pool: Pool, notes: list[str]) -> None:
        self.pool = pool
        self._notes = notes

    async def close(self) -> None:
        await self.pool.close()

    async def complete(self, job: _Job) -> list[_Job]:
        """Put completions of the job's samples into its run's results; return what has to be asked for singly."""
        start = time.monotonic()
        choices: list[Choice] = []
        if len(job.indices) == 1 or not all(e.n_ignored for e in self.pool.endpoints):
            try:
                endpoint, answer = await self.pool.ask(job.body, job.most)
                choices = read_answer(answer.body, wanted=len(job.indices))
            except Failed as error:
                for index in job.indices:
                    seconds = time.monotonic() - start
                    job.run.results.put(Completion(job.request.id, index, "", "error", str(error), seconds=seconds))
                self._count(job.run, error)
                return []
            job.run.ok += 1
            self._notice(endpoint, job, choices)
            self._notice_repeats(job, choices)
        seconds, sampling = time.monotonic() - start, job.request.sampling
        for index, choice in zip(job.indices, choices, strict=False):
            job.run.results.put(
                Completion(
                    job.request.id, index, choice.text, choice.finish, choice.error, choice.prompt_tokens,
                    choice.completion_tokens, logprobs=choice.logprobs if sampling.logprobs else None,
                    pieces=choice.pieces if sampling.logprobs else None,
                    alternatives=choice.alternatives if sampling.alternatives else None, seconds=seconds,
                )
            )  # fmt: skip
        return [replace(job, indices=(index,)) for index in job.indices[len(choices) :]]

    def _count(self, run: _Run, error: Failed) -> None:
        """Stop a run whose first answers make no sense: the server is the wrong one, or set up wrongly.

        A server that is busy or broken is the pool's matter: it may be working on the first good answers.
        """
        if run.ok or not isinstance(error, Misunderstood):
            return
        run.failed += 1
        if run.failed >= GARBAGE_BOUND:
            urls = ", ".join(e.base_url for e in self.pool.endpoints)
            raise EngineError(f"the first {GARBAGE_BOUND} requests to {urls} all failed; the last: {error}")

    def _notice(self, endpoint: Endpoint, job: _Job, choices: Sequence[Choice]) -> None:
        if len(choices) < len(job.indices) and not endpoint.n_ignored:
            endpoint.n_ignored = True
            self._notes.append(
                f"{endpoint.base_url} gave {len(choices)} choice(s) for n={len(job.indices)}: "
                "it ignores n, its samples are asked for one by one"
            )
        wanted = job.request.sampling.logprobs and any(c.logprobs is None and c.finish != "error" for c in choices)
        if wanted and not endpoint.logprobs_ignored:
            endpoint.logprobs_ignored = True
            self._notes.append(f"{endpoint.base_url} gives no log-probabilities: completions come without them")

    def _notice_repeats(self, job: _Job, choices: Sequence[Choice]) -> None:
        """Say so if a prompt's samples are all alike, until two differ for the first time."""
        run = job.run
        if run.samples_differ or len(job.request.seeds) < 2 or job.request.sampling.temperature == 0:
            return
        for choice in choices:
            if choice.error is not None:
                continue
            first = run.first_texts.get(job.request.id)
            if first is None:
                run.first_texts[job.request.id] = choice.text
            else:
                run.repeats += 1
                run.samples_differ = choice.text != first
        if run.samples_differ or run.repeats >= REPEATS_BOUND:
            if not run.samples_differ and not any(note.startswith("the samples") for note in self._notes):
                self._notes.append(
                    "the samples of a prompt all have the same text at temperature "
                    f"{job.request.sampling.temperature}: "
                    "does the server sample? (`transformers serve` does only if generation_config.json has do_sample)"
                )
            run.samples_differ = True
            run.first_texts.clear()
