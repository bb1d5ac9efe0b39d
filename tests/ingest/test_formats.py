"""Formats that are read here: what a reader sees of each, and what is refused."""

import json
from pathlib import Path

import openpyxl
import pytest

from ingest.elements import ElementKind, ParseFailed, ParseFailure
from ingest.parse.converted import office_converted
from ingest.parse.records import parse_json, parse_ndjson
from ingest.parse.sheets import parse_xlsx
from ingest.parse.subtitles import parse_subtitles
from ingest.parse.xml_text import parse_xml
from tests.ingest.reading import Parser, ReadDocument, read_here


def of_text(parse: Parser, folder: Path, content: str, encoding: str = "utf-8") -> ReadDocument:
    path = folder / "upload"
    path.write_bytes(content.encode(encoding))
    return read_here(parse, path)


def refusal(parse: Parser, folder: Path, content: str) -> ParseFailed:
    with pytest.raises(ParseFailed) as caught:
        of_text(parse, folder, content)
    return caught.value


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('[{"room": "Vault", "price": 7.50}, {"room": "Hall"}]', "room: Vault\nprice: 7.50\n\nroom: Hall"),
        ('{"a": {"b": [1, 2, "x"]}, "c": true, "d": null, "e": ""}', "a.b: 1, 2, x\nc: true"),
        ('{"name": "Ada", "pets": [{"kind": "cat"}]}', "name: Ada\n\npets\n\nkind: cat"),
        ('[{"a": [{"b": 1}, {"b": 2}]}]', "a[0].b: 1\na[1].b: 2"),
        ("[[1, 2], [3]]", "[0]: 1, 2\n[1]: 3"),
        ('"Vault"', "Vault"),
        ('{"a": 1}\n{"a": 2}', "a: 1\na: 2"),
        ('{"text": "two\\nlines"}', "text: two\nlines"),
    ],
)
def test_json_is_lines_with_paths_and_a_record_a_block(tmp_path: Path, content: str, text: str) -> None:
    assert of_text(parse_json, tmp_path, content).text == text


def test_records_stand_under_the_path_of_their_list(tmp_path: Path) -> None:
    document = of_text(parse_json, tmp_path, '{"faq": [{"q": "Where?"}, {"q": "When?"}], "by": "Ada"}')
    assert [element.headings for element in document.elements] == [(), ("faq",), ("faq",), ()]


def test_a_line_of_ndjson_is_one_record_with_all_that_is_in_it(tmp_path: Path) -> None:
    document = of_text(parse_ndjson, tmp_path, '{"a": 1, "b": [{"c": 2}], "d": 3}\n\n{"a": 4}\n')
    assert document.text == "a: 1\nb[0].c: 2\nd: 3\n\na: 4"


def test_json_in_utf_16_is_read(tmp_path: Path) -> None:
    assert of_text(parse_json, tmp_path, '{"Tür": "auf"}', "utf-16").text == "Tür: auf"


def test_a_long_json_file_comes_in_parts(tmp_path: Path) -> None:
    rows = [{"number": number, "text": "all well " * 20} for number in range(10_000)]
    assert len(of_text(parse_json, tmp_path, json.dumps(rows)).parts) > 2


@pytest.mark.parametrize("content", ['{"a": 1', "[1,]", "{'a': 1}", '{"a": NaN}'])
def test_what_is_no_json_is_corrupt_and_its_text_is_not_in_the_message(tmp_path: Path, content: str) -> None:
    failed = refusal(parse_json, tmp_path, content)
    assert failed.code is ParseFailure.CORRUPT
    assert "not valid JSON" in failed.message
    assert content not in failed.message


def test_a_bad_line_of_ndjson_is_named(tmp_path: Path) -> None:
    assert "Line 2 is not valid JSON" in refusal(parse_ndjson, tmp_path, '{"a": 1}\n{"a":\n').message


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_without_bottom_is_given_up(tmp_path: Path, opening: str) -> None:
    assert refusal(parse_json, tmp_path, opening * 100_000).code is ParseFailure.CORRUPT


def test_xml_of_records_is_a_block_each_with_attributes(tmp_path: Path) -> None:
    document = of_text(
        parse_xml,
        tmp_path,
        '<?xml version="1.0"?><rooms><room id="v"><name>Vault</name><door><lock>brass</lock></door></room>'
        "<room id='h'><name>Hall &amp; stairs</name></room></rooms>",
    )
    assert document.text == "id: v\nname: Vault\ndoor lock: brass\n\nid: h\nname: Hall & stairs"


def test_xml_of_running_text_is_paragraphs_under_titles(tmp_path: Path) -> None:
    document = of_text(
        parse_xml,
        tmp_path,
        "<article><title>Icehouse</title><sec id='1'><title>Hours</title><p>Open at <b>nine</b>, H<sub>2</sub>O.</p>"
        "<p>Plain.</p></sec></article>",
    )
    assert document.text == "Icehouse\n\nHours\n\nOpen at nine, H2O.\n\nPlain."
    assert document.element_with("Open at").headings == ("Icehouse", "Hours")


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;">]>'
    "<lolz>&lol2;</lolz>"
)
OUTSIDE_FILE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'


@pytest.mark.parametrize("content", [BILLION_LAUGHS, OUTSIDE_FILE])
def test_xml_that_defines_entities_is_refused(tmp_path: Path, content: str) -> None:
    failed = refusal(parse_xml, tmp_path, content)
    assert failed.code is ParseFailure.CORRUPT
    assert "entities" in failed.message


def test_an_outside_dtd_is_not_read(tmp_path: Path) -> None:
    content = '<!DOCTYPE a SYSTEM "http://192.0.2.1/a.dtd"><a>Vault</a>'
    assert of_text(parse_xml, tmp_path, content).text == "a: Vault"


@pytest.mark.parametrize("content", ["<a><b></a>", "<a>" * 10_000])
def test_bad_xml_is_corrupt(tmp_path: Path, content: str) -> None:
    assert refusal(parse_xml, tmp_path, content).code is ParseFailure.CORRUPT


def test_subtitles_are_a_transcript_with_speakers_and_times(tmp_path: Path) -> None:
    document = of_text(
        parse_subtitles,
        tmp_path,
        "WEBVTT\n\nNOTE not said\n\nintro\n00:01.000 --> 00:02.000 align:left\n<v Ada>The <i>vault</i> opens\n\n"
        "00:02.000 --> 00:03.000\n<v Ada>at nine.\n\n01:00:04.000 --> 01:00:05.000\n<v Bram>&amp; closes.\n",
    )
    assert document.text == "[00:01] Ada: The vault opens at nine.\n\n[01:00:04] Bram: & closes."


def test_subrip_is_joined_into_paragraphs(tmp_path: Path) -> None:
    cues = "".join(
        f"{n}\r\n00:{n:02}:00,000 --> 00:{n:02}:04,000\r\n{f'word{n} ' * 25}end.\r\n\r\n" for n in range(1, 9)
    )
    blocks = of_text(parse_subtitles, tmp_path, cues).blocks(ElementKind.TEXT)
    assert [block[:10] for block in blocks] == ["[00:01:00]", "[00:05:00]"]


def test_a_text_that_a_workbook_shows_in_many_cells_is_too_large(tmp_path: Path) -> None:
    workbook = openpyxl.Workbook(write_only=True)
    sheet = workbook.create_sheet()
    for _ in range(2_000):
        sheet.append(["x" * 30_000])
    workbook.save(tmp_path / "upload")
    with pytest.raises(ParseFailed) as caught:
        read_here(parse_xlsx, tmp_path / "upload")
    assert caught.value.code is ParseFailure.TOO_LARGE


def test_an_old_office_file_without_libreoffice_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(
            ParseFailed, match=r"Install the packages libreoffice-writer-nogui .* or save the file as \.docx"
        ),
        office_converted(tmp_path / "upload", "doc", "docx"),
    ):
        pass
