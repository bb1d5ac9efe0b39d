"""Backups: database, files and keys as one encrypted archive, made while all goes on, and back into an empty folder.

An archive is a line of JSON, which holds the root key wrapped under the master key, and a tar, encrypted in segments
under a key made from the root key. So who has the master key opens it, and nobody else.
"""

import hashlib
import io
import logging
import os
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import orjson
from sqlalchemy import delete, select

from app.access.key_files import write_once
from app.settings import Settings
from app.storage.master_key import MASTER_FILE, ROOT_FILE, master_key_text, read_root_key, root_key_of
from app.storage.migrate import migrate
from app.storage.opening import (
    Storage,
    database_key,
    embedded_database,
    encrypted_blobs_dir,
    keys_dir,
    open_storage,
    plain_blobs_dir,
)
from app.storage.table_copy import copy_tables
from retrieval.audit import record
from retrieval.blobs import known_ids
from retrieval.data_keys import derived
from retrieval.database import Database, copy_database, open_database
from retrieval.ledger import LedgerFile
from retrieval.replay import catch_up
from retrieval.segments import COPY_BYTES, Damaged, SegmentWriter, open_segments
from retrieval.tables import AuditEvent, BackupRun, Collection
from retrieval.verify import differences
from retrieval.views import IndexViews

log = logging.getLogger("strongroom.backup")

FORMAT = 1
SUFFIX = ".strongroom"
DATABASE, LEDGER, BLOBS, MANIFEST = "strongroom.db", "deletions.ledger", "blobs/", "manifest.json"
SETTINGS = "settings.env"
"""The settings as they were, for their owner to put back: nothing reads them by itself."""
MASTER_KEY = "STRONGROOM_ENCRYPTION__MASTER_KEY"
BESIDE = ("keys/server.secret", "keys/admin.key", "keys/audit.key", "evidence.json")
"""Files of the data folder that go along."""
LONGEST_HEADER = 1 << 16
WORK = ".backup-"
"""Begins the names of folders in which backups are made."""
LONGEST_BACKUP_S = 86_400.0


class BackupUnusable(Exception):
    """An archive cannot be made or restored; the message says why."""


@dataclass(frozen=True)
class Restored:
    deleted_again: int
    """What the ledger of a later time says is gone."""
    differences: list[str]


@dataclass(frozen=True)
class Progress:
    """How far a backup is: what is copied now, and of files how many of how many."""

    step: str
    done: int = 0
    total: int = 0


def back_up(
    settings: Settings,
    storage: Storage,
    target: Path,
    *,
    with_master_key: bool = False,
    told: Callable[[Progress], None] = lambda _: None,
) -> None:
    """One consistent archive at `target`, whole or absent. `told` hears how far it is. Raises BackupUnusable."""
    if target.exists():
        raise BackupUnusable(f"{target} exists: name another file.")
    keys = keys_dir(settings)
    root = read_root_key(settings.encryption, keys)
    header = {
        "strongroom_backup": FORMAT,
        "id": secrets.token_hex(16),
        "is_encrypted": storage.encryption is not None,
        "root_key": (keys / ROOT_FILE).read_text(),
        "master_key": master_key_text(settings.encryption, keys) if with_master_key else None,
    }
    line = orjson.dumps(header) + b"\n"
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    work = Path(tempfile.mkdtemp(prefix=WORK, dir=settings.storage.data_dir))
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(line)
            writer = SegmentWriter(file, _key(root, header["id"]), _name(line))
            with tarfile.open(fileobj=cast("BinaryIO", writer), mode="w|") as tar:
                _write_members(tar, settings, storage, work, root, told)
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    except OSError as error:
        raise BackupUnusable(f"{target} cannot be written ({error.strerror}).") from error
    finally:
        partial.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)


def clear_remains(settings: Settings, *, now: float) -> None:
    """Of backups that were killed: their copies hold what may have been deleted since."""
    for work in settings.storage.data_dir.glob(f"{WORK}*"):
        if now - work.stat().st_mtime > LONGEST_BACKUP_S:
            shutil.rmtree(work, ignore_errors=True)


def restore(settings: Settings, archive: Path, *, newer_ledger: Path | None = None) -> Restored:
    """Into a data folder that has no data yet, though perhaps a master key and a ledger; checked before it is in place,
    and after.

    What `newer_ledger`, or the one in the folder, says is gone goes again. Raises BackupUnusable, KeysUnusable.
    """
    folder = settings.storage.data_dir
    for name in (
        DATABASE,
        f"keys/{ROOT_FILE}",
        encrypted_blobs_dir(settings).name,
        plain_blobs_dir(settings).name,
    ):
        if (folder / name).exists():
            raise BackupUnusable(
                f"storage.data_dir: {folder} is not empty, it has {name}: name an empty folder."
            )
    fresh = folder / ".restoring"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _unpack(settings, archive, fresh)
        later = LedgerFile(folder / LEDGER).read() | LedgerFile(newer_ledger or folder / LEDGER).read()
        _move_into(folder, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    LedgerFile(folder / LEDGER).append(sorted(later))
    with open_storage(settings) as storage:
        migrate(storage.database)
        again = catch_up(storage.database, storage.blobs, storage.ledger)
        with storage.database.write() as session:
            # The one that is restored was being made when it was copied.
            session.execute(delete(BackupRun))
            record(session, AuditEvent.RESTORED, scope=None, deleted_again=again)
        return Restored(again, list(differences(storage.database, storage.blobs, IndexViews())))


def _unpack(settings: Settings, archive: Path, fresh: Path) -> None:
    header, line = _read_header(archive)
    if header["is_encrypted"] is not settings.encryption.enabled:
        wanted = str(header["is_encrypted"]).lower()
        raise BackupUnusable(f"The backup is of a data folder with encryption.enabled={wanted}: set it so.")
    (fresh / "keys").mkdir(parents=True, mode=0o700)
    write_once(fresh / "keys" / ROOT_FILE, str(header["root_key"]).strip())
    moved = settings.with_options(storage={"data_dir": str(fresh)})
    keys = keys_dir(settings)
    if header["master_key"] is not None and not (keys / MASTER_FILE).exists():
        keys = keys_dir(moved)
        write_once(keys / MASTER_FILE, str(header["master_key"]))
    root = root_key_of(settings.encryption, keys, fresh / "keys" / ROOT_FILE)
    try:
        with open_segments(archive, _key(root, header["id"]), _name(line), start=len(line)) as content:
            _read_members(content, moved)
    except (Damaged, tarfile.TarError) as error:
        raise BackupUnusable(f"{archive} is damaged or cut off: nothing was restored.") from error
    _restore_database(moved, root)


def _move_into(folder: Path, fresh: Path) -> None:
    """The root key last: without it nothing starts. The folder itself stays, as it may be a mount."""
    (folder / "keys").mkdir(exist_ok=True, mode=0o700)
    last = fresh / "keys" / ROOT_FILE
    paths = [path for path in fresh.iterdir() if path.name != "keys"]
    for path in [*paths, *(path for path in last.parent.iterdir() if path != last), last]:
        path.replace(folder / path.relative_to(fresh))


def _write_members(
    tar: tarfile.TarFile,
    settings: Settings,
    storage: Storage,
    work: Path,
    root: bytes,
    told: Callable[[Progress], None],
) -> None:
    """The database first: files that it names are there, unless they are deleted meanwhile, which the ledger tells."""
    told(Progress("the database"))
    copy, key = work / DATABASE, database_key(root) if storage.encryption else None
    embedded = embedded_database(settings)
    if embedded is not None:
        copy_database(embedded, copy, key)
    with _opened(copy, key) as copied:
        if embedded is None:
            copy_tables(storage.database, copied)
        with copied.read() as session:
            blob_ids = sorted(known_ids(session))
    digests: dict[str, str] = {}
    _write(tar, DATABASE, copy, digests)
    for number, blob_id in enumerate(blob_ids, 1):
        told(Progress("files", number, len(blob_ids)))
        _write(tar, f"{BLOBS}{blob_id}", storage.blobs.path(blob_id), digests)
    for name in (*BESIDE, LEDGER):
        _write(tar, name, settings.storage.data_dir / name, digests)
    environment = settings.to_environment().items()
    lines = "".join(f"{name}={value}\n" for name, value in environment if name != MASTER_KEY).encode()
    _write_bytes(tar, SETTINGS, lines)
    digests[SETTINGS] = hashlib.sha256(lines).hexdigest()
    _write_bytes(tar, MANIFEST, orjson.dumps(digests))


def _write(tar: tarfile.TarFile, name: str, path: Path, digests: dict[str, str]) -> None:
    """What was removed meanwhile is left out."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        member = tarfile.TarInfo(name)
        member.size = os.fstat(file.fileno()).st_size
        hashed = _Hashed(file, member.size)
        tar.addfile(member, cast("BinaryIO", hashed))
        digests[name] = hashed.digest.hexdigest()


def _write_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class _Hashed:
    """Hashes what is read of a file, as far as it went when it was opened: a ledger grows."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file = file
        self._left = left
        self.digest = hashlib.sha256()

    def read(self, count: int) -> bytes:
        piece = self._file.read(min(count, self._left))
        self._left -= len(piece)
        self.digest.update(piece)
        return piece


def _read_header(archive: Path) -> tuple[dict[str, object], bytes]:
    try:
        with archive.open("rb") as file:
            line = file.readline(LONGEST_HEADER)
        header = orjson.loads(line)
        is_ours = header["strongroom_backup"] == FORMAT
    except FileNotFoundError as error:
        raise BackupUnusable(f"There is no file {archive}.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupUnusable(f"{archive} is no backup of Strongroom.") from error
    if not is_ours:
        raise BackupUnusable(f"{archive} is from another version of Strongroom.")
    return header, line


def _read_members(content: BinaryIO, settings: Settings) -> None:
    """Names are looked up, never followed. Raises BackupUnusable unless all that the manifest names is there."""
    digests: dict[str, str] = {}
    with tarfile.open(fileobj=content, mode="r|") as tar:
        for member in tar:
            source = tar.extractfile(member)
            if source is None:
                raise BackupUnusable("The backup holds something that is no file.")
            if member.name == MANIFEST:
                if orjson.loads(source.read()) != digests:
                    raise BackupUnusable("The backup does not hold what its manifest says.")
                return
            path = _place(member.name, settings)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            digest = hashlib.sha256()
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                while piece := source.read(COPY_BYTES):
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            digests[member.name] = digest.hexdigest()
    raise BackupUnusable("The backup has no manifest.")


def _place(name: str, settings: Settings) -> Path:
    if name in {DATABASE, LEDGER, SETTINGS, *BESIDE}:
        return settings.storage.data_dir / name
    blob_id = name.removeprefix(BLOBS)
    if name == blob_id or "/" in blob_id or blob_id.startswith("."):
        raise BackupUnusable("The backup holds a file of an unknown name.")
    blobs = encrypted_blobs_dir(settings) if settings.encryption.enabled else plain_blobs_dir(settings)
    return blobs / blob_id[-2:] / blob_id


def _restore_database(settings: Settings, root: bytes) -> None:
    """Where the settings name a server, its tables take what the archive's database holds."""
    copy = settings.storage.data_dir / DATABASE
    embedded = embedded_database(settings)
    if embedded is not None:
        if embedded != copy:
            copy.replace(embedded)
        return
    with _opened(copy, database_key(root) if settings.encryption.enabled else None) as source:
        target = open_database(settings.database_url)
        try:
            migrate(target)
            with target.read() as session:
                if session.scalar(select(Collection.id).limit(1)) is not None:
                    raise BackupUnusable("storage.database_url: the database is not empty.")
            copy_tables(source, target)
        finally:
            target.close()
    copy.unlink()


@contextmanager
def _opened(path: Path, key: bytes | None) -> Iterator[Database]:
    """An archive's database, brought to the tables of this version. It is one file again afterwards."""
    database = open_database(f"sqlite:///{path}", key=key)
    try:
        migrate(database)
        yield database
        database.settle()
    finally:
        database.close()


def _key(root: bytes, backup_id: object) -> bytes:
    return derived(root, f"backup {backup_id}")


def _name(header: bytes) -> str:
    """A header that was changed opens nothing."""
    return f"backup {hashlib.sha256(header).hexdigest()}"
