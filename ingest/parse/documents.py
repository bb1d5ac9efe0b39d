"""Reads office files, web pages, mail and e-books with unstructured; the only module that imports it.

unstructured tags every sentence with a spaCy model, which it downloads when missing, to guess from the
grammar which line is a title. That guess is not wanted here: headings come from the document's own styles and
tags. So `prepare` gives it an empty model that only parts sentences, and the sandbox sets
UNSTRUCTURED_TITLE_MAX_WORD_LENGTH=0 to stop the guessing. Usage
notices and telemetry are off by the environment too.
"""

import email
import email.policy
import email.utils
from collections.abc import Iterable, Sequence
from email.message import MIMEPart
from pathlib import Path
from typing import Any

import oxmsg
import spacy
from unstructured.common.html_table import HtmlTable
from unstructured.nlp import tokenize
from unstructured.partition.docx import partition_docx
from unstructured.partition.epub import partition_epub
from unstructured.partition.html import partition_html
from unstructured.partition.md import partition_md
from unstructured.partition.odt import partition_odt
from unstructured.partition.pptx import partition_pptx

from ingest.elements import ElementKind, ParsedDocument, ParseFailed, ParseFailure
from ingest.parse.archives import check_archive
from ingest.parse.build import DocumentBuilder, Line, clean, paragraphs, text_lines
from ingest.parse.plain import decode, read_text


def prepare(folder: Path) -> None:
    """Gives unstructured a sentence splitter kept in `folder`; call it once before the first parse."""
    sentences = spacy.blank("en")
    sentences.add_pipe("sentencizer")
    sentences.to_disk(folder / "sentences")
    tokenize._SPACY_MODEL_NAME = str(folder / "sentences")  # noqa: SLF001 - it has no setting for this


def parse_docx(path: Path) -> ParsedDocument:
    """A Word document; pages are those that Word noted at its last save. Raises ParseFailed."""
    check_archive(path)
    return _built(partition_docx(str(path), include_page_breaks=False, **_NO_DETECTION))


def parse_odt(path: Path) -> ParsedDocument:
    """An OpenDocument text. Raises ParseFailed."""
    check_archive(path)
    return _built(partition_odt(str(path), include_page_breaks=False, **_NO_DETECTION))


def parse_epub(path: Path) -> ParsedDocument:
    """An e-book. Raises ParseFailed."""
    check_archive(path)
    return _built(partition_epub(str(path), **_NO_DETECTION))


def parse_pptx(path: Path) -> ParsedDocument:
    """Slides as pages, with their notes. Raises ParseFailed."""
    check_archive(path)
    found = partition_pptx(str(path), include_page_breaks=False, include_slide_notes=True, **_NO_DETECTION)
    return _built(found, slides=True)


def parse_html(path: Path) -> ParsedDocument:
    """A web page as a browser shows its text. Raises ParseFailed (empty)."""
    builder = DocumentBuilder()
    _add_blocks(builder, _html_blocks(read_text(path)))
    return builder.build()


def parse_markdown(path: Path) -> ParsedDocument:
    """Markdown as it is rendered; front matter stays as it is written. Raises ParseFailed (empty)."""
    text = clean(read_text(path))
    builder = DocumentBuilder()
    if text.startswith("---\n"):
        front, separator, rest = text[4:].partition("\n---\n")
        if separator:
            builder.add(ElementKind.TEXT, text_lines(front))
            text = rest
    # Without text partition_md asks for a file instead.
    if text.strip():
        _add_blocks(builder, partition_md(text=text, **_NO_DETECTION))
    return builder.build()


def parse_eml(path: Path) -> ParsedDocument:
    """A mail: the subject as heading, who wrote to whom and when, the body. Raises ParseFailed."""
    with path.open("rb") as file:
        message = email.message_from_binary_file(file, policy=email.policy.default)
    if message.get_content_type() in _ENCRYPTED_MAIL:
        raise ParseFailed(
            ParseFailure.ENCRYPTED,
            "This message is encrypted. Decrypt it in your mail program and save it again.",
        )
    builder = DocumentBuilder()
    headers = [(name, str(message[name])) for name in _MAIL_HEADERS if message[name]]
    attachments = [part.get_filename() or "unnamed" for part in message.iter_attachments()]
    _add_mail_headers(builder, str(message["Subject"] or ""), headers, attachments)
    body = message.get_body(("html", "plain"))
    if body is not None:
        is_html = body.get_content_type() == "text/html"
        _add_mail_body(builder, _part_text(body), is_html=is_html)
    return builder.build()


def parse_msg(path: Path) -> ParsedDocument:
    """An Outlook message, shown like any other mail. Raises ParseFailed."""
    message = oxmsg.Message.load(str(path))
    if "encrypted" in message.message_headers.get("Content-Type", ""):
        raise ParseFailed(
            ParseFailure.ENCRYPTED, "This message is encrypted. Decrypt it in Outlook and save it again."
        )
    recipients = ", ".join(
        email.utils.formataddr((person.name, person.email_address)) for person in message.recipients
    )
    sent = message.sent_date.strftime("%a, %d %b %Y %H:%M:%S %z").strip() if message.sent_date else ""
    headers = [("From", message.sender or ""), ("To", recipients), ("Date", sent)]
    builder = DocumentBuilder()
    attachments = [attachment.file_name or "unnamed" for attachment in message.attachments]
    _add_mail_headers(builder, message.subject or "", headers, attachments)
    _add_mail_body(builder, message.html_body or message.body or "", is_html=bool(message.html_body))
    return builder.build()


_NO_DETECTION: dict[str, Any] = {"languages": [""]}
"""Language detection is slow and its answer is not used."""
_MAIL_HEADERS = ("From", "To", "Cc", "Date")
_ENCRYPTED_MAIL = {"multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"}


def _built(found: Sequence[Any], *, slides: bool = False) -> ParsedDocument:
    builder = DocumentBuilder()
    _add_blocks(builder, found, slides=slides)
    last_page = max((block.metadata.page_number or 0 for block in found), default=0)
    return builder.build(page_count=last_page or None)


def _html_blocks(html: str) -> Sequence[Any]:
    return partition_html(text=html, **_NO_DETECTION) if html.strip() else []


def _add_mail_headers(
    builder: DocumentBuilder, subject: str, headers: Iterable[tuple[str, str]], attachments: Sequence[str]
) -> None:
    builder.add_heading([Line(subject)], level=0)
    named = [*headers, ("Attachments", ", ".join(attachments))]
    builder.add(ElementKind.TEXT, [Line(f"{name}: {value}") for name, value in named if value])


def _add_mail_body(builder: DocumentBuilder, body: str, *, is_html: bool) -> None:
    if is_html:
        _add_blocks(builder, _html_blocks(body), outer_level=1)
        return
    for block in paragraphs(body):
        builder.add(ElementKind.TEXT, text_lines(block))


def _part_text(part: MIMEPart) -> str:
    try:
        return str(part.get_content())
    except LookupError:
        # An unknown charset is named; the bytes are text all the same.
        return decode(bytes(part.get_payload(decode=True)))


_KINDS = {
    "ListItem": ElementKind.LIST_ITEM,
    "CodeSnippet": ElementKind.CODE,
    "Header": ElementKind.HEADER,
    "Footer": ElementKind.FOOTER,
}
_UNSEEN = {"PageBreak", "Image"}
"""An image's element holds its alternative text, which is not shown."""


def _add_blocks(
    builder: DocumentBuilder, blocks: Iterable[Any], *, outer_level: int = 0, slides: bool = False
) -> None:
    """Adds unstructured's elements; on slides a heading reaches no further than its own slide."""
    slide: int | None = None
    for block in blocks:
        page = block.metadata.page_number
        if slides and page != slide:
            builder.close_headings()
            slide = page
        if block.category == "Title":
            level = outer_level + (block.metadata.category_depth or 0)
            builder.add_heading(text_lines(block.text, page), level=level)
        elif block.category == "Table":
            _add_table(builder, block, page)
        elif block.category not in _UNSEEN:
            builder.add(_KINDS.get(block.category, ElementKind.TEXT), text_lines(block.text, page))


def _add_table(builder: DocumentBuilder, block: Any, page: int | None) -> None:
    rows = _rows(block.metadata.text_as_html) or [[" ".join(clean(block.text).split())]]
    if max(len(cell) for row in rows for cell in row) > _MAX_CELL_CHARS:
        # Web pages and mails use tables to place whole texts side by side.
        for row in rows:
            for cell in row:
                builder.add(ElementKind.TEXT, [Line(cell, page)])
        return
    builder.add(ElementKind.TABLE, [Line(" | ".join(row), page) for row in rows])


_MAX_CELL_CHARS = 500


def _rows(html: str | None) -> list[list[str]]:
    """The filled cells of each row that has any."""
    if not html:
        return []
    rows = HtmlTable.from_html_text(html).iter_rows()
    filled = ([" ".join(clean(cell).split()) for cell in row.iter_cell_texts()] for row in rows)
    return [row for row in filled if row]
