"""The words that tesseract finds in a picture, and how it is bounded."""

import pytest
from PIL import Image

from ingest.elements import ParseFailed, ParseFailure
from ingest.parse.ocr import PROGRAMS, Tesseract
from tests.ingest.pdf_files import needs_tesseract, picture

pytestmark = [needs_tesseract, pytest.mark.slow]


@pytest.fixture
def tesseract() -> Tesseract:
    found = Tesseract.find("eng", programs=PROGRAMS)
    assert found is not None
    return found


def test_each_word_has_its_box_in_pixels(tesseract: Tesseract) -> None:
    (line,) = tesseract.read(picture(["Nobody enters alone"]), dots_per_inch=150)
    assert line.text == "Nobody enters alone"
    assert [word.text for word in line.words] == ["Nobody", "enters", "alone"]
    assert line.words[0].x0 == pytest.approx(150, abs=4)
    assert line.y0 == pytest.approx(155, abs=8)
    assert line.words[0].x1 < line.words[1].x0


def test_a_wide_gap_parts_a_line(tesseract: Tesseract) -> None:
    page = picture(["Lamps", "Ladders", "Pens"])
    page.paste(picture(["1,210", "310", "720"], size=(200, 200), x=0, y=0), (700, 150))
    assert [segment.text for segment in tesseract.read(page, dots_per_inch=150)][:2] == ["Lamps", "1,210"]


def test_paragraphs_are_told_apart(tesseract: Tesseract) -> None:
    page = picture(
        [
            "The strongroom lies below the hill",
            "and its key hangs in the hall.",
            "",
            "",
            "Nobody enters it alone.",
        ]
    )
    lines = tesseract.read(page, dots_per_inch=150)
    assert lines[0].paragraph == lines[1].paragraph != lines[2].paragraph


def test_an_even_surface_has_no_words(tesseract: Tesseract) -> None:
    assert tesseract.read(Image.new("L", (400, 400), 90), dots_per_inch=150) == []


def test_a_page_that_takes_too_long_is_given_up(tesseract: Tesseract) -> None:
    with pytest.raises(ParseFailed, match="took more than") as caught:
        tesseract.read(picture(["Nobody enters alone"] * 30), dots_per_inch=150, timeout_s=0.01)
    assert caught.value.code is ParseFailure.LIMIT
