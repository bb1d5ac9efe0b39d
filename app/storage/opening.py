"""Opens what lies on disk, encrypted or not as the settings say, for every role and command that touches it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from app.access.audit import audit_key
from app.settings import Settings
from app.storage.master_key import make_root_key, read_root_key
from ingest.sealing import Sealer
from retrieval.audit import AuditKey
from retrieval.blobs import BlobStore
from retrieval.data_keys import Encryption, TenantKeys, derived
from retrieval.database import Database, is_plain_sqlite, open_database
from retrieval.ledger import LedgerFile
from retrieval.reserve import Reserve

MEMORY_TYPES = ("tmpfs", "ramfs")


class StorageRefused(Exception):
    """The data folder is not as the settings say; the message says what to do."""


@dataclass(frozen=True)
class Storage:
    """What is kept, and where that goes which only its own process reads."""

    database: Database
    ledger: LedgerFile
    """Beside the one in SQL."""
    audit_key: AuditKey
    blobs: BlobStore
    sealer: Sealer
    encryption: Encryption | None
    """None where the settings turn it off."""
    scratch: Path
    """For what parsers and sources keep while they work: in memory where data is encrypted."""

    @property
    def parsing(self) -> Path:
        return self.scratch / "parsing"

    @property
    def sources(self) -> Path:
        """Clones of repositories."""
        return self.scratch / "sources"


def keys_dir(settings: Settings) -> Path:
    return settings.storage.data_dir / "keys"


def checkpoint_file(settings: Settings) -> Path:
    """Of the audit log."""
    return Path(settings.audit.checkpoint_file or settings.storage.data_dir / "audit.checkpoints")


def plain_blobs_dir(settings: Settings) -> Path:
    return settings.storage.data_dir / "blobs"


def encrypted_blobs_dir(settings: Settings) -> Path:
    return settings.storage.data_dir / "encrypted-blobs"


@contextmanager
def open_storage(settings: Settings) -> Iterator[Storage]:
    """Raises KeysUnusable, StorageRefused, DatabaseUnavailable."""
    root = read_root_key(settings.encryption, keys_dir(settings))
    _check_form(settings)
    encryption = encryption_of(settings, root) if settings.encryption.enabled else None
    ledger = LedgerFile(settings.storage.data_dir / "deletions.ledger")
    reserve = Reserve(settings.storage.data_dir / "reserve", settings.storage.reserve_bytes)
    reserve.hold()
    signing = audit_key(keys_dir(settings), root)
    database = open_database(
        settings.database_url,
        key=database_key(root) if encryption else None,
        ledger=ledger,
        audit_key=signing,
        reserve=reserve,
    )
    try:
        yield Storage(
            database=database,
            ledger=ledger,
            audit_key=signing,
            blobs=BlobStore(
                encrypted_blobs_dir(settings) if encryption else plain_blobs_dir(settings),
                encryption,
                reserve,
            ),
            sealer=Sealer(root),
            encryption=encryption,
            scratch=encryption.memory if encryption else settings.storage.data_dir,
        )
    finally:
        database.close()


def make_keys(settings: Settings) -> bytes:
    """The root key, made with the master key at the first start. Raises KeysUnusable."""
    embedded = embedded_database(settings)
    holds_encrypted = _has_files(encrypted_blobs_dir(settings)) or (
        embedded is not None
        and embedded.exists()
        and embedded.stat().st_size
        and not is_plain_sqlite(embedded)
    )
    return make_root_key(settings.encryption, keys_dir(settings), is_new=not holds_encrypted)


def encryption_of(settings: Settings, root: bytes) -> Encryption:
    """Raises StorageRefused when the folder for plain files is not in memory."""
    return Encryption(TenantKeys(root), _memory_folder(settings))


def database_key(root: bytes) -> bytes:
    return derived(root, "database")


def embedded_database(settings: Settings) -> Path | None:
    url = make_url(settings.database_url)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _check_form(settings: Settings) -> None:
    """Of the files; the embedded database is checked as it is opened."""
    if settings.encryption.enabled and _has_files(plain_blobs_dir(settings)):
        raise StorageRefused(
            f"{plain_blobs_dir(settings)} holds files that are not encrypted. `strongroom migrate` encrypts this data "
            "folder; encryption.enabled=false leaves it as it is."
        )
    if not settings.encryption.enabled and _has_files(encrypted_blobs_dir(settings)):
        raise StorageRefused(
            f"{encrypted_blobs_dir(settings)} holds encrypted files: set encryption.enabled to true."
        )


def _has_files(blobs_dir: Path) -> bool:
    return any(blobs_dir.glob("??/*"))


def _memory_folder(settings: Settings) -> Path:
    """Of this data folder and this user alone, in the folder that the settings name."""
    parent = settings.encryption.memory_folder
    if not _is_memory(parent):
        raise StorageRefused(
            f"encryption.memory_folder: {parent} is not in memory. Name a folder on a tmpfs: files lie there in plain "
            "while they are parsed."
        )
    place = hashlib.sha256(str(settings.storage.data_dir.resolve()).encode()).hexdigest()[:12]
    folder = parent / f"strongroom-{os.geteuid()}-{place}"
    folder.mkdir(exist_ok=True, mode=0o700)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise StorageRefused(f"encryption.memory_folder: {folder} belongs to another user: remove it.")
    return folder


def _is_memory(folder: Path) -> bool:
    """By the mount that it lies on."""
    if not folder.is_dir():
        return False
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, each, *_ = line.split()
        # Of mounts on one place the last is what one sees.
        if len(mount) >= len(best) and folder.resolve().is_relative_to(mount):
            best, kind = mount, each
    return kind in MEMORY_TYPES
