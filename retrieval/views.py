"""Keeps an index pair for each generation of a collection equal to SQL: built from the chunks, it follows their log."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from retrieval.chunks import searchable
from retrieval.keyword_index import TantivyKeywordIndex
from retrieval.places import under_headings
from retrieval.rankings import IndexedChunk, KeywordIndex, VectorIndex
from retrieval.tables import Chunk, ChunkLog, Collection, Generation, GenerationState, LogOp
from retrieval.vector_index import FaissVectorIndex

WINDOW = 2_000
"""Chunks that are read from SQL at once: bounds the memory of a rebuild."""


@dataclass
class CollectionView:
    """The two indexes of one generation of a collection, equal to SQL as of `seq`."""

    vectors: VectorIndex
    keywords: KeywordIndex
    seq: int = 0
    following: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Place:
    """A generation of a collection, and the end of its log as a transaction sees it."""

    collection_id: str
    generation: int
    head: int

    @property
    def key(self) -> tuple[str, int]:
        return self.collection_id, self.generation


class IndexViews:
    """All views of one process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._views: dict[tuple[str, int], CollectionView] = {}
        self._building: dict[tuple[str, int], threading.Lock] = {}
        self._lock = threading.Lock()
        """Of the two dictionaries; never held for long."""

    def follow(self, session: Session, of: Collection | Generation) -> CollectionView | None:
        """Its view, with everything in it that this transaction sees. None while it is empty."""
        place = _place(of)
        view = self._views.get(place.key) or self._build(session, place)
        if view is None:
            return None
        with view.following:
            if view.seq < place.head:
                _apply_log(session, place, view)
        return view

    def keep_ready(self, session: Session) -> None:
        """Follows the generations that may be switched to, of collections that are in use here: so neither a switch
        nor a rollback keeps a search waiting. Drops what can no longer be asked for.
        """
        with self._lock:
            used = {collection_id for collection_id, _ in self._views}
        if not used:
            return
        others = session.scalars(
            select(Generation).where(Generation.state != GenerationState.DISCARDED)
        ).all()
        kept = {each.key for each in map(_place, others)}
        answering = select(Collection.id, Collection.generation).where(Collection.id.in_(used))
        kept |= {(collection_id, number) for collection_id, number in session.execute(answering)}
        with self._lock:
            for key in [key for key in self._views if key[0] in used and key not in kept]:
                del self._views[key]
                del self._building[key]
        for generation in others:
            if generation.collection_id in used:
                self.follow(session, generation)

    def forget(self, collection_id: str) -> None:
        with self._lock:
            for key in [key for key in self._views if key[0] == collection_id]:
                del self._views[key]
                del self._building[key]

    def _build(self, session: Session, place: _Place) -> CollectionView | None:
        # One build at a time: two threads that both find nothing would read the whole collection twice.
        with self._lock:
            building = self._building.setdefault(place.key, threading.Lock())
        with building:
            view = self._views.get(place.key)
            if view is None:
                view = _read_all(session, place)
                if view is not None:
                    with self._lock:
                        self._views[place.key] = view
            return view


def build_view(session: Session, of: Collection | Generation) -> CollectionView | None:
    """Reads all chunks of a generation. None when there are none yet, so that the dimensions are unknown."""
    return _read_all(session, _place(of))


def _place(of: Collection | Generation) -> _Place:
    if isinstance(of, Collection):
        return _Place(of.id, of.generation, of.head)
    return _Place(of.collection_id, of.number, of.head)


def _read_all(session: Session, place: _Place) -> CollectionView | None:
    view: CollectionView | None = None
    for chunks in _windows(session, searchable(place.collection_id, place.generation)):
        if view is None:
            view = CollectionView(
                vectors=FaissVectorIndex(dimensions=len(chunks[0].embedding)), keywords=TantivyKeywordIndex()
            )
        view.vectors.apply(added=chunks, removed=())
        view.keywords.apply(added=chunks, removed=())
    if view is not None:
        view.seq = place.head
    return view


def _apply_log(session: Session, place: _Place, view: CollectionView) -> None:
    log = session.execute(
        select(ChunkLog.op, ChunkLog.chunk_id)
        .where(
            ChunkLog.collection_id == place.collection_id,
            ChunkLog.generation == place.generation,
            ChunkLog.seq > view.seq,
            ChunkLog.seq <= place.head,
        )
        .order_by(ChunkLog.seq)
    ).all()
    removed = [chunk_id for op, chunk_id in log if op is LogOp.REMOVE]
    added = [chunk_id for op, chunk_id in log if op is LogOp.ADD]
    # An id is added once and never again, so what was added and removed since is simply not found here.
    for start in range(0, max(len(added), 1), WINDOW):
        window = _windows(session, Chunk.id.in_(added[start : start + WINDOW]))
        chunks = [chunk for part in window for chunk in part]
        view.vectors.apply(added=chunks, removed=removed)
        view.keywords.apply(added=chunks, removed=removed)
        removed = []
    view.seq = place.head


def _windows(session: Session, wanted: ColumnElement[bool]) -> Iterator[Sequence[IndexedChunk]]:
    columns = (
        select(Chunk.id, Chunk.document_id, Chunk.headings, Chunk.text, Chunk.embedding)
        .where(wanted)
        .order_by(Chunk.id)
    )
    for rows in session.execute(columns, execution_options={"yield_per": WINDOW}).partitions():
        yield [
            IndexedChunk(
                chunk_id=chunk_id,
                document_id=document_id,
                text=under_headings(tuple(headings), text),
                embedding=np.frombuffer(embedding, np.float16).astype(np.float32),
            )
            for chunk_id, document_id, headings, text, embedding in rows
        ]
