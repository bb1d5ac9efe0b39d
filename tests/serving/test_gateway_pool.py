"""The gateway as a pool: who waits and who goes, what is tried again, what is told, before scripted engines."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.generation.gateway import (
    EngineLost,
    Gateway,
    GatewayLimits,
    ModelNotServed,
    Replica,
)
from serving.generation.metrics import join_expositions
from serving.generation.replicas import Breaker, EngineLoad, read_load
from serving.protocols import EngineUnavailable, Lane, Overloaded
from tests.fakes import ScriptedEngine

CHAT = "/v1/chat/completions"


def body(*, stream: bool = False, name: str = "") -> bytes:
    return json.dumps({"model": "scripted", "stream": stream, "messages": [], "user": name}).encode()


def pool(*engines: ScriptedEngine, max_in_flight: int = 256, max_queued: int = 1024) -> Gateway:
    return Gateway(
        [Replica(engine.url) for engine in engines],
        salt_secret=b"secret",
        limits=GatewayLimits(max_in_flight=max_in_flight, max_queued=max_queued),
    )


async def ask(
    gateway: Gateway,
    name: str = "",
    *,
    stream: bool = False,
    tenant: str = "",
    lane: Lane = Lane.INTERACTIVE,
    prefix: bytes = b"",
    deadline_s: float | None = None,
) -> bytes:
    async with gateway.send(
        CHAT,
        body(stream=stream, name=name),
        model="scripted",
        tenant=tenant,
        lane=lane,
        prefix=prefix,
        deadline_s=deadline_s,
    ) as reply:
        assert reply.status == 200
        return await reply.read()


def served(engine: ScriptedEngine) -> list[str]:
    return [request["user"] for request in engine.requests]


async def queued(gateway: Gateway, count: int) -> None:
    """Returns when so many wait."""
    while sum(len(line) for line in gateway._lines.values()) != count:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0)


@asynccontextmanager
async def busy(engine: ScriptedEngine, gateway: Gateway, count: int = 1) -> AsyncIterator[None]:
    """The engine is kept at work with so many requests, until the end."""
    engine.gate.clear()
    calls = [asyncio.create_task(ask(gateway, "busy")) for _ in range(count)]
    await engine.until(lambda: engine.running == count)
    try:
        yield
    finally:
        engine.gate.set()
        await asyncio.gather(*calls)


async def finish(*calls: asyncio.Task[bytes]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


# What is set for vLLM.


@pytest.mark.parametrize(
    ("lane", "priority"), [(Lane.INTERACTIVE, 0), (Lane.BULK, 10), (Lane.BACKGROUND, 20)]
)
async def test_vllm_gets_the_lanes_priority_and_the_tenants_salt_before_the_bodys_own_bytes(
    lane: Lane, priority: int
) -> None:
    async with ScriptedEngine(owned_by="vllm") as engine, pool(engine) as gateway:
        for tenant in ("a", "b", "", "a"):
            await ask(gateway, tenant=tenant, lane=lane)
    salts = [request["cache_salt"] for request in engine.requests]
    assert [request["priority"] for request in engine.requests] == [priority] * 4
    assert len(set(salts)) == 3
    assert salts[0] == salts[3]
    # What vLLM takes: 1 to 128 characters without separators.
    assert all(re.fullmatch(r"[0-9a-f]{64}", salt) for salt in salts)
    assert all(sent.endswith(body()[1:]) for sent in engine.bodies)


async def test_salts_of_two_installations_differ() -> None:
    async with ScriptedEngine(owned_by="vllm") as engine:
        for secret in (b"one", b"two"):
            async with Gateway([Replica(engine.url)], salt_secret=secret) as gateway:
                await ask(gateway, tenant="t")
    assert engine.requests[0]["cache_salt"] != engine.requests[1]["cache_salt"]


async def test_other_engines_get_the_body_as_it_is() -> None:
    async with ScriptedEngine() as engine, pool(engine) as gateway:
        await ask(gateway, tenant="t", lane=Lane.BULK)
    assert engine.bodies == [body()]


async def test_a_reply_that_was_closed_reads_nothing_of_anothers() -> None:
    async with ScriptedEngine(answer=lambda asked: asked["user"]) as engine, pool(engine) as gateway:
        async with gateway.send(CHAT, body(name="first"), model="scripted") as kept:
            assert b"first" in await kept.read()
        async with gateway.send(CHAT, body(name="second"), model="scripted") as reply:
            with pytest.raises(EngineLost, match="closed"):
                await kept.read()
            assert b"second" in await reply.read()


# Where to.


async def test_prompts_with_the_same_beginning_meet_again_and_others_spread() -> None:
    engines = [ScriptedEngine() for _ in range(3)]
    async with engines[0], engines[1], engines[2], pool(*engines) as gateway:
        await gateway.models()
        for _ in range(3):
            for topic in range(9):
                await ask(gateway, str(topic), prefix=str(topic).encode() * 8192)
    homes = [set(served(engine)) for engine in engines]
    assert sum(len(home) for home in homes) == 9
    assert all(home for home in homes)


async def test_an_engine_that_others_keep_busy_is_given_less() -> None:
    crowded = 'vllm:num_requests_running{engine="0"} 60.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
    first, second = ScriptedEngine(owned_by="vllm", metrics=crowded), ScriptedEngine(owned_by="vllm")
    async with first, second, pool(first, second) as gateway:
        await gateway.models()
        for _ in range(5):
            await ask(gateway)
    assert (len(first.bodies), len(second.bodies)) == (0, 5)


# Who may go.


async def test_requests_beyond_an_engines_places_wait_here_and_not_there() -> None:
    async with ScriptedEngine() as engine, pool(engine, max_in_flight=3) as gateway:
        engine.gate.clear()
        calls = [asyncio.create_task(ask(gateway, str(number))) for number in range(10)]
        await queued(gateway, 7)
        engine.gate.set()
        await asyncio.gather(*calls)
    assert engine.most_running == 3
    assert served(engine) == [str(number) for number in range(10)]


async def test_who_waits_goes_to_the_engine_that_has_room_first() -> None:
    slow, quick = ScriptedEngine(), ScriptedEngine()
    async with slow, quick, pool(slow, quick, max_in_flight=1) as gateway:
        await gateway.models()
        slow.gate.clear()
        calls = [asyncio.create_task(ask(gateway, str(number))) for number in range(6)]
        await quick.until(lambda: len(quick.bodies) == 5)
        slow.gate.set()
        await asyncio.gather(*calls)
    assert len(slow.bodies) == 1


async def test_people_go_before_bulk_and_tenants_in_turn() -> None:
    async with ScriptedEngine() as engine, pool(engine, max_in_flight=1) as gateway:
        calls = []
        async with busy(engine, gateway):
            for number in range(4):
                calls += [
                    asyncio.create_task(ask(gateway, f"bulk {number}", lane=Lane.BULK)),
                    asyncio.create_task(ask(gateway, f"a {number}", tenant="a")),
                ]
            await queued(gateway, 8)
            calls.append(asyncio.create_task(ask(gateway, "b", tenant="b")))
            await queued(gateway, 9)
        await asyncio.gather(*calls)
    assert served(engine)[1:3] == ["a 0", "b"]
    assert served(engine)[-4:] == [f"bulk {number}" for number in range(4)]


async def test_some_places_are_for_people_alone() -> None:
    async with ScriptedEngine() as engine, pool(engine, max_in_flight=8) as gateway:
        engine.gate.clear()
        calls = [asyncio.create_task(ask(gateway, "bulk", lane=Lane.BULK)) for _ in range(12)]
        await queued(gateway, 5)
        calls.append(asyncio.create_task(ask(gateway, "person")))
        await engine.until(lambda: "person" in served(engine))
        engine.gate.set()
        await asyncio.gather(*calls)


async def test_a_full_queue_is_told_at_once_with_the_time_to_try_again() -> None:
    async with ScriptedEngine() as engine, pool(engine, max_in_flight=1, max_queued=2) as gateway:
        async with busy(engine, gateway):
            waiting = [asyncio.create_task(ask(gateway)) for _ in range(2)]
            await queued(gateway, 2)
            with pytest.raises(Overloaded) as refusal:
                await ask(gateway)
            assert refusal.value.retry_after_s >= 1
        await asyncio.gather(*waiting)


async def test_a_deadline_that_cannot_be_met_is_refused_before_waiting() -> None:
    async with ScriptedEngine(before_first_s=0.2) as engine, pool(engine, max_in_flight=1) as gateway:
        await ask(gateway)
        async with busy(engine, gateway):
            waiting = [asyncio.create_task(ask(gateway)) for _ in range(10)]
            await queued(gateway, 10)
            with pytest.raises(Overloaded) as refusal:
                await ask(gateway, deadline_s=1.0)
            assert len(gateway._waiters) == 10
            assert refusal.value.retry_after_s > 1
            await finish(*waiting)


async def test_who_has_work_to_do_first_is_told_before_it() -> None:
    def must_have_room(gateway: Gateway, model: str = "scripted", deadline_s: float | None = None) -> None:
        gateway.must_have_room(model, tenant="", lane=Lane.INTERACTIVE, deadline_s=deadline_s)

    async with (
        ScriptedEngine(before_first_s=0.2) as engine,
        pool(engine, max_in_flight=1, max_queued=6) as gateway,
    ):
        await ask(gateway)
        async with busy(engine, gateway):
            must_have_room(gateway, deadline_s=0.1)
            waiting = [asyncio.create_task(ask(gateway)) for _ in range(5)]
            await queued(gateway, 5)
            must_have_room(gateway)
            with pytest.raises(Overloaded):
                must_have_room(gateway, deadline_s=0.5)
            waiting.append(asyncio.create_task(ask(gateway)))
            await queued(gateway, 6)
            with pytest.raises(Overloaded) as refusal:
                must_have_room(gateway)
            assert refusal.value.retry_after_s >= 1
            must_have_room(gateway, model="another")
            await finish(*waiting)


async def test_a_deadline_that_passes_while_waiting_is_overload_and_frees_the_place() -> None:
    async with ScriptedEngine() as engine, pool(engine, max_in_flight=1) as gateway, busy(engine, gateway):
        with pytest.raises(Overloaded):
            await ask(gateway, deadline_s=0.05)
        assert not gateway._waiters
    assert served(engine) == ["busy"]


async def test_a_deadline_that_passes_before_the_reply_is_unavailable_and_in_it_a_loss() -> None:
    async with (
        ScriptedEngine(answer=lambda _: "one two", between_words_s=30) as engine,
        pool(engine) as gateway,
    ):
        with pytest.raises(EngineLost, match="deadline"):
            await ask(gateway, stream=True, deadline_s=0.2)
        with pytest.raises(EngineUnavailable, match="deadline"):
            await ask(gateway, deadline_s=0.2)
        await engine.until(lambda: engine.departures == 2)
        assert (await gateway.health())[0].reason is None


async def test_a_deadline_that_has_passed_is_refused_without_asking_the_engine() -> None:
    async with ScriptedEngine() as engine, pool(engine) as gateway:
        await gateway.models()
        with pytest.raises(Overloaded):
            await ask(gateway, deadline_s=0)
    assert engine.bodies == []


async def test_a_pool_that_goes_down_tells_those_who_wait() -> None:
    async with ScriptedEngine() as engine, pool(engine, max_in_flight=1) as gateway:
        engine.gate.clear()
        calls = [asyncio.create_task(ask(gateway)) for _ in range(3)]
        await engine.until(lambda: engine.running == 1)
        await queued(gateway, 2)
        engine.healthy = False
        results = await asyncio.gather(*calls[1:], return_exceptions=True)
        assert [type(result) for result in results] == [EngineUnavailable] * 2
        engine.gate.set()
        await calls[0]


async def test_an_engine_whose_queue_grows_is_given_fewer() -> None:
    metrics = "vllm:num_requests_running 2.0\nvllm:num_requests_waiting 8.0\nvllm:kv_cache_usage_perc 0.5\n"
    async with ScriptedEngine(owned_by="vllm") as engine, pool(engine) as gateway:
        engine.gate.clear()
        calls = [asyncio.create_task(ask(gateway)) for _ in range(10)]
        await engine.until(lambda: engine.running == 10)
        engine.metrics = metrics
        while gateway._engines[0].limit > 4:  # noqa: ASYNC110 - the gateway asks in the background
            await asyncio.sleep(0.05)
        calls.append(asyncio.create_task(ask(gateway)))
        await queued(gateway, 1)
        engine.metrics = None
        engine.gate.set()
        await asyncio.gather(*calls)


async def test_an_engines_503_makes_the_request_wait_here_and_answers_raise_the_limit_again() -> None:
    async with ScriptedEngine(max_running=2) as engine, pool(engine) as gateway:
        engine.gate.clear()
        calls = [asyncio.create_task(ask(gateway)) for _ in range(2)]
        await engine.until(lambda: engine.running == 2)
        calls.append(asyncio.create_task(ask(gateway, "waits")))
        await queued(gateway, 1)
        assert gateway._engines[0].limit == 2
        engine.gate.set()
        assert all(await asyncio.gather(*calls))
        assert served(engine).count("waits") == 2
        engine.max_running = None
        for _ in range(4):
            await asyncio.gather(*(ask(gateway) for _ in range(8)))
        assert gateway._engines[0].limit > 2


# Departures.


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_the_queue_is_never_sent(stream: bool) -> None:
    async with ScriptedEngine() as engine, pool(engine, max_in_flight=1) as gateway:
        async with busy(engine, gateway):
            leaving = asyncio.create_task(ask(gateway, "left", stream=stream))
            await queued(gateway, 1)
            await finish(leaving)
            assert not gateway._waiters
            assert not gateway._lines
        assert await ask(gateway, "next")
    assert served(engine) == ["busy", "next"]


async def test_who_leaves_in_the_moment_of_being_called_gives_the_place_to_the_next() -> None:
    async with ScriptedEngine() as engine, pool(engine, max_in_flight=1) as gateway:
        async with gateway.send(CHAT, body(), model="scripted") as reply:
            await reply.read()
            leaving = asyncio.create_task(ask(gateway, "left"))
            staying = asyncio.create_task(ask(gateway, "stays"))
            await queued(gateway, 2)
        # Its place was given a moment ago; it has not run since.
        leaving.cancel()
        await staying
        await finish(leaving)
        assert gateway._engines[0].in_flight == 0
    assert served(engine) == ["", "stays"]


async def test_who_leaves_while_the_connection_is_made_frees_the_place() -> None:
    # Its backlog is full, so that the kernel answers no more.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        async with ScriptedEngine() as engine, pool(engine) as gateway:
            await gateway.models()
            gateway._engines[0].upstream.close()
            gateway._engines[0].upstream._port = address[1]  # type: ignore[misc]
            leaving = asyncio.create_task(ask(gateway))
            while not gateway._engines[0].in_flight:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert not leaving.done()
            await finish(leaving)
            assert gateway._engines[0].in_flight == 0
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize(
    ("phase", "stream"),
    [("prefill", False), ("prefill", True), ("after the head", True), ("words", True), ("words", False)],
)
async def test_who_leaves_has_the_engine_stopped_and_the_place_freed(phase: str, stream: bool) -> None:
    engine = ScriptedEngine(answer=lambda _: "word " * 1000, between_words_s=0.02)
    match phase:
        case "prefill":
            engine.before_first_s = 60
        case "after the head":
            engine.before_first_word_s = 60
    async with engine, pool(engine, max_in_flight=1) as gateway:
        leaving = asyncio.create_task(ask(gateway, stream=stream))
        if phase == "words" and stream:
            await engine.until(lambda: len(engine.sent) > 500)
        else:
            await engine.until(lambda: engine.running == 1)
            await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        left_at = loop.time()
        await finish(leaving)
        assert gateway._engines[0].in_flight == 0
        await engine.until(lambda: engine.departures == 1)
        assert loop.time() - left_at < 1.0
        engine.before_first_s = engine.before_first_word_s = engine.between_words_s = 0
        assert await ask(gateway)


# Failures.


@pytest.mark.parametrize("quietly", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_cut_in_the_middle_is_lost_and_not_sent_again(quietly: bool, stream: bool) -> None:
    first, second = (ScriptedEngine(lose_after_words=2, is_cut_quietly=quietly) for _ in range(2))
    async with first, second, pool(first, second) as gateway:
        await gateway.models()
        if stream or quietly:
            with pytest.raises(EngineLost):
                await ask(gateway, stream=stream)
            assert len(first.bodies) + len(second.bodies) == 1
        else:
            # Nothing of it came: it is sent once more.
            with pytest.raises(EngineUnavailable):
                await ask(gateway)
            assert len(first.bodies) + len(second.bodies) == 2


async def test_an_engine_lost_between_head_and_first_word_is_replaced_unseen() -> None:
    dying, good = ScriptedEngine(before_first_word_s=60), ScriptedEngine()
    async with dying, good, pool(dying, good) as gateway:
        await gateway.models()
        call = asyncio.create_task(ask(gateway, stream=True))
        await dying.until(lambda: dying.running == 1)
        await asyncio.sleep(0.05)
        for connection in list(gateway._engines[0].upstream._open):
            assert connection._transport is not None
            connection._transport.abort()
        assert b"[DONE]" in await call
    assert (len(dying.bodies), len(good.bodies)) == (1, 1)


async def test_a_sick_pool_is_not_hit_twice_by_everything() -> None:
    engines = [ScriptedEngine(lose_after_words=0) for _ in range(2)]
    async with engines[0], engines[1], pool(*engines) as gateway:
        await gateway.models()
        results = await asyncio.gather(*(ask(gateway) for _ in range(40)), return_exceptions=True)
        assert all(isinstance(result, EngineUnavailable) for result in results)
    assert sum(len(engine.bodies) for engine in engines) <= 40 + 5


async def test_an_engine_that_fails_is_left_alone_tried_again_and_used_again() -> None:
    now = 0.0
    engine = ScriptedEngine(lose_after_words=0)
    async with (
        engine,
        # Its address is known when it is open.
        Gateway([Replica(engine.url)], salt_secret=b"s", clock=lambda: now) as gateway,
    ):
        while not isinstance((await gateway.health())[0].reason, str):
            with pytest.raises(EngineUnavailable):
                await ask(gateway, stream=True)
        assert "trial" in str((await gateway.health())[0].reason)
        failed = len(engine.bodies)
        with pytest.raises(EngineUnavailable, match="last requests failed"):
            await ask(gateway)
        assert len(engine.bodies) == failed
        engine.lose_after_words = None
        now += 2.5
        assert await ask(gateway)
        assert (await gateway.health())[0].reason is None


async def test_errors_that_an_engine_answers_do_not_open_its_breaker() -> None:
    async with ScriptedEngine(status=500) as engine, pool(engine) as gateway:
        for _ in range(20):
            async with gateway.send(CHAT, body(), model="scripted") as reply:
                assert reply.status == 500
        assert (await gateway.health())[0].reason is None


def test_a_breaker_opens_by_failures_in_a_row_and_by_their_share() -> None:
    in_a_row, by_share = Breaker(), Breaker()
    for _ in range(3):
        assert in_a_row.refusal(0.0) is None
        in_a_row.fail(0.0, is_trial=in_a_row.begin())
    assert in_a_row.refusal(0.0) is not None
    for _ in range(4):
        by_share.succeed()
        by_share.fail(0.0, is_trial=False)
        assert by_share.refusal(0.0) is None
    by_share.succeed()
    by_share.fail(0.0, is_trial=False)
    assert by_share.refusal(0.0) is not None


def test_an_open_breaker_lets_one_trial_through_and_waits_longer_when_it_fails() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.fail(0.0, is_trial=False)
    assert breaker.refusal(1.9) is not None
    assert breaker.refusal(2.0) is None
    assert breaker.begin()
    assert breaker.refusal(2.0) is not None
    breaker.abandon(is_trial=False)
    assert breaker.refusal(2.0) is not None
    breaker.fail(2.0, is_trial=True)
    assert breaker.refusal(5.9) is not None
    assert breaker.refusal(6.0) is None
    assert breaker.begin()
    breaker.abandon(is_trial=True)
    assert breaker.refusal(6.0) is None
    breaker.begin()
    breaker.succeed()
    assert not breaker.is_open
    assert not breaker.begin()


async def test_a_stopped_engine_is_found_out_while_others_serve() -> None:
    """As by SIGSTOP: the kernel still takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        async with ScriptedEngine() as engine:
            urls = [f"http://127.0.0.1:{stopped.getsockname()[1]}", engine.url]
            async with Gateway([Replica(url) for url in urls], salt_secret=b"s") as gateway:
                assert all(await asyncio.gather(*(ask(gateway, deadline_s=5) for _ in range(4))))


# Replicas that come and go.


async def test_a_replica_is_added_while_serving() -> None:
    async with ScriptedEngine() as first, ScriptedEngine(models=("other",)) as second, pool(first) as gateway:
        with pytest.raises(ModelNotServed):
            async with gateway.send(CHAT, body(), model="other"):
                pass
        gateway.add(Replica(f"{second.url}/v1"))
        with pytest.raises(ValueError, match="already"):
            gateway.add(Replica(second.url))
        async with gateway.send(CHAT, body(), model="other") as reply:
            assert reply.status == 200
        assert [each.url for each in await gateway.health()] == [first.url, second.url]


async def test_a_drained_replica_ends_what_it_has_and_gets_nothing_more() -> None:
    first, second = ScriptedEngine(), ScriptedEngine()
    async with first, second, pool(first, second) as gateway:
        await gateway.models()
        first.gate.clear()
        running = asyncio.create_task(ask(gateway, "running"))
        await first.until(lambda: first.running == 1)
        draining = asyncio.create_task(gateway.drain(first.url))
        await asyncio.sleep(0)
        assert (await gateway.health())[0].reason == "it is being drained"
        with pytest.raises(ValueError, match="already"):
            await gateway.drain(first.url)
        for _ in range(4):
            await ask(gateway)
        assert not draining.done()
        first.gate.set()
        await asyncio.gather(draining, running)
        assert [each.url for each in await gateway.health()] == [second.url]
        with pytest.raises(KeyError):
            await gateway.drain(first.url)
    assert (len(first.bodies), len(second.bodies)) == (1, 4)


async def test_a_drain_that_is_given_up_leaves_the_replica_in_use() -> None:
    async with ScriptedEngine() as engine, pool(engine) as gateway:
        async with busy(engine, gateway):
            draining = asyncio.create_task(gateway.drain(engine.url))
            await asyncio.sleep(0)
            draining.cancel()
            await asyncio.wait({draining})
            assert (await gateway.health())[0].reason is None
        assert await ask(gateway)


async def test_a_closed_gateway_tells_those_who_wait() -> None:
    async with ScriptedEngine() as engine:
        engine.gate.clear()
        async with pool(engine, max_in_flight=1) as gateway:
            calls = [asyncio.create_task(ask(gateway)) for _ in range(2)]
            await engine.until(lambda: engine.running == 1)
            await queued(gateway, 1)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, EngineUnavailable) for result in results)
        with pytest.raises(EngineUnavailable, match="not open"):
            await ask(gateway)


# What is told.


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"strongroom_generation_{name}", labels)


async def test_what_happens_is_counted() -> None:
    registry = CollectorRegistry()
    engine, gone = ScriptedEngine(), ScriptedEngine()
    async with gone:
        pass
    async with (
        engine,
        Gateway(
            [Replica(engine.url), Replica(gone.url)],
            salt_secret=b"s",
            limits=GatewayLimits(max_in_flight=1, max_queued=1),
            registry=registry,
        ) as gateway,
    ):
        await ask(gateway, prefix=b"x" * 2048)
        await ask(gateway, prefix=b"x" * 2048)
        async with busy(engine, gateway):
            waiting = asyncio.create_task(ask(gateway, lane=Lane.BULK))
            await queued(gateway, 1)
            with pytest.raises(Overloaded):
                await ask(gateway, lane=Lane.BULK)
            assert value(registry, "in_flight", replica="0") == 1
            assert value(registry, "queued", lane="bulk") == 1
            await finish(waiting)
        engine.status = 400
        async with gateway.send(CHAT, body(), model="scripted") as refused:
            await refused.read()
        with pytest.raises(ModelNotServed):
            async with gateway.send(CHAT, body(), model="unknown"):
                pass
        assert value(registry, "replica_state", replica="0", state="ready") == 1
        assert value(registry, "replica_state", replica="1", state="unready") == 1
        counted = {
            (lane, outcome): value(registry, "requests_total", lane=lane, outcome=outcome)
            for lane in ("interactive", "bulk")
            for outcome in ("answered", "refused", "cancelled", "overloaded", "not_served")
        }
        assert {key: count for key, count in counted.items() if count} == {
            ("interactive", "answered"): 3,
            ("interactive", "refused"): 1,
            ("interactive", "not_served"): 1,
            ("bulk", "overloaded"): 1,
            ("bulk", "cancelled"): 1,
        }
        assert value(registry, "prefix_blocks_total") == 8
        assert value(registry, "prefix_blocks_matched_total") == 4
        assert value(registry, "first_byte_seconds_count", lane="interactive") == 4
        assert (value(registry, "reply_bytes_total", replica="0") or 0) > len(engine.sent)
        await gateway.drain(engine.url)
    assert value(registry, "reply_bytes_total", replica="0") is None


EXPOSITION = """# HELP python_gc Python's own
# TYPE python_gc counter
python_gc 3.0
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_running{engine="1"} broken
# HELP vllm:num_requests_waiting Waiting.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting 1.0
# HELP vllm:kv_cache_usage_perc Used.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
# HELP vllm:cache_config_info Facts.
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",kv_cache_size_tokens="None",engine="0"} 1.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="10",kv_cache_size_tokens="500",engine="1"} 1.0
# HELP vllm:e2e Time.
# TYPE vllm:e2e histogram
vllm:e2e_bucket{le="1.0"} 4.0
vllm:e2e_bucket{le="+Inf"} 5.0
vllm:e2e_sum 2.5
vllm:e2e_count 5.0
"""


async def test_the_engines_metrics_are_joined_each_with_its_replica() -> None:
    first, second = ScriptedEngine(metrics=EXPOSITION), ScriptedEngine(metrics=EXPOSITION)
    without, gone = ScriptedEngine(), ScriptedEngine()
    async with gone:
        pass
    async with first, without, second, pool(first, without, gone, second) as gateway:
        joined = (await gateway.engine_metrics()).decode()
    families = {family.name: family for family in text_string_to_metric_families(joined)}
    assert all(name.startswith("vllm:") for name in families)
    running = families["vllm:num_requests_running"]
    assert [(sample.labels["replica"], sample.value) for sample in running.samples] == [
        ("0", 3.0),
        ("0", 2.0),
        ("3", 3.0),
        ("3", 2.0),
    ]
    assert running.documentation == "Running."
    assert families["vllm:e2e"].type == "histogram"
    assert joined.count("# TYPE vllm:e2e ") == 1
    assert families["vllm:num_requests_waiting"].samples[0].labels == {"replica": "0"}


def test_metrics_that_are_none_join_to_nothing() -> None:
    assert (
        join_expositions([(0, b""), (1, b"<html>"), (2, b'vllm:x{a="b"} 1'), (3, b"# TYPE vllm:\n\xff")])
        == b""
    )


def test_an_engines_load_is_read_over_all_its_cores() -> None:
    assert read_load(EXPOSITION.encode().splitlines()) == EngineLoad(
        running=5, waiting=1, cache_used=0.75, cache_tokens=16_500
    )
    assert read_load([b"vllm:num_requests_running nan", b"junk", b""]) is None


async def test_an_engine_tells_how_much_its_cache_holds() -> None:
    async with ScriptedEngine(owned_by="vllm", metrics=EXPOSITION) as engine, pool(engine) as gateway:
        await ask(gateway)
        assert gateway._engines[0].standing.cache.capacity == 16_500 * 4 // 512
