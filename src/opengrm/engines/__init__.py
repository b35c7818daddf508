"""Engines: where tokens and logits come from (transformers in process, OpenAI-compatible servers, vLLM, OpenVINO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from opengrm.engines.base import Completion, Engine, Request, Sampling
from opengrm.errors import UsageError

EngineKind = Literal["transformers", "openai", "vllm", "openvino"]

__all__ = ["Completion", "Engine", "EngineKind", "Request", "Sampling", "open_engine"]

# Which engines take an option that is not for all.
_TAKERS: dict[str, tuple[EngineKind, ...]] = {
    "base_url": ("openai",),
    "extra_body": ("openai",),
    "concurrency": ("openai",),
    "timeout": ("openai",),
    "batch": ("transformers", "vllm", "openvino"),
    "device": ("transformers",),
    "dtype": ("transformers", "vllm"),
    "trust_remote_code": ("transformers", "vllm"),
    "engine_option": ("vllm",),
}
# Arguments of `vllm.LLM` that have an option of their own.
_NAMED = {
    "model": "--model", "dtype": "--dtype", "trust_remote_code": "--trust-remote-code", "max_num_seqs": "--batch",
    "chat_template_kwargs": "--chat-template-kwargs",
}  # fmt: skip


def open_engine(
    kind: EngineKind,
    model: str,
    *,
    base_urls: Sequence[str] = (),
    batch: int | None = None,
    concurrency: int | None = None,
    timeout: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    engine_options: Mapping[str, Any] | None = None,
) -> Engine:
    """Open the engine of that kind.

    Args:
        kind: which engine.
        model: "nano" (the embedded model), a folder, a hub id, or the name that a server gives its model.
        base_urls: servers of the same model, for `openai`.
        batch: most samples decoded together, in process; None leaves the engine's default.
        concurrency: most requests in flight, for `openai`; None leaves its default.
        timeout: seconds that one request may take, for `openai`; None leaves its default.
        device: where to run, for `transformers`.
        dtype: in which precision to run, for `transformers` and `vllm`.
        trust_remote_code: run code that comes with a checkpoint; off unless the user asks.
        chat_template_kwargs: variables of the model's chat template, e.g. {"enable_thinking": False}; a server gets
            them with every request.
        extra_body: further keys of every request, for `openai`.
        engine_options: further arguments of `vllm.LLM`, e.g. {"tensor_parallel_size": 8, "max_model_len": 16384}.

    Raises:
        UsageError: an option that this engine needs or does not take.
        EngineError: the model or the server cannot be used.
        MissingExtra: the engine's libraries are not installed.
    """
    given = {
        "base_url": base_urls, "extra_body": extra_body, "concurrency": concurrency is not None,
        "timeout": timeout is not None, "batch": batch is not None, "device": device != "auto",
        "dtype": dtype != "auto", "trust_remote_code": trust_remote_code, "engine_option": engine_options,
    }  # fmt: skip
    for name, value in given.items():
        if value and kind not in _TAKERS[name]:
            raise UsageError(f"--{name.replace('_', '-')} goes with --engine {' or '.join(_TAKERS[name])}, not {kind}")
    extra: dict[str, Any] = {"chat_template_kwargs": chat_template_kwargs}
    if kind == "openai":
        if not base_urls:
            raise UsageError("--engine openai needs --base-url, e.g. --base-url http://127.0.0.1:8000/v1")
        from opengrm.engines.openai import OpenAIEngine

        body = dict(extra_body or {})
        if chat_template_kwargs:
            body["chat_template_kwargs"] = {**body.get("chat_template_kwargs", {}), **chat_template_kwargs}
        limits: dict[str, Any] = {"concurrency": concurrency, "timeout": timeout}
        limits = {name: value for name, value in limits.items() if value is not None}
        return OpenAIEngine(model, list(base_urls), extra_body=body, **limits)
    if kind == "vllm":
        for name in sorted(_NAMED.keys() & (engine_options or {})):
            raise UsageError(f"--engine-option cannot set {name}: use {_NAMED[name]}")
        from opengrm.engines.vllm import VLLMEngine

        if batch is not None:
            extra["max_num_seqs"] = batch
        extra.update(engine_options or {})
        return VLLMEngine(model, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
    if batch is not None:
        extra["max_batch"] = batch
    if kind == "openvino":
        from opengrm.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(model, **extra)
    from opengrm.engines.transformers import TransformersEngine

    return TransformersEngine(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
