"""Keeps an index pair for each generation of a collection equal to SQL: built from the chunks, it follows their log."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from retrieval.chunks import generation_of, searchable
from retrieval.database import Database
from retrieval.keyword_index import TantivyKeywordIndex
from retrieval.places import under_headings
from retrieval.rankings import IndexedChunk, KeywordIndex, VectorIndex
from retrieval.snapshots import Snapshots
from retrieval.tables import (
    Chunk,
    ChunkLog,
    Collection,
    Document,
    File,
    Generation,
    GenerationState,
    LogOp,
)
from retrieval.vector_index import FaissVectorIndex

WINDOW = 2_000
"""Chunks that are read from SQL at once: bounds the memory of a rebuild."""
SNAPSHOT_FROM = 2_000
"""Log entries since the last snapshot that make a new one worth it: with fewer, SQL is read within a second."""
SNAPSHOT_SHARE = 0.1
"""Of the log, likewise."""
QUIET_S = 10.0
"""A snapshot waits until nothing changes for so long."""
WRITING_SHARE = 0.05
"""Of one core's time, for writing snapshots of one generation."""


@dataclass
class CollectionView:
    """The two indexes of one generation of a collection, equal to SQL as of `seq`."""

    vectors: VectorIndex
    keywords: KeywordIndex
    seq: int = 0
    following: threading.Lock = field(default_factory=threading.Lock)
    loaded_seq: int | None = None
    """That of the snapshot whose files the keyword index reads."""


@dataclass(frozen=True)
class _Place:
    """A generation of a collection, and the end of its log as a transaction sees it."""

    collection_id: str
    generation: int
    head: int

    @property
    def key(self) -> tuple[str, int]:
        return self.collection_id, self.generation


@dataclass
class _Writing:
    """When a generation's next snapshot may be written: not while it changes, and not all the time."""

    head: int
    quiet_since: float
    not_before: float


class IndexViews:
    """All views of one process. Safe to use from several threads.

    `snapshots` make a start quick, and are written by `tend`; without them every start reads SQL.
    """

    def __init__(
        self, snapshots: Snapshots | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._snapshots = snapshots
        self._clock = clock
        self._views: dict[tuple[str, int], CollectionView] = {}
        self._building: dict[tuple[str, int], threading.Lock] = {}
        self._lock = threading.Lock()
        """Of the two dictionaries; never held for long."""
        self._writing: dict[tuple[str, int], _Writing] = {}

    def follow(self, session: Session, of: Collection | Generation) -> CollectionView | None:
        """Its view, with everything in it that this transaction sees. None while it is empty."""
        place = _place(of)
        view = self._views.get(place.key) or self._build(session, of)
        if view is None:
            return None
        _catch_up(session, place, view)
        return view

    def keep_ready(self, session: Session) -> None:
        """Follows the collections that are in use here, and their generations that may be switched to: so neither
        uploads nor a switch or rollback keep a search waiting. Drops what can no longer be asked for.
        """
        with self._lock:
            used = {collection_id for collection_id, _ in self._views}
        if not used:
            return
        others = session.scalars(
            select(Generation).where(Generation.state != GenerationState.DISCARDED)
        ).all()
        kept = {each.key for each in map(_place, others)}
        answering = select(Collection.id, Collection.generation, Collection.head).where(
            Collection.id.in_(used)
        )
        answer = [_Place(*row) for row in session.execute(answering)]
        kept |= {place.key for place in answer}
        with self._lock:
            for key in [key for key in self._views if key[0] in used and key not in kept]:
                del self._views[key]
                del self._building[key]
            views = dict(self._views)
        for place in answer:
            if (view := views.get(place.key)) is not None:
                _catch_up(session, place, view)
        for generation in others:
            if generation.collection_id in used:
                self.follow(session, generation)

    def tend(self, database: Database, *, stopping: threading.Event) -> None:
        """Does what can wait, for a thread behind the searches: call it every second or so, from one at a time.

        It tends the vector indexes, removes snapshots that hold what was deleted, moves keyword indexes from their
        snapshot's files into memory once they change, and writes snapshots.
        """
        with self._lock:
            views = dict(self._views)
        for view in views.values():
            if not stopping.is_set():
                view.vectors.tend()
        if self._snapshots is None:
            return
        with database.read() as session:
            self._snapshots.remove_outdated(session)
        for key, view in views.items():
            if not stopping.is_set():
                self._move_into_memory(database, key, view, stopping)
                self._write_snapshot(self._snapshots, database, key, stopping)

    def indexes(self) -> list[VectorIndex]:
        """Those of all views, to be told of."""
        with self._lock:
            return [view.vectors for view in self._views.values()]

    def forget(self, collection_id: str) -> None:
        """It was deleted."""
        with self._lock:
            for key in [key for key in self._views if key[0] == collection_id]:
                del self._views[key]
                del self._building[key]
        if self._snapshots is not None:
            for snapshot in self._snapshots.kept(collection_id):
                self._snapshots.remove(snapshot)

    def _build(self, session: Session, of: Collection | Generation) -> CollectionView | None:
        place = _place(of)
        # One build at a time: two threads that both find nothing would read the whole collection twice.
        with self._lock:
            building = self._building.setdefault(place.key, threading.Lock())
        with building:
            view = self._views.get(place.key)
            if view is None:
                view = self._load(session, of) or _read_all(session, place)
                if view is not None:
                    with self._lock:
                        self._views[place.key] = view
            return view

    def _load(self, session: Session, of: Collection | Generation) -> CollectionView | None:
        loaded = self._snapshots.load(session, of) if self._snapshots is not None else None
        if loaded is None:
            return None
        return CollectionView(loaded.vectors, loaded.keywords, seq=loaded.seq, loaded_seq=loaded.seq)

    def _move_into_memory(
        self, database: Database, key: tuple[str, int], view: CollectionView, stopping: threading.Event
    ) -> None:
        """Files keep words of removed texts until they are merged, and each change to them waits for the disk."""
        if view.loaded_seq is None:
            return
        with database.read() as session:
            of = generation_of(session, *key)
            if of is None or of.head == view.loaded_seq:
                return
            keywords = TantivyKeywordIndex()
            place = _place(of)
            for chunks in _windows(session, searchable(*key)):
                keywords.apply(added=chunks, removed=())
                if stopping.is_set():
                    return
        # What came meanwhile: most of it first, and only the rest while searches that follow wait.
        for _ in range(2):
            with database.read() as session:
                of = generation_of(session, *key)
                if of is None:
                    return
                _apply_log(session, _place(of), place.head, keywords)
                place = _place(of)
        with view.following, database.read() as session:
            of = generation_of(session, *key)
            if of is None:
                return
            _apply_log(session, _place(of), place.head, keywords)
            _apply_log(session, _place(of), view.seq, view.vectors)
            view.keywords, view.seq, view.loaded_seq = keywords, of.head, None

    def _write_snapshot(
        self, snapshots: Snapshots, database: Database, key: tuple[str, int], stopping: threading.Event
    ) -> None:
        with database.read() as session:
            of = generation_of(session, *key)
            if of is None:
                self._writing.pop(key, None)
                return
            began_at = self._clock()
            writing = self._writing.setdefault(key, _Writing(of.head, began_at, began_at))
            if of.head != writing.head:
                writing.head, writing.quiet_since = of.head, began_at
            written = max((snapshot.seq for snapshot in snapshots.kept(*key)), default=0)
            is_worth_it = of.head - written >= max(SNAPSHOT_FROM, SNAPSHOT_SHARE * of.head)
            if is_worth_it and began_at >= max(writing.not_before, writing.quiet_since + QUIET_S):
                snapshots.write(session, of, _windows(session, searchable(*key)), stopping=stopping)
                took_s = self._clock() - began_at
                writing.not_before = self._clock() + took_s / WRITING_SHARE


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
        view.vectors.tend()
        view.seq = place.head
    return view


def _catch_up(session: Session, place: _Place, view: CollectionView) -> None:
    with view.following:
        if view.seq < place.head:
            _apply_log(session, place, view.seq, view.vectors, view.keywords)
            view.seq = place.head


def _apply_log(session: Session, place: _Place, since: int, *indexes: VectorIndex | KeywordIndex) -> None:
    log = session.execute(
        select(ChunkLog.op, ChunkLog.chunk_id)
        .where(
            ChunkLog.collection_id == place.collection_id,
            ChunkLog.generation == place.generation,
            ChunkLog.seq > since,
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
        for index in indexes:
            index.apply(added=chunks, removed=removed)
        removed = []


def _windows(session: Session, wanted: ColumnElement[bool]) -> Iterator[Sequence[IndexedChunk]]:
    columns = (
        select(Chunk.id, Chunk.document_id, Chunk.headings, Chunk.text, Chunk.embedding, File.filename)
        .join(Document, Document.id == Chunk.document_id)
        .join(File, File.id == Document.file_id)
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
                filename=filename,
            )
            for chunk_id, document_id, headings, text, embedding, filename in rows
        ]
