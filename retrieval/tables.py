"""The tables that everything else is a view of. Times are seconds since 1970; ids are never used twice."""

import secrets
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RowId = BigInteger().with_variant(Integer, "sqlite")
"""63-bit and counted up by the database. SQLite needs INTEGER and AUTOINCREMENT to never reuse one."""

NEVER_REUSED = {"sqlite_autoincrement": True}


class Role(StrEnum):
    """What a key may do: a reader searches and asks, a writer also adds and deletes, an admin also makes keys."""

    READER = "reader"
    WRITER = "writer"
    ADMIN = "admin"


class DocumentStatus(StrEnum):
    """OpenAI's words for a vector store file."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"


class LogOp(StrEnum):
    ADD = "add"
    REMOVE = "remove"


def _as_text(enum: type[StrEnum]) -> Enum:
    return Enum(
        enum, native_enum=False, length=20, values_callable=lambda members: [m.value for m in members]
    )


class Base(DeclarativeBase):
    """Declares the schema; app/migrations brings a database to it."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        kind: _as_text(kind) for kind in (Role, DocumentStatus, JobState, LogOp)
    }


def new_id(prefix: str) -> str:
    """A public id such as `file-…`: 96 random bits, so that it can neither be guessed nor collide."""
    return prefix + secrets.token_hex(12)


class Tenant(Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[float]


class Key(Base):
    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    role: Mapped[Role]
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """HMAC-SHA256 of the key under the server's secret; the key itself is not stored."""
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class Blob(Base):
    """Bytes on disk, stored once a tenant. The path is made from the id, which is never used again."""

    __tablename__ = "blobs"
    __table_args__ = (UniqueConstraint("tenant_id", "sha256"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class File(Base):
    __tablename__ = "files"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"), index=True)
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(40))
    media_type: Mapped[str] = mapped_column(String(100))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float]

    __table_args__ = (Index("ix_files_listing", "tenant_id", "created_at", "id"),)


class ParsedFile(Base):
    """What a parser made of a blob, so that attaching a file to a second collection parses nothing."""

    __tablename__ = "parsed_files"

    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id", ondelete="cascade"), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(100), primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    """What offsets of chunks and citations index."""
    elements: Mapped[bytes] = mapped_column(LargeBinary)
    page_count: Mapped[int | None]


class Collection(Base):
    __tablename__ = "collections"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(Text)
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON)
    """OpenAI's `metadata`, a word that SQLAlchemy keeps for itself."""
    embedding_model: Mapped[str | None] = mapped_column(Text)
    """The alias of the model that embeds it; None, from before there was a choice, is the default one."""
    fingerprint: Mapped[str | None] = mapped_column(String(80))
    """Of the embedding model whose vectors it holds; set by its first document."""
    head: Mapped[int] = mapped_column(BigInteger, default=0)
    """The last seq of its chunk_log. Raising it locks the row, so seq order is commit order."""
    created_at: Mapped[float]
    last_active_at: Mapped[float]

    __table_args__ = (Index("ix_collections_listing", "tenant_id", "created_at", "id"),)


class Document(Base):
    __tablename__ = "documents"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    collection_id: Mapped[str] = mapped_column(ForeignKey("collections.id"))
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    status: Mapped[DocumentStatus]
    error_code: Mapped[str | None] = mapped_column(String(40))
    error_message: Mapped[str | None] = mapped_column(Text)
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON)
    chunking: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The chunking strategy in OpenAI's form, as it was asked for."""
    usage_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[float]

    __table_args__ = (
        UniqueConstraint("collection_id", "file_id"),
        Index("ix_documents_listing", "collection_id", "created_at", "id"),
        NEVER_REUSED,
    )


class Chunk(Base):
    __tablename__ = "chunks"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    collection_id: Mapped[str] = mapped_column(ForeignKey("collections.id"), index=True)
    document_id: Mapped[int] = mapped_column(ForeignKey("documents.id"))
    position: Mapped[int]
    """Counts the chunks of its document from 0."""
    text: Mapped[str] = mapped_column(Text)
    """Exactly the document's text from start_char to end_char."""
    start_char: Mapped[int]
    end_char: Mapped[int]
    headings: Mapped[list[str]] = mapped_column(JSON)
    token_count: Mapped[int]
    places: Mapped[list[Any]] = mapped_column(JSON)
    """Rows of [start_char, end_char, page, [x0, y0, x1, y1]]; page and box may be null."""
    embedding: Mapped[bytes] = mapped_column(LargeBinary)
    """float16 (dimensions,), a unit row."""

    __table_args__ = (UniqueConstraint("document_id", "position"), NEVER_REUSED)


class ChunkLog(Base):
    """Every change to a collection's chunks, in commit order: what the indexes follow."""

    __tablename__ = "chunk_log"

    collection_id: Mapped[str] = mapped_column(
        ForeignKey("collections.id", ondelete="cascade"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    op: Mapped[LogOp]
    chunk_id: Mapped[int] = mapped_column(BigInteger)


class Job(Base):
    """A document that waits to be ingested or is being ingested; a finished job is deleted."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    document_id: Mapped[int] = mapped_column(ForeignKey("documents.id", ondelete="cascade"), unique=True)
    state: Mapped[JobState]
    attempt: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[float]
    """A queued job's earliest start; a running job's end of lease, after which another worker may claim it."""
    lease: Mapped[str | None] = mapped_column(String(40))
    """A new secret at each claim: who does not hold it may not finish the job."""

    __table_args__ = (Index("ix_jobs_due", "due_at", "id"), NEVER_REUSED)


class WorkerBeat(Base):
    """A living worker process says so here, so that readiness can be told from any machine."""

    __tablename__ = "worker_beats"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    seen_at: Mapped[float]
    isolated: Mapped[bool]
    """Whether its parsers run without network."""
