"""Writes small PDFs and pictures for the tests of their parsers, and reads them back as one document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from ingest.elements import Element, ElementKind, Parsed, ParsedPart, ParseOptions
from ingest.parse.ocr import PROGRAMS, Tesseract
from ingest.parse.pdf import parse_pdf
from retrieval.places import Place

needs_tesseract = pytest.mark.skipif(
    Tesseract.find("eng", programs=PROGRAMS) is None, reason="tesseract-ocr is not installed"
)

PROSE = (
    "The archive was built into the side of the hill so that neither heat nor damp could reach the papers. "
    "Every spring the keeper walks along the shelves with a lamp and writes down what the mice have taken. "
    "In the year of the flood the lower vault stood under water for nine days and nothing in it was lost. "
    "Visitors sign the book at the door and leave their coats and pens with the porter before they go in. "
)


@dataclass(frozen=True)
class Document:
    """The parts of a file put together."""

    text: str
    elements: tuple[Element, ...]
    parts: tuple[ParsedPart, ...]

    @classmethod
    def of(cls, found: Sequence[Parsed]) -> "Document":
        parts = tuple(part for part in found if isinstance(part, ParsedPart))
        return cls(
            "".join(part.text for part in parts),
            tuple(element for part in parts for element in part.elements),
            parts,
        )

    def shown(self, element: Element) -> str:
        return self.text[element.start_char : element.end_char]

    def texts(self, kind: ElementKind) -> list[str]:
        return [self.shown(element) for element in self.elements if element.kind is kind]

    def element_with(self, text: str) -> Element:
        start = self.text.index(text)
        return next(one for one in self.elements if one.start_char <= start < one.end_char)

    def place_of(self, text: str) -> Place:
        start = self.text.index(text)
        return next(
            place
            for element in self.elements
            for place in element.places
            if place.start_char <= start < place.end_char
        )


def read(path: Path, options: ParseOptions | None = None) -> Document:
    return Document.of(list(parse_pdf(path, options or ParseOptions())))


def write_pdf(path: Path, *pages: Callable[[Canvas], object]) -> Path:
    """One page for each function, which draws on it in PDF's coordinates on A4, in Helvetica of 10 points."""
    canvas = Canvas(str(path), pagesize=A4)
    for draw in pages:
        canvas.setFont("Helvetica", 10)
        draw(canvas)
        canvas.showPage()
    canvas.save()
    return path


def draw_lines(
    lines: Sequence[str], canvas: Canvas, *, x: float = 72, y: float = 760, leading: float = 12
) -> None:
    for index, line in enumerate(lines):
        canvas.drawString(x, y - index * leading, line)


def lines_page(*lines: str) -> Callable[[Canvas], None]:
    return partial(draw_lines, lines)


def wrapped(text: str, characters: int) -> list[str]:
    """The text in lines of at most so many characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= characters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def picture(
    lines: Sequence[str], *, size: tuple[int, int] = (1240, 1754), x: int = 150, y: int = 150
) -> Image.Image:
    """Text as a scanner sees it: an A4 page at 150 dots an inch."""
    image = Image.new("L", size, 255)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=28)
    for index, line in enumerate(lines):
        pen.text((x, y + index * 44), line, font=font, fill=0)
    return image


def scanned_page(*lines: str) -> Callable[[Canvas], None]:
    """A page that is nothing but a picture of text."""
    image = picture(lines)

    def draw(canvas: Canvas) -> None:
        canvas.drawImage(ImageReader(image), 0, 0, A4[0], A4[1])

    return draw
