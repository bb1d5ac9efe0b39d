"""Conversations: their items, and responses that go on from them and append to them, all or nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from retrieval.tables import Role
from tests.app.conftest import Api
from tests.contracts.openai_spec import must_be


@pytest.fixture
async def client(api: Api) -> AsyncIterator[AsyncOpenAI]:
    key = api.http.headers["Authorization"].removeprefix("Bearer ")
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(api.app)) as through:
        yield AsyncOpenAI(base_url="http://strongroom/v1", api_key=key, http_client=through, max_retries=0)


async def new(api: Api, **body: Any) -> str:
    reply = await api.http.post("/v1/conversations", json=body)
    assert reply.status_code == 200, reply.text
    must_be("ConversationResource", reply.json())
    conversation_id: str = reply.json()["id"]
    return conversation_id


async def items_of(api: Api, conversation_id: str) -> list[dict[str, Any]]:
    reply = (await api.http.get(f"/v1/conversations/{conversation_id}/items?order=asc&limit=100")).json()
    must_be("ConversationItemList", reply)
    listed: list[dict[str, Any]] = reply["data"]
    return listed


def texts(items: list[dict[str, Any]]) -> list[str]:
    return [part["text"] for item in items for part in item.get("content", ())]


async def respond(api: Api, conversation_id: str, text: str, **more: Any) -> dict[str, Any]:
    body = {"model": "scripted", "input": text, "conversation": conversation_id, **more}
    reply = await api.http.post("/v1/responses", json=body)
    assert reply.status_code == 200, reply.text
    must_be("Response", reply.json())
    told: dict[str, Any] = reply.json()
    return told


async def test_a_conversation_is_made_changed_and_deleted_with_its_items(
    client: AsyncOpenAI, api: Api
) -> None:
    made = await client.conversations.create(
        metadata={"about": "ships"}, items=[{"role": "user", "content": "Ahoy!"}]
    )
    assert made.metadata == {"about": "ships"}
    changed = await client.conversations.update(made.id, metadata={"about": "boats"})
    assert changed.id == made.id
    assert (await client.conversations.retrieve(made.id)).metadata == {"about": "boats"}
    (item,) = (await client.conversations.items.list(made.id)).data
    shown = await client.conversations.items.retrieve(item.id or "", conversation_id=made.id)
    assert shown == item
    must_be("ConversationItem", shown.model_dump(exclude_unset=True))
    await client.conversations.items.delete(item.id or "", conversation_id=made.id)
    assert (await client.conversations.items.list(made.id)).data == []
    deleted = await api.http.delete(f"/v1/conversations/{made.id}")
    must_be("DeletedConversationResource", deleted.json())
    assert (await api.http.get(f"/v1/conversations/{made.id}")).status_code == 404
    assert (await api.http.get(f"/v1/conversations/{made.id}/items")).status_code == 404


async def test_items_of_every_kind_come_back_as_they_were_added_page_by_page(
    client: AsyncOpenAI, api: Api
) -> None:
    conversation_id = await new(api)
    sent: list[Any] = [
        {"role": "system", "content": "Be short."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Sunny."},
        {"type": "custom_tool_call", "call_id": "c2", "name": "shout", "input": "Ahoy!"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
        {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["a"]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"role": "assistant", "content": "It is sunny."},
    ]
    added = await api.http.post(f"/v1/conversations/{conversation_id}/items", json={"items": sent})
    must_be("ConversationItemList", added.json())
    assert [item["type"] for item in added.json()["data"]] == [item.get("type", "message") for item in sent]
    listed = [item async for item in client.conversations.items.list(conversation_id, limit=2, order="asc")]
    assert [item.id for item in listed] == [item["id"] for item in added.json()["data"]]
    assert [item["id"] for item in await items_of(api, conversation_id)] == [item.id for item in listed]
    newest = (await api.http.get(f"/v1/conversations/{conversation_id}/items?limit=1")).json()
    assert newest["data"][0]["role"] == "assistant"
    assert newest["has_more"] is True


async def test_a_response_goes_on_from_a_conversation_and_appends_what_was_asked_and_said(api: Api) -> None:
    conversation_id = await new(api, items=[{"role": "developer", "content": "Be a sailor."}])
    api.engine.answer = lambda _: "Aye."
    first = await respond(api, conversation_id, "One.")
    assert first["conversation"] == {"id": conversation_id}
    await respond(api, conversation_id, "Two.", store=False)
    assert [message["content"] for message in api.engine.requests[-1]["messages"]] == [
        "Be a sailor.",
        "One.",
        "Aye.",
        "Two.",
    ]
    items = await items_of(api, conversation_id)
    assert texts(items) == ["Be a sailor.", "One.", "Aye.", "Two.", "Aye."]
    # The response has its own: neither's deletion touches the other's.
    await api.http.delete(f"/v1/responses/{first['id']}")
    assert await items_of(api, conversation_id) == items


async def test_a_streamed_response_is_in_the_conversation_when_its_last_event_comes(
    client: AsyncOpenAI, api: Api
) -> None:
    conversation_id = await new(api)
    api.engine.answer = lambda _: "Aye aye."
    stream = await client.responses.create(
        model="scripted", input="One.", conversation=conversation_id, stream=True
    )
    async for event in stream:
        if event.type == "response.completed":
            assert texts(await items_of(api, conversation_id)) == ["One.", "Aye aye."]


async def test_an_engine_that_is_lost_leaves_the_conversation_as_it_was_and_free(api: Api) -> None:
    conversation_id = await new(api, items=[{"role": "user", "content": "One."}])
    api.engine.answer, api.engine.lose_after_words = lambda _: "a b c d e", 2
    body = {"model": "scripted", "input": "Two.", "conversation": conversation_id, "stream": True}
    reply = await api.http.post("/v1/responses", json=body)
    assert "response.failed" in reply.text
    assert texts(await items_of(api, conversation_id)) == ["One."]
    api.engine.lose_after_words = None
    await respond(api, conversation_id, "Three.")


async def test_while_a_response_runs_in_a_conversation_another_is_refused(api: Api) -> None:
    conversation_id = await new(api)
    api.engine.gate.clear()
    running = asyncio.create_task(respond(api, conversation_id, "One."))
    await api.engine.until(lambda: api.engine.running == 1)
    body = {"model": "scripted", "input": "Two.", "conversation": {"id": conversation_id}}
    refused = await api.http.post("/v1/responses", json=body)
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "conversation_locked"
    api.engine.gate.set()
    await running
    assert (await api.http.post("/v1/responses", json=body)).status_code == 200


async def test_a_conversation_that_is_deleted_under_a_response_makes_it_fail(api: Api) -> None:
    conversation_id = await new(api)
    api.engine.gate.clear()
    body = {"model": "scripted", "input": "One.", "conversation": conversation_id}
    running = asyncio.create_task(api.http.post("/v1/responses", json=body))
    await api.engine.until(lambda: api.engine.running == 1)
    await api.http.delete(f"/v1/conversations/{conversation_id}")
    api.engine.gate.set()
    assert (await running).json()["status"] == "failed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [{"type": "telepathy_call"}]}, "items[0].type"),
        ({"items": [{"role": "user", "content": "x"}] * 21}, "items"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"name": "x"}, "name"),
    ],
)
async def test_what_cannot_be_right_is_refused_by_its_name(
    api: Api, body: dict[str, Any], param: str
) -> None:
    reply = await api.http.post("/v1/conversations", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


async def test_an_items_id_is_given_once(api: Api) -> None:
    item = {"id": "msg_1", "role": "user", "content": "x"}
    conversation_id = await new(api, items=[item])
    reply = await api.http.post(f"/v1/conversations/{conversation_id}/items", json={"items": [item]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "item_present")
    body = {"model": "scripted", "input": [item], "conversation": conversation_id}
    reply = await api.http.post("/v1/responses", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input[0].id")


async def test_others_see_nothing_and_readers_change_only_what_is_theirs(api: Api) -> None:
    with api.services.database.write() as session:
        keys = api.services.keys
        _, other = keys.add(session, tenant_name="other", name="o", role=Role.ADMIN, now=0)
        _, reader = keys.add(session, tenant_name="default", name="r", role=Role.READER, now=0)
    conversation_id = await new(api, items=[{"id": "msg_1", "role": "user", "content": "x"}])
    for method, rest in (
        ("GET", ""),
        ("POST", ""),
        ("DELETE", ""),
        ("GET", "/items"),
        ("POST", "/items"),
        ("GET", "/items/msg_1"),
        ("DELETE", "/items/msg_1"),
    ):
        content: dict[str, Any] = (
            {"metadata": {}} if rest == "" else {"items": [{"role": "user", "content": "y"}]}
        )
        body = content if method == "POST" else None
        for wanted, key, status in (
            (conversation_id, other, 404),
            ("conv_nothing", reader, 404),
            ("vs_1", reader, 400),
            *([(conversation_id, reader, 403)] if method != "GET" and rest != "/items" else []),
        ):
            headers = {"Authorization": f"Bearer {key}"}
            path = f"/v1/conversations/{wanted}{rest}"
            reply = await api.http.request(method, path, json=body, headers=headers)
            assert reply.status_code == status, (method, path, reply.text)
    own = await api.http.post("/v1/conversations", json={}, headers={"Authorization": f"Bearer {reader}"})
    path = f"/v1/conversations/{own.json()['id']}"
    assert (await api.http.delete(path, headers={"Authorization": f"Bearer {reader}"})).status_code == 200
