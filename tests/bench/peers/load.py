"""A light load generator for HTTP/1.1 servers, for benchmarks: prebuilt requests, bare sockets, time stamps.

It runs in a process of its own (`LoadProcess`), so that the measuring program's work delays no time stamp.
Times are `time.monotonic` seconds, which all processes of one machine share.
"""

import asyncio
import itertools
import multiprocessing
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from tests.bench.figures import MeasureFailed

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

LONGEST_S = 60.0
"""After this a reply counts as lost."""
LOST = 0
"""The status of a reply that was cut off or did not come in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One exchange. `events`: pieces of a reply that streams."""

    status: int
    started_at: float
    ended_at: float
    body: bytes
    has_retry_after: bool

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at


def checked(answers: list[Answer]) -> list[Answer]:
    """Raises MeasureFailed unless all are good."""
    bad = [answer for answer in answers if answer.status != 200]
    if bad:
        raise MeasureFailed(f"{len(bad)} of {len(answers)} requests failed, one with {bad[0].status}")
    return answers


def span_s(answers: Sequence[Answer]) -> float:
    return max(each.ended_at for each in answers) - min(each.started_at for each in answers)


def post(url: str, path: str, body: Mapping[str, Any], *, token: str = "") -> bytes:
    """The bytes of a request."""
    content = orjson.dumps(body)
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n{authorization}"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class LoadProcess:
    """A process that runs this module's coroutines: `process.run(in_turn, url, requests)`."""

    def __enter__(self) -> Self:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(
        self,
        function: Callable[Arguments, Coroutine[Any, Any, Result]],
        *args: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Result:
        return self._pool.submit(_run, function, args, options).result()


def _run(function: Callable[..., Coroutine[Any, Any, Result]], args: Any, options: Any) -> Result:
    return uvloop.run(function(*args, **options))


async def ask(url: str, request: bytes) -> Answer:
    """One request, with the reply's body."""
    async with Connections(url, keep_bodies=True) as connections:
        return await connections.send(request)


async def one_by_one(url: str, requests: Sequence[bytes]) -> list[Answer]:
    """Over one kept connection."""
    async with Connections(url) as connections:
        return [await connections.send(request) for request in requests]


async def in_turn(requests: Mapping[str, tuple[str, bytes]], *, times: int) -> dict[str, list[Answer]]:
    """Each named (url, request) in turn, every other round the other way, each over its own connection."""
    answers: dict[str, list[Answer]] = {name: [] for name in requests}
    async with AsyncExitStack() as stack:
        opened = {
            name: await stack.enter_async_context(Connections(url)) for name, (url, _) in requests.items()
        }
        for number in range(times):
            for name in list(requests)[:: 1 if number % 2 == 0 else -1]:
                answers[name].append(await opened[name].send(requests[name][1]))
    return answers


async def closed_loop(
    url: str,
    requests: Sequence[bytes],
    *,
    at_once: int,
    seconds: float | None = None,
    keep_bodies: bool = False,
) -> list[Answer]:
    """`at_once` requests always in flight: each of `requests` once, or over and over for so many seconds."""
    ends_at = None if seconds is None else time.monotonic() + seconds
    queue = iter(requests) if seconds is None else itertools.cycle(requests)
    answers: list[Answer] = []

    async def keep_busy(connections: Connections) -> None:
        for request in queue:
            if ends_at is not None and time.monotonic() >= ends_at:
                return
            answers.append(await connections.send(request))

    async with Connections(url, keep_bodies=keep_bodies) as connections:
        await asyncio.gather(*(keep_busy(connections) for _ in range(at_once)))
    return answers


async def closed_loops(asked: Mapping[str, Sequence[bytes]], *, at_once: int, seconds: float) -> list[Answer]:
    """A closed loop for each URL with its requests, side by side."""
    loops = (closed_loop(url, requests, at_once=at_once, seconds=seconds) for url, requests in asked.items())
    return list(itertools.chain(*await asyncio.gather(*loops)))


async def open_loop(url: str, request: bytes, *, a_second: float, seconds: float) -> list[Answer]:
    """As `at_rate`, one request over and over."""
    return await at_rate(url, [request] * int(a_second * seconds), a_second=a_second)


async def at_rate(url: str, requests: Sequence[bytes], *, a_second: float) -> list[Answer]:
    """At a constant rate, however late the replies are; times count from when a request was due."""
    async with Connections(url) as connections, asyncio.TaskGroup() as tasks:
        begun = time.monotonic()
        sent = []
        for number, request in enumerate(requests):
            due = begun + number / a_second
            await asyncio.sleep(due - time.monotonic())
            sent.append(tasks.create_task(connections.send(request, due=due)))
        # Inside the connections' context: they are closed after the last reply.
        await asyncio.wait(sent)
    return [each.result() for each in sent]


async def beside_bulk(
    url: str, bulk: Sequence[bytes], queries: Sequence[bytes], *, at_once: int, every_s: float
) -> tuple[list[Answer], list[Answer]]:
    """Replies to `bulk`, of which `at_once` are always in flight, and to queries sent at a constant rate meanwhile."""
    async with Connections(url) as connections, Connections(url) as query_connections:
        loading = asyncio.create_task(_each(connections, bulk, at_once=at_once))
        await asyncio.sleep(every_s)
        asked: list[asyncio.Task[Answer]] = []
        for query in queries:
            # From then on fewer are in flight, and the query would not meet the load that it is to meet.
            if connections.sent == len(bulk) and connections.in_flight < at_once:
                break
            asked.append(asyncio.create_task(query_connections.send(query)))
            await asyncio.sleep(every_s)
        return await loading, list(await asyncio.gather(*asked))


async def burst(url: str, requests: Sequence[bytes], *, within_s: float) -> list[Answer]:
    """All at once, each over a connection that stands already."""
    async with Connections(url) as connections:
        await connections.open(len(requests))
        return list(await asyncio.gather(*(connections.send(each, within_s=within_s) for each in requests)))


async def query_after_departures(url: str, bulk: Sequence[bytes], query: bytes, *, after_s: float) -> Answer:
    """The reply to a query that is sent when all clients of `bulk` have closed their connections."""
    async with Connections(url) as connections, Connections(url) as departing:
        await connections.open(1)
        sent = [asyncio.create_task(departing.send(request)) for request in bulk]
        await asyncio.sleep(after_s)
        departing.close()
        answer = await connections.send(query)
        await asyncio.gather(*sent)
        return answer


async def depart(url: str, request: bytes, *, after_s: float) -> float:
    """Sends a request and closes the connection before its reply has ended. Returns when it was closed."""
    async with Connections(url) as connections:
        sent = asyncio.create_task(connections.send(request))
        await asyncio.sleep(after_s)
        departed_at = time.monotonic()
        connections.close()
        await sent
        return departed_at


async def _each(connections: "Connections", requests: Sequence[bytes], *, at_once: int) -> list[Answer]:
    queue = iter(requests)

    async def work() -> list[Answer]:
        return [await connections.send(request) for request in queue]

    return list(itertools.chain(*await asyncio.gather(*(work() for _ in range(at_once)))))


class Connections:
    """Kept connections to one server, opened as they are needed, each for one request at a time."""

    def __init__(self, url: str, *, keep_bodies: bool = False) -> None:
        self.in_flight = 0
        self.sent = 0
        self._address = urlsplit(url)
        self._keep_bodies = keep_bodies
        self._all: list[_Connection] = []
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """At once, as a client that departs."""
        for connection in self._all:
            connection.abort()

    async def open(self, count: int) -> None:
        self._idle += [await self._connect() for _ in range(count)]

    async def send(self, request: bytes, *, within_s: float = LONGEST_S, due: float | None = None) -> Answer:
        """Never raises for what the server does: a lost reply has the status LOST."""
        self.sent += 1
        self.in_flight += 1
        try:
            connection = await self._idle_one()
            answer = await connection.exchange(request, within_s=within_s, due=due)
        finally:
            self.in_flight -= 1
        if answer.status != LOST:
            self._idle.append(connection)
        return answer

    async def _idle_one(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await self._connect()

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._keep_bodies),
            str(self._address.hostname),
            int(self._address.port or 80),
        )
        self._all.append(connection)
        return connection


class _Connection(asyncio.Protocol):
    def __init__(self, keeps_body: bool) -> None:
        self._keeps_body = keeps_body
        self._transport: Any = None
        self._ended: asyncio.Future[float] | None = None

    async def exchange(self, request: bytes, *, within_s: float, due: float | None) -> Answer:
        self._parser = httptools.HttpResponseParser(self)
        self._ended = asyncio.get_running_loop().create_future()
        self._body: list[bytes] = []
        self._has_retry_after = False
        started_at = due or time.monotonic()
        self._transport.write(request)
        late = asyncio.get_running_loop().call_later(within_s, self.abort)
        try:
            ended_at = await self._ended
        except ConnectionError:
            return Answer(LOST, started_at, time.monotonic(), b"", has_retry_after=False)
        finally:
            late.cancel()
        body = b"".join(self._body)
        return Answer(self._parser.get_status_code(), started_at, ended_at, body, self._has_retry_after)

    def abort(self) -> None:
        self._transport.abort()

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, received: bytes) -> None:
        self._parser.feed_data(received)

    def connection_lost(self, error: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(ConnectionResetError(str(error)))

    # httptools calls these.
    def on_header(self, name: bytes, _: bytes) -> None:
        self._has_retry_after |= name.lower() == b"retry-after"

    def on_body(self, body: bytes) -> None:
        if self._keeps_body:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(time.monotonic())
