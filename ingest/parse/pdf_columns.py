"""Finds the columns of a page, so that they are read one after the other and not across.

A gutter is looked for where several lines begin at one height of x. Lines that cross it (titles, wide figures'
captions) part the page into bands; in a band with running text on both sides, the left side is read before the
right. Tables have gaps too, so short cells are no columns of text.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from ingest.parse.pdf_segments import Segment, rows_of


def reading_flows(segments: Sequence[Segment], page_width: float) -> list[list[Segment]]:
    """The page's segments as stretches to be read one after the other, each of one column."""
    return _flows(segments, page_width, depth=0)


def _flows(segments: Sequence[Segment], page_width: float, *, depth: int) -> list[list[Segment]]:
    gutter = _best_gutter(segments, page_width) if depth < _MAX_DEPTH else None
    if gutter is None:
        return [list(segments)]
    flows: list[list[Segment]] = []
    across: list[Segment] = []
    for is_columnar, band in _bands(segments, gutter, page_width):
        if not is_columnar:
            across += band
            continue
        if across:
            flows += _flows(across, page_width, depth=depth + 1)
            across = []
        for side in _sides(band, gutter):
            flows += _flows(side, page_width, depth=depth + 1)
    if across:
        flows += _flows(across, page_width, depth=depth + 1)
    return flows


_MAX_DEPTH = 6


def _best_gutter(segments: Sequence[Segment], page_width: float) -> float | None:
    """The x that has most lines of running text beside it; None for a page of one column."""
    starts: Counter[int] = Counter()
    for segment in segments:
        if _is_prose(segment, page_width):
            starts[round(segment.x0 / _START_STEP)] += 1
    best, most = None, 0
    for start, count in starts.most_common(_MAX_CANDIDATES):
        # A column's first lines may be indented, and its letters begin some tenths of a point apart.
        if count + starts[start - 1] + starts[start + 1] < _MIN_LINES:
            continue
        gutter = start * _START_STEP - _START_STEP
        beside = sum(len(band) for is_columnar, band in _bands(segments, gutter, page_width) if is_columnar)
        if beside > most:
            best, most = gutter, beside
    return best


_START_STEP = 4.0
_MAX_CANDIDATES = 12
_MIN_LINES = 3


def _bands(segments: Sequence[Segment], gutter: float, page_width: float) -> list[tuple[bool, list[Segment]]]:
    """The page from top to bottom, in runs of rows that do or do not cross the gutter."""
    bands: list[tuple[bool, list[Segment]]] = []
    rows = rows_of(segments)
    for crosses, run in groupby(rows, key=lambda row: any(_crosses(segment, gutter) for segment in row)):
        if crosses:
            bands.append((False, [segment for row in run for segment in row]))
            continue
        above, columns, below = _without_tables(list(run))
        for part in (above, columns, below):
            band = [segment for row in part for segment in row]
            if band:
                bands.append((part is columns and _is_columnar(band, gutter, page_width), band))
    return bands


def _crosses(segment: Segment, gutter: float) -> bool:
    return segment.x0 < gutter - _START_STEP and segment.x1 > gutter + _START_STEP / 2


def _without_tables(
    rows: list[list[Segment]],
) -> tuple[list[list[Segment]], list[list[Segment]], list[list[Segment]]]:
    """Rows of many cells at the top and the bottom of a band are a table across the page, as papers have them."""
    first, last = 0, len(rows)
    while first < last and len(rows[first]) >= _CELLS_OF_A_TABLE:
        first += 1
    while last > first and len(rows[last - 1]) >= _CELLS_OF_A_TABLE:
        last -= 1
    if first < _MIN_LINES:
        first = 0
    if len(rows) - last < _MIN_LINES:
        last = len(rows)
    return rows[:first], rows[first:last], rows[last:]


_CELLS_OF_A_TABLE = 4


def _is_columnar(band: Sequence[Segment], gutter: float, page_width: float) -> bool:
    """Whether running text stands on both sides, one beside the other."""
    left, right = _sides(band, gutter)
    if len(left) < _MIN_LINES or len(right) < _MIN_LINES:
        return False
    for side in (left, right):
        prose = [segment for segment in side if _is_prose(segment, page_width)]
        if len(prose) < _MIN_LINES or len(prose) < _PROSE_SHARE * len(side):
            return False
    top = max(min(segment.y0 for segment in side) for side in (left, right))
    bottom = min(max(segment.y1 for segment in side) for side in (left, right))
    return bottom - top >= _MIN_LINES * 0.8 * min(segment.size for segment in band if segment.size)


_PROSE_SHARE = 0.4
"""Figures, formulas and tables within a column are short cells too."""


def _is_prose(segment: Segment, page_width: float) -> bool:
    return segment.width >= _PROSE_WIDTH * page_width and len(segment.words) >= _PROSE_WORDS


_PROSE_WIDTH = 0.16
_PROSE_WORDS = 4
"""A line of the narrowest newspaper column; longer than most cells."""


def _sides(band: Sequence[Segment], gutter: float) -> tuple[list[Segment], list[Segment]]:
    left = [segment for segment in band if (segment.x0 + segment.x1) / 2 < gutter]
    right = [segment for segment in band if (segment.x0 + segment.x1) / 2 >= gutter]
    return left, right
