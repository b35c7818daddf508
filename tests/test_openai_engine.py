"""The OpenAI-compatible engine against a server that behaves well: what goes out, what comes back, and the wire."""

from __future__ import annotations

import itertools
import json
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from fake_server import DROP, HANG, Body, Fault, chat_completion, reply
from openai_harness import (  # noqa: F401
    SAMPLING,
    echo,
    engine_fixture,
    free_port,
    no_leaks,
    no_waiting,
    requests,
    run,
    serve_fixture,
)

from opengrm.engines.answers import read_answer
from opengrm.engines.base import Request, Sampling
from opengrm.engines.openai import OpenAIEngine
from opengrm.engines.pool import Failed
from opengrm.errors import UsageError
from opengrm.items import Message

# What goes out and what comes back


def test_each_sample_is_a_request_with_its_own_seed(serve: Any, engine: Any) -> None:
    server = serve(text=echo)
    done = run(engine(server, api_key="sk-secret", extra_body={"top_k": 20, "top_p": None}), requests(3, k=4))
    assert {key: c.text for key, c in done.items()} == {
        (i, j): f"seed {100 * i + j} choice 0" for i in range(3) for j in range(4)
    }
    assert all(c.finish == "stop" and c.error is None and c.logprobs is None for c in done.values())
    assert all((c.prompt_tokens, c.completion_tokens) == (7, 4) and c.seconds > 0 for c in done.values())
    body = next(b for b in server.bodies if b["seed"] == 201)
    assert body == {
        "model": "judge",
        "messages": [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Judge this."}],
        "temperature": 0.7, "max_tokens": 32, "top_k": 20, "seed": 201,
    }  # fmt: skip
    assert server.heads[0].startswith("post /v1/chat/completions http/1.1")
    assert "authorization: bearer sk-secret" in server.heads[0]


def test_large_seeds_fit_every_server(serve: Any, engine: Any) -> None:
    server = serve()
    run(engine(server), [Request(0, (Message("user", "x"),), (2**63 - 1, 2**40 + 5), SAMPLING)])
    assert sorted(b["seed"] for b in server.bodies) == [5, 2**31 - 1]


def test_logprobs(serve: Any, engine: Any) -> None:
    done = run(engine(serve(text=echo)), requests(1, k=2, sampling=Sampling(logprobs=True)))
    assert [c.logprobs for c in done.values()] == [(-0.5,) * 4] * 2


def test_ignored_logprobs_are_noticed_once(serve: Any, engine: Any) -> None:
    eng = engine(serve(honours_logprobs=False))
    with pytest.warns(RuntimeWarning, match="gives no log-probabilities") as caught:
        done = run(eng, requests(5, k=2, sampling=Sampling(logprobs=True)))
    assert len(caught) == len(eng.notes) == 1
    assert len(done) == 10
    assert all(c.logprobs is None and c.error is None for c in done.values())


def test_a_server_that_does_not_sample_is_noticed(serve: Any, engine: Any) -> None:
    eng = engine(serve(text=lambda body, index: "always this"))
    with pytest.warns(RuntimeWarning, match="all have the same text at temperature 0.7: does the server sample"):
        run(eng, requests(20, k=3))
    run(eng, requests(20, k=3))
    assert len(eng.notes) == 1
    quiet = engine(serve(text=lambda body, index: "one" if body["seed"] < 100 else echo(body, index)))
    run(quiet, requests(5, k=10))
    run(quiet, requests(5, k=10, sampling=Sampling(temperature=0)))
    run(quiet, requests(50))
    assert quiet.notes == []


def test_use_n_asks_once_for_a_group(serve: Any, engine: Any) -> None:
    server = serve(text=echo)
    done = run(engine(server, use_n=True), requests(3, k=4, sampling=Sampling(logprobs=True)))
    assert len(server.bodies) == 3
    assert {b["n"] for b in server.bodies} == {4}
    assert done[2, 3].text == "seed 200 choice 3"
    assert {c.completion_tokens for c in done.values()} == {4}


def test_use_n_of_a_server_that_ignores_n_is_fanned_out(serve: Any, engine: Any) -> None:
    server = serve(text=echo, honours_n=False)
    eng = engine(server, use_n=True, concurrency=1)
    with pytest.warns(RuntimeWarning, match="gave 1 choice.s. for n=4: it ignores n"):
        done = run(eng, requests(3, k=4))
    assert {key: c.text for key, c in done.items()} == {
        (i, j): f"seed {100 * i + j} choice 0" for i in range(3) for j in range(4)
    }
    assert sum("n" in b for b in server.bodies) == 1  # remembered
    assert len(server.bodies) == 12
    assert server.most_in_flight == 1


def test_greedy_groups_are_not_sent_as_n(serve: Any, engine: Any) -> None:
    server = serve()
    run(engine(server, use_n=True), requests(1, k=3, sampling=Sampling(temperature=0)))
    assert [b.get("n") for b in server.bodies] == [None] * 3


def test_finish_reasons_and_odd_contents(serve: Any, engine: Any) -> None:
    def fault(number: int, body: Body) -> Fault:
        answer = chat_completion(body, echo, n=1, logprobs=False)
        choice = answer["choices"][0]
        seed = body["seed"]
        if seed == 0:
            choice["finish_reason"] = "length"
        elif seed == 1:
            choice["finish_reason"] = "content_filter"
        elif seed == 2:
            choice["message"] = {"role": "assistant", "content": None, "reasoning_content": "hm"}
        elif seed == 3:
            choice["message"]["content"] = "lone \ud800 surrogate"
        elif seed == 4:
            answer["usage"] = {"prompt_tokens": "many", "completion_tokens": -3}
        return reply(200, answer)

    done = run(engine(serve(fault=fault)), requests(1, k=5))
    assert [done[0, j].finish for j in range(5)] == ["length", "error", "stop", "stop", "stop"]
    assert done[0, 1].error == "server: its content filter ended the text"
    assert done[0, 2].text == ""
    assert done[0, 3].text == "lone ? surrogate"
    assert (done[0, 4].prompt_tokens, done[0, 4].completion_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"), (None, "stop"), ("eos", "stop"), ("tool_calls", "stop"), ("function_call", "stop"),
        ("length", "length"), ("abort", "error"), ("error", "error"), (["x"], "error"), ("a\nb" * 100, "error"),
    ],
)  # fmt: skip
def test_a_text_that_the_server_broke_off_is_an_error(reason: Any, finish: str) -> None:
    body = {"choices": [{"message": {"content": "half a judg"}, "finish_reason": reason}]}
    (choice,) = read_answer(json.dumps(body).encode())
    assert choice.finish == finish
    assert (choice.error is not None) == (finish == "error")
    if choice.error is not None:
        assert choice.error.startswith("server: it ended the text with finish_reason ")
        assert "\n" not in choice.error
        assert len(choice.error) < 150


def test_token_counts_of_groups_without_logprobs() -> None:
    body = {
        "choices": [
            {"index": 1, "message": {"content": "b"}, "finish_reason": "stop"},
            {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 9},
    }
    found = read_answer(json.dumps(body).encode(), wanted=2)
    assert [(c.text, c.prompt_tokens, c.completion_tokens) for c in found] == [("a", 5, 4), ("b", 5, 4)]


# Flow


def test_concurrency_is_bounded_and_used(serve: Any, engine: Any) -> None:
    server = serve(latency=0.01)
    done = run(engine(server, concurrency=8), requests(30, k=3))
    assert len(done) == 90
    assert server.most_in_flight == 8
    assert server.opened <= 8  # connections are kept


def test_requests_are_pulled_lazily(serve: Any, engine: Any) -> None:
    pulled = itertools.count()
    seen = 0

    def endless() -> Iterator[Request]:
        for i in itertools.count():
            next(pulled)
            yield Request(i, (Message("user", "x"),), (1, 2), SAMPLING)

    generator = engine(serve(), concurrency=4).generate(endless())
    for seen, _ in enumerate(generator, 1):
        if seen == 200:
            break
    generator.close()
    assert next(pulled) <= seen // 2 + 2 * 4  # what was yielded, and twice the concurrency


def test_closing_the_generator_cancels_what_is_in_flight(serve: Any, engine: Any) -> None:
    server = serve(fault=lambda number, body: HANG if number else None)
    eng = engine(server, concurrency=4)
    generator = eng.generate(requests(10))
    next(generator)
    start = time.monotonic()
    generator.close()
    eng.close()
    assert time.monotonic() - start < 2
    deadline = time.monotonic() + 5
    while server.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.connections == 0


def test_an_error_of_the_request_source_comes_through(serve: Any, engine: Any) -> None:
    def source() -> Iterator[Request]:
        yield from requests(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(engine(serve()), source())


def test_two_runs_share_one_engine(serve: Any, engine: Any) -> None:
    server = serve(text=echo, latency=0.005)
    eng = engine(server, concurrency=6)
    results: list[dict[Any, Any]] = []
    threads = [threading.Thread(target=lambda: results.append(run(eng, requests(20, k=2)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(r) for r in results] == [40, 40, 40]
    assert server.most_in_flight <= 6


def test_an_engine_works_again_after_close_and_without_it(serve: Any) -> None:
    server = serve()
    eng = OpenAIEngine("judge", [server.base_url])
    assert len(run(eng, requests(2))) == 2
    eng.close()
    assert len(run(eng, requests(2))) == 2
    del eng  # no_leaks sees that its thread goes too


def test_no_requests(serve: Any, engine: Any) -> None:
    assert run(engine(serve()), []) == {}


# The wire


@pytest.mark.parametrize("pieces", [1, 2, 7, 1000])
@pytest.mark.parametrize("form", ["length", "chunked", "trailer", "until close", "continue first"])
def test_every_form_of_body_in_any_pieces(serve: Any, engine: Any, form: str, pieces: int) -> None:
    def fault(number: int, body: Body) -> Fault:
        data = json.dumps(chat_completion(body, echo, n=1, logprobs=False)).encode()
        if form in ("chunked", "trailer"):
            chunks = b"".join(b"%x;note=1\r\n%s\r\n" % (len(p), p) for p in (data[:100], data[100:]))
            end = b"0\r\nX-Sum: 1\r\n\r\n" if form == "trailer" else b"0\r\n\r\n"
            return Fault(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + end, pieces=pieces)
        if form == "until close":
            return Fault(b"HTTP/1.0 200 OK\r\n\r\n" + data, close=True, pieces=pieces)
        first = b"HTTP/1.1 100 Continue\r\n\r\n" if form == "continue first" else b""
        return Fault(first + b"HTTP/1.1 200 OK\r\ncontent-length:%d\r\n\r\n%s" % (len(data), data), pieces=pieces)

    done = run(engine(serve(fault=fault), concurrency=1), requests(2))
    assert [done[i, 0].text for i in range(2)] == ["seed 0 choice 0", "seed 100 choice 0"]


def test_percent_signs_in_url_and_key_are_only_text(serve: Any, engine: Any) -> None:
    server = serve()
    done = run(engine(f"http://127.0.0.1:{server.port}/a%20b/%s/v1", api_key="k%d%"), requests(1))
    assert done[0, 0].error is None
    assert server.heads[0].startswith("post /a%20b/%s/v1/chat/completions ")
    assert "bearer k%d%" in server.heads[0]


def test_a_proxy_of_the_environment_is_used(serve: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through httpx; the fake server plays the proxy and sees the whole URL."""
    proxy = serve(text=echo)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    done = run(engine("http://judge.invalid:8000/v1", api_key="sk-secret"), requests(3, k=2))
    assert done[1, 1].text == "seed 101 choice 0"
    assert proxy.heads[0].startswith("post http://judge.invalid:8000/v1/chat/completions ")
    assert "authorization: bearer sk-secret" in proxy.heads[0]
    direct = serve(text=echo)
    run(engine(direct), requests(2))  # loopback goes straight
    assert direct.asked == 2


def test_httpx_trouble_has_the_same_kinds(serve: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(number: int, body: Body) -> Fault | None:
        return {100: HANG, 200: DROP, 300: reply(200, " " * 50_000)}.get(body["seed"])

    proxy = serve(fault=fault)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    eng = engine("http://judge.invalid/v1", timeout=0.5, retries=1, max_response_bytes=40_000, concurrency=1)
    done = run(eng, requests(5))
    assert done[1, 0].error == "timeout: no answer within 0.5 s"
    assert str(done[2, 0].error).startswith("server: ")
    assert str(done[3, 0].error).startswith("server: the answer is larger than 40000 bytes")
    assert [done[i, 0].error for i in (0, 4)] == [None, None]


# Arguments


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("http://h:1/openai/v1/chat/completions", "http://h:1/openai/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_base_urls(url: str, full: str) -> None:
    assert repr(OpenAIEngine("m", [url], api_key="sk-secret")) == f"OpenAIEngine('m', ['{full}'])"


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://h/v1", "http://", "http://h:99999999/v1", "http://h/v1?key=1", "http://a b/v1", "x"],
)
def test_base_urls_that_cannot_work(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected e\.g\. http"):
        OpenAIEngine("m", [url])


def test_secrets_stay_secret() -> None:
    with pytest.raises(UsageError) as caught:
        OpenAIEngine("m", ["http://user:hunter2@h/v1"])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError, match="API key") as caught:
        OpenAIEngine("m", ["http://h/v1"], api_key="sk\r\nX-Evil: 1")
    assert "Evil" not in str(caught.value)
    engine = OpenAIEngine("m", ["http://h/v1"], api_key="sk-secret")
    assert "sk-secret" not in repr(vars(engine))


def test_the_key_comes_from_the_environment(serve: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    server = serve()
    run(engine(server), requests(1))
    assert "authorization: bearer sk-env" in server.heads[0]


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0}, {"timeout": 0.0}, {"retries": -1}, {"extra_body": {"n": 3}},
        {"extra_body": {"stream": True}}, {"max_response_bytes": 0}, {"extra_body": {"seed": 5}},
        {"extra_body": {"max_tokens": "many"}}, {"extra_body": {"x": {1}}},
    ],
)  # fmt: skip
def test_options_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        OpenAIEngine("m", ["http://h/v1"], **options)


def test_no_urls_no_model() -> None:
    for model, urls in [("m", []), ("", ["http://h"]), ("m", "http://h")]:
        with pytest.raises(UsageError):
            OpenAIEngine(model, urls)


def test_failed_is_said_in_one_line() -> None:
    assert str(Failed("server", "x")) == "server: x"


def test_no_warnings_when_all_is_well(serve: Any, engine: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(engine(serve(), use_n=True), requests(3, k=3, sampling=Sampling(logprobs=True)))
