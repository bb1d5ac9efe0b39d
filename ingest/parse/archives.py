"""Limits what may come out of a compressed file, counted while it is inflated: what headers say is not believed."""

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from ingest.elements import ParseFailed, ParseFailure

MAX_ENTRIES = 2_000
MAX_PACKAGE_MEMBERS = 10_000
"""Of an Office file or e-book: a deck of a thousand slides has more parts than an archive may have entries."""
MAX_ENTRY_BYTES = 256 << 20
"""As much as a parser may write into one file."""
READ_BYTES = 1 << 18


@dataclass
class InflationMeter:
    """Counts what one archive inflates to, all its entries together."""

    packed_bytes: int
    inflated_bytes: int = field(default=0, init=False)

    def add(self, inflated_bytes: int) -> None:
        """Raises ParseFailed (too_large) as soon as it is too much."""
        self.inflated_bytes += inflated_bytes
        if self.inflated_bytes > _MAX_INFLATED_BYTES:
            raise _too_large(f"more than {_MAX_INFLATED_BYTES >> 20} MiB")
        if self.inflated_bytes > _FREE_BYTES and self.inflated_bytes > _MAX_RATIO * self.packed_bytes:
            raise _too_large(f"more than {_MAX_RATIO} times its size")


_MAX_INFLATED_BYTES = 512 << 20
_FREE_BYTES = 32 << 20
_MAX_RATIO = 100
"""XML shrinks 10 to 30 times, and a small part may be all blanks; many megabytes at this ratio are a bomb."""


def check_package(path: Path) -> None:
    """Raises ParseFailed (too_large, corrupt, encrypted) for an Office file or e-book that must not be opened."""
    try:
        with zipfile.ZipFile(path) as package:
            check_members(package, path.stat().st_size, most=MAX_PACKAGE_MEMBERS, xml=True)
            names = package.namelist()
            is_open_document = "META-INF/manifest.xml" in names
            if is_open_document and b"encryption-data" in package.read("META-INF/manifest.xml"):
                raise ParseFailed(
                    ParseFailure.ENCRYPTED,
                    "This OpenDocument file is protected by a password, and only Office files and PDFs can be "
                    "opened with one. Save it without a password and upload it again.",
                )
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise damaged() from error


def check_members(
    archive: zipfile.ZipFile,
    packed_bytes: int,
    *,
    most: int,
    xml: bool = False,
    password: bytes | None = None,
) -> None:
    """Inflates all members once, keeping nothing. Raises ParseFailed, and zipfile.BadZipFile.

    `xml`: members of XML may not define entities.
    """
    members = archive.infolist()
    if len(members) > most:
        raise ParseFailed(
            ParseFailure.TOO_LARGE,
            f"This archive holds {len(members):,} files, and at most {most:,} are read. Pack it in several.",
        )
    _check_overlap(members)
    meter = InflationMeter(packed_bytes)
    for member in members:
        if member.is_dir():
            continue
        with archive.open(member, pwd=password) as stream:
            is_first = True
            while piece := stream.read(READ_BYTES):
                meter.add(len(piece))
                # Without its zero bytes UTF-16 reads like ASCII.
                if xml and is_first and _XML_NAME.search(member.filename):
                    _check_entities(piece.replace(b"\x00", b""))
                is_first = False


_XML_NAME = re.compile(r"\.(xml|rels|xhtml|html?|opf|ncx|svg|vml)$", re.IGNORECASE)


def _check_entities(beginning: bytes) -> None:
    if b"<!ENTITY" in beginning:
        raise ParseFailed(
            ParseFailure.CORRUPT,
            "This file defines XML entities, as no Office program does and attacks do. Save or export it again.",
        )


def _check_overlap(members: list[zipfile.ZipInfo]) -> None:
    """Entries that share their bytes make a small file inflate to more than any ratio of one entry shows."""
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise ParseFailed(
                ParseFailure.CORRUPT,
                "Entries of this archive overlap, as no packing program writes them. Pack it again.",
            )
        end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size


_LOCAL_HEADER_BYTES = 30


def damaged() -> ParseFailed:
    return ParseFailed(
        ParseFailure.CORRUPT, "This file is damaged and cannot be opened. Save, export or pack it again."
    )


def _too_large(inflates_to: str) -> ParseFailed:
    return ParseFailed(
        ParseFailure.TOO_LARGE, f"This file unpacks to {inflates_to}, which is too much. Split it into parts."
    )
