"""Tables in PDFs: drawn with lines or set in columns, each row a line; running text never becomes one."""

from functools import partial
from pathlib import Path

import pytest
from reportlab.lib import colors
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Table, TableStyle

from ingest.elements import ElementKind
from tests.ingest.pdf_files import PROSE, draw_lines, lines_page, read, wrapped, write_pdf

SHELVES = [["Shelf", "Keeper", "Since"], ["North", "Ada Quill", "1998"], ["South", "Bram Oyelaran", "2007"]]
STATEMENT = [
    ("Net sales", "32,765", "31,657", "30,109"),
    ("Cost of sales", "16,682", "16,055", "15,118"),
    ("Selling, general and administrative expenses", "7,602", "6,626", "6,311"),
    ("Gain on sale of businesses", "(547)", "(586)", "—"),
]
ROWS = [" | ".join(row) for row in SHELVES]


def draw_table(
    canvas: Canvas, rows: list[list[str]], *commands: tuple[object, ...], x: float = 72, y: float = 600
) -> None:
    table = Table(rows, style=TableStyle(list(commands)))
    table.wrapOn(canvas, 400, 400)
    table.drawOn(canvas, x, y)


def draw_statement(canvas: Canvas, *, x: float = 72, y: float = 700) -> None:
    for column, year in enumerate(("2018", "2017", "2016")):
        canvas.drawRightString(x + 300 + 60 * column, y + 14, year)
    for index, (label, *figures) in enumerate(STATEMENT):
        canvas.drawString(x, y - 14 * index, label)
        for column, figure in enumerate(figures):
            canvas.drawRightString(x + 300 + 60 * column, y - 14 * index, figure)
            if index == 0:
                canvas.drawString(x + 260 + 60 * column, y, "$")


def draw_grid(canvas: Canvas, rows: list[list[str]] = SHELVES) -> None:
    draw_table(canvas, rows, ("GRID", (0, 0), (-1, -1), 0.5, colors.black))


def test_a_table_drawn_with_lines_is_a_line_for_each_row(tmp_path: Path) -> None:
    document = read(write_pdf(tmp_path / "a.pdf", draw_grid))
    (table,) = document.texts(ElementKind.TABLE)
    assert table.split("\n") == ROWS
    assert len({place.box for place in document.elements[0].places}) == len(ROWS)


def test_the_lines_of_a_cell_stay_in_their_cell(tmp_path: Path) -> None:
    rows = [
        ["Duty", "Who"],
        ["Carry the lamps down to the lower\nvault before the gates are opened", "The porter and\nhis boy"],
        ["Sign the book", "All"],
    ]
    (table,) = read(write_pdf(tmp_path / "a.pdf", partial(draw_grid, rows=rows))).texts(ElementKind.TABLE)
    assert table.split("\n")[1] == (
        "Carry the lamps down to the lower vault before the gates are opened | The porter and his boy"
    )


def test_a_table_of_filled_cells_is_one_too(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        for row, cells in enumerate(SHELVES):
            for column, text in enumerate(cells):
                canvas.setFillGray(0.9)
                canvas.rect(72 + 100 * column, 600 - 20 * row, 100, 20, stroke=0, fill=1)
                canvas.setFillGray(0)
                canvas.drawString(76 + 100 * column, 606 - 20 * row, text)

    (table,) = read(write_pdf(tmp_path / "a.pdf", draw)).texts(ElementKind.TABLE)
    assert table.split("\n") == ROWS


def test_figures_below_each_other_are_a_table_without_any_line(tmp_path: Path) -> None:
    (table,) = read(write_pdf(tmp_path / "a.pdf", draw_statement)).texts(ElementKind.TABLE)
    assert table.split("\n") == [
        "2018 | 2017 | 2016",
        "Net sales | $ 32,765 | $ 31,657 | $ 30,109",
        "Cost of sales | 16,682 | 16,055 | 15,118",
        "Selling, general and administrative expenses | 7,602 | 6,626 | 6,311",
        "Gain on sale of businesses | (547) | (586) | —",
    ]


@pytest.mark.parametrize("gap", [40.0, 16.0])
def test_a_statement_has_its_name_above_it_as_its_heading(tmp_path: Path, gap: float) -> None:
    """Far above it, with what its figures are counted in, or as close as its own rows are."""
    names = ("The Archive Company", "Statement of operations", "(in thousands, except lamps)")
    shown = names if gap > 20 else names[:1]

    def draw(canvas: Canvas) -> None:
        draw_lines(wrapped(PROSE, 90), canvas, y=800)
        canvas.setFont("Helvetica-Bold", 10)
        for index, name in enumerate(shown):
            canvas.drawCentredString(260, 700 + gap + 12 * (len(shown) - 1 - index), name)
        canvas.setFont("Helvetica", 8 if gap < 20 else 10)
        for index, (label, *figures) in enumerate(STATEMENT):
            canvas.drawString(72, 700 - 14 * index, label)
            for column, figure in enumerate(figures):
                canvas.drawRightString(372 + 60 * column, 700 - 14 * index, figure)

    document = read(write_pdf(tmp_path / "a.pdf", draw))
    (table,) = document.texts(ElementKind.TABLE)
    assert table.startswith("Net sales | ")
    assert document.element_with("Cost of sales").headings == (" ".join(shown),)


def test_words_in_three_columns_are_a_table(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        for row, cells in enumerate([*SHELVES, ["West", "Cato Lind", "never"]]):
            for column, text in enumerate(cells):
                canvas.drawString(72 + 140 * column, 600 - 16 * row, text)

    (table,) = read(write_pdf(tmp_path / "a.pdf", draw)).texts(ElementKind.TABLE)
    assert table.split("\n") == [*ROWS, "West | Cato Lind | never"]


def test_text_around_a_table_stays_text_in_its_place(tmp_path: Path) -> None:
    lines = wrapped(PROSE, 90)

    def draw(canvas: Canvas) -> None:
        draw_lines(lines, canvas, y=800)
        draw_statement(canvas)
        draw_lines(lines, canvas, y=600)

    document = read(write_pdf(tmp_path / "a.pdf", draw))
    assert [element.kind.value for element in document.elements] == ["text", "table", "text"]
    assert document.texts(ElementKind.TEXT) == [" ".join(lines)] * 2


def test_a_row_that_begins_in_lower_case_is_a_row_of_its_own(tmp_path: Path) -> None:
    rows = [["Item", "Count"], ["ink", "4 jars"], ["oil", "2 jars"]]
    (table,) = read(write_pdf(tmp_path / "a.pdf", partial(draw_grid, rows=rows))).texts(ElementKind.TABLE)
    assert table.split("\n") == ["Item | Count", "ink | 4 jars", "oil | 2 jars"]


def draw_columns(canvas: Canvas, *, columns: int, characters: int) -> None:
    lines = wrapped(PROSE * columns, characters)
    rows = -(-len(lines) // columns)
    for column in range(columns):
        draw_lines(lines[column * rows : (column + 1) * rows], canvas, x=60 + column * 490 / columns)


def draw_letters(canvas: Canvas) -> None:
    """Two addresses side by side, and a date."""
    draw_lines(["Ada Quill", "Keeper of the north shelf", "The Icehouse"], canvas)
    draw_lines(
        ["Bram Oyelaran, Esquire", "who keeps the shelf to the south", "and lives at the quay"], canvas, x=330
    )


def draw_references(canvas: Canvas) -> None:
    for index, line in enumerate(wrapped(PROSE, 70)):
        canvas.drawString(72, 700 - 12 * index, f"[{index + 1}]")
        canvas.drawString(100, 700 - 12 * index, line)


@pytest.mark.parametrize(
    "draw",
    [
        lines_page(*wrapped(PROSE * 4, 90)),
        partial(draw_columns, columns=2, characters=45),
        partial(draw_columns, columns=3, characters=28),
        draw_letters,
        draw_references,
    ],
    ids=["lines", "two columns", "three columns", "letters", "references"],
)
def test_running_text_is_never_a_table(tmp_path: Path, draw: partial[None]) -> None:
    assert read(write_pdf(tmp_path / "a.pdf", draw)).texts(ElementKind.TABLE) == []


def test_a_frame_around_two_columns_of_text_is_no_table(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.rect(55, 500, 490, 300)
        canvas.line(300, 500, 300, 800)
        canvas.line(55, 780, 545, 780)
        draw_columns(canvas, columns=2, characters=45)

    assert read(write_pdf(tmp_path / "a.pdf", draw)).texts(ElementKind.TABLE) == []
