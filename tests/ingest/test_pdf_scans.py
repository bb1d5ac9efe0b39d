"""Pages of a PDF that are pictures of text are read by OCR, and only those."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from ingest.elements import ElementKind, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.pdf import parse_pdf
from tests.ingest.pdf_files import (
    Document,
    draw_lines,
    lines_page,
    needs_tesseract,
    picture,
    read,
    scanned_page,
    write_pdf,
)

pytestmark = pytest.mark.slow

NO_PROGRAMS = "/nonexistent"
LINES = ["The strongroom lies below the hill.", "Its key hangs in the hall.", "Nobody enters it alone."]


@needs_tesseract
def test_a_scanned_page_is_read_with_boxes_on_its_page(tmp_path: Path) -> None:
    document = read(write_pdf(tmp_path / "a.pdf", scanned_page(*LINES)))
    assert " ".join(document.text.split()) == " ".join(LINES)
    place = document.place_of("Its key hangs")
    assert place.page == 1
    assert place.box is not None
    # The second line of a picture with 150 dots an inch begins 150 dots from the left and 194 from the top.
    assert place.box.x0 == pytest.approx(150 * 72 / 150, abs=3)
    assert place.box.y0 == pytest.approx(194 * 72 / 150, abs=6)
    assert place.box.y1 == pytest.approx((194 + 36) * 72 / 150, abs=6)


@needs_tesseract
def test_only_pages_without_text_are_read_by_ocr(tmp_path: Path) -> None:
    def text_over_a_picture(canvas: Canvas) -> None:
        """As scanners that do their own OCR leave it: what the picture says is not read again."""
        canvas.drawImage(ImageReader(picture(["These words stand in the picture only."])), 0, 0, *A4)
        draw_lines(
            ["The text layer has its own words, and enough of them to be a whole page of text."], canvas
        )

    document = read(
        write_pdf(tmp_path / "a.pdf", lines_page("Typed by hand."), scanned_page(*LINES), text_over_a_picture)
    )
    assert document.text.index("Typed by hand.") < document.text.index("below the hill")
    assert document.place_of("below the hill").page == 2
    assert "its own words" in document.text
    assert "in the picture only" not in document.text


@needs_tesseract
def test_a_stamp_on_a_scanned_page_does_not_hide_what_it_shows(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        scanned_page(*LINES)(canvas)
        canvas.drawString(500, 20, "Scan 0017")

    assert "Its key hangs in the hall." in read(write_pdf(tmp_path / "a.pdf", draw)).text


@needs_tesseract
def test_figures_in_a_scan_are_a_table(tmp_path: Path) -> None:
    page = picture([])
    for row, (label, old, new) in enumerate(
        [
            ("Lamps", "1,210", "1,198"),
            ("Ladders", "310", "305"),
            ("Jars of ink", "4,150", "3,990"),
            ("Pens", "720", "688"),
        ]
    ):
        for x, text in ((0, label), (400, old), (700, new)):
            page.paste(picture([text], size=(280, 60), x=0, y=10), (150 + x, 150 + 60 * row))

    def draw(canvas: Canvas) -> None:
        canvas.drawImage(ImageReader(page), 0, 0, *A4)

    (table,) = read(write_pdf(tmp_path / "a.pdf", draw)).texts(ElementKind.TABLE)
    assert table.split("\n") == [
        "Lamps | 1,210 | 1,198",
        "Ladders | 310 | 305",
        "Jars of ink | 4,150 | 3,990",
        "Pens | 720 | 688",
    ]


@needs_tesseract
def test_a_table_drawn_with_lines_keeps_its_cells_in_a_scan(tmp_path: Path) -> None:
    page = picture(["The table below counts what is on the shelves."])
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=28)
    rows = [("Shelf", "Keeper", "Lamps"), ("North", "Ada Quill", "5"), ("South", "Bram Oyelaran", "7")]
    pen.rectangle((150, 300, 1050, 380), fill=170)
    for row, cells in enumerate(rows):
        for column, text in enumerate(cells):
            x, y = 150 + 300 * column, 300 + 80 * row
            pen.rectangle((x, y, x + 300, y + 80), outline=0, width=3)
            pen.text((x + 20, y + 22), text, font=font, fill=0)

    def draw(canvas: Canvas) -> None:
        canvas.drawImage(ImageReader(page), 0, 0, *A4)

    document = read(write_pdf(tmp_path / "a.pdf", draw))
    (table,) = document.texts(ElementKind.TABLE)
    assert table.split("\n") == [" | ".join(row) for row in rows]
    assert document.texts(ElementKind.TEXT) == ["The table below counts what is on the shelves."]


@needs_tesseract
def test_a_page_of_enormous_size_is_drawn_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    canvas = Canvas(str(path), pagesize=(14_400, 14_400))
    canvas.drawImage(
        ImageReader(picture(["This page is", "enormous"], size=(300, 200), x=20, y=60)), 0, 0, 14_400, 14_400
    )
    canvas.save()
    assert "enormous" in read(path).text.casefold()


def test_a_picture_without_letters_is_no_text(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.drawImage(ImageReader(Image.new("L", (200, 200), 120)), 0, 0, *A4)

    with pytest.raises(ParseFailed) as caught:
        read(write_pdf(tmp_path / "a.pdf", draw))
    assert caught.value.code in {ParseFailure.EMPTY, ParseFailure.UNSUPPORTED}


def test_without_tesseract_a_scanned_page_is_left_out(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", lines_page("Typed by hand."), scanned_page(*LINES))
    document = Document.of(list(parse_pdf(path, ParseOptions(), programs=NO_PROGRAMS)))
    assert document.text == "Typed by hand."
    assert document.parts[-1].page_count == 2


def test_without_tesseract_a_scanned_pdf_says_what_to_install(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", scanned_page(*LINES))
    with pytest.raises(ParseFailed, match="tesseract-ocr") as caught:
        list(parse_pdf(path, ParseOptions(), programs=NO_PROGRAMS))
    assert caught.value.code is ParseFailure.UNSUPPORTED


@needs_tesseract
def test_a_scan_in_a_language_that_is_not_installed_names_its_package(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", scanned_page(*LINES))
    with pytest.raises(ParseFailed, match="tesseract-ocr-tlh") as caught:
        read(path, ParseOptions(ocr_languages="eng+tlh"))
    assert caught.value.code is ParseFailure.UNSUPPORTED


def test_a_pdf_with_text_needs_no_ocr_language(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", lines_page("Typed by hand."))
    assert read(path, ParseOptions(ocr_languages="tlh")).text == "Typed by hand."
