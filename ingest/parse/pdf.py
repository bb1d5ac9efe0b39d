"""Reads PDF with pypdfium2: lines with page and box, joined into paragraphs, headings told by type size."""

import ctypes
import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pypdfium2
from pypdfium2 import raw

from ingest.elements import ElementKind, ParsedDocument, ParseFailed, ParseFailure
from ingest.parse.build import DocumentBuilder, Line, clean
from retrieval.places import Box


def parse_pdf(path: Path) -> ParsedDocument:
    """The text layer of a PDF; pages without one give no text. Raises ParseFailed.

    Page headers and footers that repeat are marked as furniture.
    """
    pages = _read_pages(path)
    if not pages:
        raise ParseFailed(
            ParseFailure.CORRUPT, "This PDF has no page that can be read. Save or export it again."
        )
    if not any(pages):
        raise ParseFailed(
            ParseFailure.EMPTY,
            "This PDF has no text, so it is probably scanned. Run it through OCR and upload the result.",
        )
    furniture = _furniture(pages)
    body = [line for page in pages for line in page if id(line) not in furniture]
    levels = _HeadingLevels(body)
    builder = DocumentBuilder()
    for block in _blocks(body):
        lines = [Line(line.text, line.page, line.box) for line in block]
        level = levels.level(block)
        if level is not None:
            builder.add_heading(lines, level=level)
        else:
            builder.add(ElementKind.LIST_ITEM if _BULLET.match(block[0].text) else ElementKind.TEXT, lines)
    for page in pages:
        for line in page:
            if id(line) in furniture:
                builder.add(furniture[id(line)], [Line(line.text, line.page, line.box)])
    return builder.build(page_count=len(pages))


@dataclass(frozen=True, slots=True)
class _PdfLine:
    text: str
    page: int
    box: Box
    page_height: float
    """Points, like the box."""
    size: float
    """The type size in points, rounded to a quarter."""
    bold: bool


def _read_pages(path: Path) -> list[list[_PdfLine]]:
    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code in {raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY}:
            raise ParseFailed(
                ParseFailure.ENCRYPTED,
                "This PDF is protected by a password. Save it without one and upload it again.",
            ) from error
        raise ParseFailed(
            ParseFailure.CORRUPT, "This PDF is damaged and cannot be opened. Save or export it again."
        ) from error
    with pdf:
        return [_read_page(pdf, number) for number in range(1, len(pdf) + 1)]


def _read_page(pdf: pypdfium2.PdfDocument, number: int) -> list[_PdfLine]:
    try:
        page = pdf[number - 1]
    except pypdfium2.PdfiumError:
        # Readers show a broken page as an empty one, and the others are worth having.
        return []
    text_page = page.get_textpage()
    try:
        height = page.get_height()
        to_page = _PageTransform(page)
        characters = _characters(text_page)
        lines: list[_PdfLine] = []
        for match in _LINES.finditer(characters):
            text = " ".join(clean(match.group()).split())
            if text:
                box = to_page.box(_bounds(text_page, match.start(), match.end()))
                middle = _middle_letter(characters, match.start(), match.end())
                size, bold = _type_size(text_page, middle), _is_bold(text_page, middle)
                _add_line(lines, _PdfLine(text, number, box, height, size, bold))
        return lines
    finally:
        text_page.close()
        page.close()


_LINES = re.compile(r"[^\r\n]+")


def _add_line(lines: list[_PdfLine], line: _PdfLine) -> None:
    """Appends `line`, or joins it to the one before where both are parts of a loosely set line."""
    if lines:
        before, gap = lines[-1], line.box.x0 - lines[-1].box.x1
        overlap = min(before.box.y1, line.box.y1) - max(before.box.y0, line.box.y0)
        if 0 <= gap <= line.size and overlap > 0.6 * min(_height(before.box), _height(line.box)):
            box = Box(
                before.box.x0, min(before.box.y0, line.box.y0), line.box.x1, max(before.box.y1, line.box.y1)
            )
            lines[-1] = dataclasses.replace(before, text=f"{before.text} {line.text}", box=box)
            return
    lines.append(line)


def _height(box: Box) -> float:
    return box.y1 - box.y0


def _characters(text_page: pypdfium2.PdfTextPage) -> str:
    """The page's characters, one for each of PDFium's own, so that an index means the same to both."""
    handle, unicode_at = text_page.raw, raw.FPDFText_GetUnicode
    codes = [unicode_at(handle, index) for index in range(text_page.count_chars())]
    # PDFium writes 2 for a hyphen at a line's end. Codes past Unicode come from broken fonts.
    return "".join(map(chr, [45 if code == 2 else code if code < 0x110000 else 0xFFFD for code in codes]))


class _PageTransform:
    """From PDF's own coordinates, which a page may shift and turn, to points from its upper left corner."""

    def __init__(self, page: pypdfium2.PdfPage) -> None:
        width, height = page.get_size()
        self._origin = self._shown(page, width, height, 0, 0)
        x_axis = self._shown(page, width, height, _SPAN, 0)
        y_axis = self._shown(page, width, height, 0, _SPAN)
        (x, y), span = self._origin, _SPAN
        self._x = ((x_axis[0] - x) / span, (x_axis[1] - y) / span)
        self._y = ((y_axis[0] - x) / span, (y_axis[1] - y) / span)

    def box(self, bounds: tuple[float, float, float, float]) -> Box:
        left, bottom, right, top = bounds
        (x0, y0), (x1, y1) = self._point(left, bottom), self._point(right, top)
        return Box(round(min(x0, x1), 1), round(min(y0, y1), 1), round(max(x0, x1), 1), round(max(y0, y1), 1))

    def _point(self, x: float, y: float) -> tuple[float, float]:
        return (
            self._origin[0] + self._x[0] * x + self._y[0] * y,
            self._origin[1] + self._x[1] * x + self._y[1] * y,
        )

    @staticmethod
    def _shown(
        page: pypdfium2.PdfPage, width: float, height: float, x: float, y: float
    ) -> tuple[float, float]:
        # PDFium answers in whole device units, so the device is taken as 100 units a point.
        shown_x, shown_y = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(page, 0, 0, round(width * 100), round(height * 100), 0, x, y, shown_x, shown_y)
        return shown_x.value / 100, shown_y.value / 100


_SPAN = 1000.0


def _bounds(text_page: pypdfium2.PdfTextPage, start: int, end: int) -> tuple[float, float, float, float]:
    """Left, bottom, right, top around the characters [start, end), in PDF's coordinates."""
    count = text_page.count_rects(start, end - start)
    # Producers that place every letter alone make a rectangle of each; some of them show the line as well as
    # all.
    chosen = {*range(0, count, max(1, count // _MAX_RECTANGLES)), count - 1} if count else set()
    rectangles = [text_page.get_rect(index) for index in chosen] or [text_page.get_charbox(start)]
    lefts, bottoms, rights, tops = zip(*rectangles, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


_MAX_RECTANGLES = 8


def _middle_letter(characters: str, start: int, end: int) -> int:
    """A character that stands for its line: not the large initial, footnote mark or bullet at an end."""
    middle = (start + end) // 2
    return next((index for index in range(middle, end) if characters[index].isalnum()), start)


def _type_size(text_page: pypdfium2.PdfTextPage, index: int) -> float:
    matrix = raw.FS_MATRIX()
    raw.FPDFText_GetMatrix(text_page, index, matrix)
    # Many producers set type of size 1 and scale it by the matrix.
    scale = math.hypot(matrix.c, matrix.d) or 1.0
    return round(float(raw.FPDFText_GetFontSize(text_page, index)) * scale * 4) / 4


def _is_bold(text_page: pypdfium2.PdfTextPage, index: int) -> bool:
    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    raw.FPDFText_GetFontInfo(text_page, index, name, len(name), flags)
    return _BOLD.search(name.value) is not None


_BOLD = re.compile(rb"bold|black|heavy|semibold|demi", re.IGNORECASE)


def _furniture(pages: Sequence[Sequence[_PdfLine]]) -> dict[int, ElementKind]:
    """By `id` of the line, the lines that repeat at the top or the bottom of many pages.

    They stand in the margin at one height, or end their page in one column, as page numbers do that follow
    the text directly. Digits are not compared, so page numbers count as equal.
    """
    seen: defaultdict[tuple[ElementKind, str, str, int], list[_PdfLine]] = defaultdict(list)
    for page in pages:
        lowest = max(page, key=lambda line: line.box.y1, default=None)
        for line in page:
            words = re.sub(r"\d+", "#", line.text)
            kind = _margin(line)
            if kind is not None:
                seen[kind, words, "at height", round(line.box.y0 / 10)].append(line)
            if line is lowest:
                seen[ElementKind.FOOTER, words, "last in column", round(line.box.x0 / 20)].append(line)
    needed = max(_MIN_REPEATS, len(pages) * _MIN_REPEAT_SHARE)
    return {
        id(line): kind
        for (kind, *_), lines in seen.items()
        if len({line.page for line in lines}) >= needed
        for line in lines
    }


_MARGIN_SHARE = 0.12
_MIN_REPEATS = 3
_MIN_REPEAT_SHARE = 0.2
"""Chapters have headers of their own, and odd and even pages differ."""


def _margin(line: _PdfLine) -> ElementKind | None:
    if line.box.y1 <= line.page_height * _MARGIN_SHARE:
        return ElementKind.HEADER
    if line.box.y0 >= line.page_height * (1 - _MARGIN_SHARE):
        return ElementKind.FOOTER
    return None


def _blocks(lines: Sequence[_PdfLine]) -> Iterator[list[_PdfLine]]:
    """Runs of lines that a reader sees as one paragraph."""
    block: list[_PdfLine] = []
    for line in lines:
        if block and not _continues(block[-1], line):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _continues(above: _PdfLine, line: _PdfLine) -> bool:
    gap = line.box.y0 - above.box.y1
    return (
        line.page == above.page
        and abs(line.size - above.size) <= 0.1 * above.size
        and line.bold == above.bold
        and -0.5 * above.size <= gap <= 0.7 * above.size
        and line.box.x0 < above.box.x1
        and above.box.x0 < line.box.x1
        and not _BULLET.match(line.text)
    )


_BULLET = re.compile(r"[•‣◦▪■●○–—*·-]\s|\(?(?:\d{1,2}|[a-z]|[ivx]{1,4})[.)]\s", re.IGNORECASE)


class _HeadingLevels:
    """Which type sizes are headings, and of which level: larger than the body's, the largest outermost."""

    def __init__(self, lines: Sequence[_PdfLine]) -> None:
        letters: Counter[tuple[float, bool]] = Counter()
        for line in lines:
            letters[line.size, line.bold] += len(line.text)
        (self._body_size, self._body_bold), _ = letters.most_common(1)[0] if letters else ((0.0, False), 0)
        larger = {
            line.size for line in lines if line.size >= self._body_size * _LARGER and _can_head(line.text)
        }
        self._sizes = sorted(larger, reverse=True)[:_MAX_SIZES]

    def level(self, block: Sequence[_PdfLine]) -> int | None:
        """The heading level of a block, from 0; None for a block that is no heading."""
        text = " ".join(line.text for line in block)
        first = block[0]
        if len(block) > 3 or len(text) > _MAX_HEADING_CHARS or not _can_head(text):
            return None
        if first.size in self._sizes:
            return self._sizes.index(first.size)
        is_bold_line = first.bold and not self._body_bold and first.size >= self._body_size * 0.98
        if is_bold_line and len(block) == 1 and not text.endswith((".", ",", ";", ":")):
            return len(self._sizes)
        return None


_LARGER = 1.12
_MAX_SIZES = 5
_MAX_HEADING_CHARS = 160


def _can_head(text: str) -> bool:
    """True where letters prevail: rows of figures, in bold or large, are no headings."""
    letters = sum(character.isalpha() for character in text)
    return letters >= 2 and letters >= 0.6 * sum(not character.isspace() for character in text)
