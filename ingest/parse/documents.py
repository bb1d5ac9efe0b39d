"""Reads office files and web pages with unstructured; the only module that imports it.

unstructured tags every sentence with a spaCy model, which it downloads when missing, to guess from the
grammar which line is a title. That guess is not wanted here: headings come from the document's own styles and
tags. So `prepare` gives it an empty model that only parts sentences, and the sandbox sets
UNSTRUCTURED_TITLE_MAX_WORD_LENGTH=0 to stop the guessing. Usage
notices and telemetry are off by the environment too.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docx
import lxml.html
import spacy
from lxml.etree import ParserError
from unstructured.common.html_table import HtmlTable
from unstructured.nlp import tokenize
from unstructured.partition.docx import partition_docx
from unstructured.partition.html import partition_html
from unstructured.partition.md import partition_md
from unstructured.partition.pptx import partition_pptx

from ingest.elements import ElementKind, Parsed, ParseOptions
from ingest.parse.build import DocumentBuilder, Line, text_lines
from ingest.parse.converted import office_converted, pandoc_html
from ingest.parse.decoding import read_text
from ingest.parse.packages import opened_ole, opened_package
from ingest.visible import clean


def prepare(folder: Path) -> None:
    """Gives unstructured a sentence splitter kept in `folder`; call it once before the first parse."""
    sentences = spacy.blank("en")
    sentences.add_pipe("sentencizer")
    sentences.to_disk(folder / "sentences")
    tokenize._SPACY_MODEL_NAME = str(folder / "sentences")  # noqa: SLF001 - it has no setting for this


def parse_docx(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """A Word document; pages are those that Word noted at its last save. Raises ParseFailed."""
    with opened_package(path, options.password) as package:
        yield from _parsed_docx(package)


def parse_doc(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """A Word 97-2003 document. Raises ParseFailed."""
    with opened_ole(path, options.password) as opened, office_converted(opened, "doc", "docx") as converted:
        yield from _parsed_docx(converted)


def parse_pptx(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """Slides as pages, with their notes. Raises ParseFailed."""
    with opened_package(path, options.password) as package:
        yield from _parsed_pptx(package)


def parse_ppt(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """A PowerPoint 97-2003 presentation. Raises ParseFailed."""
    with opened_ole(path, options.password) as opened, office_converted(opened, "ppt", "pptx") as converted:
        yield from _parsed_pptx(converted)


def parse_odp(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """An OpenDocument presentation. Raises ParseFailed."""
    with (
        opened_package(path, options.password) as package,
        office_converted(package, "odp", "pptx") as converted,
    ):
        yield from _parsed_pptx(converted)


def parse_odt(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """An OpenDocument text. Raises ParseFailed."""
    with opened_package(path, options.password) as package:
        html = pandoc_html(package, "odt", is_text=False)
    yield from _parsed_html(html)


def parse_rtf(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """An RTF document. Raises ParseFailed."""
    yield from _parsed_html(pandoc_html(path, "rtf", is_text=False))


def parse_markup(path: Path, _: ParseOptions, *, format_name: str) -> Iterator[Parsed]:
    """A text in a light markup language, by pandoc's name of it, as it is rendered. Raises ParseFailed."""
    yield from _parsed_html(pandoc_html(path, format_name, is_text=True))


def parse_html(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """A web page as a browser shows its text. Raises ParseFailed (empty)."""
    yield from _parsed_html(read_text(path))


def parse_markdown(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """Markdown as it is rendered; front matter stays as it is written. Raises ParseFailed (empty)."""
    builder = DocumentBuilder()
    add_markdown(builder, read_text(path))
    yield from builder.finish()


def add_html(builder: DocumentBuilder, html: str, *, outer_level: int = 0) -> None:
    """Adds the blocks of a page; its outermost headings are of `outer_level`."""
    visible = _visible(html)
    if visible.strip():
        _add_blocks(builder, partition_html(text=visible, **_NO_DETECTION), outer_level=outer_level)


def add_markdown(builder: DocumentBuilder, markdown: str) -> None:
    """Adds the blocks of a text in markdown."""
    text = clean(markdown)
    if text.startswith("---\n"):
        front, separator, rest = text[4:].partition("\n---\n")
        if separator:
            builder.add(ElementKind.TEXT, text_lines(front))
            text = rest
    # Without text partition_md asks for a file instead.
    if text.strip():
        _add_blocks(builder, partition_md(text=text, **_NO_DETECTION))


_NO_DETECTION: dict[str, Any] = {"languages": [""]}
"""Language detection is slow and its answer is not used."""


def _parsed_docx(path: Path) -> Iterator[Parsed]:
    with tempfile.TemporaryDirectory() as folder:
        named = _with_heading_names(path, Path(folder) / "named.docx")
        yield from _parsed_blocks(partition_docx(str(named), include_page_breaks=False, **_NO_DETECTION))


def _with_heading_names(path: Path, target: Path) -> Path:
    """The document with styles of an outline level called as in English, as unstructured knows headings."""
    document = docx.Document(str(path))
    renamed = False
    for style in document.styles:
        levels = style.element.xpath("./w:pPr/w:outlineLvl/@w:val")
        if levels and levels[0] in _OUTLINE_LEVELS and not str(style.name).startswith(("Heading", "Title")):
            style.name = f"Heading {int(levels[0]) + 1}"
            renamed = True
    if not renamed:
        return path
    document.save(str(target))
    return target


_OUTLINE_LEVELS = {str(level) for level in range(9)}


def _parsed_pptx(path: Path) -> Iterator[Parsed]:
    found = partition_pptx(str(path), include_page_breaks=False, include_slide_notes=True, **_NO_DETECTION)
    yield from _parsed_blocks(found, slides=True)


def _parsed_html(html: str) -> Iterator[Parsed]:
    builder = DocumentBuilder()
    add_html(builder, html)
    yield from builder.finish()


def _parsed_blocks(found: Sequence[Any], *, slides: bool = False) -> Iterator[Parsed]:
    builder = DocumentBuilder()
    _add_blocks(builder, found, slides=slides)
    last_page = max((block.metadata.page_number or 0 for block in found), default=0)
    yield from builder.finish(page_count=last_page or None)


def _visible(html: str) -> str:
    """The page without what a browser does not show: a way to hide instructions from the person who reads it."""
    if not _MAY_HIDE.search(html):
        return html
    try:
        # As bytes, since a declared encoding is no longer true of decoded text.
        page = lxml.html.document_fromstring(html.encode(), parser=lxml.html.HTMLParser(encoding="utf-8"))
    except ParserError:
        # There is not one tag or letter in it.
        return ""
    for element in page.xpath("//*[@hidden or @style]"):
        if element.get("hidden") is not None or _HIDING_STYLE.search(element.get("style", "")):
            element.drop_tree()
    return str(lxml.html.tostring(page, encoding="unicode"))


_HIDING_STYLE = re.compile(r"(display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_MAY_HIDE = re.compile(r"<[^>]*\shidden\b|" + _HIDING_STYLE.pattern, re.IGNORECASE)
_KINDS = {
    "ListItem": ElementKind.LIST_ITEM,
    "CodeSnippet": ElementKind.CODE,
    "Header": ElementKind.HEADER,
    "Footer": ElementKind.FOOTER,
}
_UNSEEN = {"PageBreak", "Image"}
"""An image's element holds its alternative text, which is not shown."""


def _add_blocks(
    builder: DocumentBuilder, blocks: Iterable[Any], *, outer_level: int = 0, slides: bool = False
) -> None:
    """Adds unstructured's elements; on slides a heading reaches no further than its own slide."""
    slide: int | None = None
    for block in blocks:
        page = block.metadata.page_number
        if slides and page != slide:
            builder.close_headings()
            slide = page
        if block.category == "Title":
            level = outer_level + (block.metadata.category_depth or 0)
            builder.add_heading(text_lines(block.text, page), level=level)
        elif block.category == "Table":
            _add_table(builder, block, page)
        elif block.category not in _UNSEEN:
            builder.add(_KINDS.get(block.category, ElementKind.TEXT), text_lines(block.text, page))


def _add_table(builder: DocumentBuilder, block: Any, page: int | None) -> None:
    rows = _rows(block.metadata.text_as_html) or [[" ".join(clean(block.text).split())]]
    if max(len(cell) for row in rows for cell in row) > _MAX_CELL_CHARS:
        # Web pages and mails use tables to place whole texts side by side.
        for row in rows:
            for cell in row:
                builder.add(ElementKind.TEXT, [Line(cell, page)])
        return
    builder.add(ElementKind.TABLE, [Line(" | ".join(row), page) for row in rows])


_MAX_CELL_CHARS = 500


def _rows(html: str | None) -> list[list[str]]:
    """The filled cells of each row that has any."""
    if not html:
        return []
    rows = HtmlTable.from_html_text(html).iter_rows()
    filled = ([" ".join(clean(cell).split()) for cell in row.iter_cell_texts()] for row in rows)
    return [row for row in filled if row]
