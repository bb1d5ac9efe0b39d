"""Proves that what is served equals what is stored: indexes = chunks = log, and blobs = files."""

import hashlib
from collections.abc import Iterator

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.blobs import BlobStore
from retrieval.chunks import searchable
from retrieval.database import Database
from retrieval.tables import Blob, Chunk, ChunkLog, Collection, Generation, GenerationState, LogOp
from retrieval.views import CollectionView, IndexViews

WINDOW = 2_000
UPLOAD_S = 3600
"""Bytes younger than this may be of an upload whose rows are not committed yet."""


def differences(database: Database, blobs: BlobStore, views: IndexViews) -> Iterator[str]:
    """A sentence for each difference; none when all is well. Ids only, so that it may be logged."""
    with database.read() as session:
        answering = session.execute(select(Collection.id, Collection.generation)).all()
        others = session.execute(
            select(Generation.collection_id, Generation.number).where(
                Generation.state != GenerationState.DISCARDED
            )
        ).all()
    for collection_id, number in sorted([*answering, *others]):
        yield from _index_differences(database, views, collection_id, number)
    with database.read() as session:
        stored = {blob.id: blob for blob in session.scalars(select(Blob))}
    yield from _blob_differences(stored, blobs)


def _index_differences(
    database: Database, views: IndexViews, collection_id: str, number: int
) -> Iterator[str]:
    """Compares at one point of the log; when searches follow it further meanwhile, the comparison starts again."""
    while True:
        with database.read() as session:
            of = _generation(session, collection_id, number)
            if of is None:
                return
            view = views.follow(session, of)
            if view is None:
                yield from _chunk_differences(session, collection_id, number, None)
                return
            with view.following:
                if view.seq == of.head:
                    yield from _chunk_differences(session, collection_id, number, view)
                    return


def _generation(session: Session, collection_id: str, number: int) -> Collection | Generation | None:
    collection = session.get(Collection, collection_id)
    if collection is None or collection.generation == number:
        return collection
    return session.get(Generation, (collection_id, number))


def _chunk_differences(
    session: Session, collection_id: str, number: int, view: CollectionView | None
) -> Iterator[str]:
    name = f"{collection_id}, generation {number}"
    alive = set(session.scalars(select(Chunk.id).where(searchable(collection_id, number))))
    if alive != _replayed(session, collection_id, number):
        yield f"{name}: the chunk log does not lead to the chunks that are stored."
    if view is None:
        if alive:
            yield f"{name}: no index, but {len(alive)} chunks are stored."
        return
    for kind, indexed in (("vector", view.vectors.chunk_ids()), ("keyword", view.keywords.chunk_ids())):
        for chunk_id in sorted(alive - indexed):
            yield f"{name}: chunk {chunk_id} is not in the {kind} index."
        for chunk_id in sorted(indexed - alive):
            yield f"{name}: chunk {chunk_id} is in the {kind} index, but it is not stored."
    both = sorted(alive & view.vectors.chunk_ids())
    for start in range(0, len(both), WINDOW):
        window = both[start : start + WINDOW]
        rows = session.execute(
            select(Chunk.id, Chunk.embedding).where(Chunk.id.in_(window)).order_by(Chunk.id)
        )
        for (chunk_id, embedding), vector in zip(rows, view.vectors.vectors(window), strict=True):
            if not np.array_equal(np.frombuffer(embedding, np.float16).astype(np.float32), vector):
                yield f"{name}: chunk {chunk_id} has another vector in the index."


def _replayed(session: Session, collection_id: str, number: int) -> set[int]:
    alive: set[int] = set()
    log = select(ChunkLog.op, ChunkLog.chunk_id).where(
        ChunkLog.collection_id == collection_id, ChunkLog.generation == number
    )
    for op, chunk_id in session.execute(log.order_by(ChunkLog.seq)):
        (alive.add if op is LogOp.ADD else alive.discard)(chunk_id)
    return alive


def _blob_differences(stored: dict[str, Blob], blobs: BlobStore) -> Iterator[str]:
    on_disk = set(blobs.ids())
    settled = set(blobs.ids(older_than_s=UPLOAD_S))
    for blob_id in sorted(stored.keys() - on_disk):
        yield f"{blob_id}: the file's bytes are missing."
    for blob_id in sorted(settled - stored.keys()):
        yield f"{blob_id}: bytes on disk that belong to no file."
    for blob_id in sorted(stored.keys() & on_disk):
        with blobs.path(blob_id).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != stored[blob_id].sha256:
                yield f"{blob_id}: the file's bytes have changed."
