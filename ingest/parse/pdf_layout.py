"""Lays out one page: its columns in reading order, its tables, its paragraphs."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ingest.elements import ElementKind
from ingest.parse.build import Line
from ingest.parse.pdf_columns import reading_flows
from ingest.parse.pdf_segments import Rules, Segment, line_of
from ingest.parse.pdf_tables import Row, aligned_tables, ruled_tables


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, a list's entry or a table, as a reader sees it."""

    kind: ElementKind
    rows: list[Row]
    """The lines: one segment each in text, or a row's cells."""

    def lines(self, page: int) -> list[Line]:
        separator = " | " if self.kind is ElementKind.TABLE else " "
        return [line_of(row, page, separator=separator) for row in self.rows]

    @property
    def order(self) -> int:
        """When the file draws the first of it."""
        return min(segment.order for row in self.rows for segment in row)

    @property
    def sides(self) -> tuple[float, float, float, float]:
        segments = [segment for row in self.rows for segment in row]
        lefts, rights = (min(one.x0 for one in segments), max(one.x1 for one in segments))
        return lefts, min(one.y0 for one in segments), rights, max(one.y1 for one in segments)


def lay_out(segments: Iterable[Segment], rules: Rules, page_width: float) -> list[Block]:
    """The blocks of a page in reading order."""
    tables, rest = ruled_tables(list(_marked(segments)), rules)
    # A table's place among the columns is where its first cell would stand.
    stand_ins = {id(table[0][0]): table for table in tables}
    flows = reading_flows([*(table[0][0] for table in tables), *rest], page_width)
    return [block for flow in flows for block in _flow_blocks(flow, stand_ins)]


def _flow_blocks(flow: Sequence[Segment], ruled: dict[int, list[Row]]) -> list[Block]:
    """The blocks of one column: in the file's order, unless that goes up and down the page."""
    text = [segment for segment in flow if id(segment) not in ruled]
    aligned, rest = aligned_tables(text)
    found = [ruled[id(segment)] for segment in flow if id(segment) in ruled]
    blocks = [block for table in [*found, *aligned] for block in _captioned(table)]
    blocks += [
        Block(
            ElementKind.LIST_ITEM if BULLET.match(lines[0].text) else ElementKind.TEXT,
            [[line] for line in lines],
        )
        for lines in _paragraphs(rest)
    ]
    blocks.sort(key=lambda block: block.order)
    if _goes_back(blocks):
        blocks.sort(key=lambda block: (round(block.sides[1]), block.sides[0]))
    return blocks


def _captioned(table: list[Row]) -> Iterator[Block]:
    """The table, and what stands above its columns in larger type as a text of its own."""
    if len(table) > 2 and len(table[0]) == 1 and table[0][0].size > max(cell.size for cell in table[1]):
        yield Block(ElementKind.TEXT, table[:1])
        table = table[1:]
    yield Block(ElementKind.TABLE, table)


def _goes_back(blocks: Sequence[Block]) -> bool:
    """Whether the file draws this column in another order than it is read in."""
    sides = [block.sides for block in blocks]
    back = sum(
        below[1] < above[1] - _LINE_SLACK and below[0] < above[2] and above[0] < below[2]
        for above, below in pairwise(sides)
    )
    return back > 0 and back >= _BACK_SHARE * len(blocks)


_LINE_SLACK = 4.0
_BACK_SHARE = 0.08


def _marked(lines: Iterable[Segment]) -> Iterator[Segment]:
    """Lines of a list with the bullet or number that stands apart before them."""
    mark: Segment | None = None
    for line in lines:
        if mark is not None and _stands_before(mark, line):
            yield _with_mark(mark, line)
            mark = None
            continue
        if mark is not None:
            yield mark
        mark = line if _LONE_MARK.fullmatch(line.text) else None
        if mark is None:
            yield line
    if mark is not None:
        yield mark


def _stands_before(mark: Segment, line: Segment) -> bool:
    is_beside = abs(mark.middle - line.middle) <= 0.5 * line.height
    return is_beside and 0 <= line.x0 - mark.x1 <= _MAX_TAB * line.size


_MAX_TAB = 4.0


def _with_mark(mark: Segment, line: Segment) -> Segment:
    return Segment(
        f"{mark.text} {line.text}",
        mark.x0,
        min(mark.y0, line.y0),
        line.x1,
        max(mark.y1, line.y1),
        line.size,
        line.bold,
        [*mark.words, *line.words],
        mark.order,
        line.paragraph,
    )


_LONE_MARK = re.compile(r"[•‣◦▪■●○*·]|\(?(?:\d{1,2}|[a-z]|[ivx]{1,4})[.)]", re.IGNORECASE)
BULLET = re.compile(r"[•‣◦▪■●○–—*·-]\s|\(?(?:\d{1,2}|[a-z]|[ivx]{1,4})[.)]\s", re.IGNORECASE)


def _paragraphs(lines: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Runs of lines that a reader sees as one paragraph."""
    paragraph: list[Segment] = []
    for line in lines:
        if paragraph and not _continues(paragraph[-1], line):
            yield paragraph
            paragraph = []
        paragraph.append(line)
    if paragraph:
        yield paragraph


def _continues(above: Segment, line: Segment) -> bool:
    if above.paragraph is not None or line.paragraph is not None:
        return above.paragraph == line.paragraph
    gap = line.y0 - above.y1
    return (
        abs(line.size - above.size) <= 0.1 * above.size
        and line.bold == above.bold
        and -0.5 * above.size <= gap <= _PARAGRAPH_GAP * above.size
        and line.x0 < above.x1
        and above.x0 < line.x1
        and not BULLET.match(line.text)
    )


_PARAGRAPH_GAP = 0.55
"""Between the type's boxes, which are a tenth higher than its letters."""
