"""Tables that are drawn with lines: finds the grids that rules make, and puts words into the cells between them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ingest.parse.pdf_segments import Rules, Segment, Word, rows_of


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the rules of one table stand."""

    xs: Sequence[float]
    ys: Sequence[float]

    def holds(self, segment: Segment) -> bool:
        """Whether the middle of a segment lies within."""
        x, y = (segment.x0 + segment.x1) / 2, segment.middle
        return self.xs[0] - 1 <= x <= self.xs[-1] + 1 and self.ys[0] - 1 <= y <= self.ys[-1] + 1

    def cell_of(self, word: Word, middle: float) -> tuple[int, int]:
        """Row and column of a word whose line has its middle there."""
        return bisect_right(self.ys, middle), self._column(word)

    def cuts(self, segments: Sequence[Segment]) -> int:
        """How often a rule would part two words that stand as close as words of one text."""
        return sum(
            0 <= right.x0 - left.x1 < _WORD_GAP * segment.size and self._column(left) != self._column(right)
            for segment in segments
            for left, right in pairwise(segment.words)
        )

    def _column(self, word: Word) -> int:
        found = bisect_right(self.xs, (word.x0 + word.x1) / 2) - 1
        return min(max(0, found), len(self.xs) - 2)

    def rows(self, segments: Sequence[Segment]) -> list[list[Segment]]:
        """The words of the segments cell by cell, left to right and top down; empty cells and rows left out."""
        between: dict[int, list[Segment]] = {}
        for segment in segments:
            between.setdefault(bisect_right(self.ys, segment.middle), []).append(segment)
        return [row for _, found in sorted(between.items()) for row in self._rows_between(found)]

    def _rows_between(self, segments: Sequence[Segment]) -> list[list[Segment]]:
        """The row between two rules, or several where only some rows are parted by rules."""
        lines = [[piece for one in line for piece in self._cut(one)] for line in rows_of(segments)]
        full = sum(len({column for column, _ in line}) >= 2 and _has_figure(line) for line in lines)
        if full < 2:
            lines = [[piece for line in lines for piece in line]]
        return [_cells(line) for line in lines]

    def _cut(self, segment: Segment) -> Iterator[tuple[int, Segment]]:
        """The segment's words by the column that they stand in: narrow cells stand as close as words."""
        columns: dict[int, list[Word]] = {}
        for word in segment.words:
            columns.setdefault(self._column(word), []).append(word)
        if len(columns) == 1:
            yield next(iter(columns)), segment
            return
        for column, words in columns.items():
            yield (
                column,
                replace(
                    segment,
                    text=" ".join(word.text for word in words),
                    x0=min(word.x0 for word in words),
                    x1=max(word.x1 for word in words),
                    words=words,
                ),
            )


_WORD_GAP = 0.35
"""In type sizes: a space is a quarter or a third, and cells have a margin."""


def _has_figure(pieces: Sequence[tuple[int, Segment]]) -> bool:
    return any(sum(map(str.isdigit, piece.text)) * 2 >= len(piece.text) for _, piece in pieces)


def _cells(pieces: Sequence[tuple[int, Segment]]) -> list[Segment]:
    cells: dict[int, list[Segment]] = {}
    for column, piece in pieces:
        cells.setdefault(column, []).append(piece)
    return [_stacked(cells[column]) for column in sorted(cells)]


def grids(rules: Rules) -> list[Grid]:
    """The tables that rules across and rules down make where they touch: two columns and two rows at least."""
    groups: list[tuple[list[tuple[float, float, float]], list[tuple[float, float, float]]]] = []
    if len(rules.across) < 3 or len(rules.down) < 3:
        return []
    for across in rules.across:
        touching = [down for down in rules.down if _touch(across, down)]
        if not touching:
            continue
        merged = ([across], touching)
        apart = []
        seen = {id(down) for down in touching}
        for group in groups:
            if any(id(down) in seen for down in group[1]):
                merged[0].extend(group[0])
                merged[1].extend(down for down in group[1] if id(down) not in seen)
                seen.update(id(down) for down in group[1])
            else:
                apart.append(group)
        groups = [*apart, merged]
    found = []
    for across_rules, down_rules in groups:
        xs, ys = _distinct(x for _, _, x in down_rules), _distinct(y for _, _, y in across_rules)
        if len(xs) >= 3 and len(ys) >= 3:
            found.append(Grid(xs, ys))
    return found


_TOLERANCE = 2.5
"""In points: rules that are to touch may end a little apart, and have two edges."""


def _touch(across: tuple[float, float, float], down: tuple[float, float, float]) -> bool:
    x0, x1, y = across
    y0, y1, x = down
    return x0 - _TOLERANCE <= x <= x1 + _TOLERANCE and y0 - _TOLERANCE <= y <= y1 + _TOLERANCE


def _distinct(values: Iterator[float]) -> list[float]:
    """In order, without those that are as good as the one before: both edges of a thick rule."""
    distinct: list[float] = []
    for value in sorted(values):
        if not distinct or value - distinct[-1] > _TOLERANCE * 1.2:
            distinct.append(value)
    return distinct


def _stacked(pieces: Sequence[Segment]) -> Segment:
    """The lines of one cell as one."""
    first = pieces[0]
    return Segment(
        text=" ".join(piece.text for piece in pieces),
        x0=min(piece.x0 for piece in pieces),
        y0=min(piece.y0 for piece in pieces),
        x1=max(piece.x1 for piece in pieces),
        y1=max(piece.y1 for piece in pieces),
        size=first.size,
        bold=first.bold,
        words=[word for piece in pieces for word in piece.words],
        order=first.order,
    )
