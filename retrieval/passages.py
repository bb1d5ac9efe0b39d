"""Passages: the best chunks with what stands around them, as the language model reads them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    BindParameter,
    Integer,
    Select,
    SQLColumnExpression,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import Session

from retrieval.access import readable_documents
from retrieval.duplicates import without_duplicates
from retrieval.places import Place, places_from_rows
from retrieval.scope import Scope
from retrieval.search import FoundChunk
from retrieval.tables import Chunk, Collection, Document, DocumentStatus, File, ParsedPart

TOKENS_A_CHUNK = 128
"""Few chunks have less; so far around a found one is looked for what the budget may hold."""
LEAST_AROUND, MOST_AROUND = 4, 32
"""Chunks on either side."""
RELEVANCE_SHARE = 0.7
"""What a chunk's score weighs against its likeness to those already chosen, where variety is wanted at all.
Source: maximal marginal relevance, Carbonell and Goldstein 1998.
"""
LEAST_SHARED = 0.5
"""A chunk of which so much stands in a better one, of the same file in another collection, is left out."""

CountTokens = Callable[[str], int]
"""As the model that reads the passages counts."""


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
    """Those above its best chunk; below them, for rows whose header row stands before the passage, that row."""
    places: tuple[Place, ...]
    score: float


@dataclass(frozen=True)
class _Piece:
    """A chunk as far as a passage needs it."""

    blob_id: str
    media_type: str
    text: str
    start_char: int
    end_char: int
    headings: tuple[str, ...]
    is_table: bool
    places: list[Any]

    @property
    def section(self) -> tuple[str, ...]:
        """The headings that it stands under, without the header row of a table that was cut."""
        if self.is_table and self.headings and " | " in self.headings[-1]:
            return self.headings[:-1]
        return self.headings

    def is_of_table(self, other: "_Piece") -> bool:
        """Whether two neighbours are rows of one table."""
        return self.is_table and other.is_table and self.section == other.section


_Shelf = Mapping[int, _Piece]
"""Chunks of one document around those that were found, by position."""


@dataclass(eq=False)
class _Run:
    """Neighbouring chunk positions that become one passage."""

    rank: int
    best: FoundChunk
    first: int
    last: int

    def positions(self) -> range:
        return range(self.first, self.last + 1)


def load_passages(
    session: Session,
    scope: Scope,
    chunks: Sequence[FoundChunk],
    *,
    limit: int,
    token_budget: int,
    count_tokens: CountTokens,
) -> list[Passage]:
    """Passages for the best `limit` of `chunks`, best first, of about `token_budget` tokens in all and at least one.

    Around each chunk stands what the budget allows: the whole table or section that it is of, then the paragraph
    beside it, since an answer often stands one paragraph beside the words that were asked for. Chunks share what
    is left of the budget by their scores; a table may take all of it. What two passages would both hold is read
    once. Two statements, and one more where one document would fill everything.
    """
    chosen, used = _chosen(session, chunks, limit=limit, token_budget=token_budget, count_tokens=count_tokens)
    if not chosen:
        return []
    reach = min(MOST_AROUND, LEAST_AROUND + token_budget // TOKENS_A_CHUNK)
    shelves = _shelves(session, scope, chosen, reach=reach)
    # What was deleted, or is ingested anew, since the search found it stands on no shelf.
    present = [chunk for chunk in chosen if chunk.position in shelves[chunk.document_id]]
    # To count what is around them as well would take longer than the statements do.
    tokens_a_char = used / sum(len(chunk.text) for chunk in chosen)
    runs = _grown(present, shelves, token_budget - used, tokens_a_char)
    return _read(session, runs, shelves)


def cut_to(passage: Passage, room: int, count_tokens: CountTokens) -> Passage:
    """The passage's beginning that takes at most `room` tokens, ended with a sentence or line, or else a word."""
    fits, most = 0, len(passage.text)
    while fits < most:
        middle = (fits + most + 1) // 2
        if count_tokens(passage.text[:middle]) <= room:
            fits = middle
        else:
            most = middle - 1
    if fits < len(passage.text):
        half = fits // 2
        end = max(passage.text.rfind("\n", half, fits), passage.text.rfind(". ", half, fits))
        fits = (end if end > 0 else max(passage.text.rfind(" ", half, fits), fits - 1)) + 1
    text = passage.text[:fits].rstrip()
    end_char = passage.start_char + len(text)
    places = tuple(
        replace(place, end_char=min(place.end_char, end_char))
        for place in passage.places
        if place.start_char < end_char
    )
    return replace(passage, text=text, end_char=end_char, places=places)


def read_text(
    session: Session, scope: Scope, document_id: int, start_char: int = 0, end_char: int | None = None
) -> str | None:
    """The document's text between two offsets, or all; None when the scope sees no such document."""
    file = session.execute(
        select(File.blob_id, File.media_type)
        .join(Document, Document.file_id == File.id)
        .where(
            Document.id == document_id,
            readable_documents(scope),
            Document.status == DocumentStatus.COMPLETED,
        )
    ).one_or_none()
    if file is None:
        return None
    rows = session.execute(stretch_of(file.blob_id, file.media_type, start_char, end_char))
    return "".join(text for _, _, text in sorted((number, part, text) for number, part, text in rows))


def page_range(session: Session, scope: Scope, document_id: int, page: int) -> tuple[int, int] | None:
    """Where a page begins and ends in the document's text, as its chunks have it; None when it has no such page."""
    rows = session.scalars(
        select(Chunk.places)
        .join(Document, Document.id == Chunk.document_id)
        .join(Collection, Collection.id == Chunk.collection_id)
        .where(
            Document.id == document_id,
            Document.tenant_id == scope.tenant_id,
            Document.status == DocumentStatus.COMPLETED,
            Chunk.generation == Collection.generation,
        )
    )
    on_page = [place for places in rows for place in places_from_rows(places) if place.page == page]
    if not on_page:
        return None
    return min(place.start_char for place in on_page), max(place.end_char for place in on_page)


def stretch_of(
    blob_id: str | SQLColumnExpression[str],
    media_type: str | SQLColumnExpression[str],
    start_char: int | BindParameter[int],
    end_char: int | BindParameter[int] | None,
    *,
    number: int = 0,
) -> Select[int, int, str]:
    """What each part of a parsed file holds of a range: `number`, the part's number, its text."""
    of_file = (ParsedPart.blob_id == blob_id, ParsedPart.media_type == media_type)
    begun = select(func.max(ParsedPart.start_char)).where(*of_file, ParsedPart.start_char <= start_char)
    first = begun.correlate(File).scalar_subquery()
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
    stretch = select(literal(number), ParsedPart.number, piece).where(
        *of_file, ParsedPart.start_char >= first
    )
    return stretch if end_char is None else stretch.where(ParsedPart.start_char < end_char)


def _chosen(
    session: Session,
    chunks: Sequence[FoundChunk],
    *,
    limit: int,
    token_budget: int,
    count_tokens: CountTokens,
) -> tuple[list[FoundChunk], int]:
    """The chunks that passages are made around, each text once, and their tokens."""
    distinct: list[FoundChunk] = []
    for chunk in without_duplicates(chunks):
        if not any(_holds(better, chunk) for better in distinct):
            distinct.append(chunk)
    if limit > 1 and _is_one_document(distinct[:limit]) and not _is_one_document(distinct):
        distinct = _varied(session, distinct, limit)
    chosen: list[FoundChunk] = []
    used = 0
    for chunk in distinct[:limit]:
        cost = count_tokens(chunk.text)
        if not chosen or used + cost <= token_budget:
            chosen.append(chunk)
            used += cost
    return chosen, used


def _holds(better: FoundChunk, chunk: FoundChunk) -> bool:
    """Whether most of a chunk stands in a better one, of the same file in another collection."""
    if better.file_id != chunk.file_id or better.document_id == chunk.document_id:
        return False
    shared = min(better.end_char, chunk.end_char) - max(better.start_char, chunk.start_char)
    return shared >= LEAST_SHARED * (chunk.end_char - chunk.start_char)


def _is_one_document(chunks: Sequence[FoundChunk]) -> bool:
    return len({chunk.document_id for chunk in chunks}) < 2


def _varied(session: Session, chunks: Sequence[FoundChunk], limit: int) -> list[FoundChunk]:
    """The best chunk, then those that score well and say something else than the ones before."""
    rows = session.execute(
        select(Chunk.id, Chunk.embedding).where(Chunk.id.in_([chunk.chunk_id for chunk in chunks]))
    )
    embeddings = {
        chunk_id: np.frombuffer(embedding, np.float16).astype(np.float32) for chunk_id, embedding in rows
    }
    left = [chunk for chunk in chunks if chunk.chunk_id in embeddings]
    likeness = dict.fromkeys(embeddings, 0.0)
    varied: list[FoundChunk] = []
    while left and len(varied) < limit:
        worth = [
            RELEVANCE_SHARE * chunk.score - (1 - RELEVANCE_SHARE) * likeness[chunk.chunk_id] for chunk in left
        ]
        chunk = left.pop(int(np.argmax(worth)))
        varied.append(chunk)
        for other in left:
            alike = _cosine(embeddings[chunk.chunk_id], embeddings[other.chunk_id])
            likeness[other.chunk_id] = max(likeness[other.chunk_id], alike)
    return varied


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of unit rows, each float32 (dimensions,). Vectors of two models do not compare: 0."""
    return float(one @ other) if one.shape == other.shape else 0.0


def _shelves(
    session: Session, scope: Scope, chosen: Sequence[FoundChunk], *, reach: int
) -> Mapping[int, _Shelf]:
    """For each document, the chosen chunks and up to `reach` on either side of each."""
    around = or_(
        *(
            and_(
                Chunk.document_id == chunk.document_id,
                Chunk.generation == chunk.generation,
                Chunk.position.between(chunk.position - reach, chunk.position + reach),
            )
            for chunk in chosen
        )
    )
    rows = session.execute(
        select(
            Chunk.document_id,
            Chunk.position,
            File.blob_id,
            File.media_type,
            Chunk.text,
            Chunk.start_char,
            Chunk.end_char,
            Chunk.headings,
            Chunk.is_table,
            Chunk.places,
        )
        .join(Document, Document.id == Chunk.document_id)
        .join(File, File.id == Document.file_id)
        .where(around, readable_documents(scope), Document.status == DocumentStatus.COMPLETED)
    )
    shelves: dict[int, dict[int, _Piece]] = defaultdict(dict)
    for document_id, position, blob_id, media_type, text, start, end, headings, is_table, places in rows:
        shelves[document_id][position] = _Piece(
            blob_id, media_type, text, start, end, tuple(headings), is_table, places
        )
    return shelves


def _grown(
    chosen: Sequence[FoundChunk], shelves: Mapping[int, _Shelf], spare: int, tokens_a_char: float
) -> list[_Run]:
    """Runs around the chosen chunks, best first, each grown within its share of the spare tokens."""
    runs: list[_Run] = []
    for rank, chunk in enumerate(chosen):
        _join(runs, _Run(rank, chunk, first=chunk.position, last=chunk.position))
    waiting = [(run, max(run.best.score, 0.0)) for run in runs]
    while waiting:
        of_all = sum(score for _, score in waiting)
        run, score = waiting.pop(0)
        if run not in runs:
            # A better one has grown up to it.
            continue
        share = spare * (score / of_all if of_all > 0 else 1 / (1 + len(waiting)))
        shelf = shelves[run.best.document_id]
        paid = {
            position
            for other in runs
            if other is not run and other.best.document_id == run.best.document_id
            for position in other.positions()
        }
        spare -= _grow(run, shelf, share=share, spare=spare, paid=paid, tokens_a_char=tokens_a_char)
        runs.remove(run)
        _join(runs, run)
        runs.sort(key=lambda each: each.rank)
    return runs


def _grow(run: _Run, shelf: _Shelf, *, share: float, spare: int, paid: set[int], tokens_a_char: float) -> int:
    """Takes in what belongs to the run's best chunk, nearest kin first. Returns what that cost in tokens.

    Positions that are `paid` stand in another run, and cost nothing.
    """
    used = 0
    while (step := _next_step(run, shelf)) is not None:
        position, is_same_table = step
        cost = 0 if position in paid else round(len(_added(shelf, run, position)) * tokens_a_char)
        if cost and used + cost > (spare if is_same_table else share):
            # The other end may have something shorter; this one ends here.
            shelf = {each: piece for each, piece in shelf.items() if each != position}
            continue
        used += cost
        run.first, run.last = min(run.first, position), max(run.last, position)
    return used


def _next_step(run: _Run, shelf: _Shelf) -> tuple[int, bool] | None:
    """The position beside the run that belongs to its best chunk most, and whether it is of the same table.

    Of equal kin the nearest, and the next before the previous: an answer more often follows than leads.
    """
    best = shelf[run.best.position]
    steps: list[tuple[int, int, int]] = []
    for position, end in ((run.last + 1, run.last), (run.first - 1, run.first)):
        piece = shelf.get(position)
        if piece is None:
            continue
        distance = abs(position - run.best.position)
        if piece.is_of_table(best) and shelf[end].is_of_table(best):
            steps.append((0, distance, position))
        elif piece.section == best.section:
            steps.append((1, distance, position))
        elif distance == 1:
            # Beyond its section, the one paragraph beside it.
            steps.append((2, distance, position))
    if not steps:
        return None
    kin, _, position = min(steps, key=lambda step: step[:2])
    return position, kin == 0


def _added(shelf: _Shelf, run: _Run, position: int) -> str:
    """What a run gains by one more chunk, without what both hold."""
    piece = shelf[position]
    if position > run.last:
        return piece.text[max(0, shelf[run.last].end_char - piece.start_char) :]
    return piece.text[: max(0, shelf[run.first].start_char - piece.start_char)]


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
    if new.rank < kept.rank:
        kept.rank, kept.best = new.rank, new.best
    for other in others:
        runs.remove(other)


def _read(session: Session, runs: Sequence[_Run], shelves: Mapping[int, _Shelf]) -> list[Passage]:
    """The runs as passages. Their texts come in one statement; what chunks leave out between them is theirs too."""
    if not runs:
        return []
    pieces = [
        [shelves[run.best.document_id][position] for position in run.positions()]  # all are on the shelf
        for run in runs
    ]
    starts = [min(piece.start_char for piece in each) for each in pieces]
    stretches = [
        stretch_of(
            each[0].blob_id,
            each[0].media_type,
            start_char,
            max(piece.end_char for piece in each),
            number=number,
        )
        for number, (each, start_char) in enumerate(zip(pieces, starts, strict=True))
    ]
    texts = [""] * len(runs)
    rows = session.execute(union_all(*stretches))
    for number, _, text in sorted((number, part, text) for number, part, text in rows):
        texts[number] += text
    return [
        _passage(run, each, start_char, text)
        for run, each, start_char, text in zip(runs, pieces, starts, texts, strict=True)
        if text
    ]


def _passage(run: _Run, pieces: Sequence[_Piece], start_char: int, text: str) -> Passage:
    best = pieces[run.best.position - run.first]
    headings = best.headings
    if headings != best.section and headings[-1] in " ".join(text.split()):
        # The passage holds its table's header row itself.
        headings = best.section
    # Overlapping chunks share places.
    places = {place for piece in pieces for place in places_from_rows(piece.places)}
    return Passage(
        document_id=run.best.document_id,
        collection_id=run.best.collection_id,
        file_id=run.best.file_id,
        filename=run.best.filename,
        text=text,
        start_char=start_char,
        end_char=start_char + len(text),
        headings=headings,
        places=tuple(sorted(places, key=_by_start)),
        score=run.best.score,
    )


def _by_start(place: Place) -> tuple[int, int]:
    return place.start_char, place.end_char
