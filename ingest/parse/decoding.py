"""Opens a text in whatever encoding it is in, as a stream, so that its size does not matter."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

import chardet

from ingest.encodings import SAMPLE_BYTES, unicode_encoding


@contextmanager
def open_text(path: Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """The file decoded; bytes that are no text in its encoding become U+FFFD, so the rest is not lost."""
    with path.open("rb") as file:
        encoding = encoding_of(file)
        file.seek(0)
        with io.TextIOWrapper(file, encoding=encoding, errors="replace", newline=newline) as text:
            yield text


def read_text(path: Path) -> str:
    """The whole text, for the formats that cannot be read bit by bit."""
    with open_text(path) as text:
        return text.read()


def decode(content: bytes) -> str:
    """The text of bytes whose encoding nobody told."""
    return content.decode(encoding_of(io.BytesIO(content)), "replace")


def encoding_of(file: BinaryIO) -> str:
    """The name of the encoding, by what it marks, by validity, and else by which letters it gives."""
    head = file.read(SAMPLE_BYTES)
    marked = unicode_encoding(head)
    if marked is not None:
        return marked
    sample = _telling_bytes(file, head)
    valid_share = len(sample.decode("utf-8", "ignore").encode()) / max(1, len(sample))
    # One wrong byte in a long UTF-8 text must not turn every accent of it into two letters.
    if valid_share > _MOSTLY and _SHIFT not in sample:
        return "utf-8"
    guess = (chardet.detect(sample)["encoding"] or "cp1252").lower()
    odd_letters = sum(byte > 0x7F for byte in sample)
    if guess not in _OF_MANY_BYTES and odd_letters < min(_ENOUGH_LETTERS, len(sample) / 4):
        # A few accents and dashes in Latin text tell nothing: the commonest encoding of them it is.
        return "cp1252"
    if _C1_CONTROL.search(sample):
        guess = _WINDOWS_SIBLING.get(guess, guess)
    return _READ_AS.get(guess, guess)


_MOSTLY = 0.999
_SHIFT = b"\x1b$"
"""How ISO-2022 goes from ASCII to Japanese or Korean, written in the same bytes."""
_ENOUGH_LETTERS = 5
_OF_MANY_BYTES = {
    "big5",
    "cp932",
    "cp949",
    "euc-jp",
    "euc-kr",
    "gb18030",
    "iso-2022-jp",
    "shift_jis",
    "utf-8",
}
_C1_CONTROL = re.compile(rb"[\x80-\x9f]")
_WINDOWS_SIBLING = {
    "iso8859-15": "cp1252",
    "iso-8859-2": "cp1250",
    "iso-8859-5": "cp1251",
    "iso-8859-7": "cp1253",
    "iso-8859-8": "cp1255",
    "iso-8859-9": "cp1254",
    "iso-8859-13": "cp1257",
}
"""These bytes are letters and quotes in Windows, and in ISO 8859 controls that no text has."""
_READ_AS = {
    "ascii": "utf-8",
    # Supersets, in which the few letters that differ are found too.
    "iso-8859-1": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
}


def _telling_bytes(file: BinaryIO, head: bytes) -> bytes:
    """Stretches with letters beyond ASCII: of a long log the first may come after a gigabyte."""
    if len(head) < SAMPLE_BYTES:
        return head
    stretches = [] if head.isascii() else [head]
    rest = SAMPLE_BYTES * (_STRETCHES - len(stretches))
    while rest > 0 and (block := file.read(1 << 20)):
        if not block.isascii() or b"\x1b" in block:
            # Whole lines, so that no letter is cut.
            for line in block.split(b"\n")[1:-1] or [block]:
                if not line.isascii() and rest > 0:
                    stretches.append(line[:SAMPLE_BYTES])
                    rest -= len(stretches[-1])
    return b"\n".join(stretches) or head


_STRETCHES = 4
