"""File batches: files that are attached to a collection together, and ingestion that is cancelled, together or singly.

Errors, beside those of the catalog:
    FileBatchMissing        (NotFound)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CursorResult, Select, delete, func, insert, select, update
from sqlalchemy.orm import Session

from retrieval.access import readable_documents, readable_files
from retrieval.catalog import (
    DocumentMissing,
    FileMissing,
    NotFound,
    PageRequest,
    drop_document,
    get_collection,
    get_document,
    lock_collection,
    lock_tenant,
    page_of_documents,
    queue_jobs,
    set_readers,
)
from retrieval.chunks import remove_chunks
from retrieval.scope import Scope
from retrieval.tables import Chunk, Document, DocumentStatus, File, FileBatch, Job, new_id


class FileBatchMissing(NotFound):
    kind = "file batch"


@dataclass(frozen=True)
class Access:
    """The groups that may read a document; None is all that may read its collection."""

    readers: Sequence[str] | None


@dataclass(frozen=True)
class Member:
    """A file to attach. Without `access`, who could read it before can read it here."""

    file_id: str
    attributes: dict[str, Any]
    chunking: dict[str, Any]
    access: Access | None = None


def attach_files(
    session: Session,
    scope: Scope,
    collection_id: str,
    members: Sequence[Member],
    *,
    now: float,
    batch_id: str | None = None,
) -> None:
    """Does for many files, each named once, what `catalog.attach_file` does for one: all of them or none."""
    lock_tenant(session, scope.tenant_id)
    collection = lock_collection(session, scope, collection_id)
    file_ids = [member.file_id for member in members]
    rows_of_files = session.execute(
        select(File.id, File.readers).where(readable_files(scope), File.id.in_(file_ids))
    )
    readers = dict(rows_of_files.all())
    for file_id in file_ids:
        if file_id not in readers:
            raise FileMissing(file_id)
    present = _make_room(session, scope, collection.id, members)
    for member in members:
        if member.file_id in present:
            present[member.file_id].attributes = member.attributes
            present[member.file_id].batch_id = batch_id
    rows = [
        {
            "tenant_id": scope.tenant_id,
            "collection_id": collection.id,
            "file_id": member.file_id,
            "status": DocumentStatus.IN_PROGRESS,
            "readers": readers[member.file_id],
            "attributes": member.attributes,
            "chunking": member.chunking,
            "batch_id": batch_id,
            "usage_bytes": 0,
            "created_at": now,
        }
        for member in members
        if member.file_id not in present
    ]
    if rows:
        # Without asking for the ids, which SQLite would give for one row at a time only.
        session.execute(insert(Document), rows)
        new = select(Document.id).where(
            Document.collection_id == collection.id, Document.file_id.in_([row["file_id"] for row in rows])
        )
        queue_jobs(session, collection, session.scalars(new.order_by(Document.id)).all(), now=now)
    told = {member.file_id: member.access.readers for member in members if member.access is not None}
    for document in session.scalars(
        select(Document).where(Document.collection_id == collection.id, Document.file_id.in_(told))
    ):
        set_readers(session, document, told[document.file_id])
    collection.last_active_at = now


def create_batch(
    session: Session, scope: Scope, collection_id: str, members: Sequence[Member], *, now: float
) -> FileBatch:
    """A document that is in already and stays as it is belongs to this batch from now on."""
    batch = FileBatch(
        id=new_id("vsfb_"), tenant_id=scope.tenant_id, collection_id=collection_id, created_at=now
    )
    attach_files(session, scope, collection_id, members, now=now, batch_id=batch.id)
    session.add(batch)
    session.flush()
    return batch


def get_batch(session: Session, scope: Scope, collection_id: str, batch_id: str) -> FileBatch:
    get_collection(session, scope, collection_id)
    batch = session.scalar(
        select(FileBatch).where(
            FileBatch.tenant_id == scope.tenant_id,
            FileBatch.collection_id == collection_id,
            FileBatch.id == batch_id,
        )
    )
    if batch is None:
        raise FileBatchMissing(batch_id)
    return batch


def count_batch(session: Session, scope: Scope, batch: FileBatch) -> dict[DocumentStatus, int]:
    """How many documents of each status it has; those that were deleted are not counted."""
    rows = session.execute(
        select(Document.status, func.count())
        .where(readable_documents(scope), Document.batch_id == batch.id)
        .group_by(Document.status)
    )
    return dict(rows.all())


def list_batch_documents(
    session: Session,
    scope: Scope,
    collection_id: str,
    batch_id: str,
    page: PageRequest,
    *,
    status: DocumentStatus | None = None,
) -> list[Document]:
    batch = get_batch(session, scope, collection_id, batch_id)
    return page_of_documents(session, scope, collection_id, Document.batch_id == batch.id, page, status)


def cancel_document(session: Session, scope: Scope, collection_id: str, file_id: str) -> Document:
    """Ends a document's ingestion and that of the files inside it. What is completed or failed stays as it is."""
    lock_collection(session, scope, collection_id)
    document = get_document(session, scope, collection_id, file_id)
    _cancel(session, select(Document.id).where(Document.id == document.id))
    session.refresh(document)
    return document


def cancel_batch(
    session: Session, scope: Scope, collection_id: str, batch_id: str, *, now: float
) -> FileBatch:
    lock_collection(session, scope, collection_id)
    batch = get_batch(session, scope, collection_id, batch_id)
    of_batch = select(Document.id).where(readable_documents(scope), Document.batch_id == batch.id)
    if _cancel(session, of_batch) > 0:
        batch.cancelled_at = now
    return batch


def _make_room(
    session: Session, scope: Scope, collection_id: str, members: Sequence[Member]
) -> Mapping[str, Document]:
    """Deletes the documents of these files that are to be ingested anew. Returns the others, by file.

    Raises DocumentMissing for one that is not the caller's to see.
    """
    chunkings = {member.file_id: member.chunking for member in members}
    documents = session.scalars(
        select(Document).where(Document.collection_id == collection_id, Document.file_id.in_(chunkings))
    ).all()
    hidden = session.scalar(
        select(Document.file_id).where(
            Document.id.in_([document.id for document in documents]), ~readable_documents(scope)
        )
    )
    if hidden is not None:
        raise DocumentMissing(hidden)
    for document in documents:
        unfinished = document.status in (DocumentStatus.FAILED, DocumentStatus.CANCELLED)
        # Gone already if it came in a file that stands before it here.
        if (unfinished or document.chunking != chunkings[document.file_id]) and document in session:
            drop_document(session, document)
            session.flush()
    return {document.file_id: document for document in documents if document in session}


def _cancel(session: Session, document_ids: Select[int]) -> int:
    """Cancels what is in progress of these documents and of those inside them. Returns how many that were.

    The caller holds the collection. A worker that has a job notices within a beat that it is gone, and stops.
    """
    family = document_ids.cte("family", recursive=True)
    family = family.union_all(select(Document.id).join(family, Document.parent_id == family.c.id))
    unfinished = select(Document.id).where(
        Document.id.in_(select(family.c.id)), Document.status == DocumentStatus.IN_PROGRESS
    )
    # A worker that stores chunks holds the job: once these are ours, nothing more comes.
    session.execute(
        select(Job.id).where(Job.document_id.in_(unfinished)).order_by(Job.id).with_for_update()
    ).all()
    staged = select(Job.id).where(Job.document_id == Chunk.document_id, Job.generation == Chunk.generation)
    session.execute(
        delete(Chunk)
        .where(Chunk.document_id.in_(unfinished), staged.correlate(Chunk).exists())
        .execution_options(synchronize_session=False)
    )
    session.execute(
        delete(Job).where(Job.document_id.in_(unfinished)).execution_options(synchronize_session=False)
    )
    # Another generation's chunks may be complete already, and in its index.
    chunked = select(Chunk.id).where(Chunk.document_id == Document.id)
    for document in session.scalars(
        select(Document).where(Document.id.in_(unfinished), chunked.correlate(Document).exists())
    ).all():
        remove_chunks(session, document)
    cancelled = session.execute(
        update(Document)
        .where(Document.id.in_(unfinished))
        .values(status=DocumentStatus.CANCELLED, usage_bytes=0)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(cancelled, CursorResult)
    return cancelled.rowcount
