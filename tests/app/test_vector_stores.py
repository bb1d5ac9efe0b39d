"""/v1/vector_stores with several embedding models, the times that a search tells, and stores that expire."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from retrieval.database import Database
from retrieval.expiry import DAY_S
from retrieval.scope import Scope
from retrieval.tables import Collection
from serving.protocols import ModelUnavailable
from tests.app.with_fakes import FakeModels, FakeServices, client_of, services_with
from tests.fakes import FakeEmbedder, FakeReranker
from tests.retrieval.library import shelve

STORES = "/v1/vector_stores"


@pytest.fixture
def services(database: Database) -> FakeServices:
    fakes = FakeModels(
        embedders={
            "large": FakeEmbedder(name="large"),
            "small": FakeEmbedder(name="small", fingerprint="small", dimensions=16),
        },
        rerankers={},
    )
    return services_with(database, fakes)


@pytest.fixture
async def http(services: FakeServices, scope: Scope) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(services, scope) as client:
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


async def test_a_store_whose_model_is_gone_says_which_setting_brings_it_back_and_is_searched_by_words(
    http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    store_id = await shelved(http, database, scope, "The vault opens at nine.")
    with database.write() as session:
        session.execute(update(Collection).values(embedding_model="gone"))
    reply = await http.post(f"{STORES}/{store_id}/search", json={"query": "vault"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "models_unavailable")
    for told in (store_id, "'gone'", "models.embedding", "keyword"):
        assert told in reply.json()["error"]["message"]
    by_words = {"query": "vault", "search_mode": "keyword"}
    reply = await http.post(f"{STORES}/{store_id}/search", json=by_words)
    assert [each["content"][0]["text"] for each in reply.json()["data"]] == ["The vault opens at nine."]


async def test_a_store_whose_model_does_not_answer_names_it_and_is_searched_by_words(
    services: FakeServices, http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    store_id = await shelved(http, database, scope, "The vault opens at nine.")
    services.models.embedders["large"].failure = ModelUnavailable("It is being loaded.")
    reply = await http.post(f"{STORES}/{store_id}/search", json={"query": "vault"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert "'large'" in reply.json()["error"]["message"]
    by_words = {"query": "vault", "search_mode": "keyword"}
    assert (await http.post(f"{STORES}/{store_id}/search", json=by_words)).status_code == 200


# Searches


async def shelved(http: httpx.AsyncClient, database: Database, scope: Scope, *texts: str, **more: Any) -> str:
    """A store with one document of these texts. Returns its id."""
    store_id: str = (await http.post(STORES, json={})).json()["id"]
    with database.read() as session:
        collection = session.get_one(Collection, store_id)
    shelve(database, scope, collection, *texts, **more)
    return store_id


async def test_a_search_explains_itself_when_it_is_asked_to(database: Database, scope: Scope) -> None:
    fakes = FakeModels(embedders={"large": FakeEmbedder()}, rerankers={"judge": FakeReranker()})
    async with client_of(services_with(database, fakes), scope) as http:
        store_id = await shelved(
            http,
            database,
            scope,
            "The vault opens at nine.",
            "Whales feed on krill.",
            attributes={"author": "ada", "year": 1843},
        )
        either = {
            "type": "or",
            "filters": [
                {"type": "eq", "key": "author", "value": "ada"},
                {"type": "gt", "key": "year", "value": 1900},
            ],
        }
        body = {"query": "vault nine", "filters": either}
        plain = await http.post(f"{STORES}/{store_id}/search", json=body)
        told = await http.post(f"{STORES}/{store_id}/search", json={**body, "include": ["scores"]})
    best, other = told.json()["data"]
    assert best["scores"]["dense"]["rank"] == best["scores"]["bm25"]["rank"] == 1
    assert best["scores"]["bm25"]["score"] > 0
    assert best["scores"]["fused"] == {"rank": 1, "score": pytest.approx(1.0)}
    assert best["scores"]["rerank"] == {"score": pytest.approx(1.0)}
    assert other["scores"]["bm25"] is None
    assert [each["scores"]["filters"] for each in (best, other)] == [["author"], ["author"]]
    assert set(told.json()["stage_ms"]) >= {"embed", "keywords", "vectors", "load", "weigh", "rerank"}
    assert told.json()["evidence"]["signals"]["relevance"] == 1.0
    for each in told.json()["data"]:
        del each["scores"]
    without = {
        name: value for name, value in told.json().items() if name not in ("data", "stage_ms", "evidence")
    }
    assert without == {name: value for name, value in plain.json().items() if name != "data"}
    assert all("scores" not in each for each in plain.json()["data"])


async def test_a_query_that_is_longer_than_the_model_reads_is_cut_and_the_reply_says_so(
    http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    store_id = await shelved(http, database, scope, "The vault opens at nine.")
    reply = await http.post(f"{STORES}/{store_id}/search", json={"query": "vault " * 300})
    assert len(reply.json()["data"]) == 1
    assert reply.json()["query_cuts"] == [{"embedding_model": "large", "tokens": 300, "max_tokens": 256}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": " \n"}, "query"),
        ({"query": []}, "query"),
        ({"query": ["", " "]}, "query"),
        ({"query": ["vault", 5]}, "query"),
        ({"query": 5}, "query"),
        ({"query": "half a pair: \ud800"}, "query"),
        ({}, "query"),
        ({"query": "x", "max_num_results": 0}, "max_num_results"),
        ({"query": "x", "max_num_results": 51}, "max_num_results"),
        ({"query": "x", "search_mode": "magic"}, "search_mode"),
        ({"query": "x", "include": ["secrets"]}, "include.0"),
        ({"query": "x", "include": "scores"}, "include"),
        ({"query": "x", "ranking_options": {"ranker": "magic"}}, "ranking_options.ranker"),
        (
            {"query": "x", "ranking_options": {"hybrid_search": {"embedding_weight": 1}}},
            "ranking_options.hybrid_search.text_weight",
        ),
        (
            {"query": "x", "ranking_options": {"hybrid_search": {"embedding_weight": -1, "text_weight": 1}}},
            "ranking_options.hybrid_search.embedding_weight",
        ),
        (
            {"query": "x", "ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}},
            "ranking_options.hybrid_search",
        ),
        ({"query": "x", "ranking_options": {"score_threshold": 2}}, "ranking_options.score_threshold"),
        ({"query": "x", "ranking_options": {"weight": 1}}, "ranking_options.weight"),
    ],
)
async def test_a_search_that_cannot_be_right_is_refused_by_the_fields_name(
    http: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    store_id = (await http.post(STORES, json={})).json()["id"]
    # Written here, since httpx cannot send half a surrogate pair.
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    reply = await http.post(f"{STORES}/{store_id}/search", content=content, headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert param in reply.json()["error"]["message"]


async def test_of_several_queries_each_is_searched_and_the_best_of_each_comes_first(
    http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    texts = ("The vault opens at nine.", "The vault is deep.", "Whales feed on krill.")
    store_id = await shelved(http, database, scope, *texts)
    body = {"query": ["vault opens", "krill", "krill"], "max_num_results": 2}
    reply = await http.post(f"{STORES}/{store_id}/search", json=body)
    assert reply.json()["search_query"] == ["vault opens", "krill"]
    found = [each["content"][0]["text"] for each in reply.json()["data"]]
    assert found == ["The vault opens at nine.", "Whales feed on krill."]


async def test_the_weights_of_meaning_and_words_are_openais(
    http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    store_id = await shelved(http, database, scope, "The vault opens at nine.", "Whales feed on krill.")
    for weights, shares in (((1, 0), (1, 0)), ((0, 5), (0, 1)), ((3, 1), (0.75, 0.25))):
        body = {
            "query": "vault",
            "include": ["scores"],
            "ranking_options": {"hybrid_search": {"embedding_weight": weights[0], "text_weight": weights[1]}},
        }
        reply = await http.post(f"{STORES}/{store_id}/search", json=body)
        best = reply.json()["data"][0]
        # It leads both rankings, which are scaled from 0 to 1.
        assert best["scores"]["fused"]["score"] == pytest.approx(sum(shares))
        last = reply.json()["data"][-1]["scores"]
        if len(reply.json()["data"]) == 2:
            assert last["bm25"] is None
            assert last["fused"]["score"] == pytest.approx(0.0)


# Expiry


def age(database: Database, store_id: str, *, days: float) -> None:
    """As if it had been used that long ago."""
    with database.write() as session:
        session.get_one(Collection, store_id).last_active_at = time.time() - days * DAY_S


async def test_a_stores_expiry_is_shown_changed_and_taken_away(http: httpx.AsyncClient) -> None:
    plain = (await http.post(STORES, json={})).json()
    assert (plain.get("expires_after"), plain["expires_at"]) == (None, None)
    week = {"anchor": "last_active_at", "days": 7}
    store = (await http.post(STORES, json={"expires_after": week})).json()
    assert (store["expires_after"], store["status"]) == (week, "completed")
    assert abs(store["expires_at"] - store["last_active_at"] - 7 * DAY_S) <= 1
    path = f"{STORES}/{store['id']}"
    assert (await http.post(path, json={"name": "letters"})).json()["expires_after"] == week
    day = {"anchor": "last_active_at", "days": 1}
    assert (await http.post(path, json={"expires_after": day})).json()["expires_after"] == day
    assert (await http.post(path, json={"expires_after": None})).json()["expires_at"] is None


@pytest.mark.parametrize(
    ("expires_after", "param"),
    [
        ({"anchor": "last_active_at", "days": 0}, "expires_after.days"),
        ({"anchor": "last_active_at", "days": 366}, "expires_after.days"),
        ({"anchor": "created_at", "days": 7}, "expires_after.anchor"),
        ({"anchor": "last_active_at"}, "expires_after.days"),
    ],
)
async def test_an_expiry_that_cannot_be_right_is_refused_by_the_fields_name(
    http: httpx.AsyncClient, expires_after: dict[str, object], param: str
) -> None:
    store_id = (await http.post(STORES, json={})).json()["id"]
    for path in (STORES, f"{STORES}/{store_id}"):
        reply = await http.post(path, json={"expires_after": expires_after})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_an_expired_store_says_so_and_cannot_be_searched_until_it_is_given_more_time(
    http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    body = {"expires_after": {"anchor": "last_active_at", "days": 2}}
    store_id = (await http.post(STORES, json=body)).json()["id"]
    with database.read() as session:
        collection = session.get_one(Collection, store_id)
    shelve(database, scope, collection, "The vault opens at nine.")
    age(database, store_id, days=2.1)
    assert (await http.get(f"{STORES}/{store_id}")).json()["status"] == "expired"
    refused = await http.post(f"{STORES}/{store_id}/search", json={"query": "vault"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "vector_store_expired")
    assert "expires_after" in refused.json()["error"]["message"]
    longer = {"expires_after": {"anchor": "last_active_at", "days": 3}}
    assert (await http.post(f"{STORES}/{store_id}", json=longer)).json()["status"] == "completed"
    found = await http.post(f"{STORES}/{store_id}/search", json={"query": "vault"})
    assert len(found.json()["data"]) == 1


async def test_a_search_counts_a_stores_days_anew(
    services: FakeServices, http: httpx.AsyncClient, database: Database, other_scope: Scope
) -> None:
    body = {"expires_after": {"anchor": "last_active_at", "days": 2}}
    store_id, beside = [(await http.post(STORES, json=body)).json()["id"] for _ in range(2)]
    age(database, store_id, days=1)
    age(database, beside, days=1)
    before = (await http.get(f"{STORES}/{store_id}")).json()["last_active_at"]
    services.activity.note(other_scope, [store_id])
    await services.activity.close()
    assert (await http.get(f"{STORES}/{store_id}")).json()["last_active_at"] == before
    assert (await http.post(f"{STORES}/{store_id}/search", json={"query": "vault"})).status_code == 200
    await services.activity.close()
    renewed = (await http.get(f"{STORES}/{store_id}")).json()
    assert renewed["last_active_at"] > before + DAY_S - 60
    assert (await http.get(f"{STORES}/{beside}")).json()["last_active_at"] <= before + 1


async def test_searches_within_a_minute_write_once(
    services: FakeServices, http: httpx.AsyncClient, database: Database
) -> None:
    store_id = (await http.post(STORES, json={})).json()["id"]
    for expected in (True, False):
        age(database, store_id, days=1)
        await http.post(f"{STORES}/{store_id}/search", json={"query": "vault"})
        await services.activity.close()
        last_active_at = (await http.get(f"{STORES}/{store_id}")).json()["last_active_at"]
        assert (last_active_at > time.time() - 60) is expected


async def test_what_has_expired_is_not_brought_back_by_a_search_of_everything(
    services: FakeServices, http: httpx.AsyncClient, database: Database, scope: Scope
) -> None:
    body = {"expires_after": {"anchor": "last_active_at", "days": 1}}
    expired, present = [(await http.post(STORES, json=body)).json()["id"] for _ in range(2)]
    for store_id, text in ((expired, "The vault opens at ten."), (present, "The vault opens at nine.")):
        with database.read() as session:
            collection = session.get_one(Collection, store_id)
        shelve(database, scope, collection, text)
    age(database, expired, days=2)
    age(database, present, days=0.5)
    found = await services.searcher.search(scope, "When does the vault open?")
    assert [chunk.text for chunk in found.chunks] == ["The vault opens at nine."]
    services.activity.note(scope, None)
    await services.activity.close()
    assert (await http.get(f"{STORES}/{expired}")).json()["status"] == "expired"
    assert (await http.get(f"{STORES}/{present}")).json()["last_active_at"] > time.time() - 60
