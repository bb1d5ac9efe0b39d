"""Files that come into a collection: small ones whole, large ones in parts, which go on where they were cut off."""

import time
from typing import Annotated, Any
from urllib.parse import unquote

import orjson
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.console.evidence import CollectionId
from app.console.session import SignedInWriter
from app.console.views import ConsoleRoute
from app.edge.filenames import safe_filename
from app.routes.body import read_model
from app.routes.caller import UseServices
from app.routes.documents import AttachFile, attach
from app.routes.files import FileForm, store_upload
from app.routes.ids import UploadId
from app.routes.uploads import MAX_PART_BYTES, CompleteUpload, cancel_upload, complete_upload, keep_part
from app.services import Services
from ingest.media_types import UnsupportedMediaType
from retrieval import audit, catalog, uploads
from retrieval.access import readable_documents
from retrieval.blobs import Receiver, TooLarge
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Collection, Document, DocumentStatus, File, UploadState
from retrieval.together import in_thread
from retrieval.uploads import NewUpload, PartMisplaced, UploadClosed

router = APIRouter(
    prefix="/console/collections/{collection_id}", include_in_schema=False, route_class=ConsoleRoute
)

FOLDER = "folder"
"""The attribute that keeps where a file lay in a folder that was dropped."""
PURPOSE = "assistants"
PART_BYTES = 4 * 1024 * 1024
"""What pages send at once. A smaller file comes whole."""
ANY_TYPE = "application/octet-stream"
"""Nothing is announced: its bytes and its name tell."""


@router.post("/upload")
async def upload(
    collection_id: CollectionId, request: Request, services: UseServices, visitor: SignedInWriter
) -> Response:
    """One file, as it comes. Its name, and its folder's, stand in headers."""
    limit_bytes = services.settings.storage.max_upload_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise TooLarge(limit_bytes)
    folder, name = _place(request)
    # Before the bytes are sent, not after.
    await in_thread(_must_exist, services, visitor.scope, collection_id)
    with services.blobs.receive(limit_bytes=limit_bytes) as receiver:
        async for piece in request.stream():
            receiver.write(piece)
        async with services.uploads:
            file_id = await in_thread(_take, services, visitor.scope, collection_id, receiver, name, folder)
    return _told({"id": file_id}, 201)


@router.post("/uploads")
def begin(
    collection_id: CollectionId,
    request: Request,
    services: UseServices,
    visitor: SignedInWriter,
    size_bytes: Annotated[int, Query(alias="bytes", ge=1)],
) -> Response:
    """Announces a file that comes in parts, one after the other."""
    limit_bytes = services.settings.storage.max_upload_bytes
    if size_bytes > limit_bytes:
        raise TooLarge(limit_bytes)
    _must_exist(services, visitor.scope, collection_id)
    _, name = _place(request)
    new = NewUpload(filename=name, purpose=PURPOSE, mime_type=ANY_TYPE, size_bytes=size_bytes, life_s=None)
    with services.database.write() as session:
        return _told({"id": uploads.add_upload(session, visitor.scope, new, now=time.time()).id}, 201)


@router.get("/uploads/{upload_id}")
def received(upload_id: UploadId, services: UseServices, visitor: SignedInWriter) -> Response:
    """How many of its bytes are here. Raises UploadMissing, UploadClosed."""
    with services.database.read() as session:
        found = uploads.get_upload(session, visitor.scope, upload_id)
        if found.state is UploadState.COMPLETED:
            return _told({"received": found.size_bytes})
        if uploads.status_of(found, now=time.time()) != UploadState.PENDING:
            raise UploadClosed(found, now=time.time())
        return _told({"received": sum(part.size_bytes for part in uploads.list_parts(session, found))})


@router.post("/uploads/{upload_id}/parts")
async def add_part(
    upload_id: UploadId,
    request: Request,
    services: UseServices,
    visitor: SignedInWriter,
    after: Annotated[int, Query(ge=0)],
) -> Response:
    """Tells how many bytes are here then. A part that does not come right after them is not kept."""
    with services.blobs.receive(limit_bytes=MAX_PART_BYTES, blob_id=uploads.new_part_id()) as receiver:
        async for piece in request.stream():
            receiver.write(piece)
        async with services.uploads:
            try:
                part = await in_thread(
                    keep_part, services, visitor.scope, upload_id, receiver, after_bytes=after
                )
            except PartMisplaced:
                return await in_thread(received, upload_id, services, visitor)
    return _told({"received": after + part.size_bytes})


@router.post("/uploads/{upload_id}/complete")
def complete(
    collection_id: CollectionId,
    upload_id: UploadId,
    request: Request,
    services: UseServices,
    visitor: SignedInWriter,
) -> Response:
    """Who asks again, having heard no answer, gets the same one."""
    scope = visitor.scope
    _must_exist(services, scope, collection_id)
    with services.database.read() as session:
        found = uploads.get_upload(session, scope, upload_id)
        file_id = found.file_id
        part_ids = [part.id for part in uploads.list_parts(session, found)]
    if file_id is None:
        try:
            parts = read_model(CompleteUpload, {"part_ids": part_ids})
            file_id = complete_upload(upload_id, parts, services, scope)["file"]["id"]
        except UnsupportedMediaType:
            cancel_upload(upload_id, services, scope)
            raise
    folder, _ = _place(request)
    return _told({"id": _add(services, scope, collection_id, file_id, folder)}, 201)


def _place(request: Request) -> tuple[str, str]:
    """Folder and name of the file."""
    folder, _, name = unquote(request.headers.get("x-file-path", "")).rpartition("/")
    return folder, safe_filename(name)


def _must_exist(services: Services, scope: Scope, collection_id: str) -> Collection:
    with services.database.read() as session:
        return catalog.get_collection(session, scope, collection_id)


def _take(
    services: Services, scope: Scope, collection_id: str, receiver: Receiver, name: str, folder: str
) -> str:
    file = store_upload(services, scope, receiver, name, FileForm())
    return _add(services, scope, collection_id, file.id, folder)


def _add(services: Services, scope: Scope, collection_id: str, file_id: str, folder: str) -> str:
    """The same bytes at the same place are one document, so that what was cut off is safely sent again."""
    attributes: dict[str, Any] = {FOLDER: folder[:512]} if folder else {}
    with services.database.write() as session:
        there = _twin(session, scope, collection_id, file_id, attributes.get(FOLDER))
        if there is not None:
            catalog.delete_file(session, scope, file_id)
            audit.record(session, AuditEvent.FILE_DELETED, file_id, scope=scope)
            return there
    attach(collection_id, AttachFile(file_id=file_id, attributes=attributes), services, scope)
    return file_id


def _twin(session: Session, scope: Scope, collection_id: str, file_id: str, folder: str | None) -> str | None:
    file = catalog.get_file(session, scope, file_id)
    twins = session.scalars(
        select(Document)
        .join(File, File.id == Document.file_id)
        .where(
            readable_documents(scope),
            Document.collection_id == collection_id,
            Document.status.in_((DocumentStatus.IN_PROGRESS, DocumentStatus.COMPLETED)),
            File.blob_id == file.blob_id,
            File.filename == file.filename,
            File.id != file.id,
        )
    )
    return next((each.file_id for each in twins if each.attributes.get(FOLDER) == folder), None)


def _told(told: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(told), status, media_type="application/json")
