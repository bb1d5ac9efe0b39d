"""Where a piece of text stands in its document, so that a citation can be opened at the right spot."""

from dataclasses import astuple, dataclass
from typing import Any


@dataclass(frozen=True)
class Box:
    """A rectangle on a page: points (1/72 inch), origin at the page's upper left corner."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Place:
    """Maps the characters [start_char, end_char) of a document's text to a page (from 1) and a box on it."""

    start_char: int
    end_char: int
    page: int | None = None
    box: Box | None = None


def under_headings(headings: tuple[str, ...], text: str) -> str:
    """What is embedded and indexed for a chunk: its heading path in front, since its own words may lack the topic."""
    return f"{' > '.join(headings)}\n{text}" if headings else text


def places_to_rows(places: tuple[Place, ...]) -> list[Any]:
    """The form in which SQL keeps them: [start_char, end_char, page, [x0, y0, x1, y1]]."""
    return [
        [place.start_char, place.end_char, place.page, place.box and [*astuple(place.box)]]
        for place in places
    ]


def places_from_rows(rows: list[Any]) -> tuple[Place, ...]:
    return tuple(Place(start, end, page, box and Box(*box)) for start, end, page, box in rows)
