"""What a page is made of before it is laid out: runs of words on one line, from the text layer or from OCR."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ingest.parse.build import Line
from retrieval.places import Box


class Word(NamedTuple):
    """Characters without a space among them, and where they stand on the page."""

    text: str
    x0: float
    x1: float


@dataclass(slots=True, eq=False)
class Segment:
    """Words that stand on one line without a wide gap: a line of a paragraph, or a cell of a table.

    Points from the page's upper left corner (of an image: pixels).
    """

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    size: float
    """The type size, in the same unit."""
    bold: bool
    words: list[Word]
    order: int = 0
    """Its turn in the page's own order."""
    paragraph: int | None = None
    """Equal in the lines of a paragraph, where OCR has told them apart."""

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def middle(self) -> float:
        return (self.y0 + self.y1) / 2


@dataclass(slots=True)
class PageText:
    """One page as it was read."""

    number: int
    width: float
    height: float
    segments: list[Segment]
    rules: "Rules"


class Rules(NamedTuple):
    """The straight lines that are drawn on a page: (x0, x1, y) across and (y0, y1, x) down."""

    across: Sequence[tuple[float, float, float]] = ()
    down: Sequence[tuple[float, float, float]] = ()


def line_of(segments: Sequence[Segment], page: int, *, separator: str = " ") -> Line:
    """Segments of one line, or the cells of one row, with the box around them."""
    return Line(separator.join(segment.text for segment in segments), page, box_around(segments))


def box_around(segments: Iterable[Segment]) -> Box:
    """The smallest box with all of them, in tenths of a point."""
    sides = [(segment.x0, segment.y0, segment.x1, segment.y1) for segment in segments]
    lefts, tops, rights, bottoms = zip(*sides, strict=True)
    return Box(round(min(lefts), 1), round(min(tops), 1), round(max(rights), 1), round(max(bottoms), 1))


def joined(left: Segment, right: Segment) -> Segment:
    """Two neighbours on a line as one."""
    return Segment(
        text=f"{left.text} {right.text}",
        x0=min(left.x0, right.x0),
        y0=min(left.y0, right.y0),
        x1=max(left.x1, right.x1),
        y1=max(left.y1, right.y1),
        size=left.size if len(left.text) >= len(right.text) else right.size,
        bold=left.bold and right.bold,
        words=[*left.words, *right.words],
        order=min(left.order, right.order),
        paragraph=left.paragraph,
    )


def rows_of(segments: Iterable[Segment]) -> list[list[Segment]]:
    """Segments that stand side by side, top down; those of a row from left to right."""
    rows: list[list[Segment]] = []
    middle = height = 0.0
    for segment in sorted(segments, key=lambda segment: segment.middle):
        if rows and segment.middle - middle <= _SAME_ROW * min(height, segment.height):
            rows[-1].append(segment)
        else:
            rows.append([segment])
            middle, height = segment.middle, segment.height
    for row in rows:
        row.sort(key=lambda segment: segment.x0)
    return rows


_SAME_ROW = 0.45
