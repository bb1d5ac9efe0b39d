"""The connection to an engine, before servers that answer in the oddest ways."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from serving.generation.gateway import EngineLost, Gateway, Replica
from serving.generation.upstream import (
    MAX_BUFFERED_BYTES,
    Connection,
    ConnectionBroken,
    ConnectionRefused,
    DeadlinePassed,
    Headers,
    TooSilent,
    Upstream,
)
from serving.protocols import EngineUnavailable

CHAT = "/v1/chat/completions"
MODELS = b'{"data":[{"id":"m"}]}'

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def whole(body: bytes, *, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def writes(*pieces: bytes, ends: bool = False) -> Answer:
    """Writes the pieces one after the other, and then ends the connection or leaves it open."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if ends:
            writer.close()

    return answer


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Lists one model, and answers each POST by `answer`. Yields its url."""
    connections = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"POST"):
                    length = int(head.lower().partition(b"content-length:")[2].split()[0])
                    await reader.readexactly(length)
                    await answer(writer)
                else:
                    writer.write(whole(MODELS if b"/v1/models" in head else b""))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        host, port = listening.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        listening.close()
        for writer in connections:
            writer.close()


async def ask(url: str, *, silence_s: float = 5.0) -> tuple[int, bytes]:
    async with (
        Gateway([Replica(url)], salt_secret=b"s", longest_silence_s=silence_s) as gateway,
        gateway.send(CHAT, b"{}", model="m") as reply,
    ):
        return reply.status, await reply.read()


@pytest.mark.parametrize(
    "pieces",
    [
        [whole(b"one two")],
        [bytes([each]) for each in whole(b"one two")],
        [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n4;x=y\r\n two\r\n0\r\nTrailer: x\r\n\r\n"
        ],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", whole(b"one two")],
        [whole(b"one two", more="Connection: close\r\n")],
    ],
    ids=[
        "one write",
        "byte by byte",
        "chunked, with trailers",
        "after informational ones",
        "connection: close",
    ],
)
async def test_a_whole_reply_is_read_however_it_is_framed(pieces: list[bytes]) -> None:
    async with server(writes(*pieces)) as url:
        assert await ask(url) == (200, b"one two")


async def test_a_body_may_end_with_its_connection() -> None:
    answer = writes(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}", ends=True)
    async with server(answer) as url:
        assert await ask(url) == (200, b"{}")


@pytest.mark.parametrize(("tail", "is_whole"), [(b"data: [DONE]\n\n", True), (b'data: {"x": 1}\n\n', False)])
async def test_events_that_end_with_their_connection_are_whole_only_with_their_end(
    tail: bytes, is_whole: bool
) -> None:
    head = b'HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {"x": 0}\n\n'
    async with server(writes(head, tail[:9], tail[9:], ends=True)) as url:
        if is_whole:
            assert (await ask(url))[1].endswith(tail)
        else:
            with pytest.raises(EngineLost):
                await ask(url)


@pytest.mark.parametrize(
    "partly",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\nnot a length\r\n",
    ],
    ids=["short of its length", "no last chunk", "last chunk without its end", "broken chunk"],
)
async def test_a_reply_that_ends_early_is_lost_although_its_connection_ends_in_order(partly: bytes) -> None:
    async with server(writes(partly, ends=True)) as url:
        with pytest.raises(EngineLost):
            await ask(url)


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>It works!</html>\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
    ids=["no HTTP", "another protocol", "a head without end"],
)
async def test_what_is_not_http_is_no_answer(garbage: bytes) -> None:
    async with server(writes(garbage)) as url:
        with pytest.raises(EngineUnavailable, match=r"not HTTP|does not end"):
            await ask(url)


async def test_a_connection_on_which_more_came_than_was_asked_is_not_used_again() -> None:
    async with (
        server(writes(whole(b"one") + whole(b"poison"))) as url,
        Gateway([Replica(url)], salt_secret=b"s") as gateway,
    ):
        for _ in range(3):
            async with gateway.send(CHAT, b"{}", model="m") as reply:
                assert await reply.read() == b"one"


async def test_connections_are_used_again_and_a_failed_one_is_not() -> None:
    upstream = Upstream("http://127.0.0.1:1", None)
    with pytest.raises(ConnectionRefused):
        await upstream.connect()
    async with server(writes(whole(b"one"))) as url:
        upstream = Upstream(url, None)
        first = await upstream.connect()
        await exchange(first, upstream)
        upstream.end(first)
        second = await upstream.connect()
        assert second is first
        second.close()
        upstream.end(second)
        third = await upstream.connect()
        assert third is not first
        upstream.end(third)
        upstream.close()


async def test_a_kept_connection_that_the_engine_closed_is_left_alone() -> None:
    async with server(writes(whole(b"one"), ends=True)) as url:
        upstream = Upstream(url, None)
        first = await upstream.connect()
        await exchange(first, upstream)
        upstream.end(first)
        while first.is_open:  # noqa: ASYNC110 - what is awaited is the kernel's
            await asyncio.sleep(0)
        assert await upstream.connect() is not first
        upstream.close()


async def test_an_engine_that_is_read_slowly_is_slowed_and_nothing_is_lost() -> None:
    body = b"x" * (MAX_BUFFERED_BYTES * 40)
    async with server(writes(whole(body))) as url:
        upstream = Upstream(url, None)
        connection = await upstream.connect()
        send(connection, upstream)
        await connection.begin()
        for _ in range(200):
            await asyncio.sleep(0.001)
        assert connection.received_bytes < len(body)
        received = 0
        while chunk := await connection.receive():
            received += len(chunk)
        assert received == len(body)
        upstream.end(connection)
        upstream.close()


async def test_silence_and_deadlines_end_an_exchange_by_name() -> None:
    async with server(writes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")) as url:
        upstream = Upstream(url, None)
        for failure, silence_s, deadline_s in ((TooSilent, 0.05, 9), (DeadlinePassed, 9, 0.05)):
            connection = await upstream.connect()
            send(connection, upstream, silence_s=silence_s, deadline_s=deadline_s)
            assert await connection.receive() == b"some"
            with pytest.raises(failure):
                await connection.receive()
            upstream.end(connection)
            assert not connection.is_open
        upstream.close()


async def test_a_fetch_is_bounded_in_time_and_size() -> None:
    async with server(writes()) as url:
        upstream = Upstream(url, None)
        assert await upstream.fetch("/v1/models", timeout_s=5) == (200, MODELS)
        with pytest.raises(ConnectionBroken, match="does not end"):
            await upstream.fetch("/v1/models", timeout_s=5, max_bytes=3)
        upstream.close()

    # As a stopped process: the kernel takes the connection, and nobody answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = Upstream(f"http://127.0.0.1:{silent.getsockname()[1]}", None)
        with pytest.raises(TooSilent):
            await upstream.fetch("/health", timeout_s=0.1)
        upstream.close()


@pytest.mark.parametrize("url", ["engine:8000", "ftp://engine", "http://", "http://engine:port"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|[Pp]ort"):
        Upstream(url, None)


@pytest.mark.parametrize("value", ["x\r\nX-Evil: y", "x\ny", "x\ry"])
async def test_a_header_with_a_line_break_is_never_sent(value: str) -> None:
    upstream = Upstream("http://engine/base/", "token")
    with pytest.raises(ValueError, match="line break"):
        upstream.post(CHAT, 2, {"X-Request-Id": value})
    assert upstream.post(CHAT, 2, {"X-Request-Id": "r"}).startswith(
        b"POST /base/v1/chat/completions HTTP/1.1\r\nHost: engine\r\n"
    )


def test_header_names_are_read_in_any_case() -> None:
    headers = Headers([(b"Retry-AFTER", b"3"), (b"x", b"1"), (b"X", b"2")])
    assert headers["retry-after"] == headers["Retry-After"] == "3"
    assert headers.get("X") == "2"
    assert headers.get("absent") is None
    assert len(headers) == 2


async def exchange(connection: Connection, upstream: Upstream) -> None:
    send(connection, upstream)
    while await connection.receive():
        pass


def send(connection: Connection, upstream: Upstream, *, silence_s: float = 5, deadline_s: float = 5) -> None:
    deadline = asyncio.get_running_loop().time() + deadline_s
    connection.send([upstream.post(CHAT, 2, {}), b"{}"], silence_s=silence_s, deadline=deadline)


async def test_a_kept_connection_that_the_engine_closes_as_we_write_costs_the_caller_nothing() -> None:
    answers = [writes(whole(b"one")), writes(ends=True), writes(whole(b"two"))]

    async def in_turn(writer: asyncio.StreamWriter) -> None:
        await answers.pop(0)(writer)

    async with server(in_turn) as url, Gateway([Replica(url)], salt_secret=b"s") as gateway:
        for expected in (b"one", b"two"):
            async with gateway.send(CHAT, b"{}", model="m") as reply:
                assert await reply.read() == expected
        assert (await gateway.health())[0].reason is None
