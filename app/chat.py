"""The chat journey: find passages for the last question, ask the engine, check its answer's citations."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from app.activity import Activity
from app.citations import Citation, CitationWriter
from app.links import CitedPlace, LinkSigner
from app.prompt import NOTHING_FOUND, as_prefix, passage_text, question_of, with_passages
from app.settings import ChatSettings
from retrieval.catalog import find_collection
from retrieval.database import Database
from retrieval.filters import Filter
from retrieval.passages import Passage, load_passages
from retrieval.scope import Scope
from retrieval.search import Candidates, Searcher, SearchOptions
from retrieval.stages import Stages
from serving.generation.gateway import Reply
from serving.generation.passage_order import PassageOrder
from serving.protocols import EngineUnavailable, Lane

CHAT_PATH = "/v1/chat/completions"
RAG_MODEL = "rag"
SEARCH_DEPTH = 12
"""Chunks that compete for the passages."""

Json = dict[str, Any]


class Generator(Protocol):
    """An engine that speaks OpenAI's chat completions: the gateway, or a scripted one in tests."""

    def send(
        self,
        path: str,
        body: bytes,
        *,
        model: str,
        tenant: str,
        lane: Lane,
        prefix: bytes,
        deadline_s: float | None,
    ) -> AbstractAsyncContextManager[Reply]: ...


@dataclass(frozen=True)
class Grounding:
    """Where a chat is to look for its answer. `collections` None is all that the key may read."""

    collections: tuple[str, ...] | None
    filters: Filter | None = None
    max_num_results: int | None = None


@dataclass(frozen=True)
class GroundedRequest:
    """An engine's request with its passages in it. No passages: nothing bears on the question."""

    body: Json
    model: str
    passages: tuple[Passage, ...]
    """As the prompt shows them: [n] is the n-th."""
    scope: Scope
    lane: Lane
    stages: Stages


class EngineRefused(Exception):
    """The engine answered with an error, whose status and body go to the client as they are."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"The engine answered {status}.")
        self.status = status
        self.body = body


class Chat:
    """Answers from documents. Plain chats do not come here: they go through the gateway untouched."""

    def __init__(
        self,
        database: Database,
        searcher: Searcher,
        generator: Generator,
        links: LinkSigner,
        activity: Activity,
        settings: ChatSettings,
        *,
        dense_weight: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._searcher = searcher
        self._generator = generator
        self._links = links
        self._activity = activity
        self._settings = settings
        self._dense_weight = dense_weight
        self._clock = clock
        self._order = PassageOrder()

    async def prepare(
        self, scope: Scope, body: Json, grounding: Grounding, *, model: str, lane: Lane, stages: Stages
    ) -> GroundedRequest:
        """Searches for the last question and writes the prompt. `body` is already checked."""
        collection_ids = await asyncio.to_thread(self._collection_ids, scope, grounding)
        with stages.measure("rewrite"):
            question = question_of(body["messages"])
        candidates = await self._searcher.search(
            scope,
            question,
            collection_ids=collection_ids,
            options=SearchOptions(
                limit=SEARCH_DEPTH, dense_weight=self._dense_weight, filters=grounding.filters
            ),
            lane=lane,
            stages=stages,
        )
        self._activity.note(scope, collection_ids)
        passages: Sequence[Passage] = ()
        if bears_on(question, candidates, min_similarity=self._settings.min_similarity):
            with stages.measure("passages"):
                passages = await asyncio.to_thread(self._passages, scope, candidates, grounding)
        with stages.measure("prompt"):
            if passages:
                passages, body = self._with_passages(scope, body, passages)
        return GroundedRequest(
            body={**self._defaults(body), **body, "model": model},
            model=model,
            passages=tuple(passages),
            scope=scope,
            lane=lane,
            stages=stages,
        )

    async def complete(self, request: GroundedRequest, *, deadline_s: float | None = None) -> Json:
        """A whole chat.completion. Raises EngineUnavailable, EngineRefused, Overloaded."""
        if not request.passages:
            return self._nothing_found(request)
        with request.stages.measure("generate"):
            async with self._send(request, deadline_s=deadline_s) as reply:
                raw = await reply.read()
                if reply.status != 200:
                    raise EngineRefused(reply.status, raw)
        completion: Json = orjson.loads(raw)
        grounded = False
        for choice in completion["choices"]:
            message = choice["message"]
            if isinstance(message.get("content"), str):
                writer = _writer(request)
                message["content"] = writer.feed(message["content"]) + writer.finish()
                message["annotations"] = self._annotations(request, writer.citations)
                grounded = grounded or bool(writer.citations)
        return {**completion, "grounded": grounded}

    async def stream(self, request: GroundedRequest) -> AsyncGenerator[bytes]:
        """Server-sent events. The first is only given once the engine has accepted the request.

        Raises EngineUnavailable, EngineRefused or Overloaded before the first event; later losses end the stream
        with an error event and without [DONE], so that a cut answer is never taken for a whole one.
        """
        if not request.passages:
            for event in self._nothing_found_events(request):
                yield event
            return
        async with self._send(request, deadline_s=None) as reply:
            if reply.status != 200:
                raise EngineRefused(reply.status, await reply.read())
            writers: dict[int, CitationWriter] = {}
            try:
                async for data in _events(reply.chunks()):
                    if data == b"[DONE]":
                        yield b"data: [DONE]\n\n"
                    else:
                        for chunk in self._cited(request, orjson.loads(data), writers):
                            yield _event(chunk)
            except EngineUnavailable as error:
                yield lost_event(error)

    def _cited(self, request: GroundedRequest, chunk: Json, writers: dict[int, CitationWriter]) -> list[Json]:
        """One chunk of the engine as one or two of ours: the last content delta carries the annotations."""
        last: list[Json] = []
        for choice in chunk.get("choices", []):
            writer = writers.setdefault(choice["index"], _writer(request))
            delta = choice.get("delta") or {}
            if isinstance(delta.get("content"), str):
                delta["content"] = writer.feed(delta["content"])
            if choice.get("finish_reason") and writer.started:
                tail: Json = {
                    "content": writer.finish(),
                    "annotations": self._annotations(request, writer.citations),
                }
                if delta.get("content"):
                    tail["content"] = delta.pop("content") + tail["content"]
                closing = {**choice, "delta": tail, "finish_reason": None}
                last.append(
                    {**chunk, "choices": [closing], "grounded": bool(writer.citations), "usage": None}
                )
        return [*last, chunk]

    def _send(
        self, request: GroundedRequest, *, deadline_s: float | None
    ) -> AbstractAsyncContextManager[Reply]:
        return self._generator.send(
            CHAT_PATH,
            orjson.dumps(request.body),
            model=request.model,
            tenant=request.scope.tenant_id,
            lane=request.lane,
            prefix=as_prefix(request.body["messages"]),
            deadline_s=deadline_s,
        )

    def _with_passages(
        self, scope: Scope, body: Json, passages: Sequence[Passage]
    ) -> tuple[Sequence[Passage], Json]:
        """The passages in the order in which the prompt shows them, and the request with that prompt."""
        # A file that is in two collections is found twice, and read once.
        distinct: dict[str, Passage] = {}
        for passage in passages:
            distinct.setdefault(passage_text(passage), passage)
        best_first = list(distinct.values())
        ranks = self._order.choose(
            list(distinct), sizes=[len(text) for text in distinct], cache_salt=scope.tenant_id
        )
        shown = [best_first[rank] for rank in ranks]
        return shown, {**body, "messages": with_passages(body["messages"], shown, ranks=ranks)}

    def _collection_ids(self, scope: Scope, grounding: Grounding) -> list[str] | None:
        if grounding.collections is None:
            return None
        with self._database.read() as session:
            return [find_collection(session, scope, each).id for each in grounding.collections]

    def _passages(self, scope: Scope, candidates: Candidates, grounding: Grounding) -> list[Passage]:
        with self._database.read() as session:
            return load_passages(
                session,
                scope,
                candidates.chunks,
                limit=min(grounding.max_num_results or self._settings.passages, self._settings.passages),
                token_budget=self._settings.passage_tokens,
            )

    def _defaults(self, body: Json) -> Json:
        """What an answer from documents should be when the request leaves it open: exact, and of some end."""
        defaults: Json = {"temperature": self._settings.temperature}
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            defaults["max_completion_tokens"] = self._settings.answer_tokens
        return defaults

    def _annotations(self, request: GroundedRequest, citations: Sequence[Citation]) -> list[Json]:
        return [self._annotation(request, citation) for citation in citations]

    def _annotation(self, request: GroundedRequest, citation: Citation) -> Json:
        passage = citation.passage
        place = CitedPlace(
            key_id=request.scope.key_id,
            collection_id=passage.collection_id,
            file_id=passage.file_id,
            start_char=citation.start_char,
            end_char=citation.end_char,
            page=citation.page,
        )
        return {
            "type": "url_citation",
            "url_citation": {
                "start_index": citation.start_index,
                "end_index": citation.end_index,
                "title": passage.filename,
                "url": self._links.sign(place, now=self._clock()),
            },
            "index": citation.number,
            "file_id": passage.file_id,
            "filename": passage.filename,
            "quote": citation.quote,
            "page": citation.page,
            "start_char": citation.start_char,
            "end_char": citation.end_char,
            "boxes": [
                {"page": page, "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1}
                for page, box in citation.boxes
            ],
            "score": round(citation.score, 4),
        }

    def _nothing_found(self, request: GroundedRequest) -> Json:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": NOTHING_FOUND, "annotations": []},
                "finish_reason": "stop",
                "logprobs": None,
            }
            for index in range(request.body.get("n") or 1)
        ]
        return {
            **self._head(request, "chat.completion"),
            "choices": choices,
            "usage": _NO_USAGE,
            "grounded": False,
        }

    def _nothing_found_events(self, request: GroundedRequest) -> list[bytes]:
        head = self._head(request, "chat.completion.chunk")
        events = []
        for index in range(request.body.get("n") or 1):
            said = {"role": "assistant", "content": NOTHING_FOUND, "annotations": []}
            for delta, reason in ((said, None), ({}, "stop")):
                choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
                events.append(_event({**head, "choices": [choice], "grounded": False}))
        if (request.body.get("stream_options") or {}).get("include_usage"):
            events.append(_event({**head, "choices": [], "usage": _NO_USAGE}))
        return [*events, b"data: [DONE]\n\n"]

    def _head(self, request: GroundedRequest, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(self._clock()),
            "model": request.model,
        }


_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def bears_on(question: str, candidates: Candidates, *, min_similarity: float) -> bool:
    """Whether what was found has to do with the question at all.

    A cosine compares across questions, which fused scores do not. Identifiers such as E-4031 mean little to an
    embedding model, so a chunk that holds one that was asked for bears on the question too.
    """
    if candidates.best_similarity >= min_similarity:
        return True
    identifiers = [
        word for word in question.split() if any(c.isdigit() for c in word) and any(c.isalpha() for c in word)
    ]
    return any(
        each.strip("?.,!").lower() in chunk.text.lower()
        for each in identifiers
        for chunk in candidates.chunks
    )


def _writer(request: GroundedRequest) -> CitationWriter:
    wanted: Mapping[str, Any] = request.body.get("response_format") or {}
    return CitationWriter(request.passages, insert_markers=wanted.get("type", "text") == "text")


def lost_event(error: EngineUnavailable) -> bytes:
    """Ends a stream that is not whole, in place of [DONE]."""
    told = {"message": str(error), "type": "server_error", "param": None, "code": "engine_lost"}
    return _event({"error": told})


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event, wherever the network cut the bytes."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def _event(content: Json) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
