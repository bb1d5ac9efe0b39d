"""The models server and its client, over real HTTP, with a model that is quick or slow as the test wants."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import pytest

from serving.batching.batcher import Limits, Rows, Tokens
from serving.client import TEXTS_PER_REQUEST, ModelsClient
from serving.protocols import EmbeddingModel, Lane, ModelUnavailable, Overloaded, TextRefused
from serving.server import MAX_TEXTS, create_app
from tests.fakes import word_counting_tokenizer_json
from tests.serving.hosting import served, until_ready


@dataclass
class SmallModel:
    """Embeds a text as (1, 0), once `go` is set."""

    fingerprint: str = "first"
    name: str = "small"
    device: str = "cpu"
    precision: str = "float32"
    width: int = 2
    go: threading.Event = field(default_factory=threading.Event)
    computed: int = 0

    def __post_init__(self) -> None:
        self.go.set()

    @property
    def card(self) -> EmbeddingModel:
        return EmbeddingModel("small", self.fingerprint, 2, 100, word_counting_tokenizer_json())

    @card.setter
    def card(self, _: EmbeddingModel) -> None:
        raise AssertionError

    def encode(self, inputs: Sequence[str]) -> list[Tokens]:
        return [Tokens(np.full(4, "bad" in text, np.int64), np.zeros(4, np.int64)) for text in inputs]

    def forward(self, batch: Sequence[Tokens]) -> Rows:
        assert self.go.wait(10)
        if any(tokens.ids.any() for tokens in batch):
            raise ValueError("bad text")
        self.computed += len(batch)
        return np.tile(np.array([1, 0], np.float32), (len(batch), 1))


async def test_health_answers_while_the_model_loads_and_ready_tells_the_state() -> None:
    loaded = threading.Event()

    def load() -> SmallModel:
        assert loaded.wait(10)
        return SmallModel()

    async with (
        served(create_app(load_embedding=load)) as url,
        ModelsClient(url) as client,
        aiohttp.ClientSession(url) as session,
    ):
        async with session.get("/health") as reply:
            assert reply.status == 200
        async with session.get("/ready") as reply:
            assert reply.status == 503
        with pytest.raises(ModelUnavailable, match="loading"):
            await client.describe()
        loaded.set()
        await until_ready(client)
        async with session.get("/ready") as reply:
            assert reply.status == 200
            told = (await reply.json())["models"]["embedding"]
            assert told == {"state": "ready", "name": "small", "device": "cpu", "precision": "float32"}


async def test_a_model_that_cannot_be_loaded_is_told_with_the_reason() -> None:
    def load() -> SmallModel:
        raise ModelUnavailable("/models/x holds no safetensors weights")

    async with served(create_app(load_embedding=load)) as url, ModelsClient(url) as client:
        await until_ready(client)
        readiness = await client.readiness()
        assert readiness["embedding"] == {
            "state": "failed",
            "reason": "/models/x holds no safetensors weights",
        }
        with pytest.raises(ModelUnavailable, match="holds no safetensors"):
            await client.embed(["x"], lane=Lane.BULK)


@pytest.mark.parametrize("token", [None, "wrong", "righ"])
async def test_nothing_but_health_is_told_without_the_token(token: str | None) -> None:
    async with served(create_app(load_embedding=SmallModel, token="right")) as url:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            ModelsClient(url, token=token) as client,
            aiohttp.ClientSession(url, headers=headers) as session,
        ):
            await until_ready(client)
            with pytest.raises(ModelUnavailable, match="token"):
                await client.describe()
            for path in ("/metrics", "/embedding", "/docs", "/openapi.json"):
                async with session.get(path) as reply:
                    assert reply.status in {401, 404}


async def test_a_bad_text_is_named_by_its_place_among_all_of_the_call() -> None:
    async with served(create_app(load_embedding=SmallModel)) as url, ModelsClient(url) as client:
        await until_ready(client)
        texts = ["good"] * (TEXTS_PER_REQUEST + 7) + ["bad"]
        with pytest.raises(TextRefused) as refusal:
            await client.embed(texts, lane=Lane.BULK)
        assert refusal.value.index == TEXTS_PER_REQUEST + 7


async def test_overload_is_told_with_the_time_to_come_again() -> None:
    model = SmallModel()
    app = create_app(load_embedding=lambda: model, limits=Limits(max_waiting_texts=2))
    async with served(app) as url, ModelsClient(url) as client, aiohttp.ClientSession(url) as session:
        await until_ready(client)
        model.go.clear()
        calls = []
        for _ in ("running", "waiting"):
            calls.append(asyncio.create_task(client.embed(["x"] * 2, lane=Lane.BULK)))
            await asyncio.sleep(0.1)
        with pytest.raises(Overloaded) as refusal:
            await client.embed(["x"], lane=Lane.BULK)
        assert refusal.value.retry_after_s >= 1
        async with session.post("/embed", json={"texts": ["x"], "lane": "bulk"}) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        model.go.set()
        await asyncio.gather(*calls)


async def test_a_deadline_is_kept_over_http() -> None:
    model = SmallModel()
    async with served(create_app(load_embedding=lambda: model)) as url, ModelsClient(url) as client:
        await until_ready(client)
        model.go.clear()
        with pytest.raises(Overloaded):
            await asyncio.wait_for(client.embed(["x"], lane=Lane.INTERACTIVE, deadline_s=0.1), 0.5)
        model.go.set()


async def test_the_work_of_a_departed_client_is_not_computed() -> None:
    model = SmallModel()
    async with served(create_app(load_embedding=lambda: model)) as url, ModelsClient(url) as client:
        await until_ready(client)
        await client.describe()
        model.go.clear()
        computed = model.computed
        running = asyncio.create_task(client.embed(["x"], lane=Lane.BULK))
        await asyncio.sleep(0.1)
        departing = [asyncio.create_task(client.embed(["x"] * 50, lane=Lane.BULK)) for _ in range(8)]
        await asyncio.sleep(0.2)
        for call in departing:
            call.cancel()
        await asyncio.sleep(0.2)
        model.go.set()
        await running
        await client.embed(["x"], lane=Lane.BULK)
        assert model.computed == computed + 2


async def test_vectors_of_a_changed_model_are_refused_until_the_card_was_read_again() -> None:
    model = SmallModel()
    async with served(create_app(load_embedding=lambda: model)) as url, ModelsClient(url) as client:
        await until_ready(client)
        assert (await client.describe()).fingerprint == "first"
        model.fingerprint = "second"
        with pytest.raises(ModelUnavailable, match="changed"):
            await client.embed(["x"], lane=Lane.BULK)
        assert (await client.describe()).fingerprint == "second"
        assert (await client.embed(["x"], lane=Lane.BULK)).tolist() == [[1, 0]]


async def test_no_server_is_unavailable() -> None:
    async with ModelsClient("http://127.0.0.1:9") as client:
        with pytest.raises(ModelUnavailable, match="not reachable"):
            await client.describe()
        with pytest.raises(ModelUnavailable, match="not reachable"):
            await client.readiness()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"texts": ["x"]}, "lane"),
        ({"texts": ["x"], "lane": "express"}, "lane"),
        ({"texts": "x", "lane": "bulk"}, "texts"),
        ({"texts": [1], "lane": "bulk"}, "texts.0"),
        ({"texts": ["x"] * (MAX_TEXTS + 1), "lane": "bulk"}, "texts"),
        ({"texts": ["x"], "lane": "bulk", "deadline_s": -1}, "deadline_s"),
        ({"texts": ["x"], "lane": "bulk", "priority": 1}, "priority"),
    ],
)
async def test_a_malformed_request_is_refused_naming_the_field_and_not_its_text(
    body: dict[str, object], named: str
) -> None:
    async with (
        served(create_app(load_embedding=SmallModel)) as url,
        aiohttp.ClientSession(url) as session,
        session.post("/embed", json=body) as reply,
    ):
        assert reply.status == 400
        error = (await reply.json())["error"]
    assert error["type"] == "invalid_request"
    assert f"body.{named}:" in error["message"]
    assert "express" not in error["message"]


async def test_reranking_that_is_not_configured_is_unavailable() -> None:
    async with served(create_app(load_embedding=SmallModel)) as url, ModelsClient(url) as client:
        await until_ready(client)
        assert list(await client.readiness()) == ["embedding"]
        with pytest.raises(ModelUnavailable, match="No reranking model"):
            await client.score("q", ["x"], lane=Lane.INTERACTIVE)


async def test_metrics_count_by_lane_and_outcome() -> None:
    async with (
        served(create_app(load_embedding=SmallModel)) as url,
        ModelsClient(url) as client,
        aiohttp.ClientSession(url) as session,
    ):
        await until_ready(client)
        await client.embed(["x"] * 3, lane=Lane.BULK)
        with pytest.raises(TextRefused):
            await client.embed(["bad"], lane=Lane.INTERACTIVE)
        async with session.get("/metrics") as reply:
            told = await reply.text()
    assert 'strongroom_models_requests_total{model="embedding",outcome="ok"} 1.0' in told
    assert 'strongroom_models_requests_total{model="embedding",outcome="text_refused"} 1.0' in told
    assert 'strongroom_models_batch_texts_sum{lane="bulk",model="embedding"} 3.0' in told
    assert 'strongroom_models_waiting_texts{lane="bulk",model="embedding"} 0.0' in told
