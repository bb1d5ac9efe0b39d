"""Background responses: run under a lease, streamed from SQL, cancelled within a second, and taken up again."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from app.responses.background import Background
from retrieval import responses
from retrieval.tables import ResponseEvent, ResponseStatus, StoredResponse
from tests.app.conftest import Api
from tests.app.test_responses import HARBOUR, QUESTION, kinds, read_events
from tests.contracts.openai_spec import must_be


@pytest.fixture
async def client(api: Api) -> AsyncIterator[AsyncOpenAI]:
    key = api.http.headers["Authorization"].removeprefix("Bearer ")
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(api.app)) as through:
        yield AsyncOpenAI(base_url="http://strongroom/v1", api_key=key, http_client=through, max_retries=0)


async def begin(api: Api, **more: Any) -> str:
    body = {"model": "scripted", "input": "Hello.", "background": True, **more}
    reply = await api.http.post("/v1/responses", json=body)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    must_be("Response", told)
    assert told["status"] == "queued"
    response_id: str = told["id"]
    return response_id


async def shown(api: Api, response_id: str) -> dict[str, Any]:
    reply = await api.http.get(f"/v1/responses/{response_id}")
    assert reply.status_code == 200, reply.text
    must_be("Response", reply.json())
    told: dict[str, Any] = reply.json()
    return told


async def until(api: Api, response_id: str, *statuses: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        told = await shown(api, response_id)
        while told["status"] not in statuses:
            await asyncio.sleep(0.02)
            told = await shown(api, response_id)
        return told


async def test_a_background_response_is_queued_then_answered_and_stored(api: Api) -> None:
    api.engine.answer, api.engine.owned_by = lambda _: "Aye.", "vllm"
    response_id = await begin(api, metadata={"a": "b"})
    told = await until(api, response_id, "completed")
    assert told["output_text"] == "Aye."
    assert told["background"] is True
    assert told["metadata"] == {"a": "b"}
    assert api.engine.requests[0]["priority"] > 0
    second = await api.http.post(
        "/v1/responses", json={"model": "scripted", "input": "Two.", "previous_response_id": response_id}
    )
    assert second.status_code == 200
    with api.services.database.read() as session:
        row = session.get_one(StoredResponse, response_id)
        assert (row.request, row.lease, row.due_at) == (None, None, None)


async def test_its_events_can_be_read_while_they_come_and_later_from_any_of_them_on(
    client: AsyncOpenAI, api: Api
) -> None:
    store = await api.store("harbour")
    await api.add_document(store, "harbour.txt", HARBOUR)
    api.engine.answer = lambda _: "The harbour master is Ondine Marsh. She is here."
    api.engine.between_words_s = 0.05
    stream = await client.responses.create(model="rag/harbour", input=QUESTION, background=True, stream=True)
    live = [event async for event in stream]
    assert [event.type for event in live[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert live[-1].type == "response.completed"
    response_id = live[-1].response.id
    whole = read_events((await api.http.get(f"/v1/responses/{response_id}?stream=true")).text)
    assert [event["sequence_number"] for event in whole] == [event.sequence_number for event in live]
    assert "response.output_text.annotation.added" in kinds(whole)
    assert whole[-1]["response"]["output"][1]["content"][0]["annotations"][0]["quote"] in HARBOUR
    rest = read_events((await api.http.get(f"/v1/responses/{response_id}?stream=true&starting_after=4")).text)
    assert rest == whole[5:]
    async with client.responses.stream(response_id=response_id, starting_after=4) as again:
        assert (await again.get_final_response()).output_text.startswith("The harbour master")


async def test_cancelling_stops_the_engine_within_a_second(api: Api) -> None:
    api.engine.answer = lambda _: "word " * 500
    api.engine.between_words_s = 0.02
    response_id = await begin(api)
    await api.engine.until(lambda: api.engine.running == 1)
    cancelled_at = time.monotonic()
    reply = await api.http.post(f"/v1/responses/{response_id}/cancel")
    must_be("Response", reply.json())
    assert reply.json()["status"] == "cancelled"
    await api.engine.until(lambda: api.engine.departures == 1)
    assert time.monotonic() - cancelled_at < 1
    again = await api.http.post(f"/v1/responses/{response_id}/cancel")
    assert again.json()["status"] == "cancelled"
    events = read_events((await api.http.get(f"/v1/responses/{response_id}?stream=true")).text)
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "response_cancelled")


async def test_a_deleted_one_stops_within_a_second_and_leaves_no_row(api: Api) -> None:
    api.engine.answer = lambda _: "word " * 500
    api.engine.between_words_s = 0.02
    response_id = await begin(api)
    await api.engine.until(lambda: len(api.engine.sent) > 1_000)
    deleted_at = time.monotonic()
    assert (await api.http.delete(f"/v1/responses/{response_id}")).json()["deleted"] is True
    await api.engine.until(lambda: api.engine.departures == 1)
    assert time.monotonic() - deleted_at < 1
    with api.services.database.read() as session:
        assert session.query(ResponseEvent).count() == 0
        assert session.query(StoredResponse).count() == 0


async def test_what_another_process_runs_is_cancelled_within_a_second_too(api: Api) -> None:
    """The process that gets the request has only the row in common with the one that runs the response."""
    api.engine.answer = lambda _: "word " * 500
    api.engine.before_first_s = 30
    response_id = await begin(api)
    await api.engine.until(lambda: api.engine.running == 1)
    cancelled_at = time.monotonic()
    with api.services.database.write() as session:
        row = session.get_one(StoredResponse, response_id)
        responses.cancel(session, row, row.content, {"type": "error", "sequence_number": row.last_event + 1})
    await api.engine.until(lambda: api.engine.departures == 1)
    assert time.monotonic() - cancelled_at < 1.2


async def test_a_process_that_ends_gives_its_responses_back_and_the_next_one_answers_them(api: Api) -> None:
    await api.app.state.background.__aexit__()
    api.engine.answer = lambda _: "one two three four five"
    api.engine.between_words_s = 0.1
    async with Background(api.services) as ending:
        api.app.state.background = ending
        response_id = await begin(api)
        await api.engine.until(lambda: len(api.engine.sent) > 600)
    assert (await shown(api, response_id))["status"] == "queued"
    async with Background(api.services) as next_one:
        api.app.state.background = next_one
        told = await until(api, response_id, "completed")
        assert told["output_text"] == "one two three four five"
        events = read_events((await api.http.get(f"/v1/responses/{response_id}?stream=true")).text)
        assert events[0]["type"] == "response.created"
        assert kinds(events).count("response.output_text.delta") == 1
        await next_one.__aexit__()
    api.app.state.background = await Background(api.services).__aenter__()


async def test_what_a_killed_process_ran_is_taken_up_when_its_lease_has_ended(api: Api) -> None:
    await api.app.state.background.__aexit__()
    now = time.time()
    api.engine.answer = lambda _: "Aye."
    response_id = await begin(api)
    with api.services.database.write() as session:
        (dead,) = responses.claim(session, now=now + 1, lease_s=15, most=1)
    async with Background(api.services, clock=lambda: now + 10):
        await asyncio.sleep(0.3)
        assert (await shown(api, response_id))["status"] == "in_progress"
    async with Background(api.services, clock=lambda: now + 20):
        await until(api, response_id, "completed")
    with api.services.database.write() as session, pytest.raises(responses.LeaseLost):
        responses.finish(session, dead, status=ResponseStatus.FAILED, content={}, said=[], events=[], now=now)
    api.app.state.background = await Background(api.services).__aenter__()


async def test_an_engine_that_is_away_is_waited_for_and_one_that_refuses_is_not(api: Api) -> None:
    api.engine.status = 400
    told = await until(api, await begin(api), "failed")
    assert told["error"] == {"code": "server_error", "message": "refused by the script"}
    told = await until(api, await begin(api, model="nobody"), "failed")
    assert "nobody" in told["error"]["message"]
    api.engine.status, api.engine.lose_after_words = 200, 0
    response_id = await begin(api)
    await api.engine.until(lambda: len(api.engine.requests) >= 2)
    await until(api, response_id, "queued")
    api.engine.lose_after_words = None
    await until(api, response_id, "completed")


async def test_a_revoked_keys_response_fails(api: Api) -> None:
    api.engine.gate.clear()
    await api.app.state.background.__aexit__()
    response_id = await begin(api)
    with api.services.database.write() as session:
        row = session.get_one(StoredResponse, response_id)
        row.key_id = "key_gone"
    api.engine.gate.set()
    async with Background(api.services):
        await until(api, response_id, "failed")
    api.app.state.background = await Background(api.services).__aenter__()


async def test_a_conversation_is_held_until_its_background_response_has_ended(api: Api) -> None:
    conversation_id = (await api.http.post("/v1/conversations", json={})).json()["id"]
    api.engine.gate.clear()
    response_id = await begin(api, conversation=conversation_id)
    body = {"model": "scripted", "input": "Two.", "conversation": conversation_id}
    assert (await api.http.post("/v1/responses", json=body)).status_code == 409
    api.engine.gate.set()
    await until(api, response_id, "completed")
    listed = (await api.http.get(f"/v1/conversations/{conversation_id}/items")).json()
    assert len(listed["data"]) == 2
    api.engine.gate.clear()
    response_id = await begin(api, conversation=conversation_id)
    await api.http.post(f"/v1/responses/{response_id}/cancel")
    api.engine.gate.set()
    assert (await api.http.post("/v1/responses", json=body)).status_code == 200


async def test_only_background_responses_are_cancelled_and_streamed_again(api: Api) -> None:
    made = await api.http.post("/v1/responses", json={"model": "scripted", "input": "Hello."})
    path = f"/v1/responses/{made.json()['id']}"
    assert (await api.http.post(f"{path}/cancel")).status_code == 400
    assert (await api.http.get(f"{path}?stream=true")).json()["error"]["param"] == "stream"
    assert (await api.http.get(f"{path}?starting_after=3")).json()["error"]["param"] == "starting_after"
