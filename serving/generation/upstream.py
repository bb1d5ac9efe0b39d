"""HTTP/1.1 to one engine, for the gateway: kept connections, each with one exchange at a time.

It does what relaying needs and no more: a reply's framing is parsed (by llhttp, as in Node), its bytes are
handed on as they came. An exchange takes 17 microseconds of CPU where aiohttp's client takes 63, and it tells what
a retry must know: whether the connection was used before, and whether any byte of the reply came.

Errors:
    UpstreamFailed
    ├── ConnectionRefused   no connection: nothing was sent
    ├── ConnectionBroken    it ended, or what came is not HTTP; what was received is not the whole
    ├── TooSilent           nothing came for too long
    └── DeadlinePassed      the caller's own time is over
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

CONNECT_S = 5.0

KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn (vLLM) closes idle connections: we would write into closed ones."""

MAX_HEAD_BYTES = 65_536
"""The parser has no bound of its own."""

MAX_BUFFERED_BYTES = 262_144
"""Of a reply whose reader is slow. Beyond it the engine is slowed too."""


class UpstreamFailed(Exception):
    """An exchange did not come to its end; the message is the reason, in words for /ready."""


class ConnectionRefused(UpstreamFailed):
    pass


class ConnectionBroken(UpstreamFailed):
    pass


class TooSilent(UpstreamFailed):
    pass


class DeadlinePassed(UpstreamFailed):
    pass


class Headers(Mapping[str, str]):
    """A reply's headers; names in any case. Of a name that came twice, the last."""

    def __init__(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._values = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in pairs}

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Connection(asyncio.Protocol):
    """A connection and the exchange that is on it: `send`, `begin`, `receive` until b"", and `Upstream.end`.

    `status`, `headers` and `is_delimited` (the reply says where it ends) are known after `begin`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._is_paused = False
        self._reset()
        self._is_idle = True
        self.exchanges = 0
        self.idle_since = 0.0

    def _reset(self) -> None:
        self._pairs: list[tuple[bytes, bytes]] = []
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._has_head = False
        self._is_complete = False
        self._keeps_alive = False
        self._failure: UpstreamFailed | None = None
        self.status = 0
        self.is_delimited = False
        self.received_bytes = 0

    # The exchange.

    def send(self, pieces: Sequence[bytes | memoryview], *, silence_s: float, deadline: float | None) -> None:
        """`deadline` by the loop's clock."""
        assert self._is_idle
        if self.exchanges:
            self._reset()
        self._is_idle = False
        self.exchanges += 1
        self._silence_s = silence_s
        self._deadline = deadline
        self._heard_at = self._loop.time()
        if self._transport is None or self._transport.is_closing():
            self._fail(ConnectionBroken("the connection was lost"))
            return
        self._transport.writelines(pieces)
        self._set_timer()

    async def begin(self) -> None:
        """Returns when the reply's head and the first bytes of its body are there, or its end."""
        while not (self._chunks or self._is_complete):
            if self._failure is not None:
                raise self._failure
            await self._wait()

    async def receive(self) -> bytes:
        """The bytes that came since the last call, cut anywhere; b"" at the reply's end."""
        while True:
            if self._chunks:
                received = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._buffered = 0
                if self._is_paused:
                    self._resume()
                return received
            if self._is_complete:
                return b""
            if self._failure is not None:
                raise self._failure
            await self._wait()

    @property
    def headers(self) -> Headers:
        return Headers(self._pairs)

    @property
    def is_complete(self) -> bool:
        """The whole reply came, read or not."""
        return self._is_complete

    @property
    def failure(self) -> UpstreamFailed | None:
        """Why the reply will not come whole."""
        return self._failure

    def close(self) -> None:
        """At once: the engine sees its client depart."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def rest(self) -> bool:
        """Ends the exchange; whether the connection can carry another."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_paused:
            self._resume()
        self._is_idle = True
        self.idle_since = self._loop.time()
        return self._is_complete and self._keeps_alive and self.is_open

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: UpstreamFailed) -> None:
        if self._failure is None and not self._is_complete:
            self._failure = failure
        self.close()
        self._wake()

    def _set_timer(self) -> None:
        """One timer an exchange, which looks again when it fires: a chunk moves no timer."""
        at = self._heard_at + self._silence_s
        if self._deadline is not None:
            at = min(at, self._deadline)
        self._timer = self._loop.call_at(at, self._look_at_clock)

    def _look_at_clock(self) -> None:
        now = self._loop.time()
        if self._is_complete:
            return
        if self._deadline is not None and now >= self._deadline:
            self._fail(DeadlinePassed("it did not answer by the deadline"))
            return
        if self._is_paused:
            # It is our reader that is slow.
            self._heard_at = now
        if now >= self._heard_at + self._silence_s:
            self._fail(TooSilent("it did not answer in time"))
        else:
            self._set_timer()

    def _resume(self) -> None:
        self._is_paused = False
        self._heard_at = self._loop.time()
        if self.is_open:
            assert self._transport is not None
            self._transport.resume_reading()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self.received_bytes += len(data)
        if self._is_idle or self._is_complete:
            self._keeps_alive = False
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(ConnectionBroken("what it answers is not HTTP"))
            return
        if not self._has_head and self.received_bytes > MAX_HEAD_BYTES:
            self._fail(ConnectionBroken("the head of its reply does not end"))
        elif self._chunks or self._is_complete:
            if self._buffered > MAX_BUFFERED_BYTES and not self._is_paused and not self._is_complete:
                assert self._transport is not None
                self._is_paused = True
                self._transport.pause_reading()
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._keeps_alive = False
        if self._is_idle:
            return
        if error is None and self._has_head and not self.is_delimited and self._failure is None:
            self._is_complete = True
            self._wake()
        else:
            self._fail(ConnectionBroken("the connection was lost"))

    # httptools' callbacks.

    def on_message_begin(self) -> None:
        if self._is_complete:
            raise ConnectionBroken("it answers more than it was asked")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200
        self._keeps_alive = self._parser.should_keep_alive()
        self.is_delimited = any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._pairs
        )

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete = True
        else:
            # 100 Continue and its like: the reply is still to come.
            self._pairs.clear()


class Upstream:
    """The connections to one engine. `url` without /v1 at its end; a path in it comes before each request's."""

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"Not the address of an engine: {url!r}")
        self._host = parts.hostname
        self._port: Final = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._base = parts.path.rstrip("/")
        # Bytes go through as they came; identity keeps an engine from compressing what streams.
        fixed = {"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity"}
        if token:
            fixed["Authorization"] = f"Bearer {token}"
        self._fixed = _lines(fixed)
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def connect(self, *, deadline: float | None = None, fresh: bool = False) -> Connection:
        """A connection for one exchange, to be given back to `end`. Raises ConnectionRefused, DeadlinePassed.

        A `fresh` one was never used: the engine cannot be about to close it for its age.
        """
        loop = asyncio.get_running_loop()
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.is_open and loop.time() - connection.idle_since < KEEP_ALIVE_S:
                return connection
            self._discard(connection)
        latest = loop.time() + CONNECT_S
        is_callers = deadline is not None and deadline < latest
        try:
            async with asyncio.timeout_at(deadline if is_callers else latest):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop), self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            if is_callers:
                raise DeadlinePassed("it did not answer by the deadline") from error
            raise ConnectionRefused("it does not take connections") from error
        except OSError as error:
            raise ConnectionRefused("it refuses connections") from error
        self._open.add(connection)
        return connection

    def end(self, connection: Connection) -> None:
        """Keeps the connection when its reply came whole, else closes it."""
        if not connection.rest():
            self._discard(connection)
            return
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._close_aged)

    def post(self, path: str, length: int, headers: Mapping[str, str]) -> bytes:
        """The head of a request with a JSON body of `length` bytes."""
        more = _lines(headers) if headers else ""
        return (
            f"POST {self._base}{path} HTTP/1.1\r\n{self._fixed}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
        ).encode("latin-1")

    async def fetch(
        self, path: str, *, timeout_s: float, max_bytes: int = 16 * 1024 * 1024
    ) -> tuple[int, bytes]:
        """Status and body of a GET. Raises UpstreamFailed."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            connection = await self.connect(deadline=deadline)
            if connection.exchanges:
                try:
                    return await self._get(connection, path, deadline, max_bytes)
                except ConnectionBroken:
                    # Most likely the engine closed a kept connection meanwhile.
                    connection = await self.connect(deadline=deadline, fresh=True)
            return await self._get(connection, path, deadline, max_bytes)
        except DeadlinePassed as error:
            raise TooSilent("it did not answer in time") from error

    async def _get(
        self, connection: Connection, path: str, deadline: float, max_bytes: int
    ) -> tuple[int, bytes]:
        head = f"GET {self._base}{path} HTTP/1.1\r\n{self._fixed}\r\n".encode("latin-1")
        try:
            connection.send([head], silence_s=float("inf"), deadline=deadline)
            body = bytearray()
            while chunk := await connection.receive():
                body += chunk
                if len(body) > max_bytes:
                    raise ConnectionBroken("its reply does not end")
            return connection.status, bytes(body)
        finally:
            self.end(connection)

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._idle.clear()
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _discard(self, connection: Connection) -> None:
        connection.close()
        self._open.discard(connection)

    def _close_aged(self) -> None:
        loop = asyncio.get_running_loop()
        aged = loop.time() - KEEP_ALIVE_S
        while self._idle and (self._idle[0].idle_since <= aged or not self._idle[0].is_open):
            self._discard(self._idle.popleft())
        self._sweep = loop.call_later(KEEP_ALIVE_S / 2, self._close_aged) if self._idle else None


def _lines(headers: Mapping[str, str]) -> str:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("A header has a line break.")
    return lines
