"""Clients that send or read slowly, and bytes that are no request, on a real socket of the api role's server."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from app.running import http_server
from app.running.http_server import PatientProtocol

Address = tuple[str, int]
QUICK_S = 0.3


async def count(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


ended: list[float] = []


async def flood(_: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(65_536)
                await asyncio.sleep(0)
        finally:
            ended.append(time.monotonic())

    return StreamingResponse(events())


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Patience that a test can wait for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HEAD_S", "BODY_LOOK_S", "UNREAD_S"):
            patch.setattr(http_server, name, QUICK_S)
        yield


@pytest.fixture(scope="module")
def address(quick: None) -> Iterator[Address]:
    app = Starlette(routes=[Route("/", count, methods=["GET", "POST"]), Route("/flood", flood)])
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=PatientProtocol, ws="none", loop="uvloop", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join()
    listening.close()


def send(address: Address, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back until the connection ends, or nothing comes for a second."""
    with socket.create_connection(address, timeout=1) as sending:
        received = b""
        try:
            for piece in pieces:
                sending.sendall(piece)
                time.sleep(pause_s)
            while data := sending.recv(65_536):
                received += data
        except (TimeoutError, ConnectionError):
            pass
        return received


def one_request(body: bytes = b"", *headers: bytes) -> bytes:
    length = b"content-length: %d" % len(body)
    return b"\r\n".join([b"POST / HTTP/1.1", b"host: x", b"connection: close", length, *headers, b"", body])


@pytest.mark.parametrize(
    "raw",
    [
        one_request().replace(b"content-length: 0", b"content-length: -5"),
        one_request().replace(b"content-length: 0", b"content-length: 99999999999999999999"),
        one_request(b"", b"content-length: 5"),
        one_request(b"0\r\n\r\n", b"transfer-encoding: chunked"),
        one_request(b"", b"transfer-encoding: identity, chunked, gzip"),
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nho\x00st: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
        b"FROBNICATE / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_request_is_400_or_hung_up_on(address: Address, raw: bytes) -> None:
    received = send(address, raw)
    assert received == b"" or received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 405"))
    assert received.count(b"HTTP/1.1") <= 1
    assert send(address, one_request(b"abc")).endswith(b"\r\n\r\n3")


@pytest.mark.parametrize(
    "head",
    [b"x: " + b"a" * 1_000_000, b"".join(b"x%d: y\r\n" % each for each in range(100_000)), b"a" * 1_000_000],
)
def test_a_head_without_end_is_431_and_not_kept(address: Address, head: bytes) -> None:
    pieces = [head[at : at + 16_384] for at in range(0, len(head), 16_384)]
    received = send(address, b"GET / HTTP/1.1\r\nhost: x\r\n", *pieces)
    assert received == b"" or received.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert received.count(b"HTTP/1.1") <= 1


@pytest.mark.parametrize(
    "pieces",
    [
        [b""],
        [b"GET / HTTP/1.1\r\n", *[b"x: y\r\n"] * 20],
        [one_request(b"a" * 100)[:-90], *[b"a"] * 20],
        [b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * 20],
    ],
    ids=["nothing", "head", "body", "chunks"],
)
def test_who_sends_a_byte_now_and_then_is_hung_up_on(address: Address, pieces: list[bytes]) -> None:
    began = time.monotonic()
    received = send(address, *pieces, pause_s=QUICK_S / 3)
    assert b"200 OK" not in received
    assert time.monotonic() - began < len(pieces) * QUICK_S / 3 + 0.9


def test_a_slow_client_that_goes_on_is_heard_to_its_end(address: Address) -> None:
    body = b"a" * 200_000
    request = one_request(body)
    pieces = [request[at : at + 20_000] for at in range(0, len(request), 20_000)]
    assert send(address, *pieces, pause_s=QUICK_S / 2).endswith(b"\r\n\r\n200000")


def test_a_kept_connection_takes_the_next_request_and_bounds_it_too(address: Address) -> None:
    kept = one_request(b"abc").replace(b"connection: close\r\n", b"")
    received = send(address, kept, kept, b"POST / HT", pause_s=QUICK_S / 3)
    assert received.count(b"\r\n\r\n3") == 2


def test_who_reads_nothing_of_a_stream_ends_it(address: Address) -> None:
    ended.clear()
    with socket.create_connection(address) as reading:
        reading.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reading.sendall(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        began = time.monotonic()
        while not ended and time.monotonic() - began < 10:
            time.sleep(0.05)
    assert ended


def test_a_websocket_is_not_opened(address: Address) -> None:
    upgrade = (
        b"upgrade: websocket",
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
        b"sec-websocket-version: 13",
    )
    asked = one_request(b"", *upgrade).replace(b"connection: close", b"connection: upgrade")
    assert b"101 Switching" not in send(address, asked)
