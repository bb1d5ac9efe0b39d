"""Runs all faults at full size, one after the other, and prints one table: `python -m tests.faults [--share 0.02]`.

It goes on after one that fails, and fails at its end. `--only NAME` runs some; `--share` makes all of them shorter.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.report import Row, row_in, table
from tests.stack import ROOT

Count = Callable[[int], int]


@dataclass(frozen=True)
class Run:
    """One process. What pytest runs prints no row: it passed or it did not."""

    command: Callable[[Count], Sequence[str]]
    tested: str = ""
    times: int = 0
    environment: Callable[[Count], Mapping[str, str]] = field(default=lambda _: {})


RUNS: Mapping[str, Run] = {
    "kills": Run(lambda n: ["tests.faults.kills", "--times", str(n(700))]),
    "storm": Run(lambda n: ["tests.faults.storm", "--kills", str(n(300)), "--errors", str(n(300))]),
    "recovery": Run(lambda n: ["tests.faults.recovery", "--chunks", str(n(100_000)), "--times", str(n(20))]),
    "bit_rot": Run(lambda n: ["tests.faults.bit_rot", "--times", str(n(1_000))]),
    "any_order": Run(
        lambda _: ["pytest", "--timeout", "0", "-q", "tests/faults/test_any_order.py"],
        tested="any order of changes, crashes, rebuilds, backups and restores",
        times=1_000,
        environment=lambda n: {"STEPS": "50", "EXAMPLES": str(n(1_000))},
    ),
    "database": Run(lambda n: ["tests.faults.database", "--times", str(n(50))]),
    "exhaustion": Run(lambda n: ["tests.faults.exhaustion", "--times", str(n(50))]),
    "clocks": Run(lambda n: ["tests.faults.clocks", "--times", str(n(50))]),
    "backends": Run(lambda n: ["tests.faults.backends", "--times", str(n(50))]),
    "stopping": Run(lambda n: ["tests.faults.stopping", "--times", str(n(20))]),
    "departures": Run(lambda n: ["tests.faults.departures", "--times", str(n(200))]),
    "overload": Run(lambda n: ["tests.faults.overload", "--seconds", str(n(60))]),
    "big_files": Run(lambda n: ["tests.faults.big_files", "--pages", str(n(10_000)), "--mib", str(n(1_024))]),
    "large_uploads": Run(
        lambda _: ["pytest", "-q", "tests/app/test_large_uploads.py"],
        tested="F18 uploads of 600 MB, whole and in parts, killed between them",
        times=1,
    ),
    "full_disk": Run(
        lambda _: ["pytest", "-q", "tests/faults/test_full_disk.py"],
        tested="F4 disks of 48 MiB that are full",
        times=1,
    ),
    "audit": Run(
        lambda _: ["pytest", "-q", "tests/retrieval/test_audit.py"],
        tested="I6 changes to the audit log, each to be found",
        times=1_000,
    ),
}


def execute(name: str, run: Run, count: Count) -> tuple[Row, str, bool]:
    """Its row, how long it took or how it ended, and whether all was well."""
    command = [sys.executable, "-m", *run.command(count)]
    print(f"\n== {name}: {' '.join(command[1:])}", flush=True)
    started = time.monotonic()
    environment = os.environ | dict(run.environment(count))  # noqa: TID251 - the child's environment
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    took = f"{time.monotonic() - started:.0f} s"
    row = row_in("".join(lines))
    if row is None:
        row = Row(run.tested or name, run.times or 0, int(process.returncode != 0))
    if process.returncode:
        return row, f"failed after {took}", False
    return row, took, row.violations == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="NAME")
    parser.add_argument("--into", type=Path, help="a file for the table")
    asked = parser.parse_args()

    share: float = asked.share

    def count(full: int) -> int:
        return max(1, math.ceil(full * share))

    rows, is_well = [], True
    for name in asked.only:
        row, ran, went_well = execute(name, RUNS[name], count)
        rows.append((row, ran))
        is_well = is_well and went_well
        if asked.into is not None:
            asked.into.write_text(table(rows) + "\n")
    print(f"\n{table(rows)}")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
