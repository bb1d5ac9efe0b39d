"""One turn of the engine in a response: what it is asked, with documents or without, and the chunks of its reply."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import orjson
from sqlalchemy import select

from app.answers.chat import EngineRefused, GroundedRequest, Json
from app.answers.generation import CHAT_PATH, MESSAGE_TOKENS, GenerationModel
from app.answers.grammars import WrittenCall
from app.answers.prompt import LEAST_ROOM, as_prefix
from app.edge.streaming import event_data
from app.errors import BadRequest, UnknownModel
from app.responses.reading import Asked, messages_text
from app.responses.request import Context, ResponseBody, chat_request
from app.responses.translation import last_question
from app.routes.chat import grounding_of
from app.routes.models import model_names
from app.services import Services
from retrieval.access import readable_documents
from retrieval.passages import Passage
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.tables import Document
from serving.generation.gateway import ModelNotServed, Reply
from serving.protocols import EngineUnavailable, Lane

DONE = b"[DONE]"
LOST = "The engine was lost before the response was whole."


@dataclass(frozen=True)
class Question:
    """What the engine is asked."""

    request: Json
    model: str
    scope: Scope
    lane: Lane
    grounded: GroundedRequest | None
    """With the passages, where documents were searched."""
    writes: str | None = None
    """The function of whose call the engine writes the input alone, by a grammar."""

    @property
    def file_ids(self) -> set[str]:
        """Of the passages."""
        return {passage.file_id for passage in self.grounded.passages} if self.grounded else set()

    @property
    def is_whole(self) -> bool:
        """Whether the reply comes at once, and not as a stream."""
        return not self.request.get("stream")

    def going_on(self, messages: Sequence[Json], *, may_call: bool) -> "Question":
        """The same with what its calls told. That it had to call something holds for its first turn alone."""
        request = {**self.request, "messages": [*self.request["messages"], *messages]}
        request.pop("tool_choice", None)
        if not may_call:
            request["tool_choice"] = "none"
        grounded = None if self.grounded is None else replace(self.grounded, body=request)
        return replace(self, request=request, grounded=grounded)


async def ask(
    services: Services, scope: Scope, asked: Asked, *, model: str, lane: Lane, stages: Stages
) -> Question:
    """Searches where the request says so, and writes the engine's request. `model` is the one that answers."""
    body = asked.body
    grounding = grounding_of(body.model or "", asked.tooling.searches)
    if grounding is not None and last_question(asked.items) < 0 and last_question(asked.past) < 0:
        raise BadRequest("input needs a message with the role 'user' to search for.", param="input")
    messages = list(asked.messages)
    if body.truncation == "auto":
        messages = await _truncated(services, scope, model, messages, body)
    written = asked.tooling.written()
    writes = None if written is None else written.name
    request = {**chat_request(body, asked.tooling, messages), "model": model}
    if isinstance(body, ResponseBody) and (body.stream or body.background):
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    if grounding is None:
        return Question(request, model, scope, lane, None, writes)
    grounded = await services.chat.prepare(scope, request, grounding, model=model, lane=lane, stages=stages)
    return Question(grounded.body, model, scope, lane, grounded, writes)


async def chunks_of(
    services: Services, question: Question, *, deadline_s: float | None
) -> AsyncGenerator[Json]:
    """Of a chat completion's stream to its proper end, or a whole one as one. Raises EngineUnavailable else."""
    call = None if question.writes is None else WrittenCall(question.writes)
    if question.is_whole:
        completion = await _whole(services, question, deadline_s)
        yield completion if call is None else call.whole(completion)
        return
    stream = (
        _plain(services, question) if question.grounded is None else services.chat.stream(question.grounded)
    )
    async with aclosing(stream):
        async for data in event_data(stream):
            if data == DONE:
                return
            chunk = orjson.loads(data)
            if "error" in chunk:
                raise EngineUnavailable(str(chunk["error"].get("message") or LOST))
            yield chunk if call is None else call.chunk(chunk)
    raise EngineUnavailable(LOST)


async def _whole(services: Services, question: Question, deadline_s: float | None) -> Json:
    if question.grounded is not None:
        return await services.chat.complete(question.grounded, deadline_s=deadline_s)
    async with _sent(services, question, deadline_s) as reply:
        completion: Json = orjson.loads(await reply.read())
        return completion


async def _plain(services: Services, question: Question) -> AsyncGenerator[bytes]:
    async with _sent(services, question, None) as reply:
        async for chunk in reply.chunks():
            yield chunk


@asynccontextmanager
async def _sent(services: Services, question: Question, deadline_s: float | None) -> AsyncIterator[Reply]:
    """The engine's reply to a request without documents. Raises EngineRefused, UnknownModel."""
    try:
        async with services.gateway.send(
            CHAT_PATH,
            orjson.dumps(question.request),
            model=question.model,
            tenant=question.scope.tenant_id,
            lane=question.lane,
            prefix=as_prefix(question.request["messages"]),
            deadline_s=deadline_s,
        ) as reply:
            if reply.status != 200:
                raise EngineRefused(reply.status, await reply.read())
            yield reply
    except ModelNotServed as error:
        raise UnknownModel(question.model, await model_names(services, question.scope)) from error


def refused_with(error: EngineRefused) -> str:
    """What the engine said."""
    try:
        return str(orjson.loads(error.body)["error"]["message"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return str(error)


def results_of(services: Services, grounded: GroundedRequest) -> list[Json]:
    """The passages that the model read, as results of a search."""
    passages = grounded.passages
    with services.database.read() as session:
        rows = session.execute(
            select(Document.id, Document.attributes).where(
                readable_documents(grounded.scope),
                Document.id.in_([passage.document_id for passage in passages]),
            )
        )
        attributes = {row.id: row.attributes for row in rows}
    return [_result(passage, attributes.get(passage.document_id, {})) for passage in passages]


def _result(passage: Passage, attributes: Json) -> Json:
    return {
        "file_id": passage.file_id,
        "filename": passage.filename,
        "score": round(min(max(passage.score, 0.0), 1.0), 6),
        "text": passage.text,
        "attributes": attributes,
        "start_char": passage.start_char,
        "end_char": passage.end_char,
    }


async def _truncated(
    services: Services, scope: Scope, model: str, messages: list[Json], body: Context
) -> list[Json]:
    """Without the oldest messages, as far as the model's context needs it. The head and the last question stay."""
    texts = messages_text(messages)
    reader = await services.generation.of(model, tenant=scope.tenant_id, sample="\n".join(texts))
    answer_tokens = (
        body.max_output_tokens if isinstance(body, ResponseBody) else None
    ) or services.settings.chat.answer_tokens
    if not reader.may_overflow(texts, answer_tokens=answer_tokens):
        return messages
    return fitted(messages, texts, reader, answer_tokens=answer_tokens)


def fitted(
    messages: list[Json], texts: Sequence[str], reader: GenerationModel, *, answer_tokens: int
) -> list[Json]:
    assert reader.max_tokens is not None
    costs = [reader.count_tokens(text) + MESSAGE_TOKENS for text in texts]
    room = reader.max_tokens - answer_tokens - MESSAGE_TOKENS - LEAST_ROOM
    begin = 1 if messages[0]["role"] == "system" else 0
    last = max((place for place, each in enumerate(messages) if each["role"] == "user"), default=begin)
    first = begin
    while first < last and sum(costs[:begin]) + sum(costs[first:]) > room:
        first += 1
        # An output without its call is nothing that a model can read.
        while first < last and messages[first]["role"] == "tool":
            first += 1
    return [*messages[:begin], *messages[first:]]
