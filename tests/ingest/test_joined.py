"""Texts of many documents go in few requests, and what goes wrong with one is its own."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import numpy as np
import pytest
from numpy.typing import NDArray

from ingest.joined import REQUESTS_AT_ONCE, TEXTS_AT_ONCE, JoinedRequests
from serving.protocols import EmbeddingModel, Lane, ModelUnavailable, TextRefused


class _SlowEmbedder:
    """Answers when told to: a text's row is its number."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.asked_for: list[str] = []
        self.cancelled = 0
        self.go = asyncio.Event()
        self.raises: Exception | None = None

    async def describe(self) -> EmbeddingModel:
        raise NotImplementedError

    async def embed(
        self,
        texts: Sequence[str],
        *,
        lane: Lane,
        deadline_s: float | None = None,  # noqa: ARG002
        cache_salt: str = "",
        truncate: bool = False,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        assert (lane, cache_salt) == (Lane.BULK, "tenant")
        self.requests.append(list(texts))
        self.asked_for.append(ASKED_FOR.get(""))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.raises is not None:
            raise self.raises
        if "bad" in texts:
            raise TextRefused(list(texts).index("bad"), "it is bad")
        return np.array([[float(text)] for text in texts], np.float32)


@pytest.fixture
def embedder() -> _SlowEmbedder:
    return _SlowEmbedder()


@pytest.fixture
def joined(embedder: _SlowEmbedder) -> JoinedRequests:
    return JoinedRequests(embedder, lane=Lane.BULK, cache_salt="tenant")


ASKED_FOR = ContextVar[str]("asked_for")


async def _begin(joined: JoinedRequests, *asked: list[str]) -> list[asyncio.Task[NDArray[np.float32]]]:
    tasks = [asyncio.create_task(joined.embed(texts)) for texts in asked]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_what_comes_meanwhile_goes_together(embedder: _SlowEmbedder, joined: JoinedRequests) -> None:
    tasks = await _begin(joined, *([str(number)] for number in range(10)))
    assert embedder.requests == [[str(number)] for number in range(REQUESTS_AT_ONCE)]

    embedder.go.set()
    rows = await asyncio.gather(*tasks)

    assert [row.tolist() for row in rows] == [[[float(number)]] for number in range(10)]
    assert embedder.requests[REQUESTS_AT_ONCE:] == [[str(number) for number in range(REQUESTS_AT_ONCE, 10)]]


async def test_a_request_holds_no_more_than_its_bound(
    embedder: _SlowEmbedder, joined: JoinedRequests
) -> None:
    full = [["0"] * TEXTS_AT_ONCE] * REQUESTS_AT_ONCE
    tasks = await _begin(joined, *full, ["1"] * (TEXTS_AT_ONCE - 1), ["2"], ["3"])
    embedder.go.set()
    await asyncio.gather(*tasks)

    assert [len(request) for request in embedder.requests[REQUESTS_AT_ONCE:]] == [TEXTS_AT_ONCE, 1]


async def test_a_refused_text_is_its_own_callers_alone(
    embedder: _SlowEmbedder, joined: JoinedRequests
) -> None:
    first = await _begin(joined, *([["0"]] * REQUESTS_AT_ONCE))
    good, bad, other = await _begin(joined, ["1"], ["2", "bad"], ["3"])
    embedder.go.set()

    with pytest.raises(TextRefused) as refusal:
        await bad
    assert refusal.value.index == 1
    assert (await good).tolist() == [[1.0]]
    assert (await other).tolist() == [[3.0]]
    await asyncio.gather(*first)


async def test_what_ends_a_request_is_told_to_all_in_it(
    embedder: _SlowEmbedder, joined: JoinedRequests
) -> None:
    embedder.raises = ModelUnavailable("It loads.")
    tasks = await _begin(joined, *([str(number)] for number in range(6)))
    embedder.go.set()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, ModelUnavailable) for each in told)

    embedder.raises = None
    assert (await joined.embed(["7"])).tolist() == [[7.0]]


async def test_what_nobody_waits_for_is_not_computed(embedder: _SlowEmbedder, joined: JoinedRequests) -> None:
    *running, kept, left = await _begin(joined, *([str(number)] for number in range(REQUESTS_AT_ONCE + 2)))
    left.cancel()
    running[0].cancel()
    await asyncio.gather(left, running[0], return_exceptions=True)
    await asyncio.sleep(0)
    assert embedder.cancelled == 1

    embedder.go.set()
    assert (await kept).tolist() == [[float(REQUESTS_AT_ONCE)]]
    await asyncio.gather(*running[1:])
    assert str(REQUESTS_AT_ONCE + 1) not in [text for request in embedder.requests for text in request]


async def test_a_request_runs_in_the_context_of_its_first_text_and_so_in_its_trace(
    embedder: _SlowEmbedder, joined: JoinedRequests
) -> None:
    embedder.go.set()

    async def embed(name: str) -> None:
        ASKED_FOR.set(name)
        await joined.embed(["1"])

    names = [f"document {number}" for number in range(REQUESTS_AT_ONCE + 2)]
    await asyncio.gather(*map(embed, names))

    assert embedder.asked_for == names[: REQUESTS_AT_ONCE + 1]
