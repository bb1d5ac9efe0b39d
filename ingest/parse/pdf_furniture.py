"""Finds the headers and footers that repeat on a PDF's pages, while the pages come in."""

import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import TypeAlias

from ingest.elements import ElementKind
from ingest.parse.pdf_segments import PageText, Segment

Signature: TypeAlias = tuple[ElementKind, str, str, int]
"""Equal in the lines that repeat: where they stand, and their words."""

Furniture: TypeAlias = dict[int, ElementKind]
"""By `id` of the segment."""


class FurnitureFinder:
    """Holds pages back until those after them have shown what repeats.

    Headers and footers stand in the margin at one height, or end their page in one column, as page numbers do
    that follow the text directly. Numbers are not compared, so page numbers count as equal.
    """

    def __init__(self, *, look_around: int = 32) -> None:
        """A page is compared with as many others, half of them before it."""
        self._look_around = look_around
        self._window: deque[tuple[PageText, dict[int, set[Signature]]]] = deque()
        self._waiting = 0
        self._repeats: Counter[Signature] = Counter()
        self._known: set[Signature] = set()

    def add(self, page: PageText) -> Iterator[tuple[PageText, Furniture]]:
        """Takes the next page, and gives the page that has waited long enough."""
        signatures = _signatures(page)
        self._window.append((page, signatures))
        self._waiting += 1
        self._repeats.update({signature for found in signatures.values() for signature in found})
        if self._waiting > self._look_around // 2:
            yield self._told()
        if len(self._window) > self._look_around:
            _, gone = self._window.popleft()
            for signature in {signature for found in gone.values() for signature in found}:
                self._repeats[signature] -= 1
                if not self._repeats[signature]:
                    del self._repeats[signature]

    def finish(self) -> Iterator[tuple[PageText, Furniture]]:
        """The pages that still wait."""
        while self._waiting:
            yield self._told()

    def _told(self) -> tuple[PageText, Furniture]:
        page, signatures = self._window[-self._waiting]
        self._waiting -= 1
        needed = max(_MIN_REPEATS, len(self._window) * _MIN_REPEAT_SHARE)
        furniture: Furniture = {}
        for segment, found in signatures.items():
            for signature in found:
                if signature in self._known or self._repeats[signature] >= needed:
                    # What was a header once is one on the last pages of its chapter too.
                    if len(self._known) < _MAX_KNOWN:
                        self._known.add(signature)
                    furniture[segment] = signature[0]
        return page, furniture


_MIN_REPEATS = 3
_MIN_REPEAT_SHARE = 0.2
"""Chapters have headers of their own, and odd and even pages differ."""
_MAX_KNOWN = 10_000


def _signatures(page: PageText) -> dict[int, set[Signature]]:
    lowest = max(page.segments, key=lambda segment: segment.y1, default=None)
    found: dict[int, set[Signature]] = {}
    for segment in page.segments:
        kind = _margin(segment, page.height)
        if kind is None and segment is not lowest:
            continue
        words = _words(segment.text)
        places = found.setdefault(id(segment), set())
        if kind is not None:
            places.add((kind, words, "at height", round(segment.y0 / 10)))
        if segment is lowest:
            places.add((ElementKind.FOOTER, words, "last in column", round(segment.x0 / 20)))
    return found


def _words(text: str) -> str:
    """The text without its numbers, be they Roman."""
    return "#" if _ROMAN.fullmatch(text) else re.sub(r"\d+", "#", text)


_ROMAN = re.compile(r"[ivxlc]{1,8}|[IVXLC]{1,8}")


def _margin(segment: Segment, page_height: float) -> ElementKind | None:
    if segment.y1 <= page_height * _MARGIN_SHARE:
        return ElementKind.HEADER
    if segment.y0 >= page_height * (1 - _MARGIN_SHARE):
        return ElementKind.FOOTER
    return None


_MARGIN_SHARE = 0.12
