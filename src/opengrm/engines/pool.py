"""Which server gets a request, what is tried again, and when to give up: the policy of the OpenAI-compatible engine.

One request goes to the endpoint with the fewest in flight. What is tried again, after a back-off with jitter or for as
long as `Retry-After` asks: 408, 409, 425, 429, 5xx, broken answers and broken connections. A refused connection costs
the request none of its tries: the endpoint is set aside, the request waits for one that answers. Other 4xx are the
request's fault (or the whole run's: 401, 403, 404) and are not tried again.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from opengrm.engines.http import Answer, Dropped, TimedOut, Transport, Unreachable, Unreadable, server_message
from opengrm.errors import EngineError

RETRY_STATUS = frozenset({408, 409, 425, 429})
FATAL_STATUS = frozenset({401, 403, 404})
MAX_RETRY_AFTER = 60.0
MAX_BACKOFF = 30.0
MAX_ASIDE = 4.0
TROUBLES_ASIDE = 3


class Failed(Exception):
    """This request has no answer: `kind` and detail make the completion's error."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")


@dataclass(eq=False)
class Endpoint:
    """One base URL and how it has been doing.

    Attributes:
        troubles: failures in a row, 0 after any answer that shows a working server.
        aside_until: not used before this time (monotonic seconds).
        aside: out of use but for one request at a time that sees whether it is back.
        asides: how often in a row it was set aside; the time doubles with each.
        failing_since: when the present row of failures began.
        n_ignored, logprobs_ignored: noticed by the engine from its answers.
    """

    base_url: str
    transport: Transport
    in_flight: int = 0
    troubles: int = 0
    aside_until: float = 0.0
    aside: bool = False
    asides: int = 0
    failing_since: float | None = None
    probing: bool = False
    n_ignored: bool = False
    logprobs_ignored: bool = False
    last_trouble: str = field(default="", repr=False)


class Pool:
    """The endpoints of one model.

    Args:
        endpoints: at least one.
        retries: tries after the first that a failing request gets.
        start_bound: seconds after which servers that have never been reached are given up.
        dead_after: seconds after which servers that have all been failing are given up.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], *, retries: int, start_bound: float = 10.0, dead_after: float = 120.0
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._retries = retries
        self._start_bound = start_bound
        self._dead_after = dead_after
        self._reached = False

    async def ask(self, body: bytes) -> tuple[Endpoint, Answer]:
        """Post the body somewhere until there is an answer of status 200.

        Raises:
            Failed: this request failed: refused, out of tries, or timed out.
            EngineError: no server can be used any more, or none may be used (401, 403, 404).
        """
        tries, last = 0, None
        while True:
            endpoint = last = await self._acquire(avoid=last)
            wait: float | None = None
            try:
                answer = await endpoint.transport.post(body)
            except Unreachable as error:
                self._trouble(endpoint, str(error), refused=True)
                continue
            except TimedOut as error:
                self._trouble(endpoint, str(error))
                raise Failed("timeout", str(error)) from None
            except (Dropped, Unreadable) as error:
                self._trouble(endpoint, str(error))
                problem = str(error)
            else:
                self._reached = True
                if answer.status == 200:
                    self._working(endpoint)
                    return endpoint, answer
                problem = f"HTTP {answer.status}: {server_message(answer) or 'no message'}"
                if answer.status in FATAL_STATUS:
                    raise EngineError(f"{endpoint.base_url}: {problem}{_advice(answer.status)}")
                if answer.status < 500:
                    self._working(endpoint)
                else:
                    self._trouble(endpoint, problem)
                if answer.status < 500 and answer.status not in RETRY_STATUS:
                    raise Failed("too_long" if _is_too_long(answer.status, problem) else "server", problem)
                wait = retry_after(answer.headers.get("retry-after"))
            finally:
                endpoint.in_flight -= 1
                endpoint.probing = False
            tries += 1
            if tries > self._retries:
                raise Failed("server", f"{problem} ({tries} tries)")
            if wait is not None:
                endpoint.aside_until = max(endpoint.aside_until, time.monotonic() + wait)
            else:
                await asyncio.sleep(backoff(tries))

    async def _acquire(self, avoid: Endpoint | None) -> Endpoint:
        while True:
            now = time.monotonic()
            usable = [e for e in self.endpoints if e.aside_until <= now and not (e.aside and e.probing)]
            if usable:
                chosen = min(usable, key=lambda e: (e is avoid, e.in_flight))
                chosen.in_flight += 1
                chosen.probing = chosen.aside
                return chosen
            soonest = min(e.aside_until for e in self.endpoints) - now
            await asyncio.sleep(min(max(soonest, 0.05), 0.5))

    def _working(self, endpoint: Endpoint) -> None:
        endpoint.troubles = 0
        endpoint.aside = False
        endpoint.asides = 0
        endpoint.failing_since = None

    def _trouble(self, endpoint: Endpoint, what: str, *, refused: bool = False) -> None:
        """Note a failure; raise if no endpoint is left that can be hoped for."""
        now = time.monotonic()
        endpoint.last_trouble = what
        endpoint.troubles += 1
        if endpoint.failing_since is None:
            endpoint.failing_since = now
        # A quickly failing server always has the fewest in flight: it would draw every request if it stayed in use.
        better = any(not e.aside for e in self.endpoints if e is not endpoint)
        if refused or (better and endpoint.troubles >= TROUBLES_ASIDE):
            endpoint.aside = True
        if endpoint.aside and endpoint.aside_until <= now:
            endpoint.aside_until = now + min(0.25 * 2**endpoint.asides, MAX_ASIDE)
            endpoint.asides += 1
        since = [e.failing_since for e in self.endpoints if e.failing_since is not None]
        if len(since) < len(self.endpoints):
            return
        failing = now - max(since)
        if failing >= (self._dead_after if self._reached else self._start_bound):
            urls = ", ".join(f"{e.base_url} ({e.last_trouble})" for e in self.endpoints)
            if self._reached:
                raise EngineError(f"no server has worked for {failing:.0f} s: {urls}; the run can be resumed")
            raise EngineError(
                f"no server answers at {urls}: is it running, and are host and port of --base-url right?"
            )

    def start_again(self) -> None:
        """Forget old troubles: a new run starts."""
        for endpoint in self.endpoints:
            endpoint.aside_until = 0.0
            self._working(endpoint)

    async def close(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.transport.close()


def backoff(tries: int) -> float:
    """Seconds to wait after that many failed tries: 0.5, 1, 2, ... up to MAX_BACKOFF, each times 0.5 to 1."""
    return float(min(0.5 * 2 ** (tries - 1), MAX_BACKOFF)) * random.uniform(0.5, 1.0)


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds that a `Retry-After` header (RFC 9110 10.2.3: seconds or a date) asks for, at most MAX_RETRY_AFTER.

    Args:
        value: the header, or None.
        now: the present time (Unix seconds).

    Returns:
        None where there is no header or it cannot be read.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value).timestamp()
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = when - (time.time() if now is None else now)
    if seconds != seconds:
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


_TOO_LONG = (
    "context length", "context_length", "context size", "context window", "context_size", "too long", "max_model_len",
    "maximum model length", "longer than the maximum", "maximum input length", "max_position_embeddings",
)  # fmt: skip


def _is_too_long(status: int, message: str) -> bool:
    return status in (400, 413, 422) and any(phrase in message.lower() for phrase in _TOO_LONG)


def _advice(status: int) -> str:
    return " (check --base-url and --model)" if status == 404 else " (check the API key: OPENAI_API_KEY)"
