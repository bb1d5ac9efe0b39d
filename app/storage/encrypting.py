"""Encrypts a data folder that is not yet, for `strongroom migrate`. It may be stopped at any time and run again."""

import shutil
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.settings import Settings
from app.storage.migrate import migrate
from app.storage.opening import (
    database_key,
    embedded_database,
    encrypted_blobs_dir,
    encryption_of,
    plain_blobs_dir,
)
from ingest.sealing import SealBroken, Sealer
from retrieval.blobs import BlobStore, ReceivedBlob
from retrieval.database import Database, encrypt_database, is_plain_sqlite, open_database
from retrieval.tables import Blob, File, Source, SourceEntry, Upload, UploadPart

COPY_BYTES = 1 << 20


def encrypt_existing(settings: Settings, root: bytes, say: Callable[[str], None]) -> None:
    """Blobs first, then the database; what was plain is removed last. Raises DatabaseUnavailable, StorageRefused.

    Needs as much room on disk as the data takes.
    """
    embedded, plain = embedded_database(settings), plain_blobs_dir(settings)
    is_plain = embedded is not None and is_plain_sqlite(embedded)
    if not is_plain and not plain.exists():
        return
    encryption = encryption_of(settings, root)
    key = None if is_plain or embedded is None else database_key(root)
    database = open_database(settings.database_url, key=key)
    try:
        migrate(database)
        count = _encrypt_blobs(database, plain, BlobStore(encrypted_blobs_dir(settings), encryption))
    finally:
        database.close()
    if is_plain:
        assert embedded is not None
        encrypt_database(embedded, database_key(root))
    for name in (plain.name, "snapshots", "parsing", "sources"):
        shutil.rmtree(settings.storage.data_dir / name, ignore_errors=True)
    say(
        f"Encrypted {count} files and the database. What was plain is deleted, but a disk may still hold its traces."
    )


def reseal(session: Session, *, old: Sealer, new: Sealer) -> None:
    """Secrets that were sealed before there was a root key."""
    for file in session.scalars(select(File).where(File.password.is_not(None))):
        file.password = _resealed(file.password or b"", file.id, old, new)
    for source in session.scalars(select(Source).where(Source.options.is_not(None))):
        source.options = _resealed(source.options or b"", source.id, old, new)


def _resealed(sealed: bytes, owner: str, old: Sealer, new: Sealer) -> bytes:
    try:
        new.open(sealed, owner=owner)
    except SealBroken:
        try:
            return new.seal(old.open(sealed, owner=owner), owner=owner)
        except SealBroken:
            return sealed  # Whoever needs it says so.
    return sealed


def _encrypt_blobs(database: Database, plain: Path, blobs: BlobStore) -> int:
    """Also the parts of uploads. Returns how many files there were."""
    with database.read() as session:
        files = session.scalars(select(Blob.id).where(Blob.key.is_(None))).all()
        parts = session.scalars(select(UploadPart.id).where(UploadPart.key.is_(None))).all()
    old_store = BlobStore(plain)
    for blob_id in [*files, *parts]:
        path = old_store.path(blob_id)
        if not path.exists():
            continue  # `verify` names it.
        with blobs.receive(limit_bytes=path.stat().st_size, blob_id=blob_id) as receiver:
            with path.open("rb") as content:
                while piece := content.read(COPY_BYTES):
                    receiver.write(piece)
            with database.write() as session:
                _take_key(session, blobs, receiver.finish())
    with database.write() as session:
        # What a source had refused is hashed anew when it changes.
        session.execute(update(SourceEntry).where(SourceEntry.file_id.is_(None)).values(digest=None))
    return len(files)


def _take_key(session: Session, blobs: BlobStore, received: ReceivedBlob) -> None:
    part = session.get(UploadPart, received.blob_id)
    if part is not None:
        tenant_id = session.get_one(Upload, part.upload_id).tenant_id
        part.key = blobs.row(session, tenant_id, received).key
    else:
        blob = session.get_one(Blob, received.blob_id)
        # Of the bytes as they were uploaded: should they have changed since, that still shows.
        digest = blobs.digest(session, blob.tenant_id, blob.digest)
        of_file = SourceEntry.file_id.in_(select(File.id).where(File.blob_id == blob.id))
        known = update(SourceEntry).where(of_file, SourceEntry.digest == blob.digest)
        session.execute(known.values(digest=digest))
        blob.key, blob.digest = blobs.row(session, blob.tenant_id, received).key, digest
    blobs.keep(received)
