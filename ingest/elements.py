"""What a parsed file is: for the parsers that make it, the chunker that cuts it, the table that keeps it.

Errors:
    ParseFailed     the file's text cannot be had; `code` says why, `transient` whether another try can help
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self

import orjson

from retrieval.places import Box, Place


class Openable(Protocol):
    """A file on disk, or bytes that are read like one."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO: ...


class ElementKind(StrEnum):
    """What a block of a document is to its reader."""

    HEADING = "heading"
    TEXT = "text"
    LIST_ITEM = "list_item"
    TABLE = "table"
    CODE = "code"
    HEADER = "header"
    FOOTER = "footer"

    @property
    def is_furniture(self) -> bool:
        """True for what repeats on pages: kept in the text, left out of chunks."""
        return self in {ElementKind.HEADER, ElementKind.FOOTER}


@dataclass(frozen=True, slots=True)
class Element:
    """A block of a document: the characters [start_char, end_char) of its text."""

    kind: ElementKind
    start_char: int
    end_char: int
    headings: tuple[str, ...]
    """The headings above it, outermost first; of a heading, those above itself."""
    places: tuple[Place, ...] = ()
    """One for each line or block, in order, where the format has pages; offsets index the document's text."""


@dataclass(frozen=True, slots=True)
class ParsedPart:
    """A stretch of a document's text as a reader sees it, and the blocks that it is made of.

    The parts of a document, in order, are its text. Offsets count from the document's beginning. Elements are in
    order and do not overlap; between two of them stands nothing but white space. A small document is one part.
    """

    text: str
    elements: tuple[Element, ...]
    start_char: int = 0
    pages_done: int | None = None
    """Pages of the document that end in this part or before it, where the format has pages."""
    page_count: int | None = None
    """Of the whole document, as soon as it is known."""
    title: str | None = None
    """Of the whole document."""

    @property
    def end_char(self) -> int:
        return self.start_char + len(self.text)

    def between(self, start_char: int, end_char: int) -> str:
        """The text between two offsets of the document, both within this part."""
        return self.text[start_char - self.start_char : end_char - self.start_char]

    def to_json(self) -> bytes:
        """All but the text, in the compact form that is stored: arrays, heading paths once."""
        paths: dict[tuple[str, ...], int] = {}
        rows = [
            [
                element.kind.value,
                element.start_char,
                element.end_char,
                paths.setdefault(element.headings, len(paths)),
                [_place_row(place) for place in element.places],
            ]
            for element in self.elements
        ]
        return orjson.dumps(
            {
                "start_char": self.start_char,
                "pages_done": self.pages_done,
                "page_count": self.page_count,
                "title": self.title,
                "paths": list(paths),
                "elements": rows,
            }
        )

    @classmethod
    def from_json(cls, text: str, stored: bytes) -> Self:
        """Raises ValueError for bytes that `to_json` did not make: a parser gone wrong gets no further."""
        try:
            fields = orjson.loads(stored)
            paths = [tuple(str(heading) for heading in path) for path in fields["paths"]]
            part = cls(
                text=text,
                elements=tuple(
                    Element(ElementKind(kind), start, end, paths[path], tuple(_place(row) for row in places))
                    for kind, start, end, path, places in fields["elements"]
                ),
                # Stored before there were parts, it is all of its document.
                start_char=int(fields.get("start_char", 0)),
                pages_done=fields.get("pages_done"),
                page_count=fields["page_count"],
                title=fields["title"],
            )
            _check(part)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError("These bytes are not a parsed part.") from error
        return part


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file inside a file: an archive's entry, or what came with a mail. A document of its own."""

    name: str
    """Where it lies within, with slashes; only to show."""
    path: Path
    """Where it was put for now; gone once the next part or attachment is asked for."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a parser is in a document that has pages; a page by OCR takes seconds, a part many pages."""

    pages_done: int
    page_count: int | None = None


Parsed = ParsedPart | Attachment | Progress


@dataclass(frozen=True, slots=True)
class ParseOptions:
    """What a parser is told beside the file."""

    password: str | None = field(default=None, repr=False)
    ocr_languages: str = "eng"
    """Tesseract's names, joined by +."""
    depth: int = 0
    """In how many archives and mails the file lies."""
    page: int = 1
    """Which one to draw, where pages are drawn."""


class ParseFailure(StrEnum):
    """Why a file has no text for us."""

    ENCRYPTED = "encrypted"
    CORRUPT = "corrupt"
    EMPTY = "empty"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    LIMIT = "limit"
    """It took more time or memory than a file may."""
    INTERRUPTED = "interrupted"
    """The parser was stopped from outside; the only one worth another try."""


class ParseFailed(Exception):
    """A file cannot be parsed. The message is for its owner: what is wrong and what to do."""

    def __init__(self, code: ParseFailure, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def transient(self) -> bool:
        """True when the same file may well parse at the next try."""
        return self.code is ParseFailure.INTERRUPTED


def _place_row(place: Place) -> list[int | float | None]:
    row: list[int | float | None] = [place.start_char, place.end_char, place.page]
    if place.box is not None:
        row += [place.box.x0, place.box.y0, place.box.x1, place.box.y1]
    return row


def _place(row: Sequence[Any]) -> Place:
    start, end, page, *box = row
    return Place(start, end, page, Box(*box) if box else None)


def _check(part: ParsedPart) -> None:
    offsets = (offset for element in part.elements for offset in (element.start_char, element.end_char))
    if any(later < earlier for earlier, later in pairwise([part.start_char, *offsets, part.end_char])):
        raise ValueError("The elements of this part overlap or leave its text.")
