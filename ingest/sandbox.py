"""Parses files in child processes with neither network nor secrets, so that no file can hurt the worker.

A child is started once, since its libraries take seconds to load, and parses one file at a time. It is
replaced when it crashed, took too long, grew too large or has parsed its share; the file that did it has
failed, and the pool goes on.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from ingest.elements import ParsedDocument, ParseFailed, ParseFailure
from ingest.parse.confine import ISOLATED
from ingest.parse.serve import FRAME_HEAD, Answer, request_line


@dataclass(frozen=True)
class ParserLimits:
    """What one child may take."""

    memory_bytes: int = 2 << 30
    """Virtual memory. The libraries alone map 1 GiB, of which they touch 0.4."""
    file_bytes: int = 256 << 20
    """The largest file that it may write, for the formats that are converted first."""
    open_files: int = 128
    processes: int = 64
    timeout_s: float = 20.0
    """Wall clock time for a file, and more for each MiB of it, so that a small bad file is given up soon."""
    timeout_s_per_mib: float = 15.0
    start_timeout_s: float = 120.0
    document_bytes: int = 512 << 20
    """The largest document, as JSON, that is taken from a child."""
    recycle_at_bytes: int = 768 << 20
    """A child with more resident memory than this after a file is replaced."""
    recycle_after_files: int = 500
    """Leaks in the libraries are bounded by this."""


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
        self._slots: asyncio.Queue[asyncio.Task[_Child]] = asyncio.Queue()
        self._slots_in_use: set[asyncio.Task[_Child]] = set()
        self._isolated: bool | None = None
        self._first_is_up = asyncio.Event()

    @property
    def isolated(self) -> bool:
        """Whether the children have no network; known once the pool is open."""
        return self._isolated is True

    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="strongroom-parser-", dir=self._temporary_folder))
        for _ in range(self._size):
            self._slots.put_nowait(self._fill_slot(None))
        # Only this much is waited for: the libraries load while the worker goes on.
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
            if isinstance(outcome, _Child):
                await outcome.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def parse(self, path: Path, media_type: str) -> ParsedDocument:
        """Has a free child parse the file. Raises ParseFailed; cancelling it kills the child."""
        slot = await self._slots.get()
        try:
            # Shielded: a caller who gives up while a child starts must not stop it for the next one.
            child = await asyncio.shield(slot)
            content = await child.parse(path, media_type)
        finally:
            self._slots.put_nowait(slot if _is_usable(slot) else self._fill_slot(slot))
        try:
            # A long document takes a second to decode, which the event loop does not have.
            return await asyncio.to_thread(ParsedDocument.from_json, content)
        except ValueError as error:
            raise _senseless_answer() from error

    def _fill_slot(self, used_up: "asyncio.Task[_Child] | None") -> "asyncio.Task[_Child]":
        slot = asyncio.create_task(self._start_child(used_up), name="parser child")
        self._slots_in_use.add(slot)
        if used_up is not None:
            self._slots_in_use.discard(used_up)
            if used_up.exception() is None:
                # Now, not in the new task: closing the pool may cancel that before it has begun.
                used_up.result().kill()
        return slot

    async def _start_child(self, used_up: "asyncio.Task[_Child] | None") -> "_Child":
        if used_up is not None and used_up.exception() is None:
            await used_up.result().close()
        try:
            child = await _Child.start(self._folder, self._limits, self._child_module)
            try:
                isolated = await child.isolation()
                self._isolated = isolated and self._isolated is not False
                self._first_is_up.set()
                await child.ready()
            except BaseException:
                child.kill()
                raise
        finally:
            # A child that does not start is told by the first file, not by keeping the worker waiting.
            self._first_is_up.set()
        return child


class _Child:
    """One child process and the two pipes to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        replies: asyncio.StreamReader,
        folder: Path,
        limits: ParserLimits,
    ) -> None:
        self._process = process
        self._replies = replies
        self._folder = folder
        self._limits = limits
        self._files = 0
        self.fit = True
        """Whether it can take another file."""

    @classmethod
    async def start(cls, folder: Path, limits: ParserLimits, module: str) -> "_Child":
        own_folder = Path(tempfile.mkdtemp(dir=folder))
        read_end, write_end = os.pipe()
        order = {
            "parent": os.getpid(),
            "replies": write_end,
            "limits": {
                "RLIMIT_AS": limits.memory_bytes,
                "RLIMIT_FSIZE": limits.file_bytes,
                "RLIMIT_NOFILE": limits.open_files,
                "RLIMIT_NPROC": limits.processes,
                "RLIMIT_CORE": 0,
            },
        }
        python = [sys.executable, "-P", "-m"]
        process = await asyncio.create_subprocess_exec(
            *python,
            "ingest.parse.confine",
            orjson.dumps(order),
            *python,
            module,
            str(write_end),
            stdin=asyncio.subprocess.PIPE,
            # What libraries print is not read: it may hold text of the document.
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=own_folder,
            env=_environment(own_folder),
            pass_fds=(write_end,),
            # A group of its own, so that what the parsers start (pandoc) is killed with it.
            start_new_session=True,
        )
        os.close(write_end)
        replies = asyncio.StreamReader(limit=1 << 20)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(replies), os.fdopen(read_end, "rb")
        )
        return cls(process, replies, own_folder, limits)

    async def isolation(self) -> bool:
        """Whether it got out of the network. Raises ParseFailed (interrupted) when it did not start."""
        try:
            return await self._replies.readexactly(1) == ISOLATED
        except asyncio.IncompleteReadError as error:
            raise _no_start() from error

    async def ready(self) -> None:
        """Returns when its libraries are loaded. Raises ParseFailed (interrupted) when that fails."""
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                await self._answer()
        except (TimeoutError, asyncio.IncompleteReadError, ValueError, KeyError, TypeError) as error:
            raise _no_start() from error

    async def parse(self, path: Path, media_type: str) -> bytes:
        """The document as JSON. Raises ParseFailed."""
        self.fit = False
        size_mib = (await asyncio.to_thread(path.stat)).st_size / (1 << 20)
        timeout_s = self._limits.timeout_s + self._limits.timeout_s_per_mib * size_mib
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(timeout_s):
                self._process.stdin.write(request_line(path.absolute(), media_type, timeout_s))
                await self._process.stdin.drain()
                answer, content = await self._answer()
        except TimeoutError as error:
            raise ParseFailed(
                ParseFailure.LIMIT,
                f"Parsing this file took more than {timeout_s:.0f} s. Split it into smaller ones.",
            ) from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _death(await self._process.wait()) from error
        except (ValueError, KeyError, TypeError) as error:
            raise _senseless_answer() from error
        self._files += 1
        self.fit = (
            answer.resident_bytes <= self._limits.recycle_at_bytes
            and self._files < self._limits.recycle_after_files
            and answer.failure is not ParseFailure.LIMIT
        )
        if answer.failure is not None:
            raise ParseFailed(answer.failure, answer.message)
        return content

    def kill(self) -> None:
        """Ends it and all that it started, at once."""
        if self._process.returncode is None:
            # It may have ended by itself a moment ago.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        self.fit = False
        self.kill()
        await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _answer(self) -> tuple[Answer, bytes]:
        answer = Answer.from_json(await self._frame(1 << 16))
        return answer, await self._frame(self._limits.document_bytes)

    async def _frame(self, most_bytes: int) -> bytes:
        (length,) = FRAME_HEAD.unpack(await self._replies.readexactly(FRAME_HEAD.size))
        if length > most_bytes:
            raise ParseFailed(
                ParseFailure.TOO_LARGE, "This file holds too much text. Split it into smaller ones."
            )
        return await self._replies.readexactly(length)


def _is_usable(slot: asyncio.Task[_Child]) -> bool:
    """True for a child that starts or can take another file."""
    if not slot.done():
        return True
    return not slot.cancelled() and slot.exception() is None and slot.result().fit


def _environment(folder: Path) -> dict[str, str]:
    """All that a child sees of the environment: nothing of ours, and nothing that calls home."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "DO_NOT_TRACK": "1",
        "SCARF_NO_ANALYTICS": "1",
        "UNSTRUCTURED_DISABLE_NOTICE": "1",
        # See ingest/parse/documents.py: titles come from styles and tags, not from guesses.
        "UNSTRUCTURED_TITLE_MAX_WORD_LENGTH": "0",
        # Threads would map memory for each core, and the pool has the cores busy already.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def _death(returncode: int) -> ParseFailed:
    if -returncode in {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        # The file does nothing of the kind: the system ran out of memory, or someone stopped the child.
        return ParseFailed(ParseFailure.INTERRUPTED, "The parser was stopped from outside. Try again.")
    if -returncode == signal.SIGXCPU:
        return ParseFailed(
            ParseFailure.LIMIT, "Parsing this file took too much time. Split it into smaller ones."
        )
    return ParseFailed(
        ParseFailure.CORRUPT,
        "This file made its parser crash: it is damaged or takes too much memory. Save or export it again.",
    )


def _no_start() -> ParseFailed:
    return ParseFailed(ParseFailure.INTERRUPTED, "The parser did not start. Try again.")


def _senseless_answer() -> ParseFailed:
    return ParseFailed(ParseFailure.CORRUPT, "The parser's answer about this file made no sense.")
