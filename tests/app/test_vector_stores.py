"""/v1/vector_stores with several embedding models, and the times that a search tells."""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import update

from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Collection
from tests.app.with_fakes import FakeModels, client_of, services_with
from tests.fakes import FakeEmbedder
from tests.retrieval.library import shelve

STORES = "/v1/vector_stores"


@pytest.fixture
async def http(database: Database, scope: Scope) -> AsyncIterator[httpx.AsyncClient]:
    fakes = FakeModels(
        embedders={
            "large": FakeEmbedder(name="large"),
            "small": FakeEmbedder(name="small", fingerprint="small", dimensions=16),
        },
        rerankers={},
    )
    async with client_of(services_with(database, fakes), scope) as client:
        yield client


async def test_a_store_has_the_model_that_it_was_made_with_else_the_default_one(
    http: httpx.AsyncClient, database: Database
) -> None:
    plain = (await http.post(STORES, json={"name": "letters"})).json()
    small = (await http.post(STORES, json={"name": "maps", "embedding_model": "small"})).json()
    assert (plain["embedding_model"], small["embedding_model"]) == ("large", "small")
    assert (await http.get(f"{STORES}/{small['id']}")).json()["embedding_model"] == "small"
    listed = (await http.get(STORES)).json()["data"]
    assert {each["name"]: each["embedding_model"] for each in listed} == {"letters": "large", "maps": "small"}
    with database.write() as session:
        session.execute(update(Collection).values(embedding_model=None))
    assert (await http.get(f"{STORES}/{small['id']}")).json()["embedding_model"] == "large"


@pytest.mark.parametrize("asked", ["", "gpt-9"])
async def test_a_model_that_is_not_configured_is_refused_with_those_that_are(
    http: httpx.AsyncClient, asked: str
) -> None:
    reply = await http.post(STORES, json={"embedding_model": asked})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == "embedding_model"
    assert "must be one of large, small" in error["message"]
    assert (await http.get(STORES)).json()["data"] == []


async def test_a_stores_model_stays(http: httpx.AsyncClient) -> None:
    store_id = (await http.post(STORES, json={})).json()["id"]
    reply = await http.post(f"{STORES}/{store_id}", json={"embedding_model": "small"})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "embedding_model"


async def test_a_search_tells_what_its_stages_took(
    http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    store_id = (await http.post(STORES, json={"embedding_model": "small"})).json()["id"]
    with database.read() as session:
        collection = session.get_one(Collection, store_id)
    shelve(database, scope, collection, "The vault opens at nine.", fingerprint="small", dimensions=16)
    reply = await http.post(f"{STORES}/{store_id}/search", json={"query": "vault"})
    assert [each["content"][0]["text"] for each in reply.json()["data"]] == ["The vault opens at nine."]
    told = reply.headers["server-timing"].split(", ")
    assert {each.partition(";")[0] for each in told} == {"embed", "keywords", "vectors", "load"}
    assert all(float(each.partition(";dur=")[2]) >= 0 for each in told)


async def test_a_store_whose_model_is_gone_says_which_setting_brings_it_back(
    http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    store_id = (await http.post(STORES, json={})).json()["id"]
    with database.read() as session:
        collection = session.get_one(Collection, store_id)
    shelve(database, scope, collection, "The vault opens at nine.")
    with database.write() as session:
        session.execute(update(Collection).values(embedding_model="gone"))
    reply = await http.post(f"{STORES}/{store_id}/search", json={"query": "vault"})
    assert reply.status_code == 409
    assert "'gone'" in reply.json()["error"]["message"]
    assert "models.embedding" in reply.json()["error"]["message"]
