"""Tells the kinds of binary files by their first bytes, and of containers by their directory.

It runs in the process that takes uploads, so that every read is bounded, whatever a file claims of itself.
"""

import bz2
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import BinaryIO

from ingest.encodings import SAMPLE_BYTES
from ingest.kinds import EXTENSIONS, Foreign, MediaType


def binary_kind(file: BinaryIO, head: bytes, extension: str) -> MediaType | Foreign | None:
    """What the file is by its bytes; None for what may be text. `head` is its first 64 KiB."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(file)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _ole_kind(file, head, extension)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")):
        return _compressed_kind(file)
    if _is_tar_header(head):
        return MediaType.TAR
    found = next((kind for offset, magic, kind in _SIGNATURES if head.startswith(magic, offset)), None)
    if found is not None:
        return found
    if _BITMAP.match(head):
        return MediaType.BMP
    if head.startswith(b"MZ") and b"\x00" in head[:64]:
        return _PROGRAM
    # The PDF reference lets up to 1,024 bytes of anything stand before the header, and readers accept that.
    if head.lstrip().startswith(b"%PDF-") or (extension == ".pdf" and _LATE_PDF.match(head[:1024])):
        return MediaType.PDF
    return None


_PROGRAM = Foreign("a program")
_PICKLE = Foreign("a Python pickle", "Pickles are never loaded.")
_MEDIA = Foreign("an audio or video file", "Upload its transcript or subtitles.")
_IWORK = Foreign("an Apple iWork document", "Export it as PDF or in an Office format.")
_OTHER_ARCHIVE = "Pack it as zip or tar."
_TABLES = "Export it as CSV."

_SIGNATURES: tuple[tuple[int, bytes, MediaType | Foreign], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", MediaType.PNG),
    (0, b"\xff\xd8\xff", MediaType.JPEG),
    (0, b"GIF87a", MediaType.GIF),
    (0, b"GIF89a", MediaType.GIF),
    (0, b"II*\x00", MediaType.TIFF),
    (0, b"MM\x00*", MediaType.TIFF),
    (8, b"WEBP", MediaType.WEBP),
    (0, b"{\\rtf", MediaType.RTF),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", _OTHER_ARCHIVE)),
    (0, b"Rar!\x1a\x07", Foreign("a RAR archive", _OTHER_ARCHIVE)),
    (0, b"\x28\xb5\x2f\xfd", Foreign("a zstd archive", _OTHER_ARCHIVE)),
    (0, b"\x7fELF", _PROGRAM),
    (0, b"\xca\xfe\xba\xbe", _PROGRAM),
    (0, b"\xcf\xfa\xed\xfe", _PROGRAM),
    (0, b"\xce\xfa\xed\xfe", _PROGRAM),
    (0, b"\x00asm", _PROGRAM),
    (0, b"%!PS", Foreign("a PostScript file", "Convert it to PDF.")),
    (0, b"\xc5\xd0\xd3\xc6", Foreign("an EPS image", "Convert it to PDF or PNG.")),
    (0, b"8BPS", Foreign("a Photoshop image", "Export it as PNG.")),
    (0, b"SIMPLE  =", Foreign("a FITS image", "Export it as PNG.")),
    (4, b"ftypheic", Foreign("a HEIC image", "Export it as JPEG.")),
    (4, b"ftypavif", Foreign("an AVIF image", "Export it as JPEG.")),
    (4, b"ftyp", _MEDIA),
    (0, b"ID3", _MEDIA),
    (0, b"OggS", _MEDIA),
    (8, b"WAVE", _MEDIA),
    (0, b"\x1aE\xdf\xa3", _MEDIA),
    (0, b"\x80\x02", _PICKLE),
    (0, b"\x80\x03", _PICKLE),
    (0, b"\x80\x04", _PICKLE),
    (0, b"\x80\x05", _PICKLE),
    (0, b"\x93NUMPY", Foreign("a NumPy array", _TABLES)),
    (0, b"\x89HDF\r\n\x1a\n", Foreign("an HDF5 file", _TABLES)),
    (0, b"PAR1", Foreign("a Parquet table", _TABLES)),
    (0, b"SQLite format 3\x00", Foreign("an SQLite database", _TABLES)),
)
_BITMAP = re.compile(rb"BM.{4}\x00\x00\x00\x00.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00", re.DOTALL)
_LATE_PDF = re.compile(rb"(?!\s*(?:<|#!)).*%PDF-", re.DOTALL)
"""Not after a tag or a script's first line: such a file is two things at once, and made to be so."""


def _zip_kind(file: BinaryIO) -> MediaType | Foreign:
    if _zip_directory_bytes(file) > _MAX_ZIP_DIRECTORY_BYTES:
        return Foreign("a zip archive with too many entries", "Pack it in several archives.")
    try:
        with zipfile.ZipFile(file) as archive:
            return _declared_kind(archive) or _kind_by_members(archive.namelist())
    # zipfile answers with any of these to what it cannot read.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, OSError, EOFError):
        return Foreign("a damaged zip archive", "Save or pack it again.")


_MAX_ZIP_DIRECTORY_BYTES = 2 << 20
"""Some 25,000 entries. A directory is held in memory whole, and no office file has as many."""


def _zip_directory_bytes(file: BinaryIO) -> int:
    """The directory's size as the end record has it: known before zipfile reads it whole into memory."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 22 - 0xFFFF))
    tail = file.read(22 + 0xFFFF)
    file.seek(0)
    end_record = tail.rfind(b"PK\x05\x06")
    if end_record < 0 or len(tail) - end_record < 22:
        return 0
    (directory_bytes,) = struct.unpack_from("<L", tail, end_record + 12)
    return int(directory_bytes)


def _declared_kind(archive: zipfile.ZipFile) -> MediaType | Foreign | None:
    """What the `mimetype` member of OpenDocument and EPUB says; None where there is none."""
    try:
        member = archive.getinfo("mimetype")
    except KeyError:
        return None
    if member.file_size > 256:
        return None
    with archive.open(member) as stream:
        declared = stream.read(256).decode("ascii", "replace").strip()
    if declared in _DECLARED:
        return MediaType(declared)
    if declared.startswith("application/vnd.oasis.opendocument."):
        return Foreign(f"an OpenDocument {declared.rpartition('.')[2]}", "Export it as PDF.")
    return None


_DECLARED = {MediaType.ODT, MediaType.ODP, MediaType.ODS, MediaType.EPUB}


def _kind_by_members(names: Sequence[str]) -> MediaType | Foreign:
    if any(name.endswith("/vbaProject.bin") for name in names):
        return Foreign("an Office document with macros", "Save it without them, as docx, pptx or xlsx.")
    if "xl/workbook.bin" in names:
        return Foreign("a binary Excel workbook (xlsb)", "Save it as xlsx.")
    if "[Content_Types].xml" in names:
        for folder, kind in _OPEN_XML_FOLDERS:
            if any(name.startswith(folder) for name in names):
                return kind
    if "META-INF/container.xml" in names:
        return MediaType.EPUB
    if any(name.endswith((".iwa", "/Index.zip", "index.apxl")) or name == "Index.zip" for name in names):
        return _IWORK
    if "META-INF/MANIFEST.MF" in names or "AndroidManifest.xml" in names:
        return _PROGRAM
    if any(name.endswith("data.pkl") for name in names):
        return _PICKLE
    return MediaType.ZIP


_OPEN_XML_FOLDERS = (("word/", MediaType.DOCX), ("ppt/", MediaType.PPTX), ("xl/", MediaType.XLSX))


def _ole_kind(file: BinaryIO, head: bytes, extension: str) -> MediaType | Foreign:
    (directory_sector,) = struct.unpack_from("<L", head.ljust(52, b"\x00"), 48)
    sector_bytes = 4096 if head[26:28] == b"\x04\x00" else 512
    file.seek(min((directory_sector + 1) * sector_bytes, 1 << 40))
    directory = file.read(SAMPLE_BYTES) + head

    def has_stream(name: str) -> bool:
        return name.encode("utf-16-le") in directory

    if has_stream("EncryptedPackage"):
        # Office wraps an encrypted docx, pptx or xlsx in OLE. What is inside only the name tells, until there
        # is a password.
        promised = EXTENSIONS.get(extension)
        if promised in _ENCRYPTED_KINDS:
            return promised
        return Foreign("an encrypted Office document", "Name it as it is inside: .docx, .pptx or .xlsx.")
    for stream, kind in _OLE_STREAMS:
        if has_stream(stream):
            return kind
    return Foreign("an OLE container of an unknown kind", "Export it as PDF.")


_ENCRYPTED_KINDS = {MediaType.DOCX, MediaType.PPTX, MediaType.XLSX}
_OLE_STREAMS = (
    ("__properties_version1.0", MediaType.MSG),
    ("WordDocument", MediaType.DOC),
    ("PowerPoint Document", MediaType.PPT),
    ("Workbook", MediaType.XLS),
    ("Book", MediaType.XLS),
)


def _compressed_kind(file: BinaryIO) -> MediaType | Foreign:
    """A tar archive, if the first bytes inside are one's; at most 1 MiB is read, and 1 KiB inflated."""
    file.seek(0)
    packed = file.read(_PEEK_BYTES)
    try:
        if packed.startswith(b"\x1f\x8b"):
            name, inside = "gzip", zlib.decompressobj(31).decompress(packed, _TAR_HEADER_BYTES)
        elif packed.startswith(b"BZh"):
            name, inside = "bzip2", bz2.BZ2Decompressor().decompress(packed, _TAR_HEADER_BYTES)
        else:
            xz = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)
            name, inside = "xz", xz.decompress(packed, _TAR_HEADER_BYTES)
    except (zlib.error, lzma.LZMAError, OSError):
        return Foreign("a damaged compressed file", "Pack it again.")
    if _is_tar_header(inside):
        return MediaType.TAR
    return Foreign(f"a single file packed with {name}", "Unpack it and upload what is inside.")


_PEEK_BYTES = 1 << 20
_TAR_HEADER_BYTES = 512
_XZ_MEMORY_BYTES = 64 << 20


def _is_tar_header(head: bytes) -> bool:
    """True for the header of an archive's first entry: its check sum is that of its own bytes."""
    stated = head[148:156].strip(b"\x00 ")
    if (
        len(head) < _TAR_HEADER_BYTES
        or not stated
        or not stated.isdigit()
        or b"8" in stated
        or b"9" in stated
    ):
        return False
    header = head[:148] + b" " * 8 + head[156:_TAR_HEADER_BYTES]
    return sum(header) == int(stated, 8)
