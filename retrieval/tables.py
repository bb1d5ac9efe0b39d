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
    text,
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


class UploadState(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class GenerationState(StrEnum):
    BUILDING = "building"
    PREVIOUS = "previous"
    """Was the active one: kept whole and up to date, so that a rollback is a switch."""
    DISCARDED = "discarded"
    """Its jobs are gone, and its chunks go a slice at a time."""


class ResponseStatus(StrEnum):
    """OpenAI's words for a response."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (ResponseStatus.QUEUED, ResponseStatus.IN_PROGRESS)


class BatchStatus(StrEnum):
    """OpenAI's words for a batch of requests."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class DeletedKind(StrEnum):
    FILE = "file"
    COLLECTION = "collection"
    DOCUMENT = "document"
    """Taken out of its collection; `object_id` is collection, file and time of creation, with slashes."""
    SOURCE = "source"
    UPLOAD = "upload"
    """Completed, cancelled or expired: its parts are gone."""
    COMPLETION = "completion"
    RESPONSE = "response"
    CONVERSATION = "conversation"
    ITEM = "item"
    """Taken out of its conversation; `object_id` is conversation, row and a digest of its id, with slashes."""
    QUESTION = "question"
    """Saved in the search lab."""
    KEY = "key"
    """Revoked."""
    KEY_TEXT = "key_text"
    """Rotated away; `object_id` is the key's id and the digest of its text, with a slash."""
    SESSION = "session"
    """Of the console, signed out. It has no row: that it stands here is all that ends it."""
    KEY_SESSIONS = "key_sessions"
    """All that were open for a key; `object_id` is the key's id and the time, with a slash."""


class LogOp(StrEnum):
    ADD = "add"
    REMOVE = "remove"


class AuditEvent(StrEnum):
    KEY_ADDED = "key.added"
    KEY_CHANGED = "key.changed"
    """Its text, groups, end or quotas."""
    KEY_REVOKED = "key.revoked"
    KEY_USED = "key.used"
    """The first time in a while."""
    SESSION_BEGUN = "session.begun"
    SESSION_ENDED = "session.ended"
    """One, or all of a key, which is the object then."""
    REFUSED = "refused"
    """No valid key was sent, or one that does not allow what was asked."""
    FILE_ADDED = "file.added"
    FILE_READ = "file.read"
    FILE_DELETED = "file.deleted"
    COLLECTION_ADDED = "collection.added"
    COLLECTION_CHANGED = "collection.changed"
    COLLECTION_DELETED = "collection.deleted"
    DOCUMENT_ADDED = "document.added"
    """Attached to a collection."""
    DOCUMENT_CHANGED = "document.changed"
    DOCUMENT_READ = "document.read"
    DOCUMENT_DELETED = "document.deleted"
    GENERATION_BEGUN = "generation.begun"
    GENERATION_SWITCHED = "generation.switched"
    GENERATION_DELETED = "generation.deleted"
    SEARCH = "search"
    ANSWER = "answer"
    TOOL_CALLED = "tool.called"
    """Of an MCP server that the owner named."""
    CITATION_OPENED = "citation.opened"
    COMPLETION_STORED = "completion.stored"
    COMPLETION_CHANGED = "completion.changed"
    COMPLETION_DELETED = "completion.deleted"
    RESPONSE_STORED = "response.stored"
    RESPONSE_DELETED = "response.deleted"
    CONVERSATION_ADDED = "conversation.added"
    CONVERSATION_CHANGED = "conversation.changed"
    CONVERSATION_DELETED = "conversation.deleted"
    QUESTION_ADDED = "question.added"
    """To a set of the search lab."""
    QUESTION_DELETED = "question.deleted"
    BATCH_ADDED = "batch.added"
    BATCH_CANCELLED = "batch.cancelled"
    SOURCE_ADDED = "source.added"
    SOURCE_CHANGED = "source.changed"
    SOURCE_SWEPT = "source.swept"
    SOURCE_DELETED = "source.deleted"
    ENGINE_ADDED = "engine.added"
    ENGINE_REMOVED = "engine.removed"
    REPAIRED = "repaired"
    MIGRATED = "migrated"
    BACKED_UP = "backed_up"
    RESTORED = "restored"
    MASTER_KEY_CHANGED = "master_key.changed"
    QUOTAS_CHANGED = "quotas.changed"
    """Of a tenant."""
    RETENTION_CHANGED = "retention.changed"
    NOTHING_KEPT = "nothing.kept"
    """A request under zero data retention: all that stays of it."""
    AUDIT_PRUNED = "audit.pruned"
    AUDIT_RESTARTED = "audit.restarted"


class AuditOutcome(StrEnum):
    DONE = "done"
    BEGUN = "begun"
    """What no transaction can undo is told before it is done, and again after it."""
    REFUSED = "refused"
    FAILED = "failed"


def _as_text(enum: type[StrEnum]) -> Enum:
    return Enum(
        enum, native_enum=False, length=20, values_callable=lambda members: [m.value for m in members]
    )


class Base(DeclarativeBase):
    """Declares the schema; app/storage/migrations brings a database to it."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        kind: _as_text(kind)
        for kind in (
            Role,
            DocumentStatus,
            JobState,
            UploadState,
            GenerationState,
            ResponseStatus,
            LogOp,
            BatchStatus,
            DeletedKind,
        )
    }


Groups = JSON(none_as_null=True)
"""A list of groups' names, in the order of the alphabet; None where nobody named any."""
EVERY_GROUP = "*"
"""Stands among what an admin's key held, for it sees all; no group has this name."""


def new_id(prefix: str) -> str:
    """A public id such as `file-…`: 96 random bits, so that it can neither be guessed nor collide."""
    return prefix + secrets.token_hex(12)


class Tenant(Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    key: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Wraps the keys of its blobs, and is itself wrapped under the root key. Made when it is first needed."""
    restricts: Mapped[bool] = mapped_column(default=False)
    """Whether it ever named groups that alone may read something: until then all of its keys see the same."""
    quotas: Mapped[dict[str, int] | None] = mapped_column(JSON(none_as_null=True))
    """Of all its keys together, as app.access.quotas names them; None is without bounds."""
    keeps_nothing: Mapped[bool] = mapped_column(default=False)
    """Zero data retention for all its keys."""
    created_at: Mapped[float]


class Key(Base):
    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    role: Mapped[Role]
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """HMAC-SHA256 of the key under the server's secret; the key itself is not stored."""
    old_digest: Mapped[str | None] = mapped_column(String(64), index=True)
    """Of its text before the last rotation, which is taken until `old_until`."""
    old_until: Mapped[float | None]
    issuer: Mapped[str | None] = mapped_column(Text)
    """Who vouches for it, where it is a person who comes with signed tokens; None for a key with a text."""
    groups: Mapped[list[str]] = mapped_column(JSON, default=list)
    groups_held: Mapped[list[str]] = mapped_column(JSON, default=list)
    """All groups that it ever was in: what it wrote may rest on what any of them reads."""
    quotas: Mapped[dict[str, int] | None] = mapped_column(JSON(none_as_null=True))
    """As of the tenant."""
    keeps_nothing: Mapped[bool] = mapped_column(default=False)
    """Zero data retention: what it asks and is answered is stored nowhere."""
    sessions_since: Mapped[float | None]
    """When all its sessions of the console were ended: those that hold another time are over."""
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    used_at: Mapped[float | None]
    """Within an hour."""


class Blob(Base):
    """Bytes on disk, stored once a tenant. The path is made from the id, which is never used again."""

    __tablename__ = "blobs"
    __table_args__ = (UniqueConstraint("tenant_id", "digest"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    digest: Mapped[str] = mapped_column(String(64))
    """Of the bytes: HMAC-SHA256 under the tenant's key; plain SHA-256 where nothing is encrypted."""
    key: Mapped[bytes | None] = mapped_column(LargeBinary)
    """What opens the bytes, wrapped under the tenant's key: without this row they are noise. None where nothing is
    encrypted."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class File(Base):
    __tablename__ = "files"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    key_id: Mapped[str | None] = mapped_column(String(40))
    """Of the key or source that made it; None is from before they were noted."""
    readers: Mapped[list[str] | None] = mapped_column(Groups)
    """The groups that may read it while it is in no collection: those that could when it last was in one."""
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


class GoneRow(Base):
    """Where a row stood in a list before it was deleted: who goes through a list, deleting, asks for what follows."""

    __tablename__ = "gone_rows"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    list_name: Mapped[str] = mapped_column(String(40), primary_key=True)
    """`files`, `collections`, or the collection whose documents are listed."""
    public_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    created_at: Mapped[float]
    row_id: Mapped[str] = mapped_column(String(40))
    gone_at: Mapped[float] = mapped_column(index=True)


class Upload(Base):
    """A file that arrives in parts."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    state: Mapped[UploadState]
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(40))
    mime_type: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of the whole file, as it was announced."""
    life_s: Mapped[int | None]
    """Of the file, from its creation on."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="set null"), index=True)
    """None until it is completed, and after the file was deleted."""
    created_at: Mapped[float]
    expires_at: Mapped[float] = mapped_column(index=True)


class UploadPart(Base):
    """Bytes of an upload that lie on disk under this id."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="cascade"), index=True)
    key: Mapped[bytes | None] = mapped_column(LargeBinary)
    """As of a blob."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float]


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
    description: Mapped[str | None] = mapped_column(Text)
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON)
    """OpenAI's `metadata`, a word that SQLAlchemy keeps for itself."""
    embedding_model: Mapped[str | None] = mapped_column(Text)
    """The alias of the model that embeds it; None, from before there was a choice, is the default one."""
    fingerprint: Mapped[str | None] = mapped_column(String(80))
    """Of the embedding model whose vectors it holds; set by its first document."""
    window_tokens: Mapped[int | None]
    """What that model reads at once, which is the size of chunks that nobody gave another; set with it."""
    head: Mapped[int] = mapped_column(BigInteger, default=0)
    """The last seq of its chunk_log. Raising it locks the row, so seq order is commit order."""
    generation: Mapped[int] = mapped_column(default=0)
    """The number of the generation that answers. The model's columns, `head` and `chunking` are its."""
    last_generation: Mapped[int] = mapped_column(default=0)
    """The highest number that was ever given: an index in memory is known by it."""
    chunking: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The strategy of all its documents, in OpenAI's form; None leaves each its own."""
    created_at: Mapped[float]
    readers: Mapped[list[str] | None] = mapped_column(Groups)
    """The groups that may read it, beside the writers and admins; None is all keys of the tenant."""
    writers: Mapped[list[str] | None] = mapped_column(Groups)
    """The groups whose writers may change it, beside admins; None is all that may read it."""
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
    window_tokens: Mapped[int | None]
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
    readers: Mapped[list[str] | None] = mapped_column(Groups)
    """The groups that may read it, of those that may read the collection; None is all of them."""
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
        Index(
            "ix_documents_readers",
            "collection_id",
            postgresql_where=text("readers IS NOT NULL"),
            sqlite_where=text("readers IS NOT NULL"),
        ),
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
    trace: Mapped[str | None] = mapped_column(String(55))
    """The W3C traceparent of the request that queued it, while requests are traced."""
    request_id: Mapped[str | None] = mapped_column(String(128))
    """Of that request: the worker's log lines tell it."""

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
    digest: Mapped[str | None] = mapped_column(String(64))
    """Of its bytes, as in `blobs`."""
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


class StoredCompletion(Base):
    """A chat completion that its client asked to keep, with the messages that it answered."""

    __tablename__ = "stored_completions"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    key_id: Mapped[str | None] = mapped_column(String(40))
    """Of the key that asked; None is from before keys were noted."""
    model: Mapped[str] = mapped_column(Text)
    attributes: Mapped[dict[str, str]] = mapped_column(JSON)
    """OpenAI's `metadata`."""
    messages: Mapped[str] = mapped_column(Text)
    """JSON, as they were sent."""
    completion: Mapped[str] = mapped_column(Text)
    """JSON, as it was told."""
    created_at: Mapped[float] = mapped_column(index=True)

    __table_args__ = (Index("ix_stored_completions_listing", "tenant_id", "created_at", "id"),)


class StoredCompletionFile(Base):
    """A file that a stored completion was written from, and may quote: it goes with it."""

    __tablename__ = "stored_completion_files"

    completion_id: Mapped[str] = mapped_column(
        ForeignKey("stored_completions.id", ondelete="cascade"), primary_key=True
    )
    file_id: Mapped[str] = mapped_column(
        ForeignKey("files.id", ondelete="cascade"), primary_key=True, index=True
    )


class Batch(Base):
    """OpenAI's batch: requests from a file, which are run behind all others."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    key_id: Mapped[str] = mapped_column(ForeignKey("keys.id"))
    """Its requests see what this key sees; they end when it is revoked."""
    endpoint: Mapped[str] = mapped_column(String(60))
    input_file_id: Mapped[str] = mapped_column(String(40))
    output_file_id: Mapped[str | None] = mapped_column(String(40))
    error_file_id: Mapped[str | None] = mapped_column(String(40))
    output_life_s: Mapped[int | None]
    """How long those two are kept; None is for ever."""
    attributes: Mapped[dict[str, str]] = mapped_column(JSON)
    """OpenAI's `metadata`."""
    model: Mapped[str | None] = mapped_column(Text)
    """That of its first request."""
    status: Mapped[BatchStatus]
    reached: Mapped[dict[str, float]] = mapped_column(JSON)
    """When it came to each status."""
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    """Why it failed, by line of the file."""
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    usage: Mapped[dict[str, int]] = mapped_column(JSON)
    created_at: Mapped[float]
    expires_at: Mapped[float]
    due_at: Mapped[float | None] = mapped_column(index=True)
    """The end of its lease, after which another process may claim it; None once it has ended."""
    lease: Mapped[str | None] = mapped_column(String(40))
    """A new secret at each claim: who does not hold it may not write to the batch."""

    __table_args__ = (Index("ix_batches_listing", "tenant_id", "created_at", "id"),)


class BatchLine(Base):
    """A request of a batch that was answered; deleted once the files with all answers are written."""

    __tablename__ = "batch_lines"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="cascade"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """Of the line in the input file, from 1."""
    is_ok: Mapped[bool]
    told: Mapped[str] = mapped_column(Text)
    """The line of the output or error file: JSON."""


class Leadership(Base):
    """Who runs the schedules. Every effect of a leader's run is committed under its fence."""

    __tablename__ = "leaderships"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(String(40))
    fence: Mapped[int] = mapped_column(BigInteger)
    """Counts up with each change of the holder: a leader that slept through one may change nothing more."""
    until: Mapped[float]


class Conversation(Base):
    """OpenAI's conversation: items that responses read and append to."""

    __tablename__ = "conversations"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    key_id: Mapped[str] = mapped_column(String(40))
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON)
    """OpenAI's `metadata`."""
    response_id: Mapped[str | None] = mapped_column(String(40))
    """The response that runs in it now: a second one would answer to half a conversation."""
    held_until: Mapped[float | None]
    """After which that response is taken for dead."""
    created_at: Mapped[float]


class StoredResponse(Base):
    """OpenAI's response. What it was asked and what it said are its items; those of documents' text, as places."""

    __tablename__ = "responses"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    key_id: Mapped[str] = mapped_column(String(40))
    """Of the key that asked: a background response ends with it."""
    status: Mapped[ResponseStatus]
    previous_id: Mapped[str | None] = mapped_column(String(40), index=True)
    """The response that it goes on from, which may be deleted since."""
    conversation_id: Mapped[str | None] = mapped_column(String(40))
    is_background: Mapped[bool]
    content: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The object as clients get it, without its output."""
    request: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """What a background response was asked with, until it has ended."""
    lease: Mapped[str | None] = mapped_column(String(40))
    """A new secret at each claim, as of a job."""
    due_at: Mapped[float | None] = mapped_column(index=True)
    """A queued response's earliest start; a running one's end of lease. None once it has ended."""
    attempt: Mapped[int] = mapped_column(default=0)
    """Counts starts that did not come to an end."""
    last_event: Mapped[int] = mapped_column(default=-1)
    """The highest sequence number that was ever given to an event of it."""
    created_at: Mapped[float] = mapped_column(index=True)


class Item(Base):
    """OpenAI's item, of a response or of a conversation: each has its own, and takes them along when it is deleted."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    """Counts up in the order of the items."""
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    response_id: Mapped[str | None] = mapped_column(
        ForeignKey("responses.id", ondelete="cascade"), index=True
    )
    conversation_id: Mapped[str | None] = mapped_column(
        ForeignKey("conversations.id", ondelete="cascade"), index=True
    )
    public_id: Mapped[str] = mapped_column(String(80))
    is_output: Mapped[bool]
    content: Mapped[dict[str, Any]] = mapped_column(JSON)

    __table_args__ = (
        UniqueConstraint("conversation_id", "public_id"),
        Index("ix_items_public_id", "tenant_id", "public_id"),
        NEVER_REUSED,
    )


class ResponseEvent(Base):
    """An event of a background response's stream, for whoever reads it now or later."""

    __tablename__ = "response_events"

    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id", ondelete="cascade"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """OpenAI's sequence_number."""
    content: Mapped[dict[str, Any]] = mapped_column(JSON)


class Deletion(Base):
    """The ledger of what was deleted or revoked, ids only: replayed over an older backup, so that it stays deleted."""

    __tablename__ = "deletions"

    kind: Mapped[DeletedKind] = mapped_column(primary_key=True)
    object_id: Mapped[str] = mapped_column(String(150), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(40))


class AuditEntry(Base):
    """Something that was done or refused. Only added; each holds the hash of the one before it.

    All is plain text and numbers, so that what was changed to nonsense can still be read and named.
    """

    __tablename__ = "audit_entries"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """Counts from 1 without a gap, in the order of the commits."""
    time: Mapped[float]
    tenant_id: Mapped[str | None] = mapped_column(String(40))
    """None for acts of the machine's owner, and for those of nobody known."""
    key_id: Mapped[str | None] = mapped_column(String(40))
    event: Mapped[str] = mapped_column(String(20))
    outcome: Mapped[str] = mapped_column(String(20))
    objects: Mapped[str] = mapped_column(Text)
    """Ids of what it was done to: JSON."""
    details: Mapped[str] = mapped_column(Text)
    """Counts and keyed hashes, never text of people or documents: JSON."""
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))

    __table_args__ = (Index("ix_audit_entries_listing", "tenant_id", "seq"),)


class SavedQuestion(Base):
    """One passage that answers a question which somebody saved; a question with several has as many rows."""

    __tablename__ = "saved_questions"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    question_id: Mapped[str] = mapped_column(String(40))
    set_name: Mapped[str] = mapped_column(String(80))
    question: Mapped[str] = mapped_column(Text)
    answer: Mapped[str | None] = mapped_column(Text)
    """None where no document answers it; then there is no place either."""
    document_id: Mapped[int | None] = mapped_column(
        ForeignKey("documents.id", ondelete="cascade"), index=True
    )
    start_char: Mapped[int | None] = mapped_column(BigInteger)
    end_char: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[float]

    __table_args__ = (Index("ix_saved_questions_listing", "tenant_id", "set_name", "id"),)


class AuditHead(Base):
    """Where the audit log stands: one row, signed anew by each transaction that adds to the log."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))
    pruned_seq: Mapped[int] = mapped_column(BigInteger)
    """Entries up to this one were removed because of their age."""
    pruned_hash: Mapped[str] = mapped_column(String(64))
    time: Mapped[float]
    signature: Mapped[str] = mapped_column(String(128))
    """Ed25519, hexadecimal; empty where the database was opened without the key."""


class BackupRun(Base):
    """The last backup that was asked for: one row, so that one is made at a time, and every process tells how far."""

    __tablename__ = "backup_runs"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(80))
    maker: Mapped[str] = mapped_column(String(40))
    """A new secret each time: who does not hold it may not write here any more."""
    step: Mapped[str] = mapped_column(String(40))
    done: Mapped[int]
    total: Mapped[int]
    began_at: Mapped[float]
    told_at: Mapped[float]
    """When its maker was last heard of."""
    ended_at: Mapped[float | None]
    failed: Mapped[str | None] = mapped_column(Text)
    """Why, in words."""
