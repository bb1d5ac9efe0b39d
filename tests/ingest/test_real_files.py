"""Real files of many formats, and files made to do harm: every one reaches a verdict, and the parsers live on."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from ingest.elements import ParsedDocument, ParseFailed, ParseFailure
from ingest.media_types import EmptyFile, UnsupportedMediaType, detect
from ingest.sandbox import ParserPool

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
SAMPLES = REPOSITORY / "data" / "samples"
VERDICT_S = 30.0


@pytest.fixture(scope="session")
async def parsers() -> AsyncIterator[ParserPool]:
    async with ParserPool() as pool:
        yield pool


def files(folder: Path) -> list[ParameterSet]:
    """The files below a folder as parameters, or one that skips with the reason."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)
    if not found and folder.exists():
        found = sorted(path for path in folder.iterdir() if path.is_file())
    if not found:
        return [pytest.param(folder, marks=pytest.mark.skip(reason=f"{folder.name} is not on this machine"))]
    return [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in found]


EXPECTED = {
    "docling__csv-comma.csv": "First Name",
    "docling__csv-semicolon.csv": "First Name",
    "unstructured__csv-with-long-lines.csv": "SpearmanCorrelationCoefficient",
    "unstructured__stanley-cups.csv": "Team: Maple Leafs; Location: TOR; Stanley Cups: 13",
    "unstructured__stanley-cups.tsv": "Team: Maple Leafs; Location: TOR; Stanley Cups: 13",
    "unstructured__stanley-cups.xlsx": "Team: Flyers; Location: PHI; Stanley Cups: 2",
    "docling__content_control_with_picture.docx": "BODY TEXT OUTSIDE SDT",
    "markitdown__test.docx": "AutoGen is an open-source framework that allows developers to build LLM applications",
    "unstructured__contains-pictures.docx": "Some paragraph text that runs “through” the floating picture",
    "unstructured__docx-tables.docx": "Header Col 1 | Header Col 2\nLorem ipsum | A link example",
    "unstructured__handbook-1p.docx": "The United States Trustee appoints and supervises standing trustees",
    "docling__eml_simple.eml": "This is a simple email body.",
    "unstructured__fake-email-attachment.eml": "Attachments: ",
    "docling__msg_simple.msg": "To: Bob Example <bob@example.com>",
    "unstructured__fake-email-attachment.msg": "Lots of whitespace",
    "markitdown__test.epub": "This is a test paragraph with some formatting.",
    "docling__example_01.html": "This is the first paragraph of the introduction.",
    "docling__example_03.html": "Nested item 1",
    "unstructured__example-10k-1p.html": "Nevada | 20-8143439",
    "unstructured__example-with-scripts.html": "Russian Offensive Campaign Assessment, December 13",
    "unstructured__ideas-page.html": "Someone fed my essays into GPT",
    "docling__blocks.md": "my heading",
    "unstructured__README.md": "The sample docs directory contains the following files:",
    "docling__text_document_01.odt": "Lorem Ipsum is simply dummy text of the printing and typesetting industry.",
    "unstructured__fake.odt": "Header row | Mon | Wed | Fri",
    "sample-files__crazyones-pdfa.pdf": "The round pegs in the square holes.",
    "sample-files__multicolumn.pdf": "This is a sample document with two columns",
    "unstructured__chevron-page.pdf": "We’re investing to grow in the Eastern Mediterranean",
    "unstructured__embedded-images-tables.pdf": "The plot of inhibitor concentration over degree of surface coverage",
    "unstructured__interface-config-guide-p93.pdf": "Multiple PXCs on the same underlying cross-connect",
    "unstructured__list-item-example.pdf": "Module One - Introduction to Product",
    "unstructured__reliance.pdf": "Shri Mukesh D. Ambani",
    "docling__powerpoint_bad_text.pptx": "The fully customisable and copyright-free",
    "markitdown__test.pptx": "ColA | ColB | ColC | ColD | ColE | ColF",
    "unstructured__fake-power-point-table.pptx": "Purple | Orange | Yellow",
    "unstructured__group-shapes-nested.pptx": "H",
    "unstructured__UDHR_first_article_all.txt": "All human beings are born free and equal in dignity and rights.",
    "unstructured__fake-text-utf-16.txt": "This is a test document to use for unit tests.",
    "unstructured__norwich-city.txt": "Iwan Roberts",
    "docling__xlsx_01.xlsx": "first: 3; second: 3; third: 3",
    "markitdown__test.xlsx": "Alpha: 89; Beta: 82; Gamma: 100; Delta: 12",
    "unstructured__emoji.xlsx": "🤠😅",
    "unstructured__factbook-utf-16.xml": "<capital>Washington, DC</capital>",
}
REFUSED = {"bmp", "doc", "jpg", "key", "numbers", "odp", "ods", "pages", "png", "ppt", "rtf", "webp", "xls"}
"""Formats of a later issue."""


@pytest.mark.parametrize("path", files(SHARED / "docs_by_format"))
async def test_a_real_file_parses_to_its_words_or_is_refused_by_its_kind(
    parsers: ParserPool, path: Path
) -> None:
    if path.parent.name in REFUSED:
        with pytest.raises(UnsupportedMediaType):
            detect(path, path.name)
    elif path.name == "docling__Strict.docx":
        with pytest.raises(ParseFailed) as caught:
            await parsed(parsers, path)
        assert caught.value.code is ParseFailure.UNSUPPORTED
    else:
        document = await parsed(parsers, path)
        assert EXPECTED.get(path.name, "") in document.text
        assert any(character.isalpha() for character in document.text)


@pytest.mark.parametrize("path", files(SHARED / "hostile"))
async def test_a_hostile_file_reaches_a_verdict_in_time(parsers: ParserPool, path: Path) -> None:
    started = time.monotonic()
    failure = await verdict(parsers, path)
    if path.parent.name == "encrypted":
        assert failure in {*CANNOT_SHOW, ParseFailure.ENCRYPTED}
    assert failure is not ParseFailure.INTERRUPTED
    assert time.monotonic() - started < VERDICT_S


CANNOT_SHOW = {None, UnsupportedMediaType}
"""An owner's password does not keep a PDF from being read, and an old Word file is refused before it is opened."""


async def verdict(parsers: ParserPool, path: Path) -> ParseFailure | type[Exception] | None:
    """What became of the file: None when it parsed."""
    try:
        await parsed(parsers, path)
    except (EmptyFile, UnsupportedMediaType) as refused:
        return type(refused)
    except ParseFailed as failed:
        return failed.code
    return None


async def test_the_parsers_live_on_after_all_of_them(parsers: ParserPool, tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("# Hours\n\nThe vault opens at nine.")
    assert (await parsed(parsers, path)).text == "Hours\n\nThe vault opens at nine."


@pytest.mark.parametrize("path", files(SAMPLES))
async def test_every_sample_document_parses(parsers: ParserPool, path: Path) -> None:
    assert len((await parsed(parsers, path)).text) > 200


async def parsed(parsers: ParserPool, path: Path) -> ParsedDocument:
    return await parsers.parse(path, detect(path, path.name))
