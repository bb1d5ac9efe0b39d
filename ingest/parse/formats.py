"""Chooses the parser for a media type; imported by the sandbox's child alone, as it takes seconds."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from ingest.elements import ParsedDocument
from ingest.media_types import MediaType
from ingest.parse.documents import (
    parse_docx,
    parse_eml,
    parse_epub,
    parse_html,
    parse_markdown,
    parse_msg,
    parse_odt,
    parse_pptx,
)
from ingest.parse.pdf import parse_pdf
from ingest.parse.plain import parse_plain
from ingest.parse.sheets import parse_delimited, parse_workbook


def parse(path: Path, media_type: MediaType) -> ParsedDocument:
    """Raises ParseFailed, and whatever a parser's library raises for a file it cannot read."""
    return _PARSERS[media_type](path)


_PARSERS: Mapping[MediaType, Callable[[Path], ParsedDocument]] = MappingProxyType(
    {
        MediaType.PDF: parse_pdf,
        MediaType.DOCX: parse_docx,
        MediaType.PPTX: parse_pptx,
        MediaType.XLSX: parse_workbook,
        MediaType.ODT: parse_odt,
        MediaType.EPUB: parse_epub,
        MediaType.MSG: parse_msg,
        MediaType.EML: parse_eml,
        MediaType.HTML: parse_html,
        MediaType.MARKDOWN: parse_markdown,
        MediaType.CSV: parse_delimited,
        MediaType.TSV: partial(parse_delimited, delimiter="\t"),
        MediaType.JSON: parse_plain,
        MediaType.XML: parse_plain,
        MediaType.TEXT: parse_plain,
    }
)
