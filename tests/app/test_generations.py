"""Rebuilds over HTTP and from the command line: begun, followed, switched, rolled back, discarded."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import Request, Response
from sqlalchemy import delete, update
from starlette.middleware.base import RequestResponseEndpoint
from typer.testing import CliRunner, Result

from app.cli import cli
from ingest.rebuilds import tend
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Collection, Job, JobState
from tests.app.with_fakes import FakeModels, FakeServices, app_of, client_of, services_with
from tests.fakes import FakeEmbedder
from tests.retrieval.library import shelve
from tests.serving.hosting import served

STORES = "/v1/vector_stores"
STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 20}}


@pytest.fixture
def services(database: Database) -> FakeServices:
    embedders = [FakeEmbedder(name=name, fingerprint=name) for name in ("large", "small")]
    return services_with(database, FakeModels({each.name: each for each in embedders}, rerankers={}))


@pytest.fixture
async def http(services: FakeServices, scope: Scope) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(services, scope) as client:
        yield client


@pytest.fixture
async def store(http: httpx.AsyncClient, database: Database, scope: Scope) -> str:
    """A store with a document, by the id."""
    store_id: str = (await http.post(STORES, json={"name": "letters"})).json()["id"]
    with database.read() as session:
        collection = session.get_one(Collection, store_id)
    shelve(database, scope, collection, "The vault opens at nine.", fingerprint="large")
    return store_id


def work(database: Database) -> None:
    """Ends all jobs, as if their documents had no text, and does what a worker does then."""
    with database.write() as session:
        session.execute(delete(Job))
    tend(database, now=2.0)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, ["collections", *words])


async def states(http: httpx.AsyncClient, store: str) -> list[tuple[int, str]]:
    listed = (await http.get(f"{STORES}/{store}/generations")).json()
    return [(each["number"], each["state"]) for each in listed["data"]]


async def test_a_rebuild_from_its_beginning_to_its_end(
    http: httpx.AsyncClient, store: str, database: Database
) -> None:
    path = f"{STORES}/{store}/generations"
    begun = await http.post(path, json={"embedding_model": "small", "chunking_strategy": STATIC})
    assert begun.status_code == 200
    assert begun.json() == {
        "object": "vector_store.generation",
        "vector_store_id": store,
        "number": 1,
        "state": "building",
        "created_at": begun.json()["created_at"],
        "embedding_model": "small",
        "chunking_strategy": STATIC,
        "file_counts": {"completed": 0, "in_progress": 1, "failed": 0, "total": 1},
        "failures": [],
        "waits_for": begun.json()["waits_for"],
    }
    assert "lacks 1 documents" in begun.json()["waits_for"]
    assert await states(http, store) == [(0, "active"), (1, "building")]
    work(database)
    assert await states(http, store) == [(1, "active"), (0, "previous")]
    assert (await http.get(f"{STORES}/{store}")).json()["embedding_model"] == "small"
    back = await http.post(f"{path}/0/switch", json={})
    assert (back.json()["number"], back.json()["state"]) == (0, "active")
    assert (await http.get(f"{STORES}/{store}")).json()["embedding_model"] == "large"
    discarded = await http.delete(f"{path}/1")
    assert (discarded.status_code, discarded.json()["deleted"]) == (200, True)
    assert await states(http, store) == [(0, "active"), (1, "discarded")]
    work(database)
    assert await states(http, store) == [(0, "active")]


async def test_what_is_left_out_stays_as_it_is(
    http: httpx.AsyncClient, store: str, database: Database
) -> None:
    path = f"{STORES}/{store}/generations"
    await http.post(path, json={"embedding_model": "small", "chunking_strategy": STATIC})
    work(database)
    await http.delete(f"{path}/0")
    begun = (await http.post(path, json={})).json()
    assert (begun["embedding_model"], begun["chunking_strategy"]) == ("small", STATIC)


async def test_what_has_to_wait_is_a_conflict_that_says_for_what(http: httpx.AsyncClient, store: str) -> None:
    path = f"{STORES}/{store}/generations"
    await http.post(path, json={})
    for reply in (
        await http.post(path, json={}),
        await http.post(f"{path}/1/switch", json={}),
        await http.post(f"{path}/0/switch", json={}),
        await http.delete(f"{path}/0"),
    ):
        assert reply.status_code == 409
        assert reply.json()["error"]["code"] == "generation_conflict"
        assert "eneration" in reply.json()["error"]["message"]
    forced = await http.post(f"{path}/1/switch", json={"force": True})
    assert forced.json()["file_counts"] == {"completed": 0, "in_progress": 1, "failed": 0, "total": 1}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param({"embedding_model": "gpt-9"}, "embedding_model", id="no such model"),
        pytest.param({"chunking_strategy": {"type": "magic"}}, "chunking_strategy", id="no such strategy"),
        pytest.param({"tenant_id": "tenant-x"}, "tenant_id", id="no such field"),
    ],
)
async def test_a_rebuild_that_cannot_be_is_refused(
    http: httpx.AsyncClient, store: str, body: dict[str, object], param: str
) -> None:
    reply = await http.post(f"{STORES}/{store}/generations", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert await states(http, store) == [(0, "active")]


async def test_a_model_that_is_no_longer_served_must_be_replaced(
    http: httpx.AsyncClient, store: str, database: Database
) -> None:
    with database.write() as session:
        session.get_one(Collection, store).embedding_model = "gone"
    path = f"{STORES}/{store}/generations"
    reply = await http.post(path, json={})
    assert reply.status_code == 400
    assert "must be one of large, small; it is 'gone'" in reply.json()["error"]["message"]
    assert (await http.post(path, json={"embedding_model": "small"})).status_code == 200


@pytest.mark.parametrize("number", ["7", "-1", "x", str(10**30)])
async def test_no_such_generation(http: httpx.AsyncClient, store: str, number: str) -> None:
    path = f"{STORES}/{store}/generations/{number}"
    for reply in (await http.delete(path), await http.post(f"{path}/switch", json={})):
        assert reply.status_code == (404 if number == "7" else 400)


async def test_another_tenant_finds_nothing(
    http: httpx.AsyncClient, store: str, services: FakeServices, other_scope: Scope
) -> None:
    path = f"{STORES}/{store}/generations"
    await http.post(path, json={})
    async with client_of(services, other_scope) as theirs:
        absent = f"{STORES}/vs_absent/generations"
        for method, place, body in (
            ("GET", "", None),
            ("POST", "", {}),
            ("POST", "/1/switch", {"force": True}),
            ("DELETE", "/1", None),
        ):
            replies = [await theirs.request(method, where + place, json=body) for where in (path, absent)]
            assert [reply.status_code for reply in replies] == [404, 404]
            messages = [reply.json()["error"]["message"] for reply in replies]
            assert messages[0].replace(store, "vs_absent") == messages[1]
    assert await states(http, store) == [(0, "active"), (1, "building")]


async def test_the_command_line_rebuilds_and_rolls_back(
    services: FakeServices, store: str, database: Database, scope: Scope, tmp_path: Path
) -> None:
    key_file = tmp_path / "admin.key"
    key_file.write_text("a key")
    async with served(app_of(services, scope)) as url:

        async def run(*words: str) -> Result:
            return await asyncio.to_thread(invoke, *words, "--url", url, "--key-file", str(key_file))

        begun = await run(
            "rebuild", "letters", "--embedding-model", "small", "--chunk-tokens", "160", "--no-wait"
        )
        assert "Generation 1 is begun" in begun.output, begun.exception
        told = await run("status", store)
        assert told.exit_code == 0, told.output
        assert all(word in told.output for word in ("building", "small", "160 tokens", "0 of 1", "lacks 1"))
        assert "lacks 1 documents" in str((await run("switch", "letters")).exception)
        work(database)
        assert "Generation 0 answers" in (await run("rollback", "letters")).output
        assert "Generation 1 is discarded" in (await run("discard", "letters")).output
        for words in (["rollback", "letters"], ["status", "nobody"]):
            refused = await run(*words)
            assert refused.exit_code != 0
            assert words[1] in str(refused.exception)


@pytest.mark.parametrize("fails", [False, True])
async def test_the_command_line_follows_a_rebuild_until_it_answers_or_is_held_up(
    services: FakeServices, database: Database, scope: Scope, store: str, tmp_path: Path, fails: bool
) -> None:
    key_file = tmp_path / "admin.key"
    key_file.write_text("a key")

    app = app_of(services, scope)

    @app.middleware("http")
    async def work_meanwhile(request: Request, call_next: RequestResponseEndpoint) -> Response:
        """As soon as the rebuild is begun, a worker has ended it."""
        reply = await call_next(request)
        if request.method == "POST" and fails:
            with database.write() as session:
                session.execute(update(Job).values(state=JobState.FAILED, error="too strange"))
        elif request.method == "POST":
            work(database)
        return reply

    async with served(app) as url:
        options = ["--url", url, "--key-file", str(key_file)]
        followed = await asyncio.to_thread(invoke, "rebuild", "letters", *options)
    if fails:
        assert followed.exit_code == 2
        assert "1 documents that can be found now failed in generation 1" in followed.output
    else:
        assert followed.exit_code == 0
        assert "Generation 1 answers" in followed.output
