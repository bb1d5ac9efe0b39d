"""Reads the text layer of a PDF's page with pypdfium2: words with their boxes, joined into segments."""

import ctypes
import math
import re
from collections.abc import Iterator, Sequence

import pypdfium2
from pypdfium2 import raw

from ingest.parse.pdf_segments import Segment, Word, joined
from ingest.visible import clean

Sides = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


def read_segments(page: pypdfium2.PdfPage, to_page: "PageTransform") -> list[Segment]:
    """The page's segments in the order in which the file draws them."""
    text_page = page.get_textpage()
    try:
        segments: list[Segment] = []
        characters = _characters(text_page)
        for line in _LINES.finditer(characters):
            for segment in _line_segments(text_page, to_page, characters, line.start(), line.end()):
                _add(segments, segment)
        segments = _with_whole_words(segments)
        for order, segment in enumerate(segments):
            segment.order = order
        return segments
    finally:
        text_page.close()


_LINES = re.compile(r"[^\r\n]+")
_WORDS = re.compile(r"[^\s\x02]+\x02?|\x02")


class PageTransform:
    """From PDF's own coordinates, which a page may shift and turn, to points from its upper left corner."""

    def __init__(self, page: pypdfium2.PdfPage) -> None:
        self.width: float
        self.height: float
        self.width, self.height = page.get_size()
        self.x, self.y = self._shown(page, 0, 0)
        """Where the PDF's own origin lies on the page."""
        right, above = self._shown(page, _SPAN, 0), self._shown(page, 0, _SPAN)
        self.across = (right[0] - self.x) / _SPAN
        self.up = (above[1] - self.y) / _SPAN
        self._down_by_x = (right[1] - self.y) / _SPAN
        self._across_by_y = (above[0] - self.x) / _SPAN
        self.upright = self.across > 0 > self.up and abs(self._down_by_x) < 0.01

    def sides(self, left: float, bottom: float, right: float, top: float) -> Sides:
        """A rectangle of the PDF as it lies on the page."""
        x0, y0 = self.point(left, bottom)
        x1, y1 = self.point(right, top)
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A point of the PDF on the page."""
        return (
            self.x + self.across * x + self._across_by_y * y,
            self.y + self._down_by_x * x + self.up * y,
        )

    def _shown(self, page: pypdfium2.PdfPage, x: float, y: float) -> tuple[float, float]:
        # PDFium answers in whole device units, so the device is taken as 100 units a point.
        shown_x, shown_y = ctypes.c_int(), ctypes.c_int()
        width, height = round(self.width * 100), round(self.height * 100)
        raw.FPDF_PageToDevice(page, 0, 0, width, height, 0, x, y, shown_x, shown_y)
        return shown_x.value / 100, shown_y.value / 100


_SPAN = 1000.0


def _characters(text_page: pypdfium2.PdfTextPage) -> str:
    """The page's characters, one for each of PDFium's own, so that an index means the same to both."""
    count = max(0, text_page.count_chars())
    buffer = (ctypes.c_ushort * (count + 1))()
    written = raw.FPDFText_GetText(text_page, 0, count, buffer)
    text = bytes(buffer)[: max(0, written - 1) * 2].decode("utf-16-le", "surrogatepass")
    if len(text) == count and not _SURROGATES.search(text):
        return text.translate(_PDFIUM_CODES)
    # It leaves out what has no code and makes two of what needs them; one call a character takes 2 ms a page.
    handle, unicode_at = text_page.raw, raw.FPDFText_GetUnicode
    codes = [unicode_at(handle, index) for index in range(count)]
    # Codes past Unicode come from broken fonts.
    return "".join(chr(code) if code < 0x110000 else "\ufffd" for code in codes).translate(_PDFIUM_CODES)


_SURROGATES = re.compile(r"[\ud800-\udfff]")
_BREAK = "\x02"
"""What PDFium writes for a hyphen at a line's end: the word goes on at once, though on the next line."""
_PDFIUM_CODES = {0xFFFE: _BREAK}


def _line_segments(
    text_page: pypdfium2.PdfTextPage, to_page: PageTransform, characters: str, start: int, end: int
) -> Iterator[Segment]:
    """One line of PDFium's, cut where a reader sees a gap."""
    words = [match.span() for match in _WORDS.finditer(characters, start, end)]
    if not words:
        return
    size, upright = _type_size(text_page, _middle_letter(characters, start, end))
    # PDFium's loose boxes are as high as the type, which lines need, but it makes them for upright text only.
    bounds = _loose_bounds if upright and to_page.upright else _tight_bounds
    sides = list(bounds(text_page, to_page, words))
    begin = 0
    for index in range(1, len(words) + 1):
        if index == len(words) or not _follows(sides[index - 1], sides[index], size):
            run = words[begin:index]
            middle = _middle_letter(characters, run[0][0], run[-1][1])
            type_size = size if len(run) == len(words) else _type_size(text_page, middle)[0]
            segment = _segment(characters, run, sides[begin:index], type_size, _is_bold(text_page, middle))
            if segment.text:
                yield segment
            begin = index


def _follows(before: Sides, word: Sides, size: float) -> bool:
    """Whether a word stands beside the one before: to its right or, in Arabic, to its left."""
    overlap = min(before[3], word[3]) - max(before[1], word[1])
    if overlap < 0.3 * min(before[3] - before[1], word[3] - word[1]):
        return False
    gap = word[0] - before[2] if word[0] + word[2] >= before[0] + before[2] else before[0] - word[2]
    return -size <= gap <= _WIDE_GAP * size


_WIDE_GAP = 1.0
"""In type sizes. Justified lines have gaps of up to 0.8, and columns of a table more than 1."""


def _segment(
    characters: str, run: Sequence[tuple[int, int]], sides: Sequence[Sides], size: float, bold: bool
) -> Segment:
    words = [
        Word(characters[first:end], box[0], box[2]) for (first, end), box in zip(run, sides, strict=True)
    ]
    text = " ".join(clean(" ".join(word.text for word in words).replace(_BREAK, "-")).split())
    if len(sides) == 1:
        return Segment(text, *sides[0], size, bold, words)
    lefts, tops, rights, bottoms = zip(*sides, strict=True)
    return Segment(text, min(lefts), min(tops), max(rights), max(bottoms), size, bold, words)


def _add(segments: list[Segment], segment: Segment) -> None:
    """Appends `segment`, or joins it to the one before where both are parts of a loosely set line."""
    if segments:
        before, gap = segments[-1], segment.x0 - segments[-1].x1
        overlap = min(before.y1, segment.y1) - max(before.y0, segment.y0)
        is_beside = overlap > 0.6 * min(before.height, segment.height)
        if is_beside and -0.1 * segment.size <= gap <= _WIDE_GAP * segment.size:
            segments[-1] = joined(before, segment)
            return
    segments.append(segment)


def _loose_bounds(
    text_page: pypdfium2.PdfTextPage, to_page: PageTransform, words: Sequence[tuple[int, int]]
) -> Iterator[Sides]:
    """Where each word stands on a page that is not turned, from its first and last character."""
    # Two calls a word, and words are many: this loop is kept bare.
    handle, box_at, box = text_page.raw, raw.FPDFText_GetLooseCharBox, raw.FS_RECTF()
    x, y, across, up = to_page.x, to_page.y, to_page.across, to_page.up
    for first, end in words:
        box_at(handle, first, box)
        left, bottom, right, top = box.left, box.bottom, box.right, box.top
        if end > first + 1:
            box_at(handle, end - 1, box)
            left, right = min(left, box.left), max(right, box.right)
            bottom, top = min(bottom, box.bottom), max(top, box.top)
        yield x + across * left, y + up * top, x + across * right, y + up * bottom


def _tight_bounds(
    text_page: pypdfium2.PdfTextPage, to_page: PageTransform, words: Sequence[tuple[int, int]]
) -> Iterator[Sides]:
    """The same around the ink of all characters, on any page: turned words do not end where their last letter does."""
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    for first, end in words:
        boxes = []
        for index in range(first, end):
            raw.FPDFText_GetCharBox(text_page, index, left, right, bottom, top)
            boxes.append((left.value, bottom.value, right.value, top.value))
        lefts, bottoms, rights, tops = zip(*boxes, strict=True)
        yield to_page.sides(min(lefts), min(bottoms), max(rights), max(tops))


def _with_whole_words(segments: list[Segment]) -> list[Segment]:
    """The lines with each word that was broken at a line's end put together at the end of the upper line.

    Many breaks are a typesetter's, and their hyphens go; a few are hyphens that the words have anyway.
    """
    breaks = [index for index in range(len(segments) - 1) if segments[index].words[-1].text.endswith(_BREAK)]
    drops_hyphens = len(breaks) >= max(_FEW_BREAKS, _FEW_BREAKS_SHARE * len(segments))
    for index in reversed(breaks):
        upper, lower = segments[index], segments[index + 1]
        if not lower.text:
            continue
        rest, _, remainder = lower.text.partition(" ")
        is_syllable = drops_hyphens and rest[0].islower() and upper.text[-2:-1].islower()
        upper.text = (upper.text[:-1] if is_syllable else upper.text) + rest
        upper.words[-1] = upper.words[-1]._replace(text=upper.text.rsplit(" ", 1)[-1])
        lower.text, lower.words = remainder, lower.words[1:]
    return [segment for segment in segments if segment.text and segment.words]


_FEW_BREAKS = 3
_FEW_BREAKS_SHARE = 0.03


def _middle_letter(characters: str, start: int, end: int) -> int:
    """A character that stands for its line: not the large initial, footnote mark or bullet at an end."""
    middle = (start + end) // 2
    return next((index for index in range(middle, end) if characters[index].isalnum()), start)


def _type_size(text_page: pypdfium2.PdfTextPage, index: int) -> tuple[float, bool]:
    """In points, rounded to a quarter; and whether the character stands upright in the PDF's coordinates."""
    matrix = raw.FS_MATRIX()
    raw.FPDFText_GetMatrix(text_page, index, matrix)
    # Many producers set type of size 1 and scale it by the matrix.
    scale = math.hypot(matrix.c, matrix.d) or 1.0
    size = round(float(raw.FPDFText_GetFontSize(text_page, index)) * scale * 4) / 4
    return size, abs(matrix.b) <= 0.01 * abs(matrix.a) and matrix.a > 0


def _is_bold(text_page: pypdfium2.PdfTextPage, index: int) -> bool:
    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    raw.FPDFText_GetFontInfo(text_page, index, name, len(name), flags)
    return _BOLD.search(name.value) is not None


_BOLD = re.compile(rb"bold|black|heavy|semibold|demi", re.IGNORECASE)
