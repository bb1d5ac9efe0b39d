"""Reads a picture of a page: its lines of text, the rules of its tables, and each cell between them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from PIL import Image

from ingest.parse.ocr import Tesseract
from ingest.parse.ocr_rules import prepared
from ingest.parse.pdf_grids import Grid, grids
from ingest.parse.pdf_segments import Rules, Segment, Word


def read_page(tesseract: Tesseract, image: Image.Image, *, dots_per_inch: int) -> tuple[list[Segment], Rules]:
    """What a grey picture shows, in points from its upper left corner. Raises ParseFailed."""
    page, found = prepared(image)
    scale = dots_per_inch / 72
    rules = Rules(
        [(x0 / scale, x1 / scale, y / scale) for x0, x1, y in found.across],
        [(y0 / scale, y1 / scale, x / scale) for y0, y1, x in found.down],
    )
    lines = [in_points(line, scale) for line in tesseract.read(page, dots_per_inch=dots_per_inch)]
    for grid in grids(rules)[:_MAX_GRIDS]:
        left, top = int(grid.xs[0] * scale), int(grid.ys[0] * scale)
        table = page.crop((left, top, int(grid.xs[-1] * scale), int(grid.ys[-1] * scale)))
        again = tesseract.read(table, dots_per_inch=dots_per_inch, one_block=True)
        lines += _in_empty_cells(grid, lines, [in_points(line, scale, left, top) for line in again])
    for order, line in enumerate(lines):
        line.order = order
    return lines, rules


_MAX_GRIDS = 4


def in_points(line: Segment, scale: float, left: float = 0.0, top: float = 0.0) -> Segment:
    """A line that was read at `scale` pixels a point, `left` and `top` pixels from the page's corner."""
    return replace(
        line,
        x0=(line.x0 + left) / scale,
        y0=(line.y0 + top) / scale,
        x1=(line.x1 + left) / scale,
        y1=(line.y1 + top) / scale,
        size=round(line.size / scale * 4) / 4,
        words=[Word(word.text, (word.x0 + left) / scale, (word.x1 + left) / scale) for word in line.words],
    )


def _in_empty_cells(grid: Grid, lines: Sequence[Segment], again: Sequence[Segment]) -> Iterator[Segment]:
    """The words of the second reading that stand where the first has found nothing."""
    filled = {grid.cell_of(word, line.middle) for line in lines if grid.holds(line) for word in line.words}
    for line in again:
        for word in line.words:
            if grid.cell_of(word, line.middle) not in filled and any(map(str.isalnum, word.text)):
                yield replace(line, text=word.text, x0=word.x0, x1=word.x1, words=[word], paragraph=None)
