"""Every query on files, collections and documents. Each takes the caller's scope, and sees nothing outside it.

Errors (absent and forbidden look the same):
    NotFound
    ├── FileMissing
    ├── CollectionMissing
    └── DocumentMissing
    NotGranted              the key sees what it may not change
    CursorInvalid           a page was asked for after an id that is not in the list
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, delete, func, insert, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from retrieval.access import (
    may_change,
    named,
    readable_collections,
    readable_documents,
    readable_files,
    readers_of,
)
from retrieval.chunks import remove_chunks
from retrieval.ledger import record
from retrieval.scope import Scope
from retrieval.tables import (
    Batch,
    Blob,
    Chunk,
    ChunkLog,
    Collection,
    DeletedKind,
    Document,
    DocumentStatus,
    File,
    Generation,
    GenerationState,
    GoneRow,
    Item,
    Job,
    JobState,
    Key,
    ParsedFile,
    ParsedPart,
    StoredCompletion,
    StoredCompletionFile,
    Tenant,
    Upload,
    new_id,
)
from retrieval.wakes import Topic, wake
from serving.request_ids import REQUEST_ID
from serving.tracing import traceparent

Row = TypeVar("Row", File, Collection, Document, Item, StoredCompletion, Batch, Key)

FILES, COLLECTIONS = "files", "collections"
"""Names of lists, from which rows go."""


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


class NotGranted(Exception):
    """The groups of the key do not include this change."""

    def __init__(self) -> None:
        super().__init__(
            "Only keys of other groups may change this vector store, or one that holds this file."
        )


class CursorInvalid(Exception):
    """`after` or `before` names nothing in this list."""

    def __init__(self, cursor: str, *, param: str) -> None:
        super().__init__(f"{param}: '{cursor}' is not in this list.")
        self.param = param


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
    blob: Blob
    """That of its bytes: a row as the blob store makes it, or one that is there already."""
    path: str | None = None
    parent_id: str | None = None


# Files


def add_file(session: Session, scope: Scope, new: NewFile, *, now: float) -> tuple[File, bool]:
    """The new file, and whether its bytes are new to the tenant: only then is there a blob to keep."""
    lock_tenant(session, scope.tenant_id)
    blob = session.scalar(
        select(Blob).where(Blob.tenant_id == scope.tenant_id, Blob.digest == new.blob.digest)
    )
    is_new_blob = blob is None
    if blob is None:
        blob = new.blob
        session.add(blob)
        session.flush()
    file = File(
        id=new_id("file-"),
        tenant_id=scope.tenant_id,
        key_id=scope.key_id,
        blob_id=blob.id,
        filename=new.filename,
        path=new.path,
        parent_id=new.parent_id,
        purpose=new.purpose,
        media_type=new.media_type,
        size_bytes=blob.size_bytes,
        created_at=now,
    )
    session.add(file)
    session.flush()
    return file, is_new_blob


def get_file(session: Session, scope: Scope, file_id: str) -> File:
    file = session.scalar(select(File).where(readable_files(scope), File.id == file_id))
    if file is None:
        raise FileMissing(file_id)
    return file


def list_files(
    session: Session, scope: Scope, page: PageRequest, *, purpose: str | None = None
) -> list[File]:
    return page_of(
        session,
        select(File).where(readable_files(scope)),
        page,
        created_at=File.created_at,
        row_id=File.id,
        public_id=File.id,
        narrowed_by=File.purpose == purpose if purpose is not None else None,
        gone_from=(scope.tenant_id, FILES),
    )


def delete_file(session: Session, scope: Scope, file_id: str) -> list[str]:
    """Removes a file, the files inside it, every document made of them, and stored answers that may quote them.

    Returns the ids of the blobs to remove after the commit.
    """
    lock_tenant(session, scope.tenant_id)
    files = [get_file(session, scope, file_id)]
    for file in files:
        files += session.scalars(select(File).where(File.parent_id == file.id))
    of_files = Document.file_id.in_([file.id for file in files])
    holding = select(Document.collection_id).where(of_files)
    collections = session.scalars(
        select(Collection).where(Collection.id.in_(holding)).order_by(Collection.id).with_for_update()
    ).all()
    hidden = select(Document.id).where(of_files, ~readable_documents(scope)).limit(1)
    if not all(may_change(scope, each) for each in collections) or session.scalar(hidden) is not None:
        raise NotGranted
    quoting = select(StoredCompletionFile.completion_id).where(
        StoredCompletionFile.file_id.in_([file.id for file in files])
    )
    session.execute(delete(StoredCompletion).where(StoredCompletion.id.in_(quoting)))
    # Uploads that became these files stay for a while, without their names.
    became = Upload.file_id.in_([file.id for file in files])
    session.execute(update(Upload).where(became).values(filename=""))
    for file in reversed(files):
        for document in session.scalars(select(Document).where(Document.file_id == file.id)):
            drop_document(session, document)
        session.flush()
        _note_gone(session, file.tenant_id, FILES, file.id, file.created_at, file.id)
        session.delete(file)
        record(session, DeletedKind.FILE, file.id, file.tenant_id)
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
        select(Collection).where(readable_collections(scope), Collection.id == collection_id)
    )
    if collection is None:
        raise CollectionMissing(collection_id)
    return collection


def find_collection(session: Session, scope: Scope, name_or_id: str) -> Collection:
    """By id, else by name; the oldest of several with one name."""
    collection = session.scalar(
        select(Collection)
        .where(
            readable_collections(scope),
            (Collection.id == name_or_id) | (Collection.name == name_or_id),
        )
        .order_by(Collection.id != name_or_id, Collection.created_at, Collection.id)
        .limit(1)
    )
    if collection is None:
        raise CollectionMissing(name_or_id)
    return collection


def list_collections(session: Session, scope: Scope, page: PageRequest) -> list[Collection]:
    query = select(Collection).where(readable_collections(scope))
    return page_of(
        session,
        query,
        page,
        created_at=Collection.created_at,
        row_id=Collection.id,
        public_id=Collection.id,
        gone_from=(scope.tenant_id, COLLECTIONS),
    )


def delete_collection(session: Session, scope: Scope, collection_id: str) -> None:
    """Removes a collection with its documents and chunks; the files stay, as in OpenAI's API."""
    collection = lock_collection(session, scope, collection_id)
    _leave_readers(session, collection)
    session.execute(delete(Chunk).where(Chunk.collection_id == collection.id))
    documents = select(Document.id).where(Document.collection_id == collection.id)
    session.execute(delete(Job).where(Job.document_id.in_(documents)))
    session.execute(update(Document).where(Document.collection_id == collection.id).values(parent_id=None))
    session.execute(delete(Document).where(Document.collection_id == collection.id))
    session.execute(delete(ChunkLog).where(ChunkLog.collection_id == collection.id))
    session.execute(delete(GoneRow).where(GoneRow.list_name == collection.id))
    _note_gone(
        session, collection.tenant_id, COLLECTIONS, collection.id, collection.created_at, collection.id
    )
    session.delete(collection)
    wake(session, Topic.INDEXES)
    record(session, DeletedKind.COLLECTION, collection.id, collection.tenant_id)


def count_documents(
    session: Session, scope: Scope, collection_ids: Sequence[str]
) -> dict[str, dict[DocumentStatus, int]]:
    """How many documents of each status each collection holds."""
    counts: dict[str, dict[DocumentStatus, int]] = {collection_id: {} for collection_id in collection_ids}
    rows = session.execute(
        select(Document.collection_id, Document.status, func.count())
        .where(readable_documents(scope), Document.collection_id.in_(collection_ids))
        .group_by(Document.collection_id, Document.status)
    )
    for collection_id, status, count in rows:
        counts[collection_id][status] = count
    return counts


def usage_bytes(session: Session, scope: Scope, collection_ids: Sequence[str]) -> dict[str, int]:
    """Bytes of chunk text and embeddings that each collection's documents take."""
    rows = session.execute(
        select(Document.collection_id, func.sum(Document.usage_bytes))
        .where(readable_documents(scope), Document.collection_id.in_(collection_ids))
        .group_by(Document.collection_id)
    )
    return {collection_id: int(total) for collection_id, total in rows}


# Documents


def attach_file(
    session: Session,
    scope: Scope,
    *,
    collection: Collection,
    file: File,
    attributes: dict[str, Any],
    chunking: dict[str, Any],
    now: float,
    replaces_id: int | None = None,
    parent_id: int | None = None,
) -> Document:
    """Makes a document of a file, and the jobs that ingest it. Tenant and collection are locked by the caller.

    A file that is in already keeps its document; it is ingested anew if it failed or is to be chunked otherwise.
    `replaces_id` is an older document of the collection, which answers until this one is completed. Whoever could read
    that one, or the one that it came in, or else the file before, can read this one: `set_readers` changes it.
    """
    existing = session.scalar(
        select(Document).where(Document.collection_id == collection.id, Document.file_id == file.id)
    )
    if existing is not None:
        get_document(session, scope, collection.id, file.id)
        unfinished = existing.status in (DocumentStatus.FAILED, DocumentStatus.CANCELLED)
        if existing.chunking == chunking and not unfinished:
            existing.attributes = attributes
            return existing
        drop_document(session, existing)
        session.flush()
    before = next(
        (session.get(Document, each) for each in (replaces_id, parent_id) if each is not None), None
    )
    document = Document(
        tenant_id=scope.tenant_id,
        collection_id=collection.id,
        file_id=file.id,
        readers=file.readers if before is None else before.readers,
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


def set_readers(session: Session, document: Document, readers: Sequence[str] | None) -> None:
    """The groups that may read it and the files inside it; None is all that may read its collection."""
    document.readers = named(readers)
    if readers is not None:
        note_restriction(session, document.tenant_id)
    for child in session.scalars(select(Document).where(Document.parent_id == document.id)):
        set_readers(session, child, readers)


def note_restriction(session: Session, tenant_id: str) -> None:
    """From now on it matters in this tenant which groups a key is in."""
    session.execute(update(Tenant).where(Tenant.id == tenant_id, ~Tenant.restricts).values(restricts=True))


def queue_jobs(session: Session, collection: Collection, document_ids: Sequence[int], *, now: float) -> None:
    """A job for each document and each generation that is kept, the active one's first."""
    others: Sequence[int] = ()
    if collection.last_generation > 0:
        others = session.scalars(
            select(Generation.number).where(
                Generation.collection_id == collection.id, Generation.state != GenerationState.DISCARDED
            )
        ).all()
    trace = traceparent().get("traceparent")
    rows = [
        {
            "tenant_id": collection.tenant_id,
            "document_id": document_id,
            "generation": generation,
            "is_background": generation != collection.generation,
            "state": JobState.QUEUED,
            "due_at": now,
            "trace": trace,
            "request_id": REQUEST_ID.get(),
        }
        for generation in (collection.generation, *others)
        for document_id in document_ids
    ]
    if rows:
        session.execute(insert(Job), rows)
        wake(session, Topic.JOBS)


def get_document(session: Session, scope: Scope, collection_id: str, file_id: str) -> Document:
    get_collection(session, scope, collection_id)
    document = session.scalar(
        select(Document).where(
            readable_documents(scope),
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
    return page_of_documents(
        session, scope, collection_id, Document.collection_id == collection_id, page, status
    )


def page_of_documents(
    session: Session,
    scope: Scope,
    collection_id: str,
    chosen: ColumnElement[bool],
    page: PageRequest,
    status: DocumentStatus | None,
) -> list[Document]:
    """Of those `chosen` in a collection that the caller has found."""
    return page_of(
        session,
        select(Document).where(readable_documents(scope), chosen),
        page,
        created_at=Document.created_at,
        row_id=Document.id,
        public_id=Document.file_id,
        narrowed_by=Document.status == status if status is not None else None,
        gone_from=(scope.tenant_id, collection_id),
    )


def delete_document(session: Session, scope: Scope, collection_id: str, file_id: str) -> None:
    """Takes a file out of a collection; the file itself stays."""
    lock_collection(session, scope, collection_id)
    document = get_document(session, scope, collection_id, file_id)
    drop_document(session, document)
    name = f"{collection_id}/{file_id}/{document.created_at}"
    record(session, DeletedKind.DOCUMENT, name, document.tenant_id)


def drop_document(session: Session, document: Document) -> None:
    """With those of the files inside it."""
    for child in session.scalars(select(Document).where(Document.parent_id == document.id)):
        drop_document(session, child)
    session.flush()
    remove_chunks(session, document)
    session.execute(delete(Job).where(Job.document_id == document.id))
    collection = session.get_one(Collection, document.collection_id)
    session.get_one(File, document.file_id).readers = readers_of(collection, document)
    _note_gone(
        session,
        document.tenant_id,
        document.collection_id,
        document.file_id,
        document.created_at,
        str(document.id),
    )
    session.delete(document)


def _leave_readers(session: Session, collection: Collection) -> None:
    """Each file of a collection that goes is read by who could read it here, unless it is elsewhere too."""
    here = select(Document).where(Document.collection_id == collection.id)
    if collection.readers is None:
        of_all = here.where(Document.readers.is_(None)).with_only_columns(Document.file_id)
        session.execute(update(File).where(File.id.in_(of_all)).values(readers=None))
        here = here.where(Document.readers.is_not(None))
    for document in session.scalars(here):
        session.get_one(File, document.file_id).readers = readers_of(collection, document)
    session.flush()


def _note_gone(
    session: Session, tenant_id: str, list_name: str, public_id: str, created_at: float, row_id: str
) -> None:
    session.merge(
        GoneRow(
            tenant_id=tenant_id,
            list_name=list_name,
            public_id=public_id,
            created_at=created_at,
            row_id=row_id,
            gone_at=time.time(),
        )
    )


# Locks are taken in one order, or two transactions could wait for each other: tenant, collection, job.


def lock_tenant(session: Session, tenant_id: str) -> None:
    if session.get_bind().dialect.name == "sqlite":
        return  # It has one writer at a time.
    # Two uploads of the same bytes, or an upload and a delete, would otherwise disagree about who owns the blob.
    # `key_share` lets others go on inserting rows that refer to the tenant: ingestion does, holding a collection.
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))


def lock_collection(session: Session, scope: Scope, collection_id: str) -> Collection:
    """The collection, in which no document comes, goes or is completed until this transaction ends.

    A delete that looked for chunks before an ingestion committed them would leave them behind. Who locks it changes
    it: raises NotGranted, and CollectionMissing.
    """
    collection = session.scalar(
        select(Collection)
        .where(readable_collections(scope), Collection.id == collection_id)
        .with_for_update()
    )
    if collection is None:
        raise CollectionMissing(collection_id)
    if not may_change(scope, collection):
        raise NotGranted
    return collection


def page_of(
    session: Session,
    query: Select[Row],
    page: PageRequest,
    *,
    created_at: InstrumentedAttribute[Any],
    row_id: InstrumentedAttribute[Any],
    public_id: InstrumentedAttribute[str],
    narrowed_by: ColumnElement[bool] | None = None,
    gone_from: tuple[str, str] | None = None,
) -> list[Row]:
    """Pages by key, not by offset: rows that come or go meanwhile shift nothing.

    A cursor need not meet `narrowed_by` any more. `gone_from` is the tenant and the list's name in GoneRow: a cursor
    may have been deleted.
    """
    listed = query

    def place_of(cursor: str, param: str) -> tuple[float, Any]:
        row = session.execute(
            listed.with_only_columns(created_at, row_id).where(public_id == cursor)
        ).one_or_none()
        if row is not None:
            return row[0], row[1]
        tenant_id, list_name = gone_from or ("", "")
        gone = session.get(GoneRow, (tenant_id, list_name, cursor))
        if gone is None:
            raise CursorInvalid(cursor, param=param)
        return gone.created_at, row_id.type.python_type(gone.row_id)

    if narrowed_by is not None:
        query = query.where(narrowed_by)
    key = tuple_(created_at, row_id)
    ascending = page.order is Order.ASC
    if page.after is not None:
        place = place_of(page.after, "after")
        query = query.where(key > place if ascending else key < place)
    if page.before is not None:
        place = place_of(page.before, "before")
        query = query.where(key < place if ascending else key > place)
    rising = ascending != page.backward
    keys = (created_at, row_id) if rising else (created_at.desc(), row_id.desc())
    rows = list(session.scalars(query.order_by(*keys).limit(page.limit)))
    return rows[::-1] if page.backward else rows
