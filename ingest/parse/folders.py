"""Reads zip and tar archives as folders: every file in them is a document of its own."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from ingest.elements import Attachment, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.archives import (
    MAX_ENTRIES,
    MAX_ENTRY_BYTES,
    READ_BYTES,
    InflationMeter,
    check_members,
    damaged,
)
from ingest.parse.packages import encrypted
from ingest.visible import clean

MAX_DEPTH = 2
"""An archive in an archive is opened; what lies deeper is not."""


def parse_zip(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """The files of a zip archive, once all of it is known to keep to the limits. Raises ParseFailed."""
    check_depth(options)
    password = None if options.password is None else options.password.encode()
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type == _AES for member in archive.infolist()):
                raise _unknown_method()
            try:
                check_members(archive, path.stat().st_size, most=MAX_ENTRIES, password=password)
            except NotImplementedError:
                raise
            # zipfile has no error of its own for a password that is missing or wrong.
            except RuntimeError as error:
                raise encrypted(options.password) from error
            files = [member for member in archive.infolist() if _is_kept_in_zip(member)]
            for member in _any(files):
                with archive.open(member, pwd=password) as content:
                    yield from as_attachment(_name(member), content)
    except NotImplementedError as error:
        raise _unknown_method() from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise damaged() from error


def parse_tar(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """The files of a tar archive, compressed or not, once all of it is known to keep to the limits.

    Raises ParseFailed.
    """
    check_depth(options)
    try:
        # Once for the verdict: nothing of a bomb is given to be parsed.
        files = sum(1 for _ in _tar_files(path))
        if files == 0:
            raise _no_files()
        for member, content in _tar_files(path):
            yield from as_attachment(member.name, content)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise damaged() from error
    except OSError as error:
        # gzip and bz2 raise it, without a number, for what they cannot inflate.
        raise error if error.errno is not None else damaged() from error


def check_depth(options: ParseOptions) -> None:
    """Raises ParseFailed (limit) for an archive that lies too deep in others."""
    if options.depth >= MAX_DEPTH:
        raise ParseFailed(
            ParseFailure.LIMIT,
            f"This archive lies in {options.depth} others, and at most {MAX_DEPTH} are opened. Unpack it first.",
        )


def as_attachment(name: str, content: IO[bytes]) -> Iterator[Attachment]:
    """`content` in a file of its own that is gone when the next thing is asked for; nothing if it is empty."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "entry"
        written = 0
        with path.open("wb") as file:
            while piece := content.read(READ_BYTES):
                written += len(piece)
                if written > MAX_ENTRY_BYTES:
                    raise ParseFailed(
                        ParseFailure.TOO_LARGE,
                        f"A file in this one is larger than {MAX_ENTRY_BYTES >> 20} MiB. Upload it by itself.",
                    )
                file.write(piece)
        if written:
            yield Attachment(shown_name(name), path)


def shown_name(name: str) -> str:
    """A path as text that leads nowhere: no root, no way up, nothing that cannot be seen."""
    parts = [" ".join(clean(part).split())[:_MAX_NAME_CHARS] for part in name.replace("\\", "/").split("/")]
    kept = [part for part in parts if part.strip(". ")]
    return "/".join(kept[-_MAX_FOLDERS:]) or "unnamed"


_MAX_NAME_CHARS = 255
_MAX_FOLDERS = 32
_UNWANTED = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}


def _is_wanted(name: str) -> bool:
    """False for what systems put beside the files of people."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not _UNWANTED & set(path.parts) and not path.name.startswith("._")


def _is_kept_in_zip(member: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(member.external_attr >> 16)
    # Zips of DOS programs have no kind at all.
    return not member.is_dir() and kind in {0, stat.S_IFREG} and _is_wanted(member.filename)


def _name(member: zipfile.ZipInfo) -> str:
    """The entry's name; many programs write UTF-8 without saying so."""
    is_marked = bool(member.flag_bits & 0x800)
    try:
        return member.filename if is_marked else member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def _tar_files(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The plain files that are wanted; links and devices are passed over. All that is read is counted."""
    with path.open("rb") as packed, _unpacked(packed) as unpacked:
        metered = _Metered(unpacked, path.stat().st_size)
        with tarfile.open(fileobj=metered, mode="r|") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_ENTRIES:
                    raise ParseFailed(
                        ParseFailure.TOO_LARGE,
                        f"This archive holds more than {MAX_ENTRIES:,} files. Pack it in several.",
                    )
                # A sparse file is mostly holes, which no text has, and inflates to any size from nothing.
                if member.isreg() and not member.issparse() and member.size and _is_wanted(member.name):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield member, content


def _unpacked(packed: BinaryIO) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | BinaryIO:
    beginning = packed.read(6)
    packed.seek(0)
    if beginning.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=packed)
    if beginning.startswith(b"BZh"):
        return bz2.BZ2File(packed)
    return lzma.LZMAFile(packed) if beginning.startswith(b"\xfd7zXZ\x00") else packed


class _Metered(io.RawIOBase):
    """A stream whose reader is stopped when it has read too much."""

    def __init__(
        self, stream: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | BinaryIO, packed_bytes: int
    ) -> None:
        self._stream = stream
        self._meter = InflationMeter(packed_bytes)

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._meter.add(len(piece))
        return piece


_AES = 99
"""WinZip's method; the real one stands in a field of its own."""


def _unknown_method() -> ParseFailed:
    return ParseFailed(
        ParseFailure.UNSUPPORTED,
        "This archive is packed or encrypted in a way that cannot be opened here, such as AES. Pack it again as an "
        "ordinary zip, or upload the files themselves.",
    )


def _any(files: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    if not files:
        raise _no_files()
    return files


def _no_files() -> ParseFailed:
    return ParseFailed(ParseFailure.EMPTY, "There is no file in this archive.")
