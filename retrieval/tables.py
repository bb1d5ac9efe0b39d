"""The tables that everything else is a view of. Times are seconds since 1970; ids are never used twice."""

import secrets
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
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
    FAILED = "failed"
    """Only in a generation that does not answer: else the document has failed."""


NEVER = 1e15
"""When a job is due that has failed for good, but has to be seen."""


class GenerationState(StrEnum):
    BUILDING = "building"
    PREVIOUS = "previous"
    """Was the active one: kept whole and up to date, so that a rollback is a switch."""
    DISCARDED = "discarded"
    """Its jobs are gone, and its chunks go a slice at a time."""


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
        kind: _as_text(kind) for kind in (Role, DocumentStatus, JobState, GenerationState, LogOp)
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
    path: Mapped[str | None] = mapped_column(Text)
    """Where it lies in its source, archive or mail, with slashes; None for an upload."""
    media_type: Mapped[str] = mapped_column(String(100))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"), index=True)
    """The archive or mail that it came in; it goes with it."""
    password: Mapped[bytes | None] = mapped_column(LargeBinary)
    """What opens it, sealed; kept as long as the file."""
    created_at: Mapped[float]
    expires_at: Mapped[float | None] = mapped_column(index=True)

    __table_args__ = (Index("ix_files_listing", "tenant_id", "created_at", "id"),)


class ParsedFile(Base):
    """What a parser made of a blob, so that attaching a file to a second collection parses nothing."""

    __tablename__ = "parsed_files"

    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id", ondelete="cascade"), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(100), primary_key=True)
    page_count: Mapped[int | None]
    attachments: Mapped[int] = mapped_column(default=0)
    """Files that were found inside."""
    lease: Mapped[str | None] = mapped_column(String(40))
    """Of the job that parses it; None once its parts are all of it."""


class ParsedPart(Base):
    """A stretch of a parsed file. The parts in their order, put together, are its text: what offsets index."""

    __tablename__ = "parsed_parts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["blob_id", "media_type"],
            ["parsed_files.blob_id", "parsed_files.media_type"],
            ondelete="cascade",
        ),
    )

    blob_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    media_type: Mapped[str] = mapped_column(String(100), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """Counts from 0."""
    start_char: Mapped[int] = mapped_column(BigInteger)
    text: Mapped[str] = mapped_column(Text)
    elements: Mapped[bytes] = mapped_column(LargeBinary)


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
    generation: Mapped[int] = mapped_column(default=0)
    """The number of the generation that answers. `embedding_model`, `fingerprint`, `head` and `chunking` are its."""
    last_generation: Mapped[int] = mapped_column(default=0)
    """The highest number that was ever given: an index in memory is known by it."""
    chunking: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The strategy of all its documents, in OpenAI's form; None leaves each its own."""
    created_at: Mapped[float]
    last_active_at: Mapped[float]
    expires_after_days: Mapped[int | None]
    """Counted from `last_active_at`."""

    __table_args__ = (Index("ix_collections_listing", "tenant_id", "created_at", "id"),)


class Generation(Base):
    """Another set of chunks of a collection, beside the one that answers: its fields are as the collection's."""

    __tablename__ = "generations"

    collection_id: Mapped[str] = mapped_column(
        ForeignKey("collections.id", ondelete="cascade"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[GenerationState]
    embedding_model: Mapped[str | None] = mapped_column(Text)
    fingerprint: Mapped[str | None] = mapped_column(String(80))
    chunking: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    head: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[float]


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
    parent_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("documents.id"), index=True)
    """The archive or mail that it came in, in the same collection."""
    replaces_id: Mapped[int | None] = mapped_column(BigInteger)
    """The document that answers until this one is completed, and goes in that transaction."""
    batch_id: Mapped[str | None] = mapped_column(String(40), index=True)
    """OpenAI's file batch that it was attached with."""
    usage_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[float]

    __table_args__ = (
        UniqueConstraint("collection_id", "file_id"),
        Index("ix_documents_listing", "collection_id", "created_at", "id"),
        Index("ix_documents_status", "collection_id", "status"),
        NEVER_REUSED,
    )


class FileBatch(Base):
    """OpenAI's file batch: documents that were attached together. They name it."""

    __tablename__ = "file_batches"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    collection_id: Mapped[str] = mapped_column(ForeignKey("collections.id", ondelete="cascade"), index=True)
    created_at: Mapped[float]
    cancelled_at: Mapped[float | None]


class Chunk(Base):
    """Searchable once its log entry is there: those of an unfinished document have none yet."""

    __tablename__ = "chunks"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    collection_id: Mapped[str] = mapped_column(ForeignKey("collections.id"), index=True)
    document_id: Mapped[int] = mapped_column(ForeignKey("documents.id"))
    generation: Mapped[int] = mapped_column(default=0)
    position: Mapped[int]
    """Counts the chunks of its document and generation from 0."""
    text: Mapped[str] = mapped_column(Text)
    """Exactly the document's text from start_char to end_char."""
    start_char: Mapped[int]
    end_char: Mapped[int]
    headings: Mapped[list[str]] = mapped_column(JSON)
    token_count: Mapped[int]
    is_table: Mapped[bool] = mapped_column(default=False)
    similarity_hash: Mapped[int | None] = mapped_column(BigInteger)
    """Near-identical texts have hashes that differ in few bits."""
    places: Mapped[list[Any]] = mapped_column(JSON)
    """Rows of [start_char, end_char, page, [x0, y0, x1, y1]]; page and box may be null."""
    embedding: Mapped[bytes] = mapped_column(LargeBinary)
    """float16 (dimensions,), a unit row."""

    __table_args__ = (UniqueConstraint("document_id", "generation", "position"), NEVER_REUSED)


class ChunkLog(Base):
    """Every change to a generation's chunks, in commit order: what the indexes follow."""

    __tablename__ = "chunk_log"

    collection_id: Mapped[str] = mapped_column(
        ForeignKey("collections.id", ondelete="cascade"), primary_key=True
    )
    generation: Mapped[int] = mapped_column(primary_key=True, default=0)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    op: Mapped[LogOp]
    chunk_id: Mapped[int] = mapped_column(BigInteger)


class Job(Base):
    """A document that waits to be ingested or is being ingested; a finished job is deleted."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    document_id: Mapped[int] = mapped_column(ForeignKey("documents.id", ondelete="cascade"))
    generation: Mapped[int] = mapped_column(default=0)
    """Which set of chunks it makes. Uploads go to each that is kept."""
    is_background: Mapped[bool] = mapped_column(default=False)
    """Whether it lets all others go first: nobody waits for a generation that is built beside the active one."""
    state: Mapped[JobState]
    attempt: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[float]
    """A queued job's earliest start; a running job's end of lease, after which another worker may claim it."""
    lease: Mapped[str | None] = mapped_column(String(40))
    """A new secret at each claim: who does not hold it may not finish the job."""
    next_part: Mapped[int] = mapped_column(default=0)
    """Parts of the parsed file before this one are cut and embedded, in chunks that wait for the last."""
    step: Mapped[str] = mapped_column(String(20), default="queued")
    """What it does now, for people: queued, parsing, embedding, or waiting for the files inside."""
    done: Mapped[int] = mapped_column(BigInteger, default=0)
    total: Mapped[int | None] = mapped_column(BigInteger)
    """Of the step, in `unit`; None while nobody knows."""
    unit: Mapped[str | None] = mapped_column(String(20))
    step_since: Mapped[float | None]
    error_code: Mapped[str | None] = mapped_column(String(40))
    error: Mapped[str | None] = mapped_column(Text)
    """Why it failed."""

    __table_args__ = (
        UniqueConstraint("document_id", "generation"),
        Index("ix_jobs_due", "is_background", "tenant_id", "due_at", "id"),
        NEVER_REUSED,
    )


class WorkerBeat(Base):
    """A living worker process says so here, so that readiness can be told from any machine."""

    __tablename__ = "worker_beats"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    seen_at: Mapped[float]
    isolated: Mapped[bool]
    """Whether its parsers run without network."""


class Source(Base):
    """A watched place: a folder, bucket or share whose files are kept as documents of a collection."""

    __tablename__ = "sources"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    collection_id: Mapped[str] = mapped_column(ForeignKey("collections.id", ondelete="cascade"), index=True)
    url: Mapped[str] = mapped_column(Text)
    """Without credentials; those are in `options`."""
    options: Mapped[bytes | None] = mapped_column(LargeBinary)
    """What fsspec is told beside the address, such as keys: JSON, sealed."""
    include: Mapped[list[str]] = mapped_column(JSON)
    exclude: Mapped[list[str]] = mapped_column(JSON)
    max_bytes: Mapped[int] = mapped_column(BigInteger)
    every_s: Mapped[float | None]
    cron: Mapped[str | None] = mapped_column(String(200))
    is_watched: Mapped[bool]
    is_paused: Mapped[bool]
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Of each document that it brings."""
    chunking: Mapped[dict[str, Any]] = mapped_column(JSON)
    failures: Mapped[int] = mapped_column(default=0)
    """Sweeps that failed since one did not."""
    due_at: Mapped[float | None] = mapped_column(index=True)
    """Of its next sweep."""
    created_at: Mapped[float]


class SourceEntry(Base):
    """What a source's file was at the last sweep."""

    __tablename__ = "source_entries"

    source_id: Mapped[str] = mapped_column(ForeignKey("sources.id", ondelete="cascade"), primary_key=True)
    path_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of `path`, which may be longer than an index takes."""
    path: Mapped[str] = mapped_column(Text)
    tag: Mapped[str] = mapped_column(Text)
    """ETag, or time of change and size: what is equal was not changed."""
    sha256: Mapped[str | None] = mapped_column(String(64))
    file_id: Mapped[str | None] = mapped_column(String(40), index=True)
    """None when it was refused; `error` says why."""
    error: Mapped[str | None] = mapped_column(Text)


class Sweep(Base):
    """One look at a source, and what it led to."""

    __tablename__ = "sweeps"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.id", ondelete="cascade"))
    due_at: Mapped[float]
    is_dry: Mapped[bool] = mapped_column(default=False)
    """Reports what a sweep would do, and does nothing."""
    may_empty: Mapped[bool] = mapped_column(default=False)
    """Believes an empty listing of a source that had files."""
    started_at: Mapped[float | None]
    """None while it was asked for and waits for the leader."""
    ended_at: Mapped[float | None]
    counts: Mapped[dict[str, int]] = mapped_column(JSON)
    """Files added, changed, renamed, removed, unchanged, refused."""
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (UniqueConstraint("source_id", "due_at"), NEVER_REUSED)


class Leadership(Base):
    """Who runs the schedules. Every effect of a leader's run is committed under its fence."""

    __tablename__ = "leaderships"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(String(40))
    fence: Mapped[int] = mapped_column(BigInteger)
    """Counts up with each change of the holder: a leader that slept through one may change nothing more."""
    until: Mapped[float]
