"""Backends that hang, die, trickle and lie, behind a proxy: `python -m tests.faults.backends --times 20`.

Each fault meets the engine and the models server while clients chat (plain and with documents, streamed and whole),
search and embed. A reply must be whole, or say that it is not, within the client's own deadline; and once the backend
is back, so are the answers, and what was added meanwhile is ingested. F7 to F9.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import orjson

from app.api import create_app
from app.running.serve import prepare_data
from app.services import Services, ingestion
from app.settings import read_settings
from ingest.sandbox import ParserPool
from ingest.worker import Worker
from retrieval.search import EMBEDS_WITHIN_S
from tests.fakes import ScriptedEngine
from tests.faults.proxy import Fault, FaultProxy
from tests.faults.quick_models import ALIAS, quick_models_app
from tests.faults.report import Row
from tests.serving.hosting import served

WORDS = 40
ANSWER = " ".join(f"word{number}" for number in range(WORDS))
DEADLINE_S = 3.0
LATE_S = 1.5
"""A reply may come so much after the client's deadline: a second of it is for the models server to say more."""
LATE_WITH_DOCUMENTS_OR_STREAMED_S = 2.5
"""Nothing stamps requests as they arrive here, so an answer's deadline counts from its search on. A stream has none:
what bounds it is the engine's silence.
"""
RECOVERS_WITHIN_S = 10.0
INGESTS_WITHIN_S = 30.0
IN_THE_MIDDLE = 2_000
"""Bytes of a reply: after the head and some words of a stream."""
QUESTION = "Where does the ferry moor?"


@dataclass
class Tally:
    """What came of the faults."""

    asked: int = 0
    whole: int = 0
    told: int = 0
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    recovery_s: list[float] = field(default_factory=list)
    """Until all answers were back."""
    ingestion_s: list[float] = field(default_factory=list)
    """Until what was added meanwhile was ingested."""


@dataclass
class Ground:
    """An api role in this process, with a client on a real socket, between two backends that may fail."""

    services: Services
    engine: ScriptedEngine
    http: httpx.AsyncClient
    store_id: str
    proxies: dict[str, FaultProxy]
    added: int = 0

    async def add_document(self) -> str:
        """Its id, while a worker may already ingest it."""
        self.added += 1
        content = f"Ferry {self.added} moors at quay {self.added}.".encode()
        file = await self.http.post("/v1/files", files={"file": (f"{self.added}.txt", content)})
        file_id: str = file.json()["id"]
        reply = await self.http.post(f"/v1/vector_stores/{self.store_id}/files", json={"file_id": file_id})
        assert reply.status_code == 200, reply.text
        return file_id

    async def status_of(self, file_id: str) -> str:
        reply = await self.http.get(f"/v1/vector_stores/{self.store_id}/files/{file_id}")
        status: str = reply.json()["status"]
        return status

    def asks(self) -> dict[str, Callable[[], Awaitable[str | None]]]:
        """By the backends that they need. Each says what is wrong with its reply, or nothing."""

        def chat(model: str, *, stream: bool) -> Callable[[], Awaitable[str | None]]:
            body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": stream}
            return lambda: self._stream(body) if stream else self._post("/v1/chat/completions", body)

        return {
            "engine: chat": chat("scripted", stream=False),
            "engine: streamed chat": chat("scripted", stream=True),
            "engine models: chat with documents": chat("rag", stream=False),
            "engine models: streamed chat with documents": chat("rag", stream=True),
            "models: search": lambda: self._post(
                f"/v1/vector_stores/{self.store_id}/search", {"query": QUESTION}
            ),
            "models: embedding": lambda: self._post("/v1/embeddings", {"model": ALIAS, "input": "a ferry"}),
        }

    async def _post(self, path: str, body: dict[str, Any]) -> str | None:
        reply = await self.http.post(path, json=body)
        if reply.status_code == 200:
            try:
                told = reply.json()
            except ValueError:
                return TOLD
            text = (told.get("choices") or [{}])[0].get("message", {}).get("content")
            return None if text is None or text.strip() == ANSWER else f"half an answer: {text[:80]!r}"
        if reply.status_code in (429, 502, 503, 504) and reply.json()["error"]["message"]:
            return TOLD
        return f"{reply.status_code} {reply.text[:200]}"

    async def _stream(self, body: dict[str, Any]) -> str | None:
        """Whole with its end and all words; or an error, and no end."""
        text, is_ended, error = "", False, None
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                told = reply.status_code in (429, 502, 503, 504) and reply.json()["error"]["message"]
                return TOLD if told else f"{reply.status_code} {reply.text[:200]}"
            async for line in reply.aiter_lines():
                if line == "data: [DONE]":
                    is_ended = True
                elif line.startswith("data: "):
                    try:
                        event = orjson.loads(line.removeprefix("data: "))
                    except orjson.JSONDecodeError:
                        return TOLD  # Clients stop there: what an engine says is passed on as it is.
                    error = error or event.get("error")
                    for choice in event.get("choices") or []:
                        text += choice["delta"].get("content") or ""
        if error is not None:
            return f"an end after the error {error}" if is_ended else TOLD
        if not is_ended:
            return f"neither an end nor an error after {text[-40:]!r}"
        return None if text.strip() == ANSWER else f"an end after half an answer: {text[-40:]!r}"


TOLD = "told"


@asynccontextmanager
async def ground(folder: Path, **of_engine: Any) -> AsyncIterator[Ground]:
    """With more settings of the engine."""
    async with (
        ScriptedEngine(answer=lambda _: ANSWER) as engine,
        served(quick_models_app()) as models_url,
        FaultProxy(engine.url) as before_engine,
        FaultProxy(models_url) as before_models,
    ):
        settings = read_settings().with_options(
            storage={"data_dir": str(folder / "data"), "reserve_bytes": 0},
            models={"url": before_models.url, "embedding": ALIAS},
            engine={"url": before_engine.url, "timeout_s": DEADLINE_S, **of_engine},
            chat={"min_evidence": 0.0},
        )
        key = prepare_data(settings).read_text().strip()
        app = create_app(settings)
        headers = {"Authorization": f"Bearer {key}", "x-stainless-read-timeout": str(DEADLINE_S)}
        async with (
            app.router.lifespan_context(app),
            served(app, is_started=True) as url,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http,
        ):
            store = (await http.post("/v1/vector_stores", json={"name": "ferries"})).json()["id"]
            services: Services = app.state.services
            on = Ground(services, engine, http, store, {"engine": before_engine, "models": before_models})
            async with working(services):
                await _until_ingested(on, await on.add_document())
                yield on


@asynccontextmanager
async def working(services: Services) -> AsyncIterator[None]:
    """A worker beside the api."""
    async with ParserPool(1) as parsers:
        pipeline = ingestion(services.settings, services.storage, services.models, parsers)
        database = services.storage.database
        worker = Worker(database, pipeline, concurrency=2, lease_s=5, isolated=parsers.isolated)
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def suffer(on: Ground, role: str, fault: Fault, after_bytes: int, tally: Tally) -> None:
    """All that needs the backend is asked at once, while it is well and just before it fails, and until it is back."""
    asks = {name: ask for name, ask in on.asks().items() if role in name.partition(":")[0]}
    proxy = on.proxies[role]
    await proxy.fail(fault, after_bytes=after_bytes)
    file_id = await on.add_document()
    await asyncio.gather(*(_judge(f"{role} {fault} {name}", ask, tally) for name, ask in asks.items()))
    await proxy.heal()
    began = time.monotonic()
    for name, ask in asks.items():
        while (await ask()) is not None:
            if time.monotonic() - began > RECOVERS_WITHIN_S:
                tally.wrong.append(f"{role} {fault} {name}: not back after {RECOVERS_WITHIN_S} s")
                break
            await asyncio.sleep(0.1)
    tally.recovery_s.append(time.monotonic() - began)
    try:
        await _until_ingested(on, file_id)
    except TimeoutError:
        tally.wrong.append(f"{role} {fault}: a document is {await on.status_of(file_id)}")
    tally.ingestion_s.append(time.monotonic() - began)


async def _until_ingested(on: Ground, file_id: str) -> None:
    async with asyncio.timeout(INGESTS_WITHIN_S):
        while await on.status_of(file_id) != "completed":  # noqa: ASYNC110 - it is asked over HTTP
            await asyncio.sleep(0.1)


async def _judge(name: str, ask: Callable[[], Awaitable[str | None]], tally: Tally) -> None:
    began = time.monotonic()
    try:
        said = await ask()
    except httpx.HTTPError as error:
        said = f"no reply at all: {type(error).__name__}"
    took_s = time.monotonic() - began
    tally.asked += 1
    tally.slowest_s = max(tally.slowest_s, took_s)
    bound_s = DEADLINE_S + LATE_S
    if "documents" in name or "streamed" in name:
        bound_s = DEADLINE_S + LATE_WITH_DOCUMENTS_OR_STREAMED_S
    if name.startswith("models") and ("documents" in name or "search" in name):
        bound_s = EMBEDS_WITHIN_S + LATE_S
    if took_s > bound_s:
        tally.late.append(f"{name}: {took_s:.1f} s")
    if said is None:
        tally.whole += 1
    elif said == TOLD:
        tally.told += 1
    else:
        tally.wrong.append(f"{name}: {said}")


FAULTS: Sequence[tuple[Fault, int]] = (
    (Fault.HANGS, 0),
    (Fault.GONE, 0),
    (Fault.RESET, 0),
    (Fault.RESET, IN_THE_MIDDLE),
    (Fault.CUT, IN_THE_MIDDLE),
    (Fault.LIES, 0),
    (Fault.GARBLES, 0),
)
OF_ONE: Mapping[str, Sequence[tuple[Fault, int]]] = {"engine": (), "models": ((Fault.TRICKLES, 0),)}
"""An engine that writes a token now and then is slow, and no fault."""


async def run(folder: Path, *, times: int) -> Tally:
    tally = Tally()
    async with ground(folder) as on:
        for _ in range(times):
            for role in on.proxies:
                for fault, after_bytes in (*FAULTS, *OF_ONE[role]):
                    await suffer(on, role, fault, after_bytes, tally)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        tally = asyncio.run(run(Path(folder), times=asked.times))
    violations = [*tally.wrong, *tally.late]
    for each in violations:
        print(each)
    figures = (
        f"{tally.asked} requests: {tally.whole} whole, {tally.told} told, {len(tally.late)} too late, "
        f"{len(tally.wrong)} cut in silence or wrong; ingestion back in {max(tally.ingestion_s):.1f} s (30)"
    )
    what = "F7 to F9 engine and models hang, die, reset, trickle, lie"
    Row(what, len(tally.recovery_s), len(violations), max(tally.recovery_s), figures).show()
    raise SystemExit(bool(violations))


if __name__ == "__main__":
    main()
