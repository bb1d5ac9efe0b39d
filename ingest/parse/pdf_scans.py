"""Reads the pages of a PDF that are pictures of text: tells them, draws them, and has their words read by OCR."""

import ctypes
import math
import re
from collections.abc import Sequence

import pypdfium2
from pypdfium2 import raw

from ingest.parse.ocr import Tesseract
from ingest.parse.ocr_page import in_points, read_page
from ingest.parse.pdf_segments import Rules, Segment
from ingest.parse.pdf_text import PageTransform


def is_scan(page: pypdfium2.PdfPage, to_page: PageTransform, segments: Sequence[Segment]) -> bool:
    """Whether a page shows text that its text layer does not have."""
    characters = "".join(segment.text for segment in segments)
    if len(characters) > _FEW_CHARACTERS:
        return len(_GARBAGE.findall(characters)) > _GARBAGE_SHARE * len(characters)
    objects: int = min(raw.FPDFPage_CountObjects(page), _MAX_OBJECTS)
    if not characters:
        return objects > 0
    return any(
        raw.FPDFPageObj_GetType(drawn) == raw.FPDF_PAGEOBJ_IMAGE and _covers(drawn, to_page)
        for drawn in (raw.FPDFPage_GetObject(page, index) for index in range(objects))
    )


_FEW_CHARACTERS = 60
"""A scanner's stamp or a page number, and no page's text."""
_GARBAGE_SHARE = 0.5
_MAX_OBJECTS = 2000


_GARBAGE = re.compile("[\ufffd\ue000-\uf8ff]")
"""What a font without a table of its characters gives: replacement characters and private codes."""


def _covers(image: raw.FPDF_PAGEOBJECT, to_page: PageTransform) -> bool:
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    if not raw.FPDFPageObj_GetBounds(image, left, bottom, right, top):
        return False
    x0, y0, x1, y1 = to_page.sides(left.value, bottom.value, right.value, top.value)
    width: float = min(x1, to_page.width) - max(x0, 0.0)
    height: float = min(y1, to_page.height) - max(y0, 0.0)
    return width > 0 and height > 0 and width * height >= _COVER_SHARE * to_page.width * to_page.height


_COVER_SHARE = 0.4


def read_scan(page: pypdfium2.PdfPage, tesseract: Tesseract) -> tuple[list[Segment], Rules]:
    """The words and rules that the page shows, in points from its upper left corner. Raises ParseFailed."""
    width, height = page.get_size()
    scale = min(_DOTS_PER_INCH / 72, math.sqrt(_MAX_PIXELS / max(1.0, width * height)))
    bitmap = page.render(scale=scale, grayscale=True)
    try:
        # A copy: what to_pil() gives is the bitmap's own memory.
        image = bitmap.to_pil().convert("L")
    finally:
        bitmap.close()
    # To tesseract and to the layout it is a page of usual size; its own is put back.
    lines, rules = read_page(tesseract, image, dots_per_inch=_DOTS_PER_INCH)
    factor = _DOTS_PER_INCH / 72 / scale
    if factor == 1.0:
        return lines, rules
    return [in_points(line, 1 / factor) for line in lines], Rules(
        [(x0 * factor, x1 * factor, y * factor) for x0, x1, y in rules.across],
        [(y0 * factor, y1 * factor, x * factor) for y0, y1, x in rules.down],
    )


_DOTS_PER_INCH = 300
_MAX_PIXELS = 12_000_000
"""More than A4 at 300 dots an inch, and 12 MB; larger pages are drawn with less detail."""
