"""What safety costs: `python -m tests.bench.security_tax` has keys, access rules, audit and encryption on and off.

The api in this process, an engine that follows a script, bags of words as embeddings, so that what is measured is as
large a part of the time as it can be. Off: no encryption on disk, no audit entries of what changes nothing, an admin's
key that was just looked up, no named readers. On: encryption, audit, a reader's key in groups, and documents that name
groups. The two take turns, so that a busy machine is busy for both.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from retrieval.tables import Role
from tests.app.alone import Alone, api_alone
from tests.fakes import ScriptedEngine

DOCUMENTS = 40
CLIENTS = 4
MUST_BE = 0.15
"""Of throughput, and of p95."""


@dataclass
class Side:
    """One of the two: who writes, and who asks."""

    alone: Alone
    asker: httpx.AsyncClient
    store_id: str


@asynccontextmanager
async def opened(folder: Path, engine_url: str, *, is_on: bool) -> AsyncIterator[Side]:
    async with api_alone(folder, enabled=is_on, engine={"url": engine_url}) as alone:
        groups = {"readers": ["staff"]} if is_on else {}
        store = (await alone.http.post("/v1/vector_stores", json={"name": "letters", **groups})).json()["id"]
        headers = dict(alone.http.headers)
        if is_on:
            with alone.services.storage.database.write() as session:
                _, text = alone.services.keys.add(
                    session, tenant_name="default", name="asker", role=Role.READER, now=1.0, groups=("staff",)
                )
            headers["authorization"] = f"Bearer {text}"
        else:
            alone.services.audit.note = lambda *_, **__: None  # type: ignore[method-assign]
            alone.services.audit.key_used = lambda _: None  # type: ignore[assignment]
        transport = httpx.ASGITransport(alone.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://strongroom", headers=headers
        ) as asker:
            side = Side(alone, asker, store)
            for number in range(DOCUMENTS):
                await _add(side, number, readers=groups.get("readers"))
            await alone.worker.drain()
            yield side


async def _add(side: Side, number: int, *, readers: list[str] | None = None) -> None:
    content = (
        f"Letter {number} of {time.monotonic()} says that ferry {number} moors at quay {number}.".encode()
    )
    uploaded = await side.alone.http.post("/v1/files", files={"file": ("letter.txt", content)})
    body = {"file_id": uploaded.json()["id"]} | ({"readers": readers} if readers else {})
    reply = await side.alone.http.post(f"/v1/vector_stores/{side.store_id}/files", json=body)
    assert reply.status_code == 200, reply.text


def works(side: Side) -> dict[str, Callable[[int], Awaitable[None]]]:
    async def relay(_: int) -> None:
        messages = [{"role": "user", "content": "Where does ferry 7 moor?"}]
        reply = await side.asker.post(
            "/v1/chat/completions", json={"model": "scripted", "messages": messages}
        )
        assert reply.status_code == 200, reply.text

    async def search(number: int) -> None:
        asked = {"query": f"Where does ferry {number % DOCUMENTS} moor?", "search_mode": "keyword"}
        reply = await side.asker.post(f"/v1/vector_stores/{side.store_id}/search", json=asked)
        assert reply.status_code == 200, reply.text
        assert reply.json()["data"]

    async def ingest(number: int) -> None:
        await _add(side, number)
        await side.alone.worker.drain()

    return {"chat relay": relay, "search": search, "a small file ingested": ingest}


async def _one_after_another(work: Callable[[int], Awaitable[None]], times: int) -> list[float]:
    took = []
    for number in range(times):
        began = time.perf_counter()
        await work(number)
        took.append(time.perf_counter() - began)
    return took


async def _by_clients(work: Callable[[int], Awaitable[None]], times: int) -> float:
    """A second."""
    began = time.perf_counter()
    await asyncio.gather(*(_one_after_another(work, times // CLIENTS) for _ in range(CLIENTS)))
    return times / (time.perf_counter() - began)


async def measure(rounds: int, times: int) -> bool:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine())
        sides = {}
        for name in ("off", "on"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sides[name] = await stack.enter_async_context(opened(folder, engine.url, is_on=name == "on"))
        print(f"{'':34}{'off':>10}{'on':>10}{'tax':>9}")
        is_in_bounds = True
        for what in works(sides["off"]):
            latency: dict[str, list[float]] = {"off": [], "on": []}
            rate: dict[str, list[float]] = {"off": [], "on": []}
            for number in range(rounds):
                for name in ("off", "on") if number % 2 else ("on", "off"):
                    work = works(sides[name])[what]
                    latency[name] += await _one_after_another(work, times)
                    # One worker drains for all: clients side by side would wait for each other's files.
                    if what != "a small file ingested":
                        rate[name].append(await _by_clients(work, times))
            p95 = {name: 1000 * sorted(each)[len(each) * 95 // 100] for name, each in latency.items()}
            mean = {
                name: statistics.median(rate[name]) if rate[name] else 1 / statistics.fmean(latency[name])
                for name in latency
            }
            for told, tax, of in (
                (f"{what}, a second", mean["off"] / mean["on"] - 1, mean),
                (f"{what}, p95 ms", p95["on"] / p95["off"] - 1, p95),
            ):
                print(f"{told:34}{of['off']:>10.2f}{of['on']:>10.2f}{tax:>9.1%}")
                is_in_bounds = is_in_bounds and tax <= MUST_BE
        return is_in_bounds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--times", type=int, default=100, help="requests of each kind in a round")
    asked = parser.parse_args()
    raise SystemExit(not asyncio.run(measure(asked.rounds, asked.times)))


if __name__ == "__main__":
    main()
