"""A small OpenAI-compatible server on the loopback interface, for tests and for measuring the client.

    with FakeServer(latency=0.05) as server:
        engine = OpenAIEngine("fake", [server.base_url])

As a program it prints its base URL and serves until killed:  python tests/fake_server.py --latency 0.05
It answers every chat with scores drawn from the request's seed, one for each response that the prompt shows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What to do instead of answering: send these bytes (None: nothing, ever), then perhaps close."""

    raw: bytes | None = None
    close: bool = False
    pieces: int = 1
    delay: float = 0.0


HANG = Fault()
DROP = Fault(b"", close=True)


def reply(status: int, body: str | bytes | dict[str, Any], **headers: str) -> Fault:
    """An HTTP answer; header names with underscores for dashes."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    lines = {"content-type": "application/json", "content-length": str(len(data))}
    lines |= {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    return Fault(head.encode() + data)


def failure(status: int, message: str, **headers: str) -> Fault:
    """An error as OpenAI-compatible servers give it."""
    return reply(status, {"error": {"message": message, "type": "x", "code": status}}, **headers)


def scores_by_seed(body: Body, index: int) -> str:
    """A well-formed judgment, fixed by the seed and the choice's index."""
    n = body["messages"][-1]["content"].count("[The Begin of Response ") or 1
    draw = random.Random(body.get("seed", 0) * 1000 + index)
    scores = ", ".join(str(draw.randint(1, 10)) for _ in range(n))
    return f"Specific Criteria: accuracy (60%), clarity (40%).\nAnalysis: one by one.\nScores: \\boxed{{{scores}}}"


def chat_completion(body: Body, text: Callable[[Body, int], str], *, n: int, logprobs: bool) -> dict[str, Any]:
    """The answer of a well-behaved server: one token a word."""
    choices = []
    for index in range(n):
        words = text(body, index).split(" ")
        content = [{"token": w, "logprob": -0.5, "top_logprobs": []} for w in words] if logprobs else None
        choices.append(
            {
                "index": index,
                "message": {"role": "assistant", "content": " ".join(words)},
                "logprobs": {"content": content} if logprobs else None,
                "finish_reason": "stop",
            }
        )
    written = sum(len(c["message"]["content"].split(" ")) for c in choices)
    usage = {"prompt_tokens": 7, "completion_tokens": written, "total_tokens": 7 + written}
    return {"id": "x", "object": "chat.completion", "model": body.get("model"), "choices": choices, "usage": usage}


@dataclass
class FakeServer:
    """Serves in a thread of its own between `__enter__` and `__exit__`.

    Attributes:
        latency: seconds from a request to its answer.
        honours_n, honours_logprobs: whether these are understood or silently ignored.
        fault: asked for every request (its number from 0, its body): None to answer as usual.
        text: the text of a choice.
        keep: keep the bodies of requests in `bodies`, and their header blocks in `heads`.
        in_flight, most_in_flight, connections, opened, asked: what is going on, for assertions.
    """

    latency: float = 0.0
    honours_n: bool = True
    honours_logprobs: bool = True
    fault: Callable[[int, Body], Fault | None] | None = None
    text: Callable[[Body, int], str] = scores_by_seed
    keep: bool = True
    port: int = 0
    bodies: list[Body] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    connections: int = 0
    opened: int = 0
    asked: int = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeServer:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._main, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _main(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        open_connections: set[_Connection] = set()
        self._loop.run_until_complete(self._listen(open_connections))
        started.set()
        self._loop.run_forever()
        self._server.close()
        for connection in open_connections:
            connection.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _listen(self, open_connections: set[_Connection]) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self, open_connections), "127.0.0.1", self.port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def answer(self, number: int, body: Body) -> Fault:
        """What goes back for one request."""
        fault = self.fault(number, body) if self.fault else None
        if fault is not None:
            return fault
        n = body.get("n", 1) if self.honours_n else 1
        logprobs = bool(body.get("logprobs")) and self.honours_logprobs
        return reply(200, chat_completion(body, self.text, n=n, logprobs=logprobs))


class _Connection(asyncio.Protocol):
    def __init__(self, server: FakeServer, open_connections: set[_Connection]) -> None:
        self.server, self.open = server, open_connections
        self.buffer = b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.open.add(self)
        self.server.connections += 1
        self.server.opened += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self)
        self.server.connections -= 1
        self._done()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self.buffer) < end + 4 + length:
            return
        raw, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
        server, loop = self.server, asyncio.get_running_loop()
        body = json.loads(raw)
        if server.keep:
            server.heads.append(head.decode())
            server.bodies.append(body)
        number, server.asked = server.asked, server.asked + 1
        self.busy = True
        server.in_flight += 1
        server.most_in_flight = max(server.most_in_flight, server.in_flight)
        fault = server.answer(number, body)
        if fault.raw is None:
            return
        if fault.pieces > 1:
            loop.create_task(self._drip(fault))
        elif server.latency + fault.delay > 0:
            loop.call_later(server.latency + fault.delay, self._send, fault)
        else:
            self._send(fault)

    def _send(self, fault: Fault) -> None:
        self._done()
        if fault.raw:
            self.transport.write(fault.raw)
        if fault.close:
            self.transport.close()

    async def _drip(self, fault: Fault) -> None:
        assert fault.raw is not None
        size = -(-len(fault.raw) // fault.pieces)
        for at in range(0, len(fault.raw), size):
            self.transport.write(fault.raw[at : at + size])
            await asyncio.sleep(fault.delay)
        self._send(Fault(b"", close=fault.close))

    def _done(self) -> None:
        if self.busy:
            self.busy = False
            self.server.in_flight -= 1


def interrupted(words: list[str], server: FakeServer, asked: int = 12) -> tuple[int, str]:
    """Run this command, press Ctrl-C once the server was asked so often; its exit code and standard error."""
    # A shell's background job ignores Ctrl-C, and so would its children.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heeding)
    while server.asked < asked and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


def main() -> None:
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible server for measuring clients.")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds from a request to its answer")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with FakeServer(latency=options.latency, port=options.port, keep=False) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
