"""Kills and disk errors in the api role while clients add and delete: `python -m tests.faults.storm --kills 200`.

After each the role starts again, and what it had acknowledged is compared with what it has: each file that was added is
there to the byte, and of each that was deleted there is nothing. What got no reply may be either, but whole.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from tests.api_role import ApiRole
from tests.faults.report import Row
from tests.stack import eventually

CLIENTS = 4
STRACE = shutil.which("strace")
SYNCS = "fsync,fdatasync"
MOST_BETWEEN = 20
"""Acknowledgements between two strikes."""


@dataclass
class Told:
    """What clients sent, and what they were told of it."""

    store_id: str
    there: dict[str, bytes] = field(default_factory=dict)
    """By the file's id."""
    gone: set[str] = field(default_factory=set)
    unsure: dict[str, bytes] = field(default_factory=dict)
    """Whose deletion got no reply."""
    refused: int = 0
    crashed: list[str] = field(default_factory=list)
    """Replies that were neither done nor refused with a reason to try again."""
    recovery_s: list[float] = field(default_factory=list)
    """From each start until the role answered."""

    @property
    def acknowledged(self) -> int:
        return len(self.there) + len(self.gone)


class Storm:
    """Clients that each add a file, attach it to the store, and sometimes delete one that is there."""

    def __init__(self, role: ApiRole, told: Told, seed: int) -> None:
        self._role = role
        self._told = told
        self._turn = threading.Lock()
        self._random = random.Random(seed)

    def blow(self, strike: Callable[[], None]) -> None:
        """Until `strike` has returned, and each client its last reply or none."""
        self._is_over = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as clients:
            blowing = [clients.submit(self._client) for _ in range(CLIENTS)]
            try:
                strike()
            finally:
                self._is_over.set()
            for each in blowing:
                each.result()

    def _client(self) -> None:
        with httpx.Client(base_url=self._role.url, headers=self._role.headers, timeout=20) as http:
            while not self._is_over.is_set():
                try:
                    self._add(http)
                    self._delete(http)
                except httpx.HTTPError:
                    # Killed; the next one waits until it is over.
                    time.sleep(0.05)

    def _add(self, http: httpx.Client) -> None:
        with self._turn:
            content = self._random.randbytes(self._random.choice((10, 3_000, 200_000))).hex().encode()
        reply = http.post("/v1/files", files={"file": ("a.txt", content)})
        if reply.status_code != 200:
            self._told.refused += 1
            self._note(reply)
            return
        file_id = reply.json()["id"]
        self._told.there[file_id] = content
        self._note(http.post(f"/v1/vector_stores/{self._told.store_id}/files", json={"file_id": file_id}))

    def _note(self, reply: httpx.Response) -> None:
        if reply.status_code >= 500 and (reply.status_code != 503 or "retry-after" not in reply.headers):
            self._told.crashed.append(f"{reply.request.url.path}: {reply.status_code} {reply.text[:200]}")

    def _delete(self, http: httpx.Client) -> None:
        told = self._told
        with self._turn:
            if not told.there or self._random.random() < 0.7:
                return
            file_id = self._random.choice(list(told.there))
            told.unsure[file_id] = told.there.pop(file_id)
        reply = http.delete(f"/v1/files/{file_id}")
        self._note(reply)
        if reply.status_code == 200:
            told.gone.add(file_id)
            del told.unsure[file_id]


def violations(role: ApiRole, told: Told) -> list[str]:
    """What the role has, against what it had acknowledged."""
    found = list(told.crashed)
    with httpx.Client(base_url=role.url, headers=role.headers, timeout=20) as http:
        attached = _attached(http, told.store_id)
        for file_id, content in told.there.items():
            if (reply := http.get(f"/v1/files/{file_id}/content")).content != content:
                found.append(f"{file_id} was added and is {reply.status_code}, {len(reply.content)} bytes.")
        for file_id in told.gone:
            statuses = {http.get(f"/v1/files/{file_id}{rest}").status_code for rest in ("", "/content")} | {
                http.get(f"/v1/vector_stores/{told.store_id}/files/{file_id}").status_code
            }
            if statuses != {404} or file_id in attached:
                found.append(f"{file_id} was deleted and is {sorted(statuses)}.")
        for file_id, content in told.unsure.items():
            reply = http.get(f"/v1/files/{file_id}/content")
            if reply.status_code != 404 and reply.content != content:
                found.append(f"{file_id} is half deleted: {reply.status_code}, {len(reply.content)} bytes.")
    return found


def _attached(http: httpx.Client, store_id: str) -> set[str]:
    found: set[str] = set()
    after = None
    while True:
        params = {"limit": 100, **({"after": after} if after else {})}
        page = http.get(f"/v1/vector_stores/{store_id}/files", params=params).json()
        found |= {each["id"] for each in page["data"]}
        if not page["has_more"]:
            return found
        after = page["last_id"]


def kill_soon(role: ApiRole, told: Told, chance: random.Random) -> None:
    """A moment after some more was acknowledged."""
    enough = told.acknowledged + chance.randint(1, MOST_BETWEEN)
    eventually(lambda: told.acknowledged >= enough, within_s=60, every_s=0.001)
    time.sleep(chance.uniform(0, 0.1))
    role.kill()


def fail_syncs(role: ApiRole, told: Told, chance: random.Random) -> None:
    """From the n-th on, each fsync of the role fails as on a broken disk; then the role is killed."""
    assert STRACE is not None
    nth = chance.randint(1, 4 * MOST_BETWEEN)
    enough = told.refused + 2 * CLIENTS
    inject = ("-e", f"trace={SYNCS}", "-e", f"inject={SYNCS}:error=EIO:when={nth}+")
    tracer = subprocess.Popen(
        [STRACE, "-f", "--quiet=all", "-o", os.devnull, *inject, "-p", str(role.pid)],
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: told.refused >= enough, within_s=60)
        role.kill()
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def storm(folder: Path, *, kills: int, errors: int, seed: int, say: Callable[[str], None]) -> Told:
    """Raises AssertionError with the first violations."""
    chance = random.Random(seed)
    strikes = [kill_soon] * kills + [fail_syncs] * errors
    chance.shuffle(strikes)
    with ApiRole(folder / "data") as role:
        role.start()
        with httpx.Client(base_url=role.url, headers=role.headers) as http:
            told = Told(http.post("/v1/vector_stores", json={"name": "storm"}).json()["id"])
        for number, strike in enumerate(strikes, start=1):
            Storm(role, told, seed + number).blow(partial(strike, role, told, chance))
            began = time.monotonic()
            role.start()
            told.recovery_s.append(time.monotonic() - began)
            found = violations(role, told)
            assert not found, "\n".join([f"after strike {number}, {strike.__name__}:", *found[:10]])
            say(
                f"{number}/{len(strikes)} {strike.__name__}: {told.acknowledged} acknowledged, "
                f"{told.refused} refused, started in {told.recovery_s[-1]:.1f} s"
            )
        role.kill()
        role.command("verify", "--url", "http://127.0.0.1:9")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--errors", type=int, default=100, help="runs of failing fsyncs")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    with tempfile.TemporaryDirectory() as folder:
        told = storm(Path(folder), kills=asked.kills, errors=asked.errors, seed=asked.seed, say=print)
    kept = f"{len(told.there)} files there, {len(told.gone)} gone, {len(told.unsure)} without a reply"
    what = f"F1, F3 {asked.kills} kill -9 and {asked.errors} runs of EIO at fsync, of the api role"
    Row(what, asked.kills + asked.errors, 0, max(told.recovery_s), kept).show()


if __name__ == "__main__":
    main()
