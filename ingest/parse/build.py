"""Puts a document together from cleaned blocks of text, for every parser: the one maker of offsets."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ingest.elements import Element, ElementKind, ParsedDocument, ParseFailed, ParseFailure
from retrieval.places import Box, Place


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a block as it stands on its page (from 1)."""

    text: str
    page: int | None = None
    box: Box | None = None


class DocumentBuilder:
    """Collects the blocks of one document in reading order."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self._elements: list[Element] = []
        self._path: list[tuple[int, str]] = []
        self._furniture: list[tuple[ElementKind, Sequence[Line]]] = []
        self._title: str | None = None

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
        self._title = self._title or " ".join(heading)

    def add(self, kind: ElementKind, lines: Sequence[Line]) -> None:
        """Adds a block below the last heading; page headers and footers go to the end of the text.

        There they are kept without cutting a sentence that runs from one page to the next.
        """
        if kind.is_furniture:
            self._furniture.append((kind, lines))
        else:
            self._append(kind, lines)

    def close_headings(self) -> None:
        """What follows stands below no heading: another sheet or slide."""
        self._path.clear()

    def build(self, *, page_count: int | None = None, title: str | None = None) -> ParsedDocument:
        """`title` is for a document without headings. Raises ParseFailed (empty) when no block had any text."""
        has_body = bool(self._elements)
        self._path.clear()
        for kind, lines in self._furniture:
            # A document of nothing but repeated lines is those lines.
            self._append(kind if has_body else ElementKind.TEXT, lines)
        if not self._elements:
            raise ParseFailed(ParseFailure.EMPTY, "There is no text in this file.")
        return ParsedDocument("".join(self._pieces), tuple(self._elements), page_count, self._title or title)

    def _append(self, kind: ElementKind, lines: Sequence[Line]) -> None:
        keeps_indent = kind in {ElementKind.CODE, ElementKind.TEXT}
        cleaned = [(_tidy(line.text, keeps_indent), line) for line in lines]
        while cleaned and not cleaned[0][0]:
            cleaned.pop(0)
        while cleaned and not cleaned[-1][0]:
            cleaned.pop()
        if not cleaned:
            return
        previous = self._elements[-1].kind if self._elements else None
        separator = "\n" if kind is previous is ElementKind.LIST_ITEM else "\n\n"
        self._write(separator if previous else "")
        start = self._length
        places: list[Place] = []
        for index, (text, line) in enumerate(cleaned):
            if index:
                above = cleaned[index - 1][1]
                self._write(" " if _flows_on(above, line, widest=_widest(lines)) else "\n")
            if line.page is not None and text:
                places.append(Place(self._length, self._length + len(text), line.page, line.box))
            self._write(text)
        headings = tuple(heading for _, heading in self._path)
        self._elements.append(Element(kind, start, self._length, headings, tuple(places)))

    def _write(self, text: str) -> None:
        self._pieces.append(text)
        self._length += len(text)
        check_length(self._length)


_FULL_LINE = 0.8
_LIST_MARK = re.compile(r"[•▪‣◦*–-]\s|\(?\w{1,3}[.)]\s")


def _widest(lines: Sequence[Line]) -> float:
    return max((line.box.x1 - line.box.x0 for line in lines if line.box is not None), default=0.0)


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


_MAX_DOCUMENT_CHARS = 32_000_000
"""Some 10,000 dense pages. A document is held in memory whole, several times over."""


def check_length(characters: int) -> None:
    """Raises ParseFailed (too_large) for more text than a document may have."""
    if characters > _MAX_DOCUMENT_CHARS:
        raise ParseFailed(
            ParseFailure.TOO_LARGE,
            f"This file holds more than {_MAX_DOCUMENT_CHARS:,} characters of text. Split it into smaller ones.",
        )


def clean(text: str) -> str:
    """`text` without what a reader cannot see, so that what is quoted is what was read.

    Removes control, zero-width, direction and tag characters and variation selectors (a way to hide
    instructions from the person who reads the document), but keeps the joiners that Arabic and Indic spelling
    needs. Line ends become "\\n", special spaces plain ones, ligatures letters; the rest is put in Unicode's
    form NFC. What is no character (lone surrogates) becomes U+FFFD, since no database takes it.
    """
    if text.isascii() and not _ASCII_ODDITIES.search(text):
        return text
    if _SURROGATES.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _LINE_ENDS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    text = _STRAY_JOINERS.sub("", text)
    text = _SPACES.sub(" ", text).translate(_LIGATURES)
    return unicodedata.normalize("NFC", text)


_ASCII_ODDITIES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffc\ufffe\uffff\U000e0000-\U000e0fff]"
)
_JOINED = "\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
_STRAY_JOINERS = re.compile(f"(?<![{_JOINED}])[\u200c\u200d]|[\u200c\u200d](?![{_JOINED}])")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_LIGATURES = str.maketrans(
    {
        "\ufb00": "ff",
        "\ufb01": "fi",
        "\ufb02": "fl",
        "\ufb03": "ffi",
        "\ufb04": "ffl",
        "\ufb05": "st",
        "\ufb06": "st",
        "\uf0b7": "•",  # the bullet of Word's Symbol font
    }
)


def text_lines(text: str, page: int | None = None) -> list[Line]:
    """The lines of one block that has no boxes; `page` counts from 1."""
    return [Line(line, page) for line in clean(text).split("\n")]


def _tidy(text: str, keeps_indent: bool) -> str:
    text = clean(text)
    if "\n" in text:
        text = " ".join(part.strip() for part in text.split("\n"))
    return text.rstrip() if keeps_indent else text.strip()


def paragraphs(text: str) -> Iterable[str]:
    """The blocks of a plain text, which blank lines part."""
    return (block.strip("\n") for block in _BLANK_LINES.split(clean(text)))


_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
