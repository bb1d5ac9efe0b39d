"""Embeddings, rerank and models in OpenAI's and Cohere's shapes."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from app.api import create_app
from app.running.models_role import create_models_app
from app.running.serve import prepare_data
from app.settings import read_settings
from serving.client import ModelsClient
from tests.app.conftest import Api
from tests.fakes import ScriptedEngine
from tests.serving.hosting import MINILM, NO_RERANKER, RERANKER, served, until_ready

MODEL = MINILM.name


async def test_embeddings_are_unit_vectors_in_either_encoding_with_exact_usage(api: Api) -> None:
    texts = ["The key hangs in the hall.", "A heron stands in the harbour."]
    as_floats = (await api.http.post("/v1/embeddings", json={"model": MODEL, "input": texts})).json()
    asked = {"model": MODEL, "input": texts, "encoding_format": "base64", "dimensions": 384}
    as_base64 = (await api.http.post("/v1/embeddings", json=asked)).json()
    vectors = np.array([each["embedding"] for each in as_floats["data"]], np.float32)
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in as_base64["data"]]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(vectors, np.stack(decoded), atol=2e-2)
    assert as_floats["usage"] == {"prompt_tokens": 18, "total_tokens": 18}
    assert [each["index"] for each in as_floats["data"]] == [0, 1]


async def test_token_ids_of_the_models_own_tokenizer_are_read_and_others_found_out(api: Api) -> None:
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.no_padding()
    texts = ["The key hangs in the hall.", "A heron!"]
    bare, whole = (
        [tokenizer.encode(text, add_special_tokens=special).ids for text in texts]
        for special in (False, True)
    )

    async def embedded(sent: object) -> httpx.Response:
        return await api.http.post("/v1/embeddings", json={"model": MODEL, "input": sent})

    wanted = (await embedded(texts)).json()
    for ids in (bare, whole):
        assert (await embedded(ids)).json() == wanted
    assert (await embedded(bare[0])).json()["data"][0] == wanted["data"][0]
    # "The key hangs in the hall." to OpenAI's cl100k_base, and an id that no tokenizer of this size has.
    for foreign in ([791, 1401, 57421, 304, 279, 11474, 13], [999_999]):
        reply = await embedded([foreign])
        assert reply.status_code == 400
        assert "check_embedding_ctx_length=False" in reply.json()["error"]["message"]
    # Ids that the model's vocabulary holds, but no text becomes.
    assert (await embedded([[304, 279, 311]])).status_code == 400


async def test_a_model_tells_what_it_can_do_and_how_much_it_reads(api: Api) -> None:
    store_id = await api.store("notes")
    told = {each["id"]: each for each in (await api.http.get("/v1/models")).json()["data"]}
    assert told["rag/notes"]["vector_store"] == {"id": store_id, "name": "notes"}
    assert "file_search" in told["rag"]["capabilities"]
    assert (told["scripted"]["context_length"], told["rag"]["context_length"]) == (4096, 4096)
    assert told["scripted"]["capabilities"] == ["chat.completions", "responses", "completions"]
    assert told[MODEL]["capabilities"] == ["embeddings"]
    assert (told[MODEL]["context_length"], told[MODEL]["dimensions"]) == (256, 384)
    by_id = (await api.http.get(f"/v1/models/rag/{store_id}")).json()
    assert (by_id["id"], by_id["vector_store"]["name"]) == (f"rag/{store_id}", "notes")
    for name in ("rag/none", "none"):
        assert (await api.http.get(f"/v1/models/{name}")).status_code == 404
        assert (await api.http.delete(f"/v1/models/{name}")).status_code == 404
    refused = await api.http.delete("/v1/models/scripted")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_deletable")
    assert (await api.http.delete("/v1/models/rag/notes")).status_code == 403


async def test_a_model_whose_engine_an_admin_added_can_be_deleted(api: Api) -> None:
    async with ScriptedEngine(models=("lent",)) as engine:
        await api.http.post("/v1/engines", json={"url": engine.url})
        for _ in range(200):
            if (await api.http.get("/v1/models/lent")).status_code == 200:
                break
            await asyncio.sleep(0.02)
        deleted = await api.http.delete("/v1/models/lent")
        assert deleted.json() == {"id": "lent", "object": "model", "deleted": True}
        assert (await api.http.get("/v1/models/lent")).status_code == 404
        assert engine.url not in (await api.http.get("/v1/engines")).text


async def test_models_lists_what_can_be_named(api: Api) -> None:
    store_id = await api.store("")
    await api.store("notes")
    listed = (await api.http.get("/v1/models")).json()
    names = [each["id"] for each in listed["data"]]
    assert set(names) == {"rag", "rag/notes", f"rag/{store_id}", "scripted", MODEL}
    for name in names:
        assert (await api.http.get(f"/v1/models/{name}")).json()["id"] == name


@pytest.fixture
async def reranking(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """An api whose models server has a cross-encoder."""
    if not RERANKER.is_dir():
        pytest.skip(NO_RERANKER)
    async with AsyncExitStack() as stack:
        settings = read_settings().with_options(
            storage={"data_dir": str(tmp_path / "data")},
            models={"embedding": str(MINILM), "reranker": str(RERANKER)},
        )
        url = await stack.enter_async_context(served(create_models_app(settings.models)))
        async with ModelsClient(url) as client:
            await until_ready(client)
        settings = settings.with_options(models={"url": url})
        key = prepare_data(settings).read_text().strip()
        app = create_app(settings)
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {key}"}
        yield await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://strongroom", headers=headers)
        )


async def test_rerank_orders_documents_by_how_well_they_answer(reranking: httpx.AsyncClient) -> None:
    documents = [
        "Bicycles are cheap to repair.",
        "The strongroom was built in 1932.",
        {"text": "The harbour freezes in January."},
    ]
    asked = {"model": RERANKER.name, "query": "When was the strongroom built?", "documents": documents}
    ranked = (await reranking.post("/v1/rerank", json={**asked, "top_n": 2, "return_documents": True})).json()
    assert ranked["results"][0]["index"] == 1
    assert len(ranked["results"]) == 2
    assert ranked["results"][0]["document"]["text"] == documents[1]
    scores = [result["relevance_score"] for result in ranked["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert RERANKER.name in [each["id"] for each in (await reranking.get("/v1/models")).json()["data"]]
