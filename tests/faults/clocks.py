"""The clock of a whole stack jumps while it works: `python -m tests.faults.clocks --times 50`.

An hour and a day, forward and back, with documents on their way in and an answer being written. No answer is cut or
refused, what was uploaded comes in, a source is swept once at most, nothing expires early, and the audit log verifies.
F16. The roles look at a clock that is off by what a file says; the one that never jumps is left alone.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import func, select

from retrieval.tables import Sweep
from tests.bench.mock_engine import MODEL
from tests.faults.overload import stack_under_test
from tests.faults.report import Row
from tests.stack import Stack, eventually

JUMPING = Path(__file__).with_name("jumping")
HOUR_S, DAY_S = 3_600, 86_400
JUMPS = (HOUR_S, -HOUR_S, DAY_S, -DAY_S)
"""Each pair ends where it began."""
DOCUMENTS = 3
THINKS_S = 4.0
LATE_S = 3.0
INGESTED_WITHIN_S = 60.0


@dataclass
class Jumped:
    """What came of it."""

    jumps: int = 0
    violations: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    """From each jump until all documents were in."""
    sweeps: int = 0

    def row(self) -> Row:
        figures = f"{self.sweeps} sweeps of a source that is due every 6 hours"
        what = "F16 clocks jump an hour and a day, forward and back"
        return Row(what, self.jumps, len(self.violations), max(self.recovery_s), figures)


class FakeClock:
    """The file that says by how many seconds the roles' clock is off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset_s = 0
        self.jump(0)

    def jump(self, by_s: int) -> None:
        self._offset_s += by_s
        fresh = self._path.with_suffix(".fresh")
        fresh.write_text(str(self._offset_s))
        fresh.rename(self._path)

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(JUMPING), "TESTS_CLOCK": str(self._path)}


def jump_often(folder: Path, *, times: int, seed: int) -> Jumped:
    """So often each jump, in turn."""
    found, chance = Jumped(), random.Random(seed)
    watched = folder / "watched"
    watched.mkdir()
    (watched / "a.txt").write_text("The lamp is lit at dusk.")
    clock = FakeClock(folder / "clock")
    settings = {**clock.environment, "STRONGROOM_SOURCES__ROOTS": str(watched)}
    with (
        stack_under_test(folder, settings) as (stack, _),
        stack.http() as http,
        ThreadPoolExecutor(1) as beside,
    ):
        store = http.post("/v1/vector_stores", json={"name": "a", "expires_after": _in_days(3)}).json()["id"]
        body = {"url": watched.as_uri(), "collection": store, "every": "6h"}
        assert (reply := http.post("/v1/sources", json=body)).status_code == 200, reply.text
        key = http.post(
            "/v1/keys", json={"name": "a", "role": "reader", "expires_at": round(time.time()) + 3 * DAY_S}
        )
        assert key.status_code == 200, key.text
        for number in range(times * len(JUMPS)):
            jump_s = JUMPS[number % len(JUMPS)]
            swept = _sweeps(stack)
            answer = beside.submit(_ask, stack, str(key.json()["value"]))
            files = [_add(http, store, f"Note {number} of {each}.") for each in range(DOCUMENTS)]
            time.sleep(chance.uniform(0, 1))
            clock.jump(jump_s)
            jumped = time.monotonic()
            files += [_add(http, store, f"Later note {number} of {each}.") for each in range(DOCUMENTS)]
            found.violations += [f"{jump_s:+d} s: {each}" for each in answer.result()]
            try:
                eventually(lambda: _are_in(http, store, files), within_s=INGESTED_WITHIN_S)  # noqa: B023
            except AssertionError:
                found.violations.append(
                    f"{jump_s:+d} s: documents still wait after {INGESTED_WITHIN_S:.0f} s"
                )
            found.recovery_s.append(time.monotonic() - jumped)
            if jump_s == DAY_S:
                eventually(lambda: _sweeps(stack) > swept, within_s=INGESTED_WITHIN_S, every_s=1)  # noqa: B023
            found.jumps += 1
            found.sweeps = _sweeps(stack)
            if found.sweeps > swept + 1:
                found.violations.append(f"{jump_s:+d} s: {found.sweeps - swept} sweeps")
            if (problem := http.get("/v1/audit/verify").json()["problem"]) is not None:
                found.violations.append(f"{jump_s:+d} s: {problem}")
            print(
                f"{jump_s:+d} s: all in after {found.recovery_s[-1]:.1f} s, {found.sweeps} sweeps", flush=True
            )
        if differences := http.get("/v1/verify").json()["differences"]:
            found.violations += differences
    return found


def _ask(stack: Stack, key: str) -> list[str]:
    """What is wrong with an answer that is written while the clock jumps, and with one after it."""
    headers = {"Authorization": f"Bearer {key}"}
    wrong = []
    with httpx.Client(base_url=stack.url, headers=headers, timeout=60) as http:
        for model, takes_s in ((MODEL, THINKS_S), ("rag", 0.1)):
            message = {"role": "user", "content": "When is the lamp lit?"}
            began = time.monotonic()
            body = {"model": model, "messages": [message], "seed": round(takes_s * 1000)}
            reply = http.post("/v1/chat/completions", json=body)
            took_s = time.monotonic() - began
            if reply.status_code != 200:
                wrong.append(f"{model} was {reply.status_code} {reply.text[:100]}")
            elif took_s > takes_s + LATE_S:
                wrong.append(f"{model} took {took_s:.1f} s")
    return wrong


def _add(http: httpx.Client, store: str, text: str) -> str:
    file_id = str(http.post("/v1/files", files={"file": ("a.txt", text.encode())}).json()["id"])
    reply = http.post(f"/v1/vector_stores/{store}/files", json={"file_id": file_id})
    assert reply.status_code == 200, reply.text
    return file_id


def _are_in(http: httpx.Client, store: str, files: list[str]) -> bool:
    replies = [http.get(f"/v1/vector_stores/{store}/files/{each}").json() for each in files]
    return all(each.get("status") == "completed" for each in replies)


def _sweeps(stack: Stack) -> int:
    with stack.database() as database, database.read() as session:
        return session.scalar(select(func.count()).select_from(Sweep)) or 0


def _in_days(days: int) -> dict[str, object]:
    return {"anchor": "last_active_at", "days": days}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=50, help="each of four jumps")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = jump_often(Path(folder), times=asked.times, seed=asked.seed)
    for each in found.violations:
        print(each)
    found.row().show()
    return int(bool(found.violations))


if __name__ == "__main__":
    sys.exit(main())
