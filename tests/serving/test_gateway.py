"""The gateway, before real HTTP engines that follow a script."""

import asyncio
import json
import time

import pytest

from serving.generation.gateway import EngineLost, Gateway, ModelNotServed, Replica, UpstreamModel
from serving.protocols import EngineUnavailable
from tests.fakes import ScriptedEngine

CHAT = "/v1/chat/completions"


def chat(*, stream: bool, model: str = "scripted") -> bytes:
    # With spaces and an escape that a parser would not write back the same way.
    content = '"Where is  the k\\u0065y?"'
    return f'{{ "model":"{model}", "stream": {json.dumps(stream)},"messages":[{{"content":{content}}}]}}'.encode()


async def ask(gateway: Gateway, *, stream: bool = False, model: str = "scripted") -> bytes:
    async with gateway.send(CHAT, chat(stream=stream, model=model), model=model) as reply:
        assert reply.status == 200
        return await reply.read()


@pytest.mark.parametrize("stream", [False, True])
async def test_request_and_reply_pass_byte_by_byte(stream: bool) -> None:
    request_id = {"X-Request-Id": "r-1"}
    async with (
        ScriptedEngine(token="k") as engine,
        engine.gateway() as gateway,
        gateway.send(CHAT, chat(stream=stream), model="scripted", headers=request_id) as reply,
    ):
        received = await reply.read()
        content_type = reply.content_type
    assert engine.bodies == [chat(stream=stream)]
    assert received == bytes(engine.sent)
    assert content_type.startswith("text/event-stream" if stream else "application/json")
    assert engine.headers[0]["X-Request-Id"] == "r-1"
    assert engine.headers[0]["Authorization"] == "Bearer k"


async def test_chunks_arrive_while_the_engine_still_writes() -> None:
    async with (
        ScriptedEngine(answer=lambda _: "one two three four", between_words_s=0.1) as engine,
        engine.gateway() as gateway,
        gateway.send(CHAT, chat(stream=True), model="scripted") as reply,
    ):
        arrivals = [time.monotonic() async for _ in reply.chunks()]
    assert arrivals[-1] - arrivals[0] > 0.25


async def test_an_engines_own_refusal_is_a_reply() -> None:
    async with (
        ScriptedEngine(status=400) as engine,
        engine.gateway() as gateway,
        gateway.send(CHAT, chat(stream=False), model="scripted") as reply,
    ):
        assert reply.status == 400
        assert b"refused by the script" in await reply.read()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_departure_closes_the_upstream_within_a_tenth_of_a_second(stream: bool) -> None:
    engine = ScriptedEngine(answer=lambda _: "word " * 1000, between_words_s=0.05)
    async with engine, engine.gateway() as gateway:
        call = asyncio.create_task(ask(gateway, stream=stream))
        await asyncio.sleep(0.3)
        assert (await gateway.health())[0].in_flight == 1
        call.cancel()
        await asyncio.wait({call})
        await asyncio.sleep(0.1)
        assert engine.departures == 1
        assert (await gateway.health())[0].in_flight == 0


async def test_leaving_the_context_early_closes_the_upstream() -> None:
    engine = ScriptedEngine(answer=lambda _: "word " * 1000, between_words_s=0.05)
    async with engine, engine.gateway() as gateway:
        async with gateway.send(CHAT, chat(stream=True), model="scripted") as reply:
            async for _ in reply.chunks():
                break
        await asyncio.sleep(0.1)
        assert engine.departures == 1


async def test_an_engine_lost_in_the_middle_of_a_reply_is_told() -> None:
    received = bytearray()

    async def receive(gateway: Gateway) -> None:
        async with gateway.send(CHAT, chat(stream=True), model="scripted") as reply:
            async for chunk in reply.chunks():
                received.extend(chunk)

    async with ScriptedEngine(lose_after_words=2) as engine, engine.gateway() as gateway:
        with pytest.raises(EngineLost):
            await receive(gateway)
    assert b'"is ' in received
    assert b"[DONE]" not in received


async def test_a_request_without_reply_is_sent_once_more_to_another_engine() -> None:
    async with (
        ScriptedEngine(lose_after_words=0) as failing,
        ScriptedEngine() as good,
        Gateway([Replica(failing.url), Replica(good.url)], salt_secret=b"s") as gateway,
    ):
        assert b"[DONE]" in await ask(gateway, stream=True)
    assert len(failing.bodies) == 1
    assert len(good.bodies) == 1


async def test_a_full_engine_gives_way_to_another_and_is_told_when_alone() -> None:
    async with ScriptedEngine(status=503) as full, ScriptedEngine() as free:
        async with Gateway([Replica(full.url), Replica(free.url)], salt_secret=b"s") as gateway:
            assert b"It is so" in await ask(gateway)
        async with (
            full.gateway() as gateway,
            gateway.send(CHAT, chat(stream=False), model="scripted") as reply,
        ):
            assert reply.status == 503


async def test_an_engine_that_breaks_every_connection_is_unavailable() -> None:
    async with ScriptedEngine(lose_after_words=0) as engine, engine.gateway() as gateway:
        with pytest.raises(EngineUnavailable):
            await ask(gateway, stream=True)
    assert len(engine.bodies) == 2


async def test_no_engine_is_unavailable_at_once_with_the_reason_and_back_when_it_is() -> None:
    now = 0.0
    engine = ScriptedEngine()
    async with engine:
        pass
    async with Gateway([Replica(engine.url)], clock=lambda: now, salt_secret=b"s") as gateway:
        started = time.monotonic()
        with pytest.raises(EngineUnavailable, match="refuses connections"):
            await ask(gateway)
        assert time.monotonic() - started < 1
        assert (await gateway.health())[0].reason == "it refuses connections"
        assert await gateway.models() == []
        async with engine:
            now += 0.3
            assert b"It is so" in await ask(gateway)
            assert (await gateway.health())[0].reason is None


async def test_an_engine_whose_core_died_is_not_ready() -> None:
    async with ScriptedEngine(healthy=False) as engine, engine.gateway() as gateway:
        with pytest.raises(EngineUnavailable, match="health check answers 503"):
            await ask(gateway)


async def test_a_wrong_token_is_named_as_the_reason() -> None:
    async with (
        ScriptedEngine(token="right") as engine,
        Gateway([Replica(engine.url, "wrong")], salt_secret=b"s") as gateway,
    ):
        with pytest.raises(EngineUnavailable, match="refuses our token"):
            await ask(gateway)


async def test_no_engine_configured_is_unavailable() -> None:
    async with Gateway([], salt_secret=b"s") as gateway:
        with pytest.raises(EngineUnavailable, match="none is configured"):
            await ask(gateway)


async def test_an_unknown_model_is_told_with_those_available() -> None:
    async with ScriptedEngine(models=("a", "b")) as engine, engine.gateway() as gateway:
        with pytest.raises(ModelNotServed) as refusal:
            await ask(gateway, model="c")
    assert refusal.value.available == ("a", "b")
    assert engine.bodies == []


async def test_a_model_goes_to_the_engines_that_serve_it() -> None:
    async with (
        ScriptedEngine(models=("a",)) as first,
        ScriptedEngine(models=("b",)) as second,
        Gateway([Replica(first.url), Replica(f"{second.url}/v1/")], salt_secret=b"s") as gateway,
    ):
        for model in ("b", "b", "a"):
            await ask(gateway, model=model)
    assert (len(first.bodies), len(second.bodies)) == (1, 2)


async def test_the_least_busy_engine_is_chosen() -> None:
    first, second = (ScriptedEngine(before_first_s=0.3) for _ in range(2))
    async with first, second, Gateway([Replica(first.url), Replica(second.url)], salt_secret=b"s") as gateway:
        await gateway.models()
        await asyncio.gather(*(ask(gateway) for _ in range(6)))
    assert (len(first.bodies), len(second.bodies)) == (3, 3)


async def test_models_are_listed_once_with_the_shortest_context_of_their_engines() -> None:
    async with ScriptedEngine(models=("a", "b")) as first, ScriptedEngine(models=("a",)) as second:
        second.max_model_len = 1024
        async with Gateway([Replica(first.url), Replica(second.url)], salt_secret=b"s") as gateway:
            assert await gateway.models() == [UpstreamModel("a", 1024), UpstreamModel("b", 4096)]


async def test_a_silent_engine_is_lost() -> None:
    async with (
        ScriptedEngine(answer=lambda _: "one two", between_words_s=5) as engine,
        Gateway([Replica(engine.url)], longest_silence_s=0.2, salt_secret=b"s") as gateway,
    ):
        with pytest.raises(EngineLost):
            await ask(gateway, stream=True)


async def test_a_relayed_request_takes_about_a_millisecond_more() -> None:
    async with ScriptedEngine() as engine, engine.gateway() as gateway:
        await ask(gateway)
        times = []
        for _ in range(100):
            started = time.perf_counter()
            await ask(gateway)
            times.append(time.perf_counter() - started)
    # The engine, aiohttp's server, runs in this thread too, so this is several times the gateway's own cost.
    assert sorted(times)[50] < 0.01
