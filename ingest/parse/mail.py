"""Reads mails: the subject as heading, who wrote to whom and when, the body; what came with them is given on."""

import email
import email.policy
import email.utils
import io
from collections.abc import Iterable, Iterator, Sequence
from email.message import EmailMessage, MIMEPart
from pathlib import Path

import oxmsg

from ingest.elements import ElementKind, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.build import DocumentBuilder, Line, paragraphs, text_lines
from ingest.parse.decoding import decode
from ingest.parse.documents import add_html
from ingest.parse.folders import MAX_DEPTH, as_attachment


def parse_eml(path: Path, options: ParseOptions) -> Iterator[Parsed]:
    """A mail as RFC 822 has it. Raises ParseFailed."""
    with path.open("rb") as file:
        message = email.message_from_binary_file(file, policy=email.policy.default)
    if message.get_content_type() in _ENCRYPTED_MAIL:
        raise ParseFailed(
            ParseFailure.ENCRYPTED,
            "This message is encrypted. Decrypt it in your mail program and save it again.",
        )
    headers = [(name, str(message[name])) for name in _MAIL_HEADERS if message[name]]
    attachments = [(_attachment_name(part), part) for part in message.iter_attachments()]
    builder = DocumentBuilder()
    _add_headers(builder, str(message["Subject"] or ""), headers, [name for name, _ in attachments])
    body = message.get_body(("html", "plain"))
    if body is not None:
        _add_body(builder, _part_text(body), is_html=body.get_content_type() == "text/html")
    yield from builder.finish()
    if options.depth < MAX_DEPTH:
        for name, part in attachments:
            yield from as_attachment(name, io.BytesIO(_part_bytes(part)))


def parse_msg(path: Path, options: ParseOptions) -> Iterator[Parsed]:
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
    attachments = [(attachment.file_name or "unnamed", attachment) for attachment in message.attachments]
    _add_headers(builder, message.subject or "", headers, [name for name, _ in attachments])
    _add_body(builder, message.html_body or message.body or "", is_html=bool(message.html_body))
    yield from builder.finish()
    if options.depth < MAX_DEPTH:
        for name, attachment in attachments:
            # A message within the message is no bytes but a storage; its name stands among the headers.
            yield from as_attachment(name, io.BytesIO(attachment.file_bytes or b""))


_MAIL_HEADERS = ("From", "To", "Cc", "Date")
_ENCRYPTED_MAIL = {"multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"}


def _add_headers(
    builder: DocumentBuilder, subject: str, headers: Iterable[tuple[str, str]], attachments: Sequence[str]
) -> None:
    builder.add_heading([Line(subject)], level=0)
    named = [*headers, ("Attachments", ", ".join(attachments))]
    builder.add(ElementKind.TEXT, [Line(f"{name}: {value}") for name, value in named if value])


def _add_body(builder: DocumentBuilder, body: str, *, is_html: bool) -> None:
    if is_html:
        add_html(builder, body, outer_level=1)
        return
    for block in paragraphs(body):
        builder.add(ElementKind.TEXT, text_lines(block))


def _attachment_name(part: MIMEPart) -> str:
    name = part.get_filename()
    if name:
        return name
    if part.get_content_type() != "message/rfc822":
        return "unnamed"
    forwarded = part.get_content()
    subject = forwarded["Subject"] if isinstance(forwarded, EmailMessage) else None
    return f"{subject or 'message'}.eml".replace("/", "-")


def _part_text(part: MIMEPart) -> str:
    try:
        return str(part.get_content())
    except LookupError:
        # An unknown charset is named; the bytes are text all the same.
        return decode(bytes(part.get_payload(decode=True)))


def _part_bytes(part: MIMEPart) -> bytes:
    if part.get_content_type() == "message/rfc822":
        forwarded = part.get_content()
        return forwarded.as_bytes() if isinstance(forwarded, EmailMessage) else b""
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""
