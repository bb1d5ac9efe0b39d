"""/v1/files: what people uploaded."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from retrieval.expiry import DAY_S
from retrieval.scope import Scope
from retrieval.tables import File

router = APIRouter(prefix="/v1/files")

PURPOSES = ("assistants", "batch", "user_data", "vision", "evals", "fine-tune")
EXPIRES_ANCHOR, EXPIRES_SECONDS = "expires_after[anchor]", "expires_after[seconds]"
"""As OpenAI's clients write an object in a form."""
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3600, 30 * DAY_S
LONGEST_PASSWORD = 1000
FIELDS = ("purpose", EXPIRES_ANCHOR, EXPIRES_SECONDS, "password")
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
                        "expires_after": {
                            "type": "object",
                            "required": ["anchor", "seconds"],
                            "properties": {
                                "anchor": {"type": "string", "enum": ["created_at"]},
                                "seconds": {
                                    "type": "integer",
                                    "minimum": SHORTEST_LIFE_S,
                                    "maximum": LONGEST_LIFE_S,
                                },
                            },
                        },
                        "password": {"type": "string", "maxLength": LONGEST_PASSWORD},
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
        asked = _asked(upload.fields)
        assert upload.filename is not None
        received = await asyncio.to_thread(receiver.finish)
        file = await asyncio.to_thread(_keep, services, scope, received, upload.filename, asked)
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
    """Deletes the file and those inside it, and with them their documents and chunks in every vector store."""
    with services.database.write() as session:
        orphans = catalog.delete_file(session, scope, file_id)
    for blob_id in orphans:
        services.blobs.remove(blob_id)
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
    """OpenAI's File object, with where it came from beside. Its password is never shown."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at) if file.expires_at is not None else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "parent_file_id": file.parent_id,
        "path": file.path,
    }


@dataclass(frozen=True)
class _Asked:
    """The form's fields, checked."""

    purpose: str
    life_s: int | None
    password: str | None


def _asked(fields: Mapping[str, str]) -> _Asked:
    """Raises BadRequest."""
    for name in fields:
        if name not in FIELDS:
            known = ", ".join(("file", *FIELDS))
            raise BadRequest(f"The form has no field '{name}'. Known are: {known}.", param=name)
    purpose = fields.get("purpose", "assistants")
    if purpose not in PURPOSES:
        raise BadRequest(f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")
    password = fields.get("password") or None
    if password is not None and len(password) > LONGEST_PASSWORD:
        raise BadRequest(f"password is longer than {LONGEST_PASSWORD} characters.", param="password")
    return _Asked(purpose=purpose, life_s=_life_s(fields), password=password)


def _life_s(fields: Mapping[str, str]) -> int | None:
    if EXPIRES_ANCHOR not in fields and EXPIRES_SECONDS not in fields:
        return None
    if fields.get(EXPIRES_ANCHOR) != "created_at":
        raise BadRequest(f"{EXPIRES_ANCHOR} must be 'created_at'.", param=EXPIRES_ANCHOR)
    told = fields.get(EXPIRES_SECONDS, "")
    # Short, as Python refuses to read numbers of thousands of digits.
    seconds = int(told) if told.isascii() and told.isdigit() and len(told) < 10 else 0
    if not SHORTEST_LIFE_S <= seconds <= LONGEST_LIFE_S:
        raise BadRequest(
            f"{EXPIRES_SECONDS} must be a whole number from {SHORTEST_LIFE_S} to {LONGEST_LIFE_S}.",
            param=EXPIRES_SECONDS,
        )
    return seconds


def _keep(services: Services, scope: Scope, received: ReceivedBlob, filename: str, asked: _Asked) -> File:
    now = time.time()
    new = NewFile(
        filename=filename,
        purpose=asked.purpose,
        media_type=detect(received.path, filename),
        sha256=received.sha256,
        size_bytes=received.size_bytes,
    )
    with services.database.write() as session:
        file, is_new_blob = catalog.add_file(session, scope, new, now=now)
        if asked.life_s is not None:
            file.expires_at = now + asked.life_s
        if asked.password is not None:
            file.password = services.sealer.seal(asked.password, owner=file.id)
        if is_new_blob:
            services.blobs.keep(received, file.blob_id)
    return file
