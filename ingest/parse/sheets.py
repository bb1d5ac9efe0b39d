"""Reads CSV, TSV and Excel workbooks as rows that can be found and quoted one by one.

Where a table has a header row, each row reads "header: value; header: value": a row is found by its column's
name, and still says what its numbers are when it is quoted alone. Cells are shown as their sheet shows them.
unstructured is not asked for these: it sends cells through pandas, which turns 1000000 into 1000000.0 and
0.0000125 into 0.000013.
"""

import csv
import datetime as dt
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias

import openpyxl
import python_calamine

from ingest.elements import ElementKind, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.archives import InflationMeter, damaged
from ingest.parse.build import DocumentBuilder, Line
from ingest.parse.decoding import open_text
from ingest.parse.packages import encrypted, opened_ole, opened_package
from ingest.visible import clean

Row: TypeAlias = Sequence[str]


def parse_delimited(path: Path, _: ParseOptions, *, delimiter: str | None = None) -> Iterator[Parsed]:
    """CSV in any common encoding, row by row; the delimiter is found where none is given. Raises ParseFailed."""
    csv.field_size_limit(_MAX_CELL_CHARS)
    builder = DocumentBuilder()
    with open_text(path, newline="") as text:
        sample = text.read(_SAMPLE_CHARS)
        if sample.startswith("sep=") and sample[5:6] in {"\r", "\n"}:
            # Excel's own way to say it.
            delimiter, sample = sample[4], sample[5:].lstrip("\r\n")
        lines = _lines(sample, text)
        try:
            yield from _tables(
                builder, csv.reader(lines, delimiter=delimiter or _delimiter(sample)), page=None
            )
        except csv.Error as error:
            raise ParseFailed(
                ParseFailure.CORRUPT,
                f"This is not a readable CSV file ({error}). Export it again in UTF-8.",
            ) from error
    yield from builder.finish()


def parse_xlsx(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """The visible sheets of an Excel workbook, with the values last computed. Raises ParseFailed."""
    builder = DocumentBuilder()
    # By its bytes: of a path openpyxl wants the right ending, which stored files do not have.
    with opened_package(path, options.password) as package, package.open("rb") as file:
        meter = InflationMeter(package.stat().st_size)
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        for number, sheet in enumerate(workbook.worksheets, start=1):
            if sheet.sheet_state != "visible":
                continue
            # A file may claim a million columns that it does not have.
            sheet.reset_dimensions()
            rows = ([_shown(cell.value, cell.number_format) for cell in row] for row in sheet.iter_rows())
            yield from _sheet(builder, sheet.title, number, _metered(rows, meter))
        yield from builder.finish(page_count=len(workbook.worksheets))


def parse_xls(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """The visible sheets of an Excel 97-2003 workbook. Raises ParseFailed."""
    with opened_ole(path, options.password) as opened:
        yield from _calamine_sheets(opened)


def parse_ods(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """The visible sheets of an OpenDocument spreadsheet. Raises ParseFailed."""
    with opened_package(path, options.password) as package:
        yield from _calamine_sheets(package)


def _calamine_sheets(path: Path) -> Iterator[Parsed]:
    try:
        workbook = python_calamine.CalamineWorkbook.from_path(str(path))
    except python_calamine.PasswordError as error:
        raise encrypted(None) from error
    except python_calamine.CalamineError as error:
        raise damaged() from error
    builder = DocumentBuilder()
    meter = InflationMeter(path.stat().st_size)
    for number, sheet in enumerate(workbook.sheets_metadata, start=1):
        if sheet.visible is python_calamine.SheetVisibleEnum.Visible:
            cells = workbook.get_sheet_by_name(sheet.name)
            rows = ([_shown(value, "General") for value in row] for row in cells.iter_rows())
            yield from _sheet(builder, sheet.name, number, _metered(rows, meter))
    yield from builder.finish(page_count=len(workbook.sheets_metadata))


def _metered(rows: Iterable[Row], meter: InflationMeter) -> Iterator[Row]:
    """A workbook stores a text once and may show it in a million cells."""
    for row in rows:
        meter.add(sum(map(len, row)))
        yield row


def _sheet(builder: DocumentBuilder, title: str, number: int, rows: Iterable[Row]) -> Iterator[Parsed]:
    builder.close_headings()
    builder.add_heading([Line(title, number)], level=0)
    yield from _tables(builder, rows, page=number)


_SAMPLE_CHARS = 1 << 16
_MAX_CELL_CHARS = 16 << 20


def _lines(sample: str, text: TextIO) -> Iterator[str]:
    """The lines of what was read already, the last one with its rest, and then those that follow."""
    if sample.endswith("\r"):
        sample += text.read(1)
    lines = list(io.StringIO(sample, newline=""))
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += text.readline(_MAX_CELL_CHARS)
    yield from lines
    while line := text.readline(_MAX_CELL_CHARS):
        if len(line) == _MAX_CELL_CHARS:
            raise ParseFailed(
                ParseFailure.TOO_LARGE,
                f"A line of this table has more than {_MAX_CELL_CHARS:,} characters. Export it again in lines.",
            )
        yield line


def _delimiter(text: str) -> str:
    """The candidate that parts the first lines into the same number of cells, the most of them."""
    sample = text[:16384].splitlines()[:20]

    def evenness(delimiter: str) -> tuple[int, int]:
        widths = [len(row) for row in csv.reader(sample, delimiter=delimiter)]
        commonest = max(set(widths), key=lambda width: (widths.count(width), width), default=1)
        return (widths.count(commonest) if commonest > 1 else 0, commonest)

    return max(",;\t|", key=evenness)


def _tables(builder: DocumentBuilder, rows: Iterable[Row], *, page: int | None) -> Iterator[Parsed]:
    """Adds each run of rows between empty rows as a table, and lone cells above one as text.

    A long table is added in several blocks: its rows say what their cells are.
    """
    for is_table, run in itertools.groupby(map(_tidied, rows), key=bool):
        if not is_table:
            continue
        beginning = list(itertools.islice(run, _HEADER_WITHIN_ROWS))
        if any(len(row) > 1 for row in beginning):
            while sum(map(bool, beginning[0])) == 1:
                builder.add(ElementKind.TEXT, [Line(" ".join(filter(None, beginning.pop(0))), page)])
        header = beginning.pop(0) if _is_header(beginning[0]) else None
        lines = [Line(" | ".join(header), page)] if header else []
        characters = 0
        for row in itertools.chain(beginning, run):
            lines.append(Line(_row_text(row, header), page))
            characters += len(lines[-1].text)
            if characters > _BLOCK_CHARS:
                builder.add(ElementKind.TABLE, lines)
                yield from builder.ready()
                lines, characters = [], 0
        builder.add(ElementKind.TABLE, lines)
        yield from builder.ready()


_HEADER_WITHIN_ROWS = 5
_BLOCK_CHARS = 50_000


def _tidied(row: Row) -> Row:
    cells = [" ".join(clean(cell).split()) for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


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
