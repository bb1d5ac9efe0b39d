"""A proxy that stands between a role and a backend, and fails as networks, kernels and other people's servers do."""

import asyncio
import socket
import struct
from enum import StrEnum
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

PIECE = 65_536
TRICKLE_EVERY_S = 1.0
PAGE = b"<html><body>502 Bad Gateway</body></html>"
AN_HTML_PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (
    len(PAGE),
    PAGE,
)
REFUSED_TO_LINGER = struct.pack("ii", 1, 0)


class Fault(StrEnum):
    NONE = "none"
    HANGS = "hangs"
    """Takes requests and says nothing, on old connections and new ones, as a stopped process does."""
    GONE = "gone"
    """Nobody listens there any more, and what was open is reset."""
    RESET = "reset"
    """Killed once so much of a reply was sent."""
    CUT = "cut"
    """Ends the connection in order once so much of a reply was sent."""
    TRICKLES = "trickles"
    """A byte a second, once so much of a reply was sent."""
    LIES = "lies"
    """Another server's page, with 200."""
    GARBLES = "garbles"
    """JSON that is none, in a reply whose frame is right."""


class FaultProxy:
    """An async context manager at `url`. `fault` may change while it is open; `after_bytes` counts in each reply."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname
        assert parts.port
        self._target = (parts.hostname, parts.port)
        self.fault = Fault.NONE
        self.after_bytes = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def fail(self, fault: Fault, *, after_bytes: int = 0) -> None:
        """From now on, on open connections too."""
        if fault is Fault.GONE:
            self._server.close()
            for writer in list(self._open):
                _reset(writer)
        self.fault, self.after_bytes = fault, after_bytes
        self._changed.set()
        self._changed = asyncio.Event()

    async def heal(self) -> None:
        """As after a restart of what is behind: connections from before are gone."""
        was_gone = self.fault is Fault.GONE
        await self.fail(Fault.NONE)
        for writer in list(self._open):
            _reset(writer)
        if was_gone:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            behind, upstream = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(reader, upstream, writer))
                both.create_task(self._replies(behind, writer))
        except* (OSError, _Ended):
            pass
        finally:
            self._tasks.discard(task)
            self._open.discard(writer)
            for each in (writer, upstream):
                if each is not None:
                    each.close()

    async def _requests(
        self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(PIECE):
            match self.fault:
                case Fault.HANGS:
                    await self._until_changed()
                case Fault.LIES:
                    client.write(AN_HTML_PAGE)
                case Fault.RESET if self.after_bytes == 0:
                    _reset(client)
                case _:
                    upstream.write(data)
                    await upstream.drain()
        raise _Ended

    async def _replies(self, behind: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        sent = 0
        while data := await behind.read(PIECE):
            if data.startswith(b"HTTP/1."):
                sent = 0
            match self.fault:
                case Fault.HANGS:
                    await self._until_changed()
                case Fault.RESET | Fault.CUT if sent + len(data) > self.after_bytes:
                    client.write(data[: max(0, self.after_bytes - sent)])
                    await client.drain()
                    if self.fault is Fault.RESET:
                        _reset(client)
                    raise _Ended
                case Fault.TRICKLES if sent + len(data) > self.after_bytes:
                    await self._trickle(data, client)
                    continue
                case Fault.GARBLES:
                    data = data.replace(b'{"', b"{{")
                case _:
                    pass
            client.write(data)
            await client.drain()
            sent += len(data)
        raise _Ended

    async def _trickle(self, data: bytes, client: asyncio.StreamWriter) -> None:
        for place in range(len(data)):
            if self.fault is not Fault.TRICKLES:
                raise _Ended
            client.write(data[place : place + 1])
            await client.drain()
            await asyncio.sleep(TRICKLE_EVERY_S)

    async def _until_changed(self) -> None:
        await self._changed.wait()
        raise _Ended


class _Ended(Exception):
    """One of the two sides."""


def _reset(writer: asyncio.StreamWriter) -> None:
    if (connection := writer.get_extra_info("socket")) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, REFUSED_TO_LINGER)
    writer.transport.abort()
