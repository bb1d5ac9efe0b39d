"""The chat journey: find passages for the last question, ask the engine, check its answer's citations."""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import orjson

from app.answers.checking import Checker
from app.answers.citations import Citation, CitedAnswer, Shown, cited_stream, cited_whole
from app.answers.generation import CHAT_PATH, GenerationModel, GenerationModels, Generator
from app.answers.links import CitedPlace, LinkSigner
from app.answers.prompt import as_prefix, fitting, passage_text, text_of, with_passages, without_passages
from app.answers.questions import Asked, Questions, merged
from app.answers.refusal import not_said_of, refusal
from app.edge.streaming import DONE, as_event, events_together
from app.settings import ChatSettings
from app.upkeep.activity import Activity
from retrieval.catalog import find_collection
from retrieval.database import Database
from retrieval.evidence import Calibration, Evidence, weigh
from retrieval.filters import Filter
from retrieval.passages import Passage, load_passages
from retrieval.rankings import Fusion
from retrieval.scope import Scope
from retrieval.search import Candidates, Searcher, SearchOptions
from retrieval.stages import Stages
from retrieval.together import together
from serving.generation.gateway import Reply
from serving.generation.passage_order import PassageOrder
from serving.protocols import EngineUnavailable, Lane, Reranker

RAG_MODEL = "rag"
EVENTS = "text/event-stream"
SEARCH_DEPTH = 12
"""Chunks that compete for the passages."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Grounding:
    """Where a chat is to look for its answer. `collections` None is all that the key may read."""

    collections: tuple[str, ...] | None
    filters: Filter | None = None
    max_num_results: int | None = None
    fusion: Fusion = Fusion.WEIGHTED
    dense_weight: float | None = None
    """None leaves it to the settings."""
    score_threshold: float = 0.0
    reranks: bool = True


@dataclass(frozen=True)
class GroundedRequest:
    """An engine's request with its passages in it. No passages: nothing bears on the question."""

    body: Json
    model: str
    asked: Asked
    evidence: float
    """How likely what was found bears on it, 0..1; of several queries, the one that found most."""
    not_covered: tuple[str, ...]
    """Of the things asked, those that nothing bears on."""
    passages: tuple[Passage, ...]
    """As the prompt shows them: [n] is the n-th."""
    has_tools: bool
    """Whether the engine is asked although nothing bears on the question: the client's own tools may answer it."""
    scope: Scope
    lane: Lane
    stages: Stages

    @property
    def asks_engine(self) -> bool:
        return bool(self.passages) or self.has_tools

    def told(self) -> Json:
        """The fields of a reply that say what was searched, and what came of it."""
        told = {**self.asked.told(), "evidence": round(self.evidence, 4)}
        if self.not_covered:
            told["not_covered"] = list(self.not_covered)
        if (tier := self.body.get("service_tier")) is not None:
            told["service_tier"] = "flex" if tier in ("flex", "batch") else "default"
        return told


class EngineRefused(Exception):
    """The engine answered with an error, whose status and body go to the client as they are."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"The engine answered {status}.")
        self.status = status
        self.body = body


class EngineNotUnderstood(EngineUnavailable):
    """What answers in the engine's place has another form: a proxy's page, or an address that is no engine's."""

    def __init__(self) -> None:
        super().__init__("The engine's reply is not of OpenAI's form. See what stands at engine.url.")


class Chat:
    """Answers from documents. Plain chats do not come here: they go through the gateway untouched."""

    def __init__(
        self,
        database: Database,
        searcher: Searcher,
        generator: Generator,
        models: GenerationModels,
        links: LinkSigner,
        activity: Activity,
        settings: ChatSettings,
        *,
        calibration: Calibration,
        dense_weight: float,
        reranker: Reranker | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._searcher = searcher
        self._generator = generator
        self._models = models
        self._questions = Questions(generator, settings)
        self._links = links
        self._activity = activity
        self._settings = settings
        self._calibration = calibration
        self._dense_weight = dense_weight
        self._reranker = reranker
        self._clock = clock
        self._order = PassageOrder()

    async def prepare(
        self,
        scope: Scope,
        body: Json,
        grounding: Grounding,
        *,
        model: str,
        lane: Lane,
        stages: Stages,
        said: Sequence[Json] | None = None,
        deadline_s: float | None = None,
    ) -> GroundedRequest:
        """Searches for the last question and writes the prompt. `body` is already checked. Raises PromptTooLong, and
        Overloaded before it searches for a question that no engine could answer in time.

        `said` are its messages without the files that they show, whose text is no part of a question.
        """
        self._generator.must_have_room(model, tenant=scope.tenant_id, lane=lane, deadline_s=deadline_s)
        texts = [text_of(message.get("content")) for message in body["messages"]]
        await self._models.must_fit(model, tenant=scope.tenant_id, texts=texts)
        collection_ids = await asyncio.to_thread(self._collection_ids, scope, grounding)
        with stages.measure("rewrite"):
            asked = await self._questions.read(
                body["messages"] if said is None else said, model=model, tenant=scope.tenant_id, lane=lane
            )
        found = await self._search(scope, asked, collection_ids, grounding, lane=lane, stages=stages)
        self._activity.note(scope, collection_ids)
        passages: Sequence[Passage] = ()
        evidence = [weigh(each.signals, self._calibration) for each in found if each.signals is not None]
        telling = [each for each, weighed in zip(found, evidence, strict=True) if weighed.is_enough]
        has_tools = _has_tools(body)
        if telling:
            candidates = merged(telling, limit=SEARCH_DEPTH)
            with stages.measure("passages"):
                sample = "\n".join(chunk.text for chunk in candidates.chunks)
                reader = await self._models.of(model, tenant=scope.tenant_id, sample=sample)
                passages = await asyncio.to_thread(self._passages, scope, candidates, grounding, reader)
            with stages.measure("prompt"):
                if passages:
                    passages, body = self._with_passages(scope, body, passages, reader)
        if not passages and has_tools:
            reader = await self._models.of(model, tenant=scope.tenant_id, sample="")
            messages = without_passages(body["messages"], takes_system=reader.takes_system)
            body = {**body, "messages": messages}
        return GroundedRequest(
            body={**self._defaults(body), **body, "model": model},
            model=model,
            asked=asked,
            evidence=max(each.score for each in evidence),
            not_covered=_not_covered(asked, evidence),
            passages=tuple(passages),
            has_tools=has_tools,
            scope=scope,
            lane=lane,
            stages=stages,
        )

    async def _search(
        self,
        scope: Scope,
        asked: Asked,
        collection_ids: Sequence[str] | None,
        grounding: Grounding,
        *,
        lane: Lane,
        stages: Stages,
    ) -> list[Candidates]:
        """What each query finds."""
        options = SearchOptions(
            limit=SEARCH_DEPTH,
            fusion=grounding.fusion,
            dense_weight=self._dense_weight if grounding.dense_weight is None else grounding.dense_weight,
            score_threshold=grounding.score_threshold,
            filters=grounding.filters,
            rerank=grounding.reranks,
            weighs=True,
        )
        async with together() as tasks:
            searches = [
                tasks.create_task(
                    self._searcher.search(
                        scope,
                        query,
                        collection_ids=collection_ids,
                        options=options,
                        lane=lane,
                        stages=stages,
                    )
                )
                for query in asked.queries
            ]
        return [search.result() for search in searches]

    async def complete(self, request: GroundedRequest, *, deadline_s: float | None = None) -> Json:
        """A whole chat.completion. Raises EngineUnavailable, EngineRefused, Overloaded."""
        if not request.asks_engine:
            return self._nothing_found(request)
        with request.stages.measure("generate"):
            async with self._send(request, deadline_s=deadline_s) as reply:
                raw = await reply.read()
                if reply.status != 200:
                    raise EngineRefused(reply.status, raw)
        completion, choices = _read_completion(raw)
        checker = self._checker(request)
        grounded = False
        for choice in choices:
            message = choice["message"]
            if isinstance(written := message.get("content"), str):
                message["content"], answer = await cited_whole(checker, written, is_prose=_is_prose(request))
                if tokens := _tokens_of(choice):
                    answer.note_tokens(written, tokens)
                    choice["logprobs"]["content"] = answer.take_tokens(final=True)
                message["annotations"] = self._annotations(request, answer.citations)
                message |= _told_of(answer)
                message["content"] += _rest(request)
                grounded = grounded or bool(answer.citations)
        return {**completion, **request.told(), "grounded": grounded}

    async def stream(self, request: GroundedRequest) -> AsyncGenerator[bytes]:
        """Server-sent events. The first is only given once the engine has accepted the request.

        Raises EngineUnavailable, EngineRefused or Overloaded before the first event; later losses end the stream
        with an error event and without [DONE], so that a cut answer is never taken for a whole one.
        """
        if not request.asks_engine:
            for event in self._nothing_found_events(request):
                yield event
            return
        async with self._send(request, deadline_s=None) as reply:
            if reply.status != 200:
                raise EngineRefused(reply.status, await reply.read())
            must_be_events(reply)
            checker = self._checker(request)
            answers: dict[int, CitedAnswer] = {}
            told = request.told()
            try:
                async for together in events_together(reply.chunks()):
                    async for events in self._cited_together(request, together, checker, answers, told):
                        yield events
            except EngineUnavailable as error:
                yield lost_event(error)
            except orjson.JSONDecodeError:
                yield lost_event(EngineNotUnderstood())
            finally:
                for answer in answers.values():
                    await answer.close()

    async def _cited_together(
        self,
        request: GroundedRequest,
        together: Sequence[bytes],
        checker: Checker,
        answers: dict[int, CitedAnswer],
        told: Json,
    ) -> AsyncIterator[bytes]:
        """What came in one piece goes on in one, but for what would wait for the check of a sentence behind it.

        An engine that is faster than the checks has many sentences in a piece: from the first one's end on, they
        are checked all at once.
        """
        ready: list[bytes] = []
        has_logprobs = bool(request.body.get("logprobs"))
        chunks = [None if data == DONE else orjson.loads(data) for data in together]
        has_looked_ahead = False

        def event(chunk: Json) -> bytes:
            written = _event({**chunk, **told})
            told.clear()
            return written

        for place, (data, chunk) in enumerate(zip(together, chunks, strict=True)):
            if chunk is None:
                ready.append(as_event(DONE))
                continue
            if not told and not has_logprobs and _passes(chunk, answers):
                ready.append(as_event(data))
                continue
            if self._cite_at_once(request, chunk, checker, answers):
                ready.append(event(chunk))
                continue
            is_last = any(choice.get("finish_reason") for choice in chunk["choices"])
            if ready and (is_last or not has_looked_ahead):
                yield b"".join(ready)
                ready = []
            if not has_looked_ahead:
                await self._look_ahead(request, chunks[place:], checker, answers)
                has_looked_ahead = True
            async for each in self._cited(request, chunk, checker, answers):
                if is_last:
                    yield event(each)
                else:
                    ready.append(event(each))
        if ready:
            yield b"".join(ready)

    async def _look_ahead(
        self,
        request: GroundedRequest,
        chunks: Sequence[Json | None],
        checker: Checker,
        answers: dict[int, CitedAnswer],
    ) -> None:
        texts: dict[int, list[str]] = defaultdict(list)
        for chunk in chunks:
            for choice in (chunk or {}).get("choices", ()):
                text = (choice.get("delta") or {}).get("content")
                if isinstance(text, str):
                    _answer_of(choice, answers, checker, is_prose=_is_prose(request))
                    texts[choice["index"]].append(text)
        for index, pieces in texts.items():
            await answers[index].look_ahead("".join(pieces))

    def _cite_at_once(
        self, request: GroundedRequest, chunk: Json, checker: Checker, answers: dict[int, CitedAnswer]
    ) -> bool:
        """Makes a chunk of the engine one of ours where no sentence ends in it: most are so. Else leaves it."""
        choices = chunk.get("choices", [])
        if len(choices) != 1 or choices[0].get("finish_reason"):
            return not choices
        (choice,) = choices
        answer = _answer_of(choice, answers, checker, is_prose=_is_prose(request))
        delta = choice.get("delta") or {}
        if not isinstance(delta.get("content"), str):
            return True
        shown = answer.feed_at_once(delta["content"])
        if shown is None:
            return False
        _note_tokens(request, answer, choice)
        delta |= self._delta(request, shown, answer)
        if choice.get("logprobs"):
            choice["logprobs"] = _logprobs(answer)
        return True

    async def _cited(
        self, request: GroundedRequest, chunk: Json, checker: Checker, answers: dict[int, CitedAnswer]
    ) -> AsyncIterator[Json]:
        """One chunk of the engine as one or more of ours: annotations come with what follows their sentence."""
        choices = chunk.get("choices", [])
        for choice in choices:
            _answer_of(choice, answers, checker, is_prose=_is_prose(request))
        if any(choice.get("finish_reason") for choice in choices):
            async for delta in self._last(request, chunk, answers):
                yield delta
            return
        rest: list[tuple[Json, AsyncIterator[Shown]]] = []
        for choice in choices:
            answer, delta = answers[choice["index"]], choice.get("delta") or {}
            if isinstance(delta.get("content"), str):
                _note_tokens(request, answer, choice)
                pieces = answer.feed(delta["content"])
                delta |= self._delta(request, await anext(pieces, Shown("")), answer)
                if choice.get("logprobs"):
                    choice["logprobs"] = _logprobs(answer)
                rest.append((choice, pieces))
        yield chunk
        for choice, pieces in rest:
            answer = answers[choice["index"]]
            async for shown in pieces:
                yield _beside(chunk, choice, self._delta(request, shown, answer), _logprobs(answer))

    async def _last(
        self, request: GroundedRequest, chunk: Json, answers: dict[int, CitedAnswer]
    ) -> AsyncIterator[Json]:
        """All that is left of each choice that ends with this chunk, what is known of its sentences, and the chunk."""
        for choice in chunk["choices"]:
            answer, delta = answers[choice["index"]], choice.get("delta") or {}
            if delta.get("content"):
                _note_tokens(request, answer, choice)
                choice["logprobs"] = None
                async for shown in answer.feed(delta.pop("content")):
                    yield _beside(chunk, choice, self._delta(request, shown, answer), _logprobs(answer))
            if choice.get("finish_reason") and answer.started:
                async for shown in answer.finish():
                    yield _beside(chunk, choice, self._delta(request, shown, answer), _logprobs(answer))
                last = {"content": _rest(request), **_told_of(answer)}
                closing = _beside(chunk, choice, last, _logprobs(answer, final=True))
                yield {**closing, "grounded": bool(answer.citations)}
        yield chunk

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
        self, scope: Scope, body: Json, passages: Sequence[Passage], reader: GenerationModel
    ) -> tuple[Sequence[Passage], Json]:
        """The passages in the order in which the prompt shows them, and the request with that prompt."""
        # Two documents may hold the same under one name.
        distinct: dict[str, Passage] = {}
        for passage in passages:
            distinct.setdefault(passage_text(passage), passage)
        answer_tokens = body.get("max_completion_tokens") or body.get("max_tokens")
        best_first = fitting(
            list(distinct.values()),
            body,
            model=reader,
            answer_tokens=answer_tokens or self._settings.answer_tokens,
        )
        texts = [passage_text(passage) for passage in best_first]
        ranks = self._order.choose(texts, sizes=[len(text) for text in texts], cache_salt=scope.cache_salt)
        shown = [best_first[rank] for rank in ranks]
        messages = with_passages(
            body["messages"],
            shown,
            ranks=ranks,
            takes_system=reader.takes_system,
            has_tools=_has_tools(body),
        )
        return shown, {**body, "messages": messages}

    def _collection_ids(self, scope: Scope, grounding: Grounding) -> list[str] | None:
        if grounding.collections is None:
            return None
        with self._database.read() as session:
            return [find_collection(session, scope, each).id for each in grounding.collections]

    def _passages(
        self, scope: Scope, candidates: Candidates, grounding: Grounding, reader: GenerationModel
    ) -> list[Passage]:
        with self._database.read() as session:
            return load_passages(
                session,
                scope,
                candidates.chunks,
                limit=min(grounding.max_num_results or self._settings.passages, self._settings.passages),
                token_budget=self._settings.passage_tokens,
                count_tokens=reader.count_tokens,
            )

    def _defaults(self, body: Json) -> Json:
        """What an answer from documents should be when the request leaves it open: exact, and of some end."""
        defaults: Json = {"temperature": self._settings.temperature}
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            defaults["max_completion_tokens"] = self._settings.answer_tokens
        return defaults

    def _checker(self, request: GroundedRequest) -> Checker:
        return Checker(
            self._database,
            request.scope,
            request.passages,
            question=request.asked.question,
            reranker=self._reranker,
            lane=request.lane,
        )

    def _delta(self, request: GroundedRequest, shown: Shown, answer: CitedAnswer) -> Json:
        """What is shown next. Annotations are told once; clients put them together by their `index`."""
        if not shown.citations:
            return {"content": shown.text}
        first = answer.citations.index(shown.citations[0])
        return {
            "content": shown.text,
            "annotations": self._annotations(request, shown.citations, first=first),
        }

    def _annotations(
        self, request: GroundedRequest, citations: Sequence[Citation], *, first: int = 0
    ) -> list[Json]:
        return [self._annotation(request, citation, index) for index, citation in enumerate(citations, first)]

    def _annotation(self, request: GroundedRequest, citation: Citation, index: int) -> Json:
        support = citation.support
        passage = support.passage
        place = CitedPlace(
            key_id=request.scope.key_id,
            collection_id=passage.collection_id,
            file_id=passage.file_id,
            start_char=support.start_char,
            end_char=support.end_char,
            page=support.page,
        )
        return {
            "index": index,
            "type": "url_citation",
            "url_citation": {
                "start_index": citation.start_index,
                "end_index": citation.end_index,
                "title": passage.filename,
                "url": self._links.sign(place, now=self._clock()),
            },
            "number": support.number,
            "file_id": passage.file_id,
            "filename": passage.filename,
            "quote": support.quote,
            "page": support.page,
            "start_char": support.start_char,
            "end_char": support.end_char,
            "boxes": [
                {"page": page, "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1}
                for page, box in support.boxes
            ],
            "score": round(support.score, 4),
            "judge": support.judge.value,
        }

    def _nothing_found(self, request: GroundedRequest) -> Json:
        choices = [
            {
                "index": index,
                "message": _refusing(request),
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
            for delta, reason in ((_refusing(request), None), ({}, "stop")):
                choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
                events.append(_event({**head, "choices": [choice], "grounded": False}))
        if (request.body.get("stream_options") or {}).get("include_usage"):
            events.append(_event({**head, "choices": [], "usage": _NO_USAGE}))
        return [*events, as_event(DONE)]

    def _head(self, request: GroundedRequest, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(self._clock()),
            "model": request.model,
            **request.told(),
        }


_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _refusing(request: GroundedRequest) -> Json:
    """A message. One who asked for JSON is told in the field that OpenAI has for it, as the text would be none."""
    said = refusal(request.asked.question)
    content, refused = (said, None) if _is_prose(request) else (None, said)
    return {"role": "assistant", "content": content, "refusal": refused, "annotations": []}


def _has_tools(body: Json) -> bool:
    """Whether the client's own tools may answer, or one of them has."""
    answered = body["messages"][-1].get("role") == "tool"
    return answered or (bool(body.get("tools")) and body.get("tool_choice") != "none")


def _not_covered(asked: Asked, evidence: Sequence[Evidence]) -> tuple[str, ...]:
    weighed = zip(asked.parts, evidence, strict=False)
    return tuple(part for part, each in weighed if not each.is_enough)


def _rest(request: GroundedRequest) -> str:
    """What an answer ends with where nothing bears on some of the things asked."""
    if not request.not_covered or not _is_prose(request):
        return ""
    return f"\n\n{not_said_of(request.not_covered)}"


def _is_prose(request: GroundedRequest) -> bool:
    """Whether the answer may get markers: not where the request asks for a form that they would break."""
    wanted: Mapping[str, Any] = request.body.get("response_format") or {}
    return wanted.get("type", "text") == "text" and request.body.get("structured_outputs") is None


def _told_of(answer: CitedAnswer) -> Json:
    """Fields of a message that say which of its sentences nothing supports, and how many there are of each kind."""
    return {
        "unsupported": [{"start_index": span.start, "end_index": span.end} for span in answer.unsupported],
        "support": answer.counts,
    }


def _beside(chunk: Json, choice: Json, delta: Json, logprobs: Json | None) -> Json:
    """A chunk of ours beside one of the engine, which alone has the usage."""
    ours = {"index": choice["index"], "delta": delta, "logprobs": logprobs, "finish_reason": None}
    return {**chunk, "choices": [ours], **({"usage": None} if "usage" in chunk else {})}


def _passes(chunk: Json, answers: Mapping[int, CitedAnswer]) -> bool:
    """Whether a chunk of the engine, whose text was taken then, is to be sent as it came: nearly all are."""
    choices = chunk.get("choices", ())
    if len(choices) != 1:
        return False
    (choice,) = choices
    if choice.get("finish_reason") or choice.get("logprobs") or choice["index"] not in answers:
        return False
    text = (choice.get("delta") or {}).get("content")
    return isinstance(text, str) and answers[choice["index"]].passes(text)


def _answer_of(
    choice: Json, answers: dict[int, CitedAnswer], checker: Checker, *, is_prose: bool
) -> CitedAnswer:
    """That of a choice, from its first chunk on."""
    index = choice["index"]
    if index not in answers:
        answers[index] = cited_stream(checker, is_prose=is_prose)
    return answers[index]


def _tokens_of(choice: Json) -> list[Json]:
    return (choice.get("logprobs") or {}).get("content") or []


def _note_tokens(request: GroundedRequest, answer: CitedAnswer, choice: Json) -> None:
    if request.body.get("logprobs"):
        # The text is noted without tokens too: the engine may tell them in another chunk.
        answer.note_tokens(choice["delta"]["content"], _tokens_of(choice))


def _logprobs(answer: CitedAnswer, *, final: bool = False) -> Json | None:
    tokens = answer.take_tokens(final=final)
    return {"content": tokens, "refusal": None} if tokens else None


def must_be_events(reply: Reply) -> None:
    """Raises EngineNotUnderstood: a page in a stream's place would look like an answer without words."""
    if not reply.content_type.startswith(EVENTS):
        raise EngineNotUnderstood


def _read_completion(raw: bytes) -> tuple[Json, list[Json]]:
    """With its choices. Raises EngineNotUnderstood."""
    try:
        completion: Json = orjson.loads(raw)
        choices: list[Json] = completion["choices"]
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        raise EngineNotUnderstood from error
    return completion, choices


def lost_event(error: EngineUnavailable) -> bytes:
    """Ends a stream that is not whole, in place of [DONE]."""
    told = {"message": str(error), "type": "server_error", "param": None, "code": "engine_lost"}
    return _event({"error": told})


def _event(content: Json) -> bytes:
    return as_event(orjson.dumps(content))
