"""Cuts a part of a parsed document into the pieces that are embedded and found: sections whole where they fit.

A section is never cut for one that is too long beside it, a sentence never before its paragraph, a word never
before its sentence. Nothing of the document is lost: what is no heading stands in at least one chunk, and a
heading in the path of the chunks below it.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from ingest.elements import ElementKind, ParsedPart
from ingest.tokens import TokenCounter, room_positions
from retrieval.places import Place, under_headings


@dataclass(frozen=True, slots=True)
class ChunkDraft:
    """A chunk before it is embedded."""

    text: str
    """The document's text from `start_char` to `end_char`."""
    start_char: int
    end_char: int
    headings: tuple[str, ...]
    """And below them, for rows of a table whose header stands in a chunk before, its rows as one line."""
    token_count: int
    """Of `under_headings(headings, text)`, as the model counts, special tokens included."""
    places: tuple[Place, ...]
    is_table: bool
    """True when it holds nothing but rows of tables."""


def split(
    part: ParsedPart, *, count_tokens: TokenCounter, max_tokens: int, overlap_tokens: int
) -> list[ChunkDraft]:
    """The chunks of a part, in order, each within `max_tokens` with its heading path and special tokens.

    Their offsets are the document's, as the part's are. A section that has to be split repeats up to
    `overlap_tokens` of whole sentences (at most half a chunk). OpenAI's static strategy is this with its own
    two numbers. `max_tokens` is at least 16.
    """
    assert max_tokens >= 16
    if not part.text:
        return []
    splitter = _Splitter(part, count_tokens, max_tokens, overlap_tokens)
    pieces = splitter.pieces()
    return [
        _draft(part, fitting, exact_count)
        for piece, count in zip(pieces, splitter.counts(pieces), strict=True)
        for fitting, exact_count in _fitting(part.text, piece, count, count_tokens, max_tokens)
    ]


def _fitting(
    text: str, piece: "_Piece", count: int, count_tokens: TokenCounter, max_tokens: int
) -> Iterator[tuple["_Piece", int]]:
    """The piece if it is within the limit, else its halves, with their exact counts.

    A piece can have more tokens than its part of the whole text had: a word of hundreds of letters is one unknown
    token to a word-piece model until it is cut, and some tokenizers read the start of a text in another way.
    """
    if count <= max_tokens:
        yield piece, count
        return
    for half in piece.halves(text):
        (half_count,) = count_tokens.counts([half.embedded_text(text)])
        yield from _fitting(text, half, half_count, count_tokens, max_tokens)


@dataclass(frozen=True, slots=True)
class _Block:
    """A content element, with the headings that lead to it."""

    start: int
    end: int
    path: tuple[str, ...]
    kind: ElementKind
    opening: tuple[tuple[int, int], ...]
    """Start and depth of the headings that stand directly above it."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is not cut any further when a section is packed into chunks."""

    start: int
    end: int
    kind: ElementKind
    header: str | None = None
    """The header of its table, where that does not stand in it."""


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    path: tuple[str, ...]
    header: str | None = None

    @property
    def headings(self) -> tuple[str, ...]:
        return self.path if self.header is None else (*self.path, self.header)

    def embedded_text(self, text: str) -> str:
        return under_headings(self.headings, text[self.start : self.end])

    def halves(self, text: str) -> "Iterator[_Piece]":
        """Two pieces, cut at the space nearest to the middle from the left, or else in the middle of a word."""
        assert self.end - self.start > 1, "one character cannot be more than a chunk"
        middle = (self.start + self.end) // 2
        space = text.rfind(" ", self.start + 1, middle)
        at = space if space > (self.start + middle) // 2 else middle
        for start, end in ((self.start, at), (at, self.end)):
            left, right = _trimmed(text, start, end)
            if left < right:
                yield _Piece(left, right, self.path, self.header)


class _Splitter:
    """One pass over a part, by the tokens of its whole text; offsets in here count from the part's beginning."""

    def __init__(
        self,
        part: ParsedPart,
        count_tokens: TokenCounter,
        max_tokens: int,
        overlap_tokens: int,
    ) -> None:
        self._text = part.text
        self._count_tokens = count_tokens
        self._starts = count_tokens.starts(part.text)
        self._positions = room_positions(self._starts, len(part.text))
        self._room = max_tokens - count_tokens.special_tokens
        self._overlap_tokens = min(overlap_tokens, max_tokens // 2)
        titles = {part.title} if part.title else set()
        headings = sorted(titles.union(*{element.headings for element in part.elements}))
        own_counts = count_tokens.counts(headings) if headings else []
        # One more each for the sign between two headings, or the line end after the last.
        self._heading_tokens = {
            heading: count - count_tokens.special_tokens + 1
            for heading, count in zip(headings, own_counts, strict=True)
        }
        self._most_path_tokens = self._room // 3
        self._part = part
        self._pieces: list[_Piece] = []

    def pieces(self) -> list[_Piece]:
        for blocks in _runs_between_furniture(self._part, self._is_path_heading):
            self._pack(blocks)
        return self._pieces

    def counts(self, pieces: Sequence[_Piece]) -> list[int]:
        """The tokens of each piece with its headings, exactly; counted again only where they do not add up."""
        counts = [self._sum(piece) for piece in pieces]
        unknown = [index for index, count in enumerate(counts) if count is None]
        texts = [pieces[index].embedded_text(self._text) for index in unknown]
        again = dict(zip(unknown, self._count_tokens.counts(texts) if texts else [], strict=True))
        return [again[index] if count is None else count for index, count in enumerate(counts)]

    def _sum(self, piece: _Piece) -> int | None:
        beside = (self._text[piece.start - 1 : piece.start], self._text[piece.end : piece.end + 1])
        if not self._count_tokens.adds_up or any(sign not in _PARTS_WORDS for sign in beside):
            return None
        own = bisect_left(self._starts, piece.end) - bisect_left(self._starts, piece.start)
        signs = max(0, len(piece.headings) - 1)
        path = sum(self._heading_tokens[heading] - 1 for heading in piece.headings)
        return self._count_tokens.special_tokens + path + signs + own

    def _is_path_heading(self, heading: str) -> bool:
        """False for a heading so long that it would crowd out the text below it: it counts as text."""
        return self._heading_tokens.get(heading, 0) <= self._most_path_tokens

    def _pack(self, blocks: Sequence[_Block]) -> None:
        """One chunk if everything fits, else each section on its own; small neighbours stay together."""
        path = _common_path(blocks)
        whole = self._whole(blocks, path)
        if self._fits(whole):
            self._pieces.append(whole)
        elif all(block.path == path for block in blocks):
            self._pack_section(blocks, path)
        else:
            sections = [
                list(group) for _, group in groupby(blocks, key=lambda block: block.path[: len(path) + 1])
            ]
            for section in self._joined(sections, path):
                self._pack(section)

    def _joined(self, sections: Sequence[list[_Block]], path: tuple[str, ...]) -> list[list[_Block]]:
        """Joins a section of a few lines with the one beside it, where both fit into a chunk."""
        joined: list[list[_Block]] = []
        for section in sections:
            if joined:
                both = self._whole([*joined[-1], *section], path)
                tokens = min(self._section_tokens(joined[-1]), self._section_tokens(section))
                if tokens < self._room // _SMALL_SHARE and self._fits(both):
                    joined[-1] = [*joined[-1], *section]
                    continue
            joined.append(section)
        return joined

    def _whole(self, blocks: Sequence[_Block], path: tuple[str, ...]) -> _Piece:
        """All the blocks as one piece, which begins with the headings that its path does not show."""
        shown = [start for start, depth in blocks[0].opening if depth >= len(path)]
        return _Piece(min([*shown, blocks[0].start]), blocks[-1].end, self._fitting_path(path))

    def _section_tokens(self, blocks: Sequence[_Block]) -> int:
        return self._tokens(blocks[0].start, blocks[-1].end)

    def _fits(self, piece: _Piece) -> bool:
        return self._tokens(piece.start, piece.end) + self._path_tokens(piece.path) <= self._room

    def _tokens(self, start: int, end: int) -> int:
        return bisect_left(self._positions, end) - bisect_left(self._positions, start)

    def _path_tokens(self, path: Sequence[str]) -> int:
        return sum(self._heading_tokens[heading] for heading in path)

    def _fitting_path(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """The innermost headings that leave two thirds of the room to the text."""
        while self._path_tokens(path) > self._most_path_tokens:
            path = path[1:]
        return path

    def _pack_section(self, blocks: Sequence[_Block], path: tuple[str, ...]) -> None:
        """Packs one section into chunks of about equal size, each beginning in the one before."""
        # A text without headings says what it is about in its title, which its first chunk begins with.
        title = (self._part.title,) if self._part.title and not path else ()
        path = self._fitting_path(path or title)
        room = self._room - self._path_tokens(path)
        units = [unit for block in blocks for unit in self._units(block, room)]
        taken, start = 0, units[0].start
        while taken < len(units):
            first = taken
            header = units[first].header
            room_below = room - (self._heading_tokens[header] if header else 0)
            share = self._share(start, units[first].start, units[-1].end, room_below)
            taken += 1
            while taken < len(units) and self._tokens(start, units[taken].end) <= room_below:
                added = self._tokens(units[taken - 1].end, units[taken].end)
                if self._tokens(units[first].start, units[taken - 1].end) + added / 2 > share:
                    break
                taken += 1
            opens = not self._pieces and bool(title)
            self._pieces.append(_Piece(start, units[taken - 1].end, () if opens else path, header))
            if taken < len(units):
                start = self._overlap_start(units[first:taken], units[taken], room)

    def _share(self, start: int, first: int, end: int, room: int) -> float:
        """How many new tokens this chunk should take, so that the last one is not a remnant."""
        left = self._tokens(first, end)
        room_now = room - self._tokens(start, first)
        if left <= room_now:
            return left
        room_later = max(1, room - self._overlap_tokens)
        return left / (1 + -(-(left - room_now) // room_later))

    def _overlap_start(self, taken: Sequence[_Unit], following: _Unit, room: int) -> int:
        """Where the next chunk begins: at the first sentence that overlaps by no more than it may.

        Rows of tables and code are not repeated.
        """
        end = taken[-1].end
        prose = len(taken)
        while prose > 0 and taken[prose - 1].kind not in _UNREPEATED:
            prose -= 1
        repeatable = taken[prose:]
        if not repeatable or self._overlap_tokens == 0:
            return following.start
        earliest = bisect_left(self._positions, end) - self._overlap_tokens
        lowest = max(repeatable[0].start, self._positions[earliest] if earliest >= 0 else 0)
        starts = {unit.start for unit in repeatable}
        starts |= {match.end() for match in _SENTENCE_END.finditer(self._text, repeatable[0].start, end)}
        fitting = (
            start
            for start in sorted(starts)
            # The chunk's own beginning would make the next one hold all of it again.
            if lowest <= start < end and start > taken[0].start and self._tokens(start, following.end) <= room
        )
        return next(fitting, following.start)

    def _units(self, block: _Block, room: int) -> Iterator[_Unit]:
        """The block if it fits, else its rows, lines or sentences, and these cut where they must be."""
        if self._tokens(block.start, block.end) <= room:
            yield _Unit(block.start, block.end, block.kind)
            return
        boundary = _LINE_END if block.kind in _UNREPEATED else _SENTENCE_END
        ends = [match.end() for match in boundary.finditer(self._text, block.start, block.end)]
        header = self._header(block, room) if block.kind is ElementKind.TABLE else None
        if header is not None:
            room -= self._heading_tokens[header]
        for start, end in pairwise([block.start, *ends, block.end]):
            for cut_start, cut_end in self._cut(start, end, room):
                left, right = _trimmed(self._text, cut_start, cut_end)
                if left < right:
                    yield _Unit(left, right, block.kind, header if start > block.start else None)

    def _header(self, table: _Block, room: int) -> str | None:
        """The first row of a table that is cut, or the first few down to the years that head its columns.

        None where they do not name the columns, or the other rows do so themselves.
        """
        rows = [
            " ".join(row.split())
            for row in self._text[table.start : table.end].split("\n", _HEADER_ROWS + 1)[: _HEADER_ROWS + 1]
        ]
        years = next((index for index, row in enumerate(rows[:_HEADER_ROWS]) if _is_of_years(row)), 0)
        header = " | ".join(rows[: years + 1])
        cells = header.split(" | ")
        if (
            len(header) > _MAX_HEADER_CHARS
            or len(cells) < 2
            or not all(map(_names_column, cells))
            or any(row.startswith(f"{cells[0]}: ") for row in rows[1:])
        ):
            return None
        if header not in self._heading_tokens:
            (count,) = self._count_tokens.counts([header])
            self._heading_tokens[header] = count - self._count_tokens.special_tokens + 1
        return header if self._heading_tokens[header] <= room // _HEADER_SHARE else None

    def _cut(self, start: int, end: int, room: int) -> Iterator[tuple[int, int]]:
        while self._tokens(start, end) > room:
            most = self._positions[bisect_left(self._positions, start) + room]
            at = max(self._text.rfind("\n", start + 1, most), start)
            if at - start < (most - start) // 2:
                # A line end far back would leave half of the chunk empty.
                at = max(self._text.rfind(" ", start + 1, most), start)
            if at == start:
                at = max(most, start + 1)
            yield start, at
            start = at
        yield start, end


_SMALL_SHARE = 4
"""Sections of less than a quarter of a chunk are joined with a neighbour: a line alone says little."""
_MAX_HEADER_CHARS = 200
_HEADER_ROWS = 3
_YEAR = re.compile(r"(?:19|20)\d\d\*?")
_HEADER_SHARE = 4
"""A table's header takes no more than a quarter of the room for its rows."""
_PARTS_WORDS = ("", " ", "\n", "\t")
_UNREPEATED = {ElementKind.TABLE, ElementKind.CODE}
_LINE_END = re.compile(r"\n")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+(?=[^\sa-z])|[。！？][”’」』）]*\s*|\n\s*\n\s*")


def _runs_between_furniture(
    part: ParsedPart, is_path_heading: Callable[[str], bool]
) -> Iterator[list[_Block]]:
    """The content of the part as blocks, in runs that no page header or footer interrupts.

    A heading with nothing below it is content: in no chunk's path, it would not be found.
    """
    run: list[_Block] = []
    opening: list[tuple[int, int]] = []
    below = _content_paths_below(part)
    for element, next_path in zip(part.elements, below, strict=True):
        if element.kind.is_furniture:
            if run:
                yield run
            run, opening = [], []
            continue
        start, end = _trimmed(
            part.text, element.start_char - part.start_char, element.end_char - part.start_char
        )
        if start >= end:
            continue
        path = tuple(filter(is_path_heading, element.headings))
        if element.kind is ElementKind.HEADING:
            heading = " ".join(part.text[start:end].split())
            if is_path_heading(heading) and next_path[: len(element.headings) + 1] == (
                *element.headings,
                heading,
            ):
                opening.append((start, len(path)))
                continue
        run.append(_Block(start, end, path, element.kind, tuple(opening)))
        opening = []
    if run:
        yield run


def _is_of_years(row: str) -> bool:
    """Whether it heads columns with several years, as in accounts. One may be a figure among others."""
    cells = row.split(" | ")
    return sum(map(_is_year, cells)) >= 2 and all(map(_names_column, cells))


def _names_column(cell: str) -> bool:
    return _is_year(cell) or any(map(str.isalpha, cell))


def _is_year(cell: str) -> bool:
    return _YEAR.fullmatch(cell) is not None


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The range without the white space at its ends; an empty one where there is nothing else."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _content_paths_below(part: ParsedPart) -> list[tuple[str, ...]]:
    """For each element, the heading path of the next content after it."""
    paths: list[tuple[str, ...]] = []
    following: tuple[str, ...] = ()
    for element in reversed(part.elements):
        paths.append(following)
        if element.kind.is_furniture:
            # Its own path says nothing: it may stand at the text's end.
            following = ()
        elif element.kind is not ElementKind.HEADING:
            following = element.headings
    return paths[::-1]


def _common_path(blocks: Sequence[_Block]) -> tuple[str, ...]:
    path = blocks[0].path
    for block in blocks:
        while block.path[: len(path)] != path:
            path = path[:-1]
    return path


def _draft(part: ParsedPart, piece: _Piece, token_count: int) -> ChunkDraft:
    start_char, end_char = part.start_char + piece.start, part.start_char + piece.end
    first = bisect_left(part.elements, start_char + 1, key=lambda element: element.end_char)
    places: list[Place] = []
    kinds: set[ElementKind] = set()
    for index in range(first, len(part.elements)):
        element = part.elements[index]
        if element.start_char >= end_char:
            break
        kinds.add(element.kind)
        places += [
            Place(max(place.start_char, start_char), min(place.end_char, end_char), place.page, place.box)
            for place in element.places
            if place.start_char < end_char and start_char < place.end_char
        ]
    return ChunkDraft(
        text=part.text[piece.start : piece.end],
        start_char=start_char,
        end_char=end_char,
        headings=piece.headings,
        token_count=token_count,
        places=tuple(places),
        is_table=kinds == {ElementKind.TABLE},
    )
