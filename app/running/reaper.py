"""Ends Strongroom's processes when their supervisor is gone, even if it was killed and could end nothing itself.

Runs beside the supervisor, whose end closes our standard input: `python -m app.running.reaper`. Each line on it is
`+GROUP` or `-GROUP`, a process group that was started or has ended.
"""

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    # A Ctrl-C or a closed terminal is for the supervisor to act on; we must outlive it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        (groups.add if line[0] == "+" else groups.discard)(group)
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
