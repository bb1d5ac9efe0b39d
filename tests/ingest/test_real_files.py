"""Real files of many formats, and files made to do harm: every one reaches a verdict, and the parsers live on."""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from _pytest.mark import ParameterSet

from ingest.elements import ParseFailed, ParseFailure, ParseOptions
from ingest.media_types import EmptyFile, UnsupportedMediaType
from ingest.sandbox import ParserPool
from tests.ingest.reading import read

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
SAMPLES = REPOSITORY / "data" / "samples"
VERDICT_S = 30.0
VERDICT_BYTES = 1 << 30
SLOW = pytest.mark.processes
NEEDS = {"doc": "soffice", "ppt": "soffice", "odp": "soffice"} | dict.fromkeys(
    ("bmp", "jpg", "png", "webp"), "tesseract"
)
"""By ending: the program that reads it."""


@pytest.fixture(scope="session")
def parsers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parsers").resolve()


@pytest.fixture(scope="session")
async def parsers(parsers_folder: Path) -> AsyncIterator[ParserPool]:
    async with ParserPool(temporary_folder=parsers_folder) as pool:
        yield pool
    assert not list(parsers_folder.iterdir())


def files(folder: Path) -> list[ParameterSet]:
    """The files below a folder as parameters, or one that skips with the reason."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    if not found and folder.exists():
        found = sorted(path for path in folder.iterdir() if path.is_file())
    if not found:
        return [pytest.param(folder, marks=pytest.mark.skip(reason=f"{folder.name} is not on this machine"))]
    return [
        pytest.param(path, id=f"{path.parent.name}/{path.name}", marks=[SLOW] if is_slow(path) else [])
        for path in found
    ]


def is_slow(path: Path) -> bool:
    """True for what takes seconds: LibreOffice, OCR, and what runs into a limit."""
    return path.suffix[1:] in NEEDS or path.stem.endswith("256MiB")


EXPECTED = {
    "docling__asciidoc_01.asciidoc": "This spans multiple lines but should be treated as a single paragraph.",
    "docling__csv-comma.csv": "First Name: Preston; Last Name: Lozano, Dr; Company: Vega-Gentry",
    "docling__csv-semicolon.csv": "Last Name: Lozano; Company: Vega-Gentry",
    "unstructured__csv-with-long-lines.csv": "SpearmanCorrelationCoefficient",
    "unstructured__stanley-cups.csv": "Team: Maple Leafs; Location: TOR; Stanley Cups: 13",
    "unstructured__stanley-cups.tsv": "Team: Maple Leafs; Location: TOR; Stanley Cups: 13",
    "unstructured__stanley-cups.xlsx": "Team: Flyers; Location: PHI; Stanley Cups: 2",
    "docling__greek_heading_styles.doc": "Problem mit lokalisierten Dokumenten\n\nJedes Dokument, dessen",
    "unstructured__fake-doc-emphasized-text.doc": "A bold italic bold-italic example | A Link example",
    "docling__Strict.docx": "Some text",
    "docling__content_control_with_picture.docx": "BODY TEXT OUTSIDE SDT",
    "markitdown__test.docx": "AutoGen is an open-source framework that allows developers to build LLM applications",
    "unstructured__contains-pictures.docx": "Some paragraph text that runs “through” the floating picture",
    "unstructured__docx-tables.docx": "Header Col 1 | Header Col 2\nLorem ipsum | A link example",
    "unstructured__handbook-1p.docx": "The United States Trustee appoints and supervises standing trustees",
    "docling__eml_simple.eml": "This is a simple email body.",
    "unstructured__fake-email-attachment.eml": "Attachments: fake-attachment.txt",
    "docling__msg_simple.msg": "To: Bob Example <bob@example.com>",
    "unstructured__fake-email-attachment.msg": "Attachments: fake-attachment.txt",
    "markitdown__test.epub": "This is a test paragraph with some formatting.",
    "docling__example_01.html": "This is the first paragraph of the introduction.",
    "docling__example_03.html": "Nested item 1",
    "unstructured__example-10k-1p.html": "Nevada | 20-8143439",
    "unstructured__example-with-scripts.html": "Russian Offensive Campaign Assessment, December 13",
    "unstructured__ideas-page.html": "Someone fed my essays into GPT",
    "markitdown__test_notebook.ipynb": 'Test Notebook\n\nprint("markitdown")\n\nmarkitdown',
    "unstructured__arbitrary-records.json": "sku: GRD-1290\nname: Watering Can\nprice: 18.0\nin_stock: false",
    "docling__blocks.md": "my heading",
    "unstructured__README.md": "The sample docs directory contains the following files:",
    "unstructured__simple.ndjson": "text: These are a few of my favorite things:\ntype: Title",
    "docling__elife-56337.nxml": "KRAB-zinc finger protein gene expansion in response to active retrotransposons",
    "docling__elife-56337.xml": "KRAB-zinc finger protein gene expansion in response to active retrotransposons",
    "docling__ptag100.xml": "Time-Dependent 3D Oscillator with Coulomb Interaction",
    "unstructured__factbook-utf-16.xml": "name: United States\ncapital: Washington, DC\nleader: Joe Biden",
    "docling__odf_presentation_01.odp": "A rectangle shape with this text inside.",
    "docling__odf_table_with_title_01.ods": "Year: 2020; Freshwater Ducks: 135",
    "docling__text_document_01.odt": "Lorem Ipsum is simply dummy text of the printing and typesetting industry.",
    "unstructured__fake.odt": "Header row | Mon | Wed | Fri",
    "unstructured__README.org": "You can get an example 10-K in inline XBRL format",
    "docling__anaphora_resolution2_new.pdf": "The Law will never be perfect",
    "docling__attending_to_head2_new.pdf": "The Law will never be perfect",
    "docling__making_more_difficult5_new.pdf": "a majority of American governments have passed new laws since",
    "sample-files__habibi.pdf": "habibi",
    "sample-files__pdflatex-forms.pdf": "Submit",
    "unstructured__DA-1p.png": "As we approached, a home on the edge of the town exploded",
    "unstructured__table-multi-row-column-cells.png": "1716 sec, n=3",
    "docling__webp-test.webp": "Docling bundles PDF document conversion to JSON and Markdown",
    "sample-files__crazyones-pdfa.pdf": "The round pegs in the square holes.",
    "sample-files__multicolumn.pdf": "This is a sample document with two columns",
    "unstructured__chevron-page.pdf": "We’re investing to grow in the Eastern Mediterranean",
    "unstructured__embedded-images-tables.pdf": "The plot of inhibitor concentration over degree of surface coverage",
    "unstructured__interface-config-guide-p93.pdf": "Multiple PXCs on the same underlying cross-connect",
    "unstructured__list-item-example.pdf": "Module One - Introduction to Product",
    "unstructured__reliance.pdf": "Shri Mukesh D. Ambani",
    "unstructured__fake-power-point.ppt": "Use _TextFrame.add_paragraph() for subsequent bullets",
    "docling__powerpoint_bad_text.pptx": "The fully customisable and copyright-free",
    "markitdown__test.pptx": "ColA | ColB | ColC | ColD | ColE | ColF",
    "unstructured__fake-power-point-table.pptx": "Purple | Orange | Yellow",
    "unstructured__group-shapes-nested.pptx": "H",
    "unstructured__README.rst": "You can get an example 10-K in inline XBRL format",
    "unstructured__fake-doc.rtf": "My First Heading\n\nMy first paragraph.",
    "docling__diss.tex": "Let $\\Mscr$ be a (real or complex) analytic manifold of dimension",
    "unstructured__UDHR_first_article_all.txt": "All human beings are born free and equal in dignity and rights.",
    "unstructured__fake-text-utf-16.txt": "This is a test document to use for unit tests.",
    "unstructured__norwich-city.txt": "Iwan Roberts",
    "docling__webvtt_example_01.vtt": "[00:30] Neil deGrasse Tyson: Didn’t we talk about enough",
    "markitdown__test.xls": "Alpha: 89; Beta: 82; Gamma: 100; Delta: 12",
    "docling__xlsx_01.xlsx": "first: 3; second: 3; third: 3",
    "markitdown__test.xlsx": "Alpha: 89; Beta: 82; Gamma: 100; Delta: 12",
    "unstructured__emoji.xlsx": "🤠😅",
}
REFUSED = {
    "key": "an Apple iWork document. Export it as PDF",
    "numbers": "an Apple iWork document. Export it as PDF",
    "pages": "an Apple iWork document. Export it as PDF",
}
"""By ending: what is said of it."""
WITHOUT_TEXT = {"unstructured__bmp_24.bmp", "unstructured__example.jpg"}
"""Pictures of colours and of a flower."""


@pytest.mark.parametrize("path", files(SHARED / "docs_by_format"))
async def test_a_real_file_parses_to_its_words_or_is_refused_by_its_kind(
    parsers: ParserPool, path: Path
) -> None:
    ending = path.suffix[1:]
    if ending in REFUSED:
        with pytest.raises(UnsupportedMediaType, match=REFUSED[ending]):
            await read(parsers, path)
        return
    program = NEEDS.get(ending)
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if path.name in WITHOUT_TEXT:
        with pytest.raises(ParseFailed, match="no text in this picture"):
            await read(parsers, path)
        return
    document = await read(parsers, path)
    assert EXPECTED[path.name] in document.text
    for attachment in re.findall(r"^Attachments: (.+)$", document.text, re.MULTILINE):
        assert list(document.attachments) == [attachment]


@pytest.mark.parametrize("path", files(SHARED / "hostile"))
async def test_a_hostile_file_reaches_a_verdict_in_time_and_memory(
    parsers: ParserPool, parsers_folder: Path, path: Path
) -> None:
    started = time.monotonic()
    async with peak_memory(parsers_folder) as peak:
        failure = await verdict(parsers, path)
    assert time.monotonic() - started < VERDICT_S
    assert peak.resident_bytes < VERDICT_BYTES
    assert failure is not ParseFailure.INTERRUPTED
    if path.parent.name == "bombs" and path.suffix == ".xlsx":
        assert failure in {ParseFailure.TOO_LARGE, ParseFailure.CORRUPT}
    if path.parent.name == "encrypted" and path.name not in OPEN_TO_ALL:
        assert failure is ParseFailure.ENCRYPTED
    assert not any(place.exists() for place in SLIPS)


OPEN_TO_ALL = {"pypdf__r6-owner-password.pdf"}
"""An owner's password does not keep a PDF from being read."""
SLIPS = (Path("/abs.txt"), Path("escape.txt"), Path("../escape.txt"), Path("/tmp/escape.txt"))
"""Where zip_slip.zip wants its entries to land."""


@dataclass
class Peak:
    """The most memory that the children which work below a folder held together."""

    resident_bytes: int = 0


@asynccontextmanager
async def peak_memory(folder: Path) -> AsyncIterator[Peak]:
    peak = Peak()

    async def look() -> None:
        while True:
            resident_bytes = 0
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    # Other tests of this process may keep servers.
                    if Path(child.cwd()).is_relative_to(folder):
                        resident_bytes += child.memory_info().rss
            peak.resident_bytes = max(peak.resident_bytes, resident_bytes)
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    try:
        yield peak
    finally:
        looking.cancel()


PASSWORDS = {
    "pypdf__r2-user-password.pdf": "asdfzxcv",
    "pypdf__r4-aes-user-password.pdf": "asdfzxcv",
    "sample-files__libreoffice-writer-password.pdf": "openpassword",
    "unstructured__password.pdf": "password",
    "tika__testPPT_protected_passtika.pptx": "tika",
    "tika__testWORD_protected_passtika.docx": "tika",
}


@pytest.mark.parametrize("name", PASSWORDS)
async def test_an_encrypted_file_opens_with_its_password_alone(parsers: ParserPool, name: str) -> None:
    path = SHARED / "hostile" / "encrypted" / name
    if not path.exists():
        pytest.skip("hostile is not on this machine")
    document = await read(parsers, path, ParseOptions(password=PASSWORDS[name]))
    assert any(character.isalpha() for character in document.text)
    with pytest.raises(ParseFailed) as caught:
        await read(parsers, path, ParseOptions(password="not this one"))
    assert caught.value.code is ParseFailure.ENCRYPTED


async def verdict(parsers: ParserPool, path: Path) -> ParseFailure | type[Exception] | None:
    """What became of the file: None when it parsed."""
    try:
        await read(parsers, path)
    except (EmptyFile, UnsupportedMediaType) as refused:
        return type(refused)
    except ParseFailed as failed:
        return failed.code
    return None


async def test_the_parsers_live_on_after_all_of_them(parsers: ParserPool, tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("# Hours\n\nThe vault opens at nine.")
    assert (await read(parsers, path)).text == "Hours\n\nThe vault opens at nine."


@pytest.mark.parametrize("path", files(SAMPLES))
async def test_every_sample_document_parses(parsers: ParserPool, path: Path) -> None:
    assert len((await read(parsers, path)).text) > 200
