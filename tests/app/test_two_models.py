"""Two embedding models at once: each collection is embedded, and searched, with the one that it names."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from ingest.sandbox import ParserPool
from serving.client import ModelsClient
from tests.app.conftest import Api, opened_api, served_models
from tests.serving.hosting import MINILM, NO_MINILM

pytestmark = pytest.mark.slow

HALL = "The iron key of the vault hangs in the hall."
HARBOUR = "The harbour master of Vellmouth is Ondine Marsh."


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with shorter vectors: another model to all that tell them apart."""
    if not MINILM.is_dir():
        pytest.skip(NO_MINILM)
    folder = tmp_path_factory.mktemp("models") / "small"
    SentenceTransformer(str(MINILM), truncate_dim=256, local_files_only=True).save(str(folder))
    return folder


@pytest.fixture
async def api(small_model: Path, parsers: ParserPool, tmp_path: Path) -> AsyncIterator[Api]:
    models = f"{MINILM},small={small_model}"
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(served_models(models))
        yield await stack.enter_async_context(opened_api(url, parsers, tmp_path, embedding=models))


async def test_collections_of_two_models_are_searched_each_and_together(api: Api) -> None:
    default = await api.store("default")
    created = await api.http.post("/v1/vector_stores", json={"name": "small", "embedding_model": "small"})
    small = created.json()["id"]
    assert created.json()["embedding_model"] == "small"
    await api.add_document(default, "hall.txt", HALL)
    await api.add_document(small, "harbour.txt", HARBOUR)
    for store, question, text in (
        (default, "Where is the key?", HALL),
        (small, "Who runs the harbour?", HARBOUR),
    ):
        found = await api.http.post(
            f"/v1/vector_stores/{store}/search", json={"query": question, "search_mode": "vector"}
        )
        assert text in found.json()["data"][0]["content"][0]["text"]
    await api.chat("Who is the harbour master?")
    assert HARBOUR in api.engine.requests[0]["messages"][0]["content"]


async def test_either_model_embeds_for_who_names_it_and_others_are_refused_by_name(api: Api) -> None:
    dimensions = {}
    for model in (MINILM.name, "small"):
        reply = await api.http.post("/v1/embeddings", json={"model": model, "input": "key"})
        dimensions[model] = len(reply.json()["data"][0]["embedding"])
    assert dimensions == {MINILM.name: 384, "small": 256}
    refused = await api.http.post("/v1/embeddings", json={"model": "large", "input": "key"})
    assert refused.status_code == 404
    assert "small" in refused.json()["error"]["message"]
    store = await api.http.post("/v1/vector_stores", json={"name": "x", "embedding_model": "large"})
    assert store.status_code == 400
    assert store.json()["error"]["param"] == "embedding_model"


async def test_a_model_that_is_not_the_default_is_loaded_by_its_first_request(api: Api) -> None:
    async with ModelsClient(api.settings.models.url) as client:
        before = (await client.readiness())["small"].state
        await api.http.post("/v1/embeddings", json={"model": "small", "input": "key"})
        after = (await client.readiness())["small"].state
    assert (before, after) == ("idle", "ready")


async def test_a_collection_is_rebuilt_with_the_other_model_and_rolled_back(api: Api) -> None:
    store = await api.store()
    for name, text in (("hall.txt", HALL), ("harbour.txt", HARBOUR)):
        await api.add_document(store, name, text)

    async def answers() -> list[tuple[str, float]]:
        question = {"query": "Where is the key?", "search_mode": "vector"}
        found = (await api.http.post(f"/v1/vector_stores/{store}/search", json=question)).json()["data"]
        return [(each["content"][0]["text"], each["score"]) for each in found]

    before = await answers()
    path = f"/v1/vector_stores/{store}/generations"
    begun = await api.http.post(path, json={"embedding_model": "small"})
    assert begun.json()["number"] == 1
    assert await answers() == before
    await api.worker.drain()
    assert (await api.http.get(f"/v1/vector_stores/{store}")).json()["embedding_model"] == "small"
    after = await answers()
    assert [text for text, _ in after] == [text for text, _ in before]
    assert after != before
    await api.http.post(f"{path}/0/switch", json={})
    assert await answers() == before
    assert (await api.http.get("/v1/verify")).json()["differences"] == []
