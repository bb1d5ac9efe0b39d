"""A walk through every operation of OpenAI's interface, with OpenAI's own client against the served application.

Each area is a function of its own. What they see is what `test_openai.py` judges and `coverage.py` counts.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI

from ingest.sandbox import ParserPool
from tests.app.conftest import Api, opened_api, served_models
from tests.contracts.exchanges import Exchange, Recorder
from tests.fakes import ScriptedEngine
from tests.serving.hosting import MINILM, served
from tests.tool_server import Harbour

CHAT_MODEL, EMBEDDING_MODEL = "scripted", MINILM.name
LETTER = b"The harbour master is Ondine Marsh. She keeps the key of the lighthouse."
QUESTION = "Who is the harbour master?"
FUNCTION: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather at sea.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALL: Any = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"place": "Tolm"}'},
}
NOTE_CALL: Any = {
    "id": "call_2",
    "type": "function",
    "function": {"name": "note", "arguments": '{"input": "Calm."}'},
}
USAGE_DETAILS = {
    "prompt_tokens_details": {
        "cached_tokens": 8,
        "cache_write_tokens": 0,
        "text_tokens": 9,
        "image_tokens": 0,
        "audio_tokens": 0,
    },
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "text_tokens": 3,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
"""What an engine tells is passed on."""
OF_OTHERS: Any = (
    {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {
            "type": "search",
            "query": "Tolm",
            "queries": ["Tolm"],
            "sources": [{"type": "url", "url": "https://tolm.example"}],
        },
    },
)
"""Items that another service's tools made: here they are kept."""
PENDING = ("queued", "validating", "in_progress", "finalizing", "cancelling")
NOTE = b"The lighthouse of Tolm has 212 steps. It was built in 1871."


@dataclass(frozen=True)
class Walk:
    """What an area works with; a worker runs beside it."""

    client: AsyncOpenAI
    api: Api


async def files(walk: Walk) -> None:
    client = walk.client
    letter = await client.files.create(
        file=("letter.txt", LETTER),
        purpose="assistants",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    note = await client.files.create(file=("note.md", NOTE), purpose="user_data")
    await client.files.list(after=note.id, limit=1, order="desc", purpose="assistants")
    await client.files.retrieve(letter.id)
    assert (await client.files.content(letter.id)).content == LETTER
    part = await client.files.with_raw_response.content(letter.id, extra_headers={"Range": "bytes=4-10"})
    assert (part.status_code, part.content) == (206, b"harbour")
    for each in (letter, note):
        await client.files.delete(each.id)
    with suppress(openai.NotFoundError):
        await client.files.retrieve(letter.id)


async def uploads(walk: Walk) -> None:
    client = walk.client
    upload = await client.uploads.create(
        filename="letter.txt",
        purpose="assistants",
        bytes=len(LETTER),
        mime_type="text/plain",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    second = await client.uploads.parts.create(upload.id, data=LETTER[20:])
    first = await client.uploads.parts.create(upload.id, data=LETTER[:20])
    done = await client.uploads.complete(
        upload.id, part_ids=[first.id, second.id], md5=hashlib.md5(LETTER).hexdigest()
    )
    assert done.file is not None
    assert (await client.files.content(done.file.id)).content == LETTER
    other = await client.uploads.create(filename="x.txt", purpose="batch", bytes=5, mime_type="text/plain")
    await client.uploads.cancel(other.id)
    await client.files.delete(done.file.id)


async def vector_stores(walk: Walk) -> None:
    client = walk.client
    stores = client.vector_stores
    letter = await client.files.create(file=("letter.txt", LETTER), purpose="assistants")
    note = await client.files.create(file=("note.txt", NOTE), purpose="assistants")
    hollow = await client.files.create(file=("scan.pdf", _pdf_without_text()), purpose="assistants")
    store = await stores.create(
        name="harbour",
        description="Letters and notes.",
        file_ids=[letter.id],
        metadata={"town": "Tolm"},
        expires_after={"anchor": "last_active_at", "days": 7},
        chunking_strategy={"type": "auto"},
    )
    await stores.retrieve(store.id)
    await stores.update(
        store.id,
        name="port",
        metadata={"town": "Brink"},
        expires_after={"anchor": "last_active_at", "days": 9},
    )
    await stores.list(limit=1, order="asc")
    await stores.list(after=store.id)
    await stores.list(before=store.id)
    attached = await stores.files.create_and_poll(
        vector_store_id=store.id,
        file_id=note.id,
        attributes={"year": 1871, "town": "Tolm", "open": True},
        chunking_strategy={
            "type": "static",
            "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 20},
        },
        poll_interval_ms=50,
    )
    assert attached.status == "completed"
    failed = await stores.files.create_and_poll(
        vector_store_id=store.id, file_id=hollow.id, poll_interval_ms=50
    )
    assert failed.status == "failed"
    await stores.files.list(store.id, limit=1, order="asc", filter="completed")
    await stores.files.list(store.id, after=note.id)
    await stores.files.list(store.id, before=note.id)
    await stores.files.retrieve(note.id, vector_store_id=store.id)
    await stores.files.update(note.id, vector_store_id=store.id, attributes={"year": 1872})
    await stores.files.content(note.id, vector_store_id=store.id)
    batch = await stores.file_batches.create(
        store.id,
        files=[{"file_id": letter.id, "attributes": {"year": 1911}, "chunking_strategy": {"type": "auto"}}],
    )
    await stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
    await stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, limit=1, order="asc", filter="completed"
    )
    await stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    await stores.file_batches.create_and_poll(
        store.id, file_ids=[note.id], attributes={"year": 1871}, chunking_strategy={"type": "auto"}
    )
    found = await stores.search(
        store.id,
        query=["Who is the harbour master?", "lighthouse steps"],
        filters={
            "type": "or",
            "filters": [
                {"type": "gte", "key": "year", "value": 1800},
                {"type": "and", "filters": [{"type": "in", "key": "town", "value": ["Tolm"]}]},
                {"type": "ne", "key": "open", "value": True},
            ],
        },
        max_num_results=3,
        ranking_options={"ranker": "auto", "score_threshold": 0.0},
        rewrite_query=True,
    )
    assert found.data
    await stores.files.delete(letter.id, vector_store_id=store.id)
    await stores.delete(store.id)
    for each in (letter, note, hollow):
        await client.files.delete(each.id)


async def models(walk: Walk) -> None:
    async with ScriptedEngine(models=("lent",)) as lent:
        await walk.api.http.post("/v1/engines", json={"url": lent.url})
        for _ in range(200):
            if "lent" in [each.id for each in (await walk.client.models.list()).data]:
                break
            await asyncio.sleep(0.02)
        await walk.client.models.delete("lent")
    await walk.client.models.list()
    await walk.client.models.retrieve(EMBEDDING_MODEL)


async def embeddings(walk: Walk) -> None:
    await walk.client.embeddings.create(model=EMBEDDING_MODEL, input=["one", "two"], encoding_format="float")
    await walk.client.embeddings.create(model=EMBEDDING_MODEL, input="one", encoding_format="base64")


async def chat(walk: Walk) -> None:
    """Plain, from documents, with tools, each streamed and not; then those that were stored."""
    client, engine = walk.client, walk.api.engine
    completions = client.chat.completions
    engine.usage_details = USAGE_DETAILS
    store_id, file_id = await _harbour(walk)
    search: Any = {"type": "file_search", "vector_store_ids": [store_id]}
    asked: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    usage: Any = {"include_usage": True, "include_obfuscation": True}
    for model, tools in ((CHAT_MODEL, []), ("rag/harbour", []), (CHAT_MODEL, [search])):
        more: Any = {"tools": tools} if tools else {}
        said = await completions.create(
            model=model, messages=asked, n=2, logprobs=True, top_logprobs=2, service_tier="flex", **more
        )
        assert [choice.message.content is not None for choice in said.choices] == [True, True]
        assert bool(said.choices[0].message.annotations) is (model != CHAT_MODEL or bool(tools))
        stream = await completions.create(
            model=model,
            messages=asked,
            stream=True,
            stream_options=usage,
            logprobs=True,
            top_logprobs=2,
            service_tier="flex",
            **more,
        )
        assert [chunk async for chunk in stream][-1].usage is not None
    nothing: Any = [{"role": "user", "content": "Which wine goes with oysters?"}]
    await completions.create(model="rag/harbour", messages=nothing)
    async for _ in await completions.create(model="rag/harbour", messages=nothing, stream=True):
        pass
    engine.tool_calls = [CALL]
    for tools in ([FUNCTION], [FUNCTION, search]):
        called = await completions.create(model=CHAT_MODEL, messages=asked, tools=tools)
        assert called.choices[0].finish_reason == "tool_calls"
        streamed = await completions.create(model=CHAT_MODEL, messages=asked, tools=tools, stream=True)
        assert any(chunk.choices[0].delta.tool_calls for chunk in [each async for each in streamed])
        answered: Any = [
            *asked,
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": CALL["id"], "content": "Calm."},
        ]
        await completions.create(model=CHAT_MODEL, messages=answered, tools=tools)
    kept = await completions.create(
        model=CHAT_MODEL, messages=asked, tools=[FUNCTION], store=True, metadata={"town": "Tolm"}
    )
    engine.tool_calls = ()
    parts: Any = [
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": "Hello.",
            "refusal": None,
            "annotations": said.choices[0].message.annotations,
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": CALL["id"], "content": "Calm."},
        {
            "role": "user",
            "content": [{"type": "text", "text": QUESTION, "prompt_cache_breakpoint": {"mode": "explicit"}}],
        },
    ]
    other = await completions.create(
        model="rag/harbour", messages=parts, store=True, metadata={"town": "Tolm"}
    )
    await completions.list(metadata={"town": "Tolm"}, model=CHAT_MODEL, limit=1, order="asc")
    await completions.list(after=kept.id)
    for each in (kept, other):
        await completions.retrieve(each.id)
        await completions.update(each.id, metadata={"town": "Brink"})
        await completions.messages.list(each.id, limit=5, order="asc")
        await completions.delete(each.id)
    await _clear(walk, store_id, file_id)


async def sound(walk: Walk) -> None:
    """Of a model that speaks."""
    walk.api.engine.answer = _says
    spoken = await walk.client.chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
    )
    assert spoken.choices[0].message.audio is not None


async def namespaces(walk: Walk) -> None:
    engine = walk.api.engine
    function: Any = {"type": "function", **FUNCTION["function"], "strict": False}
    tools: Any = [function, {"type": "custom", "name": "note"}]
    crm: Any = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": tools}
    for tool, arguments in zip(tools, ("{}", '{"input": "Calm."}'), strict=True):
        engine.tool_calls = [{**CALL, "function": {"name": f"crm__{tool['name']}", "arguments": arguments}}]
        called = await walk.client.responses.create(model=CHAT_MODEL, input=QUESTION, tools=[crm])
        assert called.output[0].namespace == "crm"  # type: ignore[union-attr]
    engine.tool_calls = ()


async def tool_servers(walk: Walk) -> None:
    """With a call that needs a person's word, which is allowed, and a server that is away."""
    client, engine = walk.client, walk.api.engine
    tool: Any = {"type": "mcp", "server_label": "harbour", "require_approval": "always"}
    mooring = {"name": "harbour__moor", "arguments": '{"ship": "Petrel"}'}
    engine.tool_calls = [{**CALL, "function": mooring}]
    asked = await client.responses.create(model=CHAT_MODEL, input=QUESTION, tools=[tool])
    request = asked.output[-1]
    assert request.type == "mcp_approval_request"
    answer: Any = {
        "type": "mcp_approval_response",
        "approval_request_id": request.id,
        "approve": True,
        "reason": "Do.",
    }
    allowed = await client.responses.create(
        model=CHAT_MODEL, input=[answer], previous_response_id=asked.id, tools=[tool]
    )
    assert [item.type for item in allowed.output] == ["mcp_call", "message"]
    following = await client.responses.create(
        model=CHAT_MODEL, input="Thanks.", previous_response_id=allowed.id
    )
    await client.responses.input_items.list(following.id)
    free: Any = {**tool, "require_approval": "never"}
    for name, arguments in (("moor", '{"ship": "Petrel"}'), ("moor", "no JSON"), ("sink", "{}")):
        engine.tool_calls = [{**CALL, "function": {"name": f"harbour__{name}", "arguments": arguments}}]
        async for _ in await client.responses.create(
            model=CHAT_MODEL, input=QUESTION, tools=[free], stream=True
        ):
            pass
        await client.responses.create(model=CHAT_MODEL, input=QUESTION, tools=[free])
    engine.tool_calls = ()
    away: Any = {"type": "mcp", "server_label": "away"}
    async for _ in await client.responses.create(model=CHAT_MODEL, input=QUESTION, tools=[away], stream=True):
        pass
    talk = await client.conversations.create()
    await client.responses.create(model=CHAT_MODEL, input=QUESTION, tools=[free], conversation=talk.id)
    await client.conversations.items.list(talk.id)


async def responses(walk: Walk) -> None:
    client, engine = walk.client, walk.api.engine
    store_id, file_id = await _harbour(walk)
    search: Any = {"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 3}
    function: Any = {"type": "function", **FUNCTION["function"], "strict": False}
    custom: Any = {
        "type": "custom",
        "name": "note",
        "description": "Takes a note.",
        "format": {"type": "text"},
    }
    everything: Any = {
        "model": CHAT_MODEL,
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}],
        "tools": [search],
        "include": [
            "file_search_call.results",
            "message.output_text.logprobs",
            "reasoning.encrypted_content",
        ],
        "max_output_tokens": 200,
        "max_tool_calls": 2,
        "metadata": {"town": "Tolm"},
        "prompt_cache_key": "harbour",
        "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
        "reasoning": {
            "effort": "low",
            "summary": "auto",
            "generate_summary": "auto",
            "mode": "standard",
            "context": "auto",
        },
        "safety_identifier": "somebody",
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "top_logprobs": 2,
        "top_p": 0.9,
        "truncation": "auto",
    }
    first = await client.responses.create(**everything)
    assert [item.type for item in first.output] == ["file_search_call", "message"]
    stream = await client.responses.create(
        **everything, stream=True, stream_options={"include_obfuscation": True}
    )
    kinds = {event.type async for event in stream}
    assert "response.output_text.annotation.added" in kinds
    await client.responses.retrieve(first.id, include=["file_search_call.results"])
    following = await client.responses.create(
        model="rag/harbour", input="And who keeps the key?", previous_response_id=first.id
    )
    await client.responses.input_items.list(
        following.id, limit=1, order="asc", include=["file_search_call.results"]
    )
    await client.responses.input_items.list(following.id, include=["file_search_call.results"])
    await client.responses.input_items.list(following.id, after=(await _input_ids(client, following.id))[0])
    form: Any = {
        "type": "json_schema",
        "name": "master",
        "schema": {"type": "object", "properties": {"name": {"type": "string"}}},
        "strict": False,
    }
    engine.answer = lambda _: '{"name": "Ondine Marsh"}'
    await client.responses.create(
        model=CHAT_MODEL,
        input=QUESTION,
        text={"format": form},
    )
    engine.answer = _says
    for tool, call in ((function, CALL), (custom, NOTE_CALL)):
        engine.tool_calls = [call]
        async for _ in await client.responses.create(
            model=CHAT_MODEL, input=QUESTION, tools=[tool], tool_choice="required", stream=True
        ):
            pass
        called = await client.responses.create(model=CHAT_MODEL, input=QUESTION, tools=[tool])
        output: Any = {"type": f"{called.output[0].type}_output", "call_id": call["id"], "output": "Calm."}
        await client.responses.create(
            model=CHAT_MODEL, input=[output], previous_response_id=called.id, tools=[tool]
        )
    engine.tool_calls = ()
    engine.finish_reason = "length"
    cut = await client.responses.create(model=CHAT_MODEL, input=QUESTION)
    assert cut.status == "incomplete"
    engine.finish_reason = "stop"
    await client.responses.create(
        model=CHAT_MODEL,
        input=QUESTION,
        prompt={"id": "pmpt_sea", "variables": {"ship": "the Mary"}},
        store=False,
    )
    engine.lose_after_words, engine.between_words_s = 2, 0.05
    async for _ in await client.responses.create(model=CHAT_MODEL, input=QUESTION, stream=True):
        pass
    engine.lose_after_words, engine.between_words_s = None, 0.0
    behind = await client.responses.create(model="rag/harbour", input=QUESTION, background=True)
    assert await _ended(client.responses, behind.id) == "completed"
    async for _ in await client.responses.retrieve(
        behind.id, stream=True, starting_after=2, include_obfuscation=True
    ):
        pass
    engine.gate.clear()
    stopped = await client.responses.create(model=CHAT_MODEL, input=QUESTION, background=True)
    assert (await client.responses.cancel(stopped.id)).status == "cancelled"
    engine.gate.set()
    engine.count_tokens = len
    await client.responses.input_tokens.count(model=CHAT_MODEL, input=QUESTION, instructions="Be brief.")
    await client.responses.compact(model=CHAT_MODEL, previous_response_id=first.id)
    for each in (first, following, behind, stopped):
        await client.responses.delete(each.id)
    await _clear(walk, store_id, file_id)


async def conversations(walk: Walk) -> None:
    client = walk.client
    store_id, file_id = await _harbour(walk)
    conversation = await client.conversations.create(
        metadata={"town": "Tolm"}, items=[{"type": "message", "role": "user", "content": "Hello"}]
    )
    await client.responses.create(
        model="rag/harbour", input=QUESTION, conversation=conversation.id, instructions="Be brief."
    )
    await client.conversations.retrieve(conversation.id)
    await client.conversations.update(conversation.id, metadata={"town": "Brink"})
    items = client.conversations.items
    called: Any = {
        "type": "function_call",
        "call_id": "call_1",
        "name": "weather",
        "namespace": "sea",
        "arguments": "{}",
        "caller": {"type": "direct"},
    }
    answered: Any = {**called, "type": "function_call_output", "output": "Calm."}
    added = await items.create(
        conversation.id,
        items=[
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Hello", "prompt_cache_breakpoint": {"mode": "explicit"}}
                ],
            },
            called,
            answered,
            *OF_OTHERS,
        ],
        include=["file_search_call.results"],
    )
    await items.list(conversation.id, limit=3, order="asc", include=["message.output_text.logprobs"])
    await items.list(conversation.id, after=added.data[0].id)  # type: ignore[arg-type]
    everything = [item async for item in items.list(conversation.id, include=["file_search_call.results"])]
    assert any(item.type == "file_search_call" and item.results for item in everything)
    for item in everything:
        await items.retrieve(item.id, conversation_id=conversation.id)  # type: ignore[arg-type]
    await items.delete(added.data[0].id, conversation_id=conversation.id)  # type: ignore[arg-type]
    await client.conversations.delete(conversation.id)
    await _clear(walk, store_id, file_id)


async def batches(walk: Walk) -> None:
    """One that completes, one whose file is wrong, and one that is cancelled."""
    client, engine = walk.client, walk.api.engine

    async def begin(*bodies: dict[str, Any]) -> Any:
        lines = [
            {"custom_id": f"line-{place}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            for place, body in enumerate(bodies)
        ]
        content = "\n".join(map(json.dumps, lines)).encode()
        file = await client.files.create(file=("batch.jsonl", content), purpose="batch")
        return await client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"town": "Tolm"},
            output_expires_after={"anchor": "created_at", "seconds": 7200},
        )

    body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    done = await begin(body, {**body, "model": "nobody"})
    assert await _ended(client.batches, done.id) == "completed"
    assert await _ended(client.batches, (await begin({"messages": []})).id) == "failed"
    engine.gate.clear()
    stopped = await begin(body)
    await client.batches.cancel(stopped.id)
    engine.gate.set()
    assert await _ended(client.batches, stopped.id) == "cancelled"
    await client.batches.list(limit=2, after=stopped.id)
    await client.batches.list()


async def mistakes(walk: Walk) -> None:
    """What is wrong in each way that a route can tell."""
    client, http = walk.client, walk.client._client
    absent = "vs_" + "0" * 24
    for wrong in (
        client.vector_stores.retrieve(absent),
        client.vector_stores.retrieve("file-abc"),
        client.vector_stores.create(name=5),  # type: ignore[arg-type]
        client.vector_stores.search(absent, query="x"),
        client.files.retrieve("file-" + "0" * 24),
        client.files.create(file=("empty.txt", b""), purpose="assistants"),
        client.files.create(file=("a.exe", b"MZ\0\1" * 400), purpose="assistants"),
        client.files.list(after="file-none"),
        client.moderations.create(input="x"),
        client.fine_tuning.jobs.list(),
        client.with_options(api_key="sr-wrong").models.list(),
    ):
        with suppress(openai.APIStatusError):
            await wrong
            raise AssertionError("it was taken")
    headers = {"Authorization": f"Bearer {client.api_key}"}
    base = str(client.base_url).rstrip("/")
    json_type, text_type = {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}
    for method, path, content, more in (
        ("PUT", "/files", b"", {}),
        ("GET", "/nothing", b"", {}),
        ("GET", "/assistants", b"", {}),
        ("POST", "/vector_stores", b"{", json_type),
        ("POST", "/vector_stores", b"a=b", text_type),
        ("POST", "/files", b"{}", json_type),
    ):
        reply = await http.request(method, base + path, headers={**headers, **more}, content=content)
        assert reply.status_code >= 400


WALKS = (
    files,
    uploads,
    vector_stores,
    models,
    embeddings,
    chat,
    sound,
    responses,
    namespaces,
    conversations,
    batches,
    mistakes,
)


async def walk_through(api: Api) -> list[Exchange]:
    """Every exchange of all areas."""
    recorder = Recorder(api.app)
    working = asyncio.create_task(api.worker.run())
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(recorder)) as through:
            key = api.http.headers["authorization"].removeprefix("Bearer ")
            client = AsyncOpenAI(
                base_url="http://strongroom/v1", api_key=key, http_client=through, max_retries=0
            )
            for area in WALKS:
                await area(Walk(client, api))
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    return recorder.exchanges


async def _harbour(walk: Walk) -> tuple[str, str]:
    """A store with the letter in it, and the letter's id. The engine answers from it."""
    walk.api.engine.answer = _says
    store = await walk.client.vector_stores.create(name="harbour")
    file = await walk.client.files.create(file=("letter.txt", LETTER), purpose="assistants")
    await walk.client.vector_stores.files.create_and_poll(
        vector_store_id=store.id, file_id=file.id, attributes={"town": "Tolm"}, poll_interval_ms=50
    )
    return store.id, file.id


async def _clear(walk: Walk, store_id: str, file_id: str) -> None:
    await walk.client.vector_stores.delete(store_id)
    await walk.client.files.delete(file_id)


async def _input_ids(client: AsyncOpenAI, response_id: str) -> list[str]:
    return [str(item.id) async for item in client.responses.input_items.list(response_id)]


async def _ended(kind: Any, made_id: str) -> str:
    """The status in which a background response or a batch ends."""
    for _ in range(400):
        if (status := (await kind.retrieve(made_id)).status) not in PENDING:
            return str(status)
        await asyncio.sleep(0.05)
    raise AssertionError(status)


def _says(_: Any) -> str:
    return "The harbour master is Ondine Marsh [1]."


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Api]:
    """An application outside of pytest, with its data in `folder`."""
    (folder / "pmpt_sea.md").write_text("You answer those who sail on {{ship}}.")
    async with (
        served_models(str(MINILM)) as url,
        ParserPool(1) as parsers,
        served(Harbour().app()) as harbour,
        opened_api(
            url,
            parsers,
            folder,
            embedding=str(MINILM),
            speaking=CHAT_MODEL,
            mcp_servers=f"harbour={harbour}/mcp,away=http://127.0.0.1:1/mcp",
            prompts_folder=str(folder),
        ) as api,
    ):
        yield api


def _pdf_without_text() -> bytes:
    """A page with nothing on it."""
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>",
    )
    body = b"%PDF-1.4\n"
    for number, each in enumerate(objects, 1):
        body += b"%d 0 obj%s endobj\n" % (number, each)
    return body + b"trailer<</Root 1 0 R>>\n%%EOF\n"
