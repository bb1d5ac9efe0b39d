"""Chunks by generation, and the log that tells the indexes of every change. For the catalog and for ingestion.

A document's chunks of one generation are staged as long as its job for that generation exists: stored, but neither
logged nor searchable. The transaction that ends the job logs them all.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, delete, func, insert, literal, select, update
from sqlalchemy.orm import Session

from retrieval.tables import (
    Chunk,
    ChunkLog,
    Collection,
    Document,
    Generation,
    GenerationState,
    Job,
    LogOp,
)
from retrieval.wakes import Topic, wake


def searchable(collection_id: str, generation: int) -> ColumnElement[bool]:
    """The condition on chunks that an index of this generation holds."""
    staged = select(Job.id).where(Job.document_id == Chunk.document_id, Job.generation == Chunk.generation)
    return and_(
        Chunk.collection_id == collection_id,
        Chunk.generation == generation,
        ~staged.correlate(Chunk).exists(),
    )


def generation_of(session: Session, collection_id: str, number: int) -> Collection | Generation | None:
    """The row that describes this generation: the collection itself where it answers. None when it is gone."""
    collection = session.get(Collection, collection_id)
    if collection is None or collection.generation == number:
        return collection
    generation = session.get(Generation, (collection_id, number))
    is_kept = generation is not None and generation.state is not GenerationState.DISCARDED
    return generation if is_kept else None


def log_chunks(session: Session, document: Document, generation: int, op: LogOp) -> None:
    """Logs all chunks of a document in the caller's transaction, which holds the change too."""
    of_document = (Chunk.document_id == document.id, Chunk.generation == generation)
    count = session.scalar(select(func.count()).select_from(Chunk).where(*of_document)) or 0
    if count == 0:
        return
    first = _raise_head(session, document.collection_id, generation, by=count) - count
    numbered = select(
        literal(document.collection_id),
        literal(generation),
        literal(first) + func.row_number().over(order_by=Chunk.position),
        literal(op, ChunkLog.op.type),
        Chunk.id,
    ).where(*of_document)
    columns = ["collection_id", "generation", "seq", "op", "chunk_id"]
    session.execute(insert(ChunkLog).from_select(columns, numbered))


def log_each(
    session: Session, collection_id: str, generation: int, op: LogOp, chunk_ids: Sequence[int]
) -> None:
    """Logs chunks by id, for a log that does not lead to what is stored."""
    if not chunk_ids:
        return
    first = _raise_head(session, collection_id, generation, by=len(chunk_ids)) - len(chunk_ids)
    rows = [
        {
            "collection_id": collection_id,
            "generation": generation,
            "seq": first + number,
            "op": op,
            "chunk_id": chunk_id,
        }
        for number, chunk_id in enumerate(chunk_ids, 1)
    ]
    session.execute(insert(ChunkLog), rows)


def remove_chunks(session: Session, document: Document) -> None:
    """Deletes a document's chunks of every generation, and logs those that were searchable."""
    generations = session.scalars(
        select(Chunk.generation).where(Chunk.document_id == document.id).distinct()
    ).all()
    staged = set(session.scalars(select(Job.generation).where(Job.document_id == document.id)))
    for generation in generations:
        if generation not in staged:
            log_chunks(session, document, generation, LogOp.REMOVE)
    session.execute(delete(Chunk).where(Chunk.document_id == document.id))


def discard_staged(session: Session, document_id: int, generation: int) -> None:
    """Deletes what an unfinished job has made so far."""
    session.execute(delete(Chunk).where(Chunk.document_id == document_id, Chunk.generation == generation))


def _raise_head(session: Session, collection_id: str, generation: int, *, by: int) -> int:
    """The generation's new head. The update locks its row until the commit, so that seq order is commit order."""
    wake(session, Topic.INDEXES)
    head = session.scalar(
        update(Collection)
        .where(Collection.id == collection_id, Collection.generation == generation)
        .values(head=Collection.head + by)
        .returning(Collection.head)
    )
    if head is None:
        head = session.execute(
            update(Generation)
            .where(Generation.collection_id == collection_id, Generation.number == generation)
            .values(head=Generation.head + by)
            .returning(Generation.head)
        ).scalar_one()
    return head
