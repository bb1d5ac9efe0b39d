"""Quotas of keys and tenants: what is counted, what is refused and how it is told; and that nothing is unless asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import MCPError
from sqlalchemy import select
from typer.testing import CliRunner

from app.cli import cli
from retrieval.tables import Key, Tenant
from tests.app.conftest import Api
from tests.app.test_mcp import called, speaking
from tests.app.visitor import visiting

Json = dict[str, Any]
Client = Callable[..., Awaitable[httpx.AsyncClient]]
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "One two three four five six?"}]}


@pytest.fixture
async def client(api: Api) -> AsyncIterator[Client]:
    """With a key that has these quotas."""
    async with AsyncExitStack() as stack:

        async def opened(role: str = "reader", **quotas: int) -> httpx.AsyncClient:
            body = {"name": "laptop", "role": role, "quotas": quotas or None}
            key = (await api.http.post("/v1/keys", json=body)).json()
            http = httpx.AsyncClient(
                transport=httpx.ASGITransport(api.app),
                base_url="http://strongroom",
                headers={"Authorization": f"Bearer {key['value']}"},
            )
            return await stack.enter_async_context(http)

        yield opened


def limit_tenant(api: Api, **quotas: int) -> None:
    with api.services.database.write() as session:
        session.scalars(select(Tenant)).one().quotas = quotas


def refused(reply: httpx.Response, code: str = "rate_limit_exceeded") -> Json:
    assert reply.status_code == 429, reply.text
    error: Json = reply.json()["error"]
    assert error["code"] == code
    return error


async def test_requests_are_counted_told_and_refused_with_the_time_to_wait(api: Api, client: Client) -> None:
    http = await client(requests_per_minute=2)
    told = []
    for _ in range(2):
        reply = await http.get("/v1/files")
        assert reply.status_code == 200
        told.append({name: each for name, each in reply.headers.items() if name.startswith("x-ratelimit")})
    assert [each["x-ratelimit-limit-requests"] for each in told] == ["2", "2"]
    assert [each["x-ratelimit-remaining-requests"] for each in told] == ["1", "0"]
    assert all(0 < int(each["x-ratelimit-reset-requests"].rstrip("s")) <= 60 for each in told)
    reply = await http.get("/v1/files")
    assert "2 requests a minute" in refused(reply)["message"]
    assert 0 < int(reply.headers["retry-after"]) <= 60
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    metrics = (await api.http.get("/metrics")).text
    assert 'strongroom_quota_refusals_total{quota="requests_per_minute"} 1.0' in metrics


async def test_a_key_without_quotas_is_not_counted(
    api: Api, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, bounded = await client(), await client(requests_per_minute=9)
    seen: list[Any] = []
    admit = api.services.limiter.admit

    async def noting(*arguments: Any) -> None:
        seen.append(arguments)
        await admit(*arguments)

    monkeypatch.setattr(api.services.limiter, "admit", noting)
    reply = await http.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, seen) == (200, [])
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
    await bounded.post("/v1/chat/completions", json=CHAT)
    assert len(seen) == 1


async def test_keys_of_a_tenant_share_its_quotas(api: Api, client: Client) -> None:
    one, other = await client(), await client(requests_per_minute=50)
    limit_tenant(api, requests_per_minute=2)
    api.services.keys._remembered.clear()
    assert (await one.get("/v1/files")).status_code == 200
    reply = await other.get("/v1/files")
    # Of two bounds the tighter one is told.
    assert (reply.status_code, reply.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    refused(await one.get("/v1/files"))
    refused(await other.get("/v1/files"))


@pytest.mark.parametrize("kind", ["input", "output"])
async def test_tokens_that_a_reply_used_count_against_the_next(api: Api, client: Client, kind: str) -> None:
    http = await client(**{f"{kind}_tokens_per_minute": 5})
    api.engine.answer = lambda _: "One two three four five six seven eight."
    first = await http.post("/v1/chat/completions", json=CHAT)
    usage = first.json()["usage"]
    assert min(usage["prompt_tokens"], usage["completion_tokens"]) >= 5
    assert first.headers["x-ratelimit-remaining-tokens"] == "5"
    second = await http.post("/v1/chat/completions", json=CHAT)
    assert f"5 {kind} tokens a minute" in refused(second)["message"]
    assert second.headers["x-ratelimit-remaining-tokens"] == "0"
    assert (await (await client()).post("/v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.parametrize("tells", [True, False])
async def test_a_streams_tokens_count_whether_it_tells_them_or_not(
    api: Api, client: Client, tells: bool
) -> None:
    http = await client(output_tokens_per_minute=5)
    api.engine.answer = lambda _: "One two three four five six seven eight."
    options = {"stream_options": {"include_usage": True}} if tells else {}
    first = await http.post("/v1/chat/completions", json={**CHAT, "stream": True, **options})
    assert first.text.rstrip().endswith("[DONE]")
    refused(await http.post("/v1/chat/completions", json=CHAT))


async def test_responses_and_embeddings_count_too(client: Client) -> None:
    for path, body in (
        ("/v1/responses", {"model": "scripted", "input": "One two three?"}),
        ("/v1/responses", {"model": "scripted", "input": "One two three?", "stream": True}),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "One two three four."}),
    ):
        http = await client(input_tokens_per_minute=1)
        assert (await http.post(path, json=body)).status_code == 200
        refused(await http.post(path, json=body))


LETTER = "The harbour master of Vellmouth is Ondine Marsh."
QUESTION = "Who is the harbour master of Vellmouth?"


def text_of(http: httpx.AsyncClient) -> str:
    return http.headers["Authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize("kind", ["input", "output"])
async def test_tokens_of_an_answer_in_the_console_and_over_mcp_count_too(
    api: Api, client: Client, kind: str
) -> None:
    await api.add_document(await api.store(), "letter.txt", LETTER)
    api.engine.answer = lambda _: f"{LETTER} [1]"
    seen = await client(**{f"{kind}_tokens_per_minute": 5})
    async with visiting(api, text_of(seen)) as visitor:
        assert (await visitor.post("/console/ask", json={"question": QUESTION})).status_code == 200
        assert (await visitor.post("/console/ask", json={"question": QUESTION})).status_code == 429
        assert (await visitor.get("/console")).status_code == 200
    refused(await seen.post("/v1/chat/completions", json=CHAT))
    heard = await client(**{f"{kind}_tokens_per_minute": 5})
    before = len(api.engine.requests)
    async with speaking(api, text_of(heard)) as model:

        async def ask_again_and_again() -> None:
            for _ in range(3):
                await called(model, "ask", question=QUESTION)

        with pytest.raises(MCPError):  # It is told no more than that there was an error: a 429, as below.
            await ask_again_and_again()
    assert len(api.engine.requests) == before + 1
    refused(await heard.post("/v1/chat/completions", json=CHAT))


async def test_questions_and_searches_in_the_console_are_requests_and_its_pages_are_free(
    api: Api, client: Client
) -> None:
    await api.add_document(await api.store(), "letter.txt", LETTER)
    http = await client(requests_per_minute=2)
    searched = {"query": QUESTION, "dense_weight": "0.5"}
    async with visiting(api, text_of(http)) as visitor:
        for _ in range(3):
            assert (await visitor.get("/console/search")).status_code == 200
        assert (await visitor.post("/console/ask", json={"question": QUESTION})).status_code == 200
        assert (await visitor.post("/console/search", data=searched)).status_code == 200
        assert (await visitor.post("/console/search", data=searched)).status_code == 429
        assert (await visitor.post("/console/ask", json={"question": QUESTION})).status_code == 429
    refused(await http.get("/v1/files"))


async def test_streams_at_the_same_time_are_bounded_and_free_when_they_end(api: Api, client: Client) -> None:
    http = await client(streams=1)
    api.engine.between_words_s = 0.5
    body = {**CHAT, "stream": True}
    first = asyncio.create_task(http.post("/v1/chat/completions", json=body))
    async with asyncio.timeout(30):
        while not api.services.limiter._streams.total():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    reply = await http.post("/v1/chat/completions", json=body)
    assert "1 streams" in refused(reply)["message"]
    assert reply.headers["retry-after"] == "1"
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert (await first).status_code == 200
    api.engine.between_words_s = 0.0
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_stored_bytes_are_bounded_for_a_key_and_for_a_tenant(api: Api, client: Client) -> None:
    http = await client("writer", stored_bytes=10)

    async def upload(http: httpx.AsyncClient, content: bytes) -> httpx.Response:
        return await http.post("/v1/files", files={"file": ("a.txt", content)})

    kept = await upload(http, b"12345678")
    assert kept.status_code == 200
    assert "10 bytes" in refused(await upload(http, b"345"), "insufficient_quota")["message"]
    assert (await upload(http, b"12")).status_code == 200
    await http.delete(f"/v1/files/{kept.json()['id']}")
    assert (await upload(http, b"345")).status_code == 200
    limit_tenant(api, stored_bytes=20)
    assert (await upload(api.http, b"1" * 15)).status_code == 200
    refused(await upload(api.http, b"1"), "insufficient_quota")


async def test_the_command_sets_and_takes_away_quotas(api: Api) -> None:
    folder = str(api.settings.storage.data_dir)

    def quotas(*arguments: str) -> int:
        return CliRunner().invoke(cli, ["keys", "quotas", *arguments, "--data-dir", folder]).exit_code

    with api.services.database.read() as session:
        key_id = session.scalars(select(Key.id)).one()
    assert quotas(key_id, "--requests-per-minute", "9", "--streams", "2") == 0
    assert quotas("--tenant", "default", "--stored-bytes", "99") == 0
    with api.services.database.read() as session:
        assert session.get_one(Key, key_id).quotas == {"requests_per_minute": 9, "streams": 2}
        assert session.scalars(select(Tenant.quotas)).one() == {"stored_bytes": 99}
    assert quotas(key_id) == 0
    with api.services.database.read() as session:
        assert session.get_one(Key, key_id).quotas is None
    assert quotas() != 0
    assert quotas("--tenant", "nobody") != 0
    assert Path(folder).is_dir()
