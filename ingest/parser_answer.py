"""What a child may take for a file and what it answers, checked, since a child gone wild may answer anything."""

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from ingest.elements import Attachment, ParsedPart, ParseFailed, ParseFailure, Progress
from ingest.parse.serve import Verdict


@dataclass(frozen=True)
class ParserLimits:
    """What one child may take."""

    memory_bytes: int = 2 << 30
    """Virtual memory of each process. The libraries alone map 1 GiB, of which they touch 0.4."""
    resident_bytes: int = 2 << 30
    """Of the child and all that it started, together."""
    file_bytes: int = 256 << 20
    """The largest file that it may write, for the formats that are converted first."""
    folder_bytes: int = 1 << 30
    """All that it may have written at one time."""
    open_files: int = 512
    processes: int = 64
    timeout_s: float = 20.0
    """Wall clock time for a file, and more for each MiB of it, so that a small bad file is given up soon.

    Only the time in which the child is waited for counts, not what its reader takes.
    """
    timeout_s_per_mib: float = 15.0
    timeout_s_per_page: float = 10.0
    """Each page that is done gives back so much of the time that was used."""
    timeout_s_at_most: float = 6 * 3600.0
    start_timeout_s: float = 120.0
    part_bytes: int = 64 << 20
    """The largest part that is taken from a child."""
    document_bytes: int = 4 << 30
    pages: int = 1_000_000
    attachments: int = 2_000
    attachment_bytes: int = 512 << 20
    recycle_at_bytes: int = 768 << 20
    """A child with more resident memory than this after a file is replaced."""
    recycle_after_files: int = 500
    """Leaks in the libraries are bounded by this."""


class ParserAnswer:
    """The frames about one file, and how much it has taken of what it may.

    All but `budget` raise ParseFailed for what makes no sense or is too much.
    """

    def __init__(self, limits: ParserLimits, budget_s: float) -> None:
        self.budget_s = budget_s
        self._limits = limits
        self._left_s = budget_s
        self._left_s_at_most = limits.timeout_s_at_most
        self._pages_done = 0
        self._end_char = 0
        self._bytes = 0
        self._attachments = 0
        self._attachment_bytes = 0

    @contextlib.asynccontextmanager
    async def budget(self) -> AsyncIterator[None]:
        """Raises TimeoutError when the child has been waited for too long, this time and before."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(min(self._left_s, self._left_s_at_most)):
                yield
        finally:
            self._left_s -= loop.time() - began
            self._left_s_at_most -= loop.time() - began

    def part(self, text: bytes, elements: bytes) -> ParsedPart:
        self._bytes += len(text) + len(elements)
        if self._bytes > self._limits.document_bytes:
            raise too_much_text()
        try:
            part = ParsedPart.from_json(text.decode(), elements)
        except ValueError as error:
            raise senseless_answer() from error
        if part.start_char != self._end_char:
            raise senseless_answer()
        self._end_char = part.end_char
        self._add_pages(part.pages_done or 0)
        return part

    def attachment(self, content: bytes, *, work: Path, taken: Path) -> Attachment:
        """Moves the file from the child's folder to `taken`, out of its reach: it must not become a link."""
        try:
            name, file = orjson.loads(content)
            if not isinstance(name, str) or file != Path(file).name:
                raise senseless_answer()
            (work / file).rename(taken)
            found = taken.lstat()
        except (ValueError, TypeError, OSError) as error:
            raise senseless_answer() from error
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise senseless_answer()
        self._attachments += 1
        self._attachment_bytes += found.st_size
        if (
            self._attachments > self._limits.attachments
            or self._attachment_bytes > self._limits.attachment_bytes
        ):
            raise ParseFailed(
                ParseFailure.TOO_LARGE,
                f"This file holds more than {self._limits.attachments:,} files or "
                f"{self._limits.attachment_bytes >> 20} MiB of them. Unpack it and upload what is needed.",
            )
        return Attachment(name, taken)

    def progress(self, content: bytes) -> Progress:
        try:
            pages_done, page_count = orjson.loads(content)
            progress = Progress(int(pages_done), None if page_count is None else int(page_count))
        except (ValueError, TypeError) as error:
            raise senseless_answer() from error
        self._add_pages(progress.pages_done)
        return progress

    def verdict(self, content: bytes) -> Verdict:
        try:
            return Verdict.from_json(content)
        except (ValueError, KeyError, TypeError) as error:
            raise senseless_answer() from error

    def _add_pages(self, pages_done: int) -> None:
        more = max(0, pages_done - self._pages_done)
        self._pages_done += more
        if self._pages_done > self._limits.pages:
            raise too_much_text()
        self._left_s = min(self.budget_s, self._left_s + more * self._limits.timeout_s_per_page)


def senseless_answer() -> ParseFailed:
    return ParseFailed(ParseFailure.CORRUPT, "The parser's answer about this file made no sense.")


def too_much_text() -> ParseFailed:
    return ParseFailed(ParseFailure.TOO_LARGE, "This file holds too much text. Split it into smaller ones.")
