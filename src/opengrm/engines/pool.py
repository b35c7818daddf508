"""Which server gets a request, what is tried again, and when to give up: the policy of the OpenAI-compatible engine.

One request goes to the endpoint with the fewest in flight. What is tried again, after a back-off with jitter or for as
long as `Retry-After` asks: 408, 409, 425, 5xx, broken answers and broken connections. Two things cost a request none
of its tries. A refused connection: the endpoint is set aside, the request waits for one that answers. And a server
that is busy (429, or 503 with `Retry-After`): it is asked for fewer at once, which recovers with every answer, and
only a server that serves nothing for `dead_after` seconds is given up.

401, 403 and 404 mean key or model while an endpoint has answered nothing yet: it is left out. Later a 403 or 404 is
about that one request (a moderated prompt), until there have been many in a row. Another 4xx is the request's fault,
unless the server says how it wants the request written (`refusals.py`).
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from opengrm.engines.http import Answer, Dropped, TimedOut, Transport, Unreachable, Unreadable, server_message
from opengrm.engines.refusals import Form, corrected, is_too_long, room_left
from opengrm.errors import EngineError

RETRY_STATUS = frozenset({408, 409, 425})
BARRED_STATUS = frozenset({401, 403, 404})
BARRED_BOUND = 16
MAX_RETRY_AFTER = 60.0
MAX_BACKOFF = 30.0
MAX_ASIDE = 4.0
TROUBLES_ASIDE = 3
BUSY_BACKOFFS = 4  # a busy server without Retry-After is asked again after at most backoff(4), 4 seconds
EASE = 0.75
LESSONS = 12  # times that one request is written anew


class Failed(Exception):
    """This request has no answer: `kind` and detail make the completion's error."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")


class Misunderstood(Failed):
    """The server does not understand us, or we not it: more requests like this one would fare no better."""


@dataclass(eq=False)
class Endpoint:
    """One base URL and how it has been doing.

    Attributes:
        form: how it wants requests written, as far as it has said so.
        limit: most requests in flight, lowered while it says that it is busy.
        eased_at: when the limit was last lowered; only a request sent later can lower it again.
        worked: it has answered a request.
        barred: 401, 403 and 404 since its last answer.
        troubles: failures in a row, 0 after any answer that shows a working server.
        aside_until: not used before this time (monotonic seconds).
        aside: out of use but for one request at a time that sees whether it is back.
        asides: how often in a row it was set aside; the time doubles with each.
        failing_since: when the present row of failures (or of being busy) began.
        n_ignored, logprobs_ignored: noticed by the engine from its answers.
    """

    base_url: str
    transport: Transport
    form: Form = field(default_factory=Form)
    in_flight: int = 0
    limit: float = math.inf
    eased_at: float = 0.0
    worked: bool = False
    barred: int = 0
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
        notes: where what was noticed about the servers is written.
        retries: tries after the first that a failing request gets.
        start_bound: seconds after which servers that have never been reached are given up.
        dead_after: seconds after which servers that have all been failing are given up.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        notes: list[str],
        *,
        retries: int,
        start_bound: float = 10.0,
        dead_after: float = 120.0,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._open = list(endpoints)  # without those left out
        self._notes = notes
        self._retries = retries
        self._start_bound = start_bound
        self._dead_after = dead_after
        self._reached = False

    async def ask(self, write: Callable[[Form], bytes], most: int | None = None) -> tuple[Endpoint, Answer]:
        """Post a request somewhere until there is an answer of status 200.

        Args:
            write: the request's body in the form that a server wants.
            most: the request's limit of new tokens, if it has one.

        Raises:
            Failed: this request failed: refused, out of tries, or timed out.
            EngineError: no server can be used any more, or none may be used (401, 403, 404).
        """
        tries = refusals = lessons = 0
        last: Endpoint | None = None
        while True:
            endpoint = last = await self._acquire(avoid=last)
            form = replace(endpoint.form, most=most)
            wait, busy, sent = None, False, time.monotonic()
            try:
                answer = await endpoint.transport.post(write(form))
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
                    self._answered(endpoint)
                    return endpoint, answer
                problem = f"HTTP {answer.status}: {server_message(answer) or 'no message'}"
                wait = retry_after(answer.headers.get("retry-after"))
                busy = answer.status == 429 or (answer.status == 503 and wait is not None)
                if busy:
                    self._busy(endpoint, problem, sent)
                elif answer.status >= 500:
                    self._trouble(endpoint, problem)
                elif answer.status in BARRED_STATUS:
                    self._barred(endpoint, answer.status, problem)
                    continue
                else:
                    self._working(endpoint)
                    if answer.status not in RETRY_STATUS:
                        lessons += 1
                        most = self._lesson(endpoint, form, answer, problem, last=lessons > LESSONS)
                        continue
            finally:
                endpoint.in_flight -= 1
                endpoint.probing = False
            refusals, tries = (refusals + 1, tries) if busy else (refusals, tries + 1)
            if tries > self._retries:
                raise Failed("server", f"{problem} ({tries} tries)")
            if wait:
                endpoint.aside_until = max(endpoint.aside_until, time.monotonic() + wait)
            else:
                await asyncio.sleep(backoff(min(refusals, BUSY_BACKOFFS) if busy else tries))

    async def _acquire(self, avoid: Endpoint | None) -> Endpoint:
        while True:
            if not self._open:
                raise EngineError(f"{self.endpoints[-1].base_url}: {self.endpoints[-1].last_trouble}")
            now = time.monotonic()
            usable = [
                e for e in self._open if e.aside_until <= now and e.in_flight < e.limit and not (e.aside and e.probing)
            ]
            if usable:
                chosen = min(usable, key=lambda e: (e is avoid, e.in_flight))
                chosen.in_flight += 1
                chosen.probing = chosen.aside
                return chosen
            soonest = min(e.aside_until for e in self._open) - now
            # With jitter: a server that said when to come back is not to see all that wait for it at that instant.
            await asyncio.sleep(min(max(soonest, 0.05), 0.5) * random.uniform(1.0, 1.5))

    def _answered(self, endpoint: Endpoint) -> None:
        endpoint.worked = True
        endpoint.barred = 0
        endpoint.limit += 1 / endpoint.limit  # one more for each round of answers
        self._working(endpoint)

    def _working(self, endpoint: Endpoint) -> None:
        endpoint.troubles = 0
        endpoint.aside = False
        endpoint.asides = 0
        endpoint.failing_since = None

    def _busy(self, endpoint: Endpoint, what: str, sent: float) -> None:
        """Ask for fewer at once; give up only if it serves nobody: what is in flight may be answered yet."""
        now = time.monotonic()
        endpoint.last_trouble = what
        if endpoint.failing_since is None:
            endpoint.failing_since = now
        if sent >= endpoint.eased_at:
            endpoint.limit = max(1.0, EASE * min(endpoint.limit, endpoint.in_flight))
            endpoint.eased_at = now
        if sum(e.in_flight for e in self._open) <= 1:
            self._give_up_if_dead(now)

    def _trouble(self, endpoint: Endpoint, what: str, *, refused: bool = False) -> None:
        """Note a failure; raise if no endpoint is left that can be hoped for."""
        now = time.monotonic()
        endpoint.last_trouble = what
        endpoint.troubles += 1
        if endpoint.failing_since is None:
            endpoint.failing_since = now
        # A quickly failing server always has the fewest in flight: it would draw every request if it stayed in use.
        better = any(not e.aside for e in self._open if e is not endpoint)
        if refused or (better and endpoint.troubles >= TROUBLES_ASIDE):
            endpoint.aside = True
        if endpoint.aside and endpoint.aside_until <= now:
            endpoint.aside_until = now + min(0.25 * 2**endpoint.asides, MAX_ASIDE)
            endpoint.asides += 1
        self._give_up_if_dead(now)

    def _give_up_if_dead(self, now: float) -> None:
        since = [e.failing_since for e in self._open if e.failing_since is not None]
        if not since or len(since) < len(self._open):
            return
        failing = now - max(since)
        if failing >= (self._dead_after if self._reached else self._start_bound):
            urls = ", ".join(f"{e.base_url} ({e.last_trouble})" for e in self._open)
            if self._reached:
                raise EngineError(f"no server has worked for {failing:.0f} s: {urls}; the run can be resumed")
            raise EngineError(
                f"no server answers at {urls}: is it running, and are host and port of --base-url right?"
            )

    def _barred(self, endpoint: Endpoint, status: int, problem: str) -> None:
        """Leave the endpoint out, or raise: Failed if only this request is meant, EngineError if no other is left."""
        endpoint.barred += 1
        if endpoint.worked and status != 401 and endpoint.barred < BARRED_BOUND:
            self._working(endpoint)
            raise Failed("server", problem)
        endpoint.last_trouble = problem + _advice(status)
        if endpoint in self._open:
            self._open.remove(endpoint)
        if not self._open:
            raise EngineError(f"{endpoint.base_url}: {endpoint.last_trouble}")
        self._note(f"{endpoint.base_url} is left out: {endpoint.last_trouble}")

    def _lesson(self, endpoint: Endpoint, form: Form, answer: Answer, problem: str, *, last: bool) -> int | None:
        """The limit of new tokens for the next attempt at a refused request; raises if nothing better is known."""
        message = server_message(answer, 2000)
        if not last and form != replace(endpoint.form, most=form.most):
            return form.most  # another request has learnt since this one was written
        if not last and (lesson := corrected(endpoint.form, message)):
            endpoint.form, note = lesson
            self._note(f"{endpoint.base_url} {note}")
            return form.most
        if not is_too_long(answer.status, message):
            raise Misunderstood("server", problem)
        room = None if last else room_left(message, form.most)
        if room is None:
            raise Failed("too_long", problem)
        return room

    def _note(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)

    def start_again(self) -> None:
        """Forget old troubles: a new run starts."""
        self._open = list(self.endpoints)
        for endpoint in self.endpoints:
            endpoint.aside_until = 0.0
            endpoint.barred = 0
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


def _advice(status: int) -> str:
    return " (check --base-url and --model)" if status == 404 else " (check the API key: OPENAI_API_KEY)"
