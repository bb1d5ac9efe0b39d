"""/v1/uploads: large files in parts, which arrive in any order, one by one or side by side."""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints

from app.access.retention import must_not_keep
from app.edge.filenames import safe_filename
from app.edge.uploads import receive_form
from app.errors import BadRequest
from app.routes.body import Body, form_of, read_fields
from app.routes.caller import Reader, UseServices, Writer
from app.routes.files import OF_PROMPTS, FileExpiresAfter, Purpose, keep
from app.routes.files import shape as shape_file
from app.routes.ids import NamedPart, UploadId
from app.services import Services
from ingest.media_types import MediaType, detect
from retrieval import uploads
from retrieval.blobs import Receiver, TooLarge
from retrieval.catalog import NewFile
from retrieval.scope import Scope
from retrieval.segments import Damaged
from retrieval.tables import File, Upload, UploadPart, UploadState
from retrieval.uploads import NewUpload, PartMisplaced, UploadClosed

router = APIRouter(prefix="/v1/uploads")

MAX_PART_BYTES = 64 * 1024 * 1024
MOST_PARTS = 10_000
PART_FIELD = "data"


class CreateUpload(Body):
    filename: str = Field(min_length=1, max_length=1000)
    purpose: Purpose
    size_bytes: int = Field(alias="bytes", ge=1)
    mime_type: Annotated[str, StringConstraints(max_length=200, pattern=r"^[\w.+-]+/[\w.+-]+( *;.*)?$")]
    """What it names, if that is a kind that its bytes tell, must be what they are in the end."""
    expires_after: FileExpiresAfter | None = None


class PartForm(Body):
    """The part has no fields beside its bytes."""


class CompleteUpload(Body):
    part_ids: list[NamedPart] = Field(min_length=1, max_length=MOST_PARTS)
    """In the order in which they make the file."""
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{32}$")] | None = None


@router.post("")
def create_upload(body: CreateUpload, services: UseServices, scope: Writer) -> dict[str, Any]:
    if body.purpose in OF_PROMPTS:
        must_not_keep(scope, "purpose")
    limit_bytes = services.settings.storage.max_upload_bytes
    if body.size_bytes > limit_bytes:
        raise TooLarge(limit_bytes)
    new = NewUpload(
        filename=safe_filename(body.filename),
        purpose=body.purpose,
        mime_type=body.mime_type.partition(";")[0].strip().lower(),
        size_bytes=body.size_bytes,
        life_s=body.expires_after.seconds if body.expires_after is not None else None,
    )
    now = time.time()
    with services.database.write() as session:
        return _shape(uploads.add_upload(session, scope, new, now=now), None, now=now)


@router.get("/{upload_id}")
def get_upload(upload_id: UploadId, services: UseServices, scope: Reader) -> dict[str, Any]:
    """Ours: for who lost the thread."""
    with services.database.read() as session:
        upload = uploads.get_upload(session, scope, upload_id)
        file = session.get(File, upload.file_id) if upload.file_id is not None else None
        return _shape(upload, file, now=time.time())


@router.get("/{upload_id}/parts")
def list_parts(upload_id: UploadId, services: UseServices, scope: Reader) -> dict[str, Any]:
    """Ours: what has arrived, so that only the rest has to be sent again."""
    with services.database.read() as session:
        parts = uploads.list_parts(session, uploads.get_upload(session, scope, upload_id))
        return {"object": "list", "data": [_shape_part(part) for part in parts]}


@router.post("/{upload_id}/parts", openapi_extra=form_of(PartForm, PART_FIELD))
async def add_part(
    upload_id: UploadId, request: Request, services: UseServices, scope: Writer
) -> dict[str, Any]:
    # Looked at before a byte is read, and again once all are there.
    await asyncio.to_thread(_check_pending, services, scope, upload_id)
    with services.blobs.receive(limit_bytes=MAX_PART_BYTES, blob_id=uploads.new_part_id()) as receiver:
        form = await receive_form(
            request.headers.get("content-type"), request.stream(), receiver, file_field=PART_FIELD
        )
        read_fields(PartForm, form.fields)
        async with services.uploads:
            part = await asyncio.to_thread(keep_part, services, scope, upload_id, receiver)
    return _shape_part(part)


@router.post("/{upload_id}/complete")
def complete_upload(
    upload_id: UploadId, body: CompleteUpload, services: UseServices, scope: Writer
) -> dict[str, Any]:
    """Puts the parts together. Who asks again, having heard no answer, gets the same one."""
    now = time.time()
    with services.database.read() as session:
        upload = uploads.get_upload(session, scope, upload_id)
        if upload.state is UploadState.COMPLETED and upload.file_id is not None:
            return _shape(upload, session.get_one(File, upload.file_id), now=now)
        if uploads.status_of(upload, now=now) != UploadState.PENDING:
            raise UploadClosed(upload, now=now)
        parts = {part.id: part for part in uploads.list_parts(session, upload)}
        _check_parts(upload, parts, body.part_ids)
        contents = [
            services.blobs.content_of_part(session, upload, parts[part_id]) for part_id in body.part_ids
        ]
    with services.blobs.receive(limit_bytes=upload.size_bytes) as receiver:
        try:
            md5 = uploads.join_parts(contents, receiver)
        except Damaged:
            _check_pending(services, scope, upload_id)  # Somebody else may have been quicker.
            raise
        if body.md5 is not None and body.md5.lower() != md5:
            raise BadRequest(f"md5: the parts in this order have {md5}, not {body.md5}.", param="md5")
        upload, file, part_ids = _complete(services, scope, upload, receiver)
    _remove(services, part_ids)
    return _shape(upload, file, now=now)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: UploadId, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Its parts are deleted."""
    now = time.time()
    with services.database.write() as session:
        upload = uploads.get_pending(session, scope, upload_id, now=now)
        part_ids = uploads.close_upload(session, upload, UploadState.CANCELLED)
        shaped = _shape(upload, None, now=now)
    _remove(services, part_ids)
    return shaped


def _remove(services: Services, part_ids: Sequence[str]) -> None:
    for part_id in part_ids:
        services.blobs.remove(part_id)


def _check_pending(services: Services, scope: Scope, upload_id: str) -> None:
    with services.database.read() as session:
        uploads.get_pending(session, scope, upload_id, now=time.time(), locks=False)


def keep_part(
    services: Services, scope: Scope, upload_id: str, receiver: Receiver, *, after_bytes: int | None = None
) -> UploadPart:
    """Blocks. `after_bytes`: how much must be there before it. Raises UploadMissing, UploadClosed, PartMisplaced."""
    received, now = receiver.finish(), time.time()
    if received.size_bytes == 0:
        raise BadRequest("The part is empty.", param=PART_FIELD)
    with services.database.write() as session:
        upload = uploads.get_pending(session, scope, upload_id, now=now)
        there = uploads.list_parts(session, upload)
        if after_bytes not in (None, sum(part.size_bytes for part in there)):
            raise PartMisplaced
        # A part whose reply was lost is sent twice; who sends all of them again and again fills the disk.
        if (
            len(there) >= MOST_PARTS
            or sum(part.size_bytes for part in there) + received.size_bytes
            > 2 * upload.size_bytes + MAX_PART_BYTES
        ):
            raise BadRequest(
                f"The upload has far more parts than its {upload.size_bytes} bytes need. Complete or cancel it.",
                param=PART_FIELD,
            )
        part = uploads.add_part(
            session, upload, services.blobs.row(session, scope.tenant_id, received), now=now
        )
        services.blobs.keep(received)
    return part


def _check_parts(upload: Upload, parts: dict[str, UploadPart], part_ids: Sequence[str]) -> None:
    for number, part_id in enumerate(part_ids):
        if part_id not in parts:
            raise BadRequest(f"The upload has no part '{part_id}'.", param=f"part_ids.{number}")
    if len(set(part_ids)) < len(part_ids):
        raise BadRequest("part_ids names a part twice.", param="part_ids")
    size_bytes = sum(parts[part_id].size_bytes for part_id in part_ids)
    if size_bytes != upload.size_bytes:
        raise BadRequest(
            f"The parts have {size_bytes} bytes together, and {upload.size_bytes} were announced.",
            param="part_ids",
        )


def _complete(
    services: Services, scope: Scope, announced: Upload, receiver: Receiver
) -> tuple[Upload, File, list[str]]:
    received, now = receiver.finish(), time.time()
    media_type = detect(received, announced.filename)
    named = announced.mime_type
    if named in TOLD_BY_BYTES and named != media_type:
        raise BadRequest(
            f"mime_type was announced as {named}, and the bytes are {media_type}.", param="mime_type"
        )
    with services.database.write() as session:
        new = NewFile(
            filename=announced.filename,
            purpose=announced.purpose,
            media_type=media_type,
            blob=services.blobs.row(session, scope.tenant_id, received),
        )
        upload = uploads.get_pending(session, scope, announced.id, now=now)
        file = keep(session, services, scope, received, new, life_s=upload.life_s, now=now)
        return upload, file, uploads.close_upload(session, upload, UploadState.COMPLETED, file_id=file.id)


TOLD_BY_BYTES = frozenset(
    {
        MediaType.PDF,
        MediaType.DOCX,
        MediaType.PPTX,
        MediaType.XLSX,
        MediaType.EPUB,
        MediaType.PNG,
        MediaType.JPEG,
        MediaType.GIF,
        MediaType.WEBP,
    }
)
"""Of texts the name decides, and clients guess."""


def _shape(upload: Upload, file: File | None, *, now: float) -> dict[str, Any]:
    """OpenAI's Upload object."""
    return {
        "id": upload.id,
        "object": "upload",
        "created_at": int(upload.created_at),
        "filename": upload.filename,
        "bytes": upload.size_bytes,
        "purpose": upload.purpose,
        "status": uploads.status_of(upload, now=now),
        "expires_at": int(upload.expires_at),
        **({"file": shape_file(file)} if file is not None else {}),
    }


def _shape_part(part: UploadPart) -> dict[str, Any]:
    """OpenAI's UploadPart object; `bytes` is ours."""
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": int(part.created_at),
        "upload_id": part.upload_id,
        "bytes": part.size_bytes,
    }
