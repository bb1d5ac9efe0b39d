"""Keeps an index pair for each collection equal to SQL: builds it from the chunks, then follows their log."""

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
from retrieval.tables import Chunk, ChunkLog, Collection, LogOp
from retrieval.vector_index import FaissVectorIndex

WINDOW = 2_000
"""Chunks that are read from SQL at once: bounds the memory of a rebuild."""


@dataclass
class CollectionView:
    """The two indexes of one generation of a collection, equal to SQL as of `seq`."""

    generation: int
    vectors: VectorIndex
    keywords: KeywordIndex
    seq: int = 0
    following: threading.Lock = field(default_factory=threading.Lock)


class IndexViews:
    """All views of one process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._views: dict[str, CollectionView] = {}
        self._lock = threading.Lock()

    def follow(self, session: Session, collection: Collection) -> CollectionView | None:
        """The collection's view, with everything in it that this transaction sees. None while it is empty."""
        view = self._views.get(collection.id)
        if view is None or view.generation != collection.generation:
            view = self._build(session, collection)
            if view is None:
                return None
        with view.following:
            if view.seq < collection.head:
                _apply_log(session, collection, view)
        return view

    def forget(self, collection_id: str) -> None:
        with self._lock:
            self._views.pop(collection_id, None)

    def _build(self, session: Session, collection: Collection) -> CollectionView | None:
        # One build at a time: two threads that both find nothing would read the whole collection twice.
        with self._lock:
            view = self._views.get(collection.id)
            if view is not None and view.generation == collection.generation:
                return view
            self._drop_deleted(session)
            view = build_view(session, collection)
            if view is not None:
                self._views[collection.id] = view
            return view

    def _drop_deleted(self, session: Session) -> None:
        # Another process may have deleted a collection that this one holds in memory.
        if self._views:
            alive = set(session.scalars(select(Collection.id).where(Collection.id.in_(self._views))))
            self._views = {key: view for key, view in self._views.items() if key in alive}


def build_view(session: Session, collection: Collection) -> CollectionView | None:
    """Reads all chunks of a collection. None when there are none yet, so that the dimensions are unknown."""
    view: CollectionView | None = None
    for chunks in _windows(session, searchable(collection.id, collection.generation)):
        if view is None:
            view = CollectionView(
                generation=collection.generation,
                vectors=FaissVectorIndex(dimensions=len(chunks[0].embedding)),
                keywords=TantivyKeywordIndex(),
            )
        view.vectors.apply(added=chunks, removed=())
        view.keywords.apply(added=chunks, removed=())
    if view is not None:
        view.seq = collection.head
    return view


def _apply_log(session: Session, collection: Collection, view: CollectionView) -> None:
    log = session.execute(
        select(ChunkLog.op, ChunkLog.chunk_id)
        .where(
            ChunkLog.collection_id == collection.id,
            ChunkLog.generation == view.generation,
            ChunkLog.seq > view.seq,
            ChunkLog.seq <= collection.head,
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
    view.seq = collection.head


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
