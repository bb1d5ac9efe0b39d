"""/v1/vector_stores/{id}/file_batches, as OpenAI's own client uses them, and the cancelling of single files."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from retrieval.catalog import get_document
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import DocumentStatus
from tests.app.alone import api_alone
from tests.app.with_fakes import FakeModels, app_of, client_of, services_with
from tests.fakes import FakeEmbedder
from tests.retrieval.library import add_text_file, complete

STORES = "/v1/vector_stores"


def fakes() -> FakeModels:
    return FakeModels(embedders={"large": FakeEmbedder(name="large")}, rerankers={})


@pytest.fixture
async def http(database: Database, scope: Scope) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(services_with(database, fakes()), scope) as client:
        yield client


@pytest.fixture
async def client(database: Database, scope: Scope) -> AsyncIterator[AsyncOpenAI]:
    services = services_with(database, fakes())
    transport = httpx2.ASGITransport(app_of(services, scope))
    async with httpx2.AsyncClient(transport=transport) as through:
        yield AsyncOpenAI(base_url="http://strongroom/v1", api_key="any", http_client=through, max_retries=0)
    await services.activity.close()


@pytest.fixture
def files(database: Database, scope: Scope) -> list[str]:
    with database.write() as session:
        return [add_text_file(session, scope, f"Letter {each}.").id for each in range(4)]


def finish(
    database: Database, scope: Scope, store_id: str, file_id: str, *, error: str | None = None
) -> None:
    """What a worker does at a document's end."""
    with database.write() as session:
        document = get_document(session, scope, store_id, file_id)
        complete(session, document, ["A letter."])
        if error is not None:
            document.status = DocumentStatus.FAILED
            document.error_code, document.error_message = "encrypted", error


async def test_openais_client_makes_a_batch_and_sees_it_end(
    client: AsyncOpenAI, database: Database, scope: Scope, files: list[str]
) -> None:
    store = await client.vector_stores.create(name="letters")
    batch = await client.vector_stores.file_batches.create(
        store.id, file_ids=files[:3], attributes={"year": 1911.0}, chunking_strategy={"type": "auto"}
    )
    assert (batch.object, batch.status) == ("vector_store.files_batch", "in_progress")
    assert batch.vector_store_id == store.id
    assert batch.file_counts.model_dump() == {
        "in_progress": 3,
        "completed": 0,
        "failed": 0,
        "cancelled": 0,
        "total": 3,
    }
    finish(database, scope, store.id, files[0])
    finish(database, scope, store.id, files[1], error="It needs a password.")
    finish(database, scope, store.id, files[2])
    ended = await client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
    assert (ended.status, ended.file_counts.completed, ended.file_counts.failed) == ("completed", 2, 1)
    failed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="failed")
    (document,) = [each async for each in failed]
    assert (document.id, document.attributes) == (files[1], {"year": 1911.0})
    assert document.last_error is not None
    assert (document.last_error.code, document.last_error.message) == ("invalid_file", "It needs a password.")
    listed = client.vector_stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, limit=1, order="asc"
    )
    assert [each.id async for each in listed] == files[:3]


async def test_files_of_a_batch_have_their_own_attributes_and_chunking(
    client: AsyncOpenAI, files: list[str]
) -> None:
    store = await client.vector_stores.create()
    batch = await client.vector_stores.file_batches.create(
        store.id,
        files=[
            {"file_id": files[0], "attributes": {"colour": "red"}},
            {
                "file_id": files[1],
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 20},
                },
            },
        ],
    )
    listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, order="asc")
    first, second = [each async for each in listed]
    assert (first.attributes, second.attributes) == ({"colour": "red"}, {})
    assert second.chunking_strategy is not None
    assert second.chunking_strategy.type == "static"


async def test_openais_client_cancels_a_batch_and_what_is_completed_stays(
    client: AsyncOpenAI, database: Database, scope: Scope, files: list[str]
) -> None:
    store = await client.vector_stores.create()
    batch = await client.vector_stores.file_batches.create(store.id, file_ids=files)
    finish(database, scope, store.id, files[2])
    cancelled = await client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert cancelled.status == "cancelled"
    assert (cancelled.file_counts.cancelled, cancelled.file_counts.completed) == (3, 1)
    again = await client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert again == cancelled
    found = await client.vector_stores.search(store.id, query="letter")
    assert [each.file_id for each in found.data] == [files[2]]


async def test_one_file_of_many_is_cancelled(http: httpx.AsyncClient, files: list[str]) -> None:
    store_id = (await http.post(STORES, json={"file_ids": files})).json()["id"]
    cancelled = await http.post(f"{STORES}/{store_id}/files/{files[1]}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert cancelled.json()["progress"] is None
    counts = (await http.get(f"{STORES}/{store_id}")).json()["file_counts"]
    assert (counts["in_progress"], counts["cancelled"], counts["total"]) == (3, 1, 4)


async def test_a_batch_of_500_files_is_attached_at_once(
    http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    with database.write() as session:
        many = [add_text_file(session, scope, f"Letter {each}.").id for each in range(500)]
    store_id = (await http.post(STORES, json={})).json()["id"]
    reply = await http.post(f"{STORES}/{store_id}/file_batches", json={"file_ids": many})
    assert reply.json()["file_counts"]["in_progress"] == 500
    path = f"{STORES}/{store_id}/file_batches/{reply.json()['id']}/files"
    listed = (await http.get(path, params={"limit": 1000, "order": "asc"})).json()["data"]
    assert [each["id"] for each in listed] == many
    assert {each["progress"]["step"] for each in listed} == {"queued"}


STATIC: dict[str, Any] = {"max_chunk_size_tokens": 50, "chunk_overlap_tokens": 0}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "file_ids"),
        ({"file_ids": [], "attributes": {}}, "file_ids"),
        ({"file_ids": ["file-a"] * 2001}, "file_ids"),
        ({"file_ids": ["file-a"], "files": [{"file_id": "file-b"}]}, "files"),
        ({"file_ids": ["file-a", "file-b", "file-a"]}, "file_ids"),
        ({"files": [{"file_id": "file-a"}, {"file_id": "file-a"}]}, "files"),
        ({"files": [{"attributes": {}}]}, "files.0.file_id"),
        ({"files": [{"file_id": "file-a", "password": "x"}]}, "files.0.password"),
        ({"file_ids": ["file-a"], "attributes": {"k": "v" * 513}}, "attributes.k"),
        (
            {"file_ids": ["file-a"], "chunking_strategy": {"type": "static", "static": STATIC}},
            "chunking_strategy",
        ),
        ({"file_ids": ["file-a"], "colour": "red"}, "colour"),
    ],
)
async def test_a_batch_that_cannot_be_right_is_refused_by_the_fields_name(
    http: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    store_id = (await http.post(STORES, json={})).json()["id"]
    reply = await http.post(f"{STORES}/{store_id}/file_batches", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith(param)
    assert param.split(".", maxsplit=1)[0] in reply.json()["error"]["message"]


async def test_another_tenant_sees_404_everywhere(
    http: httpx.AsyncClient, database: Database, scope: Scope, other_scope: Scope, files: list[str]
) -> None:
    store_id = (await http.post(STORES, json={})).json()["id"]
    batch = await http.post(f"{STORES}/{store_id}/file_batches", json={"file_ids": files})
    batch_id = batch.json()["id"]
    store, documents, in_batch = (
        f"{STORES}/{store_id}",
        f"{STORES}/{store_id}/files/{files[0]}",
        f"{STORES}/{store_id}/file_batches/{batch_id}",
    )
    calls = [
        ("GET", in_batch),
        ("GET", f"{in_batch}/files"),
        ("GET", f"{in_batch}/events"),
        ("POST", f"{in_batch}/cancel"),
        ("GET", documents),
        ("GET", f"{documents}/events"),
        ("POST", f"{documents}/cancel"),
        ("GET", f"{store}/events"),
    ]
    async with client_of(services_with(database, fakes()), other_scope) as other:
        own = f"{STORES}/{(await other.post(STORES, json={})).json()['id']}"
        for method, path in calls:
            for asked in (path, path.replace(store, own) if path != f"{store}/events" else path):
                reply = await other.request(method, asked)
                assert reply.status_code == 404, asked
                assert reply.json()["error"]["code"] == "not_found"
        taken = await other.post(f"{own}/file_batches", json={"file_ids": files})
        assert taken.status_code == 404
    counts = (await http.get(in_batch)).json()["file_counts"]
    assert counts["in_progress"] == counts["total"] == 4


async def test_openais_client_uploads_a_batch_and_waits_for_it(tmp_path: Path) -> None:
    async with api_alone(tmp_path) as api, api.working():
        batches = api.client.vector_stores.file_batches
        store = await api.client.vector_stores.create(name="harbour")
        before = await api.client.files.create(
            file=("pier.txt", b"The pier is closed."), purpose="assistants"
        )
        with pytest.raises(openai.NotFoundError):
            await batches.create(store.id, file_ids=[before.id, "file-absent"])
        letters = [(f"{each}.txt", f"This is letter {each}.".encode()) for each in range(3)]
        uploaded = await batches.upload_and_poll(
            store.id, files=letters, file_ids=[before.id], poll_interval_ms=50
        )
        assert (uploaded.status, uploaded.file_counts.completed) == ("completed", 4)
        again = await batches.create_and_poll(store.id, file_ids=[before.id], poll_interval_ms=50)
        assert (again.status, again.file_counts.total) == ("completed", 1)
