"""What the tests of the OpenAI-compatible engine share: fake servers, engines, requests, and a watch for leaks."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_server import Body, FakeServer

from opengrm.engines import pool
from opengrm.engines.base import Completion, Request, Sampling
from opengrm.engines.openai import OpenAIEngine
from opengrm.items import Message

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=32)


def requests(count: int, k: int = 1, sampling: Sampling = SAMPLING, content: str = "Judge this.") -> Iterator[Request]:
    for i in range(count):
        seeds = tuple(100 * i + j for j in range(k))
        yield Request(i, (Message("system", "You judge."), Message("user", content)), seeds, sampling)


def echo(body: Body, index: int) -> str:
    return f"seed {body['seed']} choice {index}"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "backoff", lambda tries: 0.001 * tries)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Every test ends with the threads it began with."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


@pytest.fixture(name="serve")
def serve_fixture() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(**options: Any) -> FakeServer:
        servers.append(FakeServer(**options).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


@pytest.fixture(name="engine")
def engine_fixture() -> Iterator[Callable[..., OpenAIEngine]]:
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
