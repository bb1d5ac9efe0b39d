"""/v1/vector_stores/{id}/files: documents, from the queue until they can be searched."""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy.orm import Session

from app.routes.caller import Reader, UseServices, Writer
from app.routes.listing import Page, listing, one_more
from retrieval import batches, catalog
from retrieval.passages import read_text
from retrieval.progress import Progress, Standing, standings
from retrieval.scope import Scope
from retrieval.tables import Document, DocumentStatus

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

AttributeKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeText = Annotated[str, StringConstraints(max_length=512)]
Attributes = Annotated[dict[AttributeKey, bool | float | AttributeText], Field(max_length=16)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StaticChunking(Body):
    max_chunk_size_tokens: int = Field(ge=100, le=4096)
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
    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class UpdateAttributes(Body):
    attributes: Attributes | None


@router.post("/{store_id}/files")
def attach_file(store_id: str, body: AttachFile, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Queues a file for ingestion. It is searchable, whole, once its status is `completed`."""
    with services.database.write() as session:
        document = catalog.attach_file(
            session,
            scope,
            collection_id=store_id,
            file_id=body.file_id,
            attributes=dict(body.attributes or {}),
            chunking=chunking_of(body.chunking_strategy),
            now=time.time(),
        )
        return shape_documents(session, scope, [document])[0]


@router.get("/{store_id}/files")
def list_documents(
    store_id: str,
    services: UseServices,
    scope: Reader,
    page: Page,
    filter: DocumentStatus | None = None,  # noqa: A002 - OpenAI's name
) -> dict[str, Any]:
    with services.database.read() as session:
        rows = catalog.list_documents(session, scope, store_id, one_more(page), status=filter)
        return listing(shape_documents(session, scope, rows), page, lambda shaped: shaped)


@router.get("/{store_id}/files/{file_id}")
def get_document(store_id: str, file_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        document = catalog.get_document(session, scope, store_id, file_id)
        return shape_documents(session, scope, [document])[0]


@router.post("/{store_id}/files/{file_id}")
def update_document(
    store_id: str, file_id: str, body: UpdateAttributes, services: UseServices, scope: Writer
) -> dict[str, Any]:
    with services.database.write() as session:
        document = catalog.get_document(session, scope, store_id, file_id)
        document.attributes = dict(body.attributes or {})
        return shape_documents(session, scope, [document])[0]


@router.delete("/{store_id}/files/{file_id}")
def delete_document(store_id: str, file_id: str, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Takes the file out of this store; the file itself stays."""
    with services.database.write() as session:
        catalog.delete_document(session, scope, store_id, file_id)
    return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}


@router.post("/{store_id}/files/{file_id}/cancel")
def cancel_document(store_id: str, file_id: str, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Ours: ends the file's ingestion, and that of files inside it. What has ended already stays as it is."""
    with services.database.write() as session:
        document = batches.cancel_document(session, scope, store_id, file_id)
        return shape_documents(session, scope, [document])[0]


@router.get("/{store_id}/files/{file_id}/content")
def get_parsed_content(store_id: str, file_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    """The text that offsets of citations index."""
    with services.database.read() as session:
        document = catalog.get_document(session, scope, store_id, file_id)
        text = read_text(session, scope, document.id) or ""
    return {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": text}],
        "has_more": False,
        "next_page": None,
    }


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
        "chunking_strategy": document.chunking
        if document.chunking["type"] == "static"
        else {"type": "other"},
        "parent_file_id": standing.parent_file_id,
        "path": standing.path,
        "progress": _shape_progress(standing.progress) if standing.progress is not None else None,
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
