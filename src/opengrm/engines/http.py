"""HTTP/1.1 POST for many small JSON requests: keep-alive connections over asyncio, one request at a time on each.

Why not httpx for everything: with 64 requests in flight httpx 0.28 needs about 7 ms of processor time for each request
(119 requests a second on the two-core build machine, where a server with 50 ms latency allows 1,280); this needs
about 0.15 ms. Plain `http://` goes this way. `https://`, and hosts behind a proxy of the environment, go through
httpx, which knows certificates, proxies and their variables; such servers are far enough away that its cost is hidden.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import urllib.request
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

import httpx

from opengrm import __version__

MAX_HEAD = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: |$)")


class Unreachable(Exception):
    """No connection: refused, unknown name, no route, no answer to the connect in time."""


class Dropped(Exception):
    """The connection ended before the answer did."""


class TimedOut(Exception):
    """Connected and sent, but no whole answer in time."""


class Unreadable(Exception):
    """The answer is not HTTP, or larger than allowed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Transport(Protocol):
    """Posts JSON bodies to one URL.

    `post` raises Unreachable, Dropped, TimedOut or Unreadable; any HTTP status is an Answer.
    """

    async def post(self, body: bytes) -> Answer: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What both transports share: header values, seconds, and the most bytes of an answer's body."""

    api_key: str | None = field(repr=False)
    timeout: float
    connect_timeout: float
    max_bytes: int

    def headers(self) -> dict[str, str]:
        plain = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"opengrm/{__version__}",
        }
        return plain if self.api_key is None else {**plain, "Authorization": f"Bearer {self.api_key}"}


def open_transport(url: str, settings: Settings) -> Transport:
    """The transport for a checked http(s) URL: plain connections where nothing stands between, httpx otherwise."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not _proxied(parts):
        return PlainTransport(parts, settings)
    return HttpxTransport(url, settings)


def _proxied(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    proxies = urllib.request.getproxies()
    if loopback or not (parts.scheme in proxies or "all" in proxies):
        return False
    return not urllib.request.proxy_bypass(host)


class PlainTransport:
    """Keep-alive connections to one host; the last one used is used first, so that idle ones age and close."""

    def __init__(self, parts: SplitResult, settings: Settings) -> None:
        host = parts.hostname or ""
        self._host, self._port, self._settings = host, parts.port or 80, settings
        shown = f"[{host}]" if ":" in host else host
        lines = {"Host": f"{shown}:{self._port}", **settings.headers()}
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._head = head.encode("ascii") + b"Content-Length: "
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()

    async def post(self, body: bytes) -> Answer:
        data = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        while self._idle:
            connection = self._idle.pop()
            if connection.closed:
                self._open.discard(connection)
                continue
            try:
                return await self._exchange(connection, data)
            except Dropped:
                # The server closed an idle connection while we wrote to it: the request was not read. Anything else
                # that ends a used connection looks different: bytes of an answer have come.
                if connection.answering:
                    raise
        return await self._exchange(await self._connect(), data)

    async def _exchange(self, connection: Connection, data: bytes) -> Answer:
        try:
            answer = await connection.exchange(data, self._settings.timeout)
        finally:
            if connection.closed:
                self._open.discard(connection)
        self._idle.append(connection)
        return answer

    async def _connect(self) -> Connection:
        loop, limit = asyncio.get_running_loop(), self._settings.max_bytes
        opening = loop.create_connection(lambda: Connection(loop, limit), self._host, self._port)
        try:
            _, connection = await asyncio.wait_for(opening, self._settings.connect_timeout)
        except TimeoutError:
            raise Unreachable(f"no connection within {self._settings.connect_timeout:g} s") from None
        except OSError as error:
            raise Unreachable(_reason(error)) from None
        self._open.add(connection)
        return connection

    async def close(self) -> None:
        for connection in self._open:
            connection.abort()
        self._open.clear()
        self._idle.clear()


def _reason(error: OSError) -> str:
    """ "connection refused" from the many forms in which asyncio and the resolver say it."""
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "connection refused"
    return (error.strerror or str(error) or type(error).__name__).splitlines()[0].lower()


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time. After `closed` it is of no more use."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int) -> None:
        self.closed = False
        self.answering = False
        self._loop = loop
        self._max_bytes = max_bytes
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._reset()

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._headers: dict[str, str] | None = None
        self._status = 0
        self._keep = True
        self._length: int | None = None
        self._chunked = False
        self._body = bytearray()
        self.answering = False

    async def exchange(self, data: bytes, timeout: float) -> Answer:
        """Send a request and wait for its answer. Any exception, cancellation included, closes the connection."""
        if self._transport is None or self.closed:
            raise Dropped("the connection is closed")
        self._reset()
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        timer = self._loop.call_later(timeout, self._fail, TimedOut(f"no answer within {timeout:g} s"))
        self._transport.write(data)
        try:
            return await waiter
        except BaseException:
            self.abort()
            raise
        finally:
            timer.cancel()
            self._waiter = None

    def abort(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._headers is not None and self._length is None and not self._chunked and exc is None:
            self._finish()  # no length given: the end of the connection is the end of the body
        else:
            self._fail(Dropped("the server closed the connection without a whole answer"))

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.abort()  # bytes that nobody asked for
            return
        self.answering = True
        self._buffer += data
        try:
            if self._headers is None and not self._read_head():
                return
            self._read_body()
        except Unreadable as error:
            self._fail(error)

    def _read_head(self) -> bool:
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD or not b"HTTP/1.".startswith(self._buffer[:7]):
                    raise Unreadable("the answer is not HTTP")
                return False
            status_line, *lines = bytes(self._buffer[:end]).split(b"\r\n")
            del self._buffer[: end + 4]
            match = _STATUS.match(status_line)
            if match is None:
                raise Unreadable("the answer is not HTTP")
            if not match[2].startswith(b"1"):  # 100 Continue and its like come before the answer
                break
        pairs = (line.decode("latin-1").partition(":") for line in lines)
        self._headers = headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._status = int(match[2])
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        if self._status in (204, 304):
            self._length = 0
        elif "content-length" in headers and not self._chunked:
            length = headers["content-length"]
            if not (length.isascii() and length.isdigit()):
                raise Unreadable("the answer's Content-Length is not a number")
            self._length = int(length)
            self._check_size(self._length)
        connection = headers.get("connection", "").lower()
        self._keep = "close" not in connection and (match[1] == b"1" or "keep-alive" in connection)
        return True

    def _read_body(self) -> None:
        if self._chunked:
            done = self._read_chunks()
        else:
            self._body += self._buffer
            self._buffer.clear()
            self._check_size(len(self._body))
            done = self._length is not None and len(self._body) >= self._length
            if done and len(self._body) > (self._length or 0):
                del self._body[self._length :]
                self._keep = False
        if done:
            self._finish()

    def _read_chunks(self) -> bool:
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD:
                    raise Unreadable("a chunk of the answer has no size")
                return False
            digits = bytes(self._buffer[:end]).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", digits):
                raise Unreadable("a chunk of the answer has no size")
            size = int(digits, 16)
            self._check_size(len(self._body) + size)
            if size == 0:
                # Trailer fields, if any, end with an empty line as the head does.
                return self._buffer.startswith(b"\r\n", end + 2) or b"\r\n\r\n" in self._buffer[end + 2 :]
            if len(self._buffer) < end + 2 + size + 2:
                return False
            self._body += self._buffer[end + 2 : end + 2 + size]
            if self._buffer[end + 2 + size : end + 4 + size] != b"\r\n":
                raise Unreadable("a chunk of the answer is longer than its size")
            del self._buffer[: end + 4 + size]

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise Unreadable(f"the answer is larger than {self._max_bytes} bytes")

    def _finish(self) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if not self._keep or (self._length is None and not self._chunked):
            self.abort()
        self._waiter.set_result(Answer(self._status, self._headers or {}, bytes(self._body)))

    def _fail(self, error: Exception) -> None:
        self.closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


class HttpxTransport:
    """The same through httpx: TLS, and the proxies of the environment."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url, self._settings = url, settings
        self._client = httpx.AsyncClient(
            headers=settings.headers(),
            timeout=httpx.Timeout(settings.timeout, connect=settings.connect_timeout),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def post(self, body: bytes) -> Answer:
        try:
            return await asyncio.wait_for(self._stream(body), self._settings.timeout)
        except TimeoutError:
            raise TimedOut(f"no answer within {self._settings.timeout:g} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise Unreachable(_line(error)) from None
        except httpx.TimeoutException:
            raise TimedOut(f"no answer within {self._settings.timeout:g} s") from None
        except (httpx.DecodingError, httpx.TooManyRedirects) as error:
            raise Unreadable(_line(error)) from None
        except httpx.TransportError as error:
            raise Dropped(_line(error)) from None

    async def _stream(self, body: bytes) -> Answer:
        async with self._client.stream("POST", self._url, content=body) as response:
            parts, size = [], 0
            async for part in response.aiter_bytes():
                size += len(part)
                if size > self._settings.max_bytes:
                    raise Unreadable(f"the answer is larger than {self._settings.max_bytes} bytes")
                parts.append(part)
        return Answer(response.status_code, {k.lower(): v for k, v in response.headers.items()}, b"".join(parts))

    async def close(self) -> None:
        await self._client.aclose()


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]


def server_message(answer: Answer, most: int = 200) -> str:
    """What the server says in an answer that is no success, on one line of at most `most` characters."""
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        value = answer.body[:2000].decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    text = value if isinstance(value, str) else json.dumps(value)
    if text.lstrip().startswith("<"):
        text = re.sub(r"<[^>]*>", " ", re.sub(r"(?is)<(style|script).*?</\1>", " ", text))
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
