"""vLLM in process, behind the extra 'vllm': for large models on GPUs.

Every sample is a vLLM request of its own with its own seed, so that its text does not depend on how many siblings it
has; vLLM's prefix cache (on by default) then holds the prompt once. Its results depend on the batch more than those
of our own engine do, as its kernels are chosen by batch size.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from opengrm.engines.base import Completion, Request
from opengrm.engines.chat import ChatTokenizer
from opengrm.engines.checkpoints import check_folder, find_model, first_line
from opengrm.engines.fingerprint import fingerprint
from opengrm.errors import EngineError, MissingExtra

_WINDOW = 256  # requests handed over at a time; vLLM schedules within them


class VLLMEngine:
    """An `Engine` over vLLM's offline `LLM`.

    Args:
        model: "nano", a folder, or a hub id.
        dtype: as vLLM names it; "auto" takes the checkpoint's.
        trust_remote_code: run code that comes with a checkpoint.
        revision: branch, tag or commit of a hub id.
        options: further arguments of `vllm.LLM`, e.g. tensor_parallel_size=8, max_model_len=16384.

    Raises:
        EngineError: the model cannot be found or loaded.
        MissingExtra: vllm is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> None:
        try:
            import vllm
        except ImportError:
            raise MissingExtra("the vllm engine", "vllm") from None
        folder, name = find_model(model, revision=revision, code=trust_remote_code)
        check_folder(folder)
        self._params: Any = vllm.SamplingParams
        try:
            self._llm: Any = vllm.LLM(
                model=str(folder),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                enable_prefix_caching=True,
                **options,
            )
        except Exception as error:
            raise EngineError(f"{model}: vLLM cannot load this model: {first_line(error)}") from None
        self._chat = ChatTokenizer(self._llm.get_tokenizer())
        self._context = int(self._llm.llm_engine.model_config.max_model_len)
        self._identity = f"{name}@{fingerprint(folder)}"

    @property
    def model(self) -> str:
        """Name and fingerprint of the weights, tokenizer and configuration."""
        return self._identity

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Complete every sample of every request, a window of requests at a time.

        Raises:
            EngineError: vLLM fails.
        """
        waiting = iter(requests)
        while window := list(itertools.islice(waiting, _WINDOW)):
            yield from self._complete(window)

    def close(self) -> None:
        """Let go of the model."""
        self._llm = None

    def __enter__(self) -> VLLMEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(self, window: list[Request]) -> Iterator[Completion]:
        if self._llm is None:
            raise EngineError("the engine is closed")
        began = time.perf_counter()
        prompts: list[dict[str, list[int]]] = []
        params: list[Any] = []
        asked: list[tuple[Request, int]] = []
        for request in window:
            ids = list(self._chat.encode(request.messages))
            for index, seed in enumerate(request.seeds):
                if len(ids) >= self._context:
                    detail = f"too_long: the prompt has {len(ids)} tokens, the model's context {self._context}"
                    yield Completion(request.id, index, "", "error", error=detail, prompt_tokens=len(ids))
                    continue
                prompts.append({"prompt_token_ids": ids})
                params.append(self._sampling_params(request, seed, room=self._context - len(ids)))
                asked.append((request, index))
        if not prompts:
            return
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        except Exception as error:
            raise EngineError(f"vLLM failed: {first_line(error)}") from None
        seconds = time.perf_counter() - began
        for (request, index), output in zip(asked, outputs, strict=True):
            yield self._completion(request, index, output, seconds)

    def _sampling_params(self, request: Request, seed: int, *, room: int) -> Any:
        sampling = request.sampling
        return self._params(
            n=1,
            seed=seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, room),
            logprobs=0 if sampling.logprobs else None,  # 0: of the sampled token alone
        )

    def _completion(self, request: Request, index: int, output: Any, seconds: float) -> Completion:
        made = output.outputs[0]
        ids = tuple(made.token_ids)
        stopped = made.finish_reason == "stop"
        if made.finish_reason not in ("stop", "length"):
            return Completion(
                request.id,
                index,
                "",
                "error",
                error=f"server: vLLM ended with {made.finish_reason!r}",
                seconds=seconds,
            )
        logprobs = None
        if request.sampling.logprobs and made.logprobs is not None:
            logprobs = tuple(float(at[token].logprob) for token, at in zip(ids, made.logprobs, strict=True))
        # No stop strings are asked for, so a stopped sample ends with its end token.
        kept = ids[:-1] if stopped else ids
        return Completion(
            request=request.id,
            index=index,
            text=self._chat.decode(kept),
            finish=made.finish_reason,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=len(ids),
            token_ids=kept,
            logprobs=logprobs,
            seconds=seconds,
        )
