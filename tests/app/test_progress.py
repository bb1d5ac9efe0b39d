"""How far ingestion is, as a caller sees it: `progress` of a file, and the events that tell of it until its end."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import update

from app.routes import documents, progress
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Chunk, Document, DocumentStatus, Job, JobState
from tests.app.alone import api_alone
from tests.app.with_fakes import FakeModels, app_of, services_with
from tests.ingest.stack import TEXT, Stack
from tests.serving.hosting import served, until

STORES = "/v1/vector_stores"
Event = tuple[str, dict[str, Any]]


class Desk:
    """A worker whose embedder can be held, and a client of the routes over the same tables."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient) -> None:
        self.stack = stack
        self.http = http
        self.store = f"{STORES}/{stack.collection.id}"
        self.is_held = asyncio.Event()
        self.go_on = asyncio.Event()
        stack.embedder.meanwhile = self._hold

    async def _hold(self, _: Sequence[str]) -> None:
        self.is_held.set()
        await self.go_on.wait()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        working = asyncio.create_task(self.stack.worker(clock=time.time).run())
        try:
            yield
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def events(self, path: str) -> AsyncIterator[Event]:
        async with self.http.stream("GET", self.store + path) as reply:
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/event-stream")
            name = ""
            async for line in reply.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, orjson.loads(value)

    def set_job(self, document: Document, **values: object) -> None:
        with self.stack.database.write() as session:
            session.execute(update(Job).where(Job.document_id == document.id).values(**values))


@pytest.fixture
async def desk(
    database: Database, scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Desk]:
    monkeypatch.setattr(progress, "LOOK_S", 0.02)
    stack = Stack(database, scope, tmp_path / "blobs")
    stack.clock.now = time.time() - 1
    app = app_of(services_with(database, FakeModels({"fake": stack.embedder}, {})), scope)
    async with served(app, is_started=True) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield Desk(stack, http)


async def test_a_file_in_progress_tells_its_step_rate_and_time_left(desk: Desk) -> None:
    document = desk.stack.add()
    path = f"{desk.store}/files/{document.file_id}"
    queued = (await desk.http.get(path)).json()["progress"]
    assert (queued["step"], queued["total"], queued["rate"], queued["waiting_for"]) == (
        "queued",
        None,
        None,
        0,
    )
    desk.set_job(
        document,
        state=JobState.RUNNING,
        step="parsing",
        done=40,
        total=120,
        unit="pages",
        step_since=time.time() - 20,
    )
    told = (await desk.http.get(path)).json()["progress"]
    assert (told["step"], told["done"], told["total"], told["unit"]) == ("parsing", 40, 120, "pages")
    assert 1.5 < told["rate"] <= 2.0
    assert 40 <= told["seconds_left"] < 55


async def test_an_archive_tells_how_many_files_inside_it_waits_for(desk: Desk) -> None:
    archive, first, second = (desk.stack.add(text) for text in ("Index.", "One.", "Two."))
    with desk.stack.database.write() as session:
        inside = (first.id, second.id)
        session.execute(update(Document).where(Document.id.in_(inside)).values(parent_id=archive.id))
        session.get_one(Document, second.id).status = DocumentStatus.COMPLETED
    listed = (await desk.http.get(f"{desk.store}/files")).json()["data"]
    waiting = {each["id"]: each["progress"] and each["progress"]["waiting_for"] for each in listed}
    assert waiting == {archive.file_id: 1, first.file_id: 0, second.file_id: None}


async def test_a_files_events_change_and_end_when_it_is_completed(desk: Desk) -> None:
    document = desk.stack.add()
    events = desk.events(f"/files/{document.file_id}/events")
    name, told = await anext(events)
    assert (name, told["progress"]["step"]) == ("progress", "queued")
    desk.set_job(document, state=JobState.RUNNING, step="parsing", done=1, unit="pages")
    name, told = await anext(events)
    assert (name, told["progress"]["step"], told["progress"]["done"]) == ("progress", "parsing", 1)
    desk.set_job(document, state=JobState.QUEUED)
    desk.go_on.set()
    async with desk.working():
        rest = [each async for each in events]
    assert [name for name, _ in rest][-1] == "done"
    assert {name for name, _ in rest[:-1]} <= {"progress"}
    assert (rest[-1][1]["status"], rest[-1][1]["progress"]) == ("completed", None)


async def test_what_does_not_change_is_not_told_again(desk: Desk) -> None:
    document = desk.stack.add()
    desk.set_job(
        document, state=JobState.RUNNING, step="parsing", done=1, total=9, step_since=time.time() - 5
    )
    events = desk.events(f"/files/{document.file_id}/events")
    await anext(events)
    again = asyncio.ensure_future(anext(events))
    # Some looks, at each of which the rate is another.
    finished, _ = await asyncio.wait([again], timeout=0.3)
    assert not finished
    desk.set_job(document, done=2)
    assert (await again)[1]["progress"]["done"] == 2


async def test_a_silent_stream_is_kept_alive_by_comments(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "KEEP_ALIVE_S", 0.05)
    document = desk.stack.add()
    async with desk.http.stream("GET", f"{desk.store}/files/{document.file_id}/events") as reply:
        lines = reply.aiter_lines()
        async with asyncio.timeout(10):
            while not (await anext(lines)).startswith(":"):
                pass


async def test_a_batchs_events_tell_the_files_in_hand_and_end_with_its_counts(desk: Desk) -> None:
    files = [desk.stack.upload(f"Letter {number} of the archive.").id for number in range(3)]
    made = await desk.http.post(f"{desk.store}/file_batches", json={"file_ids": files})
    # Attached a second ago, by the clock: it takes one of the worker's two places.
    beside = desk.stack.add("Not of the batch.")
    events = desk.events(f"/file_batches/{made.json()['id']}/events")
    async with desk.working():
        async for name, told in events:
            assert name == "progress"
            if [each["progress"]["step"] for each in told["running"]] == ["embedding"]:
                break
        assert told["running"][0]["id"] in files
        assert told["file_counts"]["in_progress"] == 3
        desk.go_on.set()
        name, told = [each async for each in events][-1]
    assert (name, told["status"], told["running"]) == ("done", "completed", [])
    assert (told["file_counts"]["completed"], told["file_counts"]["total"]) == (3, 3)
    assert desk.stack.document(beside).batch_id is None


async def test_a_stores_events_end_when_nothing_is_in_progress(desk: Desk) -> None:
    desk.stack.add()
    events = desk.events("/events")
    name, told = await anext(events)
    assert (name, told["file_counts"]["in_progress"]) == ("progress", 1)
    desk.go_on.set()
    async with desk.working():
        name, told = [each async for each in events][-1]
    assert (name, told["file_counts"]["completed"]) == ("done", 1)


async def test_cancelling_what_is_being_embedded_stops_it_and_leaves_nothing(desk: Desk) -> None:
    document = desk.stack.add(TEXT)
    events = desk.events(f"/files/{document.file_id}/events")
    await anext(events)
    async with desk.working():
        await asyncio.wait_for(desk.is_held.wait(), 10)
        began = time.monotonic()
        reply = await desk.http.post(f"{desk.store}/files/{document.file_id}/cancel")
        assert reply.json()["status"] == "cancelled"
        assert [each async for each in events][-1][1]["status"] == "cancelled"
        assert time.monotonic() - began < 2.0
        # The worker is free for the next document, whose embedding is not held.
        desk.go_on.set()
        after = desk.stack.add("Another letter.")
        await asyncio.wait_for(
            asyncio.to_thread(until_status, desk.stack, after, DocumentStatus.COMPLETED), 10
        )
    assert desk.stack.document(document).status is DocumentStatus.CANCELLED
    assert desk.stack.chunks(document) == []
    assert desk.stack.count(Job) == 0
    assert desk.stack.count(Chunk) == len(desk.stack.chunks(after))


async def test_a_document_that_is_deleted_ends_its_events_with_an_error(desk: Desk) -> None:
    document = desk.stack.add()
    events = desk.events(f"/files/{document.file_id}/events")
    await anext(events)
    await desk.http.delete(f"{desk.store}/files/{document.file_id}")
    ((name, told),) = [each async for each in events]
    assert name == "error"
    assert document.file_id in told["error"]["message"]


async def test_nobody_looks_for_a_client_that_has_left(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counting(*asked: Any, **more: Any) -> Any:
        nonlocal looks
        looks += 1
        return shape(*asked, **more)

    shape = documents.shape_documents
    monkeypatch.setattr(progress, "shape_documents", counting)
    document = desk.stack.add()
    async with desk.http.stream("GET", f"{desk.store}/files/{document.file_id}/events") as reply:
        lines = reply.aiter_lines()
        await anext(lines)
        await until(lambda: looks > 2)
    quiet_since, seen = time.monotonic(), looks
    async with asyncio.timeout(10):
        while time.monotonic() - quiet_since < 0.3:
            if looks != seen:
                quiet_since, seen = time.monotonic(), looks
            await asyncio.sleep(0.02)


async def test_a_revoked_key_hears_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOOK_S", 0.02)
    async with (
        api_alone(tmp_path) as api,
        served(api.app, is_started=True) as url,
        httpx.AsyncClient(base_url=url, headers=api.http.headers, timeout=10) as http,
    ):
        file = await api.client.files.create(file=b"A letter.", purpose="assistants")
        store = await api.client.vector_stores.create(file_ids=[file.id])
        scope = await api.services.keys.scope_of(api.key)
        async with http.stream("GET", f"{STORES}/{store.id}/events") as reply:
            lines = reply.aiter_lines()
            assert await anext(lines) == "event: progress"
            with api.services.database.write() as session:
                api.services.keys.revoke(session, scope.key_id, now=time.time())
            assert "event: error" in [line async for line in lines]


def until_status(stack: Stack, document: Document, status: DocumentStatus) -> None:
    while stack.document(document).status is not status:
        time.sleep(0.01)
