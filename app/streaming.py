"""Replies that end when their client leaves, streamed or not: whatever was computed for it is cancelled."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from serving.departure import Departed, unless_departed

Result = TypeVar("Result")


class StreamedReply(Response):
    """Sends chunks as they come. Starlette's own notices a departure only when it sends the next chunk."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        *,
        status: int = 200,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        headers = {"Cache-Control": "no-store", **(headers or {})}
        super().__init__(status_code=status, media_type=media_type, headers=headers)
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
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
