"""The type of a file is what its content is, and a name that promises another is refused."""

import contextlib
import gzip
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import docx
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("rows.jsonl", b'{"a": 1}\n', MediaType.NDJSON),
        ("notes.ipynb", b'{"cells": [], "nbformat": 4}', MediaType.NOTEBOOK),
        ("rows.xml", b"<rows/>", MediaType.XML),
        ("utf16.xml", "<rows/>".encode("utf-16"), MediaType.XML),
        ("talk.vtt", b"WEBVTT\n\n00:01.000 --> 00:02.000\nHi", MediaType.VTT),
        ("talk.srt", b"1\r\n00:00:01,000 --> 00:00:02,000\r\nHi", MediaType.SRT),
        ("letter.rtf", rb"{\rtf1 vault}", MediaType.RTF),
        ("guide.rst", b"Vault\n=====\n", MediaType.RST),
        ("guide.org", b"* Vault", MediaType.ORG),
        ("guide.adoc", b"= Vault", MediaType.ASCIIDOC),
        ("thesis.tex", rb"\documentclass{article}", MediaType.LATEX),
        ("main.py", b"import this\n", MediaType.CODE),
        ("run.sh", b"#!/bin/sh\nls\n", MediaType.CODE),
        ("run", b"#!/bin/sh\nls\n", MediaType.CODE),
        ("server.log", b"09:00 the vault opens", MediaType.TEXT),
        ("photo.png", PNG, MediaType.PNG),
        ("photo", PNG, MediaType.PNG),
        ("photo.jpeg", b"\xff\xd8\xff\xe0", MediaType.JPEG),
        ("japanese.txt", "金庫室は九時に開きます。".encode("shift_jis"), MediaType.TEXT),
        ("chinese.txt", "保险库九点开门。\n".encode("utf-16-be"), MediaType.TEXT),
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
        ("photo.jpg", b"just words", "plain text"),
        ("photo.jpg", PNG, "a PNG image"),
        ("rows.csv", PNG, "a PNG image"),
        ("rows.csv", HTML, "an HTML page"),
        ("rows.csv", b"#!/bin/sh\nrm -r /\n", "a script"),
        ("page.html", b"#!/usr/bin/env python\nimport os\n", "a script"),
        ("rows.json", b"<rows/>", "plain text"),
        ("rows.json", b'<?xml version="1.0"?><rows/>', "an XML document"),
        ("letter.doc", rb"{\rtf1 vault}", "an RTF document"),
        ("talk.vtt", b"1\n00:00:01,000 --> 00:00:02,000\nHi", "plain text"),
        ("backup.gz", gzip.compress(b"vault", mtime=0), "a single file packed with gzip"),
        ("backup.tar.gz", gzip.compress(b"vault", mtime=0), "a single file packed with gzip"),
        ("backup.tar.xz", b"\xfd7zXZ\x00 and no more", "a damaged compressed file"),
        ("program.txt", b"\x7fELF" + bytes(60), "a program"),
        ("report.pdf", b"MZ\x90\x00\x03" + bytes(60) + b"%PDF-1.7", "a program"),
        ("report.pdf", b"<script>%PDF-1.7", "plain text"),
        ("index.pkl", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05vault\x94.", "a Python pickle"),
        ("index.txt", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05vault\x94.", "a Python pickle"),
        ("index.pkl", b"(dp0\nS'vault'\np1\n.", "plain text"),
        ("array.npy", b"\x93NUMPY\x01\x00", "a NumPy array"),
        ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
        ("drawing.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
        ("backup.7z", b"7z\xbc\xaf\x27\x1c\x00\x04", "a 7z archive"),
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
        UnsupportedMediaType,
        match=r"^The file is named \.pdf but holds an HTML page\. If that is what it should be, "
        r"let its name end in \.html\. Supported: \.pdf",
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


def write_pages(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Index/Document.iwa", b"vault")


def write_macros(path: Path) -> None:
    write_docx(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("word/vbaProject.bin", b"vault")


def write_checkpoint(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"vault")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escape.txt", "vault")


def write_crowded_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(60_000):
            archive.writestr(f"word/a-rather-long-name-to-fill-the-directory-{number}.xml", b"")


def write_tar(path: Path, mode: Literal["w", "w:gz", "w:bz2", "w:xz"] = "w") -> None:
    with tarfile.open(path, mode) as archive:
        archive.add(__file__, "vault.py")


@pytest.mark.parametrize(
    ("write", "name", "expected"),
    [
        (write_docx, "a.docx", MediaType.DOCX),
        (write_docx, "a", MediaType.DOCX),
        (write_docx, "a.xlsx", "a Word document (docx)"),
        (write_xlsx, "a.xlsx", MediaType.XLSX),
        (write_odt, "a.odt", MediaType.ODT),
        (write_ods, "a.ods", MediaType.ODS),
        (write_ods, "a.xlsx", "an OpenDocument spreadsheet (ods)"),
        (write_zip, "a.zip", MediaType.ZIP),
        (write_zip, "a.docx", "a zip archive"),
        (write_docx, "a.zip", "a Word document (docx)"),
        (write_crowded_zip, "a.docx", "a zip archive with too many entries"),
        (write_pages, "a.pages", "an Apple iWork document"),
        (write_macros, "a.docm", "an Office document with macros"),
        (write_checkpoint, "model.pt", "a Python pickle"),
        (write_tar, "a.tar", MediaType.TAR),
        (write_tar, "a", MediaType.TAR),
        (partial(write_tar, mode="w:gz"), "a.tar.gz", MediaType.TAR),
        (partial(write_tar, mode="w:gz"), "a.tgz", MediaType.TAR),
        (partial(write_tar, mode="w:bz2"), "a.tar.bz2", MediaType.TAR),
        (partial(write_tar, mode="w:xz"), "a.tar.xz", MediaType.TAR),
        (write_tar, "a.zip", "a tar archive"),
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


def test_a_compressed_bomb_is_told_without_being_inflated(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(gzip.compress(bytes(200 << 20), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(UnsupportedMediaType, match="single file packed with gzip"):
        detect(path, "zeros.gz")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 << 20


@pytest.mark.parametrize(
    "name", ["notes", "notes.txt", "notes.docx", "notes.csv", "notes.json", "notes.zip", "notes.7z"]
)
@given(content=st.binary(min_size=1, max_size=600))
def test_any_bytes_are_a_type_or_refused(
    name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(content)
    with contextlib.suppress(UnsupportedMediaType, EmptyFile):
        assert detect(path, name) in MediaType
