"""Says what a file is by its content, for the upload route to accept or refuse it before anything is stored.

The name decides only between kinds of text (markdown, CSV, mail and so on), and a name that promises another
kind than the content has is refused: a reader who opens `report.pdf` must find a PDF.

Errors:
    UnsupportedMediaType    the content is of a kind we do not read, or not of the kind its name promises
    EmptyFile               there is nothing in it
"""

import codecs
import re
import struct
import zipfile
import zlib
from enum import StrEnum
from pathlib import Path, PurePath
from typing import BinaryIO


class MediaType(StrEnum):
    """The kinds of file that can be parsed, as MIME types."""

    PDF = "application/pdf"
    DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
    XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    ODT = "application/vnd.oasis.opendocument.text"
    EPUB = "application/epub+zip"
    MSG = "application/vnd.ms-outlook"
    EML = "message/rfc822"
    HTML = "text/html"
    MARKDOWN = "text/markdown"
    CSV = "text/csv"
    TSV = "text/tab-separated-values"
    JSON = "application/json"
    XML = "application/xml"
    TEXT = "text/plain"


SUPPORTED_EXTENSIONS = (
    ".pdf",
    ".docx",
    ".pptx",
    ".xlsx",
    ".odt",
    ".epub",
    ".msg",
    ".eml",
    ".html",
    ".htm",
    ".md",
    ".csv",
    ".tsv",
    ".json",
    ".xml",
    ".txt",
)
"""What messages name; any other text, such as source code, is read as plain text."""


class UnsupportedMediaType(Exception):
    """This kind of file cannot be read."""

    def __init__(self, found: str, filename: str) -> None:
        promised = PurePath(filename).suffix.lower()
        is_broken_promise = promised in _READ_EXTENSIONS or (
            promised in _NAMED_KINDS and found in _READ_KINDS
        )
        named = f"is named {promised} but " if is_broken_promise else ""
        super().__init__(
            f"The file {named}holds {found}. "
            f"Supported: {', '.join(SUPPORTED_EXTENSIONS)} and other plain text."
        )
        self.found = found
        self.filename = filename


class EmptyFile(Exception):
    """The file has no content."""

    def __init__(self, filename: str) -> None:
        super().__init__("The file is empty.")
        self.filename = filename


def detect(path: Path, filename: str) -> MediaType:
    """The media type of the file at `path`, which its owner calls `filename`.

    Reads the first 64 KiB, and of zip and OLE containers the directory. Raises UnsupportedMediaType,
    EmptyFile.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head.strip(b"\x00\t\n\r "):
            if len(head) < _HEAD_BYTES:
                raise EmptyFile(filename)
            raise UnsupportedMediaType("nothing but zero bytes or white space", filename)
        found = _binary_kind(file, head, PurePath(filename).suffix.lower())
    if isinstance(found, MediaType):
        return _agreed(found, filename)
    if found is not None:
        raise UnsupportedMediaType(found, filename)
    return _text_kind(head, filename)


_HEAD_BYTES = 1 << 16
_MAX_ZIP_DIRECTORY_BYTES = 4 << 20
"""Some 50,000 entries. A directory is held in memory whole, and no office file has as many."""

_TEXT_EXTENSIONS = {
    ".html": MediaType.HTML,
    ".htm": MediaType.HTML,
    ".xhtml": MediaType.HTML,
    ".md": MediaType.MARKDOWN,
    ".markdown": MediaType.MARKDOWN,
    ".csv": MediaType.CSV,
    ".tsv": MediaType.TSV,
    ".tab": MediaType.TSV,
    ".eml": MediaType.EML,
    ".json": MediaType.JSON,
    ".xml": MediaType.XML,
    ".txt": MediaType.TEXT,
}
_BINARY_EXTENSIONS = {
    ".pdf": MediaType.PDF,
    ".docx": MediaType.DOCX,
    ".pptx": MediaType.PPTX,
    ".xlsx": MediaType.XLSX,
    ".odt": MediaType.ODT,
    ".epub": MediaType.EPUB,
    ".msg": MediaType.MSG,
}
# fmt: off
_OTHER_BINARY_EXTENSIONS = {
    ".doc", ".ppt", ".xls", ".ods", ".odp", ".odg", ".rtf", ".pages", ".numbers", ".key", ".png",
    ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".heic", ".zip", ".gz", ".tgz",
    ".bz2", ".xz", ".7z", ".rar", ".tar", ".zst", ".exe", ".dll", ".so", ".jar", ".class",
    ".parquet", ".sqlite", ".db", ".mp3", ".mp4", ".wav",
}
# fmt: on
_READ_EXTENSIONS = _TEXT_EXTENSIONS.keys() | _BINARY_EXTENSIONS.keys()
_NAMED_KINDS = _READ_EXTENSIONS | _OTHER_BINARY_EXTENSIONS

_KIND_NAMES = {
    MediaType.PDF: "a PDF document",
    MediaType.DOCX: "a Word document (docx)",
    MediaType.PPTX: "a PowerPoint presentation (pptx)",
    MediaType.XLSX: "an Excel workbook (xlsx)",
    MediaType.ODT: "an OpenDocument text (odt)",
    MediaType.EPUB: "an e-book (epub)",
    MediaType.MSG: "an Outlook message (msg)",
}

_HTML_PAGE = "an HTML page"
_PLAIN_TEXT = "plain text"
_READ_KINDS = {*_KIND_NAMES.values(), _HTML_PAGE, _PLAIN_TEXT}

_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"\x7fELF", "a program"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"{\\rtf", "an RTF document"),
    (8, b"WEBP", "a WebP image"),
    (4, b"ftyp", "an audio or video file"),
    (257, b"ustar", "a tar archive"),
)


def _binary_kind(file: BinaryIO, head: bytes, extension: str) -> MediaType | str | None:
    """A media type that we read, or the name of another kind, or None for what looks like text."""
    # The PDF reference lets up to 1,024 bytes of anything stand before the header, and readers accept that.
    if head.lstrip().startswith(b"%PDF-") or (extension == ".pdf" and b"%PDF-" in head[:1024]):
        return MediaType.PDF
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(file)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _ole_kind(file, head, extension)
    return next((name for offset, magic, name in _SIGNATURES if head.startswith(magic, offset)), None)


def _zip_kind(file: BinaryIO) -> MediaType | str:
    if _zip_directory_bytes(file) > _MAX_ZIP_DIRECTORY_BYTES:
        return "a zip archive with too many entries"
    try:
        with zipfile.ZipFile(file) as archive:
            return _declared_mimetype(archive) or _kind_by_members(archive.namelist())
    # zipfile answers with any of these to what it cannot read.
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, OSError, EOFError):
        return "a damaged zip archive"


def _kind_by_members(names: list[str]) -> MediaType | str:
    is_open_xml = "[Content_Types].xml" in names
    for folder, kind in _OPEN_XML_FOLDERS:
        if is_open_xml and any(name.startswith(folder) for name in names):
            return kind
    if "META-INF/container.xml" in names:
        return MediaType.EPUB
    is_iwork = any(name.startswith("Index/") for name in names)
    return "an Apple iWork document" if is_iwork else "a zip archive"


_OPEN_XML_FOLDERS = (("word/", MediaType.DOCX), ("ppt/", MediaType.PPTX), ("xl/", MediaType.XLSX))


def _declared_mimetype(archive: zipfile.ZipFile) -> MediaType | str | None:
    """What the `mimetype` member of OpenDocument and EPUB says; None where there is none."""
    try:
        member = archive.getinfo("mimetype")
    except KeyError:
        return None
    if member.file_size > 256:
        return None
    with archive.open(member) as stream:
        declared = stream.read(256).decode("ascii", "replace").strip()
    if declared in {MediaType.ODT, MediaType.EPUB}:
        return MediaType(declared)
    if declared.startswith("application/vnd.oasis.opendocument."):
        return f"an OpenDocument {declared.rpartition('.')[2]}"
    return None


def _zip_directory_bytes(file: BinaryIO) -> int:
    """The directory's size as the end record has it: known before zipfile reads it whole into memory."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 22 - 0xFFFF))
    tail = file.read()
    file.seek(0)
    end_record = tail.rfind(b"PK\x05\x06")
    if end_record < 0 or len(tail) - end_record < 22:
        return 0
    (directory_bytes,) = struct.unpack_from("<L", tail, end_record + 12)
    return int(directory_bytes)


def _ole_kind(file: BinaryIO, head: bytes, extension: str) -> MediaType | str:
    (directory_sector,) = struct.unpack_from("<L", head.ljust(52, b"\x00"), 48)
    sector_bytes = 4096 if head[26:28] == b"\x04\x00" else 512
    file.seek(min((directory_sector + 1) * sector_bytes, 1 << 40))
    directory = file.read(_HEAD_BYTES) + head

    def has_stream(name: str) -> bool:
        return name.encode("utf-16-le") in directory

    if has_stream("EncryptedPackage"):
        # Office wraps an encrypted docx, pptx or xlsx in OLE. The parser says that it is encrypted, so that
        # the document's own status shows it; what is inside only the name tells.
        kind = _BINARY_EXTENSIONS.get(extension)
        return kind if kind in _OOXML else "an encrypted Office document"
    for stream, kind_or_name in _OLE_STREAMS:
        if has_stream(stream):
            return kind_or_name
    return "an OLE container of an unknown kind"


_OLE_STREAMS = (
    ("__properties_version1.0", MediaType.MSG),
    ("WordDocument", "a Word 97-2003 document (doc); save it as docx"),
    ("PowerPoint Document", "a PowerPoint 97-2003 presentation (ppt); save it as pptx"),
    ("Workbook", "an Excel 97-2003 workbook (xls); save it as xlsx"),
    ("Book", "an Excel workbook of the nineties (xls); save it as xlsx"),
)
_OOXML = {MediaType.DOCX, MediaType.PPTX, MediaType.XLSX}


def _agreed(found: MediaType, filename: str) -> MediaType:
    extension = PurePath(filename).suffix.lower()
    if extension in _NAMED_KINDS and _BINARY_EXTENSIONS.get(extension) is not found:
        raise UnsupportedMediaType(_KIND_NAMES[found], filename)
    return found


def _text_kind(head: bytes, filename: str) -> MediaType:
    extension = PurePath(filename).suffix.lower()
    text = _decoded_head(head)
    if text is None:
        raise UnsupportedMediaType("binary content of an unknown kind", filename)
    if extension in _BINARY_EXTENSIONS or extension in _OTHER_BINARY_EXTENSIONS:
        raise UnsupportedMediaType(_HTML_PAGE if _HTML.match(text) else _PLAIN_TEXT, filename)
    if extension:
        return _TEXT_EXTENSIONS.get(extension, MediaType.TEXT)
    return MediaType.HTML if _HTML.match(text) else MediaType.TEXT


_HTML = re.compile(
    r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\x81\x8d\x8f\x90\x9d]")


def encoding_of(head: bytes) -> str | None:
    """The encoding of a text file by its first bytes: UTF-8, one with a byte order mark, or Windows-1252.

    None for what no text has: more than 2 % control characters when read as Windows-1252.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if b"\x00" not in head:
        try:
            # final=False: the head may end within a character.
            codecs.getincrementaldecoder("utf-8")().decode(head, final=False)
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8" if _is_text(head.decode("utf-8", "ignore")) else None
    for encoding in ("utf-16-le", "utf-16-be"):
        # Without a mark only text in Latin letters can be told: every other byte is zero.
        zeros = head[1 if encoding == "utf-16-le" else 0 :: 2].count(0)
        if zeros > len(head) * 0.4:
            return encoding
    return "cp1252" if _is_text(head.decode("latin-1")) else None


def _is_text(text: str) -> bool:
    return len(_CONTROLS.findall(text)) <= len(text) * 0.02


def _decoded_head(head: bytes) -> str | None:
    encoding = encoding_of(head)
    return None if encoding is None else head.decode(encoding, "replace")
