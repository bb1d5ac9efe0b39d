"""Asking in the console: an answer that streams with its sources, and the conversations that it is kept in."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Form, Request, Response
from pydantic import Field, model_validator
from sqlalchemy.exc import SQLAlchemyError

from app.access.retention import must_not_keep
from app.answers.chat import RAG_MODEL, GroundedRequest, Grounding
from app.console import turns
from app.console.session import SignedIn, SignedInToAsk, Visitor
from app.console.turns import Answer, Turn
from app.console.views import ConsoleRoute, Views, views_of
from app.edge.streaming import DONE, StreamedReply, event_data, with_first
from app.responses.writing import file_citation
from app.routes.body import Body
from app.routes.caller import UseServices
from app.routes.chat import generation_model, note_answer
from app.routes.models import engine_model_names
from app.services import Services
from retrieval import audit, catalog, conversations
from retrieval.catalog import NotFound, PageRequest
from retrieval.scope import Scope
from retrieval.search import FoundChunk, SearchOptions
from retrieval.stages import Stages
from retrieval.tables import AuditEvent
from retrieval.together import in_thread
from serving.departure import unless_departed
from serving.protocols import Lane, ServingError

router = APIRouter(prefix="/console", include_in_schema=False, route_class=ConsoleRoute)

Json = dict[str, Any]

REPAINT_S = 0.04
"""Between two repaints: faster than an eye follows, and a fast engine does not keep this process busy with markdown."""
MOST_CONVERSATIONS = 200
MOST_COLLECTIONS = 1000
NEAREST = 3
LINES = "application/x-ndjson"


class Question(Body):
    question: str = Field(min_length=1, max_length=20_000, pattern=r"\S")
    conversation: str | None = None
    collections: list[str] = Field(default_factory=list, max_length=100)
    """None of them is all that the key may read."""
    model: str | None = None
    instead_of: str | None = None
    """A turn of the conversation: it goes, and what follows it."""

    @model_validator(mode="after")
    def replaces_a_turn_of_a_conversation(self) -> "Question":
        if self.instead_of is not None and self.conversation is None:
            raise ValueError("instead_of: name the conversation too")
        return self


@router.get("")
async def ask_page(request: Request, services: UseServices, visitor: SignedIn) -> Response:
    return await _page(request, services, visitor, None)


@router.get("/conversations/{conversation_id}")
async def conversation_page(
    conversation_id: str, request: Request, services: UseServices, visitor: SignedIn
) -> Response:
    return await _page(request, services, visitor, conversation_id)


@router.post("/ask")
async def ask(request: Request, body: Question, services: UseServices, visitor: SignedInToAsk) -> Response:
    """Lines of JSON, each with what of the page is to change. Who leaves stops the engine."""
    scope = visitor.scope
    if body.conversation is not None:
        must_not_keep(scope, "conversation")
    said = await in_thread(_said_before, services, scope, body)
    messages = [*said, {"role": "user", "content": body.question}]
    model = await generation_model(services, scope, body.model or RAG_MODEL)
    prepared = await unless_departed(
        request.receive,
        services.chat.prepare(
            scope,
            {"messages": messages, "stream": True, "stream_options": {"include_usage": True}},
            Grounding(collections=tuple(body.collections) or None),
            model=model,
            lane=Lane.INTERACTIVE,
            stages=Stages(),
        ),
    )
    file_ids = {passage.file_id for passage in prepared.passages}
    note_answer(services, scope, request.state.request_id, body.question, file_ids)
    events = await unless_departed(request.receive, with_first(services.chat.stream(prepared)))
    exchange = _Exchange(
        services,
        views_of(request),
        prepared,
        Turn(body.question, Answer(is_whole=False)),
        collection_ids=body.collections or None,
        began_in=body.conversation,
        instead_of=body.instead_of,
    )
    return StreamedReply(exchange.lines(events), media_type=LINES, headers={"X-Accel-Buffering": "no"})


@router.post("/conversations/{conversation_id}/rename")
def rename(
    conversation_id: str,
    services: UseServices,
    visitor: SignedIn,
    title: Annotated[str, Form(min_length=1, max_length=turns.LONGEST_TITLE)],
) -> Response:
    with services.database.write() as session:
        conversation = conversations.own_conversation(session, visitor.scope, conversation_id, lock=True)
        conversation.attributes = {**conversation.attributes, turns.TITLE: title}
        audit.record(session, AuditEvent.CONVERSATION_CHANGED, conversation_id, scope=visitor.scope)
    return Response(headers={"HX-Refresh": "true"})


@router.delete("/conversations/{conversation_id}")
def delete(conversation_id: str, services: UseServices, visitor: SignedIn) -> Response:
    with services.database.write() as session:
        conversations.own_conversation(session, visitor.scope, conversation_id, lock=True)
        conversations.delete_conversation(session, visitor.scope, conversation_id)
        audit.record(session, AuditEvent.CONVERSATION_DELETED, conversation_id, scope=visitor.scope)
    return Response(headers={"HX-Redirect": "/console"})


@router.get("/conversations/{conversation_id}/export")
def export(conversation_id: str, services: UseServices, visitor: SignedIn) -> Response:
    with services.database.read() as session:
        conversation = conversations.own_conversation(session, visitor.scope, conversation_id)
        told = turns.as_markdown(
            turns.title_of(conversation), turns.read(session, visitor.scope, conversation_id)
        )
    headers = {"Content-Disposition": 'attachment; filename="conversation.md"'}
    return Response(told, media_type="text/markdown; charset=utf-8", headers=headers)


@dataclass
class _Exchange:
    """One question on its way to its answer."""

    services: Services
    views: Views
    prepared: GroundedRequest
    turn: Turn
    collection_ids: list[str] | None
    began_in: str | None
    """A conversation that is there already."""
    instead_of: str | None
    lost: str | None = None
    usage: Json | None = None
    shown: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def answer(self) -> Answer:
        assert self.turn.answer is not None
        return self.turn.answer

    async def lines(self, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        scope = self.prepared.scope
        conversation_id = None if scope.keeps_nothing else await in_thread(self._begin, scope)
        reading = asyncio.create_task(self._read(events))
        try:
            if conversation_id is not None:
                begun = {} if self.began_in is not None else {"heading": self._heading(conversation_id)}
                yield _line({"conversation": conversation_id, "turn": self.turn.id, **begun})
            while not reading.done():
                await self.changed.wait()
                self.changed.clear()
                for line in self._news():
                    yield line
                await asyncio.sleep(REPAINT_S)
            await reading
            for line in self._news():
                yield line
            # What it used is read by who counts it for a quota.
            yield _line({"closing": await self._closing(), "usage": self.usage})
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if conversation_id is not None:
                await in_thread(self._keep, scope, conversation_id)

    async def _read(self, events: AsyncGenerator[bytes]) -> None:
        try:
            async with aclosing(events):
                async for data in event_data(events):
                    if data == DONE:
                        self.answer.is_whole = True
                    else:
                        self._take(orjson.loads(data))
                        self.changed.set()
        finally:
            self.changed.set()

    def _take(self, chunk: Json) -> None:
        if "error" in chunk:
            self.lost = chunk["error"]["message"]
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            self.answer.text += delta.get("content") or delta.get("refusal") or ""
            self.answer.unsupported = delta.get("unsupported", self.answer.unsupported)
            for annotation in delta.get("annotations") or ():
                passage = self.prepared.passages[annotation["number"] - 1]
                cited = {**file_citation(annotation), "vector_store_id": passage.collection_id}
                self.answer.annotations.append(cited)
        self.answer.is_refusal = not self.prepared.asks_engine

    def _news(self) -> list[bytes]:
        """The blocks from the first that is not as it was, and the sources if there are new ones."""
        blocks = self.answer.blocks()
        first = next(
            (place for place, (old, new) in enumerate(zip(self.shown, blocks, strict=False)) if old != new),
            min(len(self.shown), len(blocks)),
        )
        if first == len(blocks) == len(self.shown):
            return []
        self.shown = blocks
        sources = self.views.render("sources_of_answer.html", answer=self.answer)
        return [_line({"from": first, "blocks": blocks[first:], "sources": sources})]

    def _heading(self, conversation_id: str) -> str:
        """Of a conversation that began with this turn: by it one is renamed, saved and deleted."""
        title = turns.title_for(self.turn.question)
        return self.views.render(
            "conversation_heading.html", conversation={"id": conversation_id}, title=title
        )

    async def _closing(self) -> str:
        """What is said below a whole answer."""
        nearest: list[FoundChunk] = []
        if not self.answer.annotations and self.lost is None:
            nearest = await self._nearest()
        return self.views.render(
            "closing.html", answer=self.answer, lost=self.lost, nearest=nearest, prepared=self.prepared
        )

    async def _nearest(self) -> list[FoundChunk]:
        """Of an answer without evidence: what comes nearest to its question."""
        prepared = self.prepared
        try:
            found = await self.services.searcher.search(
                prepared.scope,
                prepared.asked.question,
                collection_ids=self.collection_ids,
                options=SearchOptions(limit=NEAREST),
            )
        except (ServingError, SQLAlchemyError, NotFound):
            return []  # The answer stands without them.
        return list(found.chunks)

    def _begin(self, scope: Scope) -> str:
        """The conversation, as it is before this turn."""
        if self.began_in is not None:
            self._take_back(scope, self.began_in)
            return self.began_in
        with self.services.database.write() as session:
            begun = turns.begin(session, scope, self.turn.question).id
            audit.record(session, AuditEvent.CONVERSATION_ADDED, begun, scope=scope)
            return begun

    def _take_back(self, scope: Scope, conversation_id: str) -> None:
        if self.instead_of is None:
            return
        with self.services.database.write() as session:
            try:
                conversations.delete_items_from(session, scope, conversation_id, self.instead_of)
            except NotFound:
                return  # Somebody was quicker.
            audit.record(session, AuditEvent.CONVERSATION_CHANGED, conversation_id, scope=scope)

    def _keep(self, scope: Scope, conversation_id: str) -> None:
        with self.services.database.write() as session:
            try:
                turns.keep(session, scope, conversation_id, self.turn)
            except NotFound:
                return  # It was deleted while its answer came.
            audit.record(session, AuditEvent.CONVERSATION_CHANGED, conversation_id, scope=scope)


def _said_before(services: Services, scope: Scope, asked: Question) -> list[Json]:
    """Raises ConversationMissing, ItemMissing."""
    if asked.conversation is None:
        return []
    with services.database.read() as session:
        said = turns.read(session, scope, asked.conversation)
    return turns.said_before(said if asked.instead_of is None else turns.before(said, asked.instead_of))


async def _page(
    request: Request, services: Services, visitor: Visitor, conversation_id: str | None
) -> Response:
    def read() -> Json:
        with services.database.read() as session:
            scope = visitor.scope
            shown = conversation_id and conversations.own_conversation(session, scope, conversation_id)
            return {
                "conversation": shown or None,
                "turns": turns.read(session, scope, conversation_id) if conversation_id else [],
                "conversations": conversations.own_conversations(session, scope, limit=MOST_CONVERSATIONS),
                "collections": catalog.list_collections(session, scope, PageRequest(limit=MOST_COLLECTIONS)),
            }

    told = await in_thread(read)
    models = await engine_model_names(services)
    return views_of(request).page("ask.html", visitor, models=models, title_of=turns.title_of, **told)


def _line(told: Json) -> bytes:
    return orjson.dumps(told) + b"\n"
