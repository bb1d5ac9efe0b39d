"""Four times more chats than the engine can answer: `python -m tests.faults.overload --seconds 60`.

Clients of one tenant come at a steady rate, whether the last ones were answered or not, and wait for so long; another
tenant asks now and then. The engine does not compute: as many answers at a time as it has places, each after the same
time, so that its best is known. Plain chats, and chats with documents, which search first. F11.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import httpx
import psutil

from tests.bench.mock_engine import MODEL
from tests.bench.peers.gateways import mock_engine
from tests.faults.ingesting import quick_models
from tests.faults.quick_models import ALIAS
from tests.faults.report import Row, percentile
from tests.stack import ROOT, Stack, eventually

PLACES = 8
LIGHT_EVERY_S = 0.25
TIMES_TOO_MANY = 4
LEAST_GOODPUT = 0.9
REFUSED_WITHIN_S = 0.1
LIGHT_AT_MOST = 1.5
MIB = 1 << 20


@dataclass(frozen=True)
class Mix:
    """`thinks_ms` is what the engine takes for an answer."""

    name: str
    model: str
    thinks_ms: int
    deadline_s: float


MIXES = (Mix("plain chats", MODEL, 100, 1.0), Mix("chats with documents", "rag", 800, 3.0))


@dataclass
class Replies:
    """Seconds of each reply, by what it was."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Loaded:
    """What one mix came to."""

    mix: Mix
    peak: float
    """Answers a second."""
    goodput: float
    """Of them in time, at four times the peak."""
    refusal_p99_s: float
    light_idle_p95_s: float
    light_p95_s: float
    grown_bytes: int
    wrong: Sequence[str]
    asked: int
    refused: int

    @property
    def misses(self) -> list[str]:
        """Of the bounds."""
        bounds = (
            (self.goodput / self.peak >= LEAST_GOODPUT, "goodput"),
            (self.refusal_p99_s <= REFUSED_WITHIN_S, "refusals"),
            (self.light_p95_s <= LIGHT_AT_MOST * self.light_idle_p95_s, "light tenant"),
        )
        return [name for holds, name in bounds if not holds]

    def __str__(self) -> str:
        return (
            f"{self.mix.name}: goodput {self.goodput / self.peak:.2f} of {self.peak:.0f}/s ({LEAST_GOODPUT}), "
            f"refusals p99 {self.refusal_p99_s * 1000:.0f} ms ({REFUSED_WITHIN_S * 1000:.0f}), light tenant's p95 "
            f"{self.light_p95_s / self.light_idle_p95_s:.2f} x idle ({LIGHT_AT_MOST}), "
            f"{self.grown_bytes / MIB:.0f} MiB grown"
        )


@contextmanager
def stack_under_test(folder: Path, more: Mapping[str, str] = {}) -> Iterator[tuple[Stack, str]]:
    """With one document, and the key of another tenant; and more settings of its environment."""
    with mock_engine(folder) as engine, quick_models(folder / "models.log") as models_url:
        settings = {
            "STRONGROOM_MODELS__URL": models_url,
            "STRONGROOM_MODELS__EMBEDDING": ALIAS,
            "STRONGROOM_ENGINE__URL": engine.url,
            "STRONGROOM_ENGINE__MAX_IN_FLIGHT": str(PLACES),
            "STRONGROOM_CHAT__MIN_EVIDENCE": "0",
            **more,
        }
        stack = Stack(folder / "data", settings)
        try:
            stack.start()
            light = _key_of_another_tenant(stack.folder)
            for key in (stack.key, light):
                _add_a_document(stack.url, key)
            yield stack, light
        finally:
            stack.stop()


def _key_of_another_tenant(folder: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "keys",
        "add",
        "light",
        "--role",
        "writer",
        "--tenant",
        "light",
    ]
    made = subprocess.run(
        [*command, "--data-dir", str(folder)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return made.stdout.strip()


def _add_a_document(url: str, key: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        made = http.post("/v1/vector_stores", json={"name": "ferries"})
        assert made.status_code == 200, made.text
        store = made.json()["id"]
        file = http.post("/v1/files", files={"file": ("a.txt", b"The ferry moors at the north quay.")})
        http.post(f"/v1/vector_stores/{store}/files", json={"file_id": file.json()["id"]})
        path = f"/v1/vector_stores/{store}/files/{file.json()['id']}"
        eventually(lambda: bool(http.get(path).json()["status"] == "completed"), within_s=60)


class Crowd:
    """Asks one mix with one key."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str, mix: Mix) -> None:
        self._session = session
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}", "x-stainless-read-timeout": str(mix.deadline_s)}
        message = {"role": "user", "content": "Where does the ferry moor?"}
        self._body = {"model": mix.model, "messages": [message], "seed": mix.thinks_ms}
        self.replies = Replies()

    async def ask(self) -> None:
        began, replies = time.monotonic(), self.replies
        try:
            async with self._session.post(self._url, json=self._body, headers=self._headers) as reply:
                text = await reply.text()
        except aiohttp.ClientError as error:
            replies.wrong.append(f"no reply: {type(error).__name__}")
            return
        took_s = time.monotonic() - began
        if reply.status == 200:
            replies.answered.append(took_s)
        elif reply.status in (429, 503) and "retry-after" in reply.headers:
            replies.refused.append(took_s)
        else:
            replies.wrong.append(f"{reply.status} {text[:100]}")

    async def saturate(self, seconds: float) -> float:
        """Answers a second while as many ask as the engine has places, and half as many wait."""
        until = time.monotonic() + seconds

        async def again_and_again() -> None:
            while time.monotonic() < until:
                await self.ask()

        await asyncio.gather(*(again_and_again() for _ in range(PLACES * 3 // 2)))
        return len(self.replies.answered) / seconds

    async def arrive(self, seconds: float, *, every_s: float) -> None:
        """Whether the last were answered or not."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as asking:
            for number in range(int(seconds / every_s)):
                await asyncio.sleep(began + number * every_s - time.monotonic())
                asking.create_task(self.ask())


async def overload(stack: Stack, light_key: str, mix: Mix, *, seconds: float) -> Loaded:
    async with _session() as session:

        def crowd(key: str) -> Crowd:
            return Crowd(session, stack.url, key, mix)

        await crowd(stack.key).saturate(2 * mix.deadline_s)
        alone = crowd(light_key)
        await alone.arrive(seconds / 3, every_s=LIGHT_EVERY_S)
        peak = await crowd(stack.key).saturate(seconds / 3)
        process = psutil.Process(stack.pid("api"))
        before = process.memory_info().rss
        heavy, light = crowd(stack.key), crowd(light_key)
        await asyncio.gather(
            heavy.arrive(seconds, every_s=1 / (TIMES_TOO_MANY * peak)),
            light.arrive(seconds, every_s=LIGHT_EVERY_S),
        )
        in_time = [each for each in heavy.replies.answered + light.replies.answered if each <= mix.deadline_s]
        return Loaded(
            mix=mix,
            peak=peak,
            goodput=len(in_time) / seconds,
            refusal_p99_s=percentile(heavy.replies.refused, 0.99),
            light_idle_p95_s=percentile(alone.replies.answered, 0.95),
            light_p95_s=percentile(light.replies.answered + light.replies.refused, 0.95),
            grown_bytes=process.memory_info().rss - before,
            wrong=[*heavy.replies.wrong, *light.replies.wrong],
            refused=len(heavy.replies.refused),
            asked=len(heavy.replies.answered) + len(heavy.replies.refused) + len(heavy.replies.wrong),
        )


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:
        yield session


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of overload, for each kind of chat")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stack_under_test(Path(folder)) as (stack, light):
        found = [asyncio.run(overload(stack, light, mix, seconds=asked.seconds)) for mix in MIXES]
    for each in found:
        print(each, *each.wrong[:10], *(f"missed: {miss}" for miss in each.misses), sep="\n  ")
    violations = sum(len(each.wrong) + len(each.misses) for each in found)
    what = f"F11 {TIMES_TOO_MANY} x more chats than the engine answers"
    Row(what, sum(each.asked for each in found), violations, None, "; ".join(map(str, found))).show()
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
