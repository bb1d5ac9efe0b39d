"""Cuts a parsed document into the pieces that are embedded and found: sections whole where they fit.

A section is never cut for one that is too long beside it, a sentence never before its paragraph, a word never
before its sentence. Nothing of the document is lost: what is no heading stands in at least one chunk, and a
heading in the path of the chunks below it.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from tokenizers import Tokenizer

from ingest.elements import ElementKind, ParsedDocument
from retrieval.places import Place, under_headings


@dataclass(frozen=True, slots=True)
class ChunkDraft:
    """A chunk before it is embedded."""

    text: str
    """The document's text from `start_char` to `end_char`."""
    start_char: int
    end_char: int
    headings: tuple[str, ...]
    token_count: int
    """Of `under_headings(headings, text)`, as the model counts, special tokens included."""
    places: tuple[Place, ...]
    is_table: bool
    """True when it holds nothing but rows of tables."""


class TokenCounter:
    """The embedding model's own tokenizer, from the `tokenizers` library's serialised form."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # Models ship with both set, and then a text that is cut would seem to fit.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special_tokens: int = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        """Tokens that the model adds to every text."""

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included, exactly as the model counts."""
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def positions(self, text: str) -> list[int]:
        """Where tokens begin, ascending: text[a:b] has about as many tokens as positions in [a, b).

        Long tokens and gaps count once more every 16 characters. To a word-piece model a line of a million
        letters is one unknown word, but a chunk of it would fill the prompt of the model that answers.
        """
        starts: list[int] = []
        windows = list(_windows(text))
        for group in range(0, len(windows), _WINDOWS_AT_ONCE):
            some = windows[group : group + _WINDOWS_AT_ONCE]
            encodings = self._tokenizer.encode_batch(
                [text[start:end] for start, end in some], add_special_tokens=False
            )
            for (window_start, _), encoding in zip(some, encodings, strict=True):
                starts += [window_start + start for start, _ in encoding.offsets]
        return _filled(sorted(starts), len(text))


def split(
    document: ParsedDocument, *, count_tokens: TokenCounter, max_tokens: int, overlap_tokens: int
) -> list[ChunkDraft]:
    """The chunks of a document, in order, each within `max_tokens` with its heading path and special tokens.

    A section that has to be split repeats up to `overlap_tokens` of whole sentences (at most half a chunk).
    OpenAI's static strategy is this with its own two numbers. `max_tokens` is at least 16.
    """
    assert max_tokens >= 16
    splitter = _Splitter(document, count_tokens, max_tokens, overlap_tokens)
    pieces = splitter.pieces()
    counts = count_tokens.counts([piece.embedded_text(document.text) for piece in pieces])
    return [
        _draft(document, fitting, exact_count)
        for piece, count in zip(pieces, counts, strict=True)
        for fitting, exact_count in _fitting(document.text, piece, count, count_tokens, max_tokens)
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


_WINDOW_CHARS = 8192
_WINDOWS_AT_ONCE = 64
_CHARS_PER_TOKEN_AT_MOST = 16


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Cuts a text at line ends into parts that the tokenizer takes well; tokens do not cross lines."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _WINDOW_CHARS, start + 8 * _WINDOW_CHARS)
        if end < 0:
            end = text.rfind(" ", start + 1, start + 8 * _WINDOW_CHARS)
        if end < 0 or len(text) - start <= _WINDOW_CHARS:
            end = min(len(text), start + 8 * _WINDOW_CHARS)
        yield start, end
        start = end


def _filled(starts: Sequence[int], end: int) -> list[int]:
    filled: list[int] = []
    for start, next_start in pairwise([0, *starts, end]):
        filled += range(start, next_start, _CHARS_PER_TOKEN_AT_MOST) if next_start > start else [start]
    # The leading 0 is a sentinel unless a token is there, which has added its own.
    return filled[1:] if starts and starts[0] == 0 else filled


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


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    path: tuple[str, ...]

    def embedded_text(self, text: str) -> str:
        return under_headings(self.path, text[self.start : self.end])

    def halves(self, text: str) -> "Iterator[_Piece]":
        """Two pieces, cut at the space nearest to the middle from the left, or else in the middle of a word."""
        assert self.end - self.start > 1, "one character cannot be more than a chunk"
        middle = (self.start + self.end) // 2
        space = text.rfind(" ", self.start + 1, middle)
        at = space if space > (self.start + middle) // 2 else middle
        for start, end in ((self.start, at), (at, self.end)):
            left, right = _trimmed(text, start, end)
            if left < right:
                yield _Piece(left, right, self.path)


class _Splitter:
    """One pass over a document, by the tokens of its whole text."""

    def __init__(
        self,
        document: ParsedDocument,
        count_tokens: TokenCounter,
        max_tokens: int,
        overlap_tokens: int,
    ) -> None:
        self._text = document.text
        self._positions = count_tokens.positions(document.text)
        self._room = max_tokens - count_tokens.special_tokens
        self._overlap_tokens = min(overlap_tokens, max_tokens // 2)
        titles = {document.title} if document.title else set()
        headings = sorted(titles.union(*(element.headings for element in document.elements)))
        own_counts = count_tokens.counts(headings) if headings else []
        # One more each for the sign between two headings, or the line end after the last.
        self._heading_tokens = {
            heading: count - count_tokens.special_tokens + 1
            for heading, count in zip(headings, own_counts, strict=True)
        }
        self._most_path_tokens = self._room // 3
        self._document = document
        self._pieces: list[_Piece] = []

    def pieces(self) -> list[_Piece]:
        for blocks in _runs_between_furniture(self._document, self._is_path_heading):
            self._pack(blocks)
        return self._pieces

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
        title = (self._document.title,) if self._document.title and not path else ()
        path = self._fitting_path(path or title)
        room = self._room - self._path_tokens(path)
        units = [unit for block in blocks for unit in self._units(block, room)]
        taken, start = 0, units[0].start
        while taken < len(units):
            first = taken
            share = self._share(start, units[first].start, units[-1].end, room)
            taken += 1
            while taken < len(units) and self._tokens(start, units[taken].end) <= room:
                added = self._tokens(units[taken - 1].end, units[taken].end)
                if self._tokens(units[first].start, units[taken - 1].end) + added / 2 > share:
                    break
                taken += 1
            opens = not self._pieces and bool(title)
            self._pieces.append(_Piece(start, units[taken - 1].end, () if opens else path))
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
        for start, end in pairwise([block.start, *ends, block.end]):
            for cut_start, cut_end in self._cut(start, end, room):
                left, right = _trimmed(self._text, cut_start, cut_end)
                if left < right:
                    yield _Unit(left, right, block.kind)

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
_UNREPEATED = {ElementKind.TABLE, ElementKind.CODE}
_LINE_END = re.compile(r"\n")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+(?=[^\sa-z])|[。！？][”’」』）]*\s*|\n\s*\n\s*")


def _runs_between_furniture(
    document: ParsedDocument, is_path_heading: Callable[[str], bool]
) -> Iterator[list[_Block]]:
    """The content of the document as blocks, in runs that no page header or footer interrupts.

    A heading with nothing below it is content: in no chunk's path, it would not be found.
    """
    run: list[_Block] = []
    opening: list[tuple[int, int]] = []
    below = _content_paths_below(document)
    for element, next_path in zip(document.elements, below, strict=True):
        if element.kind.is_furniture:
            if run:
                yield run
            run, opening = [], []
            continue
        start, end = _trimmed(document.text, element.start_char, element.end_char)
        if start >= end:
            continue
        path = tuple(filter(is_path_heading, element.headings))
        if element.kind is ElementKind.HEADING:
            heading = " ".join(document.text[start:end].split())
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


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The range without the white space at its ends; an empty one where there is nothing else."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _content_paths_below(document: ParsedDocument) -> list[tuple[str, ...]]:
    """For each element, the heading path of the next content after it."""
    paths: list[tuple[str, ...]] = []
    following: tuple[str, ...] = ()
    for element in reversed(document.elements):
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


def _draft(document: ParsedDocument, piece: _Piece, token_count: int) -> ChunkDraft:
    first = bisect_left(document.elements, piece.start + 1, key=lambda element: element.end_char)
    places: list[Place] = []
    kinds: set[ElementKind] = set()
    for index in range(first, len(document.elements)):
        element = document.elements[index]
        if element.start_char >= piece.end:
            break
        kinds.add(element.kind)
        places += [
            Place(max(place.start_char, piece.start), min(place.end_char, piece.end), place.page, place.box)
            for place in element.places
            if place.start_char < piece.end and piece.start < place.end_char
        ]
    return ChunkDraft(
        text=document.text[piece.start : piece.end],
        start_char=piece.start,
        end_char=piece.end,
        headings=piece.path,
        token_count=token_count,
        places=tuple(places),
        is_table=kinds == {ElementKind.TABLE},
    )
