"""What a reader sees of a text: without what is invisible, for parsers and for the prompt. Pure."""

import re
import unicodedata


def clean(text: str) -> str:
    """`text` without what a reader cannot see, so that what is quoted is what was read.

    Removes control, zero-width, direction and tag characters and variation selectors (a way to hide
    instructions from the person who reads the document), but keeps the joiners that Arabic and Indic spelling
    needs, and those within one emoji. Line ends become "\\n", special spaces plain ones, ligatures letters; the
    rest is put in Unicode's form NFC. What is no character (lone surrogates) becomes U+FFFD, since no database
    takes it.
    """
    if text.isascii() and not _ASCII_ODDITIES.search(text):
        return text
    if not _ODDITIES.search(text) and unicodedata.is_normalized("NFC", text):
        # Nearly all text; what follows takes ten times as long.
        return text
    if _SURROGATES.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _LINE_ENDS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    text = _JOINERS.sub(lambda joiner: joiner["needed"] or "", text)
    text = _SPACES.sub(" ", text).translate(_LIGATURES)
    return unicodedata.normalize("NFC", text)


_ASCII_ODDITIES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffc\ufffe\uffff\U000e0000-\U000e0fff]"
)
_JOINED = "\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
_EMOJI = "\u2194-\u21aa\u231a-\u23ff\u25aa-\u27bf\u2b05-\u2b55\U0001f000-\U0001faff"
_JOINERS = re.compile(
    f"(?P<needed>(?<=[{_JOINED}])[\u200c\u200d](?=[{_JOINED}])|(?<=[{_EMOJI}])\u200d(?=[{_EMOJI}]))"
    "|[\u200c\u200d]"
)
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_LIGATURES = str.maketrans(
    {
        "\ufb00": "ff",
        "\ufb01": "fi",
        "\ufb02": "fl",
        "\ufb03": "ffi",
        "\ufb04": "ffl",
        "\ufb05": "st",
        "\ufb06": "st",
        "\uf0b7": "•",  # the bullet of Word's Symbol font
    }
)
_ODDITIES = re.compile(
    f"[\ud800-\udfff\r\x0b\x0c\x85\u2028\u2029\u200c\u200d{''.join(map(chr, _LIGATURES))}]"
    f"|{_INVISIBLE.pattern}|{_SPACES.pattern}"
)
"""Any character that is not kept as it is."""
