"""Reads text as it stands (notes, source code, JSON, XML), so that every line can be quoted as written.

unstructured is not asked for these: it re-flows paragraphs and takes bullets away, and there is nothing to
recognise.
"""

from pathlib import Path

from ingest.elements import ElementKind, ParsedDocument
from ingest.media_types import encoding_of
from ingest.parse.build import DocumentBuilder, paragraphs, text_lines

MAX_TITLE_CHARS = 200


def parse_plain(path: Path) -> ParsedDocument:
    """Blank lines part blocks; a first block of one short line is the title. Raises ParseFailed (empty)."""
    builder = DocumentBuilder()
    blocks = list(paragraphs(read_text(path)))
    for block in blocks:
        builder.add(ElementKind.TEXT, text_lines(block))
    first = blocks[0].strip() if len(blocks) > 1 else ""
    is_title = 0 < len(first) <= MAX_TITLE_CHARS and "\n" not in first
    return builder.build(title=" ".join(first.split()) if is_title else None)


def read_text(path: Path) -> str:
    """The file decoded; bytes that are no text in its encoding become U+FFFD, so the rest is not lost."""
    return decode(path.read_bytes())


def decode(content: bytes) -> str:
    """`content` in the encoding that its first 64 KiB show."""
    # One wrong byte in a long UTF-8 text must not turn every accent of it into two letters.
    valid_share = len(content.decode("utf-8", "ignore").encode()) / max(1, len(content))
    encoding = encoding_of(content[: 1 << 16])
    if encoding == "cp1252" and b"\x00" not in content and valid_share > 0.999:
        encoding = "utf-8"
    return content.decode(encoding or "cp1252", "replace")
