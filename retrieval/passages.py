"""Passages: the best chunks with their neighbours, as the language model reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Integer, case, cast, func, select
from sqlalchemy.orm import Session

from retrieval.places import Place, places_from_rows
from retrieval.scope import Scope
from retrieval.search import FoundChunk
from retrieval.tables import Chunk, Document, DocumentStatus, File, ParsedPart


@dataclass(frozen=True)
class Passage:
    """A stretch of one document: `text` is exactly the document's text from start_char to end_char."""

    document_id: int
    collection_id: str
    file_id: str
    filename: str
    text: str
    start_char: int
    end_char: int
    headings: tuple[str, ...]
    places: tuple[Place, ...]
    score: float


@dataclass
class _Run:
    """Neighbouring chunk positions that become one passage."""

    best: FoundChunk
    first: int
    last: int


def load_passages(
    session: Session, scope: Scope, chunks: Sequence[FoundChunk], *, limit: int, token_budget: int
) -> list[Passage]:
    """Passages for the best of `chunks`, best first, of about `token_budget` tokens in all and at least one.

    A neighbour is taken in while the budget lasts: an answer often stands one paragraph beside the words that
    were asked for.
    """
    chosen = _within_budget(chunks, limit=limit, token_budget=token_budget)
    spare = token_budget - sum(chunk.token_count for chunk in chosen)
    runs: list[_Run] = []
    for chunk in chosen:
        first, last, cost = _neighbourhood(session, chunk, spare)
        spare -= cost
        _join(runs, _Run(best=chunk, first=first, last=last))
    return [passage for run in runs if (passage := _load(session, scope, run)) is not None]


def read_text(
    session: Session, scope: Scope, document_id: int, start_char: int = 0, end_char: int | None = None
) -> str | None:
    """The document's text between two offsets, or all; None when the scope sees no such document."""
    file = session.execute(
        select(File.blob_id, File.media_type)
        .join(Document, Document.file_id == File.id)
        .where(
            Document.id == document_id,
            Document.tenant_id == scope.tenant_id,
            Document.status == DocumentStatus.COMPLETED,
        )
    ).one_or_none()
    if file is None:
        return None
    of_file = (ParsedPart.blob_id == file.blob_id, ParsedPart.media_type == file.media_type)
    first = select(func.max(ParsedPart.start_char)).where(*of_file, ParsedPart.start_char <= start_char)
    # Cut in SQL: a part is long, and a quote is short.
    begin = case((ParsedPart.start_char < start_char, start_char - ParsedPart.start_char), else_=0)
    piece = (
        func.substr(ParsedPart.text, cast(begin + 1, Integer))
        if end_char is None
        else func.substr(
            ParsedPart.text,
            cast(begin + 1, Integer),
            cast(end_char - ParsedPart.start_char - begin, Integer),
        )
    )
    pieces = select(piece).where(*of_file, ParsedPart.start_char >= first.scalar_subquery())
    if end_char is not None:
        pieces = pieces.where(ParsedPart.start_char < end_char)
    return "".join(session.scalars(pieces.order_by(ParsedPart.number)))


def _within_budget(chunks: Sequence[FoundChunk], *, limit: int, token_budget: int) -> list[FoundChunk]:
    chosen: list[FoundChunk] = []
    used = 0
    for chunk in chunks[:limit]:
        if chosen and used + chunk.token_count > token_budget:
            continue
        chosen.append(chunk)
        used += chunk.token_count
    return chosen


def _neighbourhood(session: Session, chunk: FoundChunk, spare_tokens: int) -> tuple[int, int, int]:
    """First and last position around a chunk within the spare tokens, and their cost."""
    rows = session.execute(
        select(Chunk.position, Chunk.token_count).where(
            Chunk.document_id == chunk.document_id,
            Chunk.generation == chunk.generation,
            Chunk.position.in_([chunk.position - 1, chunk.position + 1]),
        )
    )
    first = last = chunk.position
    cost = 0
    for position, token_count in sorted(rows.all(), reverse=True):
        if cost + token_count <= spare_tokens:
            first, last, cost = min(first, position), max(last, position), cost + token_count
    return first, last, cost


def _join(runs: list[_Run], new: _Run) -> None:
    """Adds a run, or joins it with all of the same document that it touches, at the best of their ranks."""
    touching = [
        run
        for run in runs
        if run.best.document_id == new.best.document_id
        and new.first <= run.last + 1
        and run.first <= new.last + 1
    ]
    if not touching:
        runs.append(new)
        return
    kept, *others = touching
    for other in (*others, new):
        kept.first, kept.last = min(kept.first, other.first), max(kept.last, other.last)
    for other in others:
        runs.remove(other)


def _load(session: Session, scope: Scope, run: _Run) -> Passage | None:
    rows = session.execute(
        select(Chunk.start_char, Chunk.end_char, Chunk.places)
        .where(
            Chunk.document_id == run.best.document_id,
            Chunk.generation == run.best.generation,
            Chunk.position.between(run.first, run.last),
        )
        .order_by(Chunk.position)
    ).all()
    if not rows:
        return None
    start, end = min(row.start_char for row in rows), max(row.end_char for row in rows)
    text = read_text(session, scope, run.best.document_id, start, end)
    if text is None:
        return None
    # Overlapping chunks share places.
    places = sorted({place for row in rows for place in places_from_rows(row.places)}, key=_by_start)
    return Passage(
        document_id=run.best.document_id,
        collection_id=run.best.collection_id,
        file_id=run.best.file_id,
        filename=run.best.filename,
        text=text,
        start_char=start,
        end_char=end,
        headings=run.best.headings,
        places=tuple(places),
        score=run.best.score,
    )


def _by_start(place: Place) -> tuple[int, int]:
    return place.start_char, place.end_char
