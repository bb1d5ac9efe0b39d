"""Room on the disk that is held back for deletions, so that a full disk can be emptied again."""

import errno
import logging
import os
from pathlib import Path

from sqlalchemy.exc import OperationalError

log = logging.getLogger("strongroom.reserve")

SQLITE_FULL = "database or disk is full"
SQLITE_FAILED = ("disk I/O error", "attempt to write a readonly database")
FULL = (errno.ENOSPC, errno.EDQUOT)
FAILED = (errno.EIO, errno.EROFS)


class DiskFull(OperationalError):
    """Nothing more can be kept: to callers the database is away until there is room."""

    def __init__(self) -> None:
        super().__init__(None, None, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def __str__(self) -> str:
        return (
            "The disk with storage.data_dir is full: nothing can be added. Make room on it, or delete files: "
            "deleting and searching go on."
        )


class DiskFailed(OperationalError):
    """The disk takes nothing: what was being written is not kept, and was not acknowledged."""

    def __init__(self) -> None:
        super().__init__(None, None, OSError(errno.EIO, os.strerror(errno.EIO)))

    def __str__(self) -> str:
        return (
            "The disk with storage.data_dir does not take what is written to it: nothing of this was kept. Look at "
            "what the system says of the disk, then try again."
        )


def disk_error(error: BaseException) -> DiskFull | DiskFailed | None:
    """What a disk said to us or to SQLite, as callers are told it; None for errors of anything else."""
    if isinstance(error, (DiskFull, DiskFailed)):
        return None
    if isinstance(error, OperationalError):
        said = str(error.orig)
        is_full, has_failed = SQLITE_FULL in said, any(each in said for each in SQLITE_FAILED)
    elif isinstance(error, OSError):
        is_full, has_failed = error.errno in FULL, error.errno in FAILED
    else:
        return None
    return DiskFull() if is_full else DiskFailed() if has_failed else None


class Reserve:
    """A file that holds nothing. It goes when a deletion needs its room, and comes back once there is room again.

    Of 0 bytes it is none.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def hold(self) -> bool:
        """Takes the room where as much again is left. If not, whatever room there is belongs to deletions."""
        if self._size_bytes == 0 or self._path.exists():
            return True
        if self._free_bytes() < 2 * self._size_bytes:
            return False
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with fresh.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._size_bytes)
            fresh.rename(self._path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            log.warning("reserve_not_held", exc_info=error)
            return False
        return True

    def release_if_full(self) -> None:
        """Called by whoever is about to delete."""
        if self._size_bytes and self._free_bytes() < self._size_bytes // 4 and self._path.exists():
            self._path.unlink(missing_ok=True)
            log.warning("reserve_released")

    def _free_bytes(self) -> int:
        status = os.statvfs(self._path.parent)
        return status.f_bavail * status.f_frsize


NO_RESERVE = Reserve(Path(), 0)
