"""Snapshots of indexes on disk, so that a start reads files and not all of the database. A cache, and checked as one.

A snapshot is a folder that is complete from the moment it has its name, and never changed after that. It holds what
SQL held at one point of a generation's log; who loads it follows the log from there. One that is damaged, foreign or
of another format is removed and not used. Where there are keys its files are encrypted, and read from a folder in
memory. What was deleted leaves no trace in one: a snapshot from before a removal is
removed itself, by whichever process notices first.
"""

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.chunks import generation_of, searchable
from retrieval.data_keys import Encryption, WrongKey, decrypt, encrypt, new_key
from retrieval.keyword_index import KEYWORD_FORMAT, TantivyKeywordIndex
from retrieval.rankings import IndexedChunk
from retrieval.segments import Damaged, decrypt_file, encrypt_file
from retrieval.tables import Chunk, ChunkLog, Collection, Document, Generation, LogOp
from retrieval.vector_index import FaissVectorIndex

log = logging.getLogger("strongroom.snapshots")

FORMAT = f"1, {KEYWORD_FORMAT}"
"""Another one is not read."""
MANIFEST = "manifest.json"
ROWS, CHUNK_IDS, DOCUMENT_IDS, FILE_IDS = "rows.f16", "chunks.i64", "documents.i64", "files.json"
KEYWORDS = "keywords"
KEY = ".key"
"""Ends the name of the file with another one's key, wrapped."""


class SnapshotUnusable(Exception):
    """What it holds is not what was written, or not of this database. The message names neither texts nor files."""


@dataclass(frozen=True)
class Snapshot:
    """Of one generation of a collection, as of `seq` of its log."""

    collection_id: str
    generation: int
    seq: int

    @property
    def name(self) -> str:
        return f"{self.collection_id}.{self.generation}.{self.seq}"

    @classmethod
    def named(cls, name: str) -> "Snapshot | None":
        collection_id, *numbers = name.split(".")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            return None
        return cls(collection_id, int(numbers[0]), int(numbers[1]))


@dataclass(frozen=True)
class Loaded:
    """Indexes as of `seq`. The keyword index reads files until nobody holds it any more; then they are gone."""

    vectors: FaissVectorIndex
    keywords: TantivyKeywordIndex
    seq: int


class Snapshots:
    """A folder of snapshots, which several processes may share."""

    def __init__(self, folder: Path, encryption: Encryption | None = None) -> None:
        """Removes what processes left that ended before they could tidy up."""
        self._folder = folder
        self._encryption = encryption
        self._seen_heads: dict[Snapshot, int] = {}
        """The end of the log up to which nothing was removed that a snapshot holds."""
        self._held = ExitStack()
        self._staging = self._own_folder(folder)
        self._work = (
            self._staging if encryption is None else self._own_folder(encryption.memory / "snapshots")
        )
        """For files that are not encrypted."""

    def close(self) -> None:
        for folder in {self._staging, self._work}:
            shutil.rmtree(folder, ignore_errors=True)
        self._held.close()

    def kept(self, collection_id: str | None = None, generation: int | None = None) -> list[Snapshot]:
        """Newest first."""
        named = (Snapshot.named(path.name) for path in self._folder.iterdir())
        found = [
            snapshot
            for snapshot in named
            if snapshot is not None
            and collection_id in (None, snapshot.collection_id)
            and generation in (None, snapshot.generation)
        ]
        return sorted(found, key=lambda snapshot: -snapshot.seq)

    def load(self, session: Session, of: Collection | Generation) -> Loaded | None:
        """The newest that this transaction can go on from; those that nobody can are removed."""
        collection_id, generation = _identity(of)
        for snapshot in self.kept(collection_id, generation):
            if snapshot.seq > of.head:
                continue  # It may be newer than this transaction.
            try:
                return self._load(session, snapshot, of)
            except SnapshotUnusable as error:
                log.warning("snapshot_unusable", extra={"collection": collection_id, "reason": str(error)})
                self.remove(snapshot)
        return None

    def write(
        self,
        session: Session,
        of: Collection | Generation,
        chunks: Iterable[Sequence[IndexedChunk]],
        *,
        stopping: Event,
    ) -> bool:
        """All chunks of a generation as this transaction sees them. False: there are none, or `stopping` was set."""
        collection_id, generation = _identity(of)
        snapshot = Snapshot(collection_id, generation, of.head)
        folder = self._work / secrets.token_hex(8)
        try:
            folder.mkdir(mode=0o700)
            dimensions, count = _write_indexes(folder, chunks, stopping)
            if not count or stopping.is_set():
                return False
            (folder / FILE_IDS).write_bytes(orjson.dumps(_file_ids(session, collection_id), option=_STR_KEYS))
            manifest = {
                "format": FORMAT,
                "collection": collection_id,
                "generation": generation,
                "seq": snapshot.seq,
                "fingerprint": of.fingerprint,
                "dimensions": dimensions,
                "chunks": count,
                "files": _digests(folder),
            }
            (folder / MANIFEST).write_bytes(orjson.dumps(manifest))
            if self._encryption is not None:
                sealed = self._staging / folder.name
                _encrypt_files(
                    folder, sealed, self._tenant_key(self._encryption, session, snapshot), snapshot
                )
                shutil.rmtree(folder)
                folder = sealed
            _sync_all(folder)
            # It is there already when another process was quicker.
            with suppress(FileExistsError, OSError):
                folder.rename(self._folder / snapshot.name)
            _sync(self._folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for older in self.kept(collection_id, generation):
            if older.seq < snapshot.seq:
                self.remove(older)
        return True

    def remove(self, snapshot: Snapshot) -> None:
        self._seen_heads.pop(snapshot, None)
        # It loses its name first: what is half removed is no snapshot.
        removed = self._staging / secrets.token_hex(8)
        with suppress(FileNotFoundError):
            (self._folder / snapshot.name).rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def remove_outdated(self, session: Session) -> None:
        """Those of generations that are gone, and those that hold what was removed since."""
        for snapshot in self.kept():
            of = generation_of(session, snapshot.collection_id, snapshot.generation)
            if of is None or of.head < snapshot.seq or self._holds_removed(session, snapshot, of.head):
                self.remove(snapshot)

    def _holds_removed(self, session: Session, snapshot: Snapshot, head: int) -> bool:
        seen = self._seen_heads.get(snapshot, snapshot.seq)
        if head == seen:
            return False
        removal = select(ChunkLog.seq).where(
            *_of_log(snapshot), ChunkLog.seq > seen, ChunkLog.seq <= head, ChunkLog.op == LogOp.REMOVE
        )
        self._seen_heads[snapshot] = head
        return session.scalar(removal.limit(1)) is not None

    def _own_folder(self, parent: Path) -> Path:
        """One that is this process's as long as it lives."""
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(parent / "lock"):
            for other in parent.glob("work-*"):
                with suppress(BlockingIOError), _locked(other / "lock", waits=False):
                    shutil.rmtree(other, ignore_errors=True)
            own = parent / f"work-{secrets.token_hex(8)}"
            own.mkdir(mode=0o700)
            self._held.enter_context(_locked(own / "lock"))
        return own

    def _tenant_key(self, encryption: Encryption, session: Session, snapshot: Snapshot) -> bytes:
        """Wraps the keys of its files."""
        tenant_id = session.scalar(
            select(Collection.tenant_id).where(Collection.id == snapshot.collection_id)
        )
        assert tenant_id is not None, "a snapshot is taken and loaded for a collection that is there"
        return encryption.keys.of(session, tenant_id).secret

    def _load(self, session: Session, snapshot: Snapshot, of: Collection | Generation) -> Loaded:
        folder = self._work / secrets.token_hex(8)
        try:
            if self._encryption is None:
                # Links, since the keyword index writes where it reads: a snapshot itself stays as it is.
                shutil.copytree(self._folder / snapshot.name, folder, copy_function=os.link)
            else:
                key = self._tenant_key(self._encryption, session, snapshot)
                _decrypt_files(self._folder / snapshot.name, folder, key, snapshot)
            manifest = _checked_manifest(folder, snapshot, of)
            count, dimensions = manifest["chunks"], manifest["dimensions"]
            chunk_ids, document_ids = (
                np.fromfile(folder / name, np.int64) for name in (CHUNK_IDS, DOCUMENT_IDS)
            )
            _check_rows(session, snapshot, of, chunk_ids, document_ids, _read_json(folder / FILE_IDS))
            rows = np.memmap(folder / ROWS, np.float16, mode="r", shape=(count, dimensions))
            vectors = FaissVectorIndex.of(rows, chunk_ids=chunk_ids, document_ids=document_ids)
            keywords = TantivyKeywordIndex.load(folder / KEYWORDS, chunk_ids=chunk_ids.tolist())
        except (OSError, ValueError, KeyError, TypeError, Damaged, WrongKey) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SnapshotUnusable(type(error).__name__) from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / ROWS).unlink()
        weakref.finalize(keywords, shutil.rmtree, folder, ignore_errors=True)
        return Loaded(vectors, keywords, snapshot.seq)


_STR_KEYS = orjson.OPT_NON_STR_KEYS


def _write_indexes(
    folder: Path, chunks: Iterable[Sequence[IndexedChunk]], stopping: Event
) -> tuple[int, int]:
    """Returns dimensions and number of chunks."""
    dimensions = count = 0
    keywords = TantivyKeywordIndex(folder / KEYWORDS)
    with (
        (folder / ROWS).open("wb") as rows,
        (folder / CHUNK_IDS).open("wb") as chunk_ids,
        (folder / DOCUMENT_IDS).open("wb") as document_ids,
    ):
        for window in chunks:
            if stopping.is_set():
                break
            count += len(window)
            dimensions = len(window[0].embedding)
            keywords.apply(added=window, removed=())
            rows.write(np.stack([chunk.embedding for chunk in window]).astype(np.float16).tobytes())
            chunk_ids.write(np.array([chunk.chunk_id for chunk in window], np.int64).tobytes())
            document_ids.write(np.array([chunk.document_id for chunk in window], np.int64).tobytes())
    # Links to a lock are the same lock, for all that load this snapshot.
    for lock in (folder / KEYWORDS).glob("*.lock"):
        lock.unlink()
    return dimensions, count


def _encrypt_files(folder: Path, target: Path, tenant_key: bytes, snapshot: Snapshot) -> None:
    """Each under a key of its own: one key encrypts one file."""
    target.mkdir(mode=0o700)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            (target / name).mkdir(mode=0o700)
            continue
        key, owner = new_key(), f"{snapshot.name}/{name}"
        (target / f"{name}{KEY}").write_bytes(encrypt(tenant_key, key, owner=owner))
        encrypt_file(path, target / name, key, owner)


def _decrypt_files(folder: Path, target: Path, tenant_key: bytes, snapshot: Snapshot) -> None:
    """Raises WrongKey, Damaged."""
    target.mkdir(mode=0o700)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            (target / name).mkdir(mode=0o700)
        elif not name.endswith(KEY):
            owner = f"{snapshot.name}/{name}"
            key = decrypt(tenant_key, (folder / f"{name}{KEY}").read_bytes(), owner=owner)
            decrypt_file(path, target / name, key, owner)


def _checked_manifest(folder: Path, snapshot: Snapshot, of: Collection | Generation) -> Mapping[str, Any]:
    """Raises SnapshotUnusable, and KeyError, TypeError or ValueError for one that is no manifest."""
    manifest: dict[str, Any] = _read_json(folder / MANIFEST)
    expected = {
        "format": FORMAT,
        "collection": snapshot.collection_id,
        "generation": snapshot.generation,
        "seq": snapshot.seq,
        "fingerprint": of.fingerprint,
    }
    for name, value in expected.items():
        if manifest[name] != value:
            raise SnapshotUnusable(f"another {name}")
    (folder / MANIFEST).unlink()
    if _digests(folder) != manifest["files"]:
        raise SnapshotUnusable("damaged")
    sizes = {ROWS: 2 * manifest["dimensions"], CHUNK_IDS: 8, DOCUMENT_IDS: 8}
    for name, size in sizes.items():
        if (folder / name).stat().st_size != size * manifest["chunks"]:
            raise SnapshotUnusable("another number of chunks")
    return manifest


def _check_rows(
    session: Session,
    snapshot: Snapshot,
    of: Collection | Generation,
    chunk_ids: NDArray[np.int64],
    document_ids: NDArray[np.int64],
    file_ids: Mapping[str, str],
) -> None:
    """That the log leads from the snapshot to what SQL holds, chunk by chunk. Raises SnapshotUnusable.

    It does not where the database was put back to an earlier state, from which it went on otherwise: the same ids may
    then be those of other texts. Ids of files are random, so they tell.
    """
    for document_id, file_id in _file_ids(session, snapshot.collection_id).items():
        if file_ids.get(str(document_id), file_id) != file_id:
            raise SnapshotUnusable("another database")
    since: dict[LogOp, list[int]] = {op: [] for op in LogOp}
    changes = select(ChunkLog.op, ChunkLog.chunk_id).where(
        *_of_log(snapshot), ChunkLog.seq > snapshot.seq, ChunkLog.seq <= of.head
    )
    for op, chunk_id in session.execute(changes):
        since[op].append(chunk_id)
    stored_ids, stored_documents = _stored(session, snapshot)
    is_older = ~np.isin(stored_ids, since[LogOp.ADD])
    order = np.argsort(chunk_ids, kind="stable")
    in_snapshot = order[~np.isin(chunk_ids[order], since[LogOp.REMOVE])]
    if not np.array_equal(stored_ids[is_older], chunk_ids[in_snapshot]) or not np.array_equal(
        stored_documents[is_older], document_ids[in_snapshot]
    ):
        raise SnapshotUnusable("other chunks than the database holds")


def _stored(session: Session, snapshot: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of all chunks, rising, and of their documents."""
    columns = (
        select(Chunk.id, Chunk.document_id)
        .where(searchable(snapshot.collection_id, snapshot.generation))
        .order_by(Chunk.id)
    )
    rows = session.execute(columns, execution_options={"yield_per": 50_000}).partitions()
    parts = [np.array([tuple(row) for row in part], np.int64) for part in rows]
    stored = np.concatenate(parts) if parts else np.empty((0, 2), np.int64)
    return stored[:, 0], stored[:, 1]


def _file_ids(session: Session, collection_id: str) -> dict[int, str]:
    """By document."""
    rows = session.execute(
        select(Document.id, Document.file_id).where(Document.collection_id == collection_id)
    )
    return {row.id: row.file_id for row in rows}


def _of_log(snapshot: Snapshot) -> tuple[Any, Any]:
    return (
        ChunkLog.collection_id == snapshot.collection_id,
        ChunkLog.generation == snapshot.generation,
    )


def _identity(of: Collection | Generation) -> tuple[str, int]:
    return (of.id, of.generation) if isinstance(of, Collection) else (of.collection_id, of.number)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as content:
                digests[str(path.relative_to(folder))] = hashlib.file_digest(content, "sha256").hexdigest()
    return digests


def _read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError for what is not JSON, TypeError for another kind of it."""
    read = orjson.loads(path.read_bytes())
    if not isinstance(read, dict):
        raise TypeError
    return read


@contextmanager
def _locked(path: Path, *, waits: bool = True) -> Iterator[None]:
    """Holds a file's lock, which ends with the process at the latest. Raises BlockingIOError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
