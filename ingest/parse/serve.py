"""The child's side of the sandbox: takes one file after the other and answers with its parts as they come.

A request is one line of JSON on standard input. An answer is a row of frames on a descriptor of its own, each
with its kind in one byte and its length in eight before it, up to an END or FAILED. Standard output is not
used, since libraries print on it. The descriptor is a pipe: a child whose parts are not taken waits.
"""

import ctypes
import os
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import orjson

from ingest.elements import (
    Attachment,
    Parsed,
    ParsedPart,
    ParseFailed,
    ParseFailure,
    ParseOptions,
    Progress,
)
from ingest.kinds import MediaType

FRAME_HEAD = struct.Struct(">BQ")
WAKE = b"\n"
"""A line that has the libraries loaded before there is a request."""


class FrameKind(IntEnum):
    """What follows a frame's head."""

    READY = 1
    """Nothing: the libraries are loaded."""
    PART = 2
    """`ParsedPart.to_json`; its TEXT is the next frame."""
    TEXT = 3
    """UTF-8."""
    ATTACHMENT = 4
    """[the name within, the file's name in the child's folder]"""
    PROGRESS = 5
    """[pages done, page count]"""
    END = 6
    """`Verdict` without a failure."""
    FAILED = 7
    """`Verdict` with one."""


@dataclass(frozen=True)
class Verdict:
    """How the parsing of one file ended."""

    resident_bytes: int
    """Of the child, after the file."""
    failure: ParseFailure | None = None
    message: str = ""

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, sent: bytes) -> "Verdict":
        """Raises ValueError, KeyError or TypeError for anything else."""
        fields = orjson.loads(sent)
        failure = None if fields["failure"] is None else ParseFailure(fields["failure"])
        return cls(int(fields["resident_bytes"]), failure, str(fields["message"]))


@dataclass(frozen=True)
class Request:
    """What the pool writes to have one file parsed."""

    path: str
    media_type: str
    cpu_s: float
    """CPU time until the next part or page."""
    options: ParseOptions

    def to_line(self) -> bytes:
        return orjson.dumps(self) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Request":
        fields = orjson.loads(line)
        return cls(**{**fields, "options": ParseOptions(**fields["options"])})


Parse = Callable[[Path, MediaType, ParseOptions], Iterator[Parsed]]


def serve(parse: Parse, *, replies: int) -> None:
    """Answers on the descriptor `replies` until standard input ends."""
    # What the parsers start (pandoc) must not hold the pool's pipe open.
    os.set_inheritable(replies, False)
    # A password is in this memory: no dump of it, and no look into it from beside.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    kept = {path.name for path in Path().iterdir()}
    _send(replies, FrameKind.READY, b"")
    for line in sys.stdin.buffer:
        if line == WAKE:
            continue
        request = Request.from_line(line)
        failure: ParseFailed | None = None
        try:
            _limit_cpu(request.cpu_s)
            parsed = parse(Path(request.path), MediaType(request.media_type), request.options)
            for number, one in enumerate(parsed):
                _answer(replies, one, number)
                _limit_cpu(request.cpu_s)
        except ParseFailed as error:
            failure = error
        except MemoryError:
            failure = ParseFailed(
                ParseFailure.LIMIT, "This file takes more memory than a file may. Split it into smaller ones."
            )
        except Exception:  # noqa: BLE001 - the loop's edge: the parsers' libraries raise anything for a bad file
            failure = ParseFailed(
                ParseFailure.CORRUPT,
                "This file is damaged or not what its type says. Open it in its program and save it again.",
            )
        _clear_folder(kept)
        if failure is None:
            _send(replies, FrameKind.END, Verdict(_resident_bytes()).to_json())
        else:
            verdict = Verdict(_resident_bytes(), failure.code, failure.message)
            _send(replies, FrameKind.FAILED, verdict.to_json())


_PR_SET_DUMPABLE = 4


def _answer(replies: int, parsed: Parsed, number: int) -> None:
    match parsed:
        case ParsedPart():
            _send(replies, FrameKind.PART, parsed.to_json())
            _send(replies, FrameKind.TEXT, parsed.text.encode())
        case Attachment():
            # The pool takes it from our folder's top, where no folder of ours can lead it elsewhere.
            file = f"attachment-{number}"
            parsed.path.replace(file)
            _send(replies, FrameKind.ATTACHMENT, orjson.dumps([parsed.name, file]))
        case Progress():
            _send(replies, FrameKind.PROGRESS, orjson.dumps([parsed.pages_done, parsed.page_count]))


def _send(replies: int, kind: FrameKind, content: bytes) -> None:
    with os.fdopen(replies, "wb", closefd=False) as pipe:
        pipe.write(FRAME_HEAD.pack(kind, len(content)))
        pipe.write(content)


def _clear_folder(kept: set[str]) -> None:
    """Removes what this file's parser left, but not the attachments that the pool has yet to take."""
    for path in Path().iterdir():
        if path.name in kept or path.name.startswith("attachment-"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _limit_cpu(cpu_s: float) -> None:
    """Bounds the CPU time too: it also ends what the parsers started when the pool is gone."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hardest = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(usage.ru_utime + usage.ru_stime + cpu_s) + 2
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hardest == resource.RLIM_INFINITY else min(soft, hardest), hardest)
    )


def _resident_bytes() -> int:
    with Path("/proc/self/statm").open("rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
