"""/v1/chat/completions and /v1/completions: answers from documents, or the engine's own, untouched."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.chat import CHAT_PATH, RAG_MODEL, Grounding, lost_event
from app.errors import BadRequest, UnknownModel
from app.prompt import as_prefix
from app.routes.caller import deadline_of, lane_of, scope_of, services_of
from app.routes.filters import FilterBody, to_filter
from app.routes.models import engine_model_names, model_names
from app.services import Services
from app.streaming import StreamedReply, with_first
from retrieval.scope import Scope
from retrieval.stages import Stages
from serving.departure import unless_departed
from serving.generation.gateway import EngineLost, ModelNotServed, Reply
from serving.protocols import EngineUnavailable, Lane


class LeanRoute(APIRoute):
    """Hands its endpoint the request alone: FastAPI's way to arguments would be a tenth of what a relayed chat
    takes in this process.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


router = APIRouter(route_class=LeanRoute)

COMPLETIONS_PATH = "/v1/completions"
EVENTS = "text/event-stream"
Unchecked = Any
"""Passed on as it is: the engine knows what it takes."""


class Sampling(BaseModel):
    """Every field that may be sent, with OpenAI's ranges. What is not here is refused by name."""

    model_config = ConfigDict(extra="forbid")

    model: str
    stream: bool | None = None
    stream_options: Unchecked = None
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    min_tokens: int | None = Field(None, ge=0, le=1_000_000)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: Unchecked = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    seed: int | None = None
    user: str | None = None


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]


class ChatBody(Sampling):
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Unchecked = None
    parallel_tool_calls: bool | None = None
    functions: Unchecked = None
    function_call: Unchecked = None
    metadata: dict[str, str] | None = None
    modalities: Unchecked = None
    prediction: Unchecked = None
    prompt_cache_key: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None
    vector_store_ids: Annotated[list[str], Field(max_length=100)] | None = None


class CompletionBody(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=128)
    logprobs: int | None = Field(None, ge=0, le=5)


class FileSearchTool(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["file_search"]
    vector_store_ids: list[str] = Field(min_length=1, max_length=100)
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: FilterBody | None = None
    ranking_options: dict[str, Any] | None = None


Body = TypeVar("Body", bound=BaseModel)

OPENAPI_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}


@router.post(CHAT_PATH, openapi_extra=OPENAPI_BODY)
async def chat_completions(request: Request) -> Response:
    services, scope = await services_of(request), await scope_of(request)
    raw = await request.body()
    body, sent = _parse(ChatBody, raw)
    grounding = _grounding(body)
    if grounding is None:
        engine_request = EngineRequest(
            CHAT_PATH, raw, body, prefix=as_prefix(sent["messages"]), lane=lane_of(body.service_tier)
        )
        return await _pass_through(request, services, scope, engine_request)
    if not any(message.role == "user" for message in body.messages):
        raise BadRequest("messages needs a message with the role 'user' to search for.", param="messages")
    model = await _generation_model(services, scope, body.model)
    stages = Stages()
    prepared = await unless_departed(
        request.receive,
        services.chat.prepare(
            scope,
            _for_engine(sent),
            grounding,
            model=model,
            lane=lane_of(body.service_tier),
            stages=stages,
        ),
    )
    if body.stream:
        with stages.measure("generate"):
            events = await unless_departed(request.receive, with_first(services.chat.stream(prepared)))
        return StreamedReply(events, media_type=EVENTS, headers=services.metrics.told(stages))
    deadline_s = deadline_of(request, longest_s=services.settings.engine.timeout_s)
    completion = await unless_departed(
        request.receive, services.chat.complete(prepared, deadline_s=deadline_s)
    )
    return Response(
        orjson.dumps(completion), media_type="application/json", headers=services.metrics.told(stages)
    )


@router.post(COMPLETIONS_PATH, openapi_extra=OPENAPI_BODY)
async def completions(request: Request) -> Response:
    services, scope = await services_of(request), await scope_of(request)
    raw = await request.body()
    body, _ = _parse(CompletionBody, raw)
    prompt = body.prompt if isinstance(body.prompt, str) else repr(body.prompt)
    prefix = prompt.encode(errors="replace")
    engine_request = EngineRequest(COMPLETIONS_PATH, raw, body, prefix=prefix, lane=Lane.INTERACTIVE)
    return await _pass_through(request, services, scope, engine_request)


@dataclass(frozen=True)
class EngineRequest:
    """What goes to an engine as it came."""

    path: str
    raw: bytes
    body: Sampling
    prefix: bytes
    lane: Lane


def _parse(kind: type[Body], raw: bytes) -> tuple[Body, dict[str, Any]]:
    """The body checked, and as it was sent."""
    try:
        sent = orjson.loads(raw)
        return kind.model_validate(sent), sent
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        what = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadRequest(f"{param or 'body'}: {what}.", param=param or None) from error


def _grounding(body: ChatBody) -> Grounding | None:
    """Where to search; None for a plain chat."""
    tools = [
        _parse(FileSearchTool, orjson.dumps(tool))[0]
        for tool in body.tools or ()
        if tool.get("type") == "file_search"
    ]
    if tools:
        limits = [tool.max_num_results for tool in tools if tool.max_num_results is not None]
        filters = [to_filter(tool.filters) for tool in tools if tool.filters is not None]
        if len(filters) > 1:
            raise BadRequest("Only one file_search tool may have filters.", param="tools")
        return Grounding(
            collections=tuple(dict.fromkeys(each for tool in tools for each in tool.vector_store_ids)),
            filters=filters[0] if filters else None,
            max_num_results=max(limits) if limits else None,
        )
    if body.vector_store_ids:
        return Grounding(collections=tuple(body.vector_store_ids))
    if body.model == RAG_MODEL:
        return Grounding(collections=None)
    if body.model.startswith(f"{RAG_MODEL}/"):
        return Grounding(collections=(body.model.removeprefix(f"{RAG_MODEL}/"),))
    return None


def _for_engine(sent: dict[str, Any]) -> dict[str, Any]:
    """The request without what only we understand."""
    kept = {name: value for name, value in sent.items() if name != "vector_store_ids"}
    if "tools" in kept:
        others = [tool for tool in kept["tools"] or () if tool.get("type") != "file_search"]
        if others:
            kept["tools"] = others
        else:
            del kept["tools"]
            kept.pop("tool_choice", None)
    return kept


async def _generation_model(services: Services, scope: Scope, asked: str) -> str:
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


async def _pass_through(request: Request, services: Services, scope: Scope, asked: EngineRequest) -> Response:
    """The engine's own reply, byte for byte."""
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
        if whole:
            return Response(content, reply.status, media_type=reply.content_type, headers=headers)
        return StreamedReply(
            _relay(reply, stack.pop_all()),
            status=reply.status,
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
