"""Takes its own rights away and then runs the command it is given: how the sandbox starts a child.

Started as `python -m ingest.parse.confine ORDER COMMAND...`. It is a program of its own since the rights must
go before the parser's libraries are loaded, and since code between fork and exec is unsafe in a process with
threads. The command says with one byte on the descriptor `replies` what it is kept from (`Isolation`).

It stays as the command's guard: it ends as the command ended, and nothing that the command started outlives
it. Where the system allows it, the command lives in a process namespace, whose first process stands between
the two: with that one, the kernel ends all others at once.
"""

import ctypes
import os
import resource
import select
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path
from types import FrameType
from typing import NoReturn

import orjson

from ingest.parse.landlock import Access, restrict


class Isolation(Flag):
    """What the system keeps a child from."""

    NETWORK = auto()
    """It has no network at all."""
    FILESYSTEM = auto()
    """It sees its libraries, the file to parse and a folder of its own."""
    PROCESSES = auto()
    """It reaches no process but those that it started, and they end with it."""


@dataclass(frozen=True)
class Order:
    """How a child is to be confined."""

    parent: int
    replies: int
    limits: dict[str, int]
    """By the name of the limit in `resource`."""
    code: str
    """The folder of our packages; only their names are seen but for those in `packages`."""
    packages: list[str]
    readable: list[str]
    writable: list[str]

    def to_json(self) -> str:
        return orjson.dumps(self).decode()

    @classmethod
    def from_json(cls, sent: str) -> "Order":
        return cls(**orjson.loads(sent))


def descendants(pid: int) -> Iterator[int]:
    """The processes below one, as far as they are seen from here; one that ends meanwhile is passed over."""
    above = [pid]
    while above:
        with suppress(OSError):
            for task in Path(f"/proc/{above.pop()}/task").iterdir():
                with suppress(OSError):
                    below = [int(child) for child in (task / "children").read_bytes().split()]
                    yield from below
                    above += below


_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_CLONE_NEWIPC = 0x08000000
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_NO_ROOT_LOCKED = 0b11
_CAPABILITIES = 64


def main() -> NoReturn:
    """Never returns."""
    order = Order.from_json(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    isolation = _leave_namespaces(libc)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != order.parent:
        # The worker died before the line above could bind us to it.
        sys.exit(1)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guarded, ours = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _bind_to_guard(libc, guarded)
        if Isolation.PROCESSES in isolation:
            _be_first_process(libc, order, isolation)
        _become_command(libc, order, isolation)
    os.close(guarded)

    def end(_signal: int, _frame: FrameType | None) -> NoReturn:
        if Isolation.PROCESSES in isolation:
            # It may have ended by itself a moment ago.
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        _end_descendants()
        os._exit(128 + signal.SIGTERM)

    # Until here it would end by the signal, and the child by its bond.
    signal.signal(signal.SIGTERM, end)
    code = _code_of(child, order)
    _end_descendants()
    os._exit(code)


def _leave_namespaces(libc: ctypes.CDLL) -> Isolation:
    """Moves into namespaces with nothing in them, as far as the system allows that.

    Root may do so directly; others only inside a user namespace, which some systems switch off.
    """
    everything = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWPID
    if any(libc.unshare(flags) == 0 for flags in (everything, _CLONE_NEWUSER | everything)):
        return Isolation.NETWORK | Isolation.PROCESSES
    return Isolation(0)


def _bind_to_guard(libc: ctypes.CDLL, guarded: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Across namespaces a parent has no number to compare, but its end of a pipe closes with it.
    if select.select([guarded], [], [], 0)[0]:
        os._exit(1)
    os.close(guarded)


def _be_first_process(libc: ctypes.CDLL, order: Order, isolation: Isolation) -> NoReturn:
    """Starts the command and ends after it; as it is the namespace's first process, all others end with it."""
    command = os.fork()
    if command == 0:
        _become_command(libc, order, isolation)
    os._exit(_code_of(command, order))


def _code_of(child: int, order: Order) -> int:
    """Waits for the child, and for orphans until then. The child's code, or 128 and its signal."""
    for descriptor in (0, order.replies):
        # The sandbox must see the command's end of a pipe close.
        os.close(descriptor)
    ended, status = 0, 0
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_descendants() -> None:
    """Those that lose their parents meanwhile come to us, so it is repeated until there are none."""
    stopped: set[int] = set()
    while below := set(descendants(os.getpid())):
        # Stopped first, as long as there are new ones: they would start others faster than they are ended.
        is_all_stopped = below <= stopped
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if is_all_stopped else signal.SIGSTOP)
        stopped |= below
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _become_command(libc: ctypes.CDLL, order: Order, isolation: Isolation) -> NoReturn:
    if _is_restricted(libc, order):
        isolation |= Isolation.FILESYSTEM
    _drop_capabilities(libc)
    os.write(order.replies, bytes([isolation.value]))
    for name, value in order.limits.items():
        if name == "RLIMIT_NPROC" and Isolation.PROCESSES not in isolation:
            # Without a user namespace it counts all processes of this user, ours and others.
            continue
        limit = getattr(resource, name)
        _, hardest = resource.getrlimit(limit)
        most = value if hardest == resource.RLIM_INFINITY else min(value, hardest)
        resource.setrlimit(limit, (most, most))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - a list, and no shell


def _is_restricted(libc: ctypes.CDLL, order: Order) -> bool:
    prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)
    packages = (f"{order.code}/{package}" for package in order.packages)
    allowed = dict.fromkeys((*_SYSTEM_READABLE, *prefixes, *packages, *order.readable), Access.READ)
    # Python looks for its packages there. An installed one has its code among the libraries.
    allowed.setdefault(order.code, Access.LIST)
    if shutil.which("soffice"):
        # It makes one for itself, there and nowhere else.
        allowed["/tmp"] = Access.SOCKETS  # noqa: S108 - LibreOffice's name for it, not ours
    allowed |= dict.fromkeys(("/dev/null", *order.writable), Access.ALL)
    return restrict(libc, {Path(path): access for path, access in allowed.items()})


_SYSTEM_READABLE = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/proc"),
    *("/sys/devices/system/cpu", "/dev/urandom", "/dev/random", "/dev/zero"),
    # Of /etc only what programs need to start, to name their user and to find fonts.
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/fonts"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/localtime", "/etc/timezone"),
    *("/etc/libreoffice", "/etc/mime.types", "/etc/papersize", "/etc/paperspecs", "/etc/locale.alias"),
    *("/var/cache/fontconfig", "/var/lib/libreoffice", "/var/spool/libreoffice"),
)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root keeps its files and nothing else; others have no capabilities to drop."""
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_SECUREBITS, _NO_ROOT_LOCKED, 0, 0, 0)


if __name__ == "__main__":
    main()
