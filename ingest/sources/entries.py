"""What a source tells about its files, and the protocol that every kind of source follows.

Errors:
    SourceRefused           this address or option may not be used, or cannot work; the message names what to change
    └── BackendMissing      a package for this kind of address is not installed
    SourceUnavailable       the place does not answer as it should: may work next time
    EntryChanged            the file is not what was listed, or went while it was read: the next sweep looks again
    EntryRefused            the file cannot be taken until it changes
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

READ_BYTES = 1 << 20
"""A file is read in pieces of this size."""


class SourceRefused(Exception):
    """The address, or an option, of a source cannot be used."""

    def __init__(self, message: str, *, param: str = "url") -> None:
        super().__init__(message)
        self.param = param


class BackendMissing(SourceRefused):
    """The package for this kind of address is not installed."""

    def __init__(self, scheme: str, extra: str) -> None:
        super().__init__(
            f"Sources of {scheme}:// need a package that is not installed: run "
            f"pip install 'strongroom[{extra}]' where the api and the worker run."
        )


class SourceUnavailable(Exception):
    """The place does not answer as it should."""


class EntryChanged(Exception):
    """The file is not the one that was listed any more."""


class EntryRefused(Exception):
    """The file cannot be taken; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a source."""

    path: str
    """Below the source's root, with slashes: `letters/1920.txt`."""
    address: str
    """What the source itself opens it by."""
    tag: str
    """What is equal was not changed. Empty when the source tells nothing: then only the content decides."""
    size_bytes: int | None = None
    changed_at: float | None = None
    """Where the tag rests on it: a file may change twice within a clock's tick, so a young one is looked at again."""
    refusal: str | None = None
    """Why it cannot be taken, such as being a symbolic link."""


@dataclass(frozen=True)
class Listing:
    entries: list[Entry]
    gaps: list[str]
    """What could not be looked at. With any, a file that is not listed may still be there."""


class Source(Protocol):
    """Callers are threads: all of it blocks, and none of it for ever."""

    def listing(self) -> Listing:
        """Every file. Raises SourceUnavailable, SourceRefused."""
        ...

    def look(self, entry: Entry) -> Entry | None:
        """The file as it is now; None when it is gone. Raises SourceUnavailable."""
        ...

    def read(self, entry: Entry) -> Iterator[bytes]:
        """The content that was listed. Raises EntryChanged, EntryRefused, SourceUnavailable, also midway."""
        ...

    def close(self) -> None: ...


def shown_name(path: str) -> str:
    """The last part of a path as a name to show: printable, at most 255 characters."""
    last = "".join(character for character in path.rpartition("/")[2] if character.isprintable())
    return last[:255] or "unnamed"
