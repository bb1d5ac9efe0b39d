"""What a parsed document is: for the parsers that make it, the chunker that cuts it, the table that keeps it.

Errors:
    ParseFailed     the file's text cannot be had; `code` says why, `transient` whether another try can help
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Self

import orjson

from retrieval.places import Box, Place


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
class ParsedDocument:
    """A document's text as a reader sees it, and the blocks that it is made of.

    Elements are in order and do not overlap; between two of them stands nothing but white space.
    """

    text: str
    elements: tuple[Element, ...]
    page_count: int | None = None
    title: str | None = None

    def to_json(self) -> bytes:
        """The compact form that is stored and that crosses from the sandbox: arrays, heading paths once."""
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
                "text": self.text,
                "page_count": self.page_count,
                "title": self.title,
                "paths": list(paths),
                "elements": rows,
            }
        )

    @classmethod
    def from_json(cls, stored: bytes) -> Self:
        """Raises ValueError for bytes that `to_json` did not make: a parser gone wrong gets no further."""
        try:
            document = orjson.loads(stored)
            paths = [tuple(str(heading) for heading in path) for path in document["paths"]]
            parsed = cls(
                text=document["text"],
                elements=tuple(
                    Element(ElementKind(kind), start, end, paths[path], tuple(_place(row) for row in places))
                    for kind, start, end, path, places in document["elements"]
                ),
                page_count=document["page_count"],
                title=document["title"],
            )
            _check(parsed)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError("These bytes are not a parsed document.") from error
        return parsed


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


def _check(document: ParsedDocument) -> None:
    if not isinstance(document.text, str):
        raise TypeError("The text of a document is a string.")
    offsets = (offset for element in document.elements for offset in (element.start_char, element.end_char))
    if any(later < earlier for earlier, later in pairwise([0, *offsets, len(document.text)])):
        raise ValueError("The elements of this document overlap or leave its text.")
