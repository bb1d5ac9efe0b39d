"""Sends stored bytes, whole or the ranges that a client asks for, decrypted on the way."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
from fastapi import HTTPException
from fastapi.responses import FileResponse
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

from app.errors import BadRequest
from retrieval.blobs import BlobContent


class BlobReply(FileResponse):
    """No byte leaves before its check. Ranges that cannot be sent are told as all errors are."""

    def __init__(self, content: BlobContent, *, media_type: str, headers: Mapping[str, str]) -> None:
        """Raises Damaged."""
        content.open().close()
        self._content = content
        stored = content.path.stat()
        told = os.stat_result((*stored[:6], content.size_bytes, *stored[7:]))
        super().__init__(content.path, media_type=media_type, headers=headers, stat_result=told)

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader as error:
            raise BadRequest(f"The header Range is malformed: {error.content}", param="Range") from error
        except RangeNotSatisfiable as error:
            raise HTTPException(
                416,
                f"The header Range asks for none of the file's {error.max_size} bytes.",
                headers={"Content-Range": f"bytes */{error.max_size}"},
            ) from error

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[anyio.AsyncFile[bytes]]:
        """Where Starlette opens the path."""
        file = anyio.wrap_file(await anyio.to_thread.run_sync(self._content.open))
        try:
            yield file
        finally:
            with anyio.CancelScope(shield=True):
                await file.aclose()
