"""The api role on PostgreSQL: routes behind the wall find their own rows, and work of all tenants finds all."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from ingest.sandbox import ParserPool
from retrieval.row_security import act_for
from retrieval.tables import File, Role
from tests.app.conftest import Api, opened_api
from tests.postgres import PostgresServer
from tests.serving.hosting import MINILM

pytestmark = pytest.mark.slow

HARBOUR = "The harbour master of Vellmouth is Ondine Marsh."
QUESTION = "Who is the harbour master of Vellmouth?"


@pytest.fixture
async def api(
    models_url: str, parsers: ParserPool, tmp_path: Path, postgres_server: PostgresServer
) -> AsyncIterator[Api]:
    name = postgres_server.create_database()
    url = postgres_server.url(name)
    async with opened_api(models_url, parsers, tmp_path, embedding=str(MINILM), database_url=url) as opened:
        yield opened
    postgres_server.drop_database(name)


@pytest.fixture
async def others(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """An admin of another tenant."""
    with api.services.storage.database.write() as session:
        _, key = api.services.keys.add(
            session, tenant_name="other", name="admin", role=Role.ADMIN, now=time.time()
        )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app),
        base_url="http://strongroom",
        headers={"Authorization": f"Bearer {key}"},
    ) as http:
        yield http


async def test_each_journey_works_behind_the_wall_and_finds_nothing_of_others(
    api: Api, others: httpx.AsyncClient
) -> None:
    store = await api.store("harbour")
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    api.engine.answer = lambda _: "Ondine Marsh is the harbour master of Vellmouth [1]."

    found = await api.http.post(f"/v1/vector_stores/{store}/search", json={"query": QUESTION})
    assert [each["file_id"] for each in found.json()["data"]] == [file_id]
    answer = (await api.chat(QUESTION)).json()["choices"][0]["message"]
    cited = [each for each in answer["annotations"] if each["file_id"] == file_id]
    link = httpx.URL(cited[0]["url_citation"]["url"])
    # The link itself says whose it is, without a key.
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app), base_url="http://strongroom"
    ) as anybody:
        assert "Ondine Marsh" in (await anybody.get(link.path)).text
        assert (await anybody.get(f"{link.path}/source")).text == HARBOUR

    assert await in_background(api) == "completed"
    told = (await others.get("/v1/files")).json()
    assert told["data"] == []
    assert (
        await others.post(f"/v1/vector_stores/{store}/search", json={"query": QUESTION})
    ).status_code == 404
    theirs = (await others.post("/v1/vector_stores", json={"name": "theirs"})).json()["id"]
    assert [each["id"] for each in (await others.get("/v1/vector_stores")).json()["data"]] == [theirs]
    assert (await others.get("/v1/keys")).json()["data"][0]["role"] == "admin"
    # Of all tenants together: these must not be held to the one that asks.
    assert (await others.get("/v1/verify")).json()["differences"] == []
    verified = (await others.get("/v1/audit/verify")).json()
    assert (verified["problem"], verified["entries"] > 5) == (None, True)
    assert "strongroom_collections 2.0" in (await api.http.get("/metrics")).text


async def in_background(api: Api) -> str:
    body = {"model": "rag", "input": QUESTION, "background": True}
    response: dict[str, Any] = (await api.http.post("/v1/responses", json=body)).json()
    until = time.monotonic() + 20
    while response["status"] in ("queued", "in_progress") and time.monotonic() < until:
        await asyncio.sleep(0.1)
        response = (await api.http.get(f"/v1/responses/{response['id']}")).json()
    status: str = response["status"]
    return status


async def test_a_route_that_forgot_its_tenant_would_find_its_own_rows_alone(
    api: Api, others: httpx.AsyncClient
) -> None:
    """Such a route, written on purpose."""
    seen: list[list[str]] = []
    mine = (await api.upload("mine.txt", b"mine")).json()["id"]
    theirs = (await others.post("/v1/files", files={"file": ("theirs.txt", b"theirs")})).json()["id"]

    def forgetful() -> None:
        with api.services.database.read() as session:
            seen.append(sorted(session.scalars(select(File.id))))

    async def asked_by(http: httpx.AsyncClient) -> None:
        scope = await api.services.keys.scope_of(http.headers["authorization"].removeprefix("Bearer "))
        act_for(scope.tenant_id)
        await asyncio.to_thread(forgetful)

    await asyncio.gather(asyncio.create_task(asked_by(api.http)), asyncio.create_task(asked_by(others)))
    assert sorted(seen) == sorted([[mine], [theirs]])
