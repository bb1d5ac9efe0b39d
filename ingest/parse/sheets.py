"""Reads CSV, TSV and Excel workbooks as rows that can be found and quoted one by one.

Where a table has a header row, each row reads "header: value; header: value": a row is found by its column's
name, and still says what its numbers are when it is quoted alone. Cells are shown as their sheet shows them.
unstructured is not asked for these: it sends cells through pandas, which turns 1000000 into 1000000.0 and
0.0000125 into 0.000013.
"""

import csv
import datetime as dt
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import openpyxl

from ingest.elements import ElementKind, ParsedDocument, ParseFailed, ParseFailure
from ingest.parse.archives import check_archive
from ingest.parse.build import DocumentBuilder, Line, check_length, clean
from ingest.parse.plain import read_text

Row: TypeAlias = Sequence[str]


def parse_delimited(path: Path, *, delimiter: str | None = None) -> ParsedDocument:
    """CSV in any common encoding; the delimiter is found where none is given. Raises ParseFailed."""
    text = read_text(path)
    # The csv module refuses cells above 128 KiB; what is in memory already may as well be read.
    csv.field_size_limit(max(len(text), 1))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or _delimiter(text))
    builder = DocumentBuilder()
    try:
        _add_tables(builder, rows, page=None)
    except csv.Error as error:
        raise ParseFailed(
            ParseFailure.CORRUPT,
            f"This is not a readable CSV file ({error}). Export it again in UTF-8.",
        ) from error
    return builder.build()


def parse_workbook(path: Path) -> ParsedDocument:
    """The visible sheets of an Excel workbook, with the values last computed. Raises ParseFailed."""
    check_archive(path)
    builder = DocumentBuilder()
    # By its bytes: of a path openpyxl wants the right ending, which blobs do not have.
    with path.open("rb") as file:
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        for number, sheet in enumerate(workbook.worksheets, start=1):
            if sheet.sheet_state != "visible":
                continue
            # A file may claim a million columns that it does not have.
            sheet.reset_dimensions()
            builder.close_headings()
            builder.add_heading([Line(sheet.title, number)], level=0)
            rows = ([_shown(cell.value, cell.number_format) for cell in row] for row in sheet.iter_rows())
            _add_tables(builder, rows, page=number)
    return builder.build(page_count=len(workbook.worksheets))


def _delimiter(text: str) -> str:
    """The candidate that parts the first lines into the same number of cells, the most of them."""
    sample = text[:16384].splitlines()[:20]

    def evenness(delimiter: str) -> tuple[int, int]:
        widths = [len(row) for row in csv.reader(sample, delimiter=delimiter)]
        commonest = max(set(widths), key=lambda width: (widths.count(width), width), default=1)
        return (widths.count(commonest) if commonest > 1 else 0, commonest)

    return max(",;\t|", key=evenness)


def _add_tables(builder: DocumentBuilder, rows: Iterable[Row], *, page: int | None) -> None:
    """Adds each run of rows between empty rows as a table, and lone cells above one as text."""
    for table in _runs(rows):
        is_list = max(map(len, table)) == 1
        lines: list[Line] = []
        header: Row | None = None
        for position, row in enumerate(table):
            filled = [cell for cell in row if cell]
            if header is None and not lines and len(filled) == 1 and not is_list:
                builder.add(ElementKind.TEXT, [Line(filled[0], page)])
            elif header is None and position < _HEADER_WITHIN_ROWS and not lines and _is_header(row):
                header = row
                lines.append(Line(" | ".join(filled), page))
            else:
                lines.append(Line(_row_text(row, header), page))
        builder.add(ElementKind.TABLE, lines)


_HEADER_WITHIN_ROWS = 5


def _runs(rows: Iterable[Row]) -> Iterator[list[Row]]:
    run: list[Row] = []
    characters = 0
    for row in rows:
        cells = [" ".join(clean(cell).split()) for cell in row]
        # A workbook stores a text once and may show it in a million cells.
        characters += sum(map(len, cells))
        check_length(characters)
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            run.append(cells)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _is_header(row: Row) -> bool:
    """True for a row of different names: no cell empty, none a number, none as long as a sentence."""
    return (
        len(row) > 1
        and len(set(row)) == len(row)
        and all(cell and len(cell) <= _MAX_NAME_CHARS and not _is_number(cell) for cell in row)
    )


_MAX_NAME_CHARS = 60


def _is_number(cell: str) -> bool:
    has_digit = any(character.isdigit() for character in cell)
    return has_digit and not any(character.isalpha() for character in cell)


def _row_text(row: Row, header: Row | None) -> str:
    if header is None:
        return " | ".join(cell for cell in row if cell)
    named = [f"{name}: {cell}" for name, cell in zip(header, row, strict=False) if cell]
    return "; ".join([*named, *(cell for cell in row[len(header) :] if cell)])


def _shown(value: object, number_format: str) -> str:
    """A cell's value as Excel shows it, for the commonest formats; others show the value itself."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, dt.datetime):
        at_midnight = value.time() == dt.time()
        return value.date().isoformat() if at_midnight else value.isoformat(" ", "seconds")
    if isinstance(value, (int, float)):
        return _shown_number(value, number_format)
    return str(value)


def _shown_number(value: float, number_format: str) -> str:
    decimals = len(number_format.partition(".")[2]) - len(number_format.partition(".")[2].lstrip("0"))
    if number_format.endswith("%"):
        return f"{value:.{decimals}%}"
    if number_format in _GROUPED_FORMATS:
        return f"{value:,.{decimals}f}"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return format(value, ".15g") if isinstance(value, float) else str(value)


_GROUPED_FORMATS = {"#,##0", "#,##0.0", "#,##0.00"}
