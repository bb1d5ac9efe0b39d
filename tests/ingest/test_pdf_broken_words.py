"""Headings whose words a PDF has in two pieces."""

from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

from ingest.elements import ElementKind
from ingest.parse.pdf_broken_words import KnownWords
from ingest.parse.pdf_segments import Segment
from tests.ingest.pdf_files import lines_page, read, write_pdf


def known(text: str) -> KnownWords:
    words = KnownWords()
    words.learn([Segment(text, 0, 0, 1, 1, 10, False, [])])
    return words


@pytest.mark.parametrize(
    ("heading", "mended"),
    [
        ("Balance Shee t", "Balance Sheet"),
        ("Balance Shee t At December", "Balance Sheet At December"),
        ("SHEE T", "SHEET"),
        ("Some one", "Some one"),
        ("Sheet t", "Sheet t"),
        ("Shee | t", "Shee | t"),
        ("Icehou se", "Icehou se"),
        ("", ""),
    ],
)
def test_pieces_are_joined_that_are_rare_beside_their_word(heading: str, mended: str) -> None:
    text = "sheet " * 9 + "some one someone " * 9 + "Shee t icehouse"
    assert known(text).mended(heading) == mended


def test_a_broken_word_of_a_pdfs_heading_is_found_whole(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica-Bold", 16)
        canvas.drawString(72, 760, "Balance Shee t")
        canvas.setFont("Helvetica", 10)
        for row in range(6):
            canvas.drawString(
                72, 730 - 14 * row, f"The balance sheet of shelf {row} was closed with the others."
            )

    document = read(write_pdf(tmp_path / "a.pdf", draw, lines_page("The sheet is kept.")))
    headings = [each for each in document.elements if each.kind is ElementKind.HEADING]
    assert [document.text[each.start_char : each.end_char] for each in headings] == ["Balance Sheet"]
