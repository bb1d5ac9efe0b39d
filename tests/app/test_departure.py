"""A client that leaves takes its work along: in every phase of an answer, streamed or not."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.app.conftest import Api
from tests.serving.hosting import served

FACT = "The harbour master of Vellmouth is Ondine Marsh."


@pytest.fixture
async def outside(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """A client on a real socket, whose closing the server can see."""
    await api.add_document(await api.store("harbour"), "harbour.txt", FACT)
    async with (
        served(api.app, is_started=True) as url,
        httpx.AsyncClient(base_url=url, headers=api.http.headers) as client,
    ):
        yield client


def asking(model: str, *, stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": "Who is the harbour master?"}]
    return {"model": model, "messages": messages, "stream": stream}


async def departed(api: Api) -> None:
    """Waits until the engine saw its client leave; a second is the bound."""
    left = time.monotonic()
    while api.engine.departures == 0:
        assert time.monotonic() - left < 1.0, "the engine still computes"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_first_word_stops_the_engine(
    api: Api, outside: httpx.AsyncClient, model: str, stream: bool
) -> None:
    api.engine.before_first_s = 30.0
    with pytest.raises(httpx.ReadTimeout):
        await outside.post("/v1/chat/completions", json=asking(model, stream=stream), timeout=1.0)
    await departed(api)


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
async def test_leaving_in_the_middle_of_a_stream_stops_the_engine(
    api: Api, outside: httpx.AsyncClient, model: str
) -> None:
    api.engine.answer = lambda _: "word " * 500
    api.engine.between_words_s = 0.05
    async with outside.stream("POST", "/v1/chat/completions", json=asking(model, stream=True)) as reply:
        await anext(reply.aiter_bytes())
    await departed(api)
