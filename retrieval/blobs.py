"""Uploaded bytes on disk: encrypted as they come, under a key of their own, and gone for good once that is dropped."""

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.data_keys import Encryption, WrongKey, new_key
from retrieval.database import Database
from retrieval.reserve import NO_RESERVE, DiskFull, Reserve, disk_error
from retrieval.segments import Damaged, SegmentWriter, open_segments
from retrieval.tables import Blob, Tenant, Upload, UploadPart, new_id


class TooLarge(Exception):
    """The upload is larger than this server accepts."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The file is larger than the limit of {limit_bytes} bytes (storage.max_upload_bytes)."
        )
        self.limit_bytes = limit_bytes


@dataclass(frozen=True)
class BlobContent:
    """Bytes on disk, for who may read them."""

    blob_id: str
    path: Path
    key: bytes | None = field(repr=False)
    """None where nothing is encrypted."""
    size_bytes: int

    def open(self, _mode: Literal["rb"] = "rb", /) -> BufferedReader:
        """Raises Damaged, as reading does."""
        try:
            if self.key is None:
                return self.path.open("rb")
            return open_segments(self.path, self.key, self.blob_id)
        except FileNotFoundError as error:
            raise Damaged(self.blob_id) from error


@dataclass(frozen=True)
class ReceivedBlob(BlobContent):
    """Bytes that belong to no file yet."""

    sha256: str


class BlobStore:
    """A folder of blobs, and of parts of uploads, which are to become some.

    Who may see one is the catalog's business; names here are ids and hold no user text.
    """

    def __init__(
        self, folder: Path, encryption: Encryption | None = None, reserve: Reserve = NO_RESERVE
    ) -> None:
        self._folder = folder
        self._encryption = encryption
        self._reserve = reserve
        self._incoming = folder / "incoming"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._incoming.mkdir(exist_ok=True, mode=0o700)
        self._durable: set[Path] = set()
        """Folders whose names are on disk for certain."""

    def receive(self, *, limit_bytes: int, blob_id: str | None = None) -> "Receiver":
        """A with-block to write an upload into; what is not kept at its end is removed. Its id is made here.

        Raises DiskFull, as the block does, which also raises DiskFailed.
        """
        if not self._reserve.hold():
            raise DiskFull
        key = new_key() if self._encryption is not None else None
        return Receiver(self._incoming, blob_id or new_id("blob-"), key, limit_bytes)

    def prepare(self, database: Database, tenant_id: str) -> None:
        """Gives a new tenant its key, before transactions that only read ask for digests."""
        if self._encryption is None:
            return
        with database.read() as session:
            has_key = session.get_one(Tenant, tenant_id).key is not None
        if not has_key:
            with database.write() as session:
                self._encryption.keys.of(session, tenant_id)

    def row(self, session: Session, tenant_id: str, received: ReceivedBlob) -> Blob:
        """What SQL has to know of it, for the catalog to add unless the tenant has these bytes already."""
        return Blob(
            id=received.blob_id,
            tenant_id=tenant_id,
            digest=self.digest(session, tenant_id, received.sha256),
            key=self._wrapped(session, tenant_id, received),
            size_bytes=received.size_bytes,
        )

    def digest(self, session: Session, tenant_id: str, sha256: str) -> str:
        """What content of a tenant is known by: its SHA-256, under the tenant's key where there are keys."""
        return (
            sha256
            if self._encryption is None
            else self._encryption.keys.of(session, tenant_id).digest(sha256)
        )

    def keep(self, received: ReceivedBlob) -> None:
        """Moves received bytes to their place. Durable on return; call it before the commit that adds the row."""
        path = self.path(received.blob_id)
        if path.parent not in self._durable:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            _sync_folder(self._folder)
            self._durable.add(path.parent)
        received.path.rename(path)
        try:
            _sync_folder(path.parent)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def content(self, session: Session, blob: Blob) -> BlobContent:
        """Raises Damaged when its key does not open."""
        return self._content(session, blob.tenant_id, blob)

    def content_of_part(self, session: Session, upload: Upload, part: UploadPart) -> BlobContent:
        """Raises Damaged when its key does not open."""
        return self._content(session, upload.tenant_id, part)

    def remove(self, blob_id: str) -> None:
        """Call it after the commit that forgets the id; a crash in between leaves an orphan for `sweep`."""
        self.path(blob_id).unlink(missing_ok=True)

    def path(self, blob_id: str) -> Path:
        return self._folder / blob_id[-2:] / blob_id

    def ids(self, *, older_than_s: float = 0) -> Iterator[str]:
        """Every blob on disk, whether a table knows it or not."""
        for path in _older(self._folder.glob("??/*"), older_than_s):
            yield path.name

    def sweep(self, known: Set[str], *, older_than_s: float) -> int:
        """Removes what crashes left: uploads that were cut, and blobs that no table knows. Returns how many."""
        cut = _older(self._incoming.iterdir(), older_than_s)
        orphans = (
            self.path(blob_id) for blob_id in self.ids(older_than_s=older_than_s) if blob_id not in known
        )
        count = 0
        for path in [*cut, *orphans]:
            path.unlink(missing_ok=True)
            count += 1
        return count

    def _content(self, session: Session, tenant_id: str, stored: Blob | UploadPart) -> BlobContent:
        key = None
        if self._encryption is not None:
            try:
                tenant_key = self._encryption.keys.of(session, tenant_id)
                key = tenant_key.unwrap(stored.key or b"", owner=stored.id)
            except WrongKey as error:
                raise Damaged(stored.id) from error
        return BlobContent(stored.id, self.path(stored.id), key, stored.size_bytes)

    def _wrapped(self, session: Session, tenant_id: str, received: ReceivedBlob) -> bytes | None:
        if self._encryption is None or received.key is None:
            return None
        return self._encryption.keys.of(session, tenant_id).wrap(received.key, owner=received.blob_id)


def known_ids(session: Session) -> frozenset[str]:
    """Of all bytes that belong to files, or to uploads that are not whole yet."""
    return frozenset([*session.scalars(select(Blob.id)), *session.scalars(select(UploadPart.id))])


class Receiver:
    """One upload on its way to disk. Where there are keys, no byte of it gets there that is not encrypted."""

    def __init__(self, folder: Path, blob_id: str, key: bytes | None, limit_bytes: int) -> None:
        self._blob_id = blob_id
        self._path = folder / secrets.token_hex(12)
        self._key = key
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def __enter__(self) -> "Receiver":
        try:
            self._file = self._path.open("xb")
        except OSError as error:
            raise disk_error(error) or error from error
        self._writer = None if self._key is None else SegmentWriter(self._file, self._key, self._blob_id)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)
        if error is not None and (told := disk_error(error)) is not None:
            raise told from error

    def write(self, data: bytes) -> None:
        """Raises TooLarge at the first byte beyond the limit."""
        self._size_bytes += len(data)
        if self._size_bytes > self._limit_bytes:
            raise TooLarge(self._limit_bytes)
        self._hash.update(data)
        (self._writer or self._file).write(data)

    def finish(self) -> ReceivedBlob:
        """The bytes, fsynced."""
        if self._writer is not None:
            self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        return ReceivedBlob(
            self._blob_id, self._path, self._key, self._size_bytes, sha256=self._hash.hexdigest()
        )


def _older(paths: Iterable[Path], seconds: float) -> Iterator[Path]:
    for path in paths:
        # Another process may have removed it meanwhile.
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= seconds:
                yield path


def _sync_folder(folder: Path) -> None:
    # A name is only durable once its folder is: without this a power cut forgets it.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
