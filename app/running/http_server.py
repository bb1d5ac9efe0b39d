"""Runs an ASGI application as a role's process, and gives up clients that send or read too slowly."""

import asyncio
import socket
import time
from asyncio import TimerHandle, Transport
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.running.garbage import settle

DRAIN_S = 4
"""What running requests get to end in after SIGTERM; with what follows, a stop stays below 10 s."""
HEAD_S = 10.0
"""For a request's head to be whole, from the connection or from its first byte on."""
MOST_HEAD_BYTES = 64 * 1024
BODY_LOOK_S = 10.0
LEAST_BODY_BYTES = 10 * 1024
"""Of each look to the next. Who pauses for longer while sending loses the connection."""
UNREAD_S = 60.0
"""For which a client may take nothing of what is sent to it: a stream to it holds a place in an engine."""
THREADS = 32
"""Twice as many as may wait for the write lock of the embedded database."""
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class PatientProtocol(HttpToolsProtocol):
    """Notes when a request came in, as `request.state.arrived_at` in monotonic seconds, and bounds slow clients.

    In a burst a request waits for its handler's turn in the event loop; its deadline has begun all the same.
    """

    _timer: TimerHandle | None
    _unread: TimerHandle | None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_in_head, self._is_in_body = True, False
        self._received = 0
        self._unread = None
        self._timer = self.loop.call_later(HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        # Most requests come whole, and need no timer.
        if not (self._is_in_head or self._is_in_body):
            self._end_wait()
        elif self._is_in_head and self._received > MOST_HEAD_BYTES:
            self.transport.write(TOO_LARGE)
            self.transport.close()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_S if self._is_in_head else BODY_LOOK_S, self._look)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self.scope["state"]["arrived_at"] = time.monotonic()

    def on_headers_complete(self) -> None:
        self._is_in_head, self._is_in_body = False, True
        self._end_wait()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end_wait(self) -> None:
        self._received = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        # What is not read yet because a disk is slow is not the client's fault.
        if self._is_in_head or (self._received < LEAST_BODY_BYTES and not self.flow.read_paused):
            self.transport.close()
            return
        self._received = 0
        self._timer = self.loop.call_later(BODY_LOOK_S, self._look)


class LeavingServer(uvicorn.Server):
    """Has more threads than asyncio's few, so that reads go on while writers wait for the database.

    Goes on for a while after SIGTERM, with /health at 503: whoever spreads requests sends no new ones any more.

    A listening socket that is closed at once would reset the connections that wait in it.
    """

    def __init__(self, config: uvicorn.Config, *, drain_s: float) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._left_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        if not await super().on_tick(counter):
            return False
        if self._left_at is None:
            self._left_at = time.monotonic()
        return self.force_exit or time.monotonic() - self._left_at >= self._drain_s


class HealthWhileLeaving:
    """Says at /health that the process ends, once it was told to."""

    server: LeavingServer

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/health" and self.server.should_exit:
            await PlainTextResponse("leaving", 503)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def run_http(app: ASGIApp, host: str, port: int, *, drain_s: float = 0.0) -> None:
    leaving = HealthWhileLeaving(app)
    config = uvicorn.Config(
        leaving if drain_s else app,
        host=host,
        port=port,
        loop="uvloop",
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    settle()
    leaving.server = LeavingServer(config, drain_s=drain_s)
    leaving.server.run()
