"""A parser that does what its file says, for the sandbox's tests: hang, crash, allocate, connect, print."""

import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ingest.elements import Attachment, Element, ElementKind, Parsed, ParsedPart, ParseOptions, Progress
from ingest.kinds import MediaType
from ingest.parse.serve import FRAME_HEAD, serve

_kept: list[bytes] = []


def obey(path: Path, _media_type: MediaType, options: ParseOptions) -> Iterator[Parsed]:  # noqa: PLR0912, PLR0915
    """One case a misdeed."""
    command, _, argument = path.read_text().partition(" ")
    said = own_pid()
    match command:
        case "hang":
            time.sleep(600)
        case "spin":
            while True:
                pass
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
            os.write(int(sys.argv[1]), argument.encode("latin-1"))
            time.sleep(600)
        case "flood":
            while True:
                os.write(int(sys.argv[1]), FRAME_HEAD.pack(int(argument), 3) + b"[1]")
        case "close":
            os.close(int(sys.argv[1]))
            time.sleep(600)
        case "connect":
            said = _connected(int(argument))
        case "write":
            said = _written(int(argument))
        case "fill":
            for number in range(10_000):
                Path(f"fill-{number}").write_bytes(bytes(1 << 20))
        case "read":
            said = _tried(lambda: Path(argument).read_text(errors="replace"))
        case "list":
            said = _tried(lambda: " ".join(path.name for path in Path(argument).iterdir()))
        case "overwrite":
            said = _tried(lambda: str(Path(argument or path).write_text("mine")))
        case "link":
            Path("mine").symlink_to(argument)
            said = _tried(Path("mine").read_text)
        case "run":
            done = subprocess.run(shlex.split(argument), capture_output=True, text=True, check=False)
            said = f"{done.returncode} {done.stdout} {done.stderr[-4000:]}"
        case "convert":
            Path("page.txt").write_text("Cold.")
            converted = [*argument.split(), "page.txt"]
            subprocess.run(converted, check=True, capture_output=True)
            said = str(Path("page.doc").stat().st_size)
        case "signal":
            said = _tried(lambda: _signalled(int(argument)))
        case "capabilities":
            said = next(line for line in _status() if line.startswith("CapEff")).split()[1]
        case "environment":
            seen = os.environ  # noqa: TID251 - what a parser sees of it is the question
            said = "\n".join(f"{name}={value}" for name, value in seen.items())
        case "fork":
            _fork_without_end()
        case "spawn":
            # In a session of its own, so that no signal to ours reaches it.
            said = str(_spawned())
            if argument:
                yield _part(said, 0)
                time.sleep(600)
        case "swell":
            for _ in range(int(argument)):
                _spawned("x = b'x' * (60 << 20); import time; time.sleep(600)")
            time.sleep(600)
        case "stream":
            yield from _stream(int(argument))
            return
        case "stream-then-hang":
            yield from _stream(int(argument))
            time.sleep(600)
        case "stream-then-die":
            yield from _stream(int(argument))
            os.kill(os.getpid(), signal.SIGSEGV)
        case "pages":
            for page in range(1, int(argument) + 1):
                time.sleep(0.4)
                yield Progress(page, int(argument))
        case "pages-without-end":
            yield from map(Progress, itertools.count(1))
        case "gap":
            yield _part("first", 0)
            yield _part("third", 99)
        case "attach":
            for number in range(int(argument)):
                Path("inner").write_text(f"file {number}")
                yield Attachment(f"folder/{number}.txt", Path("inner"))
        case "attach-link":
            Path("inner").symlink_to(argument)
            yield Attachment("inner", Path("inner"))
        case "attach-large":
            Path("inner").write_bytes(bytes(int(argument) << 20))
            yield Attachment("inner", Path("inner"))
        case "leave":
            Path("left").write_text("behind")
            Path("folder").mkdir()
        case "left":
            said = " ".join(sorted(path.name for path in Path().iterdir())) or "nothing"
        case "password":
            said = f"{options.password} {own_pid()}"
            if argument:
                yield _part(said, 0)
                time.sleep(600)
        case "raise":
            raise KeyError(argument)
    yield _part(said, 0)


def own_pid() -> str:
    """As it is seen from outside."""
    return str(Path("/proc/self").readlink())


def _part(text: str, start_char: int) -> ParsedPart:
    element = Element(ElementKind.TEXT, start_char, start_char + len(text), ())
    return ParsedPart(text, (element,), start_char=start_char)


def _stream(parts: int) -> Iterator[Parsed]:
    start_char = 0
    for number in range(parts):
        part = _part(f"{number} ".ljust(200_000, "x"), start_char)
        start_char = part.end_char
        yield part


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


def _tried(attempt: Callable[[], str]) -> str:
    try:
        return attempt()
    except OSError:
        return "refused"


def _signalled(pid: int) -> str:
    os.kill(pid, signal.SIGTERM)
    return "sent"


def _status() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()


def _spawned(program: str = "import time; time.sleep(600)") -> str:
    """A process that stays: its number as it is seen from outside."""
    program = f"from pathlib import Path; print(Path('/proc/self').readlink(), flush=True); {program}"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _fork_without_end() -> None:
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)


if __name__ == "__main__":
    serve(obey, replies=int(sys.argv[1]))
