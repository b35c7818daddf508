"""`open_engine`: every option reaches its engine, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from opengrm.engines import open_engine
from opengrm.errors import UsageError

URL = ["http://127.0.0.1:1/v1"]


@pytest.mark.parametrize(
    ("kind", "option", "words"),
    [
        ("vllm", {"base_urls": URL}, "--base-url goes with --engine openai, not vllm"),
        ("transformers", {"extra_body": {"top_k": 1}}, "--extra-body goes with --engine openai, not transformers"),
        ("vllm", {"device": "cpu"}, "--device goes with --engine transformers, not vllm"),
        ("openvino", {"device": "cuda"}, "--device goes with --engine transformers, not openvino"),
        ("openvino", {"dtype": "bfloat16"}, "--dtype goes with --engine transformers or vllm, not openvino"),
        ("openvino", {"trust_remote_code": True}, "--trust-remote-code goes with"),
        ("transformers", {"concurrency": 64}, "--concurrency goes with --engine openai, not transformers"),
        ("vllm", {"timeout": 600.0}, "--timeout goes with --engine openai, not vllm"),
        ("vllm", {"engine_options": {"dtype": "float16"}}, "--engine-option cannot set dtype: use --dtype"),
        ("vllm", {"engine_options": {"model": "m"}}, "--engine-option cannot set model: use --model"),
        (
            "vllm",
            {"engine_options": {"trust_remote_code": True}},
            "--engine-option cannot set trust_remote_code: use --trust-remote-code",
        ),
        ("vllm", {"batch": 8, "engine_options": {"max_num_seqs": 9}}, "--engine-option cannot set max_num_seqs: use"),
        ("openai", {"batch": 8}, "--batch goes with --engine transformers or vllm or openvino, not openai"),
        ("transformers", {"engine_options": {"x": 1}}, "--engine-option goes with --engine vllm, not transformers"),
    ],
)
def test_options_that_an_engine_does_not_take(kind: Any, option: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_engine(kind, "nano", **option)


def built(monkeypatch: pytest.MonkeyPatch, where: str, kind: Any, **options: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def note(model: str, *_: Any, **given: Any) -> None:
        seen.update(given)

    pytest.importorskip(f"opengrm.engines.{kind}", reason="an extra is not installed")
    monkeypatch.setattr(where, note)
    open_engine(kind, "nano", **options)
    return seen


def test_what_reaches_each_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    thinking = {"enable_thinking": False}
    options: dict[str, Any] = {"batch": 8, "chat_template_kwargs": thinking}
    seen = built(monkeypatch, "opengrm.engines.openvino.OpenVINOEngine", "openvino", **options)
    assert seen == {"max_batch": 8, "chat_template_kwargs": thinking}
    more = {"tensor_parallel_size": 2}
    seen = built(monkeypatch, "opengrm.engines.vllm.VLLMEngine", "vllm", **options, engine_options=more)
    assert seen == {
        "dtype": "auto", "trust_remote_code": False, "max_num_seqs": 8, "chat_template_kwargs": thinking, **more
    }  # fmt: skip
    seen = built(monkeypatch, "opengrm.engines.transformers.TransformersEngine", "transformers", **options)
    assert (seen["max_batch"], seen["chat_template_kwargs"]) == (8, thinking)


def test_a_server_gets_the_templates_variables_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "opengrm.engines.openai.OpenAIEngine"
    body = {"top_k": 5, "chat_template_kwargs": {"a": 1, "b": 1}}
    seen = built(monkeypatch, where, "openai", base_urls=URL, extra_body=body, chat_template_kwargs={"b": 2})
    assert seen["extra_body"] == {"top_k": 5, "chat_template_kwargs": {"a": 1, "b": 2}}
    assert body["chat_template_kwargs"] == {"a": 1, "b": 1}


def test_limits_of_a_server_reach_it_where_given(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "opengrm.engines.openai.OpenAIEngine"
    assert built(monkeypatch, where, "openai", base_urls=URL) == {"extra_body": {}}
    seen = built(monkeypatch, where, "openai", base_urls=URL, concurrency=3, timeout=5.0)
    assert seen == {"extra_body": {}, "concurrency": 3, "timeout": 5.0}
