"""The load generator against the mock engine: what it counts, and what the engine sees of it."""

import time
from collections.abc import Iterator

import orjson
import pytest

from tests.bench.peers import gateways, load
from tests.bench.peers.gateways import Gateway

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateways.mock_engine(tmp_path_factory.mktemp("mock")) as engine:
        yield engine


async def test_a_closed_loop_sends_each_request_once(engine: Gateway) -> None:
    answers = await load.closed_loop(engine.url, [engine.request()] * 20, at_once=4)
    assert [answer.status for answer in answers] == [200] * 20
    # uvloop's timers go by whole milliseconds.
    assert all(answer.seconds > 0.02 for answer in answers)


async def test_an_open_loop_counts_from_when_a_request_was_due(engine: Gateway) -> None:
    answers = await load.open_loop(engine.url, engine.request(), a_second=100, seconds=0.2)
    due = [answer.started_at - answers[0].started_at for answer in answers]
    assert due == pytest.approx([number / 100 for number in range(20)])


async def test_a_stream_arrives_whole(engine: Gateway) -> None:
    answer = await load.ask(engine.url, engine.request(stream=True, max_tokens=500))
    *events, last, done = answer.body.decode().strip().split("\n\n")
    assert len(events) == 500
    assert orjson.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"
    assert done == "data: [DONE]"


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_engine_tells_when_a_client_departed(engine: Gateway, streamed: bool) -> None:
    request = engine.request(stream=streamed, seed=60_000)
    departed_at = await load.depart(engine.url, request, after_s=0.05)
    asked = b"GET /departures HTTP/1.1\r\nHost: mock\r\n\r\n"

    async def departures() -> list[float]:
        told: list[float] = orjson.loads((await load.ask(engine.url, asked)).body)
        return [at for at in told if at >= departed_at]

    while not await departures():
        assert time.monotonic() < departed_at + 30


async def test_a_connection_that_nobody_serves_is_an_error_of_the_test(engine: Gateway) -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        await load.ask("http://127.0.0.1:9", engine.request())
