"""Opens Office files for their parsers: checked, decrypted, and in the variant that the libraries know."""

import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msoffcrypto
from msoffcrypto.exceptions import DecryptionError, FileFormatError, InvalidKeyError, ParseError

from ingest.elements import ParseFailed, ParseFailure
from ingest.parse.archives import check_package, damaged

_OLE_SIGNATURE = b"\xd0\xcf\x11\xe0"


@contextmanager
def opened_package(path: Path, password: str | None) -> Iterator[Path]:
    """A docx, pptx, xlsx or OpenDocument file that may be parsed. Raises ParseFailed.

    Office keeps one with a password in an OLE container, and can write a "strict" one, with other names for
    everything.
    """
    with tempfile.TemporaryDirectory() as folder:
        if _is_ole(path):
            path = _decrypted(path, password, Path(folder) / "decrypted")
        check_package(path)
        if _is_strict(path):
            path = _transitional(path, Path(folder) / "transitional")
        yield path


@contextmanager
def opened_ole(path: Path, password: str | None) -> Iterator[Path]:
    """A doc, ppt or xls without its password. Raises ParseFailed."""
    with tempfile.TemporaryDirectory() as folder, path.open("rb") as file:
        try:
            is_encrypted = msoffcrypto.OfficeFile(file).is_encrypted()
        except Exception:  # noqa: BLE001 - it raises anything for a damaged file, and the parser says more of it
            is_encrypted = False
        yield _decrypted(path, password, Path(folder) / "decrypted") if is_encrypted else path


def encrypted(password: str | None) -> ParseFailed:
    """What to say of a file that this password does not open."""
    if password is not None:
        return ParseFailed(
            ParseFailure.ENCRYPTED,
            "The password does not open this file. Upload it again with the right one.",
        )
    return ParseFailed(
        ParseFailure.ENCRYPTED,
        "This file is protected by a password. Upload it again with the field `password`, or without protection.",
    )


def _is_ole(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_OLE_SIGNATURE)) == _OLE_SIGNATURE


def _decrypted(path: Path, password: str | None, target: Path) -> Path:
    if password is None:
        raise encrypted(None)
    try:
        with path.open("rb") as file, target.open("wb") as opened:
            office_file = msoffcrypto.OfficeFile(file)
            office_file.load_key(password=password)
            office_file.decrypt(opened)
    except (InvalidKeyError, DecryptionError) as error:
        raise encrypted(password) from error
    except (FileFormatError, ParseError) as error:
        raise damaged() from error
    return target


def _is_strict(path: Path) -> bool:
    with zipfile.ZipFile(path) as package:
        return "_rels/.rels" in package.namelist() and b"purl.oclc.org/ooxml" in package.read("_rels/.rels")


def _transitional(path: Path, target: Path) -> Path:
    with zipfile.ZipFile(path) as strict, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        for member in strict.infolist():
            content = strict.read(member)
            if member.filename.endswith((".xml", ".rels")):
                content = _STRICT_NAME.sub(rb"http://schemas.openxmlformats.org/\1/2006/", content)
            package.writestr(member.filename, content)
    return target


_STRICT_NAME = re.compile(rb"http://purl\.oclc\.org/ooxml/(\w+)/")
"""ISO/IEC 29500-1 names against those of ECMA-376, first edition, which all programs write."""
