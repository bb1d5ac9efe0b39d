"""/v1/embeddings and /v1/rerank at their edge: what is refused untouched, what is cut and told, which lane it takes."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from app.routes.embeddings import MOST_TEXTS
from retrieval.database import Database
from retrieval.scope import Scope
from serving.protocols import Lane, TextRefused
from tests.app.with_fakes import FakeModels, client_of, services_with
from tests.fakes import FakeEmbedder, FakeReranker

EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"


@pytest.fixture
def fakes() -> FakeModels:
    return FakeModels(
        embedders={
            "large": FakeEmbedder(name="large", max_tokens=12),
            "small": FakeEmbedder(name="small", fingerprint="small", dimensions=16, max_tokens=6),
        },
        rerankers={"judge": FakeReranker(max_tokens=10), "fast-judge": FakeReranker(max_tokens=10)},
    )


@pytest.fixture
def database_kind() -> str:
    """One is enough: SQL is hardly asked here."""
    return "sqlite"


@pytest.fixture
async def http(database: Database, scope: Scope, fakes: FakeModels) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(services_with(database, fakes), scope) as client:
        yield client


def embed(**changed: Any) -> dict[str, Any]:
    return {"model": "large", "input": "The key hangs in the hall.", **changed}


def rank(**changed: Any) -> dict[str, Any]:
    return {"model": "judge", "query": "the key", "documents": ["A key.", "Whales feed."], **changed}


@pytest.mark.parametrize(
    ("path", "body", "field", "says"),
    [
        (EMBEDDINGS, embed(input=""), "input.0", "at least 1 character"),
        (EMBEDDINGS, embed(input=[]), "input", "at least 1 item"),
        (EMBEDDINGS, embed(input=["a", ""]), "input.1", "at least 1 character"),
        (EMBEDDINGS, embed(input=["a", None]), "input.1", "valid string"),
        (EMBEDDINGS, embed(input=["a", 5]), "input.1", "valid string"),
        (EMBEDDINGS, embed(input=None), "input", "valid list"),
        (EMBEDDINGS, embed(input={"text": "a"}), "input", "valid list"),
        (EMBEDDINGS, embed(input=["half a pair: \ud800"]), "input.0", "unicode"),
        (EMBEDDINGS, embed(input=[101, 2054, 102]), "input", "check_embedding_ctx_length=False"),
        (EMBEDDINGS, embed(input=[[101, 102], [101]]), "input", "Send text"),
        (EMBEDDINGS, embed(input=["a", [101, "b"]]), "input.1", "list of token ids"),
        (EMBEDDINGS, embed(input=[[-1]]), "input.0", "list of token ids"),
        (EMBEDDINGS, embed(input=[[]]), "input.0", "list of token ids"),
        (EMBEDDINGS, embed(input=["a"] * (MOST_TEXTS + 1)), "input", f"at most {MOST_TEXTS} items"),
        (EMBEDDINGS, embed(input="a b c d e f g h i j k l m"), "input", r"input[0] has 13 tokens.*12"),
        (EMBEDDINGS, embed(input=["a", "b " * 99]), "input", r"input[1] has 99 tokens.*12.*truncate"),
        (EMBEDDINGS, embed(dimensions=3), "dimensions", "must be 64"),
        (EMBEDDINGS, embed(dimensions=0), "dimensions", "greater than or equal to 1"),
        (EMBEDDINGS, embed(encoding_format="hex"), "encoding_format", "'float' or 'base64'"),
        (EMBEDDINGS, embed(truncate="perhaps"), "truncate", "boolean"),
        (EMBEDDINGS, embed(cache_salt="theirs"), "cache_salt", "not permitted"),
        (EMBEDDINGS, embed(priority=0), "priority", "not permitted"),
        (EMBEDDINGS, {"input": "a"}, "model", "required"),
        (RERANK, rank(query=""), "query", "at least 1 character"),
        (RERANK, rank(query=["q"]), "query", "valid string"),
        (RERANK, rank(documents=[]), "documents", "at least 1 item"),
        (RERANK, rank(documents="a text"), "documents", "valid list"),
        (RERANK, rank(documents=["a", ""]), "documents.1", "at least 1 character"),
        (RERANK, rank(documents=["a", {"title": "b"}]), "documents.1", "valid string"),
        (RERANK, rank(documents=["a"] * (MOST_TEXTS + 1)), "documents", f"at most {MOST_TEXTS} items"),
        (RERANK, rank(top_n=0), "top_n", "greater than or equal to 1"),
        (RERANK, rank(top_n=MOST_TEXTS + 1), "top_n", f"less than or equal to {MOST_TEXTS}"),
        (
            RERANK,
            rank(documents=["a", "b " * 9]),
            "documents",
            r"documents[1] with the query has 11 tokens.*10",
        ),
    ],
)
async def test_what_cannot_be_right_is_refused_by_field_and_bound_before_a_model_is_touched(
    http: httpx.AsyncClient, fakes: FakeModels, path: str, body: dict[str, Any], field: str, says: str
) -> None:
    async def touched(_: Sequence[str]) -> None:
        raise AssertionError("a model was touched")

    for fake in (*fakes.embedders.values(), *fakes.rerankers.values()):
        fake.meanwhile = touched
    # In ASCII, where half a pair of surrogates has a form.
    reply = await http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field)
    for part in says.split(".*"):
        assert part in error["message"]


@pytest.mark.parametrize(
    ("path", "body"), [(EMBEDDINGS, embed(model="gpt-9")), (RERANK, rank(model="large"))]
)
async def test_an_unknown_alias_is_told_with_those_that_can_do_this(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    reply = await http.post(path, json=body)
    assert reply.status_code == 404
    error = reply.json()["error"]
    assert error["code"] == "model_not_found"
    available = ("large", "small") if path == EMBEDDINGS else ("judge", "fast-judge")
    assert f"Available: {', '.join(available)}." in error["message"]


async def test_coheres_shape_ranks_the_same(http: httpx.AsyncClient, fakes: FakeModels) -> None:
    documents = ["Whales feed.", "the key " * 20, "the hall"]
    reply = (await http.post("/v2/rerank", json=rank(documents=documents, top_n=2))).json()
    assert [each["index"] for each in reply["results"]] == [1, 2]
    assert set(reply["results"][0]) == {"index", "relevance_score"}
    assert reply["id"]
    assert reply["meta"] == {
        "api_version": {"version": "2"},
        "tokens": {"input_tokens": 5 + 10 + 4, "output_tokens": 0},
    }
    await http.post("/v2/rerank", json=rank(documents=documents, max_tokens_per_doc=2))
    assert fakes.rerankers["judge"].calls[-1][2] == ["Whales feed", "the key", "the hall"]
    wrong = await http.post("/v2/rerank", json=rank(max_tokens_per_doc=0))
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "max_tokens_per_doc")


async def test_any_configured_model_embeds_by_its_alias(
    http: httpx.AsyncClient, fakes: FakeModels, scope: Scope
) -> None:
    for alias, dimensions in (("large", 64), ("small", 16)):
        reply = (await http.post(EMBEDDINGS, json=embed(model=alias, input=["a key", "a hall"]))).json()
        assert reply["model"] == alias
        assert [len(each["embedding"]) for each in reply["data"]] == [dimensions] * 2
        assert fakes.embedders[alias].calls == [(Lane.INTERACTIVE, ["a key", "a hall"])]
        assert fakes.embedders[alias].salts == [scope.tenant_id]


async def test_usage_counts_what_was_read_and_tells_what_was_cut(http: httpx.AsyncClient) -> None:
    texts = ["a key", "b " * 99, "c " * 12]
    cut = (await http.post(EMBEDDINGS, json=embed(input=texts, truncate=True))).json()
    assert cut["usage"] == {"prompt_tokens": 2 + 12 + 12, "total_tokens": 2 + 12 + 12, "truncated": 1}
    whole = (await http.post(EMBEDDINGS, json=embed(input="a key", truncate=True))).json()
    assert whole["usage"] == {"prompt_tokens": 2, "total_tokens": 2, "truncated": 0}
    refused_otherwise = (await http.post(EMBEDDINGS, json=embed(input="a key"))).json()
    assert refused_otherwise["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


async def test_a_rerankers_usage_counts_each_document_with_the_query(http: httpx.AsyncClient) -> None:
    documents = ["a hall", {"text": "b " * 99}]
    ranked = (await http.post(RERANK, json=rank(documents=documents, truncate=True))).json()
    assert ranked["usage"] == {"total_tokens": 4 + 10, "truncated": 1}
    ranked = (await http.post(RERANK, json=rank(documents=["a hall"]))).json()
    assert ranked["usage"] == {"total_tokens": 4, "truncated": 0}


@pytest.mark.parametrize(
    ("texts", "tier", "lane"),
    [
        (8, None, Lane.INTERACTIVE),
        (9, None, Lane.BULK),
        (1, "flex", Lane.BULK),
        (9, "default", Lane.INTERACTIVE),
    ],
)
async def test_a_program_stands_behind_people_unless_it_says_otherwise(
    http: httpx.AsyncClient, fakes: FakeModels, texts: int, tier: str | None, lane: Lane
) -> None:
    await http.post(EMBEDDINGS, json=embed(input=["a"] * texts, service_tier=tier))
    assert [lane for lane, _ in fakes.embedders["large"].calls] == [lane]


@pytest.mark.parametrize(
    ("documents", "tier", "lane"),
    [(100, None, Lane.INTERACTIVE), (101, None, Lane.BULK), (1, "flex", Lane.BULK)],
)
async def test_what_a_person_found_is_ranked_before_what_a_program_sends(
    http: httpx.AsyncClient, fakes: FakeModels, documents: int, tier: str | None, lane: Lane
) -> None:
    await http.post(RERANK, json=rank(documents=["a"] * documents, service_tier=tier))
    assert [lane for lane, _, _ in fakes.rerankers["judge"].calls] == [lane]


async def test_the_best_documents_come_first_and_no_more_than_asked_for(
    http: httpx.AsyncClient, fakes: FakeModels, scope: Scope
) -> None:
    documents = ["whales", "the key", {"text": "a key"}]
    asked = rank(model="fast-judge", documents=documents, top_n=2, return_documents=True)
    ranked = (await http.post(RERANK, json=asked)).json()
    assert [(each["index"], each["document"]["text"]) for each in ranked["results"]] == [
        (1, "the key"),
        (2, "a key"),
    ]
    more_than_there_are = (await http.post(RERANK, json=rank(top_n=50))).json()
    assert len(more_than_there_are["results"]) == 2
    assert fakes.rerankers["fast-judge"].salts == [scope.tenant_id]


@pytest.mark.parametrize(
    ("path", "body", "field"), [(EMBEDDINGS, embed(), "input"), (RERANK, rank(), "documents")]
)
async def test_a_text_that_the_model_cannot_process_is_named(
    http: httpx.AsyncClient, fakes: FakeModels, path: str, body: dict[str, Any], field: str
) -> None:
    async def poisonous(_: Sequence[str]) -> None:
        raise TextRefused(0, "its vector is not a number")

    fakes.embedders["large"].meanwhile = fakes.rerankers["judge"].meanwhile = poisonous
    reply = await http.post(path, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
    assert f"{field}[0] cannot be processed: its vector is not a number." in reply.json()["error"]["message"]


async def test_models_lists_every_alias(http: httpx.AsyncClient) -> None:
    listed = [each["id"] for each in (await http.get("/v1/models")).json()["data"]]
    assert listed == ["rag", "large", "small", "judge", "fast-judge"]
    assert (await http.get("/v1/models/fast-judge")).json()["id"] == "fast-judge"
