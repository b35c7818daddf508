"""The in-process engine: any Hugging Face causal LM, its own forward under our sampling loop (`decoding.py`)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opengrm.engines.base import Completion, Request, Sampling
from opengrm.engines.checkpoints import check_folder, find_model, first_line
from opengrm.engines.fingerprint import fingerprint, identity
from opengrm.errors import EngineError, MissingExtra, UsageError

if TYPE_CHECKING:
    from opengrm.engines.decoding import Job, Sample

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(slots=True)
class _Asked:
    request: Request
    prompt: tuple[int, ...]
    left: int  # samples still to come


class TransformersEngine:
    """An `Engine` over a checkpoint that this process loads.

    Sampling is from the model's own distribution, scaled by the request's temperature and cut by its top_p: the
    penalties and top_k of a checkpoint's generation settings are not applied. Generation ends at any of the end
    tokens of `generation_config`, or at the tokenizer's.

    Args:
        model: "nano" (the embedded model), a folder, or a hub id.
        device: "auto" (CUDA, else Apple's GPU, else CPU) or a torch device.
        dtype: "auto" (float32 on a CPU, else the checkpoint's), "float32", "bfloat16" or "float16".
        max_batch: most samples decoded together.
        trust_remote_code: run code that comes with a checkpoint.
        revision: branch, tag or commit of a hub id.
        chat_template_kwargs: variables of the chat template, e.g. {"enable_thinking": False}.

    Raises:
        EngineError: there is no such model, or it is not a causal LM with safetensors weights, or of a kind (state
            space models with caches of their own) that the sampling loop cannot run.
        MissingExtra: torch or transformers is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 128,
        trust_remote_code: bool = False,
        revision: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import torch
            import transformers
        except ImportError:
            raise MissingExtra("the transformers engine", "local") from None
        if max_batch < 1:
            raise UsageError(f"the batch size is {max_batch}, expected at least 1")
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        folder, name = find_model(model, revision=revision, code=trust_remote_code)
        check_folder(folder)
        where = chosen_device(device)
        precision: Any = dtype
        if dtype == "auto" and where == "cpu":
            precision = torch.float32
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        try:
            with quietly(transformers):
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
                found: Any = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=precision, use_safetensors=True, output_loading_info=True, **options
                )
            loaded, report = found
            self._model: Any = loaded.to(where).eval()
        except Exception as error:
            raise EngineError(f"{model}: cannot load this model: {first_line(error)}") from None
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise EngineError(f"{model}: the weights lack {len(missing)} tensors, e.g. {missing[0]}")
        from opengrm.engines import decoding
        from opengrm.engines.chat import ChatTokenizer

        self._decoding = decoding
        decoding.check_model(self._model)
        self._chat = ChatTokenizer(tokenizer, chat_template_kwargs)
        own_end = {tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set()
        self._stop_ids = decoding.end_tokens(self._model) | own_end
        self._max_batch = max_batch
        effective = str(self._model.dtype).removeprefix("torch.")
        self._identity = identity(name, fingerprint(folder), effective, chat_template_kwargs)

    @property
    def model(self) -> str:
        """Name and fingerprint of weights, tokenizer and configuration; precision; chat template variables' hash."""
        return self._identity

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self._chat.tokenizer

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Complete every sample of every request, in any order; requests are pulled about one batch ahead.

        Requests with the same messages share one prefill where they are in the batch, or waiting for it, together.
        """
        asked: dict[int, _Asked] = {}

        def jobs() -> Iterator[Job]:
            for tag, request in enumerate(requests):
                prompt = self._chat.encode(request.messages)
                if request.seeds:
                    asked[tag] = _Asked(request, prompt, len(request.seeds))
                yield self._decoding.Job(tag, prompt, request.seeds, request.sampling)

        for sample in self._decoding.decode(self._live(), jobs(), stop_ids=self._stop_ids, max_batch=self._max_batch):
            known = asked[sample.tag]
            yield self._completion(known, sample)
            known.left -= 1
            if not known.left:
                del asked[sample.tag]

    def sample_ids(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Sample]]:
        """Sample from token ids: `decoding.sample` on this engine's model."""
        return self._decoding.sample(
            self._live(), prompts, seeds, sampling, stop_ids=self._stop_ids, max_batch=self._max_batch
        )

    def close(self) -> None:
        """Let go of the weights. The engine cannot be used afterwards."""
        self._model = None

    def __enter__(self) -> TransformersEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _live(self) -> Any:
        if self._model is None:
            raise EngineError("the engine is closed")
        return self._model

    def _completion(self, asked: _Asked, sample: Sample) -> Completion:
        pieces = alternatives = None
        if sample.logprobs is not None:
            pieces = self._chat.pieces(asked.prompt, sample.token_ids, ended=sample.finish == "stop")
        if sample.alternatives is not None:
            alternatives = tuple(self._chat.named(place) for place in sample.alternatives)
        return Completion(
            request=asked.request.id,
            index=sample.index,
            text=self._chat.answer(asked.prompt, sample.token_ids),
            finish=sample.finish,
            error=sample.error,
            prompt_tokens=len(asked.prompt),
            completion_tokens=len(sample.token_ids) + (sample.finish == "stop"),
            token_ids=sample.token_ids,
            logprobs=sample.logprobs,
            pieces=pieces,
            alternatives=alternatives,
            seconds=sample.seconds,
        )


@contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars, which would get into the way of the caller's own."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def chosen_device(device: str) -> str:
    """The torch device that is meant: "auto" is CUDA, else Apple's GPU, else the CPU.

    Raises:
        EngineError: it cannot be used here.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except Exception as error:
        raise EngineError(f"device {device!r} cannot be used: {first_line(error)}") from None
    return device
