"""Proves that what is served equals what is stored: indexes = chunks = log, blobs = files, and none that is deleted."""

import hashlib
from collections.abc import Iterator

import numpy as np
from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from retrieval.blobs import BlobStore, known_ids
from retrieval.chunks import generation_of, log_each, searchable
from retrieval.database import Database
from retrieval.ledger import Entry, entries_in_sql
from retrieval.replay import is_alive, replay
from retrieval.segments import COPY_BYTES, Damaged
from retrieval.tables import (
    Blob,
    Chunk,
    ChunkLog,
    Collection,
    File,
    Generation,
    GenerationState,
    LogOp,
    Upload,
    UploadPart,
)
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
        for blob_id in sorted(stored.keys() - set(session.scalars(select(File.blob_id)))):
            yield f"{blob_id}: bytes that no file has any more."
        parts = {part.id: part for part in session.scalars(select(UploadPart))}
    yield from _blob_differences(database, stored, parts, blobs)
    for entry in sorted(_resurrected(database)):
        yield f"{entry.object_id}: this {entry.kind} was deleted, and is there again."
    yield from database.damage()


def repair(database: Database, blobs: BlobStore, views: IndexViews) -> None:
    """Heals from SQL what SQL can heal: indexes, their log, bytes that belong to nothing, what was deleted and is back.

    Bytes that are missing or changed are in a backup or nowhere.
    """
    replay(database, blobs, _resurrected(database))
    with database.read() as session:
        collections = session.scalars(select(Collection.id)).all()
    for collection_id in collections:
        with database.write() as session:
            _heal_log(session, collection_id)
        views.forget(collection_id)
    with database.write() as session:
        is_used = exists().where(File.blob_id == Blob.id)
        session.execute(delete(Blob).where(~is_used))
    with database.read() as session:
        known = known_ids(session)
    blobs.sweep(known, older_than_s=UPLOAD_S)


def _heal_log(session: Session, collection_id: str) -> None:
    """So that it leads to the chunks that are stored."""
    collection = session.get(Collection, collection_id, with_for_update=True)
    if collection is None:
        return
    others = select(Generation.number).where(
        Generation.collection_id == collection_id, Generation.state != GenerationState.DISCARDED
    )
    for number in [collection.generation, *session.scalars(others)]:
        alive = set(session.scalars(select(Chunk.id).where(searchable(collection_id, number))))
        logged = _replayed(session, collection_id, number)
        log_each(session, collection_id, number, LogOp.REMOVE, sorted(logged - alive))
        log_each(session, collection_id, number, LogOp.ADD, sorted(alive - logged))


def _resurrected(database: Database) -> list[Entry]:
    with database.read() as session:
        return [entry for entry in entries_in_sql(session) if is_alive(session, entry)]


def _index_differences(
    database: Database, views: IndexViews, collection_id: str, number: int
) -> Iterator[str]:
    """Compares at one point of the log; when searches follow it further meanwhile, the comparison starts again."""
    while True:
        with database.read() as session:
            of = generation_of(session, collection_id, number)
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


def _blob_differences(
    database: Database, stored: dict[str, Blob], parts: dict[str, UploadPart], blobs: BlobStore
) -> Iterator[str]:
    on_disk, settled = set(blobs.ids()), set(blobs.ids(older_than_s=UPLOAD_S))
    missing = (stored.keys() | parts.keys()) - on_disk
    changed = {each for each in stored.keys() & on_disk if not _is_whole(database, blobs, stored[each])}
    changed |= {each for each in parts.keys() & on_disk if not _is_whole_part(database, blobs, parts[each])}
    with database.read() as session:
        # The others were deleted meanwhile.
        known = known_ids(session)
    for blob_id in sorted(missing & known):
        yield f"{blob_id}: the file's bytes are missing."
    for blob_id in sorted(settled - stored.keys() - parts.keys()):
        yield f"{blob_id}: bytes on disk that belong to no file."
    for blob_id in sorted(changed & known):
        yield f"{blob_id}: the file's bytes have changed."


def _is_whole(database: Database, blobs: BlobStore, blob: Blob) -> bool:
    with database.read() as session:
        try:
            with blobs.content(session, blob).open() as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        except Damaged:
            return False
        return blobs.digest(session, blob.tenant_id, sha256) == blob.digest


def _is_whole_part(database: Database, blobs: BlobStore, part: UploadPart) -> bool:
    """A plain one has no digest: only its length tells."""
    with database.read() as session:
        upload = session.get(Upload, part.upload_id)
        if upload is None:
            return True  # Forgotten meanwhile.
        try:
            with blobs.content_of_part(session, upload, part).open() as content:
                return sum(map(len, iter(lambda: content.read(COPY_BYTES), b""))) == part.size_bytes
        except Damaged:
            return False
