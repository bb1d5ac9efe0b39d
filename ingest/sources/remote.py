"""A bucket, share or site as a source, through fsspec."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote

from ingest.sources.entries import (
    READ_BYTES,
    Entry,
    EntryChanged,
    EntryRefused,
    Listing,
    SourceUnavailable,
)
from ingest.sources.faults import Faults

LOOKS_AT_ONCE = 16
"""Of a site, which tells a file's tag only when it is asked for that file."""
MAX_DEPTH = 64
MAX_ENTRIES = 1_000_000
_CHECKSUMS = ("etag", "e_tag", "content-md5", "digest", "md5hash", "checksum")
_TIMES = ("mtime", "lastmodified", "last_modified", "last-modified", "modified", "updated", "created")
_KINDS = {"link": "a symbolic link, which is not followed", "other": "no regular file"}


class RemoteFolder:
    """A Source of the files below `root` of a file system, of which it asks what fsspec's have: ls, info and open.

    `asks_each` is for sites: their listing holds names only. `bucket` is the part of a root that is there also when
    nothing is in it: a bucket's folders are made of their files.
    """

    def __init__(
        self,
        filesystem: Any,
        root: str,
        *,
        bucket: str | None = None,
        asks_each: bool = False,
        faults: Faults | None = None,
    ) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._bucket = bucket
        self._asks_each = asks_each
        self._faults = faults or Faults()

    def listing(self) -> Listing:
        try:
            found = Listing([], [])
            for told in self._walk(self._root, 0, found):
                entry = self._entry(told)
                if entry is not None:
                    found.entries.append(entry)
                if len(found.entries) > MAX_ENTRIES:
                    raise SourceUnavailable(f"The source lists more than {MAX_ENTRIES} files.")
        except SourceUnavailable:
            raise
        except Exception as error:
            # Each backend raises what its own client library does.
            raise SourceUnavailable(self._faults.tell("The source cannot be listed", error)) from error
        return self._asked_each(found) if self._asks_each else found

    def look(self, entry: Entry) -> Entry | None:
        try:
            return self._entry(self._filesystem.info(entry.address), path=entry.path)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise SourceUnavailable(self._faults.tell(f"{entry.path} cannot be looked at", error)) from error

    def read(self, entry: Entry) -> Iterator[bytes]:
        try:
            # A site's files come as a stream; others by ranges of one size, without holding what was read.
            how = {"block_size": 0} if self._asks_each else {"cache_type": "readahead"}
            with self._filesystem.open(entry.address, "rb", **how) as file:
                while piece := file.read(READ_BYTES):
                    yield piece
        except FileNotFoundError as error:
            raise EntryChanged(entry.path) from error
        except PermissionError as error:
            self._check_credentials()
            raise EntryRefused("The source's credentials may not read it.") from error
        except Exception as error:
            raise SourceUnavailable(self._faults.tell(f"{entry.path} cannot be read", error)) from error
        now = self.look(entry)
        if now is None or now.tag != entry.tag:
            raise EntryChanged(entry.path)

    def close(self) -> None:
        owners = (self._filesystem, *(getattr(self._filesystem, name, None) for name in ("client", "ftp")))
        for owner in owners:
            closing = getattr(owner, "close", None)
            if closing is not None:
                with suppress(Exception):
                    closing()

    def _walk(self, folder: str, depth: int, found: Listing) -> Iterator[Mapping[str, Any]]:
        """What is below a folder. fsspec's own walk leaves out what it fails to list, which would read as deleted."""
        try:
            told: list[Mapping[str, Any]] = self._filesystem.ls(folder, detail=True)
        except FileNotFoundError:
            if depth > 0:
                found.gaps.append(f"{folder}: it went while it was listed")
                return
            if self._bucket is None:
                raise
            self._filesystem.ls(self._bucket, detail=True)
            return
        for each in told:
            name = str(each["name"]).rstrip("/")
            if not self._below(name, folder):
                continue
            if each["type"] != "directory":
                yield each
            elif depth >= MAX_DEPTH:
                found.gaps.append(f"{name}: more than {MAX_DEPTH} folders deep")
            else:
                yield from self._walk(str(each["name"]) if self._asks_each else name, depth + 1, found)

    def _below(self, name: str, folder: str) -> bool:
        """Whether a listed name is a child of the folder: pages link anywhere, and some list the folder itself."""
        start = folder.rstrip("/").lstrip("/") + "/"
        child = name.lstrip("/").removeprefix(start)
        if name.lstrip("/") == child and start != "/":
            return False
        if self._asks_each:
            if {"?", "#"} & set(child):
                return False
            child = unquote(child)
        return child not in ("", ".", "..")

    def _entry(self, told: Mapping[str, Any], *, path: str | None = None) -> Entry | None:
        name = str(told["name"])
        if path is None:
            path = name.strip("/").removeprefix(self._root.strip("/")).strip("/")
            path = unquote(path) if self._asks_each else path
        if not path or "\0" in path or ".." in path.split("/"):
            return None
        if told["type"] in _KINDS:
            reason = f"It is {_KINDS[told['type']]}."
            return Entry(path=path, address=name, tag=reason, refusal=reason)
        size = told.get("size")
        tag, changed_at = _tag(told)
        return Entry(
            path=path,
            address=name,
            tag=tag,
            size_bytes=int(size) if size is not None else None,
            changed_at=changed_at,
        )

    def _asked_each(self, found: Listing) -> Listing:
        def ask(entry: Entry) -> Entry | None:
            try:
                return self.look(entry)
            except SourceUnavailable:
                return None

        with ThreadPoolExecutor(LOOKS_AT_ONCE) as asking:
            answers = list(asking.map(ask, found.entries))
        gaps = [
            f"{entry.path}: no answer"
            for entry, answer in zip(found.entries, answers, strict=True)
            if answer is None
        ]
        return Listing([answer for answer in answers if answer is not None], found.gaps + gaps)

    def _check_credentials(self) -> None:
        """Raises SourceUnavailable if they have expired: then it is not the one file that may not be read."""
        try:
            self._filesystem.info(self._root)
        except Exception as error:
            raise SourceUnavailable(self._faults.tell("The source cannot be read", error)) from error


def _tag(told: Mapping[str, Any]) -> tuple[str, float | None]:
    """The backend's checksum; else time and size; else nothing. With the time, on which a checksum may rest as well."""
    named = {key.lower(): value for key, value in told.items()}
    times = (_seconds(named[key]) for key in _TIMES if named.get(key) is not None)
    changed_at = next((time for time in times if time is not None), None)
    for key in _CHECKSUMS:
        # A weak one is that of another representation of the same, and good enough to say that it did not change.
        if named.get(key):
            return f"{key} {str(named[key])[:200]}", changed_at
    return ("", None) if changed_at is None else (f"{changed_at} {named.get('size')}", changed_at)


def _seconds(told: Any) -> float | None:
    match told:
        case datetime():
            return told.timestamp()
        case int() | float():
            return float(told)
        case str():
            with suppress(ValueError):
                return parsedate_to_datetime(told).timestamp()
            with suppress(ValueError):
                return datetime.fromisoformat(told).timestamp()
    return None
