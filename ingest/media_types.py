"""Says what a file is by its content, for the upload route to accept or refuse it before anything is stored.

The name decides only between kinds of text (markdown, CSV, mail and so on), and a name that promises another
kind than the content has is refused: a reader who opens `report.pdf` must find a PDF.

Errors:
    UnsupportedMediaType    the content is of a kind we do not read, or not of the kind its name promises
    EmptyFile               there is nothing in it
"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType

from ingest.elements import Openable
from ingest.encodings import SAMPLE_BYTES, first_text, is_text
from ingest.kinds import EXTENSIONS, FOREIGN_EXTENSIONS, KIND_NAMES, Foreign, MediaType
from ingest.signatures import binary_kind

__all__ = ["SUPPORTED_EXTENSIONS", "EmptyFile", "MediaType", "UnsupportedMediaType", "detect"]

SUPPORTED_EXTENSIONS = tuple(EXTENSIONS)
"""The endings of the names of files that are read."""


class UnsupportedMediaType(Exception):
    """This kind of file cannot be read."""

    def __init__(self, found: str, filename: str, advice: str = "") -> None:
        promised = _extension(filename)
        is_promise = promised in EXTENSIONS or (
            promised in FOREIGN_EXTENSIONS and found in KIND_NAMES.values()
        )
        named = f"is named {promised} but " if is_promise else ""
        super().__init__(" ".join(filter(None, [f"The file {named}holds {found}.", advice, _WHAT_IS_READ])))
        self.found = found
        self.filename = filename


class EmptyFile(Exception):
    """The file has no content."""

    def __init__(self, filename: str) -> None:
        super().__init__("The file is empty.")
        self.filename = filename


def detect(content: Openable, filename: str) -> MediaType:
    """The media type of a file, which its owner calls `filename`.

    Reads the first 64 KiB, and of containers the directory. Raises UnsupportedMediaType, EmptyFile.
    """
    extension = _extension(filename)
    with content.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
        if not head.strip(b"\x00\t\n\r "):
            if len(head) < SAMPLE_BYTES:
                raise EmptyFile(filename)
            raise UnsupportedMediaType("nothing but zero bytes or white space", filename)
        found = binary_kind(file, head, extension)
    promised = EXTENSIONS.get(extension)
    found = found or _text_kind(head, promised, extension)
    if isinstance(found, Foreign):
        raise UnsupportedMediaType(found.name, filename, found.advice)
    if extension in FOREIGN_EXTENSIONS or promised not in {None, found}:
        raise UnsupportedMediaType(KIND_NAMES[found], filename, _renaming(found))
    return found


_WHAT_IS_READ = (
    "Supported: .pdf, .docx, .pptx, .xlsx, .doc, .ppt, .xls, .odt, .odp, .ods, .rtf, .epub, .msg, .eml, .html, .md, "
    ".rst, .org, .adoc, .tex, .csv, .tsv, .json, .ndjson, .ipynb, .xml, .vtt, .srt, .txt, source code, .png, .jpg, "
    ".tif, .bmp, .webp, .gif, .zip, .tar, .tar.gz, .tar.bz2, .tar.xz and other plain text."
)


def _extension(filename: str) -> str:
    """The ending of the name in small letters, with the dot; `.tar` before it belongs to it."""
    suffixes = [suffix.lower() for suffix in PurePath(filename).suffixes[-2:]]
    return "".join(suffixes if suffixes[:1] == [".tar"] else suffixes[-1:])


def _renaming(found: MediaType) -> str:
    endings = (ending for ending, kind in EXTENSIONS.items() if kind is found)
    ending = ".txt" if found is MediaType.CODE else next(endings)
    return f"If that is what it should be, let its name end in {ending}."


def _text_kind(head: bytes, promised: MediaType | None, extension: str) -> MediaType | Foreign:
    """The kind that the name promises, where the text can be that; else what its beginning says."""
    if not is_text(head):
        return Foreign("binary content of an unknown kind", "Export it as PDF or text.")
    text = first_text(head)
    if promised is not None and _can_be(promised, text):
        return promised
    if promised is None and extension and extension not in FOREIGN_EXTENSIONS:
        # .log, .yaml: what their owner takes for text is text.
        return MediaType.TEXT
    return next((kind for kind, beginning in _TELLING_BEGINNINGS if beginning.match(text)), MediaType.TEXT)


def _can_be(kind: MediaType, text: str) -> bool:
    beginning = _BEGINNINGS.get(kind)
    return kind in _ANY_TEXT or (beginning is not None and beginning.match(text) is not None)


_ANY_TEXT = {
    MediaType.TEXT,
    MediaType.MARKDOWN,
    MediaType.RST,
    MediaType.ORG,
    MediaType.ASCIIDOC,
    MediaType.LATEX,
    MediaType.CODE,
}
_BEGINNINGS: Mapping[MediaType, re.Pattern[str]] = MappingProxyType(
    {
        MediaType.HTML: re.compile(r"(?!#!)[^<]*<[a-z!/?]", re.IGNORECASE),
        MediaType.XML: re.compile(r"\s*<"),
        MediaType.CSV: re.compile(r"(?!\s*<[a-z!?]|#!)", re.IGNORECASE),
        MediaType.TSV: re.compile(r"(?!\s*<[a-z!?]|#!)", re.IGNORECASE),
        MediaType.JSON: re.compile(r'\s*(?:[\[{"\d-]|true|false|null)'),
        MediaType.NDJSON: re.compile(r"\s*[\[{]"),
        MediaType.NOTEBOOK: re.compile(r'\s*\{.*"(?:cells|nbformat|metadata)"', re.DOTALL),
        MediaType.VTT: re.compile("WEBVTT"),
        MediaType.SRT: re.compile(r"\s*\d+[ \t]*\r?\n\s*\d+:\d\d:\d\d[,.]\d+\s+-->"),
        MediaType.EML: re.compile(r"\s*(?:From [^\n]*\n)?[!-9;-~]+[ \t]*:"),
    }
)
"""How the text of a kind begins."""
_TELLING_BEGINNINGS = (
    (
        MediaType.HTML,
        re.compile(
            r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b",
            re.IGNORECASE | re.DOTALL,
        ),
    ),
    (MediaType.XML, re.compile(r"\s*<\?xml\b")),
    (MediaType.VTT, re.compile("WEBVTT")),
    (MediaType.CODE, re.compile("#!")),
)
