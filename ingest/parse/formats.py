"""Chooses the parser for a media type; imported by the sandbox's child alone, as it takes seconds."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from ingest.elements import Parsed, ParseOptions
from ingest.kinds import MediaType
from ingest.parse.documents import (
    parse_doc,
    parse_docx,
    parse_html,
    parse_markdown,
    parse_markup,
    parse_odp,
    parse_odt,
    parse_ppt,
    parse_pptx,
    parse_rtf,
)
from ingest.parse.ebooks import parse_epub
from ingest.parse.folders import parse_tar, parse_zip
from ingest.parse.images import parse_image
from ingest.parse.mail import parse_eml, parse_msg
from ingest.parse.notebooks import parse_notebook
from ingest.parse.pdf import parse_pdf
from ingest.parse.plain import parse_code, parse_latex, parse_plain
from ingest.parse.records import parse_json, parse_ndjson
from ingest.parse.sheets import parse_delimited, parse_ods, parse_xls, parse_xlsx
from ingest.parse.subtitles import parse_subtitles
from ingest.parse.xml_text import parse_xml


def parse(path: Path, media_type: MediaType, options: ParseOptions) -> Iterator[Parsed]:
    """Raises ParseFailed, and whatever a parser's library raises for a file it cannot read."""
    return _PARSERS[media_type](path, options)


_PARSERS: Mapping[MediaType, Callable[[Path, ParseOptions], Iterator[Parsed]]] = MappingProxyType(
    {
        MediaType.PDF: parse_pdf,
        MediaType.DOCX: parse_docx,
        MediaType.PPTX: parse_pptx,
        MediaType.XLSX: parse_xlsx,
        MediaType.DOC: parse_doc,
        MediaType.PPT: parse_ppt,
        MediaType.XLS: parse_xls,
        MediaType.ODT: parse_odt,
        MediaType.ODP: parse_odp,
        MediaType.ODS: parse_ods,
        MediaType.RTF: parse_rtf,
        MediaType.EPUB: parse_epub,
        MediaType.MSG: parse_msg,
        MediaType.EML: parse_eml,
        MediaType.HTML: parse_html,
        MediaType.MARKDOWN: parse_markdown,
        MediaType.RST: partial(parse_markup, format_name="rst"),
        MediaType.ORG: partial(parse_markup, format_name="org"),
        MediaType.ASCIIDOC: partial(parse_markup, format_name="asciidoc"),
        MediaType.LATEX: parse_latex,
        MediaType.CSV: parse_delimited,
        MediaType.TSV: partial(parse_delimited, delimiter="\t"),
        MediaType.JSON: parse_json,
        MediaType.NDJSON: parse_ndjson,
        MediaType.NOTEBOOK: parse_notebook,
        MediaType.XML: parse_xml,
        MediaType.VTT: parse_subtitles,
        MediaType.SRT: parse_subtitles,
        MediaType.CODE: parse_code,
        MediaType.TEXT: parse_plain,
        **dict.fromkeys(
            (
                MediaType.PNG,
                MediaType.JPEG,
                MediaType.TIFF,
                MediaType.BMP,
                MediaType.WEBP,
                MediaType.GIF,
            ),
            parse_image,
        ),
        MediaType.ZIP: parse_zip,
        MediaType.TAR: parse_tar,
    }
)
