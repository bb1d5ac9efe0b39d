"""A PDF's outline gives its headings: at the levels that its author chose, where the entries point to."""

from collections.abc import Callable, Sequence
from pathlib import Path

from reportlab.pdfgen.canvas import Canvas

from ingest.elements import ElementKind
from tests.ingest.pdf_files import PROSE, draw_lines, read, wrapped, write_pdf


def entry(canvas: Canvas, title: str, *, level: int, top: float | None = None) -> None:
    """Adds a bookmark to the page at hand."""
    key = f"{title}-{canvas.getPageNumber()}"
    if top is None:
        canvas.bookmarkPage(key)
    else:
        canvas.bookmarkPage(key, fit="XYZ", left=0, top=top)
    canvas.addOutlineEntry(title, key, level)


def section(title: str, text: Sequence[str], *, level: int, name: str = "") -> Callable[[Canvas], None]:
    """A page whose heading looks like its text."""

    def draw(canvas: Canvas) -> None:
        entry(canvas, name or title, level=level, top=775)
        draw_lines([title], canvas, y=760)
        draw_lines(text, canvas, y=720)

    return draw


def test_lines_that_the_outline_names_are_headings_of_its_levels(tmp_path: Path) -> None:
    path = write_pdf(
        tmp_path / "a.pdf",
        section("The vault", ["It is dry."], level=0),
        section("Its doors", ["There are two."], level=1),
        section("The hall", ["It is cold."], level=0),
    )
    document = read(path)
    assert document.texts(ElementKind.HEADING) == ["The vault", "Its doors", "The hall"]
    assert document.element_with("There are two.").headings == ("The vault", "Its doors")
    assert document.element_with("It is cold.").headings == ("The hall",)


def test_a_heading_is_found_though_only_one_of_them_has_its_number(tmp_path: Path) -> None:
    path = write_pdf(
        tmp_path / "a.pdf",
        section("1.2 The vault", ["It is dry."], level=0, name="The vault"),
        section("The hall", ["It is cold."], level=0, name="Chapter 2: The hall"),
    )
    assert read(path).texts(ElementKind.HEADING) == ["1.2 The vault", "The hall"]


def test_an_entry_whose_words_are_not_on_the_page_stands_where_it_points_to(tmp_path: Path) -> None:
    lines = wrapped(PROSE, 90)

    def draw(canvas: Canvas) -> None:
        draw_lines(lines, canvas, y=780)
        entry(canvas, "Of mice", level=0, top=655)
        draw_lines(["They take what they find."], canvas, y=640)

    document = read(write_pdf(tmp_path / "a.pdf", draw))
    assert document.element_with("The archive was built").headings == ()
    assert document.element_with("They take").headings == ("Of mice",)


def test_type_tells_what_stands_below_the_outline_s_headings(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        entry(canvas, "The vault", level=0, top=800)
        draw_lines(["The vault"], canvas, y=780)
        canvas.setFont("Helvetica-Bold", 18)
        canvas.drawString(72, 750, "Its doors")
        canvas.setFont("Helvetica", 10)
        draw_lines(wrapped(PROSE, 90), canvas, y=720)

    assert read(write_pdf(tmp_path / "a.pdf", draw)).element_with("The archive was").headings == (
        "The vault",
        "Its doors",
    )


def test_bookmarks_that_only_number_the_pages_are_no_headings(tmp_path: Path) -> None:
    def numbered(canvas: Canvas) -> None:
        entry(canvas, f"Page {canvas.getPageNumber()}", level=0)
        draw_lines(["Words."], canvas)

    assert read(write_pdf(tmp_path / "a.pdf", numbered, numbered)).texts(ElementKind.HEADING) == []


def test_an_outline_that_runs_in_circles_ends(tmp_path: Path) -> None:
    bookmark = "<</Title ({title})/Parent 4 0 R/Next {next} 0 R/First {first} 0 R/Dest [3 0 R /Fit]>>"
    path = tmp_path / "a.pdf"
    path.write_bytes(
        raw_pdf(
            "<</Type/Catalog/Pages 2 0 R/Outlines 4 0 R>>",
            "<</Type/Pages/Count 1/Kids[3 0 R]>>",
            "<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 7 0 R/Resources<</Font<</F 8 0 R>>>>>>",
            "<</Type/Outlines/First 5 0 R/Last 6 0 R/Count 2>>",
            bookmark.format(title="Up", next=6, first=6),
            bookmark.format(title="Down", next=5, first=5),
            "<</Length 42>>stream\nBT /F 12 Tf 72 700 Td (All is well.) Tj ET\nendstream",
            "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        )
    )
    document = read(path)
    assert "All is well." in document.text
    assert 1 <= len(document.texts(ElementKind.HEADING)) <= 4


def raw_pdf(*objects: str) -> bytes:
    """A PDF of these objects, numbered from 1; the first is its catalog."""
    content = b"%PDF-1.7\n"
    offsets = []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(content))
        content += f"{number} 0 obj{text}endobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return (
        content
        + f"{head}trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(content)}\n%%EOF".encode()
    )
