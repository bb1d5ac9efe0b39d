"""A local folder as a source. Nothing in it leads out of it, and nothing in it can make a reader wait.

Each folder is opened by name below its parent's descriptor, never through a link; a file is opened the same way,
without blocking, and is read only if it then is a regular file of the root's file system with the listed tag.
So a link, a pipe or a device is not followed, also when it takes a file's place after the listing.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest.sources.entries import (
    READ_BYTES,
    Entry,
    EntryChanged,
    EntryRefused,
    Listing,
    SourceUnavailable,
)

MAX_DEPTH = 64
"""Each level holds a descriptor while it is listed."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_KINDS = {
    stat.S_IFLNK: "a symbolic link, which is not followed",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class LocalFolder:
    """A Source of the files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def listing(self) -> Listing:
        found = Listing([], [])
        with self._opened_root() as (root, device):
            self._list_folder(root, "", device, found, depth=0)
        return found

    def look(self, entry: Entry) -> Entry | None:
        with self._opened_root() as (root, device):
            try:
                with _opened_parent(root, entry.address) as (folder, name):
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return None
                raise SourceUnavailable(f"{entry.path} cannot be looked at: {error.strerror}.") from error
        return _entry(entry.path, entry.address, found, device)

    def read(self, entry: Entry) -> Iterator[bytes]:
        with self._opened_root() as (root, device):
            descriptor = _opened_file(root, entry)
        try:
            if _entry(entry.path, entry.address, os.fstat(descriptor), device) != entry:
                raise EntryChanged(entry.path)
            while piece := os.read(descriptor, READ_BYTES):
                yield piece
            if _tag(os.fstat(descriptor)) != entry.tag:
                raise EntryChanged(entry.path)
        except OSError as error:
            raise SourceUnavailable(f"{entry.path} cannot be read: {error.strerror}.") from error
        finally:
            os.close(descriptor)

    def close(self) -> None:
        pass

    @contextmanager
    def _opened_root(self) -> Iterator[tuple[int, int]]:
        """The root's descriptor and device."""
        try:
            descriptor = os.open(self._root, _FOLDER)
        except OSError as error:
            raise SourceUnavailable(f"The folder {self._root} cannot be opened: {error.strerror}.") from error
        try:
            yield descriptor, os.fstat(descriptor).st_dev
        finally:
            os.close(descriptor)

    def _list_folder(self, folder: int, prefix: str, device: int, found: Listing, *, depth: int) -> None:
        children: list[tuple[str, os.stat_result]] = []
        try:
            with os.scandir(folder) as names:
                for each in names:
                    # What goes while the folder is listed is simply gone.
                    with suppress(FileNotFoundError):
                        children.append((each.name, each.stat(follow_symlinks=False)))
        except OSError as error:
            found.gaps.append(f"{prefix or self._root}: {error.strerror}")
            return
        for name, status in children:
            address = prefix + name
            path = _readable(address)
            if not stat.S_ISDIR(status.st_mode):
                found.entries.append(_entry(path, address, status, device))
            elif status.st_dev != device:
                found.entries.append(_refused(path, address, "It is a folder of another file system."))
            elif depth >= MAX_DEPTH:
                found.entries.append(_refused(path, address, f"It is a folder more than {MAX_DEPTH} deep."))
            else:
                self._list_child(folder, name, prefix, device, found, depth=depth)

    def _list_child(
        self, folder: int, name: str, prefix: str, device: int, found: Listing, *, depth: int
    ) -> None:
        try:
            child = os.open(name, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            return
        except OSError as error:
            found.gaps.append(f"{_readable(prefix + name)}: {error.strerror}")
            return
        try:
            if os.fstat(child).st_dev == device:
                self._list_folder(child, f"{prefix}{name}/", device, found, depth=depth + 1)
        finally:
            os.close(child)


@contextmanager
def _opened_parent(root: int, address: str) -> Iterator[tuple[int, str]]:
    *folders, name = address.split("/")
    folder = os.dup(root)
    try:
        for each in folders:
            below = os.open(each, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        yield folder, name
    finally:
        os.close(folder)


def _opened_file(root: int, entry: Entry) -> int:
    try:
        with _opened_parent(root, entry.address) as (folder, name):
            return os.open(name, _FILE, dir_fd=folder)
    except PermissionError as error:
        raise EntryRefused("The worker's user may not read it.") from error
    except OSError as error:
        # Gone, or a link or socket took its place, or a folder on the way became one.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            raise EntryChanged(entry.path) from error
        raise SourceUnavailable(f"{entry.path} cannot be opened: {error.strerror}.") from error


def _entry(path: str, address: str, found: os.stat_result, device: int) -> Entry:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        return _refused(path, address, f"It is {kind}.")
    if found.st_dev != device:
        return _refused(path, address, "It is on another file system.")
    if path != address:
        return _refused(path, address, "Its name is not UTF-8.")
    return Entry(
        path=path,
        address=address,
        tag=_tag(found),
        size_bytes=found.st_size,
        changed_at=max(found.st_mtime, found.st_ctime),
    )


def _refused(path: str, address: str, reason: str) -> Entry:
    return Entry(path=path, address=address, tag=reason, refusal=reason)


def _tag(found: os.stat_result) -> str:
    # The time of the inode's change as well: a program may set the other one back.
    return f"{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_size}"


def _readable(address: str) -> str:
    """Bytes of a name that are not UTF-8, written out."""
    return os.fsencode(address).decode("utf-8", "backslashreplace")
