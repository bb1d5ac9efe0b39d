"""Headers and footers that repeat on a PDF's pages stand apart from its text."""

from collections.abc import Callable
from pathlib import Path

from reportlab.pdfgen.canvas import Canvas

from ingest.elements import ElementKind
from tests.ingest.pdf_files import PROSE, Document, draw_lines, read, wrapped, write_pdf

FURNITURE = (ElementKind.HEADER, ElementKind.FOOTER)


def page(number: str, header: str, body: str) -> Callable[[Canvas], None]:
    def draw(canvas: Canvas) -> None:
        canvas.drawString(72, 810, header)
        canvas.drawString(300, 30, number)
        draw_lines([body, *wrapped(PROSE, 90)], canvas, y=700)

    return draw


def body(document: Document) -> str:
    return "\n".join(
        document.shown(element) for element in document.elements if element.kind not in FURNITURE
    )


def test_headers_and_page_numbers_that_change_are_furniture(tmp_path: Path) -> None:
    pages = [
        page(f"Page {number} of 60", "The Icehouse, internal", f"Entry {number}.") for number in range(1, 61)
    ]
    document = read(write_pdf(tmp_path / "a.pdf", *pages))
    assert document.texts(ElementKind.HEADER) == ["The Icehouse, internal"] * 60
    assert document.texts(ElementKind.FOOTER) == [f"Page {number} of 60" for number in range(1, 61)]
    assert "Icehouse" not in body(document)
    assert all(f"Entry {number}." in body(document) for number in range(1, 61))


def test_each_chapter_of_a_long_book_may_have_its_own_header(tmp_path: Path) -> None:
    chapters = [f"Chapter of the {name}" for name in ("lamp", "ladder", "quay", "porter")]
    pages = [
        page(str(30 * chapter + number), chapters[chapter], "Words.")
        for chapter in range(4)
        for number in range(30)
    ]
    document = read(write_pdf(tmp_path / "a.pdf", *pages))
    assert document.texts(ElementKind.HEADER) == [name for name in chapters for _ in range(30)]


def test_roman_page_numbers_are_furniture(tmp_path: Path) -> None:
    pages = [page(number, "Foreword", "Words.") for number in ("i", "ii", "iii", "iv", "v")]
    assert read(write_pdf(tmp_path / "a.pdf", *pages)).texts(ElementKind.FOOTER) == [
        "i",
        "ii",
        "iii",
        "iv",
        "v",
    ]


def test_what_stands_once_at_an_edge_is_text(tmp_path: Path) -> None:
    openings = ["Of the lamps", "Of the ladders", "Of the quay", "Of the porter"]
    pages = [page(str(number), opening, "Words.") for number, opening in enumerate(openings)]
    document = read(write_pdf(tmp_path / "a.pdf", *pages))
    assert document.texts(ElementKind.HEADER) == []
    assert all(opening in body(document) for opening in openings)


def test_two_pages_are_too_few_to_tell(tmp_path: Path) -> None:
    document = read(
        write_pdf(tmp_path / "a.pdf", page("1", "Notice", "Words."), page("2", "Notice", "Words."))
    )
    assert body(document).count("Notice") == 2
