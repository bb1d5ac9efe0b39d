"""Chat completions that are stored: found again by model and metadata, read, changed, deleted."""

from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError
from openai.types.chat import ChatCompletion

from retrieval.catalog import CursorInvalid, Order, PageRequest
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.stored_completions import add_completion, delete_completion, list_completions
from retrieval.tables import StoredCompletion, StoredCompletionFile
from tests.app.conftest import Api
from tests.app.test_chat import HARBOUR, chunks_of, key_of

QUESTION = "Who is the harbour master?"


@pytest.fixture
async def store_id(api: Api) -> str:
    api.engine.answer = lambda _: "The harbour master is Ondine Marsh."
    store = await api.store("harbour")
    await api.add_document(store, "harbour.txt", HARBOUR)
    return store


@pytest.fixture
def openai(api: Api) -> AsyncOpenAI:
    http: Any = api.http
    return AsyncOpenAI(base_url="http://strongroom/v1", api_key=key_of(api), http_client=http, max_retries=0)


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_stored_is_what_was_told(
    api: Api, store_id: str, openai: AsyncOpenAI, model: str, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": model, "store": True, "metadata": {"case": "7"}, "seed": 1}
    reply = await api.chat(
        QUESTION, stream=stream, stream_options={"include_usage": True} if stream else None, **asked
    )
    assert reply.status_code == 200, reply.text
    if stream:
        chunks = chunks_of(reply.text)
        (completion_id,) = {chunk["id"] for chunk in chunks}
        whole = (await api.chat(QUESTION, **asked)).json()
    else:
        whole = reply.json()
        completion_id = whole["id"]
    stored = await openai.chat.completions.retrieve(completion_id)
    assert stored.metadata == {"case": "7"}
    found, told = stored.choices[0].message.model_dump(), whole["choices"][0]["message"]
    assert found["content"] == told["content"]
    for one, other in zip(found.get("annotations") or [], told.get("annotations") or [], strict=True):
        assert one["quote"] == other["quote"]
    assert stored.usage is not None
    assert stored.usage.model_dump(exclude_none=True) == whole["usage"]
    messages = await openai.chat.completions.messages.list(completion_id)
    assert [(each.role, each.content) for each in messages.data] == [("user", QUESTION)]
    ChatCompletion.model_validate(stored.model_dump())


async def test_stored_completions_are_listed_changed_and_deleted(
    api: Api, store_id: str, openai: AsyncOpenAI
) -> None:
    ids = []
    for number in range(3):
        body: Any = {
            "model": "scripted" if number else "rag/harbour",
            "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
            "store": True,
            "metadata": {"number": str(number), "kind": "test"},
        }
        ids.append((await openai.chat.completions.create(**body)).id)
    await openai.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "Not kept"}], metadata={"kind": "test"}
    )
    listed = await openai.chat.completions.list(limit=2)
    assert [each.id for each in listed.data] == ids[:2]
    assert listed.has_more
    assert [each.id async for each in openai.chat.completions.list(limit=1, order="desc")] == ids[::-1]
    assert [
        each.id async for each in openai.chat.completions.list(metadata={"number": "1", "kind": "test"})
    ] == [ids[1]]
    assert [each.id async for each in openai.chat.completions.list(model="other")] == []
    (message,) = (await openai.chat.completions.messages.list(ids[0])).data
    assert message.content is None
    assert message.content_parts is not None
    changed = await openai.chat.completions.update(ids[1], metadata={"number": "9"})
    assert changed.metadata == {"number": "9"}
    assert [each.id async for each in openai.chat.completions.list(metadata={"number": "9"})] == [ids[1]]
    assert (await openai.chat.completions.delete(ids[1])).deleted
    with pytest.raises(NotFoundError):
        await openai.chat.completions.retrieve(ids[1])
    assert [each.id async for each in openai.chat.completions.list()] == [ids[0], ids[2]]


async def test_metadata_is_found_by_any_key_that_it_may_have(api: Api, openai: AsyncOpenAI) -> None:
    odd = {'a"b': "1", "Ïp\x03 $.[0]\\": "2", "\U0010ffff'": "3"}
    said: Any = {"model": "scripted", "messages": [{"role": "user", "content": "Hello"}], "store": True}
    kept = (await openai.chat.completions.create(**said, metadata=odd)).id
    for key, value in odd.items():
        assert [each.id async for each in openai.chat.completions.list(metadata={key: value})] == [kept]
        assert [each.id async for each in openai.chat.completions.list(metadata={key: "other"})] == []
    nul = await api.http.get("/v1/chat/completions", params={"metadata[a\x00b]": "1"})
    assert (nul.status_code, nul.json()["error"]["param"]) == (400, "metadata.a\x00b")


async def test_an_answer_goes_with_the_file_that_it_may_quote(api: Api, store_id: str) -> None:
    grounded = (await api.chat(QUESTION, model="rag/harbour", store=True)).json()
    plain = (await api.chat(QUESTION, model="scripted", store=True)).json()
    (file_id,) = {each["file_id"] for each in grounded["choices"][0]["message"]["annotations"]}
    assert (await api.http.delete(f"/v1/files/{file_id}")).status_code == 200
    assert (await api.http.get(f"/v1/chat/completions/{grounded['id']}")).status_code == 404
    assert (await api.http.get(f"/v1/chat/completions/{plain['id']}")).status_code == 200


async def test_a_stream_that_is_lost_is_not_stored(api: Api, store_id: str) -> None:
    api.engine.lose_after_words = 3
    for model in ("scripted", "rag/harbour"):
        reply = await api.chat(QUESTION, model=model, store=True, stream=True)
        assert "engine_lost" in reply.text
    assert (await api.http.get("/v1/chat/completions")).json()["data"] == []


def completion(scope: Scope, name: str, created_at: float, **attributes: str) -> StoredCompletion:
    return StoredCompletion(
        id=name,
        tenant_id=scope.tenant_id,
        model="m",
        attributes=attributes,
        messages="[]",
        completion="{}",
        created_at=created_at,
    )


def test_no_tenant_sees_what_another_has_stored(database: Database, scope: Scope, other_scope: Scope) -> None:
    with database.write() as session:
        for number, whose in enumerate((scope, other_scope, scope)):
            row = completion(whose, f"chatcmpl-{number}", float(number), a=str(number), b="x")
            assert add_completion(session, whose, row, file_ids=())
        gone = completion(scope, "chatcmpl-9", 9.0)
        assert not add_completion(session, scope, gone, file_ids=("file-gone",))
    with database.read() as session:
        page = PageRequest(order=Order.ASC)
        assert [row.id for row in list_completions(session, scope, page)] == ["chatcmpl-0", "chatcmpl-2"]
        found = list_completions(session, scope, page, model="m", attributes={"a": "2", "b": "x"})
        assert [row.id for row in found] == ["chatcmpl-2"]
        assert list_completions(session, scope, page, attributes={"a": "1"}) == []
        with pytest.raises(CursorInvalid):
            list_completions(session, scope, PageRequest(after="chatcmpl-1"))
    with database.write() as session:
        delete_completion(session, scope, "chatcmpl-0")
        assert session.query(StoredCompletionFile).count() == 0
