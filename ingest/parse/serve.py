"""The child's side of the sandbox: takes one file after the other and answers with its document.

A request is one line of JSON on standard input. An answer is two frames on a descriptor of its own, each with
its length in eight bytes before it: what happened, as JSON, and the document's bytes (none for a failure).
Standard output is not used, since libraries print on it.
"""

import os
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from ingest.elements import ParsedDocument, ParseFailed, ParseFailure
from ingest.media_types import MediaType

FRAME_HEAD = struct.Struct(">Q")


@dataclass(frozen=True)
class Answer:
    """What happened to one file, or that the child is ready for the first."""

    resident_bytes: int
    """Of the child, after the file."""
    failure: ParseFailure | None = None
    message: str = ""

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, sent: bytes) -> "Answer":
        """Raises ValueError, KeyError or TypeError for anything else."""
        fields = orjson.loads(sent)
        failure = None if fields["failure"] is None else ParseFailure(fields["failure"])
        return cls(int(fields["resident_bytes"]), failure, str(fields["message"]))


def request_line(path: Path, media_type: str, timeout_s: float) -> bytes:
    """What the pool writes to have one file parsed."""
    return orjson.dumps([str(path), media_type, timeout_s]) + b"\n"


def serve(parse: Callable[[Path, MediaType], ParsedDocument], *, replies: int) -> None:
    """Answers on the descriptor `replies` until standard input ends."""
    # What the parsers start (pandoc) must not hold the pool's pipe open.
    os.set_inheritable(replies, False)
    _send(replies, Answer(_resident_bytes()).to_json(), b"")
    for line in sys.stdin.buffer:
        path, media_type, timeout_s = orjson.loads(line)
        _limit_cpu(timeout_s)
        failure: ParseFailed | None = None
        content = b""
        try:
            content = parse(Path(path), MediaType(media_type)).to_json()
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
        answer = Answer(
            _resident_bytes(), failure.code if failure else None, failure.message if failure else ""
        )
        _send(replies, answer.to_json(), content)


def _send(replies: int, *frames: bytes) -> None:
    with os.fdopen(replies, "wb", closefd=False) as pipe:
        for frame in frames:
            pipe.write(FRAME_HEAD.pack(len(frame)))
            pipe.write(frame)


def _limit_cpu(timeout_s: float) -> None:
    """Bounds this file's CPU time too: it also ends what the parsers started when the pool is gone."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hardest = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(usage.ru_utime + usage.ru_stime + timeout_s) + 2
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hardest == resource.RLIM_INFINITY else min(soft, hardest), hardest)
    )


def _resident_bytes() -> int:
    with Path("/proc/self/statm").open("rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
