"""/v1/vector_stores/{id}/files: documents, from the queue until they can be searched."""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints, model_validator
from sqlalchemy.orm import Session

from app.edge.waiting import is_soon, until_ingested
from app.routes.body import Body
from app.routes.caller import Reader, UseServices, Writer
from app.routes.groups import Groups
from app.routes.ids import FileId, NamedFile, StoreId
from app.routes.listing import Page, listing, one_more
from app.services import Services
from ingest.pipeline import chunk_sizes
from retrieval import audit, batches, catalog
from retrieval.catalog import NotFound
from retrieval.passages import read_text
from retrieval.progress import Progress, Standing, standing_of_new, standings
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Document, DocumentStatus
from retrieval.together import in_thread

router = APIRouter(prefix="/v1/vector_stores")

OPENAI_ERROR_CODES = {
    "unsupported": "unsupported_file",
    "encrypted": "invalid_file",
    "corrupt": "invalid_file",
    "empty": "invalid_file",
    "too_large": "invalid_file",
    "limit": "invalid_file",
    "unreadable_text": "invalid_file",
}
"""Our codes for a failed document in OpenAI's coarser ones; any other is a `server_error`."""

NO_NUL = r"^[^\x00]*$"
"""PostgreSQL holds no such character, nor a number that is none."""
AttributeKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)]
AttributeText = Annotated[str, StringConstraints(max_length=512, pattern=NO_NUL)]
AttributeNumber = Annotated[float, Field(allow_inf_nan=False)]
Attributes = Annotated[dict[AttributeKey, bool | AttributeNumber | AttributeText], Field(max_length=16)]


SMALLEST_CHUNK, LARGEST_CHUNK = 100, 4096
"""In tokens; OpenAI's bounds."""


class StaticChunking(Body):
    max_chunk_size_tokens: int = Field(ge=SMALLEST_CHUNK, le=LARGEST_CHUNK)
    chunk_overlap_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def overlap_is_at_most_half(self) -> "StaticChunking":
        if self.chunk_overlap_tokens > self.max_chunk_size_tokens // 2:
            raise ValueError("chunk_overlap_tokens must not exceed half of max_chunk_size_tokens")
        return self


class AutoStrategy(Body):
    type: Literal["auto"]


class StaticStrategy(Body):
    type: Literal["static"]
    static: StaticChunking


Chunking = Annotated[AutoStrategy | StaticStrategy, Field(discriminator="type")]


class AttachFile(Body):
    file_id: NamedFile
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None
    readers: Groups | None = None
    """Ours: the groups whose keys may read it; null is all that may read the store. Left out, it is read by who could
    read the file before.
    """


class UpdateDocument(Body):
    attributes: Attributes | None = None
    readers: Groups | None = None
    """Ours, as in attaching. What is null is taken away; what is left out stays."""

    @model_validator(mode="after")
    def says_something(self) -> "UpdateDocument":
        if not self.model_fields_set:
            raise ValueError("attributes or readers must be given")
        return self


@router.post("/{vector_store_id}/files")
async def attach_file(
    store_id: StoreId, body: AttachFile, services: UseServices, scope: Writer
) -> dict[str, Any]:
    """Queues a file for ingestion. It is searchable, whole, once its status is `completed`: a small one at once."""

    def attached() -> tuple[dict[str, Any], bool]:
        shaped = attach(store_id, body, services, scope)
        is_new = shaped["status"] == DocumentStatus.IN_PROGRESS
        return shaped, is_new and is_soon(services.database, scope, store_id, [body.file_id])

    # One turn of a thread for both: each costs as much as a query.
    shaped, is_worth_a_wait = await in_thread(attached)
    if not is_worth_a_wait:
        return shaped
    await until_ingested(services.database, scope, store_id, [body.file_id])
    try:
        return await in_thread(get_document, store_id, body.file_id, services, scope)
    except NotFound:
        return shaped  # Deleted as soon as it was there.


@router.get("/{vector_store_id}/files")
def list_documents(
    store_id: StoreId,
    services: UseServices,
    scope: Reader,
    page: Page,
    filter: DocumentStatus | None = None,  # noqa: A002 - OpenAI's name
) -> dict[str, Any]:
    with services.database.read() as session:
        rows = catalog.list_documents(session, scope, store_id, one_more(page), status=filter)
        return listing(shape_documents(session, scope, rows), page, lambda shaped: shaped)


@router.get("/{vector_store_id}/files/{file_id}")
def get_document(store_id: StoreId, file_id: FileId, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        document = catalog.get_document(session, scope, store_id, file_id)
        return shape_documents(session, scope, [document])[0]


@router.post("/{vector_store_id}/files/{file_id}")
def update_document(
    store_id: StoreId, file_id: FileId, body: UpdateDocument, services: UseServices, scope: Writer
) -> dict[str, Any]:
    with services.database.write() as session:
        if body.readers is not None:
            catalog.note_restriction(session, scope.tenant_id)
        catalog.lock_collection(session, scope, store_id)
        document = catalog.get_document(session, scope, store_id, file_id)
        if "attributes" in body.model_fields_set:
            document.attributes = dict(body.attributes or {})
        if "readers" in body.model_fields_set:
            catalog.set_readers(session, document, body.readers)
        audit.record(session, AuditEvent.DOCUMENT_CHANGED, store_id, file_id, scope=scope)
        return shape_documents(session, scope, [document])[0]


@router.delete("/{vector_store_id}/files/{file_id}")
def delete_document(
    store_id: StoreId, file_id: FileId, services: UseServices, scope: Writer
) -> dict[str, Any]:
    """Takes the file out of this store; the file itself stays."""
    with services.database.write() as session:
        catalog.delete_document(session, scope, store_id, file_id)
        audit.record(session, AuditEvent.DOCUMENT_DELETED, store_id, file_id, scope=scope)
    return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}


@router.post("/{vector_store_id}/files/{file_id}/cancel")
def cancel_document(
    store_id: StoreId, file_id: FileId, services: UseServices, scope: Writer
) -> dict[str, Any]:
    """Ours: ends the file's ingestion, and that of files inside it. What has ended already stays as it is."""
    with services.database.write() as session:
        document = batches.cancel_document(session, scope, store_id, file_id)
        audit.record(session, AuditEvent.DOCUMENT_CHANGED, store_id, file_id, scope=scope)
        return shape_documents(session, scope, [document])[0]


@router.get("/{vector_store_id}/files/{file_id}/content")
def get_parsed_content(
    store_id: StoreId, file_id: FileId, services: UseServices, scope: Reader
) -> dict[str, Any]:
    """The text that offsets of citations index."""
    with services.database.read() as session:
        document = catalog.get_document(session, scope, store_id, file_id)
        text = read_text(session, scope, document.id) or ""
    services.audit.note(scope, AuditEvent.DOCUMENT_READ, (store_id, file_id))
    return {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": text}],
        "has_more": False,
        "next_page": None,
    }


def attach(store_id: str, body: AttachFile, services: Services, scope: Scope) -> dict[str, Any]:
    """Blocks. Raises NotFound."""
    now = time.time()
    with services.database.write() as session:
        catalog.lock_tenant(session, scope.tenant_id)
        collection = catalog.lock_collection(session, scope, store_id)
        file = catalog.get_file(session, scope, body.file_id)
        document = catalog.attach_file(
            session,
            scope,
            collection=collection,
            file=file,
            attributes=dict(body.attributes or {}),
            chunking=chunking_of(body.chunking_strategy),
            now=now,
        )
        if "readers" in body.model_fields_set:
            catalog.set_readers(session, document, body.readers)
        audit.record(session, AuditEvent.DOCUMENT_ADDED, store_id, body.file_id, scope=scope)
        if document.created_at == now:
            return _shape(document, standing_of_new(document, file, collection))
        return shape_documents(session, scope, [document])[0]


def chunking_of(strategy: AutoStrategy | StaticStrategy | None) -> dict[str, Any]:
    return strategy.model_dump() if strategy is not None else {"type": "auto"}


def shape_counts(counts: Mapping[DocumentStatus, int]) -> dict[str, int]:
    """OpenAI's file_counts."""
    by_status = {status.value: counts.get(status, 0) for status in DocumentStatus}
    return {**by_status, "total": sum(by_status.values())}


def shape_documents(session: Session, scope: Scope, documents: Sequence[Document]) -> list[dict[str, Any]]:
    """OpenAI's VectorStoreFile objects, with where each comes from and how far it is."""
    standing = standings(session, scope, documents, now=time.time())
    return [_shape(document, standing[document.id]) for document in documents]


def _shape(document: Document, standing: Standing) -> dict[str, Any]:
    """`reason` beside OpenAI's code of a failure is our own, finer one; so are the last three fields."""
    failed = document.status is DocumentStatus.FAILED
    return {
        "id": document.file_id,
        "object": "vector_store.file",
        "vector_store_id": document.collection_id,
        "created_at": int(document.created_at),
        "status": document.status.value,
        "last_error": {
            "code": OPENAI_ERROR_CODES.get(document.error_code or "", "server_error"),
            "message": document.error_message,
            "reason": document.error_code,
        }
        if failed
        else None,
        "usage_bytes": document.usage_bytes,
        "attributes": document.attributes,
        "readers": document.readers,
        "chunking_strategy": _shape_chunking(standing),
        "parent_file_id": standing.parent_file_id,
        "path": standing.path,
        "progress": _shape_progress(standing.progress) if standing.progress is not None else None,
    }


def _shape_chunking(standing: Standing) -> dict[str, Any]:
    """As it was asked for; `auto` is told by the sizes that it leads to, where OpenAI's form has room for them."""
    if standing.chunking["type"] == "static":
        return standing.chunking
    if standing.window_tokens is None:
        return {"type": "other"}
    largest, overlap = chunk_sizes(standing.chunking, standing.window_tokens)
    if not SMALLEST_CHUNK <= largest <= LARGEST_CHUNK:
        return {"type": "other"}
    return {
        "type": "static",
        "static": {"max_chunk_size_tokens": largest, "chunk_overlap_tokens": overlap},
    }


def _shape_progress(progress: Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "done": progress.done,
        "total": progress.total,
        "unit": progress.unit,
        "rate": round(progress.rate, 2) if progress.rate is not None else None,
        "seconds_left": round(progress.seconds_left, 1) if progress.seconds_left is not None else None,
        "waiting_for": progress.waiting_for,
    }
