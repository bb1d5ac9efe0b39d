"""Text is cleaned and decoded once, so that what is stored is what a reader saw and any database takes it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.elements import Element, ElementKind, ParsedDocument
from ingest.parse.build import DocumentBuilder, Line, clean
from ingest.parse.plain import decode, parse_plain
from ingest.parse.sheets import parse_delimited


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ("a\r\nb\rc\x0bd\x0ce\u2028f\x85g", "a\nb\nc\nd\ne\nf\ng"),
        ("nul\0 and bell\a", "nul and bell"),
        ("zero\u200bwidth\ufeff so\u00adft", "zerowidth soft"),
        ("tag\U000e0041\U000e0042s", "tags"),
        ("hidden\ufe01\U000e0100 selector", "hidden selector"),
        ("over\u202eride", "override"),
        ("12\u00a0000\u202f€", "12 000 €"),
        ("e\ufb03cient", "efficient"),
        ("e\u0301", "é"),
        ("half\ud83d", "half\ufffd"),
        ("whole\ud83d\udd11", "whole🔑"),
        ("a\u200d\u200db", "ab"),
        # In Persian the joiner parts a word's stem from its ending, and without it the word is misspelt.
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("tab\tstays\n", "tab\tstays\n"),
    ],
)
def test_what_a_reader_cannot_see_is_not_kept(dirty: str, cleaned: str) -> None:
    assert clean(dirty) == cleaned


@given(st.text(st.characters()))
def test_clean_text_is_storable_and_stays_as_it_is(text: str) -> None:
    cleaned = clean(text)
    assert "\0" not in cleaned
    cleaned.encode("utf-8")
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_common_encodings_are_read(encoding: str) -> None:
    text = "Übergabe um 9 Uhr, 5 Schlüssel"
    assert clean(decode(text.encode(encoding))) == text


def test_one_wrong_byte_does_not_spoil_the_accents_of_a_long_text() -> None:
    content = "Schlüssel und Türen. ".encode() * 200 + b"\xff" + "Öfen".encode()
    assert "Schlüssel" in decode(content)
    assert decode(content).endswith("\ufffdÖfen")


def test_plain_text_keeps_its_lines_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "vault.py"
    path.write_text("def open():\n    return 9\n\n\n\n- hall\n* key\n")
    document = parse_plain(path)
    assert document.text == "def open():\n    return 9\n\n- hall\n* key"
    assert len(document.elements) == 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "Room,Price\nVault,007\nHall,1e3\n",
            "Room | Price\nRoom: Vault; Price: 007\nRoom: Hall; Price: 1e3",
        ),
        ("Room;Price\nVault;1,5\n", "Room | Price\nRoom: Vault; Price: 1,5"),
        ('Room,Text\nVault,"two\nlines, one cell"\n', "Room | Text\nRoom: Vault; Text: two lines, one cell"),
        ("1,2\n3,4\n", "1 | 2\n3 | 4"),
        ("Prices,\nRoom,Price\nVault,7\n", "Prices\n\nRoom | Price\nRoom: Vault; Price: 7"),
        (
            "Room,Price\nVault,\n,7\nHall,8,extra\n",
            "Room | Price\nRoom: Vault\nPrice: 7\nRoom: Hall; Price: 8; extra",
        ),
        ("one\ntwo\n", "one\ntwo"),
        ("a,b\n1,2\n\nc,d\n3,4\n", "a | b\na: 1; b: 2\n\nc | d\nc: 3; d: 4"),
    ],
)
def test_rows_are_lines_with_the_names_of_their_columns(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert parse_delimited(path).text == text


def test_headings_form_a_path_and_long_ones_are_text() -> None:
    builder = DocumentBuilder()
    for level, heading in [(0, "A"), (2, "B"), (1, "C"), (1, "long " * 60), (0, "D")]:
        builder.add_heading([Line(heading)], level=level)
        builder.add(ElementKind.TEXT, [Line("text")])
    paths = [element.headings for element in builder.build().elements if element.kind is ElementKind.TEXT]
    assert paths == [("A",), ("A", "B"), ("A", "C"), ("A", "C"), ("A", "C"), ("D",)]


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{}",
        b"[1, 2]",
        ParsedDocument("ab", (Element(ElementKind.TEXT, 0, 3, ()),)).to_json(),
        ParsedDocument(
            "ab", (Element(ElementKind.TEXT, 1, 2, ()), Element(ElementKind.TEXT, 0, 1, ()))
        ).to_json(),
        b'{"text": 1, "page_count": null, "title": null, "paths": [], "elements": []}',
    ],
)
def test_bytes_that_are_no_document_are_refused(stored: bytes) -> None:
    with pytest.raises(ValueError, match=r"document|JSON|length"):
        ParsedDocument.from_json(stored)
