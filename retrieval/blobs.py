"""Uploaded bytes on disk: received under a temporary name, hashed on the way, kept under an id."""

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


class TooLarge(Exception):
    """The upload is larger than this server accepts."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The file is larger than the limit of {limit_bytes} bytes (storage.max_upload_bytes)."
        )
        self.limit_bytes = limit_bytes


@dataclass(frozen=True)
class ReceivedBlob:
    """Bytes that are on disk but belong to no file yet."""

    path: Path
    sha256: str
    size_bytes: int


class BlobStore:
    """A folder of blobs. Who may see one is the catalog's business; names here are ids and hold no user text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)

    def receive(self, *, limit_bytes: int) -> "Receiver":
        """A with-block to write an upload into; what is not kept at its end is removed."""
        return Receiver(self._incoming / secrets.token_hex(12), limit_bytes)

    def keep(self, received: ReceivedBlob, blob_id: str) -> None:
        """Moves received bytes to their place. Durable on return; call it before the commit that names the id."""
        path = self.path(blob_id)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        received.path.rename(path)
        _sync_folder(path.parent)

    def remove(self, blob_id: str) -> None:
        """Call it after the commit that forgets the id; a crash in between leaves an orphan for `orphans`."""
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


class Receiver:
    """One upload on its way to disk."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def __enter__(self) -> "Receiver":
        self._file = self._path.open("xb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Raises TooLarge at the first byte beyond the limit."""
        self._size_bytes += len(data)
        if self._size_bytes > self._limit_bytes:
            raise TooLarge(self._limit_bytes)
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> ReceivedBlob:
        """The bytes, fsynced."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return ReceivedBlob(path=self._path, sha256=self._hash.hexdigest(), size_bytes=self._size_bytes)


def _older(paths: Iterable[Path], seconds: float) -> Iterator[Path]:
    for path in paths:
        # Another process may have removed it meanwhile.
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= seconds:
                yield path


def _sync_folder(folder: Path) -> None:
    # A rename is only durable once its folder is: without this a power cut forgets the name.
    for path in (folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
