"""A parser that does what its file says, for the sandbox's tests: hang, crash, allocate, connect, print."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from ingest.elements import Element, ElementKind, ParsedDocument
from ingest.media_types import MediaType
from ingest.parse.serve import serve

_kept: list[bytes] = []


def obey(path: Path, _media_type: MediaType) -> ParsedDocument:
    command, _, argument = path.read_text().partition(" ")
    said = str(os.getpid())
    match command:
        case "hang":
            time.sleep(600)
        case "die":
            os.kill(os.getpid(), signal.Signals[argument])
        case "exit":
            os._exit(3)
        case "allocate":
            while True:
                _kept.append(b"x" * (16 << 20))
        case "grow":
            _kept.append(b"x" * (int(argument) << 20))
        case "print":
            os.write(1, b"\xff" * 100_000)
            os.write(2, b"\xff" * 100_000)
        case "answer":
            os.write(int(sys.argv[1]), argument.encode())
            time.sleep(600)
        case "connect":
            said = _connected(int(argument))
        case "write":
            said = _written(int(argument))
        case "environment":
            said = Path("/proc/self/environ").read_text().replace("\0", "\n")
        case "raise":
            raise KeyError(argument)
    return ParsedDocument(said, (Element(ElementKind.TEXT, 0, len(said), ()),))


def _connected(port: int) -> str:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return "refused"
    return "connected"


def _written(mebibytes: int) -> str:
    try:
        Path("large").write_bytes(bytes(mebibytes << 20))
    except OSError:
        return "refused"
    return "written"


if __name__ == "__main__":
    serve(obey, replies=int(sys.argv[1]))
