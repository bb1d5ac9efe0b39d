"""The search lab: what one query finds by meaning, by words, fused and reranked, side by side; sets of questions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from app.access.retention import must_not_keep
from app.console.session import SignedIn, SignedInToAsk, SignedInWriter, Visitor
from app.console.views import ConsoleRoute, views_of
from app.errors import BadRequest
from app.evaluation.questions import Passage, Question, as_line
from app.routes.body import Body, read_model
from app.routes.caller import UseServices
from app.routes.filters import FilterBody
from app.services import Services
from retrieval import audit, catalog
from retrieval.catalog import NotFound, PageRequest
from retrieval.evidence import weigh
from retrieval.filters import Filter
from retrieval.passages import read_text
from retrieval.rankings import Fusion
from retrieval.saved_questions import RightPlace, Saved, delete_question, list_saved, save_question
from retrieval.scope import Scope
from retrieval.search import FoundChunk, SearchOptions
from retrieval.stages import Stages
from retrieval.tables import AuditEvent
from serving.departure import unless_departed

router = APIRouter(prefix="/console/search", include_in_schema=False, route_class=ConsoleRoute)

DEPTH = 50
SHOWN = 10
MOST_COLLECTIONS = 1000
MOST_RIGHT = 200


@dataclass(frozen=True)
class Standing:
    """A chunk in one of the rankings. `moved` is by how many places it rose since the one before."""

    chunk: FoundChunk
    rank: int
    score: float
    moved: int | None = None


@router.get("")
def search_page(request: Request, services: UseServices, visitor: SignedIn) -> Response:
    with services.database.read() as session:
        page = PageRequest(limit=MOST_COLLECTIONS)
        collections = catalog.list_collections(session, visitor.scope, page)
        sets = list_saved(session, visitor.scope)
    return views_of(request).page(
        "search.html",
        visitor,
        sets=sets,
        collections=collections,
        fusions=list(Fusion),
        has_reranker=bool(services.settings.models.rerankers),
        dense_weight=services.settings.search.dense_weight,
    )


@router.post("")
async def search(
    request: Request,
    services: UseServices,
    visitor: SignedInToAsk,
    query: Annotated[str, Form(min_length=1, max_length=10_000, pattern=r"\S")],
    dense_weight: Annotated[float, Form(ge=0, le=1)],
    fusion: Annotated[Fusion, Form()] = Fusion.WEIGHTED,
    collection: Annotated[str, Form()] = "",
    reranks: Annotated[bool, Form()] = False,
    filters: Annotated[str, Form(max_length=20_000)] = "",
) -> Response:
    stages = Stages()
    options = SearchOptions(
        limit=DEPTH,
        fusion=fusion,
        dense_weight=dense_weight,
        filters=_filter(filters),
        rerank=reranks,
        weighs=True,
    )
    found = await unless_departed(
        request.receive,
        services.searcher.search(
            visitor.scope,
            query,
            collection_ids=[collection] if collection else None,
            options=options,
            stages=stages,
        ),
    )
    read = dict.fromkeys(chunk.file_id for chunk in found.chunks)
    asked = services.audit.keyed_hash(query)
    services.audit.note(visitor.scope, AuditEvent.SEARCH, (collection, *read), query=asked)
    evidence = weigh(found.signals, services.calibration) if found.signals is not None else None
    shown = views_of(request).render(
        "found.html",
        query=query,
        may_write=visitor.scope.may_write,
        columns=columns_of(found.chunks),
        times=[(name, 1000 * seconds) for name, seconds in stages],
        evidence=evidence,
    )
    return Response(shown, media_type="text/html; charset=utf-8")


@router.post("/questions")
def save(
    request: Request,
    services: UseServices,
    visitor: SignedInWriter,
    query: Annotated[str, Form(min_length=1, max_length=10_000, pattern=r"\S")],
    set_name: Annotated[str, Form(min_length=1, max_length=80, pattern=r"^\w[\w .-]*$")],
    answer: Annotated[str, Form(max_length=2000)] = "",
    right: Annotated[list[str], Form(max_length=MOST_RIGHT)] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """With the passages that answer it, or as one that no document answers."""
    must_not_keep(visitor.scope, "query")
    if bool(right) != bool(answer.strip()):
        raise BadRequest(
            "Tick the passages that answer it and write the answer; or neither, if no document answers it.",
            param="answer" if right else "right",
        )
    # In several columns a passage stands several times.
    places = [_place(each) for each in dict.fromkeys(right)]
    with services.database.write() as session:
        question_id = save_question(
            session,
            visitor.scope,
            set_name=set_name,
            question=query,
            answer=answer.strip() or None,
            places=places,
            now=time.time(),
        )
        audit.record(session, AuditEvent.QUESTION_ADDED, question_id, scope=visitor.scope)
    return _sets(request, services, visitor)


@router.delete("/questions/{question_id}")
def delete(question_id: str, request: Request, services: UseServices, visitor: SignedInWriter) -> Response:
    with services.database.write() as session:
        delete_question(session, visitor.scope, question_id)
        audit.record(session, AuditEvent.QUESTION_DELETED, question_id, scope=visitor.scope)
    return _sets(request, services, visitor)


@router.get("/sets/{set_name}")
def download(set_name: str, services: UseServices, visitor: SignedIn) -> Response:
    """A question file, as `strongroom eval` reads it."""
    with services.database.read() as session:
        saved = list_saved(session, visitor.scope).get(set_name, [])
        lines = [as_line(_as_question(session, visitor.scope, each)) for each in saved]
    if not lines:
        raise SetMissing(set_name)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(set_name)}.jsonl"}
    return Response(b"".join(lines), media_type="application/x-ndjson", headers=headers)


class SetMissing(NotFound):
    kind = "question set"


def _sets(request: Request, services: Services, visitor: Visitor) -> Response:
    with services.database.read() as session:
        sets = list_saved(session, visitor.scope)
    shown = views_of(request).render("question_sets.html", sets=sets, may_write=visitor.scope.may_write)
    return Response(shown, media_type="text/html; charset=utf-8")


def _as_question(session: Session, scope: Scope, saved: Saved) -> Question:
    if saved.answer is None:
        return Question(id=saved.id, question=saved.question, answerable=False)
    first = saved.rows[0]
    assert first.document_id is not None, "what is answered has places"
    assert first.start_char is not None, "a place has both"
    assert first.end_char is not None, "a place has both"
    text = read_text(session, scope, first.document_id, first.start_char, first.end_char) or ""
    return Question(
        id=saved.id,
        question=saved.question,
        answers=(saved.answer,),
        documents=tuple(saved.file_ids),
        answerable=True,
        passage=Passage(text=text, start_char=first.start_char, end_char=first.end_char),
    )


def _filter(written: str) -> Filter | None:
    """As the API takes it, in JSON. Raises BadRequest."""
    if not written.strip():
        return None
    try:
        sent = orjson.loads(written)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"filters: this is not JSON: {error}.", param="filters") from error
    return read_model(_Narrowed, {"filters": sent}).filters


class _Narrowed(Body):
    filters: FilterBody


def _place(told: str) -> RightPlace:
    match told.split("/"):
        case [collection_id, file_id, start, end] if start.isdigit() and end.isdigit():
            return RightPlace(collection_id, file_id, int(start[:15]), int(end[:15]))
    raise BadRequest("right: search again, and tick the passages anew.", param="right")


def columns_of(chunks: Sequence[FoundChunk]) -> dict[str, list[Standing]]:
    """Each ranking's best, by its name, as far as they are among the candidates."""
    by_meaning = _ranked(chunks, lambda chunk: chunk.dense_rank, lambda chunk: chunk.dense_score)
    by_words = _ranked(chunks, lambda chunk: chunk.keyword_rank, lambda chunk: chunk.keyword_score)
    fused = _ranked(chunks, lambda chunk: chunk.fused_rank, lambda chunk: chunk.fused_score)
    columns = {"By meaning": by_meaning, "By words (BM25)": by_words, "Fused": fused}
    if any(chunk.rerank_score is not None for chunk in chunks):
        columns["Reranked"] = [
            Standing(chunk, rank, chunk.score, chunk.fused_rank - rank)
            for rank, chunk in enumerate(chunks[:SHOWN], 1)
        ]
    return columns


def _ranked(
    chunks: Sequence[FoundChunk],
    rank_of: Callable[[FoundChunk], int | None],
    score_of: Callable[[FoundChunk], float | None],
) -> list[Standing]:
    ranked = [
        Standing(chunk, rank, score)
        for chunk in chunks
        if (rank := rank_of(chunk)) is not None and (score := score_of(chunk)) is not None
    ]
    return sorted(ranked, key=lambda each: each.rank)[:SHOWN]
