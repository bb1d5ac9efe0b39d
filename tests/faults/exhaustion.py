"""An api role that runs out of file descriptors, of memory and threads: `python -m tests.faults.exhaustion --times 50`.

The limit falls on the running process while clients add, delete and crowd in, and is lifted again. What it cannot do is
refused with 503 or a closed connection, what it acknowledged is there, and it works on; one that died is started
again, as the supervisor does. F24.
"""

import argparse
import random
import resource
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from tests.api_role import ApiRole
from tests.faults.report import Row
from tests.faults.storm import Storm, Told, violations
from tests.stack import eventually

MIB = 1 << 20
CALM_S = 0.5
SCARCE_S = 4.0
SPARE_FILES = 6
SPARE_BYTES = 4 * MIB
"""Of address space: less than one new thread takes."""
CROWD = 60
"""Connections that ask for nothing."""
RECOVERS_WITHIN_S = 10.0


@dataclass
class Exhausted:
    """What came of it."""

    times: int = 0
    deaths: int = 0
    violations: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    acknowledged: int = 0
    refused: int = 0

    def row(self) -> Row:
        figures = f"{self.acknowledged} acknowledged, {self.refused} refused, {self.deaths} deaths"
        what = "F24 no more files, memory or threads for the api role"
        return Row(what, self.times, len(self.violations), max(self.recovery_s), figures)


def exhaust(folder: Path, *, times: int, seed: int) -> Exhausted:
    """So often of each kind."""
    chance, found = random.Random(seed), Exhausted()
    with ApiRole(folder / "data") as role:
        role.start()
        with httpx.Client(base_url=role.url, headers=role.headers) as http:
            told = Told(http.post("/v1/vector_stores", json={"name": "storm"}).json()["id"])
        for _ in range(times):
            for limit in (few_files, little_memory):
                Storm(role, told, chance.randrange(1 << 30)).blow(lambda limit=limit: limit(role))  # type: ignore[misc]
                _recover(role, found, limit.__name__)
                found.violations += [f"{limit.__name__}: {each}" for each in violations(role, told)]
                told.crashed.clear()
                found.times += 1
                found.acknowledged, found.refused = told.acknowledged, told.refused
                print(
                    f"{limit.__name__}: {told.acknowledged} acknowledged, back in {found.recovery_s[-1]:.1f} s"
                )
        role.kill()
        role.command("verify", "--url", "http://127.0.0.1:9")
    return found


def few_files(role: ApiRole) -> None:
    """A crowd takes what is left."""
    time.sleep(CALM_S)
    process = psutil.Process(role.pid)
    usual = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + SPARE_FILES, usual[1]))
    try:
        with ExitStack() as crowd:
            for _ in range(CROWD):
                with suppress(OSError):
                    address = urlsplit(role.url)
                    crowd.enter_context(socket.create_connection((address.hostname, address.port), timeout=1))
            time.sleep(SCARCE_S)
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, usual)


def little_memory(role: ApiRole) -> None:
    """Neither new threads nor large buffers find room."""
    time.sleep(CALM_S)
    process = psutil.Process(role.pid)
    usual = process.rlimit(resource.RLIMIT_AS)
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + SPARE_BYTES, usual[1]))
    try:
        time.sleep(SCARCE_S)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.rlimit(resource.RLIMIT_AS, usual)


def _recover(role: ApiRole, found: Exhausted, name: str) -> None:
    began = time.monotonic()
    if role.has_ended():
        found.deaths += 1
        role.start()
    with httpx.Client(base_url=role.url, headers=role.headers, timeout=60) as http:
        eventually(lambda: _works(http), within_s=60, every_s=0.02)
    found.recovery_s.append(time.monotonic() - began)
    if found.recovery_s[-1] > RECOVERS_WITHIN_S:
        found.violations.append(f"{name}: back after {found.recovery_s[-1]:.1f} s")


def _works(http: httpx.Client) -> bool:
    with suppress(httpx.HTTPError):
        return http.post("/v1/vector_stores", json={"name": "back"}).status_code == 200
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = exhaust(Path(folder), times=asked.times, seed=asked.seed)
    for each in found.violations:
        print(each)
    found.row().show()
    return int(bool(found.violations))


if __name__ == "__main__":
    sys.exit(main())
