"""A response from its request to its last event: what it goes on from, the chat that answers it, and what is kept."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.answers.chat import Json
from app.answers.prompt import last_asked
from app.responses.compaction import compact_if_long
from app.responses.engine_turn import ask, chunks_of, results_of
from app.responses.quoting import unquoted
from app.responses.reading import Asked, read_asked, sealed
from app.responses.request import Function, ResponseBody, Tool
from app.responses.served_tools import Mcp
from app.responses.turns import write_turns
from app.responses.writing import ResponseWriter, Wishes
from app.routes.chat import generation_model, note_answer
from app.services import Services
from retrieval import audit, conversations, responses
from retrieval.audit import AuditUnavailable
from retrieval.catalog import NotFound
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.tables import AuditEvent, ResponseStatus, StoredResponse
from retrieval.together import in_thread
from serving.protocols import EngineUnavailable, Lane

HOLD_S = 30.0
"""So long a conversation stays held after its api process died."""


def skeleton(asked: Asked, response_id: str, *, lane: Lane, now: float) -> Json:
    """The response object before anything was said."""
    body = asked.body
    assert isinstance(body, ResponseBody)
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    reasoning = body.reasoning
    response: Json = {
        "id": response_id,
        "object": "response",
        "created_at": int(now),
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "completed_at": None,
        "conversation": None if body.conversation_id is None else {"id": body.conversation_id},
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "output_text": None,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "prompt_cache_retention": body.prompt_cache_retention,
        "reasoning": {
            "effort": None,
            "summary": None,
            **(reasoning.model_dump(exclude_none=True) if reasoning else {}),
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "flex" if lane is Lane.BULK else "default",
        "store": body.is_stored,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [_shape_tool(tool, sent) for tool, sent in zip(asked.tools, body.tools or (), strict=True)],
        "top_logprobs": body.top_logprobs,
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
    }
    if body.user is not None:
        response["user"] = body.user
    if body.prompt is not None:
        response["prompt"] = body.prompt.model_dump(exclude_none=True)
    if body.prompt_cache_options is not None:
        response["prompt_cache_options"] = body.prompt_cache_options.model_dump()
    return response


async def respond(
    services: Services,
    scope: Scope,
    body: ResponseBody,
    response_id: str,
    *,
    lane: Lane,
    stages: Stages,
    deadline_s: float | None = None,
) -> AsyncGenerator[Json]:
    """The events of a response that its client waits for; the last has it whole, once it is stored.

    Before the first event, raises what makes an error reply. Until it ends, nobody else answers in its conversation.
    """
    async with _held(services, scope, body.conversation_id, response_id):
        asked = await in_thread(read_asked, services, scope, body)
        writer = ResponseWriter(
            skeleton(asked, response_id, lane=lane, now=time.time()), wishes(services, scope, body, asked)
        )
        written = write(
            services, scope, asked, writer, is_new=True, lane=lane, stages=stages, deadline_s=deadline_s
        )
        async with aclosing(written):
            async for event in written:
                yield event
        try:
            await in_thread(_keep, services, scope, asked, writer.response)
        except (NotFound, conversations.ItemPresent, OperationalError, AuditUnavailable):
            # A conversation that was deleted meanwhile, or no disk: then it must not be told as completed.
            writer.failed("The response could not be stored.")
        yield writer.closing(as_wished(writer.response, body.includes))


async def write(
    services: Services,
    scope: Scope,
    asked: Asked,
    writer: ResponseWriter,
    *,
    is_new: bool,
    lane: Lane,
    stages: Stages,
    deadline_s: float | None = None,
) -> AsyncGenerator[Json]:
    """All events but the last. `writer.response` is final at their end: completed, incomplete or failed.

    `is_new` tells that nobody knows of the response yet. An engine that is lost after the first event makes a failed
    response; before it, raises what makes an error reply.
    """
    body = asked.body
    assert isinstance(body, ResponseBody)
    model = await generation_model(services, scope, body.model)
    asked, compaction, spent = await compact_if_long(services, scope, asked, model=model, lane=lane)
    if asked.tooling.servers:
        begun = [*(writer.created() if is_new else ()), *writer.begun()]
        begun += writer.compacted(compaction, spent) if compaction is not None else ()
        turns = write_turns(
            services,
            scope,
            asked,
            writer,
            begun,
            model=model,
            lane=lane,
            stages=stages,
            deadline_s=deadline_s,
        )
        async with aclosing(turns):
            async for event in turns:
                yield event
        return
    question = await ask(services, scope, asked, model=model, lane=lane, stages=stages)
    note_answer(services, scope, writer.response["id"], last_asked(asked.messages), question.file_ids)
    chunks = chunks_of(services, question, deadline_s=deadline_s)
    async with aclosing(chunks):
        with stages.measure("generate"):
            first = await anext(chunks)
        writer.response |= {name: question.request.get(name) for name in ("temperature", "top_p")}
        for event in [*(writer.created() if is_new else ()), *writer.begun()]:
            yield event
        if compaction is not None:
            for event in writer.compacted(compaction, spent):
                yield event
        if question.grounded is not None:
            results = await in_thread(results_of, services, question.grounded)
            is_shown = "file_search_call.results" in body.includes
            for event in writer.searched(question.grounded.asked.queries, results, shown=is_shown):
                yield event
        try:
            for event in writer.write(first):
                yield event
            async for chunk in chunks:
                for event in writer.write(chunk):
                    yield event
        except EngineUnavailable as error:
            writer.failed(str(error))
            return
    for event in writer.finished(now=time.time()):
        yield event


def wishes(services: Services, scope: Scope, body: ResponseBody, asked: Asked) -> Wishes:
    seals = "reasoning.encrypted_content" in body.includes
    return Wishes(
        logprobs=body.wants_logprobs,
        summary=body.wants_summary,
        obfuscation=bool(body.stream_options and body.stream_options.include_obfuscation),
        tools={tool.function["name"]: tool for tool in asked.tooling.calls},
        seal=(lambda text: sealed(services, scope, text)) if seals else None,
    )


def as_wished(response: Json, includes: frozenset[str]) -> Json:
    """The object without what its client did not ask to see."""
    return {**response, "output": with_includes(response["output"], includes)}


def with_includes(items: Sequence[Json], includes: frozenset[str]) -> list[Json]:
    """Items as a client gets them that asks to include these."""
    if "file_search_call.results" in includes:
        return list(items)
    return [{**item, "results": None} if item["type"] == "file_search_call" else item for item in items]


def without_output(response: Json) -> Json:
    return {name: value for name, value in response.items() if name not in ("output", "output_text")}


def append_to_conversation(
    session: Session,
    scope: Scope,
    conversation_id: str,
    response_id: str,
    asked: Sequence[Json],
    said: Sequence[Json],
) -> None:
    """All of a response or nothing, and others may answer from then on."""
    conversations.add_items(session, scope, conversation_id, asked)
    conversations.add_items(session, scope, conversation_id, said, is_output=True)
    conversations.let_go(session, response_id)
    audit.record(session, AuditEvent.CONVERSATION_CHANGED, conversation_id, response_id, scope=scope)


def _keep(services: Services, scope: Scope, asked: Asked, response: Json) -> None:
    """In one transaction. What failed is no part of a conversation."""
    body = asked.body
    assert isinstance(body, ResponseBody)
    conversation_id = body.conversation_id
    items, said = unquoted(list(asked.items)), unquoted(response["output"])
    joins = conversation_id is not None and response["status"] != ResponseStatus.FAILED
    if not (body.is_stored or joins):
        return
    with services.database.write() as session:
        if body.is_stored:
            row = StoredResponse(
                id=response["id"],
                tenant_id=scope.tenant_id,
                key_id=scope.key_id,
                status=ResponseStatus(response["status"]),
                previous_id=body.previous_response_id,
                conversation_id=conversation_id,
                is_background=False,
                content=without_output(response),
                request=None,
                created_at=response["created_at"],
            )
            responses.add_response(session, row, asked=items, said=said)
            audit.record(session, AuditEvent.RESPONSE_STORED, row.id, scope=scope)
        if joins:
            assert conversation_id is not None
            append_to_conversation(session, scope, conversation_id, response["id"], items, said)


@asynccontextmanager
async def _held(
    services: Services, scope: Scope, conversation_id: str | None, response_id: str
) -> AsyncIterator[None]:
    """Keeps other responses out of the conversation meanwhile. Raises ConversationMissing, ConversationHeld."""
    if conversation_id is None:
        yield
        return

    def hold() -> None:
        with services.database.write() as session:
            conversations.hold(session, scope, conversation_id, response_id, now=time.time(), hold_s=HOLD_S)

    def let_go() -> None:
        with services.database.write() as session:
            conversations.let_go(session, response_id)

    async def go_on() -> None:
        while True:
            await asyncio.sleep(HOLD_S / 3)
            with suppress(OperationalError):
                await in_thread(hold)

    await in_thread(hold)
    going_on = asyncio.create_task(go_on())
    try:
        yield
    finally:
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)
        await in_thread(let_go)


def _shape_tool(tool: Tool, sent: Json) -> Json:
    if isinstance(tool, Mcp):
        return tool.model_dump(exclude_none=True, exclude={"authorization", "headers"})
    if isinstance(tool, Function):
        return {"description": None, "parameters": None, "strict": None, **sent}
    return {name: value for name, value in sent.items() if value is not None}
