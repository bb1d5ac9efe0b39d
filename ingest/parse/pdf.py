"""Reads PDF page by page with pypdfium2: text with its boxes, tables, headings; pages without text by OCR."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pypdfium2
from pypdfium2 import raw

from ingest.elements import ElementKind, Parsed, ParsedPart, ParseFailed, ParseFailure, ParseOptions, Progress
from ingest.parse.build import DocumentBuilder, Line
from ingest.parse.ocr import INSTALL, PROGRAMS, Tesseract
from ingest.parse.pdf_broken_words import KnownWords
from ingest.parse.pdf_furniture import Furniture, FurnitureFinder
from ingest.parse.pdf_headings import TypeSizes
from ingest.parse.pdf_layout import Block, lay_out
from ingest.parse.pdf_outline import Bookmark, headings_named, read_outline
from ingest.parse.pdf_rules import read_rules
from ingest.parse.pdf_scans import is_scan, read_scan
from ingest.parse.pdf_segments import PageText, Rules
from ingest.parse.pdf_text import PageTransform, read_segments


def parse_pdf(path: Path, options: ParseOptions, *, programs: str = PROGRAMS) -> Iterator[Parsed]:
    """The document in parts, as its pages are read. Raises ParseFailed.

    A page without a text layer is read by OCR where tesseract is installed, and else left out.
    """
    with closing(_PageReader(path, options, programs)) as reader:
        sizes, known_words = TypeSizes(), KnownWords()
        finder = FurnitureFinder()
        builder = DocumentBuilder(page_count=reader.page_count)
        for page in reader.pages():
            sizes.learn(page.segments)
            known_words.learn(page.segments)
            for told in finder.add(page):
                _add_page(builder, *told, sizes, known_words, reader.outline)
            yield from _parts(builder)
            # At once, though the page waits for those after it: by OCR each takes seconds.
            yield Progress(page.number, reader.page_count)
        for told in finder.finish():
            _add_page(builder, *told, sizes, known_words, reader.outline)
            yield from _parts(builder)
        yield from _rest(builder, reader)


def _parts(builder: DocumentBuilder) -> Iterator[ParsedPart]:
    return (ready for ready in builder.ready() if isinstance(ready, ParsedPart))


def _rest(builder: DocumentBuilder, reader: "_PageReader") -> Iterator[ParsedPart]:
    try:
        yield from builder.finish()
    except ParseFailed as failed:
        if failed.code is not ParseFailure.EMPTY:
            raise
        if reader.pages_left_out:
            raise ParseFailed(
                ParseFailure.UNSUPPORTED,
                f"This PDF is scanned, and there is no OCR here. {INSTALL} and add the file again.",
            ) from failed
        if not reader.pages_read:
            raise ParseFailed(
                ParseFailure.CORRUPT, "This PDF has no page that can be read. Save or export it again."
            ) from failed
        raise ParseFailed(
            ParseFailure.EMPTY,
            "There is no text in this PDF: none to be copied, and none that OCR could read.",
        ) from failed


def _add_page(
    builder: DocumentBuilder,
    page: PageText,
    furniture: Furniture,
    sizes: TypeSizes,
    known_words: KnownWords,
    outline: Mapping[int, Sequence[Bookmark]],
) -> None:
    body = [segment for segment in page.segments if id(segment) not in furniture]
    blocks = lay_out(body, page.rules, page.width)
    first_lines = [[row[0] for row in block.rows] for block in blocks]
    named, inserted = headings_named(outline.get(page.number, ()), first_lines)
    for index, block in enumerate(blocks):
        _add_bookmarks(builder, inserted.get(index, ()), page.number)
        _add_block(builder, block, page.number, sizes, known_words, named.get(index))
    _add_bookmarks(builder, inserted.get(len(blocks), ()), page.number)
    for segment in page.segments:
        if id(segment) in furniture:
            builder.add(furniture[id(segment)], Block(ElementKind.TEXT, [[segment]]).lines(page.number))


def _add_bookmarks(builder: DocumentBuilder, bookmarks: Sequence[Bookmark], page: int) -> None:
    for bookmark in bookmarks:
        builder.add_heading([Line(bookmark.title, page)], level=bookmark.level)


def _add_block(
    builder: DocumentBuilder,
    block: Block,
    page: int,
    sizes: TypeSizes,
    known_words: KnownWords,
    named_level: int | None,
) -> None:
    level = named_level
    if level is None and block.kind is not ElementKind.TABLE:
        by_type = sizes.level([row[0] for row in block.rows])
        # The outline is the author's word: what only the type tells stands below it.
        level = None if by_type is None else by_type + _BELOW_OUTLINE
    lines = block.lines(page)
    if level is None:
        builder.add(block.kind, lines)
    else:
        mended = [replace(line, text=known_words.mended(line.text)) for line in lines]
        builder.add_heading(mended, level=level)


_BELOW_OUTLINE = 100


class _PageReader:
    """An open PDF and its pages, one in memory at a time. Close it."""

    def __init__(self, path: Path, options: ParseOptions, programs: str) -> None:
        self._path = path
        self._options = options
        self._programs = programs
        self._tesseract: Tesseract | None = None
        self._looked_for_tesseract = False
        self._pdf = open_pdf(path, options.password)
        self.page_count = len(self._pdf)
        self.pages_read = 0
        self.pages_left_out = 0
        """Scanned ones, for want of OCR."""
        self.outline: Mapping[int, Sequence[Bookmark]] = read_outline(self._pdf)

    def close(self) -> None:
        self._pdf.close()

    def pages(self) -> Iterator[PageText]:
        """Those that can be read; a broken page is to readers an empty one, and the others are worth having."""
        for index in range(self.page_count):
            if index and index % _REOPEN_AFTER == 0:
                # PDFium keeps what it has read of a file, which of 10,000 pages is a gigabyte.
                self._pdf.close()
                self._pdf = open_pdf(self._path, self._options.password)
            try:
                with closing(self._pdf[index]) as page:
                    read = self._read(page, index + 1)
            except pypdfium2.PdfiumError:
                continue
            self.pages_read += 1
            yield read

    def _read(self, page: pypdfium2.PdfPage, number: int) -> PageText:
        to_page = PageTransform(page)
        segments = read_segments(page, to_page)
        rules = Rules()
        if not is_scan(page, to_page, segments):
            rules = read_rules(page, to_page)
        elif (tesseract := self._ocr()) is not None:
            segments, rules = read_scan(page, tesseract)
        else:
            self.pages_left_out += 1
        return PageText(number, to_page.width, to_page.height, segments, rules)

    def _ocr(self) -> Tesseract | None:
        if not self._looked_for_tesseract:
            self._tesseract = Tesseract.find(self._options.ocr_languages, programs=self._programs)
            self._looked_for_tesseract = True
        return self._tesseract


_REOPEN_AFTER = 256


def open_pdf(path: Path, password: str | None) -> pypdfium2.PdfDocument:
    """Raises ParseFailed."""
    try:
        # Without the password first: many files ask for one only to be changed, and then another one would fail.
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == raw.FPDF_ERR_PASSWORD and password is not None:
            return _unlock(path, password)
        raise _refusal(
            error, "This PDF is protected by a password. Upload it again with the field `password`."
        ) from error


def _unlock(path: Path, password: str) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(path, password=password)
    except pypdfium2.PdfiumError as error:
        raise _refusal(
            error, "This password does not open the PDF. Upload it again with the right one in `password`."
        ) from error


def _refusal(error: pypdfium2.PdfiumError, about_password: str) -> ParseFailed:
    if error.err_code == raw.FPDF_ERR_PASSWORD:
        return ParseFailed(ParseFailure.ENCRYPTED, about_password)
    if error.err_code == raw.FPDF_ERR_SECURITY:
        return ParseFailed(
            ParseFailure.ENCRYPTED,
            "This PDF is protected in a way that cannot be opened here. Save it without protection.",
        )
    return ParseFailed(
        ParseFailure.CORRUPT, "This PDF is damaged and cannot be opened. Save or export it again."
    )
