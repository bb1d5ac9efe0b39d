"""The type of a file is what its content is, and a name that promises another is refused."""

import gzip
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import docx
import openpyxl
import pytest

from ingest.media_types import EmptyFile, MediaType, UnsupportedMediaType, detect

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
HTML = b"<!-- a comment --><!DOCTYPE html><html><body>vault</body></html>"


def kind(folder: Path, name: str, content: bytes) -> MediaType:
    path = folder / "upload"
    path.write_bytes(content)
    return detect(path, name)


@pytest.mark.parametrize(
    ("name", "content", "media_type"),
    [
        ("report.pdf", b"%PDF-1.7\n", MediaType.PDF),
        ("report", b"%PDF-1.7\n", MediaType.PDF),
        ("printed.pdf", b"@PJL comment\n%PDF-1.4\n", MediaType.PDF),
        ("about-pdf.txt", b"A file begins with %PDF-1.7.", MediaType.TEXT),
        ("page.html", HTML, MediaType.HTML),
        ("page", HTML, MediaType.HTML),
        ("page.txt", HTML, MediaType.TEXT),
        ("notes.md", b"# Vault", MediaType.MARKDOWN),
        ("NOTES.MD", b"# Vault", MediaType.MARKDOWN),
        ("mail.eml", b"Subject: vault\n\nHello", MediaType.EML),
        ("rows.csv", b"a;b\n1;2", MediaType.CSV),
        ("rows.tsv", b"a\tb\n1\t2", MediaType.TSV),
        ("rows.json", b'{"a": 1}', MediaType.JSON),
        ("main.py", b"import this\n", MediaType.TEXT),
        ("Makefile", b"run:\n\techo\n", MediaType.TEXT),
        ("utf16.txt", "The vault".encode("utf-16"), MediaType.TEXT),
        ("utf16-without-mark.txt", "The vault".encode("utf-16-le"), MediaType.TEXT),
        ("windows.txt", "Tür und Tor – 5 €".encode("cp1252"), MediaType.TEXT),
        ("cut-within-a-letter.txt", b"x" * 65535 + "ü".encode() * 9, MediaType.TEXT),
    ],
)
def test_content_and_name_agree(tmp_path: Path, name: str, content: bytes, media_type: MediaType) -> None:
    assert kind(tmp_path, name, content) is media_type


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("report.pdf", HTML, "an HTML page"),
        ("report.pdf", b"just words", "plain text"),
        ("report.pdf", PNG, "a PNG image"),
        ("report.docx", b"%PDF-1.7\n", "a PDF document"),
        ("notes.txt", b"%PDF-1.7\n", "a PDF document"),
        ("photo.jpg", b"\xff\xd8\xff\xe0", "a JPEG image"),
        ("photo.jpg", b"just words", "plain text"),
        ("rows.csv", PNG, "a PNG image"),
        ("backup.gz", gzip.compress(b"vault"), "a gzip archive"),
        ("letter.rtf", rb"{\rtf1 vault}", "an RTF document"),
        ("program.txt", b"\x7fELF" + bytes(60), "a program"),
        ("noise.txt", bytes(range(256)) * 8, "binary content of an unknown kind"),
    ],
)
def test_a_mismatch_or_unknown_kind_is_refused_with_what_was_found(
    tmp_path: Path, name: str, content: bytes, found: str
) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        kind(tmp_path, name, content)
    assert caught.value.found == found
    assert found in str(caught.value)
    assert ".docx" in str(caught.value)


def test_the_message_names_the_broken_promise(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedMediaType, match=r"^The file is named \.pdf but holds an HTML page\. Supported: \.pdf"
    ):
        kind(tmp_path, "report.pdf", HTML)


@pytest.mark.parametrize("content", [b"", b" \r\n\t"])
def test_an_empty_file_is_named_so(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(EmptyFile):
        kind(tmp_path, "report.pdf", content)


def write_docx(path: Path) -> None:
    docx.Document().save(str(path))


def write_xlsx(path: Path) -> None:
    openpyxl.Workbook().save(path)


def write_odt(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")


def write_ods(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escape.txt", "vault")


def write_crowded_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(60_000):
            archive.writestr(f"word/a-rather-long-name-to-fill-the-directory-{number}.xml", b"")


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "vault.py")


@pytest.mark.parametrize(
    ("write", "name", "expected"),
    [
        (write_docx, "a.docx", MediaType.DOCX),
        (write_docx, "a", MediaType.DOCX),
        (write_docx, "a.xlsx", "a Word document (docx)"),
        (write_xlsx, "a.xlsx", MediaType.XLSX),
        (write_odt, "a.odt", MediaType.ODT),
        (write_ods, "a.ods", "an OpenDocument spreadsheet"),
        (write_zip, "a.zip", "a zip archive"),
        (write_zip, "a.docx", "a zip archive"),
        (write_crowded_zip, "a.docx", "a zip archive with too many entries"),
        (write_tar, "a.tar", "a tar archive"),
    ],
)
def test_containers_are_told_by_their_members(
    tmp_path: Path, write: Callable[[Path], None], name: str, expected: MediaType | str
) -> None:
    path = tmp_path / "upload"
    write(path)
    if isinstance(expected, MediaType):
        assert detect(path, name) is expected
    else:
        with pytest.raises(UnsupportedMediaType) as caught:
            detect(path, name)
        assert caught.value.found == expected


def test_a_damaged_container_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    write_docx(path)
    with pytest.raises(UnsupportedMediaType, match="damaged"):
        kind(tmp_path, "a.docx", path.read_bytes()[:3000])
