"""Real PDFs and pictures, read by eye first: their tables, columns, headings and words by OCR."""

from functools import cache
from pathlib import Path

import pytest

from ingest.elements import ElementKind, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.images import parse_image
from tests.ingest.pdf_files import Document, needs_tesseract, read

pytestmark = pytest.mark.slow

SHARED = Path(__file__).parents[3] / "shared" / "data"
BY_FORMAT = SHARED / "docs_by_format"
REPORTS = SHARED / "financebench" / "pdfs"

needs_files = pytest.mark.skipif(not BY_FORMAT.exists(), reason="docs_by_format is not on this machine")
needs_reports = pytest.mark.skipif(not REPORTS.exists(), reason="financebench is not on this machine")


@cache
def pdf(name: str) -> Document:
    return read(BY_FORMAT / "pdf" / name)


def rows_of(document: Document) -> list[str]:
    return [row for table in document.texts(ElementKind.TABLE) for row in table.split("\n")]


@needs_files
@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("sample-files__crazyones-pdfa.pdf", "The round pegs in the square holes."),
        ("sample-files__multicolumn.pdf", "Lorem ipsum dolor sit amet, consectetuer adipiscing elit."),
        ("sample-files__habibi.pdf", "habibi"),
        ("sample-files__pdflatex-forms.pdf", "Submit"),
        ("unstructured__chevron-page.pdf", "We’re investing to grow in the Eastern Mediterranean"),
        (
            "unstructured__interface-config-guide-p93.pdf",
            "Multiple PXCs on the same underlying cross-connect",
        ),
        (
            "unstructured__list-item-example.pdf",
            "● What is product development and quality assurance, and who is involved?",
        ),
        ("unstructured__reliance.pdf", "Shri Mukesh D. Ambani"),
        ("docling__attending_to_head2_new.pdf", "but its application should be just"),
        ("docling__anaphora_resolution2_new.pdf", "Input-Input Layer5"),
        (
            "docling__making_more_difficult5_new.pdf",
            "a majority of American governments have passed new laws since 2009",
        ),
    ],
)
def test_a_pdf_has_the_words_that_it_shows(name: str, phrase: str) -> None:
    assert phrase in pdf(name).text


@needs_files
def test_a_paper_s_table_without_lines_down_is_rows() -> None:
    rows = rows_of(pdf("unstructured__embedded-images-tables.pdf"))
    assert "2 | 1.9460 | 0.0596 | 0.8276 | 0.0002 | 121.440 | 1.5054" in rows
    assert "10 | 0.0382 | 0.0086 | 0.5356 | 1.24E-05 | 246.080 | 0.0919" in rows


@needs_files
def test_a_table_within_columns_of_text_is_all_the_tables_there() -> None:
    assert rows_of(pdf("sample-files__multicolumn.pdf")) == [
        "Country | Population (millions) | Area (km2 ) | Capital | Official Language",
        "Austria | 8.9 | 83,879 | Vienna | German",
        "Belgium | 11.5 | 30,689 | Brussels | Dutch, French, German",
        "Czech Republic | 10.7 | 78,866 | Prague | Czech",
        "Denmark | 5.8 | 42,951 | Copenhagen | Danish",
        "Finland | 5.5 | 338,424 | Helsinki | Finnish, Swedish",
    ]


@needs_files
@pytest.mark.parametrize("name", ["unstructured__list-item-example.pdf", "unstructured__chevron-page.pdf"])
def test_columns_of_text_are_no_table(name: str) -> None:
    assert rows_of(pdf(name)) == []


@needs_files
def test_lists_side_by_side_are_read_one_after_the_other() -> None:
    text = pdf("unstructured__list-item-example.pdf").text
    asked = [
        "Module One",
        "What are product types?",
        "Module Two",
        "Who should lead",
        "Module Three",
        "The role of the design team",
    ]
    assert [text.index(phrase) for phrase in asked] == sorted(text.index(phrase) for phrase in asked)


@needs_reports
def test_an_earnings_release_keeps_its_statements_and_its_outline() -> None:
    document = read(REPORTS / "AMCOR_2023Q4_EARNINGS.pdf")
    assert {
        "($ million, except per share amounts) | 2022 | 2023 | 2022 | 2023",
        "Net sales | 3,909 | 3,673 | 14,544 | 14,694",
        "Cost of sales | (3,115) | (2,951) | (11,724) | (11,969)",
    } <= set(rows_of(document))
    statement = document.element_with("Net sales | 3,909")
    assert statement.headings[0] == "GAAP Statement of Income"
    assert statement.places[0].page == 8
    assert "Outlook and Other" in document.texts(ElementKind.HEADING)


@needs_reports
def test_a_quarterly_report_keeps_its_statements() -> None:
    document = read(REPORTS / "BESTBUY_2024Q2_10Q.pdf")
    assert {
        "July 29, 2023 | July 30, 2022 | July 29, 2023 | July 30, 2022",
        "Revenue | $ 9,583 | $ 10,329 | $ 19,050 | $ 20,976",
        # Shaded in parts, each of which looks like a table of its own.
        "Comprehensive income | $ 279 | $ 306 | $ 518 | $ 646",
    } <= set(rows_of(document))
    # Words with a coloured ground, which look like the cells of a grid.
    assert (
        "In the first quarter of fiscal 2024, we adopted Accounting Standards Update 2022-04" in document.text
    )


@needs_files
@needs_tesseract
@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        (
            "png/unstructured__DA-1p.png",
            "It is known that mages are able to walk the Fade while completely aware",
        ),
        ("webp/docling__webp-test.webp", "Docling bundles PDF document conversion to"),
        (
            "png/unstructured__table-multi-row-column-cells.png",
            "Mobility | 3 | 3 | 0 | 95.4%, n=3 | 1416 sec, n=3",
        ),
    ],
)
def test_a_picture_has_the_words_that_it_shows(name: str, phrase: str) -> None:
    assert phrase in Document.of(list(parse_image(BY_FORMAT / name, ParseOptions()))).text


@needs_files
@needs_tesseract
@pytest.mark.parametrize("name", ["jpg/unstructured__example.jpg", "bmp/unstructured__bmp_24.bmp"])
def test_a_picture_of_a_flower_or_of_colours_has_no_text(name: str) -> None:
    with pytest.raises(ParseFailed) as caught:
        list(parse_image(BY_FORMAT / name, ParseOptions()))
    assert caught.value.code is ParseFailure.EMPTY
