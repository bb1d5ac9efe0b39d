"""Replies that end when their client leaves: what was computed for it is cancelled. And server-sent events, read."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from app.access.quotas import METER, Meter, QuotaExceeded
from serving.departure import Departed, unless_departed

Result = TypeVar("Result")

DONE = b"[DONE]"
"""What OpenAI's streams end with."""


class StreamedReply(Response):
    """Sends chunks as they come. Starlette's own notices a departure only when it sends the next chunk."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        *,
        status_code: int = 200,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        headers = {"Cache-Control": "no-store", **(headers or {})}
        super().__init__(status_code=status_code, media_type=media_type, headers=headers)
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises QuotaExceeded while nothing is sent yet."""
        meter: Meter | None = scope.get(METER)
        try:
            if meter is not None:
                meter.open_stream()
        except QuotaExceeded:
            await self._chunks.aclose()
            raise
        try:
            await unless_departed(receive, self._send(send))
        except Departed:
            return

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        # Closed here and now, and not when it is collected: on its end rests that of the engine's work.
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_first(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Waits for the first chunk, so that an error before it can still become an error reply."""
    first = await anext(chunks)

    async def all_of_them() -> AsyncGenerator[bytes]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return all_of_them()


async def event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event, wherever the network cut the bytes."""
    async for together in events_together(chunks):
        for data in together:
            yield data


async def events_together(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """The same; those that came in one piece of the network together."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]


def as_event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
