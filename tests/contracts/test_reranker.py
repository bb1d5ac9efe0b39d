"""What every Reranker promises, on the fake, the batcher in this process, and a client of a real models server."""

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from serving.batching.batcher import Batcher
from serving.client import ModelsClient
from serving.hosting import DeclaredModel, ModelHost
from serving.in_process import BatchedReranker
from serving.models.reranking import LoadedRerankingModel, load_reranking_model
from serving.protocols import Lane, Overloaded, Reranker, TextRefused, TextTooLong
from serving.readiness import Kind
from serving.server import create_app
from tests.fakes import FakeReranker
from tests.serving.hosting import NO_RERANKER, RERANKER, served

QUERY = "Where does the key hang?"
TEXTS = ["Whales feed on krill.", "The key hangs in the hall.", "A hall is a room."]


@pytest.fixture(scope="session")
def cross_encoder() -> LoadedRerankingModel:
    if not RERANKER.is_dir():
        pytest.skip(NO_RERANKER)
    return load_reranking_model(str(RERANKER), name="reranker")


@pytest.fixture(params=["fake", "in process", "client of a models server"])
async def reranker(request: pytest.FixtureRequest) -> AsyncIterator[Reranker]:
    if request.param == "fake":
        yield FakeReranker()
        return
    model: LoadedRerankingModel = request.getfixturevalue("cross_encoder")
    if request.param == "in process":
        async with Batcher(model.replicas, probe=("warm", "up")) as batcher:
            yield BatchedReranker(batcher, model.card)
        return
    # Without its networks, so that the server's end does not close the model of the other tests.
    declared = DeclaredModel(
        alias="reranker", kind=Kind.RERANKING, load=lambda: replace(model, networks=()), is_default=True
    )
    host = ModelHost([declared])
    async with served(create_app(host, token="t")) as url, ModelsClient(url, token="t") as client:
        yield client.reranker("reranker")


async def test_the_card_tells_how_to_count_and_stays_the_same(reranker: Reranker) -> None:
    card = await reranker.describe()
    assert await reranker.describe() == card
    assert card.max_tokens >= 64
    tokenizer = Tokenizer.from_str(card.tokenizer_json)
    assert len(tokenizer.encode("vault " * 5000).ids) >= 5000


async def test_a_text_that_is_too_long_beside_the_query_is_refused_unless_it_may_be_cut(
    reranker: Reranker,
) -> None:
    texts = ["The key hangs in the hall.", "The key hangs in the hall. " * 1000]
    with pytest.raises(TextTooLong) as refusal:
        await reranker.score(QUERY, texts, lane=Lane.BULK)
    assert refusal.value.index == 1
    assert refusal.value.tokens > refusal.value.max_tokens == (await reranker.describe()).max_tokens
    scores = await reranker.score(QUERY, texts, lane=Lane.BULK, truncate=True)
    assert scores.shape == (2,)


async def test_scores_are_float32_between_0_and_1_in_input_order(reranker: Reranker) -> None:
    scores = await reranker.score(QUERY, TEXTS, lane=Lane.INTERACTIVE)
    assert scores.shape == (3,)
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    assert int(np.argmax(scores)) == 1
    swapped = await reranker.score(QUERY, TEXTS[::-1], lane=Lane.INTERACTIVE)
    np.testing.assert_allclose(swapped[::-1], scores, atol=1e-3)


async def test_a_batch_scores_as_each_text_alone(reranker: Reranker) -> None:
    texts = [*TEXTS, "The key " + "and the lock " * 50 + "hang in the hall."]
    scores = await reranker.score(QUERY, texts, lane=Lane.BULK)
    alone = [(await reranker.score(QUERY, [text], lane=Lane.BULK))[0] for text in texts]
    np.testing.assert_allclose(scores, alone, atol=1e-3)


async def test_no_texts_give_no_scores(reranker: Reranker) -> None:
    assert (await reranker.score(QUERY, [], lane=Lane.INTERACTIVE)).shape == (0,)


async def test_text_that_is_not_unicode_is_refused_by_its_place(reranker: Reranker) -> None:
    with pytest.raises(TextRefused) as refusal:
        await reranker.score(QUERY, ["fine", "half a pair: \ud800"], lane=Lane.BULK)
    assert refusal.value.index == 1


async def test_a_deadline_that_has_passed_is_overload(reranker: Reranker) -> None:
    with pytest.raises(Overloaded):
        await reranker.score(QUERY, TEXTS, lane=Lane.INTERACTIVE, deadline_s=0.0)
