"""Takes its own rights away and then becomes the command it is given: how the sandbox starts a child.

Started as `python -m ingest.parse.confine '{"parent": 1, "replies": 5, "limits": {...}}' COMMAND...`. It is a
program of its own since the rights must go before the parser's libraries are loaded, and since code between
fork and exec is unsafe in a process with threads. It writes one byte to the descriptor `replies`: whether the
command has no network.
"""

import ctypes
import os
import resource
import signal
import sys

import orjson

ISOLATED = b"i"
OPEN = b"o"

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Never returns."""
    order = orjson.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != order["parent"]:
        # The worker died before the line above could bind us to it.
        sys.exit(1)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    isolated = _leave_network(libc)
    os.write(order["replies"], ISOLATED if isolated else OPEN)
    for name, value in order["limits"].items():
        if name == "RLIMIT_NPROC" and not isolated:
            # Without a user namespace it counts all processes of this user, ours and others.
            continue
        limit = getattr(resource, name)
        _, hardest = resource.getrlimit(limit)
        most = value if hardest == resource.RLIM_INFINITY else min(value, hardest)
        resource.setrlimit(limit, (most, most))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - a list, and no shell


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Moves into a network namespace with nothing in it; False where the system does not allow that.

    Root may do so directly; others only inside a user namespace, which some systems switch off.
    """
    return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))


if __name__ == "__main__":
    main()
