"""The sampling loop: many prompts, many samples each, one batch that is kept full.

Works on token ids and on any `transformers` causal LM that is already loaded, for instance the one in training:

    samples = sample(model, prompts, seeds_of_each, Sampling(temperature=1.0, max_tokens=64, logprobs=True))

Each distinct prompt is prefilled once. Samples of many prompts are decoded together; finished ones leave the batch
in steps (dropping rows copies the cache of the others), and waiting ones take their place. A sample's tokens depend
on its prompt, settings and seed. Its batch companions can change them only through the last bits of floating-point
sums, where a random number falls that close to the boundary between two tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from opengrm.engines.base import Sampling
from opengrm.engines.checkpoints import first_line
from opengrm.engines.repeated_cache import RepeatedCacheRows, forward_parameters, rope_turn
from opengrm.engines.sampling import UniformStream, likeliest, pick_tokens, token_logprobs
from opengrm.engines.shared_prefix import SharedPrefixRows, innermost, serves
from opengrm.errors import EngineError

PREFILL_TOKENS = 8192  # most tokens of one prefill, padding included
_NO_MEMORY = ("can't allocate memory", "not enough memory")  # how a RuntimeError of the CPU's allocator reads


@dataclass(frozen=True, slots=True)
class Job:
    """A tokenized prompt and the samples wanted from it; `tag` comes back on each of them."""

    tag: int
    prompt: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished sample.

    Attributes:
        tag, index: the job, and which of its seeds.
        token_ids: the new tokens, without the end token.
        finish: "stop" (an end token came), "length", or "error".
        logprobs: one per new token, end token included, under the unscaled distribution; None unless asked for.
        seconds: from the job's admission to this sample's end.
        error: None, or why the sample failed: "too_long: ..." or "server: ...".
        end_id: the end token that came; None where none did.
        alternatives: one per log-probability: the most likely ids with theirs; None unless asked for.
    """

    tag: int
    index: int
    token_ids: tuple[int, ...]
    finish: str
    logprobs: tuple[float, ...] | None
    seconds: float
    error: str | None = None
    end_id: int | None = None
    alternatives: tuple[tuple[tuple[int, float], ...], ...] | None = None


class Rows(Protocol):
    """A batch's caches: see `SharedPrefixRows` and `RepeatedCacheRows`."""

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor: ...
    def step(self, tokens_R: Tensor) -> Tensor: ...
    def keep(self, rows: Sequence[int], wanted: Collection[tuple[int, ...]] = ()) -> None: ...


@dataclass(slots=True)
class _Running:
    tag: int
    index: int
    stream: UniformStream
    sampling: Sampling
    most: int  # new tokens at most
    began: float
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    done: bool = False
    broken: bool = False  # the model's numbers were not finite


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int] | None = None,
    max_batch: int = 128,
) -> list[list[Sample]]:
    """Sample from a live model: for each prompt, one `Sample` per seed, in the order of the seeds.

    The model is put in evaluation mode for the call, and no gradients are recorded.

    Args:
        model: a `transformers` causal LM, or a wrapper that forwards to one.
        prompts: token ids, at least one each. Where prompt and new tokens together pass the model's context, the
            sample ends there ("length"); a prompt that fills it gives samples that finish with "error".
        seeds: for each prompt, one seed for each sample wanted.
        stop_ids: tokens that end a sample; the model's own (`generation_config.eos_token_id`) where None.
        max_batch: most samples decoded together.

    Raises:
        EngineError: the model's forward fails, or cannot be driven by this loop.
    """
    jobs = [
        Job(tag, tuple(prompt), tuple(of_prompt), sampling)
        for tag, (prompt, of_prompt) in enumerate(zip(prompts, seeds, strict=True))
    ]
    found: list[dict[int, Sample]] = [{} for _ in jobs]
    training = model.training
    model.eval()
    try:
        stops = end_tokens(model) if stop_ids is None else frozenset(stop_ids)
        for done in decode(model, jobs, stop_ids=stops, max_batch=max_batch):
            found[done.tag][done.index] = done
    finally:
        model.train(training)
    return [[of_prompt[index] for index in range(len(of_prompt))] for of_prompt in found]


def end_tokens(model: Any) -> frozenset[int]:
    """The ids that end a generation, from the model's generation settings: none, one or several."""
    ids = innermost(model).generation_config.eos_token_id
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def context_length(model: Any) -> int | None:
    """Most tokens, prompt and new ones, that the model has positions for; None where it does not say."""
    return positions(innermost(model).config)


def positions(config: Any) -> int | None:
    """The same, from the model's configuration."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def check_model(model: Any) -> None:
    """See that the loop can drive this model.

    Raises:
        EngineError: its forward takes no `past_key_values`.
    """
    forward_parameters(model)


def decode(
    model: Any,
    jobs: Iterable[Job],
    *,
    stop_ids: Collection[int],
    max_batch: int,
    shared_prefix: bool | None = None,
) -> Iterator[Sample]:
    """Yield each sample as it finishes. Jobs are pulled as room comes up, about one batch ahead.

    Args:
        shared_prefix: True or False forces a path; None takes the shared-prefix one where it serves the model.

    Raises:
        EngineError: the model's forward fails, or cannot be driven by this loop.
    """
    fast = serves(model) if shared_prefix is None else shared_prefix
    kind = SharedPrefixRows if fast else RepeatedCacheRows
    rows: Rows = kind(model, prefill_tokens=PREFILL_TOKENS)
    loop = _Loop(rows, iter(jobs), frozenset(stop_ids), max_batch)
    loop.context, loop.turn = context_length(model), rope_turn(model)
    yield from loop.run()


class _Loop:
    def __init__(self, rows: Rows, jobs: Iterator[Job], stop_ids: frozenset[int], max_batch: int) -> None:
        self.rows = rows
        self.jobs = jobs
        self.stop_ids = stop_ids
        self.max_batch = max_batch
        self.context: int | None = None
        self.turn: int | None = None  # a sample may not cross this length: see `rope_turn`
        self.waiting: deque[tuple[Job, int]] = deque()  # a job, and its first seed that is not yet admitted
        self.running: list[_Running] = []  # rows of the batch, finished ones included until the next `keep`
        self.exhausted = False

    def run(self) -> Iterator[Sample]:
        tokens_R: Tensor | None = None
        while True:
            yield from self._pull()
            live = sum(not row.done for row in self.running)
            # A prefill stops the decoding of everybody else, so rooms are collected before they are filled.
            refill = bool(self.waiting) and (live == 0 or self.max_batch - live >= max(1, self.max_batch // 4))
            if live == 0 and not refill:
                return
            if live < len(self.running) and (refill or 4 * live <= 3 * len(self.running)):
                kept = [r for r, row in enumerate(self.running) if not row.done]
                with self._computing():
                    self.rows.keep(kept, {job.prompt for job, _ in self.waiting} if refill else ())
                    tokens_R = tokens_R[kept] if tokens_R is not None else None
                self.running = [self.running[r] for r in kept]
            with self._computing():
                fed_R = self._feed(tokens_R)
                new_R = self._admit(self.max_batch - live) if refill else None
                tokens_R = fed_R if new_R is None else new_R if fed_R is None else torch.cat([fed_R, new_R])
            yield from self._finished()

    def _pull(self) -> Iterator[Sample]:
        """Look one batch ahead. Samples of prompts that cannot be continued are finished at once."""
        ahead = sum(len(job.seeds) - first for job, first in self.waiting)
        while ahead < self.max_batch and not self.exhausted:
            job = next(self.jobs, None)
            if job is None:
                self.exhausted = True
            elif (reason := self._too_long(job)) is not None:
                for index in range(len(job.seeds)):
                    yield Sample(job.tag, index, (), "error", None, 0.0, reason)
            elif job.seeds:
                self.waiting.append((job, 0))
                ahead += len(job.seeds)

    def _most(self, job: Job) -> int:
        """New tokens of a sample at most."""
        room = job.sampling.max_tokens if self.context is None else self.context - len(job.prompt)
        return min(job.sampling.max_tokens, room)

    def _too_long(self, job: Job) -> str | None:
        length = len(job.prompt)
        if self.context is not None and length >= self.context:
            return f"too_long: the prompt has {length} tokens, the model's context {self.context}"
        if self.turn is not None and length <= self.turn < length + self._most(job) - 1:
            return (
                f"too_long: {length} tokens of prompt and up to {self._most(job)} new ones cross {self.turn}, where "
                "this model's rotary embedding changes (longrope): lower max_tokens"
            )
        return None

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Nothing but the model and its caches runs in here, so whatever fails is theirs."""
        try:
            with torch.inference_mode():
                yield
        except EngineError:
            raise
        except Exception as error:
            full = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            if full or any(words in str(error) for words in _NO_MEMORY):
                text = f"out of memory with {self.max_batch} samples in the batch: choose a smaller batch"
            else:
                text = f"the model's forward failed: {first_line(error)}"
            raise EngineError(text) from error

    def _feed(self, tokens_R: Tensor | None) -> Tensor | None:
        """One step of the rows that are in the batch."""
        if not self.running or tokens_R is None:
            return None
        return self._pick(self.rows.step(tokens_R), self.running)

    def _admit(self, room: int) -> Tensor:
        """Take waiting samples in, and give each its first token."""
        prompts: list[tuple[int, ...]] = []
        new: list[_Running] = []
        while self.waiting and room > 0:
            job, first = self.waiting.popleft()
            last = min(len(job.seeds), first + room)
            if last < len(job.seeds):
                self.waiting.appendleft((job, last))
            most = self._most(job)
            for index in range(first, last):
                stream = UniformStream(job.seeds[index])
                new.append(_Running(job.tag, index, stream, job.sampling, most, time.perf_counter()))
            prompts.extend([job.prompt] * (last - first))
            room -= last - first
        tokens_N = self._pick(self.rows.admit(prompts), new)
        self.running.extend(new)
        return tokens_N

    def _pick(self, logits_RV: Tensor, running: list[_Running]) -> Tensor:
        tokens_R = pick_tokens(
            logits_RV,
            [row.stream[len(row.tokens)] for row in running],
            [row.sampling.temperature for row in running],
            [row.sampling.top_p for row in running],
        )
        drawn = tokens_R.tolist()
        tokens_R = tokens_R.clamp(min=0)  # a broken row stays in the batch until the next `keep`
        logprobs: list[float] = []
        if any(row.sampling.logprobs for row in running):
            logprobs = token_logprobs(logits_RV, tokens_R).tolist()
        top = likeliest(logits_RV, max((row.sampling.alternatives for row in running), default=0))
        for place, (row, token) in enumerate(zip(running, drawn, strict=True)):
            if token < 0:
                row.broken = True
            elif not row.done:
                row.tokens.append(token)
                if row.sampling.logprobs:
                    row.logprobs.append(logprobs[place])
                if row.sampling.alternatives:
                    row.alternatives.append(tuple(top[place][: row.sampling.alternatives]))
        return tokens_R

    def _finished(self) -> Iterator[Sample]:
        for row in self.running:
            if row.done:
                continue
            stopped = not row.broken and row.tokens[-1] in self.stop_ids
            if row.broken or stopped or len(row.tokens) >= row.most:
                row.done = True
                yield Sample(
                    tag=row.tag,
                    index=row.index,
                    token_ids=tuple(row.tokens[:-1] if stopped else row.tokens),
                    finish="error" if row.broken else "stop" if stopped else "length",
                    logprobs=tuple(row.logprobs) if row.sampling.logprobs else None,
                    seconds=time.perf_counter() - row.began,
                    end_id=row.tokens[-1] if stopped else None,
                    alternatives=tuple(row.alternatives) if row.sampling.alternatives else None,
                    error="server: the model gave numbers that are not finite" if row.broken else None,
                )
