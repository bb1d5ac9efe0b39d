"""Batches: files of requests that are run behind all others, whatever happens meanwhile."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types import Batch as OpenAIBatch
from sqlalchemy import func, select, update

from app.access.auth import KeyRing
from app.batches import running as batches
from app.batches.running import BatchRunner
from retrieval import request_batches
from retrieval.tables import Batch, BatchLine, BatchStatus, Role
from tests.app.conftest import Api
from tests.app.test_chat import HARBOUR, key_of

QUESTION = "Who is the harbour master?"


def line(number: int, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    if url == "/v1/chat/completions":
        body = {"model": "rag/harbour", "messages": [{"role": "user", "content": QUESTION}], **body}
    return {"custom_id": f"ask-{number}", "method": "POST", "url": url, "body": body}


def as_file(lines: list[Any]) -> bytes:
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines).encode()


@pytest.fixture
def openai(api: Api) -> AsyncOpenAI:
    http: Any = api.http
    return AsyncOpenAI(base_url="http://strongroom/v1", api_key=key_of(api), http_client=http, max_retries=0)


@pytest.fixture
async def harbour(api: Api) -> None:
    api.engine.answer = lambda _: "The harbour master is Ondine Marsh."
    await api.add_document(await api.store("harbour"), "harbour.txt", HARBOUR)


async def begin(
    openai: AsyncOpenAI, lines: list[Any], endpoint: Any = "/v1/chat/completions", **more: Any
) -> OpenAIBatch:
    file = await openai.files.create(file=("batch.jsonl", as_file(lines)), purpose="batch")
    return await openai.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


async def ended(openai: AsyncOpenAI, batch_id: str) -> OpenAIBatch:
    for _ in range(200):
        batch = await openai.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        await asyncio.sleep(0.05)
    raise AssertionError(batch.status)


async def lines_of(openai: AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """By custom_id."""
    assert file_id is not None
    content = (await openai.files.content(file_id)).text
    return {each["custom_id"]: each for each in map(json.loads, content.splitlines())}


async def test_each_line_is_answered_as_its_route_would_and_wrong_ones_stand_in_a_file_of_their_own(
    api: Api, openai: AsyncOpenAI, harbour: None
) -> None:
    lines = [line(1), line(2, model="nobody"), line(3, n=0), line(4, store=True)]
    begun = await begin(openai, lines, metadata={"team": "harbour"})
    assert (begun.status, begun.metadata) == ("validating", {"team": "harbour"})
    batch = await ended(openai, begun.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 2, "failed": 2}
    assert (batch.model, batch.errors) == ("rag/harbour", None)
    for moment in (batch.in_progress_at, batch.finalizing_at, batch.completed_at, batch.expires_at):
        assert moment is not None
    told = await lines_of(openai, batch.output_file_id)
    assert set(told) == {"ask-1", "ask-4"}
    for each in told.values():
        assert each["error"] is None
        assert each["response"]["status_code"] == 200
        message = each["response"]["body"]["choices"][0]["message"]
        assert message["content"] == "The harbour master is Ondine Marsh. [1]"
        assert message["annotations"][0]["quote"] in HARBOUR
    stored = await openai.chat.completions.retrieve(told["ask-4"]["response"]["body"]["id"])
    assert stored.choices[0].message.content == "The harbour master is Ondine Marsh. [1]"
    wrong = await lines_of(openai, batch.error_file_id)
    assert {name: each["response"]["status_code"] for name, each in wrong.items()} == {
        "ask-2": 404,
        "ask-3": 400,
    }
    assert wrong["ask-3"]["response"]["body"]["error"]["param"] == "n"
    used = sum(each["response"]["body"]["usage"]["total_tokens"] for each in told.values())
    assert batch.usage is not None
    assert batch.usage.total_tokens == used > 0
    with api.services.database.read() as session:
        assert session.scalar(select(func.count()).select_from(BatchLine)) == 0


async def test_a_batch_whose_input_was_changed_on_disk_fails_and_says_so(
    api: Api, openai: AsyncOpenAI
) -> None:
    file = await openai.files.create(file=("batch.jsonl", as_file([line(1)])), purpose="batch")
    (blob_id,) = api.services.blobs.ids()
    path = api.services.blobs.path(blob_id)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    begun = await openai.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = await ended(openai, begun.id)
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert batch.errors is not None
    assert batch.errors.data is not None
    (told,) = batch.errors.data
    assert told.code == "input_file_damaged"
    assert blob_id in (told.message or "")


async def test_embeddings_and_completions_go_in_batches_too(api: Api, openai: AsyncOpenAI) -> None:
    (model,) = [each.alias for each in api.settings.models.embeddings]
    texts = [line(number, "/v1/embeddings", model=model, input=f"text {number}") for number in range(3)]
    prompts = [line(7, "/v1/completions", model="scripted", prompt="Once")]
    embedded = await begin(openai, texts, "/v1/embeddings")
    completed = await begin(openai, prompts, "/v1/completions")
    vectors = await lines_of(openai, (await ended(openai, embedded.id)).output_file_id)
    assert [len(each["response"]["body"]["data"][0]["embedding"]) for each in vectors.values()] == [384] * 3
    answers = await lines_of(openai, (await ended(openai, completed.id)).output_file_id)
    assert answers["ask-7"]["response"]["body"]["choices"][0]["text"] == "It is so [1]."


async def test_a_batch_stands_behind_people(api: Api, openai: AsyncOpenAI, harbour: None) -> None:
    api.engine.owned_by = "vllm"
    await ended(openai, (await begin(openai, [line(1)])).id)
    await api.chat(QUESTION, model="rag/harbour")
    assert [sent["priority"] for sent in api.engine.requests] == [20, 0]


async def test_each_wrong_line_is_told_with_its_number(api: Api, openai: AsyncOpenAI) -> None:
    lines: list[Any] = [
        line(1),
        "{not json",
        "[]",
        line(1),
        {**line(5), "method": "GET"},
        {**line(6), "url": "/v1/embeddings"},
        {**line(7), "custom_id": 7},
        {**line(8), "body": "text"},
        line(9, model=None),
        "",
        line(11, stream=True),
        "\ufeff",
    ]
    batch = await ended(openai, (await begin(openai, lines)).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    told = [(each.line, each.code, each.param) for each in batch.errors.data]
    assert told == [
        (2, "invalid_json_line", None),
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "invalid_method", "method"),
        (6, "mismatched_url", "url"),
        (7, "invalid_custom_id", "custom_id"),
        (8, "invalid_body", "body"),
        (9, "missing_model", "body.model"),
        (11, "stream_not_taken", "body.stream"),
        (12, "invalid_json_line", None),
    ]
    assert "line 1 already" in str(batch.errors.data[2].message)
    assert api.engine.requests == []
    assert batch.output_file_id is None


async def test_too_many_lines_and_too_long_ones_are_refused(
    openai: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.batches.input.MOST_LINES", 3)
    monkeypatch.setattr("app.batches.input.MOST_LINE_BYTES", 300)
    many = await ended(openai, (await begin(openai, [line(number) for number in range(5)])).id)
    long = await ended(openai, (await begin(openai, [line(1), line(2, user="x" * 300), line(3)])).id)
    for batch, code, number in ((many, "too_many_tasks", 4), (long, "line_too_long", 2)):
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert [(each.code, each.line) for each in batch.errors.data] == [(code, number)]


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-none"}, 404, None),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            400,
            "output_expires_after.seconds",
        ),
        ({"metadata": {"k": "v" * 600}}, 400, "metadata.k"),
        ({"priority": 1}, 400, "priority"),
    ],
)
async def test_what_cannot_be_a_batch_is_refused_by_field(
    api: Api, changed: dict[str, Any], status: int, param: str | None
) -> None:
    file_id = (await api.upload("batch.jsonl", as_file([line(1)]), purpose="batch")).json()["id"]
    body = {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        **changed,
    }
    reply = await api.http.post("/v1/batches", json=body)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["param"] == param


def halt_at(api: Api, number: int) -> None:
    """The engine answers that many requests, and holds those that come after them."""
    asked = 0

    def answer(_: dict[str, Any]) -> str:
        nonlocal asked
        asked += 1
        if asked == number:
            api.engine.gate.clear()
        return "The harbour master is Ondine Marsh."

    api.engine.answer = answer


async def test_a_file_for_something_else_is_no_batch(api: Api) -> None:
    file_id = (await api.upload("batch.jsonl", as_file([line(1)]))).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    reply = await api.http.post("/v1/batches", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input_file_id")


async def test_a_cancelled_batch_keeps_what_is_answered(
    api: Api, openai: AsyncOpenAI, harbour: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LINES_AT_ONCE", 1)
    halt_at(api, 3)
    begun = await begin(openai, [line(number) for number in range(9)])
    await api.engine.until(lambda: not api.engine.gate.is_set() and api.engine.running == 1)
    assert (await openai.batches.cancel(begun.id)).status == "cancelling"
    batch = await ended(openai, begun.id)
    assert batch.status == "cancelled"
    assert set(await lines_of(openai, batch.output_file_id)) == {"ask-0", "ask-1", "ask-2"}
    assert api.engine.departures == 1
    assert (await openai.batches.cancel(begun.id)).status == "cancelled"


async def test_batches_are_listed_newest_first_and_only_to_their_tenant(
    api: Api, openai: AsyncOpenAI
) -> None:
    ids = [(await begin(openai, [{}])).id for _ in range(3)]
    assert [each.id async for each in openai.batches.list(limit=2)] == ids[::-1]
    ring: KeyRing = api.services.keys
    with api.services.database.write() as session:
        _, other = ring.add(session, tenant_name="other", name="k", role=Role.ADMIN, now=0.0)
    theirs = {"Authorization": f"Bearer {other}"}
    assert (await api.http.get("/v1/batches", headers=theirs)).json()["data"] == []
    for method, path in (("GET", f"/v1/batches/{ids[0]}"), ("POST", f"/v1/batches/{ids[0]}/cancel")):
        assert (await api.http.request(method, path, headers=theirs)).status_code == 404


async def test_a_batch_of_a_revoked_key_ends(api: Api, openai: AsyncOpenAI, harbour: None) -> None:
    with api.services.database.write() as session:
        key, text = api.services.keys.add(
            session,
            tenant_name="default",
            name="k",
            role=Role.WRITER,
            now=0.0,
        )
    theirs: Any = httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://strongroom")
    client = AsyncOpenAI(base_url="http://strongroom/v1", api_key=text, http_client=theirs, max_retries=0)
    begun = await begin(client, [line(1)])
    with api.services.database.write() as session:
        api.services.keys.revoke(session, key.id, now=1.0)
    batch = await ended(openai, begun.id)
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [each.code for each in batch.errors.data] == ["key_revoked"]
    assert api.engine.requests == []
    await theirs.aclose()


async def test_requests_that_the_time_did_not_suffice_for_are_told(
    api: Api, openai: AsyncOpenAI, harbour: None
) -> None:
    with api.services.database.write() as session:
        session.execute(update(Batch).values(due_at=None))
    begun = await begin(
        openai, [line(1), line(2)], output_expires_after={"anchor": "created_at", "seconds": 3600}
    )
    with api.services.database.write() as session:
        session.execute(update(Batch).values(expires_at=1.0))
    batch = await ended(openai, begun.id)
    assert batch.status == "expired"
    late = await lines_of(openai, batch.error_file_id)
    assert {name: (each["error"]["code"], each["response"]) for name, each in late.items()} == {
        "ask-1": ("batch_expired", None),
        "ask-2": ("batch_expired", None),
    }
    file = await openai.files.retrieve(str(batch.error_file_id))
    assert file.expires_at == file.created_at + 3600
    assert file.purpose == "batch_output"


async def test_a_batch_waits_for_an_engine_that_is_away(
    api: Api, openai: AsyncOpenAI, harbour: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LONGEST_PAUSE_S", 0.05)
    api.engine.status = 503
    begun = await begin(openai, [line(1)])
    await api.engine.until(lambda: len(api.engine.requests) > 3)
    api.engine.status = 200
    assert (await ended(openai, begun.id)).status == "completed"


async def test_another_process_goes_on_where_one_died(
    api: Api, openai: AsyncOpenAI, harbour: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LINES_AT_ONCE", 1)
    halt_at(api, 4)
    begun = await begin(openai, [line(number) for number in range(8)])
    await api.engine.until(lambda: len(api.engine.requests) == 5)
    # As if the process that runs it were suspended for longer than its lease.
    with api.services.database.write() as session:
        session.execute(update(Batch).values(due_at=0.0))
    runner = BatchRunner(api.app, api.services.database, api.services.blobs)
    second = asyncio.create_task(runner.run_next())
    await api.engine.until(lambda: api.engine.departures == 1)
    api.engine.gate.set()
    assert await second
    batch = await ended(openai, begun.id)
    assert batch.status == "completed"
    assert len(await lines_of(openai, batch.output_file_id)) == 8
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 8
    # Four before, four after, and the one that was under way a second time.
    assert len(api.engine.requests) == 9
    with api.services.database.read() as session:
        row = session.get(Batch, begun.id)
        assert row is not None
        assert (row.status, row.due_at) == (BatchStatus.COMPLETED, None)
        assert not request_batches.is_any_due(session, now=1e15)
