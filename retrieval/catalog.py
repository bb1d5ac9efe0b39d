"""Every query on files, collections and documents. Each takes the caller's scope, and sees nothing outside it.

Errors (absent and forbidden look the same):
    NotFound
    ├── FileMissing
    ├── CollectionMissing
    └── DocumentMissing
    CursorInvalid           a page was asked for after an id that is not in the list
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Select, delete, func, insert, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from retrieval.chunks import remove_chunks
from retrieval.scope import Scope
from retrieval.tables import (
    Blob,
    Chunk,
    ChunkLog,
    Collection,
    Document,
    DocumentStatus,
    File,
    Generation,
    GenerationState,
    Job,
    JobState,
    ParsedFile,
    ParsedPart,
    Tenant,
    new_id,
)

Row = TypeVar("Row", File, Collection, Document)


class NotFound(Exception):
    """What was named does not exist, or the key may not see it."""

    kind = "object"

    def __init__(self, missing_id: str) -> None:
        super().__init__(f"No {self.kind} with id '{missing_id}'.")
        self.missing_id = missing_id


class FileMissing(NotFound):
    kind = "file"


class CollectionMissing(NotFound):
    kind = "vector store"


class DocumentMissing(NotFound):
    kind = "vector store file"


class CursorInvalid(Exception):
    """`after` or `before` names nothing in this list."""

    def __init__(self, cursor: str) -> None:
        super().__init__(f"The cursor '{cursor}' is not in this list.")


class Order(StrEnum):
    ASC = "asc"
    DESC = "desc"


@dataclass(frozen=True)
class PageRequest:
    """A slice of a list ordered by creation: at most `limit` rows after and before the rows with these ids."""

    limit: int = 20
    order: Order = Order.DESC
    after: str | None = None
    before: str | None = None

    @property
    def backward(self) -> bool:
        """Alone, `before` asks for the rows that stand right before the cursor, not for the first of the list."""
        return self.before is not None and self.after is None


@dataclass(frozen=True)
class NewFile:
    """`path` and `parent_id` are as the table has them."""

    filename: str
    purpose: str
    media_type: str
    sha256: str
    size_bytes: int
    path: str | None = None
    parent_id: str | None = None


# Files


def add_file(session: Session, scope: Scope, new: NewFile, *, now: float) -> tuple[File, bool]:
    """The new file, and whether its bytes are new to the tenant: only then is there a blob to keep."""
    lock_tenant(session, scope.tenant_id)
    blob = session.scalar(select(Blob).where(Blob.tenant_id == scope.tenant_id, Blob.sha256 == new.sha256))
    is_new_blob = blob is None
    if blob is None:
        blob = Blob(
            id=new_id("blob-"), tenant_id=scope.tenant_id, sha256=new.sha256, size_bytes=new.size_bytes
        )
        session.add(blob)
        session.flush()
    file = File(
        id=new_id("file-"),
        tenant_id=scope.tenant_id,
        blob_id=blob.id,
        filename=new.filename,
        path=new.path,
        parent_id=new.parent_id,
        purpose=new.purpose,
        media_type=new.media_type,
        size_bytes=new.size_bytes,
        created_at=now,
    )
    session.add(file)
    session.flush()
    return file, is_new_blob


def get_file(session: Session, scope: Scope, file_id: str) -> File:
    file = session.scalar(select(File).where(File.tenant_id == scope.tenant_id, File.id == file_id))
    if file is None:
        raise FileMissing(file_id)
    return file


def list_files(
    session: Session, scope: Scope, page: PageRequest, *, purpose: str | None = None
) -> list[File]:
    query = select(File).where(File.tenant_id == scope.tenant_id)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    return page_of(session, query, page, created_at=File.created_at, row_id=File.id, public_id=File.id)


def delete_file(session: Session, scope: Scope, file_id: str) -> list[str]:
    """Removes a file, the files inside it, and every document made of them.

    Returns the ids of the blobs to remove after the commit.
    """
    lock_tenant(session, scope.tenant_id)
    files = [get_file(session, scope, file_id)]
    for file in files:
        files += session.scalars(select(File).where(File.parent_id == file.id))
    holding = select(Document.collection_id).where(Document.file_id.in_([file.id for file in files]))
    session.execute(
        select(Collection.id).where(Collection.id.in_(holding)).order_by(Collection.id).with_for_update()
    )
    for file in reversed(files):
        for document in session.scalars(select(Document).where(Document.file_id == file.id)):
            drop_document(session, document)
        session.flush()
        session.delete(file)
    session.flush()
    blob_ids = {file.blob_id for file in files}
    orphans = sorted(
        blob_ids.difference(session.scalars(select(File.blob_id).where(File.blob_id.in_(blob_ids))))
    )
    session.execute(delete(ParsedPart).where(ParsedPart.blob_id.in_(orphans)))
    session.execute(delete(ParsedFile).where(ParsedFile.blob_id.in_(orphans)))
    session.execute(delete(Blob).where(Blob.id.in_(orphans)))
    return orphans


# Collections


def create_collection(
    session: Session,
    scope: Scope,
    *,
    name: str,
    attributes: dict[str, Any],
    embedding_model: str,
    now: float,
) -> Collection:
    """`embedding_model` is an alias. It stays: another model would need all chunks cut and embedded anew."""
    collection = Collection(
        id=new_id("vs_"),
        tenant_id=scope.tenant_id,
        name=name,
        attributes=attributes,
        embedding_model=embedding_model,
        head=0,
        created_at=now,
        last_active_at=now,
    )
    session.add(collection)
    session.flush()
    return collection


def get_collection(session: Session, scope: Scope, collection_id: str) -> Collection:
    collection = session.scalar(
        select(Collection).where(Collection.tenant_id == scope.tenant_id, Collection.id == collection_id)
    )
    if collection is None:
        raise CollectionMissing(collection_id)
    return collection


def find_collection(session: Session, scope: Scope, name_or_id: str) -> Collection:
    """By id, else by name; the oldest of several with one name."""
    collection = session.scalar(
        select(Collection)
        .where(
            Collection.tenant_id == scope.tenant_id,
            (Collection.id == name_or_id) | (Collection.name == name_or_id),
        )
        .order_by(Collection.id != name_or_id, Collection.created_at, Collection.id)
        .limit(1)
    )
    if collection is None:
        raise CollectionMissing(name_or_id)
    return collection


def list_collections(session: Session, scope: Scope, page: PageRequest) -> list[Collection]:
    query = select(Collection).where(Collection.tenant_id == scope.tenant_id)
    return page_of(
        session, query, page, created_at=Collection.created_at, row_id=Collection.id, public_id=Collection.id
    )


def delete_collection(session: Session, scope: Scope, collection_id: str) -> None:
    """Removes a collection with its documents and chunks; the files stay, as in OpenAI's API."""
    collection = lock_collection(session, scope, collection_id)
    session.execute(delete(Chunk).where(Chunk.collection_id == collection.id))
    documents = select(Document.id).where(Document.collection_id == collection.id)
    session.execute(delete(Job).where(Job.document_id.in_(documents)))
    session.execute(update(Document).where(Document.collection_id == collection.id).values(parent_id=None))
    session.execute(delete(Document).where(Document.collection_id == collection.id))
    session.execute(delete(ChunkLog).where(ChunkLog.collection_id == collection.id))
    session.delete(collection)


def count_documents(
    session: Session, scope: Scope, collection_ids: Sequence[str]
) -> dict[str, dict[DocumentStatus, int]]:
    """How many documents of each status each collection holds."""
    counts: dict[str, dict[DocumentStatus, int]] = {collection_id: {} for collection_id in collection_ids}
    rows = session.execute(
        select(Document.collection_id, Document.status, func.count())
        .where(Document.tenant_id == scope.tenant_id, Document.collection_id.in_(collection_ids))
        .group_by(Document.collection_id, Document.status)
    )
    for collection_id, status, count in rows:
        counts[collection_id][status] = count
    return counts


def usage_bytes(session: Session, scope: Scope, collection_ids: Sequence[str]) -> dict[str, int]:
    """Bytes of chunk text and embeddings that each collection's documents take."""
    rows = session.execute(
        select(Document.collection_id, func.sum(Document.usage_bytes))
        .where(Document.tenant_id == scope.tenant_id, Document.collection_id.in_(collection_ids))
        .group_by(Document.collection_id)
    )
    return {collection_id: int(total) for collection_id, total in rows}


# Documents


def attach_file(
    session: Session,
    scope: Scope,
    *,
    collection_id: str,
    file_id: str,
    attributes: dict[str, Any],
    chunking: dict[str, Any],
    now: float,
    replaces_id: int | None = None,
    parent_id: int | None = None,
) -> Document:
    """Makes a document of a file, and the jobs that ingest it.

    A file that is in already keeps its document; it is ingested anew if it failed or is to be chunked otherwise.
    `replaces_id` is an older document of the collection, which answers until this one is completed.
    """
    lock_tenant(session, scope.tenant_id)
    collection = lock_collection(session, scope, collection_id)
    file = get_file(session, scope, file_id)
    existing = session.scalar(
        select(Document).where(Document.collection_id == collection.id, Document.file_id == file.id)
    )
    if existing is not None:
        unfinished = existing.status in (DocumentStatus.FAILED, DocumentStatus.CANCELLED)
        if existing.chunking == chunking and not unfinished:
            existing.attributes = attributes
            return existing
        drop_document(session, existing)
        session.flush()
    document = Document(
        tenant_id=scope.tenant_id,
        collection_id=collection.id,
        file_id=file.id,
        status=DocumentStatus.IN_PROGRESS,
        attributes=attributes,
        chunking=chunking,
        usage_bytes=0,
        created_at=now,
        replaces_id=replaces_id,
        parent_id=parent_id,
    )
    session.add(document)
    session.flush()
    queue_jobs(session, collection, [document.id], now=now)
    collection.last_active_at = now
    return document


def queue_jobs(session: Session, collection: Collection, document_ids: Sequence[int], *, now: float) -> None:
    """A job for each document and each generation that is kept, the active one's first."""
    others = session.scalars(
        select(Generation.number).where(
            Generation.collection_id == collection.id, Generation.state != GenerationState.DISCARDED
        )
    ).all()
    rows = [
        {
            "tenant_id": collection.tenant_id,
            "document_id": document_id,
            "generation": generation,
            "is_background": generation != collection.generation,
            "state": JobState.QUEUED,
            "due_at": now,
        }
        for generation in (collection.generation, *others)
        for document_id in document_ids
    ]
    if rows:
        session.execute(insert(Job), rows)


def get_document(session: Session, scope: Scope, collection_id: str, file_id: str) -> Document:
    get_collection(session, scope, collection_id)
    document = session.scalar(
        select(Document).where(
            Document.tenant_id == scope.tenant_id,
            Document.collection_id == collection_id,
            Document.file_id == file_id,
        )
    )
    if document is None:
        raise DocumentMissing(file_id)
    return document


def list_documents(
    session: Session,
    scope: Scope,
    collection_id: str,
    page: PageRequest,
    *,
    status: DocumentStatus | None = None,
) -> list[Document]:
    get_collection(session, scope, collection_id)
    query = select(Document).where(
        Document.tenant_id == scope.tenant_id, Document.collection_id == collection_id
    )
    if status is not None:
        query = query.where(Document.status == status)
    return page_of(
        session, query, page, created_at=Document.created_at, row_id=Document.id, public_id=Document.file_id
    )


def delete_document(session: Session, scope: Scope, collection_id: str, file_id: str) -> None:
    """Takes a file out of a collection; the file itself stays."""
    lock_collection(session, scope, collection_id)
    drop_document(session, get_document(session, scope, collection_id, file_id))


def drop_document(session: Session, document: Document) -> None:
    """With those of the files inside it."""
    for child in session.scalars(select(Document).where(Document.parent_id == document.id)):
        drop_document(session, child)
    session.flush()
    remove_chunks(session, document)
    session.execute(delete(Job).where(Job.document_id == document.id))
    session.delete(document)


# Locks are taken in one order, or two transactions could wait for each other: tenant, collection, job.


def lock_tenant(session: Session, tenant_id: str) -> None:
    # Two uploads of the same bytes, or an upload and a delete, would otherwise disagree about who owns the blob.
    # `key_share` lets others go on inserting rows that refer to the tenant: ingestion does, holding a collection.
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))


def lock_collection(session: Session, scope: Scope, collection_id: str) -> Collection:
    """The collection, in which no document comes, goes or is completed until this transaction ends.

    A delete that looked for chunks before an ingestion committed them would leave them behind.
    """
    collection = session.scalar(
        select(Collection)
        .where(Collection.tenant_id == scope.tenant_id, Collection.id == collection_id)
        .with_for_update()
    )
    if collection is None:
        raise CollectionMissing(collection_id)
    return collection


def page_of(
    session: Session,
    query: Select[Row],
    page: PageRequest,
    *,
    created_at: InstrumentedAttribute[float],
    row_id: InstrumentedAttribute[Any],
    public_id: InstrumentedAttribute[str],
) -> list[Row]:
    """Pages by key, not by offset: rows that come or go meanwhile shift nothing."""

    def place_of(cursor: str) -> tuple[float, Any]:
        row = session.execute(
            query.with_only_columns(created_at, row_id).where(public_id == cursor)
        ).one_or_none()
        if row is None:
            raise CursorInvalid(cursor)
        return row[0], row[1]

    key = tuple_(created_at, row_id)
    ascending = page.order is Order.ASC
    if page.after is not None:
        place = place_of(page.after)
        query = query.where(key > place if ascending else key < place)
    if page.before is not None:
        place = place_of(page.before)
        query = query.where(key < place if ascending else key > place)
    rising = ascending != page.backward
    keys = (created_at, row_id) if rising else (created_at.desc(), row_id.desc())
    rows = list(session.scalars(query.order_by(*keys).limit(page.limit)))
    return rows[::-1] if page.backward else rows
