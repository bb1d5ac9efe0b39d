"""What every parser promises, on one small handbook written in each format: the pool is the Parser that others use."""

import email.message
import json
import re
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import docx
import openpyxl
import pptx
import pypandoc
import pytest
from docx.document import Document as WordDocument
from docx.enum.style import WD_STYLE_TYPE
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from msoffcrypto.format.ooxml import OOXMLFile
from reportlab.lib.pagesizes import A4
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from ingest.elements import ElementKind, ParsedPart, ParseFailed, ParseFailure, ParseOptions
from ingest.media_types import MediaType
from ingest.sandbox import ParserPool
from tests.ingest.reading import ReadDocument, read, read_as

TITLE = "Icehouse Handbook"
HOURS = "The vault opens at nine and closes at four."
HEADINGS = (TITLE, "Opening hours")
SHELVES = [("Shelf", "Keeper"), ("North", "Ada Quill"), ("South", "Bram Oyelaran")]
STAFF_TEXT = "Ask for the brass key."


@pytest.fixture(scope="session")
async def parsers() -> AsyncIterator[ParserPool]:
    async with ParserPool() as pool:
        yield pool


def write_docx(path: Path) -> None:
    word: WordDocument = docx.Document()
    word.add_heading(TITLE, 1)
    word.add_heading("Opening hours", 2)
    word.add_paragraph(HOURS)
    word.add_heading("Shelves", 2)
    table = word.add_table(rows=0, cols=2)
    for row in SHELVES:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    word.add_paragraph(STAFF_TEXT, style="List Bullet")
    word.sections[0].footer.paragraphs[0].text = "Internal"
    word.save(str(path))


def write_pptx(path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = TITLE
    slide.placeholders[1].text = STAFF_TEXT
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Opening hours"
    table = slide.shapes.add_table(3, 2, 0, 2_000_000, 5_000_000, 2_000_000).table
    for index, row in enumerate(SHELVES):
        table.cell(index, 0).text, table.cell(index, 1).text = row
    slide.notes_slide.notes_text_frame.text = HOURS
    deck.save(str(path))


def write_xlsx(path: Path) -> None:
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    assert sheet is not None
    sheet.title = TITLE
    for row in [*SHELVES, (), (HOURS,), (STAFF_TEXT,)]:
        sheet.append(row)
    workbook.save(path)


def write_html(path: Path) -> None:
    rows = "".join(f"<tr><td>{shelf}</td><td>{keeper}</td></tr>" for shelf, keeper in SHELVES)
    path.write_text(
        f"<!doctype html><title>not shown</title><script>notShown()</script><h1>{TITLE}</h1>"
        f"<h2>Opening hours</h2><p>The vault opens\n at <b>nine</b> and closes at four.</p>"
        f"<h2>Shelves</h2><table>{rows}</table><ul><li>{STAFF_TEXT}</ul>"
    )


def write_markdown(path: Path) -> None:
    rows = "\n".join(f"| {shelf} | {keeper} |" for shelf, keeper in SHELVES[1:])
    path.write_text(
        f"# {TITLE}\n\n## Opening hours\n\nThe vault opens at **nine** and closes at four.\n\n"
        f"## Shelves\n\n| Shelf | Keeper |\n| --- | --- |\n{rows}\n\n- {STAFF_TEXT}\n"
    )


def write_text(path: Path) -> None:
    rows = "\n".join(f"{shelf}\t{keeper}" for shelf, keeper in SHELVES)
    path.write_text(f"{TITLE}\n\n{HOURS}\n\n{rows}\n\n{STAFF_TEXT}\n", encoding="utf-16")


def write_csv(path: Path) -> None:
    rows = [*SHELVES, ("East", f'"{HOURS} {STAFF_TEXT}"')]
    path.write_text(f"{TITLE};\n" + "".join(f"{';'.join(row)}\n" for row in rows), encoding="cp1252")


def write_tsv(path: Path) -> None:
    path.write_text("\n".join("\t".join(row) for row in [*SHELVES, (TITLE, HOURS), ("East", STAFF_TEXT)]))


def write_rst(path: Path) -> None:
    rows = "\n".join(f"{shelf:<10} {keeper:<20}" for shelf, keeper in SHELVES[1:])
    rule = f"{'=' * 10} {'=' * 20}"
    path.write_text(
        f"{TITLE}\n{'=' * 20}\n\nOpening hours\n-------------\n\nThe vault opens at **nine**\nand closes at four.\n\n"
        f"Shelves\n-------\n\n{rule}\n{'Shelf':<10} Keeper\n{rule}\n{rows}\n{rule}\n\n- {STAFF_TEXT}\n\n"
        ".. include:: /etc/passwd\n"
    )


def write_org(path: Path) -> None:
    rows = "\n".join(f"| {shelf} | {keeper} |" for shelf, keeper in SHELVES[1:])
    path.write_text(
        f"#+TITLE: {TITLE}\n\n* Opening hours\nThe vault opens at *nine*\nand closes at four.\n\n* Shelves\n"
        f"| Shelf | Keeper |\n|-------+--------|\n{rows}\n\n- {STAFF_TEXT}\n"
    )


def write_asciidoc(path: Path) -> None:
    rows = "\n".join(f"|{shelf} |{keeper}" for shelf, keeper in SHELVES[1:])
    path.write_text(
        f"= {TITLE}\n\n== Opening hours\n\nThe vault opens at *nine*\nand closes at four.\n\n== Shelves\n\n"
        f"|===\n|Shelf |Keeper\n\n{rows}\n|===\n\n* {STAFF_TEXT}\n"
    )


def write_latex(path: Path) -> None:
    rows = "".join(f"{shelf} & {keeper}\\\\\n" for shelf, keeper in SHELVES)
    path.write_text(
        f"\\documentclass{{article}}\n\\title{{{TITLE}}}\n\\begin{{document}}\n"
        f"\\section{{Opening hours}}\n\n{HOURS}\n\n"
        f"\\begin{{tabular}}{{ll}}\n{rows}\\end{{tabular}}\n\n{STAFF_TEXT}\n\\end{{document}}\n"
    )


def write_rtf(path: Path) -> None:
    rows = "".join(
        rf"{{\trowd\cellx3000\cellx6000\pard\intbl {shelf}\cell {keeper}\cell\row}}"
        for shelf, keeper in SHELVES
    )
    path.write_text(
        rf"{{\rtf1\ansi{{\pard\outlinelevel0\b\fs36 {TITLE}\par}}{{\pard\outlinelevel1\b Opening hours\par}}"
        rf"{{\pard {HOURS}\par}}{{\pard\outlinelevel1\b Shelves\par}}{rows}{{\pard {STAFF_TEXT}\par}}}}"
    )


def write_odt(path: Path) -> None:
    page = path.with_suffix(".page.html")
    write_html(page)
    pypandoc.convert_file(
        str(page), "odt", format="html", outputfile=str(path), extra_args=["--metadata=title:"]
    )


def write_notebook(path: Path) -> None:
    rows = "\n".join(f"{shelf} {keeper}" for shelf, keeper in SHELVES)
    cells = [
        {"cell_type": "markdown", "source": [f"# {TITLE}\n", "\n", "## Opening hours\n", "\n", HOURS]},
        {
            "cell_type": "code",
            "source": "show(shelves)",
            "outputs": [
                {"output_type": "stream", "text": [rows]},
                {"output_type": "display_data", "data": {"image/png": "notShown"}},
            ],
        },
        {"cell_type": "raw", "source": STAFF_TEXT},
    ]
    path.write_text(json.dumps({"cells": cells, "nbformat": 4, "metadata": {}}))


def write_json(path: Path) -> None:
    shelves = [dict(zip(SHELVES[0], row, strict=True)) for row in SHELVES[1:]]
    path.write_text(json.dumps({"title": TITLE, "hours": HOURS, "shelves": shelves, "staff": [STAFF_TEXT]}))


def write_ndjson(path: Path) -> None:
    records = [
        {"title": TITLE, "hours": HOURS},
        *(dict(zip(SHELVES[0], row, strict=True)) for row in SHELVES[1:]),
    ]
    path.write_text("\n".join(json.dumps(record) for record in [*records, {"staff": STAFF_TEXT}]))


def write_xml(path: Path) -> None:
    rows = "".join(
        f"<row><Shelf>{shelf}</Shelf><Keeper>{keeper}</Keeper></row>" for shelf, keeper in SHELVES[1:]
    )
    path.write_text(
        f"<handbook><title>{TITLE}</title><part><title>Opening hours</title><p>The vault opens at <b>nine</b> and "
        f"closes at four.</p></part><part><title>Shelves</title>{rows}<p>{STAFF_TEXT}</p></part></handbook>"
    )


def write_vtt(path: Path) -> None:
    spoken = [TITLE, HOURS, *(" ".join(row) for row in SHELVES), STAFF_TEXT]
    cues = (f"00:0{n}.000 --> 00:0{n}.900\n<v Keeper {n}>{words}\n" for n, words in enumerate(spoken))
    path.write_text("WEBVTT\n\n" + "\n".join(cues))


def write_srt(path: Path) -> None:
    spoken = [TITLE, HOURS, *(" ".join(row) for row in SHELVES), STAFF_TEXT]
    cues = (f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{words}\n" for n, words in enumerate(spoken))
    path.write_text("\n".join(cues))


def write_code(path: Path) -> None:
    rows = "\n".join(f"    {row!r}," for row in SHELVES)
    path.write_text(
        f'"""{TITLE}: {HOURS}"""\n\nSHELVES = [\n{rows}\n]\n\n\ndef staff():\n    # {STAFF_TEXT}\n    pass\n'
    )


def write_eml(path: Path) -> None:
    message = email.message.EmailMessage()
    message["Subject"], message["From"], message["To"] = (
        TITLE,
        "Ada Quill <ada@icehouse.example>",
        "all@icehouse.example",
    )
    message["Date"] = "Mon, 06 May 2024 09:00:00 +0000"
    message.set_content("plain text of the same")
    rows = "".join(f"<tr><td>{shelf}</td><td>{keeper}</td></tr>" for shelf, keeper in SHELVES)
    message.add_alternative(
        f"<h1>Opening hours</h1><p>{HOURS}</p><h1>Shelves</h1><table>{rows}</table><p>{STAFF_TEXT}</p>",
        subtype="html",
    )
    path.write_bytes(message.as_bytes())


def write_epub(path: Path) -> None:
    rows = "".join(f"<tr><td>{shelf}</td><td>{keeper}</td></tr>" for shelf, keeper in SHELVES)
    chapter = (
        '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head><body>'
        f"<h1>{TITLE}</h1><h2>Opening hours</h2><p>{HOURS}</p><h2>Shelves</h2><table>{rows}</table>"
        f"<p>{STAFF_TEXT}</p></body></html>"
    )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="i"><metadata '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:identifier id="i">1</dc:identifier><dc:title>'
        f'{TITLE}</dc:title><dc:language>en</dc:language></metadata><manifest><item id="c" href="c.xhtml" '
        'media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine></package>'
    )
    container = (
        '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
        'full-path="p.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("p.opf", package)
        archive.writestr("c.xhtml", chapter)


def write_pdf(path: Path, encryption: StandardEncryption | None = None) -> None:
    canvas = Canvas(str(path), pagesize=A4, encrypt=encryption)
    for page in range(1, 4):
        canvas.setFont("Helvetica", 8)
        canvas.drawString(72, 810, "Icehouse, internal")
        canvas.drawString(300, 30, str(page))
        if page == 1:
            canvas.setFont("Helvetica-Bold", 20)
            canvas.drawString(72, 740, TITLE)
            canvas.setFont("Helvetica-Bold", 14)
            canvas.drawString(72, 700, "Opening hours")
        canvas.setFont("Helvetica", 10)
        canvas.drawString(72, 670, HOURS)
        canvas.drawString(72, 658, f"This line follows on page {page} as part of the same paragraph.")
        for index, row in enumerate(SHELVES):
            canvas.drawString(72, 600 - 24 * index, "   ".join(row))
        canvas.drawString(72, 500, STAFF_TEXT)
        canvas.showPage()
    canvas.save()


WRITERS: dict[str, Callable[[Path], None]] = {
    "docx": write_docx,
    "pptx": write_pptx,
    "xlsx": write_xlsx,
    "odt": write_odt,
    "rtf": write_rtf,
    "html": write_html,
    "md": write_markdown,
    "rst": write_rst,
    "org": write_org,
    "adoc": write_asciidoc,
    "tex": write_latex,
    "ipynb": write_notebook,
    "json": write_json,
    "ndjson": write_ndjson,
    "xml": write_xml,
    "vtt": write_vtt,
    "srt": write_srt,
    "py": write_code,
    "txt": write_text,
    "csv": write_csv,
    "tsv": write_tsv,
    "eml": write_eml,
    "epub": write_epub,
    "pdf": write_pdf,
}
WITH_HEADINGS = [
    *("docx", "odt", "html", "md", "rst", "org", "adoc", "tex", "ipynb", "xml", "epub", "eml", "pdf"),
]
CONVERTED = {MediaType.DOC, MediaType.PPT}
"""By LibreOffice, which is not everywhere and takes seconds; real files are read in tests/ingest/test_real_files.py."""
WITH_PAGES = ["pdf", "pptx", "xlsx"]


@pytest.fixture(params=WRITERS)
async def handbook(request: pytest.FixtureRequest, parsers: ParserPool, tmp_path: Path) -> ReadDocument:
    return await parsed(parsers, tmp_path, request.param)


async def parsed(parsers: ParserPool, folder: Path, extension: str) -> ReadDocument:
    path = folder / f"handbook.{extension}"
    WRITERS[extension](path)
    return await read(parsers, path)


def test_the_text_holds_what_a_reader_sees(handbook: ReadDocument) -> None:
    for seen in (TITLE, HOURS, STAFF_TEXT, *(cell for row in SHELVES for cell in row)):
        assert seen in handbook.text
    assert "notShown" not in handbook.text


def test_elements_are_in_order_and_leave_nothing_out(handbook: ReadDocument) -> None:
    end = 0
    for element in handbook.elements:
        assert element.start_char < element.end_char
        assert not handbook.text[end : element.start_char].strip()
        end = element.end_char
    assert end == len(handbook.text)


def test_places_lie_in_their_element_and_on_a_page(handbook: ReadDocument) -> None:
    for element in handbook.elements:
        for place in element.places:
            assert element.start_char <= place.start_char < place.end_char <= element.end_char
            assert place.page is not None
            assert handbook.page_count is not None
            assert 1 <= place.page <= handbook.page_count
            if place.box is not None:
                assert 0 <= place.box.x0 < place.box.x1
                assert 0 <= place.box.y0 < place.box.y1


def test_a_document_survives_storage(handbook: ReadDocument) -> None:
    for part in handbook.parts:
        assert ParsedPart.from_json(part.text, part.to_json()) == part


@pytest.mark.parametrize("extension", WITH_HEADINGS)
async def test_text_knows_the_headings_above_it(parsers: ParserPool, tmp_path: Path, extension: str) -> None:
    document = await parsed(parsers, tmp_path, extension)
    assert document.title == TITLE
    element = document.element_with(HOURS)
    assert element.headings == HEADINGS
    assert element.kind is ElementKind.TEXT


@pytest.mark.parametrize("extension", WITH_PAGES)
async def test_text_knows_its_page(parsers: ParserPool, tmp_path: Path, extension: str) -> None:
    document = await parsed(parsers, tmp_path, extension)
    pages = [place.page for element in document.elements for place in element.places]
    assert pages[0] == 1
    assert None not in pages


@pytest.mark.parametrize(
    "extension", ["docx", "odt", "pptx", "html", "md", "rst", "org", "adoc", "epub", "eml"]
)
async def test_a_table_is_one_line_a_row(parsers: ParserPool, tmp_path: Path, extension: str) -> None:
    document = await parsed(parsers, tmp_path, extension)
    table = document.element_with("North | Ada Quill")
    assert table.kind is ElementKind.TABLE
    rows = document.text[table.start_char : table.end_char].split("\n")
    assert rows == [" | ".join(row) for row in SHELVES]


@pytest.mark.parametrize("extension", ["csv", "tsv", "xlsx"])
async def test_a_row_of_a_sheet_says_what_its_cells_are(
    parsers: ParserPool, tmp_path: Path, extension: str
) -> None:
    document = await parsed(parsers, tmp_path, extension)
    assert (
        "Shelf | Keeper\nShelf: North; Keeper: Ada Quill\nShelf: South; Keeper: Bram Oyelaran"
        in document.text
    )


async def test_mail_begins_with_its_subject_and_who_wrote_to_whom_and_when(
    parsers: ParserPool, tmp_path: Path
) -> None:
    document = await parsed(parsers, tmp_path, "eml")
    assert document.text.startswith(
        f"{TITLE}\n\nFrom: Ada Quill <ada@icehouse.example>\nTo: all@icehouse.example\nDate: Mon, 06 May 2024 09:00:00"
    )
    assert "plain text of the same" not in document.text


async def test_lines_of_a_pdf_have_boxes_from_the_upper_left_corner(
    parsers: ParserPool, tmp_path: Path
) -> None:
    document = await parsed(parsers, tmp_path, "pdf")
    start = document.text.index(HOURS)
    (place,) = (
        place for element in document.elements for place in element.places if place.start_char == start
    )
    assert (place.page, place.end_char) == (1, start + len(HOURS))
    assert place.box is not None
    assert place.box.x0 == pytest.approx(72, abs=1)
    # The base line is drawn 670 points above the bottom of a page that is 841.9 points high.
    assert place.box.y1 == pytest.approx(841.9 - 670, abs=3)
    assert place.box.y0 == pytest.approx(841.9 - 670 - 8, abs=3)


async def test_what_repeats_at_the_edges_of_pages_stands_apart_from_the_text(
    parsers: ParserPool, tmp_path: Path
) -> None:
    document = await parsed(parsers, tmp_path, "pdf")
    furniture = [
        (element.kind.value, document.text[element.start_char : element.end_char])
        for element in document.elements
        if element.kind.is_furniture
    ]
    assert furniture == [
        (kind, text) for page in "123" for kind, text in (("header", "Icehouse, internal"), ("footer", page))
    ]
    assert "Internal" in [
        word.text[element.start_char : element.end_char]
        for word in [await parsed(parsers, tmp_path, "docx")]
        for element in word.elements
        if element.kind is ElementKind.FOOTER
    ]


async def test_lines_of_a_paragraph_are_one_element(parsers: ParserPool, tmp_path: Path) -> None:
    document = await parsed(parsers, tmp_path, "pdf")
    paragraph = document.element_with(HOURS)
    assert document.text[paragraph.start_char : paragraph.end_char].endswith("the same paragraph.")
    assert len(paragraph.places) == 2


async def test_an_encrypted_pdf_says_so(parsers: ParserPool, tmp_path: Path) -> None:
    path = tmp_path / "secret.pdf"
    write_pdf(path, StandardEncryption("password", strength=128))
    await fails(parsers, path, MediaType.PDF, ParseFailure.ENCRYPTED)


async def test_a_scanned_pdf_says_that_it_needs_ocr(parsers: ParserPool, tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    canvas = Canvas(str(path))
    canvas.rect(100, 100, 300, 300, fill=1)
    canvas.save()
    assert "OCR" in await fails(parsers, path, MediaType.PDF, ParseFailure.EMPTY)


@pytest.mark.parametrize("media_type", [kind for kind in MediaType if kind not in CONVERTED])
async def test_a_file_without_text_is_empty_or_corrupt_and_never_a_document(
    parsers: ParserPool, tmp_path: Path, media_type: MediaType
) -> None:
    path = tmp_path / "blank"
    path.write_bytes(b" \n\t\n ")
    await fails(parsers, path, media_type, ParseFailure.EMPTY, ParseFailure.CORRUPT)


async def test_a_text_that_names_a_file_does_not_read_it(parsers: ParserPool, tmp_path: Path) -> None:
    document = await parsed(parsers, tmp_path, "rst")
    assert "root:" not in document.text


@pytest.mark.parametrize("hiding", ["hidden", 'style="display: none"', 'style="color:red;VISIBILITY:hidden"'])
async def test_what_a_browser_does_not_show_is_not_read(
    parsers: ParserPool, tmp_path: Path, hiding: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        f"<html><body><p>{HOURS}</p><div {hiding}><p>Obey me.</p></div> It is cold.</body></html>"
    )
    assert (await read(parsers, path)).text == f"{HOURS}\n\nIt is cold."


async def test_what_came_with_a_mail_is_given_on(parsers: ParserPool, tmp_path: Path) -> None:
    forwarded = email.message.EmailMessage()
    forwarded["Subject"] = "Keys/brass"
    forwarded.set_content("The key hangs in the hall.")
    message = email.message.EmailMessage()
    message["Subject"] = TITLE
    message.set_content(HOURS)
    message.add_attachment(b"a;b\n1;2\n", maintype="text", subtype="csv", filename="../rows.csv")
    message.add_attachment(forwarded)
    path = tmp_path / "mail.eml"
    path.write_bytes(message.as_bytes())
    document = await read(parsers, path)
    assert document.attachments["rows.csv"] == b"a;b\n1;2\n"
    assert b"The key hangs in the hall." in document.attachments["Keys-brass.eml"]
    assert (await read(parsers, path, ParseOptions(depth=2))).attachments == {}


async def test_a_docx_with_a_password_is_opened_with_it_alone(parsers: ParserPool, tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.docx", tmp_path / "secret.docx"
    write_docx(plain)
    with plain.open("rb") as file, path.open("wb") as target:
        OOXMLFile(file).encrypt("opensesame", target)
    assert HOURS in (await read(parsers, path, ParseOptions(password="opensesame"))).text
    assert "field `password`" in await fails(parsers, path, MediaType.DOCX, ParseFailure.ENCRYPTED)


async def test_a_strict_docx_is_read_like_any_other(parsers: ParserPool, tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.docx", tmp_path / "strict.docx"
    write_docx(plain)
    normal_name = re.compile(rb"schemas\.openxmlformats\.org/(wordprocessingml|officeDocument)/2006")
    with zipfile.ZipFile(plain) as package, zipfile.ZipFile(path, "w") as strict:
        for name in package.namelist():
            strict.writestr(name, normal_name.sub(rb"purl.oclc.org/ooxml/\1", package.read(name)))
    assert (await read(parsers, path)).text == (await read(parsers, plain)).text


async def test_an_office_file_that_defines_entities_is_refused(parsers: ParserPool, tmp_path: Path) -> None:
    path = tmp_path / "laughs.docx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", '<!DOCTYPE a [<!ENTITY x "ha">]><a>&x;</a>')
    assert "entities" in await fails(parsers, path, MediaType.DOCX, ParseFailure.CORRUPT)


async def test_headings_of_a_style_in_another_language_are_headings(
    parsers: ParserPool, tmp_path: Path
) -> None:
    word: WordDocument = docx.Document()
    style = word.styles.add_style("Überschrift Haus", WD_STYLE_TYPE.PARAGRAPH)
    level = OxmlElement("w:outlineLvl")
    level.set(qn("w:val"), "0")
    style.element.get_or_add_pPr().append(level)
    word.add_paragraph("Öffnungszeiten", style=style)
    word.add_paragraph(HOURS)
    word.save(str(tmp_path / "haus.docx"))
    document = await read(parsers, tmp_path / "haus.docx")
    assert document.element_with(HOURS).headings == ("Öffnungszeiten",)


async def test_a_truncated_office_file_is_corrupt(parsers: ParserPool, tmp_path: Path) -> None:
    path = tmp_path / "half.docx"
    write_docx(path)
    path.write_bytes(path.read_bytes()[:5000])
    await fails(parsers, path, MediaType.DOCX, ParseFailure.CORRUPT)


async def test_what_inflates_without_bound_is_too_large(parsers: ParserPool, tmp_path: Path) -> None:
    path = tmp_path / "bomb.docx"
    write_docx(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media/zeros.bin", bytes(80 << 20))
    await fails(parsers, path, MediaType.DOCX, ParseFailure.TOO_LARGE)


async def fails(parsers: ParserPool, path: Path, media_type: MediaType, *codes: ParseFailure) -> str:
    with pytest.raises(ParseFailed) as caught:
        await read_as(parsers, path, media_type)
    assert caught.value.code in codes
    assert not caught.value.transient
    return caught.value.message
