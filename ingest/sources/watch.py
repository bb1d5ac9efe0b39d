"""Tells when something happens in local folders, so that a sweep follows within seconds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import watchfiles

log = logging.getLogger("strongroom.sources")

GATHER_MS = 1_000
"""Events that come closer together than this are one."""
RETRY_S = 60.0


class Watches:
    """Follows a set of folders that changes. `tell` is called with the id of the source in which something happened.

    What exactly happened is the sweep's to find: so an event that got lost costs time, never a difference.
    """

    def __init__(self, tell: Callable[[str], Awaitable[None]]) -> None:
        self._tell = tell
        self._running: dict[tuple[str, Path], asyncio.Task[None]] = {}

    async def follow(self, folders: Mapping[str, Path]) -> None:
        """From now on just these, by the source's id."""
        wanted = set(folders.items())
        await self._end([key for key in self._running if key not in wanted])
        for key in wanted - self._running.keys():
            self._running[key] = asyncio.create_task(self._watch(*key))

    async def close(self) -> None:
        await self._end(list(self._running))

    async def _end(self, keys: list[tuple[str, Path]]) -> None:
        tasks = [self._running.pop(key) for key in keys]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, source_id: str, folder: Path) -> None:
        while True:
            with suppress(FileNotFoundError):
                try:
                    watching = watchfiles.awatch(
                        folder,
                        watch_filter=None,
                        debounce=GATHER_MS,
                        recursive=True,
                        ignore_permission_denied=True,
                        rust_timeout=1_000,
                    )
                    # What happened before the watch began, or while there was none, is looked for once.
                    await self._tell(source_id)
                    async for _ in watching:
                        await self._tell(source_id)
                except Exception as error:
                    # The kernel's limit of watches, say: the sweeps every few minutes go on meanwhile.
                    log.warning("watch_failed", exc_info=error, extra={"source": source_id})
            await asyncio.sleep(RETRY_S)
