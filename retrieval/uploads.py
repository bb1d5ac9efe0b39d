"""Uploads in parts: files that are announced, arrive piece by piece in any order, and are put together at the end.

Errors, beside those of the catalog:
    UploadMissing           (NotFound)
    UploadClosed            it is completed, cancelled or expired, so nothing more can be added
    PartMisplaced           what came before a part is not what its sender takes to be there
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from retrieval.access import readable_files
from retrieval.blobs import BlobContent, Receiver
from retrieval.catalog import NotFound
from retrieval.ledger import record
from retrieval.scope import Scope
from retrieval.tables import Blob, DeletedKind, File, Upload, UploadPart, UploadState, new_id

PIECE_BYTES = 1024 * 1024

LIFE_S = 86_400.0
"""OpenAI gives an hour; a slow line takes longer for a large file."""


class UploadMissing(NotFound):
    kind = "upload"


class UploadClosed(Exception):
    """Nothing more can be done with the upload."""

    def __init__(self, upload: Upload, *, now: float) -> None:
        status = status_of(upload, now=now)
        what = "no longer pending" if status == UploadState.PENDING else status
        super().__init__(f"The upload '{upload.id}' is {what}. Create another one.")


class PartMisplaced(Exception):
    """Other bytes are there than those that the part comes after."""


@dataclass(frozen=True)
class NewUpload:
    """What was announced; the fields are as the table has them."""

    filename: str
    purpose: str
    mime_type: str
    size_bytes: int
    life_s: int | None


def add_upload(session: Session, scope: Scope, new: NewUpload, *, now: float) -> Upload:
    upload = Upload(
        id=new_id("upload_"),
        tenant_id=scope.tenant_id,
        state=UploadState.PENDING,
        filename=new.filename,
        purpose=new.purpose,
        mime_type=new.mime_type,
        size_bytes=new.size_bytes,
        life_s=new.life_s,
        created_at=now,
        expires_at=now + LIFE_S,
    )
    session.add(upload)
    session.flush()
    return upload


def get_upload(session: Session, scope: Scope, upload_id: str, *, locks: bool = False) -> Upload:
    """`locks` holds the row until the transaction ends: of two that would complete it, one does."""
    # What it became may be only some groups' to read by now.
    is_readable = select(File.id).where(readable_files(scope), File.id == Upload.file_id)
    query = select(Upload).where(
        Upload.tenant_id == scope.tenant_id,
        Upload.id == upload_id,
        or_(Upload.file_id.is_(None), is_readable.correlate(Upload).exists()),
    )
    upload = session.scalar(query.with_for_update() if locks else query)
    if upload is None:
        raise UploadMissing(upload_id)
    return upload


def get_pending(session: Session, scope: Scope, upload_id: str, *, now: float, locks: bool = True) -> Upload:
    """Raises UploadMissing, UploadClosed."""
    upload = get_upload(session, scope, upload_id, locks=locks)
    if status_of(upload, now=now) != UploadState.PENDING:
        raise UploadClosed(upload, now=now)
    return upload


def new_part_id() -> str:
    return new_id("part_")


def add_part(session: Session, upload: Upload, blob: Blob, *, now: float) -> UploadPart:
    """`blob` is a row for bytes that were received under a part's id, as the blob store makes it."""
    part = UploadPart(
        id=blob.id, upload_id=upload.id, key=blob.key, size_bytes=blob.size_bytes, created_at=now
    )
    session.add(part)
    session.flush()
    return part


def list_parts(session: Session, upload: Upload) -> Sequence[UploadPart]:
    """In the order in which they came."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id)
    return session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)).all()


def join_parts(parts: Sequence[BlobContent], receiver: Receiver) -> str:
    """Writes the parts, one after the other, to the receiver. Returns the MD5 of the whole, in hex. Raises Damaged."""
    md5 = hashlib.md5(usedforsecurity=False)
    for part in parts:
        with part.open() as content:
            while piece := content.read(PIECE_BYTES):
                md5.update(piece)
                receiver.write(piece)
    return md5.hexdigest()


def close_upload(
    session: Session, upload: Upload, state: UploadState, *, file_id: str | None = None
) -> list[str]:
    """Returns the ids of the parts to remove from the disk after the commit."""
    upload.state, upload.file_id = state, file_id
    record(session, DeletedKind.UPLOAD, upload.id, upload.tenant_id)
    return _drop_parts(session, [upload.id])


def drop_expired(session: Session, *, now: float, most: int) -> tuple[int, list[str]]:
    """Forgets uploads whose time is over. Returns how many, and the parts to remove from the disk after the commit."""
    query = select(Upload).where(Upload.expires_at <= now).limit(most)
    expired = session.scalars(query.with_for_update(skip_locked=True)).all()
    part_ids = _drop_parts(session, [upload.id for upload in expired])
    for upload in expired:
        session.delete(upload)
        record(session, DeletedKind.UPLOAD, upload.id, upload.tenant_id)
    return len(expired), part_ids


def status_of(upload: Upload, *, now: float) -> str:
    """OpenAI's word."""
    if upload.state is UploadState.PENDING and upload.expires_at <= now:
        return "expired"
    return upload.state.value


def _drop_parts(session: Session, upload_ids: Sequence[str]) -> list[str]:
    of_uploads = UploadPart.upload_id.in_(upload_ids)
    part_ids = list(session.scalars(select(UploadPart.id).where(of_uploads)))
    session.execute(delete(UploadPart).where(of_uploads))
    return part_ids
