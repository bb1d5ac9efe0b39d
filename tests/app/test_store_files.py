"""Vector store files as clients meet them: completed at once, chunked as they were told, listed while they change."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retrieval.tables import Collection, Document, DocumentStatus
from tests.app.alone import Alone, api_alone
from tests.retrieval.library import complete

STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 20}}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Alone]:
    async with api_alone(tmp_path) as alone:
        yield alone


async def until_it_beats(desk: Alone) -> None:
    for _ in range(200):
        if (await desk.http.get("/ready")).json()["roles"]["worker"]["state"] == "ready":
            return
        await asyncio.sleep(0.05)
    raise AssertionError("no worker")


async def uploaded(desk: Alone, *texts: str) -> list[str]:
    files = [
        await desk.client.files.create(file=(f"{number}.txt", text.encode()), purpose="assistants")
        for number, text in enumerate(texts)
    ]
    return [file.id for file in files]


async def test_a_small_file_is_completed_at_once_when_a_worker_is_there(desk: Alone) -> None:
    first, second, third = await uploaded(
        desk, "The pier is closed.", "The pier is open.", "The pier is long."
    )
    stores = desk.client.vector_stores
    async with desk.working():
        await until_it_beats(desk)
        store = await stores.create(file_ids=[first, second])
        assert (store.status, store.file_counts.completed) == ("completed", 2)
        attached = await stores.files.create(store.id, file_id=third)
        assert (attached.status, attached.last_error) == ("completed", None)
        assert attached.usage_bytes > 0
    began = time.monotonic()
    other = await stores.create(file_ids=[first])
    assert (other.status, other.file_counts.in_progress) == ("in_progress", 1)
    assert time.monotonic() - began < 2


async def test_a_long_queue_is_not_waited_for(desk: Alone) -> None:
    files = await uploaded(desk, *(f"Letter {number}." for number in range(12)))
    gate = asyncio.Event()

    async def until_open(_: str) -> None:
        await gate.wait()

    desk.parser.meanwhile = until_open
    stores = desk.client.vector_stores
    store = await stores.create()
    async with desk.working():
        await until_it_beats(desk)
        await stores.file_batches.create(store.id, file_ids=files[:11])
        began = time.monotonic()
        attached = await stores.files.create(store.id, file_id=files[11])
        assert attached.status == "in_progress"
        assert time.monotonic() - began < 2
        gate.set()


async def test_the_chunking_strategy_is_read_back_as_it_was_given(desk: Alone) -> None:
    first, second = await uploaded(desk, "The pier is closed.", "The pier is open.")
    stores = desk.client.vector_stores
    store = await stores.create()
    given = await stores.files.create(store.id, file_id=first, chunking_strategy=STATIC)  # type: ignore[arg-type]
    assert given.chunking_strategy is not None
    assert given.chunking_strategy.model_dump() == STATIC
    auto = await stores.files.create(store.id, file_id=second, chunking_strategy={"type": "auto"})
    assert auto.chunking_strategy is not None
    assert auto.chunking_strategy.type == "other"
    # What it comes to is known with the first document that its model has embedded.
    with desk.services.database.write() as session:
        session.get_one(Collection, store.id).window_tokens = 256
    told = {each.id: each.chunking_strategy async for each in stores.files.list(store.id)}
    assert told[first] == given.chunking_strategy
    assert told[second].model_dump() == {  # type: ignore[union-attr]
        "type": "static",
        "static": {"max_chunk_size_tokens": 256, "chunk_overlap_tokens": 32},
    }


async def test_who_deletes_while_going_through_a_list_meets_every_row_once(desk: Alone) -> None:
    files = await uploaded(desk, *(f"Letter {number}." for number in range(7)))
    client = desk.client
    store = await client.vector_stores.create(file_ids=files[:500])
    met = []
    async for document in client.vector_stores.files.list(store.id, limit=2, order="asc"):
        met.append(document.id)
        await client.vector_stores.files.delete(document.id, vector_store_id=store.id)
    assert met == files
    met = []
    async for file in client.files.list(limit=3, order="desc"):
        met.append(file.id)
        await client.files.delete(file.id)
    assert met == files[::-1]
    stores = [(await client.vector_stores.create()).id for _ in range(4)]
    met = []
    async for each in client.vector_stores.list(limit=2, order="asc"):
        met.append(each.id)
        await client.vector_stores.delete(each.id)
    assert met == [store.id, *stores]


async def test_a_cursor_that_no_longer_meets_the_filter_is_still_a_place(desk: Alone) -> None:
    files = await uploaded(desk, *(f"Letter {number}." for number in range(5)))
    client = desk.client
    store = await client.vector_stores.create(file_ids=files)
    met = []
    async for document in client.vector_stores.files.list(
        store.id, limit=2, order="asc", filter="in_progress"
    ):
        met.append(document.id)
        with desk.services.database.write() as session:
            row = session.query(Document).filter_by(file_id=document.id).one()
            complete(session, row, ["A letter."])
            row.status = DocumentStatus.COMPLETED
    assert met == files


async def test_a_change_of_a_store_counts_as_its_use_and_null_takes_away(desk: Alone) -> None:
    stores = desk.client.vector_stores
    store = await stores.create(name="a", description="Letters.", metadata={"k": "v"})
    assert store.model_extra is not None
    assert store.model_extra["description"] == "Letters."
    with desk.services.database.write() as session:
        session.get_one(Collection, store.id).last_active_at -= 100
    path = f"/v1/vector_stores/{store.id}"
    changed = (await desk.http.post(path, json={"description": "Notes."})).json()
    assert (changed["name"], changed["description"], changed["metadata"]) == ("a", "Notes.", {"k": "v"})
    assert changed["last_active_at"] >= (store.last_active_at or 0)
    taken = (await desk.http.post(path, json={"name": None, "description": None, "metadata": None})).json()
    assert (taken["name"], taken["description"], taken["metadata"]) == ("", None, {})


async def test_a_files_content_is_sent_in_stretches(desk: Alone) -> None:
    (file_id,) = await uploaded(desk, "The pier is closed.")
    path = f"/v1/files/{file_id}/content"
    whole = await desk.http.get(path)
    assert whole.headers["content-disposition"] == "attachment; filename*=UTF-8''0.txt"
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, status, content, told in (
        ("bytes=4-7", 206, b"pier", "bytes 4-7/19"),
        ("bytes=-7", 206, b"closed.", "bytes 12-18/19"),
        ("bytes=12-", 206, b"closed.", "bytes 12-18/19"),
    ):
        reply = await desk.http.get(path, headers={"Range": asked})
        assert (reply.status_code, reply.content) == (status, content)
        assert reply.headers["content-range"] == told
    beyond = await desk.http.get(path, headers={"Range": "bytes=100-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */19")
    assert beyond.json()["error"]["type"] == "invalid_request_error"
    stale = await desk.http.get(path, headers={"Range": "bytes=4-7", "If-Range": '"another"'})
    assert (stale.status_code, stale.content) == (200, b"The pier is closed.")
    wrong = await desk.http.get(path, headers={"Range": "lines=1-2"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "Range")
