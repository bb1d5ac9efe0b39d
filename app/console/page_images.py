"""Pages of PDFs as pictures: drawn in the parsers' sandbox, kept in memory alone."""

import asyncio
from collections import OrderedDict
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from ingest.elements import Attachment, Openable, ParseFailed, ParseFailure, ParseOptions
from ingest.sandbox import ParserLimits, ParserPool

DRAWING = "ingest.parse.drawing"
CACHE_BYTES = 64 << 20
LIMITS = ParserLimits(timeout_s=10.0, timeout_s_per_mib=1.0, recycle_after_files=200)
PDF = "application/pdf"


@dataclass(frozen=True)
class PageImage:
    """`png` is the page; width and height are its own, in points, as boxes of quotes are."""

    png: bytes = field(repr=False)
    width: float
    height: float


class PageImages:
    """An async context manager. The process that draws is started by the first page."""

    def __init__(self, temporary_folder: Path) -> None:
        self._folder = temporary_folder
        self._open = AsyncExitStack()
        self._starting = asyncio.Lock()
        self._pool: ParserPool | None = None
        self._kept: OrderedDict[tuple[str, int], PageImage] = OrderedDict()
        self._kept_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    async def draw(self, blob_id: str, content: Openable, page: int, *, password: str | None) -> PageImage:
        """Who asks may see the blob: that is checked before. Raises ParseFailed."""
        if (kept := self._kept.get((blob_id, page))) is not None:
            self._kept.move_to_end((blob_id, page))
            return kept
        pool = await self._started()
        image = None
        async with aclosing(pool.parse(content, PDF, ParseOptions(password=password, page=page))) as drawn:
            async for each in drawn:
                if isinstance(each, Attachment):
                    width, _, height = each.name.partition("x")
                    png = await asyncio.to_thread(each.path.read_bytes)
                    image = PageImage(png, float(width), float(height))
        if image is None:
            raise ParseFailed(ParseFailure.CORRUPT, "This page cannot be drawn.")
        self._keep((blob_id, page), image)
        return image

    async def _started(self) -> ParserPool:
        async with self._starting:
            if self._pool is None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                pool = ParserPool(1, LIMITS, temporary_folder=self._folder, child_module=DRAWING)
                self._pool = await self._open.enter_async_context(pool)
        return self._pool

    def _keep(self, key: tuple[str, int], image: PageImage) -> None:
        if key not in self._kept:
            self._kept[key] = image
            self._kept_bytes += len(image.png)
        while self._kept_bytes > CACHE_BYTES and self._kept:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1].png)
