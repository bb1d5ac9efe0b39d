"""Reads a PDF's outline (its bookmarks) and finds the blocks of text that it names: the author's own headings."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pypdfium2

from ingest.parse.pdf_segments import Segment
from ingest.visible import clean


@dataclass(frozen=True, slots=True)
class Bookmark:
    """An entry of the outline that leads to a page."""

    title: str
    level: int
    """From 0, the outermost."""
    top: float | None
    """Where on its page, from the upper edge."""


def read_outline(pdf: pypdfium2.PdfDocument) -> Mapping[int, Sequence[Bookmark]]:
    """The bookmarks by page number, in order; those of the first 10,000, of a circle once."""
    pages: defaultdict[int, list[Bookmark]] = defaultdict(list)
    for entry in islice(pdf.get_toc(max_depth=_MAX_DEPTH), _MAX_ENTRIES):
        destination = entry.get_dest()
        title = " ".join(clean(entry.get_title()).split())
        index = destination.get_index() if destination is not None else None
        if index is None or not title or _PAGE_NAME.fullmatch(title):
            continue
        pages[index + 1].append(Bookmark(title, entry.level, _top(pdf, destination, index)))
    return pages


_MAX_DEPTH = 8
_MAX_ENTRIES = 10_000
_PAGE_NAME = re.compile(r"(?:page|slide|seite|folie|p\.?)?\s*[\divxlc]+", re.IGNORECASE)
"""Scanners and slides name their pages, which is no heading."""


def _top(pdf: pypdfium2.PdfDocument, destination: pypdfium2.PdfDest, index: int) -> float | None:
    mode, numbers = destination.get_view()
    place = _TOP_AT.get(mode)
    if place is None or place >= len(numbers):
        return None
    try:
        return float(pdf.get_page_size(index)[1] - numbers[place])
    except pypdfium2.PdfiumError:
        # The page is broken, and so not read.
        return None


_TOP_AT = {1: 1, 3: 0, 5: 3, 7: 0}
"""Which of a destination's numbers is its top, by PDFium's PDFDEST_VIEW modes: XYZ, FitH, FitR and FitBH."""


def headings_named(
    bookmarks: Sequence[Bookmark], blocks: Sequence[Sequence[Segment]]
) -> tuple[dict[int, int], dict[int, list[Bookmark]]]:
    """By position of the block: the level of a block that a bookmark names, and the bookmarks to put before it.

    A bookmark whose words stand in no block of its page is put where it points to; len(blocks) is the page's end.
    """
    levels: dict[int, int] = {}
    before: defaultdict[int, list[Bookmark]] = defaultdict(list)
    names = [_name(" ".join(line.text for line in block)) for block in blocks]
    for bookmark in bookmarks:
        wanted = _name(bookmark.title)
        same = [
            index
            for index, name in enumerate(names)
            if index not in levels and name and (name == wanted or _is_longer_name(name, wanted))
        ]
        if same:
            chosen = min(same, key=lambda index: abs(blocks[index][0].y0 - (bookmark.top or 0.0)))
            levels[chosen] = bookmark.level
        else:
            before[_position(blocks, bookmark.top)].append(bookmark)
    return levels, before


def _is_longer_name(name: str, wanted: str) -> bool:
    """Whether one says the other and little more: "1 Introduction" and "Introduction"."""
    short, long = sorted((name, wanted), key=len)
    return len(short) >= 4 and long.endswith(short) and len(long) - len(short) <= _MAX_NUMBER


_MAX_NUMBER = 14
"""Letters of "Chapter 12" or "Appendix A" that stand before a title."""


def _position(blocks: Sequence[Sequence[Segment]], top: float | None) -> int:
    if top is None:
        return 0
    return next((index for index, block in enumerate(blocks) if block[0].middle >= top - 2.0), len(blocks))


def _name(title: str) -> str:
    return re.sub(r"[\W_]+", "", title).casefold()
