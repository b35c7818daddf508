"""The OpenAI-compatible engine against servers that are busy, broken, unwilling or not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_server import DROP, HANG, Body, FakeServer, Fault, chat_completion, failure, reply, scores_by_seed
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

from opengrm.engines import pool
from opengrm.engines.base import Completion, Sampling
from opengrm.engines.pool import backoff, retry_after
from opengrm.errors import EngineError


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_passing_trouble_is_tried_again(serve: Any, engine: Any, status: int) -> None:
    server = serve(fault=lambda number, body: failure(status, "busy") if number < 3 else None)
    done = run(engine(server), requests(1))
    assert done[0, 0].error is None
    assert server.asked == 4


def test_lasting_trouble_becomes_the_samples_error(serve: Any, engine: Any) -> None:
    server = serve(fault=lambda number, body: failure(500, "out\nof  memory") if body["seed"] == 100 else None)
    done = run(engine(server, retries=2), requests(3))
    assert done[1, 0] == Completion(
        1, 0, "", "error", "server: HTTP 500: out of memory (3 tries)", seconds=done[1, 0].seconds
    )
    assert [done[i, 0].error for i in (0, 2)] == [None, None]
    assert server.asked == 5


@pytest.mark.parametrize("value", ["0.3", "date"])
def test_retry_after_is_honoured(serve: Any, engine: Any, value: str) -> None:
    from email.utils import formatdate

    times: list[float] = []

    def fault(number: int, body: Body) -> Fault | None:
        times.append(time.monotonic())
        wait = formatdate(time.time() + 2, usegmt=True) if value == "date" else value
        return failure(429, "slow down", Retry_After=wait) if number == 0 else None

    done = run(engine(serve(fault=fault)), requests(1))
    assert done[0, 0].error is None
    assert times[1] - times[0] >= (0.9 if value == "date" else 0.3)  # a date has whole seconds


def _allowing(per_second: float, burst: int, status: int = 429, **headers: str) -> Callable[[int, Body], Fault | None]:
    """A server that answers so many requests a second, and refuses the others."""
    tokens, last = float(burst), time.monotonic()

    def fault(number: int, body: Body) -> Fault | None:
        nonlocal tokens, last
        now = time.monotonic()
        tokens, last = min(burst, tokens + (now - last) * per_second), now
        if tokens < 1:
            return failure(status, "rate limit reached", **headers)
        tokens -= 1
        return None

    return fault


@pytest.mark.parametrize(
    ("status", "headers"),
    [(429, {}), (429, {"Retry_After": "0.2"}), (429, {"Retry_After": "0"}), (503, {"Retry_After": "0.2"})],
)
def test_a_rate_limit_loses_nothing(serve: Any, engine: Any, status: int, headers: dict[str, str]) -> None:
    server = serve(fault=_allowing(40, 5, status, **headers))
    done = run(engine(server, concurrency=64, retries=1), requests(80))
    assert [c.error for c in done.values()] == [None] * 80


def test_a_busy_server_is_asked_for_fewer_at_once_until_it_has_recovered(serve: Any, engine: Any) -> None:
    """Four slots, 429 for whatever else comes, then forty."""
    slots = 4
    server = serve(latency=0.02)
    refused = []

    def fault(number: int, body: Body) -> Fault | None:
        refused.append(server.in_flight > slots)
        return Fault(failure(429, "no slot").raw, delay=-server.latency) if refused[-1] else None

    server.fault = fault
    eng = engine(server, concurrency=32)
    assert all(c.error is None for c in run(eng, requests(500)).values())
    assert sum(refused) < 250
    slots, server.most_in_flight = 40, 0
    assert all(c.error is None for c in run(eng, requests(1500)).values())
    assert server.most_in_flight > 20


def test_a_server_that_is_only_ever_busy_is_given_up(serve: Any, engine: Any) -> None:
    server = serve(fault=lambda number, body: failure(429, "quota used up") if number >= 5 else None)
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"no server has worked for .*HTTP 429: quota used up.*can be resumed"):
        run(engine(server, dead_after=0.5), requests(100))
    assert time.monotonic() - start < 5


def test_answers_in_the_making_keep_a_busy_server_in_use(serve: Any, engine: Any) -> None:
    """Four slots with long answers and 429 for the rest: neither lost, nor taken for a server that does not work."""
    server = serve()

    def fault(number: int, body: Body) -> Fault | None:
        if server.in_flight > 4:
            return failure(429, "no slot")
        answer = reply(200, chat_completion(body, echo, n=1, logprobs=False))
        return Fault(answer.raw, delay=0.6)

    server.fault = fault
    done = run(engine(server, dead_after=0.3, retries=0), requests(10))
    assert [c.error for c in done.values()] == [None] * 10


def test_waiting_requests_do_not_come_back_at_the_same_instant(
    serve: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "EASE", 1.0)
    times: list[float] = []

    def fault(number: int, body: Body) -> Fault | None:
        times.append(time.monotonic())
        return failure(429, "slow down", Retry_After="1") if number < 40 else None

    run(engine(serve(fault=fault), concurrency=40), requests(40))
    back = sorted(times[40:])
    assert back[0] - times[0] >= 1
    assert back[-1] - back[0] > 0.1


def test_retry_after_values() -> None:
    assert retry_after("7") == 7
    assert retry_after("-1") == 0
    assert retry_after("100000") == 60
    assert retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now=784111777 - 9) == 9
    assert retry_after("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    for value in (None, "soon", "", "nan", "Sun, 99 Nov 1994"):
        assert retry_after(value) is None


def test_backoff_doubles_with_jitter() -> None:
    for tries, high in [(1, 0.5), (2, 1.0), (3, 2.0), (20, 30.0)]:
        assert all(high / 2 <= backoff(tries) <= high for _ in range(50))


def test_refused_requests_are_not_tried_again(serve: Any, engine: Any) -> None:
    def fault(number: int, body: Body) -> Fault | None:
        return failure(422, "max_tokens must be positive") if body["seed"] == 100 else None

    server = serve(fault=fault)
    done = run(engine(server), requests(2))
    assert done[1, 0].error == "server: HTTP 422: max_tokens must be positive"
    assert server.asked == 2


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 2048 tokens. However, you requested 4000 tokens.",
        "the request exceeds the available context size, try increasing it",
        "The input (9000 tokens) is longer than the model's context length (2048 tokens).",
        "Input is too long: 9000 tokens",
    ],
)
def test_too_long_prompts_are_recognised(serve: Any, engine: Any, message: str) -> None:
    server = serve(fault=lambda number, body: failure(400, message))
    done = run(engine(server), requests(20))
    assert all(c.error is not None and c.error.startswith("too_long: HTTP 400: ") for c in done.values())
    assert len(done) == 20


@pytest.mark.parametrize(
    ("message", "limits"),
    [
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 1000. This model's maximum context length is 4096 "
            "tokens and your request has 3500 input tokens (1000 > 4096 - 3500).",
            [1000, 596],
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 4500 tokens (3500 in the "
            "messages, 1000 in the completion). Please reduce the length of the messages or completion.",
            [1000, 596],
        ),
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total "
            "of 4500 tokens: 3500 tokens from the input messages and 1000 tokens for the completion.",
            [1000, 596],
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 1000 output tokens and your "
            "prompt contains at least 3097 input tokens, for a total of at least 4097 tokens. Please reduce the "
            "length of the input prompt or the number of requested output tokens.",
            [1000, 500],
        ),
    ],
)
def test_a_limit_that_does_not_fit_behind_the_prompt_is_lowered(
    serve: Any, engine: Any, message: str, limits: list[int]
) -> None:
    server = serve(fault=lambda number, body: failure(400, message) if body["max_tokens"] > 596 else None)
    done = run(engine(server), requests(1, sampling=Sampling(max_tokens=1000)))
    assert done[0, 0].error is None
    assert [b["max_tokens"] for b in server.bodies] == limits


@pytest.mark.parametrize(
    ("prompt", "asked"), [("4200 input tokens", 1), ("4096 input tokens", 1), ("at least 3097 input tokens", 6)]
)
def test_a_prompt_without_room_is_too_long(serve: Any, engine: Any, prompt: str, asked: int) -> None:
    message = f"This model's maximum context length is 4096 tokens and your request has {prompt}"
    server = serve(fault=lambda number, body: failure(400, message))
    done = run(engine(server), requests(1, sampling=Sampling(max_tokens=1000)))
    assert str(done[0, 0].error).startswith("too_long: HTTP 400: ")
    assert server.asked == asked


def test_a_server_that_names_ever_less_room_is_not_asked_for_ever(serve: Any, engine: Any) -> None:
    def fault(number: int, body: Body) -> Fault:
        room = body["max_tokens"] - 1
        return failure(400, f"maximum context length is {3000 + room} tokens, 3000 input tokens")

    server = serve(fault=fault)
    done = run(engine(server), requests(1, sampling=Sampling(max_tokens=1000)))
    assert str(done[0, 0].error).startswith("too_long")
    assert server.asked <= 13


def _newer_openai(number: int, body: Body) -> Fault | None:
    text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    return failure(400, text) if "max_tokens" in body else None


def _mistral(number: int, body: Body) -> Fault | None:
    detail = [
        {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 5}
    ]
    return reply(422, {"object": "error", "message": {"detail": detail}}) if "seed" in body else None


def test_a_server_that_wants_max_completion_tokens_gets_them(serve: Any, engine: Any) -> None:
    server = serve(fault=_newer_openai)
    eng = engine(server, concurrency=4)
    with pytest.warns(RuntimeWarning, match="does not take max_tokens: max_completion_tokens is sent") as caught:
        done = run(eng, requests(10, k=2))
    assert len(caught) == 1
    assert all(c.error is None for c in done.values())
    assert server.asked <= 20 + 4  # learnt once
    assert {k: v for k, v in server.bodies[-1].items() if "max" in k} == {"max_completion_tokens": 32}


def test_a_server_that_knows_no_seed_is_sent_none(serve: Any, engine: Any) -> None:
    server = serve(fault=lambda number, body: _mistral(number, body) or _newer_openai(number, body))
    eng = engine(server, concurrency=1)
    with pytest.warns(RuntimeWarning, match="does not take"):
        done = run(eng, requests(5))
    assert all(c.error is None for c in done.values())
    assert server.asked == 7
    assert "seed" not in server.bodies[-1]
    assert [note.partition(" does ")[2] for note in eng.notes] == [
        "not take a seed: its samples cannot be repeated", "not take max_tokens: max_completion_tokens is sent"
    ]  # fmt: skip


def test_seed_and_limit_can_be_dropped(serve: Any, engine: Any) -> None:
    server = serve()
    extra = {"seed": None, "max_tokens": None, "max_completion_tokens": 9}
    run(engine(server, extra_body=extra), requests(1))
    assert "seed" not in server.bodies[0]
    assert {k: v for k, v in server.bodies[0].items() if "max" in k} == {"max_completion_tokens": 9}


def test_what_changes_the_text_is_in_the_models_identity(serve: Any, engine: Any) -> None:
    server = serve()

    def name(**options: Any) -> str:
        return str(engine(server, **options).model)

    assert name() == name(extra_body={}, concurrency=3) == "judge"
    names = [
        name(use_n=True),
        name(extra_body={"top_k": 20}),
        name(extra_body={"top_k": 5}),
        name(extra_body={"seed": None}),
    ]
    assert len({*names, "judge"}) == 5
    assert all(n.startswith("judge+") for n in names)
    assert name(extra_body={"a": 1, "b": 2}) == name(extra_body={"b": 2, "a": 1})
    run(engine(server, use_n=True), requests(1))
    assert server.bodies[0]["model"] == "judge"


def test_a_hanging_request_times_out_alone(serve: Any, engine: Any) -> None:
    server = serve(fault=lambda number, body: HANG if body["seed"] == 100 else None)
    done = run(engine(server, timeout=0.3), requests(4))
    assert done[1, 0].error == "timeout: no answer within 0.3 s"
    assert sum(c.error is None for c in done.values()) == 3


def test_a_dripping_answer_does_not_outlast_the_timeout(serve: Any, engine: Any) -> None:
    slow = Fault(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 5000, pieces=2000, delay=0.001)
    server = serve(fault=lambda number, body: slow if body["seed"] == 100 else None)
    done = run(engine(server, timeout=0.3), requests(2))
    assert done[1, 0].error == "timeout: no answer within 0.3 s"


def test_dropped_connections_are_tried_again(serve: Any, engine: Any) -> None:
    server = serve(fault=lambda number, body: DROP if number % 3 == 0 else None)
    done = run(engine(server, concurrency=2, retries=10), requests(20))
    assert all(c.error is None for c in done.values())


def test_a_server_that_closes_idle_connections_costs_no_try(serve: Any, engine: Any) -> None:
    server = serve()
    eng = engine(server, retries=0, concurrency=1)
    eng_done = run(eng, requests(2))
    closing = chat_completion({"seed": 1, "messages": [{"content": ""}]}, scores_by_seed, n=1, logprobs=False)
    raw = reply(200, closing).raw
    server.fault = lambda number, body: Fault(raw, close=True)
    eng_done = run(eng, requests(6))
    assert all(c.error is None for c in eng_done.values())


GARBAGE: dict[str, Fault] = {
    "html": reply(200, "<html><title>Login</title><p>Please\nlog in</p></html>"),
    "empty": reply(200, ""),
    "broken": reply(200, '{"choices": [{"mess'),
    "null": reply(200, "null"),
    "number": reply(200, "7"),
    "no choices": reply(200, {"id": 1}),
    "empty choices": reply(200, {"choices": []}),
    "choices of strings": reply(200, {"choices": ["hello"]}),
    "no message": reply(200, {"choices": [{"text": "hello"}]}),
    "content a list": reply(200, {"choices": [{"message": {"content": ["x"]}}]}),
    "content a number": reply(200, {"choices": [{"message": {"content": 5}}]}),
    "bad utf-8": reply(200, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'),
    "deep": reply(200, "[" * 100_000),
    "error in a 200": reply(200, {"error": {"message": "model crashed"}}),
    "huge": reply(200, " " * 50_000),
    "redirect": reply(302, "", location="http://127.0.0.1:1/"),
    "not http": Fault(b"SSH-2.0-OpenSSH_9.2\r\n", close=True),
    "bad length": Fault(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}", close=True),
    "negative length": Fault(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}", close=True),
    "bad chunk": Fault(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", close=True),
    "short body": Fault(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", close=True),
    "endless head": Fault(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000, close=True),
    "zero status": Fault(b"HTTP/1.1 000 OK\r\n\r\n", close=True),
    "no header colon": Fault(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\nnonsense", close=True),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_the_samples_error(serve: Any, engine: Any, name: str) -> None:
    server = serve(fault=lambda number, body: GARBAGE[name] if body["seed"] == 300 else None)
    done = run(engine(server, retries=1, max_response_bytes=40_000, concurrency=2), requests(6))
    failed = [key for key, c in done.items() if c.error]
    assert failed == [(3, 0)]
    error = done[3, 0].error
    assert error is not None
    assert error.startswith("server: ")
    assert "\n" not in error
    assert len(error) < 300


def test_only_garbage_stops_the_run(serve: Any, engine: Any) -> None:
    server = serve(fault=lambda number, body: GARBAGE["html"])
    with pytest.raises(EngineError, match=r"the first 16 requests to .* all failed; the last: .*Login Please log in"):
        run(engine(server), requests(100))
    assert server.asked <= 16 + 64 * 2


def test_a_few_requests_of_garbage_are_answered(serve: Any, engine: Any) -> None:
    done = run(engine(serve(fault=lambda number, body: GARBAGE["html"])), requests(15))
    assert len(done) == 15


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "bad key.*check the API key"), (403, "check the API key"), (404, "check --base-url and --model")],
)
def test_refusals_of_the_whole_run_stop_it(serve: Any, engine: Any, status: int, words: str) -> None:
    server = serve(fault=lambda number, body: failure(status, "bad key"))
    with pytest.raises(EngineError, match=f"HTTP {status}: .*{words}") as caught:
        run(engine(server, api_key="sk-secret"), requests(100))
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 404])
def test_a_refused_prompt_is_that_samples_error_once_the_server_has_worked(
    serve: Any, engine: Any, status: int
) -> None:
    server = serve(fault=lambda number, body: failure(status, "flagged") if body["seed"] == 500 else None)
    done = run(engine(server, concurrency=1), requests(10))
    assert {key: c.error for key, c in done.items() if c.error} == {(5, 0): f"server: HTTP {status}: flagged"}


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_lost_key_or_model_stops_the_run(serve: Any, engine: Any, status: int) -> None:
    server = serve(fault=lambda number, body: failure(status, "no such thing") if number >= 5 else None)
    with pytest.raises(EngineError, match=f"HTTP {status}: no such thing"):
        run(engine(server, concurrency=1), requests(100))


def test_a_url_that_refuses_everything_is_left_out(serve: Any, engine: Any) -> None:
    good, bad = serve(latency=0.002), serve(fault=lambda number, body: failure(404, "no such model"))
    eng = engine(bad, good, concurrency=4)
    with pytest.warns(RuntimeWarning, match="is left out: HTTP 404: no such model .check --base-url"):
        done = run(eng, requests(50))
    assert all(c.error is None for c in done.values())
    assert bad.asked <= 4


def test_a_busy_start_is_not_garbage(serve: Any, engine: Any) -> None:
    """The first good answer comes after many a 429 and 503 that ran out of tries."""
    server = serve()

    def fault(number: int, body: Body) -> Fault:
        if number % 40:
            return failure(503, "overloaded")
        return Fault(reply(200, chat_completion(body, echo, n=1, logprobs=False)).raw, delay=0.5)

    server.fault = fault
    done = run(engine(server, retries=0, concurrency=40), requests(80))
    assert sum(c.error is None for c in done.values()) == 2
    assert len(done) == 80


def test_a_dead_server_stops_the_run_soon(engine: Any) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    start = time.monotonic()
    with pytest.raises(EngineError, match=f"no server answers at {url} .connection refused.: is it running") as caught:
        run(engine(url, start_bound=0.5), requests(100))
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)


def test_an_unknown_host_stops_the_run(engine: Any) -> None:
    with pytest.raises(EngineError, match=r"no server answers at http://nowhere\.invalid:80"):
        run(engine("http://nowhere.invalid:80", start_bound=0.3), requests(1))


def test_a_server_that_is_starting_is_waited_for(engine: Any) -> None:
    port = free_port()
    server = FakeServer(port=port)
    timer = threading.Timer(0.4, server.__enter__)
    timer.start()
    try:
        done = run(engine(f"http://127.0.0.1:{port}"), requests(10))
    finally:
        timer.join()
        server.__exit__()
    assert all(c.error is None for c in done.values())


def test_a_server_that_dies_and_comes_back_loses_nothing(engine: Any) -> None:
    first = FakeServer(latency=0.01).__enter__()
    second = FakeServer(port=first.port, latency=0.001)
    generator = engine(first, concurrency=4).generate(requests(100))
    done = [next(generator) for _ in range(10)]
    first.__exit__()
    timer = threading.Timer(0.5, second.__enter__)
    timer.start()
    try:
        done += list(generator)
    finally:
        timer.join()
        second.__exit__()
    assert len(done) == 100
    assert all(c.error is None for c in done)


def test_a_server_that_stays_dead_stops_the_run(engine: Any) -> None:
    server = FakeServer().__enter__()
    generator = engine(server, concurrency=2, dead_after=0.5).generate(requests(1000))
    next(generator)
    server.__exit__()
    with pytest.raises(EngineError, match=r"no server has worked for .*connection refused.*can be resumed"):
        list(generator)


def test_requests_are_spread_and_a_dead_url_is_left_out(serve: Any, engine: Any) -> None:
    servers = [serve(latency=0.01), serve(latency=0.01)]
    dead = f"http://127.0.0.1:{free_port()}/v1"
    done = run(engine(*servers, dead, concurrency=8), requests(80))
    assert all(c.error is None for c in done.values())
    assert [s.asked > 25 for s in servers] == [True, True]


def test_a_quickly_failing_url_does_not_draw_the_requests(serve: Any, engine: Any) -> None:
    good = serve(latency=0.01)
    bad = serve(fault=lambda number, body: failure(500, "broken"))
    done = run(engine(good, bad, concurrency=8), requests(200))
    assert all(c.error is None for c in done.values())
    assert bad.asked < 40


def test_a_url_set_aside_is_used_again(serve: Any, engine: Any) -> None:
    good, other = serve(latency=0.02), serve(latency=0.02, fault=lambda n, body: failure(503, "x") if n < 4 else None)
    run(engine(good, other, concurrency=4), requests(200))
    assert other.asked > 20
