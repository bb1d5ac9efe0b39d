"""Puts a document together from cleaned blocks of text, part by part, for every parser: the one maker of offsets."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ingest.elements import Element, ElementKind, Parsed, ParsedPart, ParseFailed, ParseFailure, Progress
from ingest.visible import clean
from retrieval.places import Box, Place

PART_CHARS = 500_000
"""About as much text stands in one part: some 200 dense pages, and a megabyte of memory or two."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a block as it stands on its page (from 1)."""

    text: str
    page: int | None = None
    box: Box | None = None


class DocumentBuilder:
    """Collects the blocks of one document in reading order and gives them back in parts.

    A parser adds blocks, yields from `ready()` after each page, sheet or so many blocks, and from `finish()` at
    its end. Where the parts are cut depends on the blocks alone, not on how often `ready()` is called.
    """

    def __init__(
        self, *, page_count: int | None = None, title: str | None = None, part_chars: int = PART_CHARS
    ) -> None:
        """`page_count` where it is known beforehand; `title` is for a document without headings."""
        self._page_count = page_count
        self._title = _one_line(title)
        self._first_heading: str | None = None
        self._part_chars = part_chars
        self._path: list[tuple[int, str]] = []
        self._full: list[ParsedPart] = []
        self._length = 0
        self._last_kind: ElementKind | None = None
        self._pages_done = 0
        self._pages_told = 0
        self._last_page: int | None = None
        # Of the part that grows:
        self._start = 0
        self._pieces: list[str] = []
        self._elements: list[Element] = []
        self._furniture: list[tuple[ElementKind, Sequence[Line]]] = []
        self._furniture_chars = 0

    def add_heading(self, lines: Sequence[Line], *, level: int) -> None:
        """`level` counts from 0, the outermost; a heading closes those of its level and below."""
        heading = " ".join(clean(line.text) for line in lines).split()
        if not heading:
            return
        if sum(map(len, heading)) > _MAX_HEADING_CHARS:
            # Nobody reads this as a heading, and it would take the chunks' room from their text.
            self.add(ElementKind.TEXT, lines)
            return
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._append(ElementKind.HEADING, lines)
        self._path.append((level, " ".join(heading)))
        self._first_heading = self._first_heading or " ".join(heading)

    def add(self, kind: ElementKind, lines: Sequence[Line]) -> None:
        """Adds a block below the last heading; page headers and footers go to the end of their part.

        There they are kept without cutting a sentence that runs from one page to the next.
        """
        if kind.is_furniture:
            self._furniture.append((kind, lines))
            self._furniture_chars += sum(len(line.text) for line in lines)
        else:
            self._append(kind, lines)

    def close_headings(self) -> None:
        """What follows stands below no heading: another sheet or slide."""
        self._path.clear()

    def ready(self, *, pages_done: int | None = None) -> Iterator[Parsed]:
        """The parts that are full, and how many pages are done where that has grown.

        `pages_done` is for pages that may hold no text; without it, the pages before the last block's are done.
        """
        self._pages_done = max(self._pages_done, pages_done or 0, self._known_pages_done() or 0)
        full, self._full = self._full, []
        yield from full
        if self._pages_done > self._pages_told:
            self._pages_told = self._pages_done
            yield Progress(self._pages_done, self._page_count)

    def finish(
        self, *, page_count: int | None = None, title: str | None = None, may_be_empty: bool = False
    ) -> Iterator[ParsedPart]:
        """The parts that are left. Raises ParseFailed (empty) when no block of the document had any text."""
        self._title = _one_line(title) or self._title
        self._page_count = page_count or self._page_count
        self._pages_done = max(self._pages_done, self._last_page or 0, self._page_count or 0)
        self._seal()
        if self._length == 0 and not may_be_empty:
            raise ParseFailed(ParseFailure.EMPTY, "There is no text in this file.")
        full, self._full = self._full, []
        yield from full

    def _known_pages_done(self) -> int | None:
        if self._last_page is None and self._page_count is None:
            return None
        return max(self._pages_done, (self._last_page or 1) - 1)

    def _seal(self) -> None:
        """Makes a part of what was collected; nothing is left out but blocks without text."""
        has_body = self._last_kind is not None
        for kind, lines in self._furniture:
            # A document of nothing but repeated lines is those lines.
            shown_as = kind if has_body else ElementKind.TEXT
            for block in _bounded_blocks(lines):
                cleaned = _cleaned(shown_as, block)
                if cleaned:
                    self._write_block(shown_as, cleaned, ())
        if self._elements:
            self._full.append(
                ParsedPart(
                    text="".join(self._pieces),
                    elements=tuple(self._elements),
                    start_char=self._start,
                    pages_done=self._known_pages_done(),
                    page_count=self._page_count,
                    title=self._first_heading or self._title,
                )
            )
        self._start = self._length
        self._pieces, self._elements, self._furniture, self._furniture_chars = [], [], [], 0

    def _append(self, kind: ElementKind, lines: Sequence[Line]) -> None:
        headings = tuple(heading for _, heading in self._path)
        for index, block in enumerate(_bounded_blocks(lines)):
            cleaned = _cleaned(kind, block)
            if cleaned:
                if self._is_full_before(kind):
                    self._seal()
                self._write_block(kind, cleaned, headings, continues=index > 0)

    def _is_full_before(self, kind: ElementKind) -> bool:
        """Rather before a heading than within its section, and never between a heading and what it heads."""
        full_at = self._part_chars * (_FULL_BEFORE_HEADING if kind is ElementKind.HEADING else 1)
        return (
            self._length - self._start + self._furniture_chars >= full_at
            and bool(self._elements)
            and self._elements[-1].kind is not ElementKind.HEADING
        )

    def _write_block(
        self,
        kind: ElementKind,
        cleaned: Sequence[tuple[str, Line]],
        headings: tuple[str, ...],
        *,
        continues: bool = False,
    ) -> None:
        if self._last_kind is not None:
            is_next_item = kind is self._last_kind is ElementKind.LIST_ITEM
            self._write("\n" if is_next_item or continues else "\n\n")
        start = self._length
        widest = _widest(cleaned)
        places: list[Place] = []
        for index, (text, line) in enumerate(cleaned):
            if index:
                flows_on = kind is not ElementKind.TABLE and _flows_on(
                    cleaned[index - 1][1], line, widest=widest
                )
                self._write(" " if flows_on else "\n")
            if line.page is not None:
                self._last_page = max(self._last_page or 0, line.page)
                if text:
                    places.append(Place(self._length, self._length + len(text), line.page, line.box))
            self._write(text)
        self._elements.append(Element(kind, start, self._length, headings, tuple(places)))
        self._last_kind = kind

    def _write(self, text: str) -> None:
        self._pieces.append(text)
        self._length += len(text)
        check_length(self._length)


_FULL_BEFORE_HEADING = 0.8
_MAX_BLOCK_CHARS = PART_CHARS


def _bounded_blocks(lines: Sequence[Line]) -> Iterator[Sequence[Line]]:
    """The lines as one block, or as several where one would be longer than a part: a log without blank lines."""
    if sum(len(line.text) for line in lines) <= _MAX_BLOCK_CHARS:
        yield lines
        return
    block: list[Line] = []
    characters = 0
    for line in lines:
        for piece in _bounded_lines(line):
            if block and characters + len(piece.text) > _MAX_BLOCK_CHARS:
                yield block
                block, characters = [], 0
            block.append(piece)
            characters += len(piece.text) + 1
    yield block


def _bounded_lines(line: Line) -> Iterator[Line]:
    """The line, cut at spaces where it is longer than a part: a database's export in one line."""
    start = 0
    while len(line.text) - start > _MAX_BLOCK_CHARS:
        space = line.text.rfind(" ", start + _MAX_BLOCK_CHARS // 2, start + _MAX_BLOCK_CHARS)
        end = space if space > 0 else start + _MAX_BLOCK_CHARS
        yield Line(line.text[start:end], line.page, line.box)
        start = end
    yield Line(line.text[start:], line.page, line.box)


def _cleaned(kind: ElementKind, lines: Sequence[Line]) -> list[tuple[str, Line]]:
    """The lines as they are shown, without empty ones at either end."""
    keeps_indent = kind in {ElementKind.CODE, ElementKind.TEXT}
    cleaned = [(_tidy(line.text, keeps_indent), line) for line in lines]
    first, last = 0, len(cleaned)
    while first < last and not cleaned[first][0]:
        first += 1
    while first < last and not cleaned[last - 1][0]:
        last -= 1
    return cleaned[first:last]


_FULL_LINE = 0.8
_LIST_MARK = re.compile(r"[•▪‣◦*–-]\s|\(?\w{1,3}[.)]\s")


def _widest(lines: Sequence[tuple[str, Line]]) -> float:
    return max((line.box.x1 - line.box.x0 for _, line in lines if line.box is not None), default=0.0)


def _flows_on(above: Line, below: Line, *, widest: float) -> bool:
    """Whether a line was broken only because the page ended there, as in running text; a table's row was not.

    A reader does not see such a break, and neither should a quote.
    """
    if above.box is None or below.box is None or _LIST_MARK.match(below.text):
        return False
    if below.text[:1].islower():
        return True
    is_full = above.box.x1 - above.box.x0 >= _FULL_LINE * widest
    return is_full and (above.text[-1:].isalpha() or above.text[-1:] in ",;.:") and below.text[:1].isalpha()


_MAX_HEADING_CHARS = 200


_MAX_DOCUMENT_CHARS = 4 << 30
"""A million dense pages: more than that is no document, but a file that was made to fill a disk."""


def check_length(characters: int) -> None:
    """Raises ParseFailed (too_large) for more text than a document may have."""
    if characters > _MAX_DOCUMENT_CHARS:
        raise ParseFailed(
            ParseFailure.TOO_LARGE,
            f"This file holds more than {_MAX_DOCUMENT_CHARS:,} characters of text. Split it into smaller ones.",
        )


def text_lines(text: str, page: int | None = None) -> list[Line]:
    """The lines of one block that has no boxes; `page` counts from 1."""
    return [Line(line, page) for line in clean(text).split("\n")]


def _tidy(text: str, keeps_indent: bool) -> str:
    text = clean(text)
    if "\n" in text:
        text = " ".join(part.strip() for part in text.split("\n"))
    return text.rstrip() if keeps_indent else text.strip()


def _one_line(title: str | None) -> str | None:
    """A title from a file's properties, which nobody sees on a page: what hides in it must not head every chunk."""
    return " ".join(clean(title).split()) or None if title else None


def paragraphs(text: str) -> Iterable[str]:
    """The blocks of a plain text, which blank lines part."""
    return (block.strip("\n") for block in _BLANK_LINES.split(clean(text)))


_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
