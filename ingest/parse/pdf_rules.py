"""Reads the straight lines that a PDF's page draws, which may be those of a table."""

import ctypes
from collections.abc import Iterator

import pypdfium2
from pypdfium2 import raw

from ingest.parse.pdf_segments import Rules
from ingest.parse.pdf_text import PageTransform, Sides


def read_rules(page: pypdfium2.PdfPage, to_page: PageTransform) -> Rules:
    """The straight lines of the page, and the edges of its rectangles; none where it holds too much to look at."""
    across: list[tuple[float, float, float]] = []
    down: list[tuple[float, float, float]] = []
    count = raw.FPDFPage_CountObjects(page)
    if count > _MAX_OBJECTS:
        # Producers that place every word or letter alone: their tables are told by their columns.
        return Rules()
    for index in range(count):
        drawn = raw.FPDFPage_GetObject(page, index)
        if raw.FPDFPageObj_GetType(drawn) == raw.FPDF_PAGEOBJ_PATH:
            for x0, y0, x1, y1 in _strokes(drawn, to_page):
                if y1 - y0 <= _THIN < _SHORT <= x1 - x0:
                    across.append((x0, x1, (y0 + y1) / 2))
                elif x1 - x0 <= _THIN < _SHORT / 2 <= y1 - y0:
                    down.append((y0, y1, (x0 + x1) / 2))
                elif x1 - x0 >= _SHORT and y1 - y0 >= _SHORT / 2:
                    across += [(x0, x1, y0), (x0, x1, y1)]
                    down += [(y0, y1, x0), (y0, y1, x1)]
        if len(across) + len(down) > _MAX_RULES:
            return Rules()
    return Rules(across, down)


_MAX_OBJECTS = 1500
_MAX_RULES = 600
_THIN = 2.5
_SHORT = 8.0


def _strokes(path: raw.FPDF_PAGEOBJECT, to_page: PageTransform) -> Iterator[Sides]:
    """The bounds of a path, or of each line in it where it holds a few: a grid may be drawn in one go."""
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    if not raw.FPDFPageObj_GetBounds(path, left, bottom, right, top):
        return
    x0, y0, x1, y1 = to_page.sides(left.value, bottom.value, right.value, top.value)
    segments = raw.FPDFPath_CountSegments(path)
    if x1 - x0 <= _THIN or y1 - y0 <= _THIN or not 5 < segments <= _MAX_SEGMENTS:
        if segments <= 5:
            yield x0, y0, x1, y1
        return
    matrix = raw.FS_MATRIX()
    raw.FPDFPageObj_GetMatrix(path, matrix)
    x, y = ctypes.c_float(), ctypes.c_float()
    before: tuple[float, float] | None = None
    for index in range(segments):
        segment = raw.FPDFPath_GetPathSegment(path, index)
        raw.FPDFPathSegment_GetPoint(segment, x, y)
        point = to_page.point(
            matrix.a * x.value + matrix.c * y.value + matrix.e,
            matrix.b * x.value + matrix.d * y.value + matrix.f,
        )
        kind = raw.FPDFPathSegment_GetType(segment)
        if kind == raw.FPDF_SEGMENT_LINETO and before is not None:
            stroke = (
                min(before[0], point[0]),
                min(before[1], point[1]),
                max(before[0], point[0]),
                max(before[1], point[1]),
            )
            if stroke[2] - stroke[0] <= _THIN or stroke[3] - stroke[1] <= _THIN:
                yield stroke
        before = point


_MAX_SEGMENTS = 400
