"""Puts words together that a PDF's headings have in two pieces, by the other words of the document.

Filings to the SEC are full of them: an anchor before the last letters leaves a gap there ("Balance Shee t"). It is as
wide as that between words: 0.16 to 0.27 of the type's size, and that between words from 0.15 on, so that the boxes of
the letters cannot tell.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from ingest.parse.pdf_segments import Segment


class KnownWords:
    """How often each word stands in a document, as far as its pages have come in."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def learn(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            words = _WORD.findall(segment.text.lower())
            # A scan of noise or a list of parts has no end of them.
            known = (
                words if len(self._counts) < _MAX_WORDS else [word for word in words if word in self._counts]
            )
            self._counts.update(known)

    def mended(self, heading: str) -> str:
        """The heading with each two pieces joined that are rare beside the word that they make."""
        breaks = [
            left.end()
            for left, right in pairwise(_WORD.finditer(heading))
            if heading[left.end() : right.start()] == " " and self._is_one(left[0].lower(), right[0].lower())
        ]
        for at in reversed(breaks):
            heading = heading[:at] + heading[at + 1 :]
        return heading

    def _is_one(self, left: str, right: str) -> bool:
        whole = self._counts[left + right]
        rarer = min(self._counts[left], self._counts[right])
        return len(left + right) >= _MIN_LETTERS and whole >= _MIN_COUNT and rarer * _TIMES_RARER < whole


_WORD = re.compile(r"[^\W\d_]+")
_MAX_WORDS = 200_000
_MIN_LETTERS = 4
_MIN_COUNT = 3
_TIMES_RARER = 4
