"""OpenVINO GenAI in process, behind the extra 'openvino': the quick engine on CPUs, over a GGUF file.

Llama, Qwen2 and Qwen3 architectures, f16 or q8_0. Every sample is a request of its own with its own seed: measured,
its text is then the same whatever runs beside it. The first sample of a prompt goes ahead; its siblings follow when
its first token is there, so that they find the prompt in the prefix cache instead of each prefilling it.

Numbers differ from the transformers engine's in the third decimal of a log-probability (half-precision weights and
cache), so texts of equal seeds differ between the two engines: their random streams are different anyway.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opengrm.engines.base import Completion, Request, Sampling
from opengrm.engines.chat import (
    DATE_STRING,
    ChatTokenizer,
    Renderer,
    Turns,
    checked_variables,
    control_pattern,
    opened_thought,
)
from opengrm.engines.checkpoints import check_folder, find_model, first_line
from opengrm.engines.fingerprint import fingerprint, identity
from opengrm.engines.gguf import EXPORT_VERSION, export_gguf
from opengrm.engines.pieces import completion_pieces
from opengrm.errors import EngineError, MissingExtra
from opengrm.items import Message
from opengrm.templates.base import broken_up

Precision = Literal["f16", "q8_0"]
_CONTROL = 3  # GGUF's type of control tokens


@dataclass(slots=True)
class _Sample:
    request: Request
    index: int
    ids: tuple[int, ...]
    most: int
    handle: Any = None
    began: float = 0.0


class OpenVINOEngine:
    """An `Engine` over OpenVINO GenAI's continuous batching.

    Args:
        model: "nano", a folder, a hub id, or a .gguf file. All but the last are exported to GGUF once and kept, by
            content and version of the exporter, under `$XDG_CACHE_HOME/opengrm` (~/.cache). A folder's own tokenizer
            is used; a bare GGUF's tokenizer is read by OpenVINO, which can cut numbers and spaces differently from
            the original.
        precision: of the exported file.
        max_batch: most samples decoded together.
        cache_gib: memory for keys and values.
        threads: CPU threads; OpenVINO chooses where None.
        chat_template_kwargs: variables of the chat template, e.g. {"enable_thinking": False}.

    Raises:
        EngineError: the model cannot be found or loaded.
        MissingExtra: openvino-genai, or what reads GGUF files, is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        precision: Precision = "f16",
        max_batch: int = 128,
        cache_gib: int = 2,
        threads: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import numpy
            import openvino
            import openvino_genai
        except ImportError:
            raise MissingExtra("the openvino engine", "openvino") from None
        self._numpy, self._openvino, self._genai = numpy, openvino, openvino_genai
        self._chat: ChatTokenizer | _GGUFChat
        stops: set[int] = set()
        if str(model).endswith(".gguf"):
            file = Path(model)
            if not file.is_file():
                raise EngineError(f"{file}: no such file")
            self._identity = identity(file.stem, fingerprint(file), "", chat_template_kwargs)
        else:
            folder, name = find_model(model)
            check_folder(folder)
            settings = f"{precision}.{EXPORT_VERSION}"
            self._identity = identity(name, fingerprint(folder), settings, chat_template_kwargs)
            file = exported(folder, identity(name, fingerprint(folder), settings, None), precision)
            stops = _end_tokens(folder)
        facts = _GGUFFacts.read(file)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = cache_gib
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = max_batch
        scheduler.max_num_batched_tokens = max(512, max_batch)
        options = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        try:
            self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(str(file), scheduler, "CPU", options)
        except Exception as error:
            raise EngineError(f"{model}: OpenVINO cannot load this model: {first_line(error)}") from None
        if file == Path(model):
            self._chat = _GGUFChat(self._pipeline.get_tokenizer(), facts.control, chat_template_kwargs)
        else:
            self._chat = ChatTokenizer(_tokenizer(folder), chat_template_kwargs)
        self._context = facts.context
        self._stops = stops | facts.end_tokens
        self._max_batch = max_batch
        self._count = 0

    @property
    def model(self) -> str:
        """Name, fingerprint and precision of the weights, our exporter's version, chat template variables' hash."""
        return self._identity

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Complete every sample of every request, in any order; requests are pulled as room comes up.

        Raises:
            EngineError: OpenVINO fails.
        """
        waiting: deque[_Sample] = deque()
        behind: dict[tuple[int, ...], list[_Sample]] = defaultdict(list)  # followers, by prompt, of a leader
        running: list[_Sample] = []
        source = iter(requests)
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) + sum(map(len, behind.values())) < self._max_batch:
                    request = next(source, None)
                    if request is None:
                        exhausted = True
                        break
                    ids = self._chat.encode(request.messages)
                    yield from self._enqueue(request, ids, waiting)
                while waiting and len(running) < self._max_batch:
                    sample = waiting.popleft()
                    siblings = [other for other in running if other.ids == sample.ids]
                    if siblings and not any(other.handle.can_read() for other in siblings):
                        behind[sample.ids].append(sample)  # nobody has read this prompt to its end yet
                        continue
                    self._start(sample)
                    running.append(sample)
                if not running:
                    return
                with self._computing():
                    self._pipeline.step()
                for sample in [s for s in running if s.ids in behind and s.handle.can_read()] if behind else ():
                    waiting.extendleft(reversed(behind.pop(sample.ids, [])))
                done = [s for s in running if s.handle.get_status() != self._genai.GenerationStatus.RUNNING]
                if done:
                    running = [s for s in running if s not in done]
                    for sample in done:
                        waiting.extendleft(reversed(behind.pop(sample.ids, [])))
                        yield self._completion(sample)
        finally:
            # The caller stopped early, or OpenVINO failed: then it may fail here again, and the first error counts.
            with suppress(Exception):
                for sample in running:
                    sample.handle.stop()
                while running and self._pipeline is not None and self._pipeline.has_non_finished_requests():
                    self._pipeline.step()

    def close(self) -> None:
        """Let go of the model."""
        self._pipeline = None

    def __enter__(self) -> OpenVINOEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enqueue(self, request: Request, ids: tuple[int, ...], waiting: deque[_Sample]) -> Iterator[Completion]:
        for index in range(len(request.seeds)):
            if self._context is not None and len(ids) >= self._context:
                detail = f"too_long: the prompt has {len(ids)} tokens, the model's context {self._context}"
                yield Completion(request.id, index, "", "error", error=detail, prompt_tokens=len(ids))
            else:
                room = request.sampling.max_tokens if self._context is None else self._context - len(ids)
                waiting.append(_Sample(request, index, ids, min(request.sampling.max_tokens, room)))

    def _start(self, sample: _Sample) -> None:
        sample.began = time.perf_counter()
        self._count += 1  # the pipeline wants distinct numbers
        with self._computing():
            ids = self._openvino.Tensor(self._numpy.array([sample.ids], dtype=self._numpy.int64))
            config = self._config(sample.request.sampling, sample.request.seeds[sample.index], sample.most)
            sample.handle = self._pipeline.add_request(self._count, ids, config)

    def _config(self, sampling: Sampling, seed: int, most: int) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = most
        config.do_sample = sampling.temperature > 0
        if sampling.temperature > 0:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.rng_seed = (seed ^ (seed >> 32)) & 0xFFFFFFFF  # the generator (mt19937) is seeded with 32 bits
        config.logprobs = int(sampling.logprobs)
        config.stop_token_ids = set(self._stops)
        return config

    @contextmanager
    def _computing(self) -> Iterator[None]:
        if self._pipeline is None:
            raise EngineError("the engine is closed")
        try:
            yield
        except Exception as error:
            raise EngineError(f"OpenVINO failed: {first_line(error)}") from error

    def _completion(self, sample: _Sample) -> Completion:
        seconds = time.perf_counter() - sample.began
        number, index = sample.request.id, sample.index
        outputs = sample.handle.read_all()
        reason = outputs[0].finish_reason if outputs else self._genai.GenerationFinishReason.NONE
        if reason == self._genai.GenerationFinishReason.NONE:
            detail = "server: OpenVINO gave this sample up: the key-value cache is full (raise cache_gib)"
            return Completion(number, index, "", "error", error=detail, prompt_tokens=len(sample.ids), seconds=seconds)
        ids = tuple(outputs[0].generated_ids)
        stopped = bool(ids) and ids[-1] in self._stops
        kept = ids[:-1] if stopped else ids
        logprobs = (
            tuple(float(p) for p in outputs[0].generated_log_probs) if sample.request.sampling.logprobs else None
        )
        return Completion(
            request=number,
            index=index,
            text=self._chat.answer(sample.ids, kept),
            finish="stop" if stopped else "length",
            prompt_tokens=len(sample.ids),
            completion_tokens=len(ids),
            token_ids=kept,
            logprobs=logprobs,
            pieces=None if logprobs is None else self._chat.pieces(sample.ids, kept, ended=stopped),
            seconds=seconds,
        )


def exported(folder: Path, identity: str, precision: Precision) -> Path:
    """The folder's weights as a GGUF file: written on first use, then found again by the model's fingerprint."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opengrm"
    file = root / f"{identity.replace('/', '--')}.gguf"
    return file if file.is_file() else export_gguf(folder, file, precision)


def _tokenizer(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("the tokenizer of a model's folder", "local") from None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise EngineError(f"{folder}: cannot load the tokenizer: {first_line(error)}") from None


def _end_tokens(folder: Path) -> set[int]:
    """End tokens of a checkpoint's generation settings: none, one or several."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ids = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            found |= {ids} if isinstance(ids, int) else set(ids or ())
    return found


@dataclass(frozen=True, slots=True)
class _GGUFFacts:
    context: int | None
    end_tokens: set[int]
    control: tuple[str, ...]

    @staticmethod
    def read(file: Path) -> _GGUFFacts:
        try:
            import gguf
        except ImportError:
            raise MissingExtra("reading GGUF files", "gguf") from None
        try:
            fields = gguf.GGUFReader(str(file)).fields
        except Exception as error:
            raise EngineError(f"{file}: not a GGUF file: {first_line(error)}") from None

        def value(name: str) -> Any:
            return fields[name].contents() if name in fields else None

        tokens, types = value("tokenizer.ggml.tokens") or [], value("tokenizer.ggml.token_type") or []
        ends = {value(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot")} - {None}
        control = [t for t, kind in zip(tokens, types, strict=False) if kind == _CONTROL and len(t) > 1]
        return _GGUFFacts(
            context=value(f"{value('general.architecture')}.context_length"),
            end_tokens={int(end) for end in ends},
            control=tuple(sorted(control, key=lambda t: (-len(t), t))),
        )


class _GGUFChat:
    """Chat template and tokenizer of a bare GGUF file, as OpenVINO reads them."""

    def __init__(self, tokenizer: Any, control: tuple[str, ...], variables: Mapping[str, Any] | None) -> None:
        self._tokenizer = tokenizer
        self._pattern = control_pattern(control)
        # The day that a template may ask for is fixed, as in `ChatTokenizer`.
        self._variables = {"date_string": DATE_STRING, **checked_variables(variables)}
        self._render = Renderer(self._apply)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        text = self._render([{"role": m.role, "content": self.fence(m.content)} for m in messages])
        return tuple(int(i) for i in self._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0])

    def answer(self, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
        return self._opened(prompt) + self._decode(token_ids)

    def pieces(self, prompt: Sequence[int], token_ids: Sequence[int], *, ended: bool) -> tuple[str, ...] | None:
        return completion_pieces(self._decode, token_ids, opened=self._opened(prompt), ended=ended)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids)))

    def _opened(self, prompt: Sequence[int]) -> str:
        return opened_thought(str(self._tokenizer.decode(list(prompt[-16:]), skip_special_tokens=False)))

    def _apply(self, turns: Turns) -> str:
        return str(
            self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, extra_context=self._variables)
        )

    def fence(self, text: str) -> str:
        return text if self._pattern is None else broken_up(text, self._pattern)
