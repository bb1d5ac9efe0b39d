"""Parses files in child processes with neither network nor secrets, so that no file can hurt the worker.

A child is started once, since its libraries take seconds to load, and parses one file at a time. It is
replaced when it crashed, took too long, grew too large or has parsed its share; the file that did it has
failed, and the pool goes on.
"""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ingest.elements import Openable, Parsed, ParseOptions, Progress
from ingest.parse.confine import Isolation
from ingest.parser_answer import ParserLimits
from ingest.parser_process import ParserProcess

__all__ = ["ParserLimits", "ParserPool"]


_FOLDER_PREFIX = "strongroom-parser-"
_LOCK = "lock"
_NO_OPTIONS = ParseOptions()
_LOAD_AFTER_S = 60.0
"""Without a file: by then everything has started that starts with the worker."""
_PROGRESS_EVERY_S = 0.5
"""A fast parser finishes hundreds of pages in a second, and nobody watches that closely."""


class ParserPool:
    """Children that parse, `size` of them at once. An async context manager.

    Open it in the event loop of a thread that lives as long as the pool does, such as the main one: a child
    dies with the thread that started it.
    """

    def __init__(
        self,
        size: int = 1,
        limits: ParserLimits | None = None,
        *,
        temporary_folder: Path | None = None,
        child_module: str = "ingest.parse.child",
    ) -> None:
        self._size = size
        self._limits = limits or ParserLimits()
        self._temporary_folder = temporary_folder
        self._child_module = child_module
        self._folder = Path()
        self._open = ExitStack()
        self._slots: asyncio.Queue[asyncio.Task[ParserProcess]] = asyncio.Queue()
        self._slots_in_use: set[asyncio.Task[ParserProcess]] = set()
        self._isolation: Isolation | None = None
        self._first_is_up = asyncio.Event()

    @property
    def isolation(self) -> Isolation:
        """What all children are kept from; known once the pool is open."""
        return self._isolation or Isolation(0)

    @property
    def isolated(self) -> bool:
        """Whether the children have no network."""
        return Isolation.NETWORK in self.isolation

    async def __aenter__(self) -> Self:
        self._folder = await asyncio.to_thread(self._make_folder)
        for _ in range(self._size):
            self._slots.put_nowait(self._fill_slot(None))
        # Only this much is waited for: the libraries load with the first file, or when nobody is in a hurry.
        await self._first_is_up.wait()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        slots = list(self._slots_in_use)
        for slot in slots:
            slot.cancel()
        for outcome in await asyncio.gather(*slots, return_exceptions=True):
            if isinstance(outcome, ParserProcess):
                await outcome.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        self._open.close()

    def _make_folder(self) -> Path:
        """A locked folder for the children, after those of workers that were killed are removed."""
        parent = self._temporary_folder or Path(tempfile.gettempdir())
        for left in parent.glob(f"{_FOLDER_PREFIX}*"):
            # Without a lock it is being made; another user's is not ours to touch.
            with suppress(OSError), (left / _LOCK).open("rb") as left_lock:
                fcntl.flock(left_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.lstat().st_uid == os.geteuid():
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent))
        # A lock and not a number: it ends with its process, and no other process can take its place.
        lock = self._open.enter_context((folder / _LOCK).open("wb"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder

    async def parse(
        self, content: Openable, media_type: str, options: ParseOptions = _NO_OPTIONS
    ) -> AsyncGenerator[Parsed]:
        """What a free child finds in the file, as it finds it. Raises ParseFailed.

        Use it with `aclosing`: closing it early, or cancelling it, kills the child. The child waits while its
        reader is away. An attachment's file is there until the next step.
        """
        slot = await self._slots.get()
        try:
            # Shielded: a caller who gives up while a child starts must not stop it for the next one.
            child = await asyncio.shield(slot)
            await child.ready()
            async with aclosing(child.parse(content, media_type, options)) as found:
                loop, told = asyncio.get_running_loop(), 0.0
                async for parsed in found:
                    if isinstance(parsed, Progress):
                        if loop.time() - told < _PROGRESS_EVERY_S:
                            # What is read already comes without a pause, and others wait for the event loop.
                            await asyncio.sleep(0)
                            continue
                        told = loop.time()
                    yield parsed
        finally:
            self._slots.put_nowait(slot if _is_usable(slot) else self._fill_slot(slot))

    def _fill_slot(self, used_up: asyncio.Task[ParserProcess] | None) -> asyncio.Task[ParserProcess]:
        slot = asyncio.create_task(self._start_child(used_up), name="parser child")
        self._slots_in_use.add(slot)
        if used_up is not None:
            self._slots_in_use.discard(used_up)
            if used_up.exception() is None:
                # Now, not in the new task: closing the pool may cancel that before it has begun.
                used_up.result().kill()
        return slot

    async def _start_child(self, used_up: asyncio.Task[ParserProcess] | None) -> ParserProcess:
        if used_up is not None and used_up.exception() is None:
            await used_up.result().close()
        try:
            # One that follows another is wanted: it loads its libraries while others parse.
            idle_s = _LOAD_AFTER_S if used_up is None else 0.0
            child = await ParserProcess.start(self._folder, self._limits, self._child_module, idle_s=idle_s)
            try:
                isolation = await child.isolation()
                self._isolation = isolation if self._isolation is None else isolation & self._isolation
                self._first_is_up.set()
            except BaseException:
                await child.close()
                raise
        finally:
            # A child that does not start is told by the first file, not by keeping the worker waiting.
            self._first_is_up.set()
        return child


def _is_usable(slot: asyncio.Task[ParserProcess]) -> bool:
    """True for a child that starts or can take another file."""
    if not slot.done():
        return True
    return not slot.cancelled() and slot.exception() is None and slot.result().fit
