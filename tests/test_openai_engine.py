"""The OpenAI-compatible engine against a server that behaves well, badly and not at all."""

from __future__ import annotations

import gc
import itertools
import json
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_server import DROP, HANG, Body, FakeServer, Fault, chat_completion, failure, reply, scores_by_seed

from opengrm.engines import pool
from opengrm.engines.answers import read_answer
from opengrm.engines.base import Completion, Request, Sampling
from opengrm.engines.openai import OpenAIEngine
from opengrm.engines.pool import Failed, backoff, retry_after
from opengrm.errors import EngineError, UsageError
from opengrm.items import Message

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=32)


def requests(count: int, k: int = 1, sampling: Sampling = SAMPLING, content: str = "Judge this.") -> Iterator[Request]:
    for i in range(count):
        seeds = tuple(100 * i + j for j in range(k))
        yield Request(i, (Message("system", "You judge."), Message("user", content)), seeds, sampling)


def echo(body: Body, index: int) -> str:
    return f"seed {body['seed']} choice {index}"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "backoff", lambda tries: 0.001 * tries)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Every test ends with the threads it began with."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(**options: Any) -> FakeServer:
        servers.append(FakeServer(**options).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


@pytest.fixture
def engine() -> Iterator[Callable[..., OpenAIEngine]]:
    engines: list[OpenAIEngine] = []

    def make(*servers: FakeServer | str, **options: Any) -> OpenAIEngine:
        urls = [s if isinstance(s, str) else s.base_url for s in servers]
        engines.append(OpenAIEngine("judge", urls, **options))
        return engines[-1]

    yield make
    for made in engines:
        made.close()


def run(engine: OpenAIEngine, wanted: Any) -> dict[tuple[int, int], Completion]:
    done = {}
    for completion in engine.generate(wanted):
        assert (completion.request, completion.index) not in done
        done[completion.request, completion.index] = completion
    return done


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


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
    del eng  # _no_leaks sees that its thread goes too


def test_no_requests(serve: Any, engine: Any) -> None:
    assert run(engine(serve()), []) == {}


# Trouble


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
