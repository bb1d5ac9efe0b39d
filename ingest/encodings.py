"""Tells text from other bytes, and finds the Unicode encodings, by a file's first bytes alone.

Quick and bounded, since the upload route asks. Which of the older encodings a text is in takes statistics, and
is asked in the sandbox only: `ingest/parse/decoding.py`.
"""

import codecs
import unicodedata

SAMPLE_BYTES = 1 << 16


def unicode_encoding(head: bytes) -> str | None:
    """A UTF-16 or UTF-32 that the text is in, or any encoding that it names by a mark; None for all others."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if b"\x00" not in head and (len(head) < _MIN_WIDE_BYTES or _has_few_controls(head)):
        return None
    whole = head[: len(head) - len(head) % 4]
    readings = [(encoding, _wide_text(whole, encoding)) for encoding in _WIDE_ENCODINGS]
    # In the wrong byte order, spaces and line ends become letters of far-away scripts.
    best = max(readings, key=lambda reading: reading[1])
    return best[0] if best[1] > 0 else None


def is_text(head: bytes) -> bool:
    """True for what may be text in some encoding: nearly no control characters, whatever the letters are."""
    if unicode_encoding(head) is not None:
        return True
    return _has_few_controls(head)


def first_text(head: bytes) -> str:
    """What stands at the beginning of a text, with ASCII letters right whatever the encoding is."""
    return head.decode(unicode_encoding(head) or "latin-1", "replace").lstrip("\ufeff")


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WIDE_ENCODINGS = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_MIN_WIDE_BYTES = 256
"""With no zero byte, as in Chinese UTF-16 of one line, fewer bytes may be letters by chance."""
_NO_CONTROLS = bytes({*range(256)} - {*range(0x20), 0x7F} | {*b"\t\n\r\f\x1b\x1a"})
_MAX_CONTROL_SHARE = 0.005
"""A stray byte of a terminal or a form feed happens; of compressed bytes an eighth are controls."""
_PROBE_BYTES = 4096


def _has_few_controls(head: bytes) -> bool:
    return len(head.translate(None, delete=_NO_CONTROLS)) <= len(head) * _MAX_CONTROL_SHARE


def _wide_text(head: bytes, encoding: str) -> float:
    """How much the bytes look like text in this encoding: 0 for not at all."""
    probe = head[:_PROBE_BYTES]
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(probe, final=False)
    except UnicodeDecodeError:
        return 0.0
    if not text or any(
        unicodedata.category(character) in _NEVER_TEXT and character not in "\t\n\r\f" for character in text
    ):
        return 0.0
    common = sum(character.isalnum() or character in " \n,.;:-" for character in text if character < "\u3100")
    return (1 + common) / len(probe)


_NEVER_TEXT = {"Cc", "Cn", "Co", "Cs"}
