"""Refuses office files and e-books that are encrypted or inflate without bound, before they are parsed."""

import zipfile
from pathlib import Path

from ingest.elements import ParseFailed, ParseFailure

_OLE_SIGNATURE = b"\xd0\xcf\x11\xe0"
_MAX_INFLATED_BYTES = 1 << 30
_BOMB_BYTES = 64 << 20
_BOMB_RATIO = 100
"""XML shrinks 10 to 30 times, and a small part may be all blanks; many megabytes at this ratio are a bomb."""


def check_archive(path: Path) -> None:
    """Raises ParseFailed (encrypted, too_large, corrupt, unsupported) for a container not to be parsed."""
    with path.open("rb") as file:
        if file.read(4) == _OLE_SIGNATURE:
            # Office keeps a docx, pptx or xlsx with a password in an OLE container.
            raise _encrypted()
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            _check_manifest(archive)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ParseFailed(
            ParseFailure.CORRUPT, "This file is damaged and cannot be opened. Save or export it again."
        ) from error


def _check_members(archive: zipfile.ZipFile, packed_bytes: int) -> None:
    members = archive.infolist()
    if any(member.flag_bits & 1 for member in members):
        raise _encrypted()
    inflated_bytes = sum(member.file_size for member in members)
    if inflated_bytes > _MAX_INFLATED_BYTES or (
        inflated_bytes > _BOMB_BYTES and inflated_bytes > _BOMB_RATIO * packed_bytes
    ):
        raise ParseFailed(
            ParseFailure.TOO_LARGE,
            f"This file unpacks to {inflated_bytes >> 20} MiB, which is too much. Split it into parts.",
        )


def _check_manifest(archive: zipfile.ZipFile) -> None:
    """OpenDocument lists its encrypted members; strict Open XML has other names for everything."""
    names = archive.namelist()
    if "META-INF/manifest.xml" in names and b"encryption-data" in archive.read("META-INF/manifest.xml"):
        raise _encrypted()
    if "_rels/.rels" in names and b"purl.oclc.org/ooxml" in archive.read("_rels/.rels"):
        raise ParseFailed(
            ParseFailure.UNSUPPORTED,
            "This file is in the strict variant of Open XML. Save it in the normal Office format.",
        )


def _encrypted() -> ParseFailed:
    return ParseFailed(
        ParseFailure.ENCRYPTED,
        "This file is protected by a password. Save it without one and upload it again.",
    )
