"""/v1/responses: OpenAI's Responses, answered by the chat journey."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.orm import Session

from app.access.auth import KeyInvalid, must_own
from app.access.retention import must_not_keep
from app.answers.chat import EVENTS
from app.edge.streaming import StreamedReply, with_first
from app.errors import BadRequest
from app.responses import background
from app.responses.answering import respond, with_includes
from app.responses.background import Background
from app.responses.compaction import compact
from app.responses.counting import count_tokens
from app.responses.description import described
from app.responses.items import Json
from app.responses.quoting import requote
from app.responses.reading import read_asked
from app.responses.request import CompactBody, Context, Include, ResponseBody
from app.responses.writing import padding, usage_of
from app.routes.body import read_model
from app.routes.caller import Reader, Recheck, UseServices, deadline_of, lane_of, scope_of
from app.routes.chat import generation_model
from app.routes.listing import following, listed
from app.services import Services
from retrieval import audit, conversations, responses
from retrieval.catalog import NotFound, Order
from retrieval.responses import PreviousMissing
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.tables import AuditEvent, StoredResponse, new_id
from retrieval.together import in_thread
from serving.departure import unless_departed

router = APIRouter(prefix="/v1/responses")

LOOK_S = 0.1
"""How often a background response's events are looked for; they are written twice in this time."""
EVENTS_A_LOOK = 1_000


async def background_of(request: Request) -> Background:
    running: Background = request.app.state.background
    return running


def _includes_of(
    include: Annotated[list[Include] | None, Query()] = None,
    bracketed: Annotated[list[Include] | None, Query(alias="include[]")] = None,
) -> frozenset[str]:
    """OpenAI's clients send lists with brackets."""
    return frozenset([*(include or ()), *(bracketed or ())])


UseBackground = Annotated[Background, Depends(background_of)]
UseIncludes = Annotated[frozenset[str], Depends(_includes_of)]
Limit = Annotated[int, Query(ge=1, le=100)]


def read_json(raw: bytes) -> Json:
    """Raises BadRequest."""
    try:
        sent = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(sent, dict):
        raise BadRequest("The body must be a JSON object.")
    return sent


def check_id(value: str | None, prefix: str, param: str) -> None:
    """Raises BadRequest for what can be no id of its kind."""
    if value is not None and not (value.startswith(prefix) and value.isascii() and len(value) <= 64):
        raise BadRequest(
            f"Invalid '{param}': {value[:64]!r}. Expected an ID that begins with '{prefix.rstrip('_')}'.",
            param=param,
        )


def check_past(body: Context) -> None:
    """Raises BadRequest."""
    if body.previous_response_id is not None and body.conversation is not None:
        raise BadRequest(
            "previous_response_id and conversation cannot be sent together.", param="previous_response_id"
        )
    check_id(body.previous_response_id, "resp_", "previous_response_id")
    check_id(body.conversation_id, "conv_", "conversation")


@router.post("", openapi_extra=described(ResponseBody))
async def create(request: Request, services: UseServices, scope: Reader) -> Response:
    body = read_model(ResponseBody, read_json(await request.body()))
    check_past(body)
    if scope.keeps_nothing:
        body = _keeping_nothing(scope, body)
    if body.background:
        if not body.is_stored:
            raise BadRequest("A background response is stored: leave store out.", param="store")
        response = await (await background_of(request)).enqueue(scope, body)
        if not body.stream:
            return _reply(response)
        events = _followed(services, response["id"], -1, _still(request), is_padded=_is_padded(body))
        return StreamedReply(await with_first(events), media_type=EVENTS)
    stages = Stages()
    deadline_s = None if body.stream else deadline_of(request, longest_s=services.settings.engine.timeout_s)
    answering = respond(
        services,
        scope,
        body,
        new_id("resp_"),
        lane=lane_of(body.service_tier),
        stages=stages,
        deadline_s=deadline_s,
    )
    if body.stream:
        events = await unless_departed(request.receive, with_first(_as_events(answering)))
        return StreamedReply(events, media_type=EVENTS, headers=services.metrics.told(stages))
    response = await unless_departed(request.receive, _last(answering))
    return _reply(response, services.metrics.told(stages))


def _keeping_nothing(scope: Scope, body: ResponseBody) -> ResponseBody:
    """Stored only where it says so, which is refused. Raises RetentionForbids."""
    for param in ("store", "background", "conversation"):
        if getattr(body, param):
            must_not_keep(scope, param)
    return body.model_copy(update={"store": False})


@router.post("/input_tokens", openapi_extra=described(Context))
async def input_tokens(request: Request, services: UseServices, scope: Reader) -> Response:
    body = read_model(Context, read_json(await request.body()))
    check_past(body)
    counted = await unless_departed(request.receive, count_tokens(services, scope, body))
    return _reply({"object": "response.input_tokens", "input_tokens": counted})


@router.post("/compact", openapi_extra=described(CompactBody))
async def compact_conversation(request: Request, services: UseServices, scope: Reader) -> Response:
    body = read_model(CompactBody, read_json(await request.body()))
    context = Context.model_validate(body.model_dump(include=set(Context.model_fields)))
    check_past(context)
    asked = await in_thread(read_asked, services, scope, context)
    model = await generation_model(services, scope, body.model)
    compacting = compact(services, scope, asked, model=model, lane=lane_of(body.service_tier))
    item, usage = await unless_departed(request.receive, compacting)
    return _reply(
        {
            "id": new_id("resp_"),
            "object": "response.compaction",
            "created_at": int(time.time()),
            "output": [item],
            "usage": usage_of(usage),
        }
    )


@router.get("/{response_id}")
async def retrieve(
    response_id: str,
    services: UseServices,
    scope: Reader,
    recheck: Recheck,
    includes: UseIncludes,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=-1)] = None,
    include_obfuscation: bool = False,
) -> Response:
    check_id(response_id, "resp_", "response_id")
    if not stream:
        if starting_after is not None:
            raise BadRequest("starting_after needs stream=true.", param="starting_after")
        return _reply(await in_thread(_shown, services, scope, response_id, includes))
    after = -1 if starting_after is None else starting_after
    events = _followed(services, response_id, after, recheck, is_padded=include_obfuscation)
    return StreamedReply(await with_first(events), media_type=EVENTS)


@router.delete("/{response_id}")
async def delete(response_id: str, services: UseServices, scope: Reader, running: UseBackground) -> Json:
    check_id(response_id, "resp_", "response_id")
    await in_thread(_delete, services, scope, response_id)
    running.stop(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel")
async def cancel(response_id: str, services: UseServices, scope: Reader, running: UseBackground) -> Response:
    check_id(response_id, "resp_", "response_id")
    await in_thread(background.cancel, services, scope, response_id)
    running.stop(response_id)
    return _reply(await in_thread(_shown, services, scope, response_id, frozenset()))


@router.get("/{response_id}/input_items")
def input_items(
    response_id: str,
    services: UseServices,
    scope: Reader,
    includes: UseIncludes,
    limit: Limit = 20,
    order: Order = Order.DESC,
    after: str | None = None,
) -> Json:
    """With those of the responses that it goes on from."""
    check_id(response_id, "resp_", "response_id")
    with services.database.read() as session:
        response = responses.get_response(session, scope, response_id)
        items = responses.input_of(session, response)
        if response.previous_id is not None:
            with suppress(PreviousMissing):
                items = [*responses.said_before(session, scope, response.previous_id), *items]
        asked = following(items, order=order, after=after)
        return page(session, scope, asked[: limit + 1], limit, includes)


def page(session: Session, scope: Scope, items: Sequence[Json], limit: int, includes: frozenset[str]) -> Json:
    """OpenAI's list of items; `items` has one more than `limit` if there are more."""
    given = list(items[:limit])
    requote(session, scope, given)
    return listed(with_includes(given, includes), has_more=len(items) > limit)


def _delete(services: Services, scope: Scope, response_id: str) -> None:
    with services.database.write() as session:
        response = responses.get_response(session, scope, response_id, lock=True)
        must_own(scope, response.key_id)
        conversations.let_go(session, response_id)
        responses.delete_response(session, response)
        audit.record(session, AuditEvent.RESPONSE_DELETED, response_id, scope=scope)


def _shown(services: Services, scope: Scope, response_id: str, includes: frozenset[str]) -> Json:
    with services.database.read() as session:
        response = responses.get_response(session, scope, response_id)
        output = responses.output_of(session, response)
        requote(session, scope, output)
        return with_output(response, with_includes(output, includes))


def with_output(response: StoredResponse, output: list[Json]) -> Json:
    texts = [
        part["text"]
        for item in output
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    ]
    text = "".join(texts) if response.status.is_final else None
    return {**response.content, "status": response.status.value, "output": output, "output_text": text}


def _reply(body: Json, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)


async def _last(events: AsyncGenerator[Json]) -> Json:
    """The response as the last event has it."""
    async with aclosing(events):
        last: Json = {}
        async for event in events:
            last = event
        response: Json = last["response"]
        return response


async def _as_events(events: AsyncGenerator[Json]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for event in events:
            yield _as_event(event)


def _as_event(event: Json) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event))


def _is_padded(body: ResponseBody) -> bool:
    return bool(body.stream_options and body.stream_options.include_obfuscation)


def _still(request: Request) -> Callable[[], Awaitable[Scope]]:
    return lambda: scope_of(request)


async def _followed(
    services: Services,
    response_id: str,
    after: int,
    recheck: Callable[[], Awaitable[Scope]],
    *,
    is_padded: bool,
) -> AsyncGenerator[bytes]:
    """A background response's events, from those that are there to its last, whichever process runs it."""

    def look(scope: Scope) -> tuple[bool, list[Json]]:
        with services.database.read() as session:
            response = responses.get_response(session, scope, response_id)
            if not response.is_background:
                raise BadRequest(
                    "Only a response that was created with background=true can be streamed again.",
                    param="stream",
                )
            events = responses.events_after(session, response, after, most=EVENTS_A_LOOK)
            requote(session, scope, events)
            return response.status.is_final and len(events) < EVENTS_A_LOOK, events

    has_begun = False
    while True:
        try:
            is_whole, events = await in_thread(look, await recheck())
        except (NotFound, KeyInvalid) as error:
            if not has_begun:
                raise
            lost: Json = {"type": "error", "code": "not_found", "message": str(error), "param": None}
            yield _as_event({**lost, "sequence_number": after + 1})
            return
        for event in events:
            after = event["sequence_number"]
            padded = is_padded and "delta" in event and "obfuscation" not in event
            yield _as_event({**event, "obfuscation": padding(event["delta"])} if padded else event)
        if not has_begun and not events:
            yield b": nothing yet\n\n"
        has_begun = True
        if is_whole:
            return
        await asyncio.sleep(LOOK_S)
