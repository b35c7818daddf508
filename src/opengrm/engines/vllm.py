"""vLLM in process, behind the extra 'vllm': for large models on GPUs.

Every sample is a vLLM request of its own with its own seed, so that its text does not depend on how many siblings it
has; vLLM's prefix cache (on by default) then holds the prompt once. Its results depend on the batch more than those
of our own engine do, as its kernels are chosen by batch size.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opengrm.engines.base import Completion, Request
from opengrm.engines.chat import ChatTokenizer
from opengrm.engines.checkpoints import check_folder, find_model, first_line
from opengrm.engines.fingerprint import fingerprint, identity, short_hash
from opengrm.errors import EngineError, MissingExtra

_IN_FLIGHT = 1024  # samples handed over at most; vLLM decodes as many of them together as its memory allows
# Options that say where and how many at a time, and leave the text as it is; all others are part of the identity.
_PLACEMENT = frozenset({
    "cpu_offload_gb", "data_parallel_size", "disable_log_stats", "distributed_executor_backend", "download_dir",
    "enable_prefix_caching", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_batched_tokens",
    "max_num_seqs", "max_parallel_loading_workers", "pipeline_parallel_size", "swap_space", "tensor_parallel_size",
})  # fmt: skip


@dataclass(slots=True)
class _Sample:
    request: Request
    index: int
    prompt: tuple[int, ...]
    began: float = 0.0


class VLLMEngine:
    """An `Engine` over vLLM's offline `LLM`.

    Args:
        model: "nano", a folder, or a hub id.
        dtype: as vLLM names it; "auto" takes the checkpoint's.
        trust_remote_code: run code that comes with a checkpoint.
        revision: branch, tag or commit of a hub id.
        chat_template_kwargs: variables of the chat template, e.g. {"enable_thinking": False}.
        options: further arguments of `vllm.LLM`, e.g. tensor_parallel_size=8, max_model_len=16384.
            Those that can change a text are hashed into the identity.

    Raises:
        EngineError: the model cannot be found or loaded.
        UsageError: options or variables that cannot be written as JSON.
        MissingExtra: vllm is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        try:
            import vllm
            from vllm.sampling_params import RequestOutputKind
        except ImportError:
            raise MissingExtra("the vllm engine", "vllm") from None
        decisive = {key: value for key, value in options.items() if key not in _PLACEMENT}
        suffix = f"+{short_hash('engine options', decisive)}" if decisive else ""
        folder, name = find_model(model, revision=revision, code=trust_remote_code)
        check_folder(folder)
        self._params: Any = vllm.SamplingParams
        self._whole: Any = RequestOutputKind.FINAL_ONLY
        try:
            self._llm: Any = vllm.LLM(
                model=str(folder),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                **{"enable_prefix_caching": True, **options},
            )
        except Exception as error:
            raise EngineError(f"{model}: vLLM cannot load this model: {first_line(error)}") from None
        self._chat = ChatTokenizer(self._llm.get_tokenizer(), chat_template_kwargs)
        config = self._llm.llm_engine.model_config
        self._context = int(config.max_model_len)
        # Its own word, as vLLM draws from other random streams than we do.
        settings = f"vllm.{str(config.dtype).removeprefix('torch.')}{suffix}"
        self._identity = identity(name, fingerprint(folder), settings, chat_template_kwargs)
        self._count = 0

    @property
    def model(self) -> str:
        """Name and fingerprint of the files; precision, with a hash of options; chat template variables' hash."""
        return self._identity

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Complete every sample of every request, in any order; requests are pulled as samples finish.

        Raises:
            EngineError: vLLM fails.
        """
        waiting: deque[_Sample] = deque()
        running: dict[str, _Sample] = {}
        source = iter(requests)
        exhausted = False
        try:
            while True:
                while not exhausted and len(running) + len(waiting) < _IN_FLIGHT:
                    request = next(source, None)
                    if request is None:
                        exhausted = True
                    else:
                        yield from self._enqueue(request, waiting)
                with self._computing():
                    while waiting and len(running) < _IN_FLIGHT:
                        self._start(waiting.popleft(), running)
                    done = self._llm.llm_engine.step() if running else []
                if not running:
                    return
                ended = [(running.pop(output.request_id), output) for output in done if output.finished]
                for sample, output in ended:
                    yield self._completion(sample, output)
        finally:
            if running and self._llm is not None:  # the caller stopped early, or vLLM failed
                with suppress(Exception):
                    self._llm.llm_engine.abort_request(list(running))

    def close(self) -> None:
        """Let go of the model."""
        self._llm = None

    def __enter__(self) -> VLLMEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        if self._llm is None:
            raise EngineError("the engine is closed")
        try:
            yield
        except Exception as error:
            raise EngineError(f"vLLM failed: {first_line(error)}") from error

    def _enqueue(self, request: Request, waiting: deque[_Sample]) -> Iterator[Completion]:
        prompt = self._chat.encode(request.messages)
        for index in range(len(request.seeds)):
            if len(prompt) >= self._context:
                detail = f"too_long: the prompt has {len(prompt)} tokens, the model's context {self._context}"
                yield Completion(request.id, index, "", "error", error=detail, prompt_tokens=len(prompt))
            else:
                waiting.append(_Sample(request, index, prompt))

    def _start(self, sample: _Sample, running: dict[str, _Sample]) -> None:
        self._count += 1
        number = f"opengrm-{self._count}"
        sample.began = time.perf_counter()
        seed, room = sample.request.seeds[sample.index], self._context - len(sample.prompt)
        params = self._sampling_params(sample.request, seed, room=room)
        self._llm.llm_engine.add_request(number, {"prompt_token_ids": list(sample.prompt)}, params)
        running[number] = sample

    def _sampling_params(self, request: Request, seed: int, *, room: int) -> Any:
        sampling = request.sampling
        return self._params(
            n=1,
            seed=seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, room),
            logprobs=sampling.alternatives if sampling.logprobs else None,  # 0: of the sampled token alone
            output_kind=self._whole,  # one output for a sample, not one for every token
        )

    def _completion(self, sample: _Sample, output: Any) -> Completion:
        request, index = sample.request, sample.index
        seconds = time.perf_counter() - sample.began
        made = output.outputs[0]
        ids = tuple(made.token_ids)
        if made.finish_reason not in ("stop", "length"):
            detail = f"server: vLLM ended with {made.finish_reason!r}"
            return Completion(request.id, index, "", "error", error=detail, seconds=seconds)
        logprobs = pieces = alternatives = None
        # No stop strings are asked for, so a stopped sample ends with its end token.
        stopped = made.finish_reason == "stop"
        kept = ids[:-1] if stopped else ids
        if request.sampling.logprobs and made.logprobs is not None:
            logprobs = tuple(float(at[token].logprob) for token, at in zip(ids, made.logprobs, strict=True))
            pieces = self._chat.pieces(sample.prompt, kept, ended=stopped)
            if request.sampling.alternatives:
                tops = ([(token, float(p.logprob)) for token, p in at.items()] for at in made.logprobs)
                alternatives = tuple(self._chat.named(top) for top in tops)
        return Completion(
            request=request.id,
            index=index,
            text=self._chat.answer(sample.prompt, kept),
            finish=made.finish_reason,
            prompt_tokens=len(sample.prompt),
            completion_tokens=len(ids),
            token_ids=kept,
            logprobs=logprobs,
            pieces=pieces,
            alternatives=alternatives,
            seconds=seconds,
        )
