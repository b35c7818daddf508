"""Engines: where tokens and logits come from (transformers in process, OpenAI-compatible servers, vLLM, OpenVINO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from opengrm.engines.base import Completion, Engine, Request, Sampling
from opengrm.errors import UsageError

EngineKind = Literal["transformers", "openai", "vllm", "openvino"]

__all__ = ["Completion", "Engine", "EngineKind", "Request", "Sampling", "open_engine"]


def open_engine(
    kind: EngineKind,
    model: str,
    *,
    base_urls: Sequence[str] = (),
    batch: int | None = None,
    concurrency: int = 64,
    timeout: float = 600.0,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Engine:
    """Open the engine of that kind.

    Args:
        kind: which engine.
        model: "nano" (the embedded model), a folder, a hub id, or the name that a server gives its model.
        base_urls: servers of the same model, for `openai`.
        batch: most samples decoded together, in process; None leaves the engine's default.
        concurrency: most requests in flight, for `openai`.
        timeout: seconds that one request may take, for `openai`.
        device, dtype: where and in which precision to run, for `transformers`.
        trust_remote_code: run code that comes with a checkpoint; off unless the user asks.

    Raises:
        UsageError: an option that this engine needs or does not take.
        EngineError: the model or the server cannot be used.
        MissingExtra: the engine's libraries are not installed.
    """
    if base_urls and kind != "openai":
        raise UsageError(f"--base-url goes with --engine openai, not {kind}")
    if kind == "openai":
        if not base_urls:
            raise UsageError("--engine openai needs --base-url, e.g. --base-url http://127.0.0.1:8000/v1")
        from opengrm.engines.openai import OpenAIEngine

        return OpenAIEngine(model, list(base_urls), concurrency=concurrency, timeout=timeout)
    if kind == "vllm":
        from opengrm.engines.vllm import VLLMEngine

        return VLLMEngine(model, dtype=dtype, trust_remote_code=trust_remote_code)
    if kind == "openvino":
        from opengrm.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(model)
    from opengrm.engines.transformers import TransformersEngine

    extra: dict[str, Any] = {} if batch is None else {"max_batch": batch}
    return TransformersEngine(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
