"""The models server and its client, over real HTTP, with models that are quick or slow as the test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest

from serving import server
from serving.batching.batcher import Limits, RowCache
from serving.client import TEXTS_PER_REQUEST, ModelsClient
from serving.hosting import MIB, HostingLimits, ModelHost
from serving.protocols import Lane, ModelUnavailable, ModelUnknown, Overloaded, TextRefused, TextTooLong
from serving.readiness import Kind, State
from serving.server import MAX_TEXTS, create_app
from tests.serving.hosting import SmallSource, served, until, until_ready


@dataclass(frozen=True)
class Served:
    """A models server, its client, and a session for what the client would never send."""

    client: ModelsClient
    http: aiohttp.ClientSession
    host: ModelHost

    async def told(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.http.post(path, data=orjson.dumps(body)) as reply:
            return reply.status, await reply.json()


@asynccontextmanager
async def serving(
    *sources: SmallSource,
    token: str | None = None,
    limits: HostingLimits | None = None,
    cache: RowCache | None = None,
    wait: bool = True,
) -> AsyncIterator[Served]:
    """The first source of each kind is its default; one embedding model if there are none."""
    sources = sources or (SmallSource(),)
    declared = [
        source.declared(is_default=source.kind not in {before.kind for before in sources[:place]})
        for place, source in enumerate(sources)
    ]
    host = ModelHost(declared, limits=limits, cache=cache)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        served(create_app(host, token=token)) as url,
        ModelsClient(url, token=token) as client,
        aiohttp.ClientSession(url, headers=headers) as session,
    ):
        if wait:
            await until_ready(client)
        yield Served(client, session, host)


async def test_health_answers_while_the_model_loads_and_ready_tells_the_state() -> None:
    source = SmallSource()
    source.go.clear()
    async with serving(source, wait=False, limits=HostingLimits(loading_wait_s=0.05)) as it:
        async with it.http.get("/health") as reply:
            assert reply.status == 200
        async with it.http.get("/ready") as reply:
            assert reply.status == 503
        with pytest.raises(ModelUnavailable, match="loading"):
            await it.client.embedder("small").describe()
        async with it.http.get("/models/embedding/small") as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
        source.go.set()
        await until_ready(it.client)
        async with it.http.get("/ready") as reply:
            assert reply.status == 200
            assert (await reply.json())["models"] == [
                {
                    "alias": "small",
                    "kind": "embedding",
                    "state": "ready",
                    "reason": "",
                    "is_default": True,
                    "device": "cpu",
                    "precision": "float32",
                    "backend": "small",
                    "threads": 1,
                    "replicas": 1,
                    "memory_bytes": 100 * MIB,
                }
            ]


async def test_a_question_during_the_start_is_answered_once_the_model_is_there() -> None:
    source = SmallSource()
    source.go.clear()
    async with serving(source, wait=False) as it:
        call = asyncio.create_task(it.client.embedder("small").embed(["7"], lane=Lane.INTERACTIVE))
        await until(lambda: len(it.host.models[0].callers) == 1)
        source.go.set()
        assert (await call).tolist() == [[7, 0]]


async def test_a_deadline_holds_while_the_model_loads() -> None:
    source = SmallSource()
    source.go.clear()
    async with serving(source, wait=False) as it:
        with pytest.raises(ModelUnavailable):
            await it.client.embedder("small").embed(["7"], lane=Lane.INTERACTIVE, deadline_s=0.1)
        source.go.set()


async def test_a_model_that_cannot_be_loaded_is_told_with_the_reason() -> None:
    source = SmallSource(failure=ModelUnavailable("/models/x holds no safetensors weights"))
    async with serving(source) as it:
        told = (await it.client.readiness())["small"]
        assert (told.state, told.reason) == (State.FAILED, "/models/x holds no safetensors weights")
        with pytest.raises(ModelUnavailable, match="holds no safetensors"):
            await it.client.embedder("small").embed(["x"], lane=Lane.BULK)


async def test_an_unloaded_model_counts_as_ready_and_a_failed_one_beside_the_default_does_too() -> None:
    default, idle = SmallSource("default"), SmallSource("idle")
    failed = SmallSource("failed", failure=ModelUnavailable("no such folder"))
    async with serving(default, idle, failed) as it:
        with pytest.raises(ModelUnavailable, match="no such folder"):
            await it.client.embedder("failed").describe()
        async with it.http.get("/ready") as reply:
            assert reply.status == 200
        states = {alias: model.state for alias, model in (await it.client.readiness()).items()}
        assert states == {"default": State.READY, "idle": State.IDLE, "failed": State.FAILED}


async def test_embedding_and_reranking_models_are_told_apart_by_their_aliases() -> None:
    sources = [
        SmallSource("one"),
        SmallSource("two", fingerprint="second"),
        SmallSource("ranker", Kind.RERANKING),
    ]
    sources[1].model.width = 3
    async with serving(*sources) as it:
        assert (await it.client.embedder("one").embed(["5"], lane=Lane.BULK)).tolist() == [[5, 0]]
        assert (await it.client.embedder("two").embed(["5"], lane=Lane.BULK)).tolist() == [[5, 0, 0]]
        scores = await it.client.reranker("ranker").score("1", ["a", "b"], lane=Lane.BULK)
        assert scores.dtype == np.float32
        assert scores.tolist() == [1, 1]
        assert (await it.client.embedder("two").describe()).fingerprint == "second"
        assert (await it.client.reranker("ranker").describe()).max_tokens == 100
        assert it.client.embedder("one") is it.client.embedder("one")


@pytest.mark.parametrize("alias", ["other", "ranker", "", "..", "a/b?c", "ä ö"])
async def test_an_unknown_alias_is_told_whatever_it_looks_like(alias: str) -> None:
    async with serving(SmallSource(), SmallSource("ranker", Kind.RERANKING)) as it:
        for _ in range(2):
            with pytest.raises(ModelUnknown):
                await it.client.embedder(alias).embed(["x"], lane=Lane.INTERACTIVE)
        with pytest.raises(ModelUnknown):
            await it.client.embedder(alias).describe()


async def test_an_unknown_model_is_404_with_those_that_there_are() -> None:
    async with serving(SmallSource("one"), SmallSource("two")) as it:
        status, told = await it.told("/embed", {"model": "three", "texts": ["x"], "lane": "bulk"})
        assert (status, told["error"]["type"], told["error"]["available"]) == (
            404,
            "model_unknown",
            ["one", "two"],
        )
        async with it.http.get("/models/generation/x") as reply:
            assert reply.status == 400


@pytest.mark.parametrize("token", [None, "wrong", "righ"])
async def test_nothing_but_health_is_told_without_the_token(token: str | None) -> None:
    host = ModelHost([SmallSource().declared()])
    async with served(create_app(host, token="right")) as url:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            ModelsClient(url, token=token) as client,
            aiohttp.ClientSession(url, headers=headers) as session,
        ):
            await until_ready(client)
            for ask in (client.embedder("small").describe(), client.metrics()):
                with pytest.raises(ModelUnavailable, match="token"):
                    await ask
            for path in ("/metrics", "/models/embedding/small", "/docs", "/openapi.json"):
                async with session.get(path) as reply:
                    assert reply.status in {401, 404}
            for path in ("/embed", "/rerank"):
                async with session.post(path, data=b"not even JSON") as reply:
                    assert reply.status == 401


async def test_a_bad_text_is_named_by_its_place_among_all_of_the_call() -> None:
    async with serving() as it:
        texts = [str(number) for number in range(TEXTS_PER_REQUEST + 7)] + ["bad"]
        with pytest.raises(TextRefused) as refusal:
            await it.client.embedder("small").embed(texts, lane=Lane.BULK)
        assert refusal.value.index == TEXTS_PER_REQUEST + 7


async def test_a_text_that_is_too_long_is_named_with_its_length_unless_it_may_be_cut() -> None:
    async with serving() as it:
        texts = ["1"] * (TEXTS_PER_REQUEST + 3) + ["7 " * 101]
        embedder = it.client.embedder("small")
        with pytest.raises(TextTooLong) as refusal:
            await embedder.embed(texts, lane=Lane.BULK)
        told = refusal.value
        assert (told.index, told.tokens, told.max_tokens) == (TEXTS_PER_REQUEST + 3, 101, 100)
        rows = await embedder.embed(texts, lane=Lane.BULK, truncate=True)
        assert rows[-1].tolist() == [7, 0]
        status, error = await it.told(
            "/embed", {"model": "small", "texts": ["x", "7 " * 101], "lane": "interactive"}
        )
        assert status == 400
        assert error["error"] == {
            "type": "text_too_long",
            "message": "Text 1 cannot be processed: it has 101 tokens; the model reads at most 100",
            "index": 1,
            "tokens": 101,
            "max_tokens": 100,
        }


async def test_a_long_list_has_two_slices_in_flight_and_its_rows_in_order() -> None:
    source = SmallSource()
    async with serving(source) as it:
        await it.client.embedder("small").describe()
        source.model.go.clear()
        encoded = source.model.encoded
        texts = [str(number) for number in range(3 * TEXTS_PER_REQUEST + 1)]
        call = asyncio.create_task(it.client.embedder("small").embed(texts, lane=Lane.BULK))
        await until(lambda: source.model.encoded == encoded + 2 * TEXTS_PER_REQUEST)
        source.model.go.set()
        assert (await call)[:, 0].tolist() == [float(text) for text in texts]


async def test_the_error_of_the_first_bad_slice_is_told_and_the_others_are_taken_back() -> None:
    source = SmallSource()
    async with serving(source) as it:
        texts = [str(number) for number in range(4 * TEXTS_PER_REQUEST)]
        texts[10] = texts[TEXTS_PER_REQUEST + 10] = "bad"
        with pytest.raises(TextRefused) as refusal:
            await it.client.embedder("small").embed(texts, lane=Lane.BULK)
        assert refusal.value.index == 10
        await until(lambda: it.host.models[0].in_flight == 0)


async def test_overload_is_told_with_the_time_to_come_again() -> None:
    source = SmallSource()
    limits = HostingLimits(batches=Limits(max_waiting_texts=2, max_batch_texts=2))
    async with serving(source, limits=limits) as it:
        embedder = it.client.embedder("small")
        await embedder.describe()
        source.model.go.clear()
        source.model.begun.clear()
        model = it.host.models[0]
        calls = []
        # One batch runs, one is prefetched, and one fills the queue.
        for texts, waiting in ((["1", "2"], 0), (["3", "4"], 0), (["5", "6"], 2)):
            calls.append(asyncio.create_task(embedder.embed(texts, lane=Lane.BULK)))
            await until(lambda: model.in_flight == len(calls))
            await until(source.model.begun.is_set)
            await until(lambda waiting=waiting: model.figures().waiting_texts[Lane.BULK] == waiting)  # type: ignore[misc]
        with pytest.raises(Overloaded) as refusal:
            await embedder.embed(["7"], lane=Lane.BULK)
        assert refusal.value.retry_after_s >= 1
        async with it.http.post("/embed", json={"model": "small", "texts": ["8"], "lane": "bulk"}) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        source.model.go.set()
        await asyncio.gather(*calls)


async def test_a_deadline_is_kept_over_http() -> None:
    source = SmallSource()
    async with serving(source) as it:
        await it.client.embedder("small").describe()
        source.model.go.clear()
        call = it.client.embedder("small").embed(["x"], lane=Lane.INTERACTIVE, deadline_s=0.1)
        with pytest.raises(Overloaded):
            # The server refuses before the client would give up, which is ModelUnavailable.
            await call
        source.model.go.set()


async def test_the_work_of_a_departed_client_is_not_computed() -> None:
    source = SmallSource()
    async with serving(source) as it:
        embedder = it.client.embedder("small")
        await embedder.describe()
        source.model.go.clear()
        source.model.begun.clear()
        computed = source.model.computed
        running = asyncio.create_task(embedder.embed(["1"], lane=Lane.BULK))
        await until(source.model.begun.is_set)
        encoded = source.model.encoded
        departing = [
            asyncio.create_task(embedder.embed([f"{call} {number}" for number in range(50)], lane=Lane.BULK))
            for call in range(8)
        ]
        await until(lambda: source.model.encoded == encoded + 8 * 50)
        for call in departing:
            call.cancel()
        await until(lambda: it.host.models[0].in_flight == 1)
        source.model.go.set()
        await running
        await embedder.embed(["2"], lane=Lane.BULK)
        assert source.model.computed == computed + 2


async def test_a_departed_client_does_not_have_a_model_loaded_that_nobody_wants() -> None:
    loading, wanted = SmallSource("loading"), SmallSource("wanted")
    loading.go.clear()
    async with serving(loading, wanted, wait=False) as it:
        call = asyncio.create_task(it.client.embedder("wanted").describe())
        await until(lambda: len(it.host.models[1].callers) == 1)
        call.cancel()
        await until(lambda: it.host.models[1].opening is None)
        loading.go.set()
        await until_ready(it.client)
        assert wanted.loads == 0


async def test_a_killed_worker_thread_is_back_and_readiness_tells_the_truth_meanwhile() -> None:
    source = SmallSource()
    async with serving(source) as it:
        embedder = it.client.embedder("small")
        await embedder.describe()
        source.model.go.clear()
        source.model.deaths = 1
        with pytest.raises(ModelUnavailable, match="died"):
            await embedder.embed(["x"], lane=Lane.INTERACTIVE)
        await until(lambda: it.host.readiness()[0].state is State.FAILED)
        async with it.http.get("/ready") as reply:
            assert reply.status == 503
        assert "died" in (await it.client.readiness())["small"].reason
        source.model.go.set()
        async with asyncio.timeout(2):
            while (await it.client.readiness())["small"].state is not State.READY:
                pass
        assert (await embedder.embed(["7"], lane=Lane.INTERACTIVE)).tolist() == [[7, 0]]


async def test_vectors_of_a_changed_model_are_refused_until_the_card_was_read_again() -> None:
    source, other = SmallSource(), SmallSource("other")
    async with serving(source, other, limits=HostingLimits(memory_bytes=150 * MIB)) as it:
        embedder = it.client.embedder("small")
        assert (await embedder.describe()).fingerprint == "first"
        await it.client.embedder("other").describe()
        source.fingerprint = "second"
        with pytest.raises(ModelUnavailable, match="changed"):
            await embedder.embed(["7"], lane=Lane.BULK)
        assert (await embedder.describe()).fingerprint == "second"
        assert (await embedder.embed(["7"], lane=Lane.BULK)).tolist() == [[7, 0]]


async def test_a_text_that_comes_again_is_answered_from_the_cache_for_its_own_tenant_only() -> None:
    source = SmallSource()
    async with serving(source, cache=RowCache(MIB)) as it:
        embedder = it.client.embedder("small")
        await embedder.embed(["7"], lane=Lane.BULK, cache_salt="north")
        computed = source.model.computed
        rows = await embedder.embed(["7"], lane=Lane.INTERACTIVE, cache_salt="north")
        assert (rows.tolist(), source.model.computed) == ([[7, 0]], computed)
        await embedder.embed(["7"], lane=Lane.INTERACTIVE, cache_salt="south")
        assert source.model.computed == computed + 1
        assert (
            'remembered_texts_total{lane="interactive",model="small"} 1.0'
            in (await it.client.metrics()).decode()
        )


async def test_a_pair_that_comes_again_is_answered_from_the_cache_for_its_own_tenant_and_query_only() -> None:
    source = SmallSource(kind=Kind.RERANKING)
    async with serving(source, cache=RowCache(MIB)) as it:
        reranker = it.client.reranker("small")

        async def computed_for(query: str, texts: list[str], tenant: str) -> int:
            before = source.model.computed
            scores = await reranker.score(query, texts, lane=Lane.BULK, cache_salt=tenant)
            assert scores.tolist() == [float(query)] * len(texts)
            return source.model.computed - before

        assert await computed_for("7", ["a key", "a hall"], "north") == 2
        assert await computed_for("7", ["a hall", "a lamp", "a key"], "north") == 1
        assert await computed_for("8", ["a hall", "a key"], "north") == 2
        assert await computed_for("7", ["a hall", "a key"], "south") == 2


async def test_no_server_is_unavailable() -> None:
    async with ModelsClient("http://127.0.0.1:9") as client:
        with pytest.raises(ModelUnavailable, match="not reachable"):
            await client.embedder("small").describe()
        with pytest.raises(ModelUnavailable, match="not reachable"):
            await client.readiness()


@pytest.mark.parametrize(
    ("begins_to_answer", "connections"),
    [
        pytest.param(False, 2, id="before any byte"),
        pytest.param(True, 1, id="within the reply"),
    ],
)
async def test_a_request_is_sent_again_only_when_the_connection_died_before_any_byte(
    begins_to_answer: bool, connections: int
) -> None:
    seen = 0

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1
        await reader.readuntil(b"\r\n\r\n")
        if begins_to_answer:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(die, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, ModelsClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ModelUnavailable):
            await client._exchange.send("POST", "/embed", b"{}", timeout_s=5)
    assert seen == connections


GOOD = {"model": "small", "texts": ["x"], "lane": "bulk"}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/embed", {"texts": ["x"], "lane": "bulk"}, "model"),
        ("/embed", GOOD | {"model": 5}, "model"),
        ("/embed", {"model": "small", "texts": ["x"]}, "lane"),
        ("/embed", GOOD | {"lane": "express"}, "lane"),
        ("/embed", GOOD | {"lane": ["bulk"]}, "lane"),
        ("/embed", GOOD | {"texts": "express"}, "texts"),
        ("/embed", {"model": "small", "lane": "bulk"}, "texts"),
        ("/embed", GOOD | {"texts": ["x", 1]}, "texts.1"),
        ("/embed", GOOD | {"texts": [None]}, "texts.0"),
        ("/embed", GOOD | {"texts": ["express"] * (MAX_TEXTS + 1)}, "texts"),
        ("/embed", GOOD | {"deadline_s": -1}, "deadline_s"),
        ("/embed", GOOD | {"deadline_s": 0}, "deadline_s"),
        ("/embed", GOOD | {"deadline_s": True}, "deadline_s"),
        ("/embed", GOOD | {"deadline_s": 1e9}, "deadline_s"),
        ("/embed", GOOD | {"deadline_s": "express"}, "deadline_s"),
        ("/embed", GOOD | {"truncate": 1}, "truncate"),
        ("/embed", GOOD | {"cache_salt": 1}, "cache_salt"),
        ("/embed", GOOD | {"priority": 1}, "priority"),
        ("/embed", GOOD | {"query": "express"}, "query"),
        ("/rerank", GOOD, "query"),
        ("/rerank", GOOD | {"query": ["express"]}, "query"),
        ("/embed", ["express"], "body"),
    ],
)
async def test_a_malformed_request_is_refused_naming_the_field_and_not_its_text(
    path: str, body: object, named: str
) -> None:
    source = SmallSource()
    source.go.clear()
    async with serving(source, wait=False) as it:
        status, told = await it.told(path, body)
        source.go.set()
    assert (status, told["error"]["type"]) == (400, "invalid_request")
    assert told["error"]["message"].startswith(f"{named}:")
    assert "express" not in told["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "small", "texts": ["\\ud800"]}', b"\xff"])
async def test_what_is_not_json_is_refused(body: bytes) -> None:
    async with serving() as it, it.http.post("/embed", data=body) as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["message"] == "body: not valid JSON in UTF-8"


async def test_a_body_beyond_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1_000)
    async with serving() as it:
        status, told = await it.told("/embed", GOOD | {"texts": ["x" * 1_000]})
        assert (status, told["error"]["message"]) == (400, "body: at most 1000 bytes")


async def test_a_query_that_is_not_unicode_is_refused() -> None:
    async with serving(SmallSource("ranker", Kind.RERANKING)) as it:
        with pytest.raises(TextRefused, match="not valid Unicode"):
            await it.client.reranker("ranker").score("half a pair: \ud800", ["x"], lane=Lane.BULK)


async def test_reranking_that_is_not_declared_is_unknown() -> None:
    async with serving() as it:
        assert list(await it.client.readiness()) == ["small"]
        with pytest.raises(ModelUnknown, match="Available: none"):
            await it.client.reranker("ranker").score("q", ["x"], lane=Lane.INTERACTIVE)


async def test_metrics_count_by_model_lane_and_outcome() -> None:
    async with serving(SmallSource(), SmallSource("other")) as it:
        embedder = it.client.embedder("small")
        await embedder.embed(["1", "2", "3"], lane=Lane.BULK)
        with pytest.raises(TextRefused):
            await embedder.embed(["bad"], lane=Lane.INTERACTIVE)
        with pytest.raises(ModelUnknown):
            await it.client.embedder("made up").embed(["x"], lane=Lane.BULK)
        told = (await it.client.metrics()).decode()
    bulk = 'lane="bulk",model="small"'
    for line in (
        f'requests_total{{{bulk},outcome="ok"}} 1.0',
        'requests_total{lane="interactive",model="small",outcome="text_refused"} 1.0',
        f"batch_texts_sum{{{bulk}}} 3.0",
        f"tokens_total{{{bulk}}} 3.0",
        f"waiting_texts{{{bulk}}} 0.0",
        f"refused_requests_total{{{bulk}}} 0.0",
        f'dropped_texts_total{{{bulk},reason="departed"}} 0.0',
        'loads_total{model="small",outcome="ok"} 1.0',
        'state{kind="embedding",model="small",state="ready"} 1.0',
        'state{kind="embedding",model="other",state="idle"} 1.0',
        'memory_bytes{model="small"} 1.048576e+08',
    ):
        assert f"strongroom_models_{line}" in told, line
    assert "made up" not in told
