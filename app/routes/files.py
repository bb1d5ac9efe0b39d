"""/v1/files: what people uploaded."""

import asyncio
import time
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import Field
from sqlalchemy.orm import Session

from app.access.quotas import check_room
from app.access.retention import must_not_keep
from app.edge.blob_reply import BlobReply
from app.edge.uploads import MAX_FIELD_BYTES, receive_form
from app.errors import BadRequest
from app.routes.body import Body, form_of, read_fields
from app.routes.caller import Reader, UseServices, Writer
from app.routes.ids import FileId
from app.routes.listing import LongPage, listing, one_more
from app.services import Services
from ingest.media_types import detect
from retrieval import audit, catalog
from retrieval.blobs import BlobContent, ReceivedBlob, Receiver, TooLarge
from retrieval.catalog import FileMissing, NewFile
from retrieval.expiry import DAY_S
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Blob, File

router = APIRouter(prefix="/v1/files")

Purpose = Literal["assistants", "batch", "user_data", "vision", "evals", "fine-tune"]
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3600, 30 * DAY_S
LONGEST_PASSWORD = 1000
OF_PROMPTS = ("batch", "evals", "fine-tune")
"""Files of these purposes hold what is asked, and are no documents."""


class FileExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_LIFE_S, le=LONGEST_LIFE_S)


class FileForm(Body):
    """The form's fields beside the file itself."""

    purpose: Purpose = "assistants"
    expires_after: FileExpiresAfter | None = None
    password: str | None = Field(None, max_length=LONGEST_PASSWORD)
    """Ours: opens an encrypted file."""


@router.post("", openapi_extra=form_of(FileForm, "file"))
async def create_file(request: Request, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Stores an upload. Its type is found from its content before it is accepted."""
    limit_bytes = services.settings.storage.max_upload_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes + MAX_FIELD_BYTES:
        raise TooLarge(limit_bytes)
    with services.blobs.receive(limit_bytes=limit_bytes) as receiver:
        form = await receive_form(
            request.headers.get("content-type"), request.stream(), receiver, file_field="file"
        )
        asked = read_fields(FileForm, form.fields)
        if form.filename is None:
            raise BadRequest("The field 'file' needs a filename.", param="file")
        if asked.purpose in OF_PROMPTS:
            must_not_keep(scope, "purpose")
        async with services.uploads:
            file = await asyncio.to_thread(store_upload, services, scope, receiver, form.filename, asked)
    return shape(file)


@router.get("")
def list_files(
    services: UseServices, scope: Reader, page: LongPage, purpose: str | None = None
) -> dict[str, Any]:
    with services.database.read() as session:
        return listing(catalog.list_files(session, scope, one_more(page), purpose=purpose), page, shape)


@router.get("/{file_id}")
def get_file(file_id: FileId, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        return shape(catalog.get_file(session, scope, file_id))


@router.get("/{file_id}/content", response_class=FileResponse)
def get_content(file_id: FileId, services: UseServices, scope: Reader) -> FileResponse:
    with services.database.read() as session:
        file = catalog.get_file(session, scope, file_id)
        content = services.blobs.content(session, session.get_one(Blob, file.blob_id))
    if not content.path.exists():
        raise FileMissing(file_id)  # It was deleted meanwhile, or `verify` names it.
    services.audit.note(scope, AuditEvent.FILE_READ, (file_id,))
    return content_reply(content, file, inline=False)


@router.delete("/{file_id}")
def delete_file(file_id: FileId, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Deletes the file and those inside it, and with them their documents and chunks in every vector store."""
    with services.database.write() as session:
        orphans = catalog.delete_file(session, scope, file_id)
        audit.record(session, AuditEvent.FILE_DELETED, file_id, scope=scope)
    for blob_id in orphans:
        services.blobs.remove(blob_id)
    return {"id": file_id, "object": "file", "deleted": True}


def content_reply(content: BlobContent, file: File, *, inline: bool) -> FileResponse:
    """The bytes as they were uploaded. A browser may show PDFs only: anything else could be a page with scripts."""
    show = inline and file.media_type == "application/pdf"
    disposition = f"{'inline' if show else 'attachment'}; filename*=UTF-8''{quote(file.filename)}"
    headers = {"Content-Disposition": disposition}
    if show:
        # A browser's own viewer is no page of ours: what it loads is its affair.
        headers["Content-Security-Policy"] = "frame-ancestors 'self'"
    media_type = file.media_type if show else "application/octet-stream"
    return BlobReply(content, media_type=media_type, headers=headers)


def shape(file: File) -> dict[str, Any]:
    """OpenAI's File object, with where it came from beside. Its password is never shown."""
    expiry = {"expires_at": int(file.expires_at)} if file.expires_at is not None else {}
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        **expiry,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "parent_file_id": file.parent_id,
        "path": file.path,
    }


def keep(
    session: Session,
    services: Services,
    scope: Scope,
    received: ReceivedBlob,
    new: NewFile,
    *,
    life_s: int | None,
    now: float,
) -> File:
    """Makes a file of bytes that have arrived. Raises StorageFull."""
    catalog.lock_tenant(session, scope.tenant_id)
    check_room(session, scope, received.size_bytes)
    file, is_new_blob = catalog.add_file(session, scope, new, now=now)
    if life_s is not None:
        file.expires_at = now + life_s
    if is_new_blob:
        services.blobs.keep(received)
    audit.record(session, AuditEvent.FILE_ADDED, file.id, scope=scope, bytes=file.size_bytes)
    return file


def store_upload(
    services: Services, scope: Scope, receiver: Receiver, filename: str, asked: FileForm
) -> File:
    """Makes a file of what was received. Blocks. Raises EmptyFile, UnsupportedMediaType."""
    received, now = receiver.finish(), time.time()
    media_type = detect(received, filename)
    life_s = asked.expires_after.seconds if asked.expires_after is not None else None
    with services.database.write() as session:
        new = NewFile(
            filename=filename,
            purpose=asked.purpose,
            media_type=media_type,
            blob=services.blobs.row(session, scope.tenant_id, received),
        )
        file = keep(session, services, scope, received, new, life_s=life_s, now=now)
        if asked.password:
            file.password = services.sealer.seal(asked.password, owner=file.id)
    return file
