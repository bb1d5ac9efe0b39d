"""/v1/vector_stores/{id}/file_batches: many files attached in one request, watched and cancelled as one."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from app.errors import BadRequest
from app.routes.body import Body
from app.routes.caller import Reader, UseServices, Writer
from app.routes.documents import (
    AttachFile,
    Attributes,
    Chunking,
    chunking_of,
    shape_counts,
    shape_documents,
)
from app.routes.groups import Groups
from app.routes.ids import BatchId, NamedFile, StoreId
from app.routes.listing import Page, listing, one_more
from retrieval import audit, batches
from retrieval.batches import Access, Member
from retrieval.tables import AuditEvent, DocumentStatus, FileBatch

router = APIRouter(prefix="/v1/vector_stores/{vector_store_id}/file_batches")

MOST_FILES = 2000
"""OpenAI's limit."""


class CreateBatch(Body):
    file_ids: Annotated[list[NamedFile], Field(min_length=1, max_length=MOST_FILES)] | None = None
    files: Annotated[list[AttachFile], Field(min_length=1, max_length=MOST_FILES)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None
    readers: Groups | None = None

    def members(self) -> list[Member]:
        """What is said of the whole batch is for `file_ids`; `files` have their own, as OpenAI says."""
        if (self.file_ids is None) == (self.files is None):
            raise BadRequest("Give either file_ids or files.", param="files" if self.files else "file_ids")
        if self.files is None:
            named = [_member(each, self) for each in self.file_ids or ()]
        else:
            named = [_member(each.file_id, each) for each in self.files]
        seen: set[str] = set()
        for member in named:
            # Taken once, it would be missing from the batch's total, for which clients may wait.
            if member.file_id in seen:
                field = "file_ids" if self.files is None else "files"
                raise BadRequest(f"{field} names '{member.file_id}' twice.", param=field)
            seen.add(member.file_id)
        return named


def _member(file_id: str, said: CreateBatch | AttachFile) -> Member:
    return Member(
        file_id=file_id,
        attributes=dict(said.attributes or {}),
        chunking=chunking_of(said.chunking_strategy),
        access=Access(said.readers) if "readers" in said.model_fields_set else None,
    )


@router.post("")
def create_batch(
    store_id: StoreId, body: CreateBatch, services: UseServices, scope: Writer
) -> dict[str, Any]:
    """Queues the files for ingestion, all of them or, if one is unknown, none."""
    members = body.members()
    with services.database.write() as session:
        batch = batches.create_batch(session, scope, store_id, members, now=time.time())
        file_ids = (member.file_id for member in members)
        audit.record(session, AuditEvent.DOCUMENT_ADDED, store_id, batch.id, *file_ids, scope=scope)
        return shape(batch, batches.count_batch(session, scope, batch))


@router.get("/{batch_id}")
def get_batch(store_id: StoreId, batch_id: BatchId, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        batch = batches.get_batch(session, scope, store_id, batch_id)
        return shape(batch, batches.count_batch(session, scope, batch))


@router.post("/{batch_id}/cancel")
def cancel_batch(
    store_id: StoreId, batch_id: BatchId, services: UseServices, scope: Writer
) -> dict[str, Any]:
    """Ends the ingestion of what is still in progress; what is completed stays."""
    with services.database.write() as session:
        batch = batches.cancel_batch(session, scope, store_id, batch_id, now=time.time())
        audit.record(session, AuditEvent.DOCUMENT_CHANGED, store_id, batch_id, scope=scope)
        return shape(batch, batches.count_batch(session, scope, batch))


@router.get("/{batch_id}/files")
def list_batch_documents(
    store_id: StoreId,
    batch_id: BatchId,
    services: UseServices,
    scope: Reader,
    page: Page,
    filter: DocumentStatus | None = None,  # noqa: A002 - OpenAI's name
) -> dict[str, Any]:
    with services.database.read() as session:
        rows = batches.list_batch_documents(session, scope, store_id, batch_id, one_more(page), status=filter)
        return listing(shape_documents(session, scope, rows), page, lambda shaped: shaped)


def shape(batch: FileBatch, counts: Mapping[DocumentStatus, int]) -> dict[str, Any]:
    """OpenAI's VectorStoreFileBatch object."""
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": int(batch.created_at),
        "vector_store_id": batch.collection_id,
        "status": _status(batch, counts).value,
        "file_counts": shape_counts(counts),
    }


def _status(batch: FileBatch, counts: Mapping[DocumentStatus, int]) -> DocumentStatus:
    present = {status for status, count in counts.items() if count > 0}
    if DocumentStatus.IN_PROGRESS in present:
        return DocumentStatus.IN_PROGRESS
    if batch.cancelled_at is not None:
        return DocumentStatus.CANCELLED
    if len(present) == 1:
        return present.pop()
    return DocumentStatus.COMPLETED
