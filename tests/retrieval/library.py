"""Documents for tests of retrieval: put into SQL as ingestion does, without files to parse or models to ask."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from retrieval.catalog import NewFile, add_file, attach_file, create_collection, get_file, lock_collection
from retrieval.chunks import log_chunks
from retrieval.data_keys import Encryption, TenantKeys
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import (
    Blob,
    Chunk,
    ChunkLog,
    Collection,
    Document,
    DocumentStatus,
    File,
    Job,
    LogOp,
    ParsedFile,
    ParsedPart,
    new_id,
)
from tests.fakes import DIMENSIONS, _bag_of_words

MODEL = "fake"
FINGERPRINT = "fake-bag-of-words"
AUTO = {"type": "auto"}


def new_collection(
    database: Database,
    scope: Scope,
    name: str = "letters",
    *,
    embedding_model: str = MODEL,
    now: float = 1.0,
) -> Collection:
    with database.write() as session:
        return create_collection(
            session, scope, name=name, attributes={}, embedding_model=embedding_model, now=now
        )


def new_file(
    database: Database, scope: Scope, text: str = "The vault opens at nine.", *, now: float = 1.0
) -> File:
    with database.write() as session:
        return add_text_file(session, scope, text, now=now)


def add_text_file(
    session: Session, scope: Scope, text: str, *, filename: str = "a.txt", now: float = 1.0
) -> File:
    new = NewFile(
        filename=filename, purpose="assistants", media_type="text/plain", blob=new_blob(scope, text)
    )
    return add_file(session, scope, new, now=now)[0]


def new_blob(scope: Scope, text: str) -> Blob:
    """The row of a text that is nowhere on disk."""
    content = text.encode()
    return Blob(
        id=new_id("blob-"),
        tenant_id=scope.tenant_id,
        digest=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
    )


def attach(
    session: Session,
    scope: Scope,
    collection_id: str,
    file_id: str,
    *,
    attributes: dict[str, Any] | None = None,
    chunking: dict[str, Any] | None = None,
    now: float = 1.0,
) -> Document:
    return attach_file(
        session,
        scope,
        collection=lock_collection(session, scope, collection_id),
        file=get_file(session, scope, file_id),
        attributes=attributes or {},
        chunking=chunking or AUTO,
        now=now,
    )


def shelve(
    database: Database,
    scope: Scope,
    collection: Collection,
    *paragraphs: str,
    filename: str = "a.txt",
    attributes: dict[str, Any] | None = None,
    headings: Sequence[str] = (),
    fingerprint: str = FINGERPRINT,
    dimensions: int = DIMENSIONS,
    now: float = 1.0,
) -> Document:
    """A file of these paragraphs as a completed document, a chunk each."""
    with database.write() as session:
        file = add_text_file(session, scope, "\n\n".join(paragraphs), filename=filename, now=now)
        document = attach(session, scope, collection.id, file.id, attributes=attributes, now=now)
        complete(
            session, document, paragraphs, headings=headings, fingerprint=fingerprint, dimensions=dimensions
        )
        return document


def complete(
    session: Session,
    document: Document,
    paragraphs: Sequence[str],
    *,
    headings: Sequence[str] = (),
    fingerprint: str = FINGERPRINT,
    dimensions: int = DIMENSIONS,
) -> None:
    """Does what the pipeline does at its end. Page n holds the paragraph n."""
    text = "\n\n".join(paragraphs)
    file = session.get_one(File, document.file_id)
    session.merge(
        ParsedFile(blob_id=file.blob_id, media_type=file.media_type, page_count=None, attachments=0)
    )
    session.flush()
    session.merge(
        ParsedPart(
            blob_id=file.blob_id, media_type=file.media_type, number=0, start_char=0, text=text, elements=b""
        )
    )
    collection = session.get_one(Collection, document.collection_id, with_for_update=True)
    collection.fingerprint = fingerprint
    chunks: list[Chunk] = []
    start = 0
    for position, paragraph in enumerate(paragraphs):
        end = start + len(paragraph)
        chunks.append(
            Chunk(
                tenant_id=document.tenant_id,
                collection_id=document.collection_id,
                document_id=document.id,
                generation=collection.generation,
                position=position,
                text=paragraph,
                start_char=start,
                end_char=end,
                headings=list(headings),
                token_count=len(paragraph.split()),
                places=[[start, end, position + 1, [0.0, 0.0, 100.0, 10.0]]],
                embedding=_bag_of_words(paragraph, 0, dimensions).astype(np.float16).tobytes(),
            )
        )
        start = end + 2
    session.add_all(chunks)
    session.flush()
    log_chunks(session, document, collection.generation, LogOp.ADD)
    session.execute(delete(Job).where(Job.document_id == document.id))
    document.status = DocumentStatus.COMPLETED


def chunk_ids(database: Database, collection: Collection) -> set[int]:
    with database.read() as session:
        return set(session.scalars(select(Chunk.id).where(Chunk.collection_id == collection.id)))


def log_of(database: Database, collection: Collection) -> list[tuple[int, LogOp, int]]:
    with database.read() as session:
        rows = session.execute(
            select(ChunkLog.seq, ChunkLog.op, ChunkLog.chunk_id)
            .where(ChunkLog.collection_id == collection.id)
            .order_by(ChunkLog.seq)
        )
        return [(seq, op, chunk_id) for seq, op, chunk_id in rows]


def replayed(log: Sequence[tuple[int, LogOp, int]]) -> set[int]:
    """The chunks that are alive at the log's end."""
    alive: set[int] = set()
    for _, op, chunk_id in log:
        (alive.add if op is LogOp.ADD else alive.remove)(chunk_id)
    return alive


def encryption_in(folder: Path) -> Encryption:
    """With keys that are always the same."""
    memory = folder / "memory"
    memory.mkdir(exist_ok=True)
    return Encryption(TenantKeys(bytes(range(32))), memory)
