"""What every Embedder promises, on the fake, the batcher in this process, and a client of a real models server."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from serving.batching.batcher import Batcher, RowCache
from serving.client import ModelsClient
from serving.hosting import DeclaredModel, ModelHost
from serving.in_process import BatchedEmbedder
from serving.models.embedding import LoadedEmbeddingModel, load_embedding_model
from serving.protocols import Embedder, Lane, Overloaded, TextRefused, TextTooLong
from serving.readiness import Kind
from serving.server import create_app
from tests.fakes import FakeEmbedder
from tests.serving.hosting import MINILM, NO_MINILM, served


@pytest.fixture(scope="session")
def minilm() -> LoadedEmbeddingModel:
    if not MINILM.is_dir():
        pytest.skip(NO_MINILM)
    return load_embedding_model(str(MINILM), name="minilm")


@pytest.fixture(params=["fake", "in process", "client of a models server"])
async def embedder(request: pytest.FixtureRequest) -> AsyncIterator[Embedder]:
    if request.param == "fake":
        yield FakeEmbedder()
        return
    model: LoadedEmbeddingModel = request.getfixturevalue("minilm")
    if request.param == "in process":
        async with Batcher(model.replicas, probe="warm up") as batcher:
            yield BatchedEmbedder(batcher, model.card)
        return
    # Without its networks, so that the server's end does not close the model of the other tests.
    declared = DeclaredModel(
        alias="minilm", kind=Kind.EMBEDDING, load=lambda: replace(model, networks=()), is_default=True
    )
    host = ModelHost([declared], cache=RowCache(2**20))
    async with served(create_app(host, token="t")) as url, ModelsClient(url, token="t") as client:
        yield client.embedder("minilm")


async def test_rows_are_float32_unit_vectors_of_the_dimensions_described(embedder: Embedder) -> None:
    card = await embedder.describe()
    rows = await embedder.embed(["A vault.", "A key hangs in the hall.", ""], lane=Lane.BULK)
    assert rows.shape == (3, card.dimensions)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


async def test_rows_come_in_input_order_whatever_the_batching(embedder: Embedder) -> None:
    texts = [f"Room {number} holds " + "boxes and " * (number % 17) + "paper." for number in range(300)]
    rows = await embedder.embed(texts, lane=Lane.BULK)
    for index in (0, 1, 16, 150, 299):
        alone = await embedder.embed([texts[index]], lane=Lane.INTERACTIVE)
        assert float(rows[index] @ alone[0]) > 0.999


async def test_like_texts_are_nearer_than_unlike_ones(embedder: Embedder) -> None:
    texts = ["The key hangs in the hall.", "Where in the hall hangs the key?", "Whales feed on krill."]
    key, question, whales = await embedder.embed(texts, lane=Lane.INTERACTIVE)
    assert key @ question > key @ whales + 0.3


async def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    rows = await embedder.embed([], lane=Lane.BACKGROUND)
    assert rows.shape == (0, (await embedder.describe()).dimensions)


async def test_a_text_longer_than_the_model_reads_is_refused_by_its_place_and_length(
    embedder: Embedder,
) -> None:
    card = await embedder.describe()
    longest = card.max_tokens
    with pytest.raises(TextTooLong) as refusal:
        await embedder.embed(["A vault.", "vault " * 5000], lane=Lane.BULK)
    assert (refusal.value.index, refusal.value.max_tokens) == (1, longest)
    assert refusal.value.tokens == len(Tokenizer.from_str(card.tokenizer_json).encode("vault " * 5000).ids)


async def test_a_text_that_may_be_cut_is_embedded_by_its_beginning(embedder: Embedder) -> None:
    longest = (await embedder.describe()).max_tokens
    texts = ["vault " * 5000, "vault " * longest]
    whole, beginning = await embedder.embed(texts, lane=Lane.BULK, truncate=True)
    assert float(whole @ beginning) > 0.999


async def test_equal_texts_get_equal_rows_whoever_asks(embedder: Embedder) -> None:
    texts = ["A vault.", "A key.", "A vault."]
    north = await embedder.embed(texts, lane=Lane.BULK, cache_salt="north")
    south = await embedder.embed(texts, lane=Lane.INTERACTIVE, cache_salt="south")
    np.testing.assert_array_equal(north[0], north[2])
    np.testing.assert_allclose(north, south, atol=1e-2)


async def test_text_that_is_not_unicode_is_refused_by_its_place(embedder: Embedder) -> None:
    with pytest.raises(TextRefused) as refusal:
        await embedder.embed(["fine", "half a pair: \ud800"], lane=Lane.BULK)
    assert refusal.value.index == 1


async def test_a_deadline_that_has_passed_is_overload(embedder: Embedder) -> None:
    with pytest.raises(Overloaded):
        await embedder.embed(["too late"], lane=Lane.INTERACTIVE, deadline_s=0.0)


async def test_the_cards_tokenizer_counts_whole_texts(embedder: Embedder) -> None:
    card = await embedder.describe()
    tokenizer = Tokenizer.from_str(card.tokenizer_json)
    assert len(tokenizer.encode("vault " * 5000).ids) >= 5000
    assert len(tokenizer.encode("a vault").ids) < len(tokenizer.encode("a vault and a key").ids)


async def test_the_card_stays_the_same(embedder: Embedder) -> None:
    assert await embedder.describe() == await embedder.describe()


async def test_a_cancelled_call_leaves_the_embedder_usable(embedder: Embedder) -> None:
    call = asyncio.create_task(embedder.embed(["vault " * 200] * 64, lane=Lane.BULK))
    await asyncio.sleep(0.02)
    call.cancel()
    await asyncio.wait({call})
    assert len(await embedder.embed(["still here"], lane=Lane.INTERACTIVE)) == 1
