"""Finds chunks that say the same in almost the same words, so that a search gives each text once.

A hash that is stored with each chunk picks the few pairs that may be near-identical; their texts decide. So a hash
of another version of its library lets a duplicate through, and never hides a text.

The MinHash is Rensa's (0.5, September 2026): with its words cut, a paragraph of 125 takes 0.12 ms, of which the
sketch is a sixth. datasketch is kept as well and takes 0.1 ms more; simhash has had no release since 2022.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Protocol, TypeVar

from rapidfuzz.distance import Indel
from rensa import RMinHash

HASH_BITS = 64
ALL_BITS = (1 << HASH_BITS) - 1
SEED = 1
NEAR_BITS = 16
"""Hashes of near-identical texts differ in so many bits at most. Measured on SQuAD's 2,067 paragraphs: with a word in
twelve changed 1 of 2,000 is farther from its origin; of unrelated pairs 1 of 16,000 is nearer, and is compared in vain.
"""
SHORT_WORDS = 20
"""In a text of fewer words a changed one may be the point of it: such texts are the same or are not."""
SAME_SHARE = 0.9
"""Of the words of both texts, those that stand in both in one order."""

_YEAR = r"(?:1[5-9]|20)\d\d"
_DATE = re.compile(
    rf"\b(?:{_YEAR}-\d\d-\d\d"
    rf"|\d{{1,2}}[./-]\d{{1,2}}[./-]{_YEAR}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\.?\s+(?:of\s+|de\s+)?[^\W\d_]{{3,12}}\.?,?\s+(?:de\s+)?{_YEAR}"
    rf"|[^\W\d_]{{3,12}}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+{_YEAR})\b",
    re.IGNORECASE,
)
"""A day with its year. A year alone is a figure: what is said of 2022 is not said of 2023."""
_PAGE = re.compile(
    r"\b(?:page|seite|p[aá]gina|p\.)\s*\d{1,5}(?:\s*(?:of|/|von|sur|de|di)\s*\d{1,5})?\b", re.IGNORECASE
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_LONE_NUMBER = re.compile(r"\s*[-–—]?\s*\d{1,4}\s*[-–—]?\s*")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
"""In a script without spaces each character, or a sentence would be one word."""
_DIGIT = re.compile(r"\d")


class Similar(Protocol):
    """A chunk as far as it matters here. One without a hash is taken for unlike all others."""

    @property
    def headings(self) -> tuple[str, ...]: ...
    @property
    def text(self) -> str: ...
    @property
    def similarity_hash(self) -> int | None: ...


SimilarChunk = TypeVar("SimilarChunk", bound=Similar)


def without_duplicates(best_first: Iterable[SimilarChunk]) -> list[SimilarChunk]:
    """Leaves out the chunks that are near-identical to a better one, whichever collections hold them."""
    kept: list[tuple[SimilarChunk, _Reading]] = []
    for chunk in best_first:
        reading = _Reading(chunk.text)
        if not any(_repeats(chunk, reading, better, its) for better, its in kept):
            kept.append((chunk, reading))
    return [chunk for chunk, _ in kept]


def is_near_identical(text: str, other: str) -> bool:
    """Whether two texts are one but for whitespace, case, punctuation, dates, page numbers and a few words.

    Another figure makes another text: accounts and tables are alike in all but their figures.
    """
    return _Reading(text).is_near(_Reading(other))


def similarity_hash(text: str) -> int:
    """A signed 64-bit number, which differs in few bits from that of a near-identical text.

    Each bit is the lowest of a MinHash over pairs of words: the share of bits in which two hashes differ is
    (1 - J) / 2 on average, J being the Jaccard similarity of the two sets of pairs. Source: Li and König, b-Bit
    Minwise Hashing, 2010.
    """
    words = _words(text)
    pairs = [f"{word} {after}" for word, after in pairwise(words)]
    sketch = RMinHash(num_perm=HASH_BITS, seed=SEED)
    sketch.update(pairs or words)
    bits = 0
    for value in sketch.digest():
        bits = bits << 1 | value & 1
    return bits - (1 << HASH_BITS) if bits >> (HASH_BITS - 1) else bits


def hash_distance(one: int, other: int) -> int:
    """In how many bits two hashes differ."""
    return ((one ^ other) & ALL_BITS).bit_count()


def _repeats(chunk: Similar, reading: "_Reading", better: Similar, its: "_Reading") -> bool:
    if chunk.similarity_hash is None or better.similarity_hash is None:
        return False
    if hash_distance(chunk.similarity_hash, better.similarity_hash) > NEAR_BITS:
        return False
    if chunk.headings != better.headings and reading.is_short:
        # "Yes." below one question is not "Yes." below another.
        return False
    return reading.is_near(its)


class _Reading:
    """A text as it is compared; its words are cut once, and only if a hash asks for it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def is_near(self, other: "_Reading") -> bool:
        if self.text == other.text:
            return True
        if self.is_short or other.is_short:
            return self.text.split() == other.text.split()
        if self.figures != other.figures:
            return False
        return Indel.normalized_similarity(self.words, other.words) >= SAME_SHARE

    @property
    def is_short(self) -> bool:
        return len(self.words) < SHORT_WORDS

    @cached_property
    def words(self) -> list[str]:
        return _words(self.text)

    @cached_property
    def figures(self) -> list[str]:
        return [word for word in self.words if _DIGIT.search(word)]


def _words(text: str) -> list[str]:
    """Without dates and page numbers."""
    paragraphs = _PARAGRAPH_END.split(text)
    numbers = [paragraph for paragraph in paragraphs if _LONE_NUMBER.fullmatch(paragraph)]
    # Several numbers that stand alone are a column, not the foot of a page.
    if len(numbers) == 1:
        paragraphs.remove(numbers[0])
    without = _PAGE.sub(" ", _DATE.sub(" ", "\n".join(paragraphs)))
    return _WORD.findall(without.casefold())
