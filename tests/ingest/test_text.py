"""Text is cleaned and decoded once, so that what is stored is what a reader saw and any database takes it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.elements import Element, ElementKind, ParsedPart
from ingest.parse.build import PART_CHARS, DocumentBuilder, Line
from ingest.parse.decoding import decode
from ingest.parse.plain import parse_code, parse_latex, parse_plain
from ingest.parse.sheets import parse_delimited
from ingest.visible import clean
from tests.ingest.reading import read_here


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
        ("بی\u200d\U0001f52c", "بی\U0001f52c"),
        # One picture of a family, and one of a woman in a laboratory.
        ("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f469\u200d\U0001f467"),
        ("\U0001f469\U0001f3fd\u200d\U0001f52c", "\U0001f469\U0001f3fd\u200d\U0001f52c"),
        ("\U0001f52c\u200d\u200d\u200d\U0001f52c", "\U0001f52c\U0001f52c"),
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


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "cp1252"]
)
def test_common_encodings_are_read(encoding: str) -> None:
    text = "Übergabe um 9 Uhr, 5 Schlüssel"
    assert clean(decode(text.encode(encoding))) == text


@pytest.mark.parametrize(
    ("text", "encodings"),
    [
        (
            "金庫室は九時に開きます。鍵は廊下にかかっています。コンピュータの電源を切る。",
            "cp932 euc_jp iso2022_jp",
        ),
        ("保险库九点开门。钥匙挂在大厅里。请值班人员在登记簿上签名,并关闭电脑的电源。", "gb18030 utf-16-be"),
        ("保險庫九點開門。鑰匙掛在大廳裡。請值班人員在登記簿上簽名,並關閉電腦的電源。", "big5"),
        (
            "금고는 아홉 시에 열립니다. 열쇠는 복도에 걸려 있습니다. 당번은 명부에 이름을 적어 주세요.",
            "euc_kr",
        ),
        ("Хранилище открывается в девять часов. Ключ висит в коридоре.", "cp1251 koi8_r utf-16-le"),
        (
            "Skarbiec otwiera się o dziewiątej. Klucz wisi w przedpokoju. Proszę zgasić światło.",
            "cp1250 iso8859-2",
        ),
        ("Το θησαυροφυλάκιο ανοίγει στις εννέα. Το κλειδί κρέμεται στον διάδρομο.", "cp1253"),
        ("Kasa dokuzda açılır. Anahtar koridorda asılıdır. Nöbetçi ışıkları söndürür.", "cp1254"),
        ("הכספת נפתחת בתשע. המפתח תלוי במסדרון. התורן חותם ביומן.", "cp1255"),
        ("تفتح الخزنة في التاسعة. المفتاح معلق في الردهة. يوقع المناوب في السجل.", "cp1256"),
    ],
)
def test_encodings_of_the_world_are_found_by_the_letters(text: str, encodings: str) -> None:
    for encoding in encodings.split():
        assert decode(text.encode(encoding)) == text, encoding


def test_the_encoding_shows_in_letters_that_come_late(tmp_path: Path) -> None:
    path = tmp_path / "late.log"
    path.write_bytes(b"nine o'clock, all well\n" * 200_000 + "Schlüssel fehlt\n".encode())
    assert read_here(parse_plain, path).text.endswith("Schlüssel fehlt")


def test_one_wrong_byte_does_not_spoil_the_accents_of_a_long_text() -> None:
    content = "Schlüssel und Türen. ".encode() * 200 + b"\xff" + "Öfen".encode()
    assert "Schlüssel" in decode(content)
    assert decode(content).endswith("\ufffdÖfen")


def test_plain_text_keeps_its_lines_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "vault.py"
    path.write_text("def open():\n    return 9\n\n\n\n- hall\n* key\n")
    document = read_here(parse_plain, path)
    assert document.text == "def open():\n    return 9\n\n- hall\n* key"
    assert len(document.elements) == 2


def test_a_long_text_comes_in_parts_that_make_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    text = "\n\n".join(f"Watch {number}: all well." for number in range(60_000))
    path.write_text(text)
    document = read_here(parse_plain, path)
    assert document.text == text
    assert len(document.parts) > 2
    assert max(len(part.text) for part in document.parts) < 2 * PART_CHARS


@pytest.mark.parametrize("text", ["x" * 3_000_000, "word " * 600_000, "line of a log\n" * 200_000])
def test_a_text_without_paragraphs_is_parted_all_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "long.txt"
    path.write_text(text)
    document = read_here(parse_plain, path)
    assert "".join(document.text.split()) == "".join(text.split())
    assert len(document.parts) > 2


def test_code_is_parted_where_something_new_begins_at_the_margin(tmp_path: Path) -> None:
    path = tmp_path / "vault.py"
    path.write_text(
        "import os\n\n\nclass Vault:\n    def open(self):\n        a = 1\n\n        return a\n\n"
        "    def close(self):\n        pass\n\n\n@cached\ndef key():\n    return 9\n"
    )
    assert read_here(parse_code, path).blocks(ElementKind.CODE) == [
        "import os",
        "class Vault:\n    def open(self):\n        a = 1\n\n        return a\n\n    def close(self):\n        pass",
        "@cached\ndef key():\n    return 9",
    ]


def test_tex_stands_under_its_sections_without_preamble_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "vault.tex"
    path.write_text(
        r"\documentclass{article}"
        "\n\n\\title{The \\emph{Vault}}\n\n\\begin{document}\n\\section[Short]{Opening hours}\n"
        "It opens at nine. % not at ten\n\n\\begin{verbatim}\nopen(9)\n\\end{verbatim}\n"
    )
    document = read_here(parse_latex, path)
    assert document.title == r"The \emph{Vault}"
    assert document.element_with("It opens at nine.").headings == (r"The \emph{Vault}", "Opening hours")
    assert document.element_with("open(9)").kind is ElementKind.CODE
    assert "documentclass" not in document.text
    assert "ten" not in document.text


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
    assert read_here(parse_delimited, path).text == text


@pytest.mark.parametrize("encoding", ["utf-16", "cp932"])
def test_a_table_is_read_in_its_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("部屋;鍵\r\n金庫室;廊下にかかっています\r\n".encode(encoding))
    assert read_here(parse_delimited, path).text == "部屋 | 鍵\n部屋: 金庫室; 鍵: 廊下にかかっています"


def test_a_long_table_is_in_blocks_of_whole_rows_that_tell_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Room,Price\n" + "".join(f"Vault {number},{number}\n" for number in range(50_000)))
    document = read_here(parse_delimited, path)
    tables = document.blocks(ElementKind.TABLE)
    assert len(tables) > 10
    rows = [row for table in tables for row in table.split("\n")]
    assert rows[1:] == [f"Room: Vault {number}; Price: {number}" for number in range(50_000)]


def test_headings_form_a_path_and_long_ones_are_text() -> None:
    builder = DocumentBuilder()
    for level, heading in [(0, "A"), (2, "B"), (1, "C"), (1, "long " * 60), (0, "D")]:
        builder.add_heading([Line(heading)], level=level)
        builder.add(ElementKind.TEXT, [Line("text")])
    paths = [
        element.headings
        for part in builder.finish()
        for element in part.elements
        if element.kind is ElementKind.TEXT
    ]
    assert paths == [("A",), ("A", "B"), ("A", "C"), ("A", "C"), ("A", "C"), ("D",)]


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{}",
        b"[1, 2]",
        ParsedPart("ab", (Element(ElementKind.TEXT, 0, 3, ()),)).to_json(),
        ParsedPart(
            "ab", (Element(ElementKind.TEXT, 1, 2, ()), Element(ElementKind.TEXT, 0, 1, ()))
        ).to_json(),
        b'{"page_count": null, "title": null, "paths": [], "elements": [["text", 0, 2, 5, []]]}',
    ],
)
def test_bytes_that_are_no_part_are_refused(stored: bytes) -> None:
    with pytest.raises(ValueError, match=r"part|JSON|length"):
        ParsedPart.from_json("ab", stored)
