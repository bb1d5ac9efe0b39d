"""/v1/files: what people uploaded."""

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from app.errors import BadRequest
from app.routes.caller import Reader, UseServices, Writer
from app.routes.listing import Page, listing, one_more
from app.services import Services
from app.uploads import MAX_FIELD_BYTES, receive_form
from ingest.media_types import detect
from retrieval import catalog
from retrieval.blobs import ReceivedBlob, TooLarge
from retrieval.catalog import NewFile
from retrieval.scope import Scope
from retrieval.tables import File

router = APIRouter(prefix="/v1/files")

PURPOSES = ("assistants", "batch", "user_data", "vision", "evals", "fine-tune")
UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES), "default": "assistants"},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=UPLOAD_FORM)
async def create_file(request: Request, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Stores an upload. Its type is found from its content before it is accepted."""
    limit_bytes = services.settings.storage.max_upload_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes + MAX_FIELD_BYTES:
        raise TooLarge(limit_bytes)
    with services.blobs.receive(limit_bytes=limit_bytes) as receiver:
        upload = await receive_form(request.headers.get("content-type"), request.stream(), receiver)
        purpose = upload.fields.get("purpose", "assistants")
        if purpose not in PURPOSES:
            raise BadRequest(f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")
        assert upload.filename is not None
        received = await asyncio.to_thread(receiver.finish)
        file = await asyncio.to_thread(_keep, services, scope, received, upload.filename, purpose)
    return shape(file)


@router.get("")
def list_files(
    services: UseServices, scope: Reader, page: Page, purpose: str | None = None
) -> dict[str, Any]:
    with services.database.read() as session:
        return listing(catalog.list_files(session, scope, one_more(page), purpose=purpose), page, shape)


@router.get("/{file_id}")
def get_file(file_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        return shape(catalog.get_file(session, scope, file_id))


@router.get("/{file_id}/content", response_class=FileResponse)
def get_content(file_id: str, services: UseServices, scope: Reader) -> FileResponse:
    with services.database.read() as session:
        file = catalog.get_file(session, scope, file_id)
    return content_reply(services.blobs.path(file.blob_id), file, inline=False)


@router.delete("/{file_id}")
def delete_file(file_id: str, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Deletes the file, and with it its documents and chunks in every vector store."""
    with services.database.write() as session:
        orphaned_blob = catalog.delete_file(session, scope, file_id)
    if orphaned_blob is not None:
        services.blobs.remove(orphaned_blob)
    return {"id": file_id, "object": "file", "deleted": True}


def content_reply(path: Path, file: File, *, inline: bool) -> FileResponse:
    """The bytes as they were uploaded. A browser may show PDFs only: anything else could be a page with scripts."""
    show = inline and file.media_type == "application/pdf"
    disposition = f"{'inline' if show else 'attachment'}; filename*=UTF-8''{quote(file.filename)}"
    headers = {"Content-Disposition": disposition, "X-Content-Type-Options": "nosniff"}
    return FileResponse(
        path, media_type=file.media_type if show else "application/octet-stream", headers=headers
    )


def shape(file: File) -> dict[str, Any]:
    """OpenAI's File object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "expires_at": None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _keep(services: Services, scope: Scope, received: ReceivedBlob, filename: str, purpose: str) -> File:
    new = NewFile(
        filename=filename,
        purpose=purpose,
        media_type=detect(received.path, filename),
        sha256=received.sha256,
        size_bytes=received.size_bytes,
    )
    with services.database.write() as session:
        file, is_new_blob = catalog.add_file(session, scope, new, now=time.time())
        if is_new_blob:
            services.blobs.keep(received, file.blob_id)
    return file
