"""One child process of the sandbox: its folders, the two pipes to it, and what it may take for a file."""

import asyncio
import contextlib
import errno
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from ingest.elements import Openable, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.confine import Isolation, Order, descendants
from ingest.parse.serve import FRAME_HEAD, WAKE, FrameKind, Request
from ingest.parser_answer import ParserAnswer, ParserLimits, senseless_answer, too_much_text


class ParserProcess:
    """A child and all that it started; whoever starts it closes it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        replies: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
        folder: Path,
        limits: ParserLimits,
    ) -> None:
        self._process = process
        self._replies = replies
        self._pipe = pipe
        self._folder = folder
        self._limits = limits
        self._files = 0
        self._processes_of_its_own = 0
        self._loading: asyncio.Task[None] | None = None
        self._excess: ParseFailed | None = None
        self.fit = True
        """Whether it can take another file."""

    @classmethod
    async def start(
        cls, folder: Path, limits: ParserLimits, module: str, *, idle_s: float
    ) -> "ParserProcess":
        """Starts one with a folder of its own in `folder`; `module` is the program.

        It loads its libraries when the first file comes, or after `idle_s` seconds without one.
        """
        own_folder = Path(tempfile.mkdtemp(dir=folder)).resolve()
        # What it works on is beside where it writes: a hard link that it could write to would be the blob.
        for name in (_WORK, _INPUT, _TAKEN):
            (own_folder / name).mkdir()
        read_end, write_end = os.pipe()
        read_pipe = os.fdopen(read_end, "rb")
        code = Path(__file__).parents[1]
        order = Order(
            parent=os.getpid(),
            replies=write_end,
            limits={
                "RLIMIT_AS": limits.memory_bytes,
                "RLIMIT_FSIZE": limits.file_bytes,
                "RLIMIT_NOFILE": limits.open_files,
                "RLIMIT_NPROC": limits.processes,
                "RLIMIT_CORE": 0,
            },
            code=str(code),
            packages=["ingest", "retrieval", module.partition(".")[0]],
            readable=[str(own_folder / _INPUT)],
            writable=[str(own_folder / _WORK)],
        )
        python = [sys.executable, "-P", "-m"]
        try:
            process = await asyncio.create_subprocess_exec(
                *python,
                "ingest.parse.confine",
                order.to_json(),
                *python,
                module,
                str(write_end),
                str(idle_s),
                stdin=asyncio.subprocess.PIPE,
                # What libraries print is not read: it may hold text of the document.
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                cwd=own_folder / _WORK,
                env=_environment(own_folder / _WORK, code),
                pass_fds=(write_end,),
                start_new_session=True,
            )
        except BaseException:
            read_pipe.close()
            raise
        finally:
            os.close(write_end)
        replies = asyncio.StreamReader(limit=1 << 16)
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(replies), read_pipe
        )
        return cls(process, replies, pipe, own_folder, limits)

    async def isolation(self) -> Isolation:
        """What it is kept from. Raises ParseFailed (interrupted) when it did not start."""
        try:
            return Isolation((await self._replies.readexactly(1))[0])
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise _no_start() from error

    async def ready(self) -> None:
        """Returns when its libraries are loaded. Raises ParseFailed (interrupted) when that fails."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name="parser child loads")
        # Shielded: a caller who gives up meanwhile must not stop it for the next one.
        await asyncio.shield(self._loading)

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                await self._send(WAKE)
                kind, _ = await self._frame()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError) as error:
            self.fit = False
            raise _no_start() from error
        if kind is not FrameKind.READY:
            self.fit = False
            raise _no_start()
        self._processes_of_its_own = len(_living(self._process.pid))

    async def parse(self, file: Openable, media_type: str, options: ParseOptions) -> AsyncGenerator[Parsed]:
        """What the file holds, as it comes. Raises ParseFailed; closed early, the child is not fit any more."""
        self.fit = False
        size_mib = await asyncio.to_thread(self._take_in, file) / (1 << 20)
        budget_s = self._limits.timeout_s + self._limits.timeout_s_per_mib * size_mib
        request = Request(str(self._folder / _INPUT / _FILE), media_type, budget_s, options)
        answer = ParserAnswer(self._limits, budget_s)
        watch = asyncio.create_task(self._watch(), name="parser watch")
        try:
            async with self._waiting(answer):
                await self._send(request.to_line())
            verdict = None
            while verdict is None:
                async with self._waiting(answer):
                    kind, content = await self._frame()
                    text = await self._text() if kind is FrameKind.PART else b""
                match kind:
                    case FrameKind.PART:
                        # A long part takes a while to decode, which the event loop does not have.
                        yield await asyncio.to_thread(answer.part, text, content)
                    case FrameKind.ATTACHMENT:
                        attachment = answer.attachment(
                            content, work=self._folder / _WORK, taken=self._folder / _TAKEN / _FILE
                        )
                        try:
                            yield attachment
                        finally:
                            attachment.path.unlink(missing_ok=True)
                    case FrameKind.PROGRESS:
                        yield answer.progress(content)
                    case FrameKind.END | FrameKind.FAILED:
                        verdict = answer.verdict(content)
                    case _:
                        raise senseless_answer()
        finally:
            watch.cancel()
            (self._folder / _INPUT / _FILE).unlink(missing_ok=True)
        self._files += 1
        self.fit = (
            verdict.resident_bytes <= self._limits.recycle_at_bytes
            and self._files < self._limits.recycle_after_files
            and verdict.failure is not ParseFailure.LIMIT
            and len(_living(self._process.pid)) <= self._processes_of_its_own
            and self._excess is None
        )
        if verdict.failure is not None:
            raise ParseFailed(verdict.failure, verdict.message)

    def kill(self) -> None:
        """Has it and all that it started end, at once."""
        if self._process.returncode is None:
            # To its guard, who ends what is below before itself.
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        # A pipe that is not read, because its reader left early, would never be seen to end.
        self._pipe.close()

    async def close(self) -> None:
        """Kills it, waits for its end and removes its folder."""
        self.fit = False
        self.kill()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        try:
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _take_in(self, content: Openable) -> int:
        """Puts the file where the child may read it, and only it. Its size in bytes. Raises ParseFailed (limit)."""
        taken = self._folder / _INPUT / _FILE
        # A copy must never be written through a link that is left: it would be written to the blob.
        taken.unlink(missing_ok=True)
        try:
            if isinstance(content, Path):
                # Fails where it lies on another disk, or belongs to another user.
                with contextlib.suppress(OSError):
                    os.link(content.resolve(), taken)
                    return taken.stat().st_size
            with content.open("rb") as source, taken.open("xb") as copy:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ParseFailed(
                ParseFailure.LIMIT,
                "There is no room to parse this file. Give encryption.memory_folder more memory.",
            ) from error
        return taken.stat().st_size

    async def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        await self._process.stdin.drain()

    async def _frame(self) -> tuple[FrameKind, bytes]:
        kind, length = FRAME_HEAD.unpack(await self._replies.readexactly(FRAME_HEAD.size))
        is_long = kind in {FrameKind.PART, FrameKind.TEXT}
        if length > (self._limits.part_bytes if is_long else _SHORT_FRAME_BYTES):
            raise too_much_text()
        return FrameKind(kind), await self._replies.readexactly(length)

    async def _text(self) -> bytes:
        kind, content = await self._frame()
        if kind is not FrameKind.TEXT:
            raise senseless_answer()
        return content

    @contextlib.asynccontextmanager
    async def _waiting(self, answer: ParserAnswer) -> AsyncIterator[None]:
        """Waits for the child as long as its file may take, and tells what became of it instead."""
        try:
            async with answer.budget():
                yield
        except TimeoutError as error:
            raise ParseFailed(
                ParseFailure.LIMIT,
                f"Parsing this file took more than {answer.budget_s:.0f} s. Split it into smaller ones.",
            ) from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise self._excess or await self._death() from error
        except ValueError as error:
            raise senseless_answer() from error

    async def _death(self) -> ParseFailed:
        with contextlib.suppress(TimeoutError):
            # A child that only closed its end of the pipe is not waited for.
            async with asyncio.timeout(_DEATH_TIMEOUT_S):
                return _death(await self._process.wait())
        return _death(0)

    async def _watch(self) -> None:
        """Kills the child when all that it started takes too much together, which no limit of the system bounds."""
        while self._excess is None:
            await asyncio.sleep(_WATCH_EVERY_S)
            self._excess = await asyncio.to_thread(self._found_excess)
        self.kill()

    def _found_excess(self) -> ParseFailed | None:
        processes = _living(self._process.pid)
        if len(processes) > self._limits.processes:
            return ParseFailed(
                ParseFailure.LIMIT, "Parsing this file started too many programs. Save or export it again."
            )
        if sum(processes.values()) > self._limits.resident_bytes:
            return ParseFailed(
                ParseFailure.LIMIT, "This file takes more memory than a file may. Split it into smaller ones."
            )
        if _bytes_in(self._folder / _WORK) > self._limits.folder_bytes:
            return ParseFailed(
                ParseFailure.LIMIT,
                "This file takes more room on disk than a file may. Split it into smaller ones.",
            )
        return None


_WORK = "work"
_INPUT = "input"
_TAKEN = "taken"
_FILE = "file"
_COPY_BYTES = 1 << 20
_SHORT_FRAME_BYTES = 1 << 16
_KILL_TIMEOUT_S = 5.0
_DEATH_TIMEOUT_S = 1.0
_WATCH_EVERY_S = 0.25


def _living(pid: int) -> dict[int, int]:
    """The processes below a guard that have not ended, with their resident bytes."""
    found: dict[int, int] = {}
    for below in descendants(pid):
        with contextlib.suppress(OSError):
            state, resident = _state_and_resident_bytes(below)
            if state != "Z":
                found[below] = resident
    return found


def _state_and_resident_bytes(pid: int) -> tuple[str, int]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[21]) * resource.getpagesize()


def _bytes_in(folder: Path) -> int:
    """The room that the files below take on disk; what goes away meanwhile takes none."""
    taken = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                taken += Path(path, name).lstat().st_blocks * 512
    return taken


def _environment(folder: Path, code: Path) -> dict[str, str]:
    """All that a child sees of the environment: nothing of ours, and nothing that calls home."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(code),
        "DO_NOT_TRACK": "1",
        "SCARF_NO_ANALYTICS": "1",
        "UNSTRUCTURED_DISABLE_NOTICE": "1",
        # See ingest/parse/documents.py: titles come from styles and tags, not from guesses.
        "UNSTRUCTURED_TITLE_MAX_WORD_LENGTH": "0",
        # Threads would map memory for each core, and the pool has the cores busy already.
        "OMP_NUM_THREADS": "1",
        "OMP_THREAD_LIMIT": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def _death(returncode: int) -> ParseFailed:
    ended_by = -returncode if returncode < 0 else returncode - 128
    if ended_by in {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        # The file does nothing of the kind: the system ran out of memory, or someone stopped the child.
        return ParseFailed(ParseFailure.INTERRUPTED, "The parser was stopped from outside. Try again.")
    if ended_by == signal.SIGXCPU:
        return ParseFailed(
            ParseFailure.LIMIT, "Parsing this file took too much time. Split it into smaller ones."
        )
    return ParseFailed(
        ParseFailure.CORRUPT,
        "This file made its parser crash: it is damaged or takes too much memory. Save or export it again.",
    )


def _no_start() -> ParseFailed:
    return ParseFailed(ParseFailure.INTERRUPTED, "The parser did not start. Try again.")
