"""/v1/chat/completions and /v1/completions: answers from documents, or the engine's own, untouched."""

import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from app.access.retention import must_not_keep
from app.answers.attached import check_addresses, file_text, shown, uploaded_text
from app.answers.chat import EVENTS, RAG_MODEL, Grounding, lost_event, must_be_events
from app.answers.functions import CustomCalls, custom_names, needs_translation, translated
from app.answers.generation import AUDIO, CHAT_PATH, IMAGE
from app.answers.grammars import Written, WrittenCall, asking_for, written_of
from app.answers.outgoing import Outgoing
from app.answers.prompt import as_prefix, last_asked, text_of
from app.answers.sound import MENTIONED, check_sound
from app.edge.streaming import StreamedReply, with_first
from app.errors import BadRequest, UnknownModel
from app.routes.body import Model, json_of, read_model, schema_of
from app.routes.caller import KeyWith, Reader, deadline_of, lane_of, services_of
from app.routes.chat_body import (
    ChatBody,
    CompletionBody,
    FilePart,
    FileSearchTool,
    Sampling,
    check_tools,
    described,
)
from app.routes.models import engine_model_names, model_names
from app.routes.vector_stores import RankingOptions
from app.services import Services
from retrieval import audit
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.stored_completions import add_completion
from retrieval.tables import AuditEvent, StoredCompletion, new_id
from retrieval.together import in_thread
from serving.departure import unless_departed
from serving.generation.gateway import EngineLost, ModelNotServed, Reply
from serving.protocols import EngineUnavailable, Lane


class LeanRoute(APIRoute):
    """Hands its endpoint the request and the scope of its key, and nothing else: FastAPI's way to arguments would be
    a tenth of what a relayed chat takes in this process.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request, Scope], Coroutine[Any, Any, Response]] = self.endpoint
        (needed,) = self.dependant.dependencies
        key = needed.call
        assert isinstance(key, KeyWith)

        async def handle(request: Request) -> Response:
            return await endpoint(request, await key(request))

        return handle


router = APIRouter(route_class=LeanRoute)

COMPLETIONS_PATH = "/v1/completions"
LONG_BYTES = 32 * 1024
"""From this size on a plain chat's messages are looked at before they are relayed."""


@router.post(CHAT_PATH, openapi_extra=described())
async def chat_completions(request: Request, scope: Reader) -> Response:
    services = await services_of(request)
    raw = await request.body()
    body, sent = _parse(ChatBody, raw)
    if body.store:
        must_not_keep(scope, "store")
    check_addresses(sent["messages"])
    searches, asked = check_tools(body), sent
    file_ids, said = set[str](), None
    if b'"file"' in raw:
        said = sent["messages"]
        sent, file_ids = await in_thread(_with_texts, services, scope, sent)
    written = written_of(sent)
    if needs_translation(sent):
        sent = translated(sent)
        if not any(tool["type"] == "file_search" for tool in sent.get("tools") or ()):
            searches = []
    if written is not None:
        sent = asking_for(sent, written)
    if sent is not asked:
        raw = orjson.dumps(sent)
    grounding = _grounding(body, searches)
    if MENTIONED in raw:
        speaking = services.settings.engine.speaking_models
        check_sound(sent, speaking=speaking, is_grounded=grounding is not None)
    lane = lane_of(body.service_tier)
    if grounding is None:
        await _look_over(services, scope, body.model, raw, sent)
        outgoing = _outgoing(services, scope, body, asked, written, file_ids=file_ids)
        engine_request = EngineRequest(CHAT_PATH, raw, body, prefix=as_prefix(sent["messages"]), lane=lane)
        note_answer(services, scope, request.state.request_id, last_asked(sent["messages"]), ())
        return await _pass_through(request, services, scope, engine_request, outgoing)
    if not any(message.role == "user" for message in body.messages):
        raise BadRequest("messages needs a message with the role 'user' to search for.", param="messages")
    model = await generation_model(services, scope, body.model)
    await services.generation.must_take(model, _kinds_of_parts(raw, sent))
    stages = Stages()
    longest_s = services.settings.engine.timeout_s
    prepared = await unless_departed(
        request.receive,
        services.chat.prepare(
            scope,
            _for_engine(sent),
            grounding,
            model=model,
            lane=lane,
            stages=stages,
            said=said,
            deadline_s=None if body.stream else deadline_of(request, longest_s=longest_s),
        ),
    )
    read = {passage.file_id for passage in prepared.passages}
    note_answer(services, scope, request.state.request_id, last_asked(asked["messages"]), read)
    file_ids |= read
    outgoing = _outgoing(services, scope, body, asked, written, file_ids=file_ids)
    if body.stream:
        with stages.measure("generate"):
            events = await unless_departed(request.receive, with_first(services.chat.stream(prepared)))
        if not outgoing.leaves_as_is:
            events = outgoing.stream(events)
        return StreamedReply(events, media_type=EVENTS, headers=services.metrics.told(stages))
    deadline_s = deadline_of(request, longest_s=longest_s)
    completion = orjson.dumps(
        await unless_departed(request.receive, services.chat.complete(prepared, deadline_s=deadline_s))
    )
    if not outgoing.leaves_as_is:
        completion = await outgoing.whole(completion)
    return Response(completion, media_type="application/json", headers=services.metrics.told(stages))


@router.post(COMPLETIONS_PATH, openapi_extra=json_of(schema_of(CompletionBody)))
async def completions(request: Request, scope: Reader) -> Response:
    services = await services_of(request)
    raw = await request.body()
    body, _ = _parse(CompletionBody, raw)
    prompt = body.prompt if isinstance(body.prompt, str) else repr(body.prompt)
    prefix = prompt.encode(errors="replace")
    engine_request = EngineRequest(
        COMPLETIONS_PATH, raw, body, prefix=prefix, lane=lane_of(body.service_tier)
    )
    note_answer(services, scope, request.state.request_id, prompt, ())
    return await _pass_through(request, services, scope, engine_request, Outgoing())


def note_answer(
    services: Services, scope: Scope, answer_id: str, question: str, file_ids: Collection[str]
) -> None:
    """In the audit log: which files an answer is written from, and the question as a keyed hash."""
    asked = services.audit.keyed_hash(question)
    services.audit.note(scope, AuditEvent.ANSWER, (answer_id, *sorted(file_ids)), question=asked)


@dataclass(frozen=True)
class EngineRequest:
    """What goes to an engine as it came."""

    path: str
    raw: bytes
    body: Sampling
    prefix: bytes
    lane: Lane


def _parse(kind: type[Model], raw: bytes) -> tuple[Model, dict[str, Any]]:
    """The body checked, and as it was sent."""
    try:
        sent = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from error
    return read_model(kind, sent), sent


def _grounding(body: ChatBody, tools: Sequence[FileSearchTool]) -> Grounding | None:
    """Where to search; None for a plain chat."""
    if not tools and body.vector_store_ids:
        return Grounding(collections=tuple(body.vector_store_ids))
    return grounding_of(body.model, tools)


def grounding_of(model: str, tools: Sequence[FileSearchTool]) -> Grounding | None:
    """Where tools, else a model's name, say to search."""
    if tools:
        limits = [tool.max_num_results for tool in tools if tool.max_num_results is not None]
        filters = [tool.filters for tool in tools if tool.filters is not None]
        if len(filters) > 1:
            raise BadRequest("Only one file_search tool may have filters.", param="tools")
        rankings = [tool.ranking_options for tool in tools if tool.ranking_options is not None]
        if len(rankings) > 1:
            raise BadRequest("Only one file_search tool may have ranking_options.", param="tools")
        ranking = rankings[0] if rankings else RankingOptions()
        weights = ranking.hybrid_search
        return Grounding(
            collections=tuple(dict.fromkeys(each for tool in tools for each in tool.vector_store_ids)),
            filters=filters[0] if filters else None,
            max_num_results=max(limits) if limits else None,
            fusion=ranking.fusion,
            dense_weight=None if weights is None else weights.dense_weight,
            score_threshold=ranking.score_threshold or 0.0,
            reranks=ranking.reranks,
        )
    if model == RAG_MODEL:
        return Grounding(collections=None)
    if model.startswith(f"{RAG_MODEL}/"):
        return Grounding(collections=(model.removeprefix(f"{RAG_MODEL}/"),))
    return None


def _with_texts(services: Services, scope: Scope, sent: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The request with the text of each file that a message shows, which no engine reads, and those files' ids.

    Blocks. Raises BadRequest, FileMissing.
    """
    file_ids = set[str]()
    messages = list(sent["messages"])
    with services.database.read() as session:
        for number, message in enumerate(messages):
            if not isinstance(parts := message.get("content"), list):
                continue
            shaped = list(parts)
            for place, part in enumerate(parts):
                if not isinstance(part, dict) or part.get("type") != "file":
                    continue
                param = f"messages[{number}].content[{place}].file"
                file = read_model(FilePart, part.get("file"), param)
                if (file.file_id is None) == (file.file_data is None):
                    raise BadRequest(f"{param} needs either file_id or file_data.", param=param)
                if file.file_id is not None:
                    text = uploaded_text(session, scope, file.file_id, param=param)
                    file_ids.add(file.file_id)
                else:
                    text = file_text(file.file_data or "", param)
                shaped[place] = {"type": "text", "text": shown(file.filename, text)}
            messages[number] = {**message, "content": shaped}
    return {**sent, "messages": messages}, file_ids


def _for_engine(sent: dict[str, Any]) -> dict[str, Any]:
    """The request without what only we understand."""
    ours = ("vector_store_ids", "store", "metadata")
    kept = {name: value for name, value in sent.items() if name not in ours}
    if "tools" in kept:
        others = [tool for tool in kept["tools"] or () if tool.get("type") != "file_search"]
        if others:
            kept["tools"] = others
        else:
            del kept["tools"]
            kept.pop("tool_choice", None)
    return kept


async def generation_model(services: Services, scope: Scope, asked: str) -> str:
    """`rag` names no generation model of its own: the first that an engine serves writes the answer."""
    served = await engine_model_names(services)
    if not served:
        raise EngineUnavailable(await _why_no_engine(services))
    if asked == RAG_MODEL or asked.startswith(f"{RAG_MODEL}/"):
        return served[0]
    if asked not in served:
        raise UnknownModel(asked, await model_names(services, scope))
    return asked


async def _why_no_engine(services: Services) -> str:
    reasons = {engine.reason for engine in await services.gateway.health() if engine.reason is not None}
    return (
        f"No generation engine is ready: {'; '.join(sorted(reasons)) or 'none is configured (engine.url)'}."
    )


def _kinds_of_parts(raw: bytes, sent: dict[str, Any]) -> set[str]:
    """Of what is no text: pictures and sound. Quick, since nearly all chats have none."""
    if not any(f'"{kind}"'.encode() in raw for kind in (IMAGE, AUDIO)):
        return set()
    contents = [message.get("content") for message in sent["messages"]]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    kinds = {part.get("type") for part in parts if isinstance(part, dict)}
    return {kind for kind in (IMAGE, AUDIO) if kind in kinds}


async def _look_over(services: Services, scope: Scope, model: str, raw: bytes, sent: dict[str, Any]) -> None:
    """What an engine would be given in vain. Raises PromptTooLong, PartNotTaken."""
    if kinds := _kinds_of_parts(raw, sent):
        await services.generation.must_take(model, kinds)
    if len(raw) > LONG_BYTES:
        texts = [text_of(message.get("content")) for message in sent["messages"]]
        await services.generation.must_fit(model, tenant=scope.tenant_id, texts=texts)


def _outgoing(
    services: Services,
    scope: Scope,
    body: ChatBody,
    sent: dict[str, Any],
    written: Written | None,
    *,
    file_ids: Collection[str],
) -> Outgoing:
    completion_id = new_id("chatcmpl-") if body.store else None

    def store(completion: dict[str, Any]) -> None:
        now = time.time()
        row = StoredCompletion(
            id=completion_id,
            tenant_id=scope.tenant_id,
            key_id=scope.key_id,
            model=completion.get("model") or body.model,
            attributes=dict(body.metadata or {}),
            messages=orjson.dumps(sent["messages"]).decode(),
            completion=orjson.dumps(completion).decode(),
            created_at=now,
        )
        with services.database.write() as session:
            if add_completion(session, scope, row, file_ids=file_ids):
                audit.record(session, AuditEvent.COMPLETION_STORED, row.id, *file_ids, scope=scope)

    async def keep(completion: dict[str, Any]) -> None:
        await in_thread(store, completion)

    return Outgoing(
        as_functions=bool(body.functions),
        written_call=WrittenCall(written.name) if written is not None else None,
        custom_calls=CustomCalls(names) if (names := custom_names(sent)) else None,
        is_padded=bool(body.stream and body.stream_options and body.stream_options.include_obfuscation),
        keep=keep if body.store else None,
        completion_id=completion_id,
    )


async def _pass_through(
    request: Request, services: Services, scope: Scope, asked: EngineRequest, outgoing: Outgoing
) -> Response:
    """The engine's own reply, byte for byte unless something is to be done to it on its way out."""
    stages = Stages()
    whole = not asked.body.stream
    async with AsyncExitStack() as stack:
        sending = services.gateway.send(
            asked.path,
            asked.raw,
            model=asked.body.model,
            tenant=scope.tenant_id,
            lane=asked.lane,
            prefix=asked.prefix,
            deadline_s=deadline_of(request, longest_s=services.settings.engine.timeout_s) if whole else None,
        )

        async def exchange() -> tuple[Reply, bytes]:
            reply = await stack.enter_async_context(sending)
            return reply, await reply.read() if whole else b""

        try:
            with stages.measure("generate"):
                reply, content = await unless_departed(request.receive, exchange())
        except ModelNotServed as error:
            raise UnknownModel(asked.body.model, await model_names(services, scope)) from error
        headers = services.metrics.told(stages)
        as_is = outgoing.leaves_as_is or reply.status != 200
        if whole:
            if not as_is:
                content = await outgoing.whole(content)
            return Response(content, reply.status, media_type=reply.content_type, headers=headers)
        if reply.status == 200:
            must_be_events(reply)
        events = _relay(reply, stack.pop_all())
        return StreamedReply(
            events if as_is else outgoing.stream(events),
            status_code=reply.status,
            media_type=reply.content_type,
            headers=headers,
        )


async def _relay(reply: Reply, stack: AsyncExitStack) -> AsyncGenerator[bytes]:
    """What the engine sends, unread. If it is lost, an event says so where [DONE] would stand."""
    async with stack:
        try:
            async for chunk in reply.chunks():
                yield chunk
        except EngineLost as error:
            if not reply.content_type.startswith(EVENTS):
                raise
            # The engine may have been cut within a line.
            yield b"\n\n" + lost_event(error)
