"""The order in which a page with columns is read."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

from ingest.elements import ElementKind
from tests.ingest.pdf_files import PROSE, draw_lines, read, wrapped, write_pdf
from tests.ingest.test_pdf_tables import STATEMENT, draw_statement

Lines = list[tuple[float, float, str]]
"""x, y, text."""


def columns(count: int, characters: int, *, top: float = 700) -> tuple[Lines, str]:
    """Running text in columns, column after column, and how it reads."""
    lines = wrapped(PROSE * count, characters)
    rows = -(-len(lines) // count)
    placed = [
        (60 + 490 / count * (index // rows), top - 12 * (index % rows), line)
        for index, line in enumerate(lines)
    ]
    return placed, " ".join(lines)


def draw(canvas: Canvas, lines: Lines) -> None:
    for x, y, text in lines:
        canvas.drawString(x, y, text)


def by_column(lines: Lines) -> Lines:
    return lines


def by_row(lines: Lines) -> Lines:
    return sorted(lines, key=lambda line: (-line[1], line[0]))


def from_below(lines: Lines) -> Lines:
    return sorted(lines, key=lambda line: (line[1], -line[0]))


@pytest.mark.parametrize("drawn", [by_column, by_row, from_below])
@pytest.mark.parametrize(("count", "characters"), [(2, 48), (3, 30)])
def test_columns_are_read_one_after_the_other_however_the_file_draws_them(
    tmp_path: Path, drawn: Callable[[Lines], Lines], count: int, characters: int
) -> None:
    lines, text = columns(count, characters)
    document = read(write_pdf(tmp_path / "a.pdf", partial(draw, lines=drawn(lines))))
    assert " ".join(document.text.split()) == text


def test_what_spans_the_columns_is_read_between_those_above_and_below(tmp_path: Path) -> None:
    above, first = columns(2, 48, top=740)
    below, second = columns(2, 48, top=560)
    title = "A report on everything that was kept in the vault below the hill during the years of the flood"
    middle = (
        "The second part tells of the years after it, and of all those who came to see what had been saved"
    )
    lines = by_row([(60, 780, title), *above, (60, 600, middle), *below])
    document = read(write_pdf(tmp_path / "a.pdf", partial(draw, lines=lines)))
    assert " ".join(document.text.split()) == f"{title} {first} {middle} {second}"


def test_a_table_within_a_column_stays_with_its_column(tmp_path: Path) -> None:
    lines, _ = columns(2, 48)
    left = [line for line in lines if line[0] < 300]
    right = [line for line in lines if line[0] > 300]

    def draw_page(canvas: Canvas) -> None:
        draw(canvas, left)
        draw(canvas, [(x, y - 80, text) for x, y, text in right])
        for row, (label, figure) in enumerate(
            [("Lamps", "12"), ("Ladders", "3"), ("Jars of ink", "41"), ("Pens", "7")]
        ):
            canvas.drawString(320, 700 - 14 * row, label)
            canvas.drawRightString(480, 700 - 14 * row, figure)

    document = read(write_pdf(tmp_path / "a.pdf", draw_page))
    assert document.texts(ElementKind.TABLE) == ["Lamps | 12\nLadders | 3\nJars of ink | 41\nPens | 7"]
    assert " ".join(document.text.split()).startswith(" ".join(text for _, _, text in left))


def test_a_table_across_the_page_is_not_taken_for_columns(tmp_path: Path) -> None:
    document = read(write_pdf(tmp_path / "a.pdf", draw_statement))
    assert [document.text.index(row[0]) for row in STATEMENT] == sorted(
        document.text.index(row[0]) for row in STATEMENT
    )
    assert len(document.texts(ElementKind.TABLE)) == 1


def test_boxes_side_by_side_keep_their_lines_together(tmp_path: Path) -> None:
    left, right = ["2.5 kilograms", "of carbon in all"], ["One woman", "keeps the north shelf"]

    def draw_page(canvas: Canvas) -> None:
        draw_lines(left, canvas, x=72)
        draw_lines(right, canvas, x=320)

    text = read(write_pdf(tmp_path / "a.pdf", draw_page)).text
    assert " ".join(text.split()) == " ".join([*left, *right])


def test_a_word_broken_at_the_end_of_a_line_is_whole(tmp_path: Path) -> None:
    lines = [
        "The keepers of the vault have cata-",
        "logued the papers, and the libra-",
        "rian has checked their num-",
        "bers.",
    ]
    document = read(write_pdf(tmp_path / "a.pdf", partial(draw_lines, lines)))
    assert document.text == (
        "The keepers of the vault have catalogued the papers, and the librarian has checked their numbers."
    )


def test_a_hyphen_that_the_word_has_anyway_stays(tmp_path: Path) -> None:
    lines = ["The keepers of the vault made a long-", "term plan for the papers."]
    document = read(write_pdf(tmp_path / "a.pdf", partial(draw_lines, lines)))
    assert "a long-term plan" in document.text
