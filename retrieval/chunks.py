"""Chunks by generation, and the log that tells the indexes of every change. For the catalog and for ingestion.

A document's chunks of one generation are staged as long as its job for that generation exists: stored, but neither
logged nor searchable. The transaction that ends the job logs them all.
"""

from sqlalchemy import ColumnElement, and_, delete, func, insert, literal, select, update
from sqlalchemy.orm import Session

from retrieval.tables import Chunk, ChunkLog, Collection, Document, Generation, Job, LogOp


def searchable(collection_id: str, generation: int) -> ColumnElement[bool]:
    """The condition on chunks that an index of this generation holds."""
    staged = select(Job.id).where(Job.document_id == Chunk.document_id, Job.generation == Chunk.generation)
    return and_(
        Chunk.collection_id == collection_id,
        Chunk.generation == generation,
        ~staged.correlate(Chunk).exists(),
    )


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
