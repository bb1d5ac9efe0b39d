"""Tells the tables of a page: those drawn with lines, and short cells that stand in columns.

Annual reports draw no lines: there a table is rows with figures below each other. Running text is never one:
where rows do not agree on their columns, or cells read like sentences, the lines stay text.
"""

import re
from collections import Counter
from collections.abc import Sequence

from ingest.parse.pdf_grids import Grid, grids
from ingest.parse.pdf_segments import Rules, Segment, joined, rows_of

Row = list[Segment]
"""The cells of one row, from left to right."""


def ruled_tables(segments: Sequence[Segment], rules: Rules) -> tuple[list[list[Row]], list[Segment]]:
    """The tables between rules, each as its rows, and the segments that stand in none."""
    tables: list[list[Row]] = []
    rest = list(segments)
    for grid in grids(rules):
        inside = [segment for segment in rest if grid.holds(segment)]
        rows = [_cells(row, numbered=False) for row in grid.rows(inside)]
        cuts_text = grid.cuts(inside) > _CUT_SHARE * len(rows)
        if _is_ruled_table(grid, rows) and not cuts_text and not _goes_on_beside(inside, rest):
            tables.append(rows)
            within = {id(segment) for segment in inside}
            rest = [segment for segment in rest if id(segment) not in within]
    return tables, rest


_CUT_SHARE = 0.2
"""Of the rows: words with a coloured ground make a grid too, across sentences."""


def _goes_on_beside(inside: Sequence[Segment], segments: Sequence[Segment]) -> bool:
    """Whether figures stand to the left or right of a grid's rows: it is the shading of a part of a table."""
    within = {id(segment) for segment in inside}
    rows = rows_of(inside)
    top, bottom = rows[0][0].y0, rows[-1][0].y1
    beside = [
        one.middle
        for one in segments
        if top < one.middle < bottom and id(one) not in within and _is_figure(one)
    ]
    continued = sum(
        any(abs(middle - row[0].middle) < 0.5 * row[0].height for middle in beside) for row in rows
    )
    return continued >= max(2, _BESIDE_SHARE * len(rows))


_BESIDE_SHARE = 0.4


def _is_ruled_table(grid: Grid, rows: Sequence[Row]) -> bool:
    """False for frames around text, whose rules only look like a grid."""
    cells = [cell for row in rows for cell in row]
    return (
        sum(len(row) >= 2 for row in rows) >= 2
        and len(cells) >= 0.3 * len(rows) * (len(grid.xs) - 1)
        and sum(len(cell.text) for cell in cells) <= _MAX_CELL_CHARS * len(cells)
    )


_MAX_CELL_CHARS = 250
"""On average: longer ones are columns of text between rules."""


def aligned_tables(segments: Sequence[Segment]) -> tuple[list[list[Row]], list[Segment]]:
    """The tables of one column of the page without rules, and the segments that stand in none."""
    rows = [_cells(row) for row in rows_of(segments)]
    tables: list[list[Row]] = []
    rest: list[Segment] = []
    index = 0
    while index < len(rows):
        end = _table_end(rows, index)
        table = rows[index:end]
        if end > index and _is_aligned_table(table):
            tables.append(table)
            index = end
        else:
            rest += rows[index]
            index += 1
    rest.sort(key=lambda segment: segment.order)
    return tables, rest


def _cells(row: Row, *, numbered: bool = True) -> Row:
    """Joins what is one cell to a reader: a currency and its amount, a bracket after it, a number and its text."""
    cells: Row = []
    for segment in row:
        if cells and (
            _BEFORE.fullmatch(cells[-1].text)
            or _AFTER.fullmatch(segment.text)
            or (numbered and len(cells) == 1 and _NUMBER.fullmatch(cells[0].text) and not _is_figure(segment))
        ):
            cells[-1] = joined(cells[-1], segment)
        else:
            cells.append(segment)
    return cells


_BEFORE = re.compile(r"[$€£¥(]{1,2}|US\$|\(\$")
_AFTER = re.compile(r"[)%]{1,2}|pts?\.?|bps|x")
_NUMBER = re.compile(r"\(?(?:\d{1,2}|[a-zA-Z]|[ivx]{1,4})[.)]|\[\d+\]|\(\d+\)")
"""Of a row or a reference: told apart from its text by a tabulator, but no cell of its own."""


def _table_end(rows: Sequence[Row], start: int) -> int:
    """Where the run of rows ends that may be a table from `start` on; `start` where there is none."""
    if not _may_begin(rows, start):
        return start
    end = last_full = start
    for index in range(start, len(rows)):
        if index > start and _gap(rows[index - 1], rows[index]) > _MAX_ROW_GAP * rows[index][0].size:
            break
        if _is_table_row(rows[index]):
            last_full = index
            end = index + 1
        elif index - last_full > _MAX_LONE_ROWS or not _may_stand_between(rows[index]):
            break
    return end


_MAX_ROW_GAP = 2.2
_MAX_LONE_ROWS = 3


def _may_begin(rows: Sequence[Row], index: int) -> bool:
    """A table begins with a row of cells, or with a heading over its columns just above one."""
    if _is_table_row(rows[index]):
        return True
    if index + 1 >= len(rows) or len(rows[index]) != 1 or not _is_table_row(rows[index + 1]):
        return False
    above, below = rows[index][0], rows[index + 1]
    gap = _gap(rows[index], below)
    return above.x0 >= below[0].x1 and len(above.words) <= _SHORT_WORDS and gap <= above.size


def _gap(above: Row, below: Row) -> float:
    return min(cell.y0 for cell in below) - max(cell.y1 for cell in above)


def _is_table_row(row: Row) -> bool:
    if len(row) < 2:
        return False
    if any(len(cell.words) > _CELL_WORDS for cell in row[1:]) or len(row[0].words) > _LABEL_WORDS:
        return False
    if any(_LISTED.match(cell.text) for cell in row):
        return False
    if any(_is_figure(cell) for cell in row[1:]):
        return True
    return len(row) >= 3 or all(len(cell.words) <= _SHORT_WORDS for cell in row)


_LISTED = re.compile(r"[•‣◦▪■●○]\s")
"""A list that stands beside another is no table."""
_CELL_WORDS = 9
_LABEL_WORDS = 16
_SHORT_WORDS = 6


def _may_stand_between(row: Row) -> bool:
    """A heading within the table, or the first line of a label that takes two."""
    return len(row) == 1 and len(row[0].words) <= _LABEL_WORDS and not row[0].text.endswith((". ", ".”"))


def _is_figure(cell: Segment) -> bool:
    return _FIGURE.fullmatch(cell.text) is not None


_FIGURE = re.compile(
    r"[$€£¥(~<>≈+\-–—−]*\s?(?:US\$|[$€£¥])?\s?\(?\s?\d[\d.,’' ]*\s?(?:[%x)]|pts?|bps|bn|[mM]illion|[kKMB])*\s?\)?"
    r"|[-–—−]|\$\s?[-–—]|[Nn]/?[AaMm]\.?|\*+"
)


def _is_aligned_table(rows: Sequence[Row]) -> bool:
    full = [row for row in rows if _is_table_row(row)]
    columns = max((len(row) for row in full), default=0)
    figures = sum(_is_figure(cell) for row in full for cell in row[1:])
    others = sum(len(row) - 1 for row in full) - figures
    if len(full) < (2 if columns >= 3 and figures >= 4 else 3) or len(full) < 0.4 * len(rows):
        return False
    if figures < others and not _is_text_table(rows, full):
        return False
    return _aligned_share(full) >= _ALIGNED_SHARE


def _is_text_table(rows: Sequence[Row], full: Sequence[Row]) -> bool:
    """Whether cells that are mostly words are a table's: few words, rows alike, no sentence running on."""
    cells = [cell for row in full for cell in row]
    usual = Counter(map(len, full)).most_common(1)[0][1]
    running_on = sum(cell.text[0].islower() for row in full[1:] for cell in row)
    return (
        len(full) >= _FULL_SHARE * len(rows)
        and usual >= _FULL_SHARE * len(full)
        and sum(len(cell.words) for cell in cells) <= _MEAN_WORDS * len(cells)
        and running_on <= _RUNNING_ON_SHARE * len(cells)
    )


_FULL_SHARE = 0.7
_RUNNING_ON_SHARE = 0.15
_MEAN_WORDS = 4.5
_ALIGNED_SHARE = 0.75


def _aligned_share(rows: Sequence[Row]) -> float:
    """The share of the cells, but for the first of each row, that another row has in the same column."""
    aligned = total = 0
    for index, row in enumerate(rows):
        near = [*rows[max(0, index - _NEAR_ROWS) : index], *rows[index + 1 : index + 1 + _NEAR_ROWS]]
        for cell in row[1:]:
            total += 1
            aligned += any(_is_below(cell, other) for others in near for other in others)
    return aligned / total if total else 0.0


_NEAR_ROWS = 4


def _is_below(cell: Segment, other: Segment) -> bool:
    slack = 0.4 * cell.size
    return (
        abs(cell.x0 - other.x0) <= slack
        or abs(cell.x1 - other.x1) <= slack
        or abs(cell.x0 + cell.x1 - other.x0 - other.x1) <= 2 * slack
    )
