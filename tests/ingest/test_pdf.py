"""PDFs with a text layer: what is read, where it stands, in how much memory, and how bad files end."""

import tracemalloc
from pathlib import Path

import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

from ingest.elements import ElementKind, ParsedPart, ParseFailed, ParseFailure, ParseOptions, Progress
from ingest.parse.pdf import parse_pdf
from tests.ingest.pdf_files import PROSE, draw_lines, lines_page, read, wrapped, write_pdf

PAGE_HEIGHT = 841.9


def test_a_word_has_its_page_and_a_box_from_the_upper_left_corner(tmp_path: Path) -> None:
    path = write_pdf(
        tmp_path / "a.pdf", lines_page("On the first."), lines_page("The key hangs in the hall.")
    )
    place = read(path).place_of("The key")
    assert place.page == 2
    assert place.box is not None
    # Drawn at 72 from the left, on a base line 760 above the lower edge, in letters of 10 points.
    assert place.box.x0 == pytest.approx(72, abs=1)
    assert place.box.y0 == pytest.approx(PAGE_HEIGHT - 760 - 8, abs=2)
    assert place.box.y1 == pytest.approx(PAGE_HEIGHT - 760 + 2, abs=2)
    assert place.box.x1 == pytest.approx(
        72 + stringWidth("The key hangs in the hall.", "Helvetica", 10), abs=1
    )


def test_boxes_on_a_turned_page_lie_as_the_reader_sees_it(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setPageRotation(90)
        canvas.translate(100, 100)
        canvas.rotate(90)
        canvas.drawString(50, 0, "Read me upright")

    place = read(write_pdf(tmp_path / "a.pdf", draw)).place_of("Read me upright")
    assert place.box is not None
    # The page is shown turned by 90 degrees clockwise: x is the PDF's y, and y its x.
    assert place.box.x0 == pytest.approx(150, abs=2)
    assert place.box.y1 == pytest.approx(100, abs=4)
    assert place.box.x1 - place.box.x0 > 4 * (place.box.y1 - place.box.y0)


def test_lines_of_a_paragraph_are_one_element_and_paragraphs_are_apart(tmp_path: Path) -> None:
    lines = wrapped(PROSE, 90)
    first, second = lines[:3], lines[3:]

    def draw(canvas: Canvas) -> None:
        draw_lines(first, canvas, y=760)
        draw_lines(second, canvas, y=700)

    document = read(write_pdf(tmp_path / "a.pdf", draw))
    assert document.texts(ElementKind.TEXT) == [" ".join(first), " ".join(second)]


def test_a_bullet_that_stands_apart_belongs_to_its_line(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        for index, text in enumerate(["Lamps and oil", "Ink, two jars", "A ladder"]):
            canvas.drawString(72, 700 - 14 * index, "•")
            canvas.drawString(100, 700 - 14 * index, text)

    document = read(write_pdf(tmp_path / "a.pdf", draw))
    assert document.texts(ElementKind.LIST_ITEM) == ["• Lamps and oil", "• Ink, two jars", "• A ladder"]


def test_larger_type_heads_what_follows(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica-Bold", 20)
        canvas.drawString(72, 780, "The strongroom")
        canvas.setFont("Helvetica-Bold", 14)
        canvas.drawString(72, 740, "Opening hours")
        canvas.setFont("Helvetica", 10)
        draw_lines(wrapped(PROSE, 90), canvas, y=715)

    document = read(write_pdf(tmp_path / "a.pdf", draw))
    assert document.element_with("The archive was built").headings == ("The strongroom", "Opening hours")
    assert document.parts[-1].title == "The strongroom"


def test_a_lone_larger_sentence_or_bullet_is_no_heading(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        draw_lines(wrapped(PROSE * 2, 90), canvas, y=780)
        canvas.setFont("Helvetica", 12)
        canvas.drawString(72, 600, "GAAP income was 181 million dollars in the quarter.")
        canvas.drawString(72, 570, "• Seventy thousand for new shelves")

    assert read(write_pdf(tmp_path / "a.pdf", draw)).texts(ElementKind.HEADING) == []


def test_three_hundred_pages_take_little_more_memory_than_thirty(tmp_path: Path) -> None:
    # Few long words: tracing what each of them allocates takes most of the time.
    lines = ["Rindfleischetikettierungsueberwachung " * 3] * 20
    peaks = []
    for pages in (30, 300):
        path = write_pdf(
            tmp_path / f"{pages}.pdf", *[lines_page(f"Page {page}", *lines) for page in range(pages)]
        )
        tracemalloc.start()
        found = parts = characters = 0
        for parsed in parse_pdf(path, ParseOptions()):
            found += isinstance(parsed, Progress)
            if isinstance(parsed, ParsedPart):
                parts, characters = parts + 1, characters + len(parsed.text)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found == pages
        assert characters > 2000 * pages
    assert parts > 1
    # A part of some 220 such pages is held, and the pages around the one at hand; not all that went before.
    assert peaks[1] < 5 * peaks[0]
    assert peaks[1] < 24 << 20


def test_progress_is_told_page_by_page_and_parts_know_the_number_of_pages(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", *[lines_page(f"This is page {page}.") for page in range(1, 41)])
    found = list(parse_pdf(path, ParseOptions()))
    assert [step for step in found if isinstance(step, Progress)] == [
        Progress(page, 40) for page in range(1, 41)
    ]
    (part,) = (part for part in found if isinstance(part, ParsedPart))
    assert (part.page_count, part.pages_done) == (40, 40)


def write_locked(path: Path, encryption: StandardEncryption) -> Path:
    canvas = Canvas(str(path), encrypt=encryption)
    canvas.drawString(72, 700, "The combination is in the safe.")
    canvas.save()
    return path


def test_a_pdf_with_a_password_opens_with_it(tmp_path: Path) -> None:
    path = write_locked(tmp_path / "a.pdf", StandardEncryption("open sesame", strength=128))
    assert read(path, ParseOptions(password="open sesame")).text == "The combination is in the safe."


@pytest.mark.parametrize(
    ("password", "told"), [(None, "again with the field `password`"), ("wrong", "does not open the PDF")]
)
def test_a_pdf_that_stays_locked_says_what_to_do(tmp_path: Path, password: str | None, told: str) -> None:
    path = write_locked(tmp_path / "a.pdf", StandardEncryption("open sesame", strength=128))
    with pytest.raises(ParseFailed, match=told) as caught:
        read(path, ParseOptions(password=password))
    assert caught.value.code is ParseFailure.ENCRYPTED


def test_a_pdf_that_anyone_may_read_opens_whatever_the_password(tmp_path: Path) -> None:
    locked_for_changes = StandardEncryption("", ownerPassword="owner", strength=128)
    path = write_locked(tmp_path / "a.pdf", locked_for_changes)
    assert "combination" in read(path, ParseOptions(password="of another file")).text


@pytest.mark.parametrize(
    "content", [b"%PDF-1.7\n", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>"]
)
def test_a_pdf_without_pages_is_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    with pytest.raises(ParseFailed) as caught:
        read(path)
    assert caught.value.code is ParseFailure.CORRUPT


def test_an_empty_page_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ParseFailed) as caught:
        read(write_pdf(tmp_path / "a.pdf", lambda _: None))
    assert caught.value.code is ParseFailure.EMPTY


def test_a_broken_page_does_not_cost_the_others(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", *[lines_page(f"Page {page} is whole.") for page in range(1, 4)])
    kids = path.read_bytes()
    # The second page's object becomes a number.
    start = kids.index(b"/Contents", kids.index(b"/Contents") + 1)
    begin = kids.rindex(b"<<", 0, start)
    end = kids.index(b"endobj", start)
    path.write_bytes(kids[:begin] + b"7".ljust(end - begin) + kids[end:])
    assert [text for text in ("Page 1", "Page 2", "Page 3") if text in read(path).text] == [
        "Page 1",
        "Page 3",
    ]
