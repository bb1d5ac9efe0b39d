"""Citations that were checked: each sentence of an answer against the passages, while it streams.

A model's own `[n]` is a hint where to look first, never a proof. It is taken out of the text; the sentence gets a
marker of ours if, and only if, some sentence of a passage supports it, and that sentence is the quote.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from retrieval.passages import Passage
from retrieval.places import Box

MIN_SUPPORT = 0.7
"""Share of a claim's content words that a quote must hold."""
MIN_CONTENT_WORDS = 2
"""Below it ("Yes.", "It is.") a sentence makes no claim that words alone could check."""
MAX_QUOTE_SENTENCES = 2
MAX_QUOTE_CHARS = 400
"""Longer ones are no sentences but tables or lists, whose single lines can be quoted."""

_WORD = re.compile(r"\w+(?:[-'’.,/]\w+)*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Za-z]|Dr|Mr|Mrs|Ms|Prof|St|No|vs|etc|e\.g|i\.e|approx|Fig|Nr)|^\s*\d+)\.$"
)
_NAME = re.compile(r"(?<=[\w,;:] )[A-Z][\w-]+")
"""A capital inside a sentence. Its first word has one anyway."""
_LIST_ITEM = re.compile(r"\s*(?:[-*•]|\d+[.)])\s")
_MARKER = re.compile(r"\s*\[\d{1,3}(?:\s*,\s*\d{1,3})*\]")
_MARKER_BEGUN = re.compile(r"\s*\[[\d,\s]{0,12}$|\s+$")
_STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "also",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "being",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "more",
        "most",
        "my",
        "no",
        "not",
        "of",
        "on",
        "one",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "per",
        "shall",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "under",
        "until",
        "up",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
        "according",
        "passage",
        "passages",
        "document",
        "documents",
        "answer",
        "question",
        "based",
        "provided",
        "states",
    ]
)


@dataclass(frozen=True)
class Citation:
    """A verbatim quote that supports a sentence, with its place.

    start_index and end_index are the marker's place in the answer; start_char and end_char the quote's in the
    document's text.
    """

    number: int
    """The passage's number as the model was told it, from 1."""
    start_index: int
    end_index: int
    passage: Passage
    quote: str
    start_char: int
    end_char: int
    page: int | None
    boxes: tuple[tuple[int, Box], ...]
    """Page and rectangle of each line that the quote touches."""
    score: float
    """Share of the sentence's content words that the quote holds."""


@dataclass
class CitationWriter:
    """Feeds on an answer's text as it is generated; gives back the text to show, and at the end the citations.

    Text goes out at once, but for a tail that could still become a marker: at most a few characters.
    """

    passages: Sequence[Passage]
    insert_markers: bool = True
    """False for answers whose text is not prose, such as JSON: then they stay as they are, but are cited."""
    citations: list[Citation] = field(default_factory=list)
    _held: str = ""
    _sentence: str = ""
    _hinted: list[int] = field(default_factory=list)
    _written: int = 0
    _code: str = ""
    """The backticks that opened the code that we are in: there, `[1]` is an index."""

    @property
    def started(self) -> bool:
        """Whether there was any text: a choice that is only a tool call has none to cite for."""
        return bool(self._written or self._held)

    def feed(self, text: str) -> str:
        self._held += text
        return "".join(self._take(final=False))

    def finish(self) -> str:
        """What was held back, and the last sentence's marker."""
        return "".join(self._take(final=True))

    def _take(self, *, final: bool) -> Iterator[str]:
        while self._held:
            prose = self.insert_markers and not self._code
            if prose and (marker := _MARKER.match(self._held)):
                self._hinted += [int(number) for number in re.findall(r"\d+", marker.group())]
                self._held = self._held[marker.end() :]
                continue
            if prose and not final and _MARKER_BEGUN.match(self._held):
                return
            yield from self._take_character()
        if final:
            yield from self._end_sentence()

    def _take_character(self) -> Iterator[str]:
        # A sentence ends where white space follows its full stop, so it is closed when that space is taken.
        character = self._held[0]
        if character.isspace() and not self._code and _ends_sentence(self._sentence, character):
            yield from self._end_sentence()
        self._code = _code_after(self._code, self._sentence, character)
        self._held = self._held[1:]
        self._sentence += character
        self._written += 1
        yield character

    def _end_sentence(self) -> Iterator[str]:
        sentence, hinted = self._sentence, self._hinted
        self._sentence, self._hinted = "", []
        supported = support(sentence, self.passages, hinted)
        if supported is None:
            return
        number, quote, score = supported
        marker = f" [{number}]" if self.insert_markers else ""
        passage = self.passages[number - 1]
        start_char, end_char = passage.start_char + quote.start, passage.start_char + quote.end
        self.citations.append(
            Citation(
                number=number,
                start_index=self._written + (1 if marker else -len(sentence.strip())),
                end_index=self._written + len(marker),
                passage=passage,
                quote=passage.text[quote.start : quote.end],
                start_char=start_char,
                end_char=end_char,
                page=_page(passage, start_char, end_char),
                boxes=_boxes(passage, start_char, end_char),
                score=score,
            )
        )
        self._written += len(marker)
        yield marker


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of some text."""

    start: int
    end: int


def support(claim: str, passages: Sequence[Passage], hinted: Sequence[int]) -> tuple[int, Span, float] | None:
    """The passage number, the stretch of it that supports a claim best, and how well; None if nothing does.

    Every number and every name that the claim contains must stand in the quote: those are what invented answers
    get wrong. Among equals a passage that the model named itself wins, then the shorter quote.
    """
    wanted = content_words(claim)
    if len(wanted) < MIN_CONTENT_WORDS:
        return None
    exact = {word for word in wanted if any(character.isdigit() for character in word)}
    names = content_words(" ".join(_NAME.findall(claim)))
    best: tuple[float, bool, int] | None = None
    found: tuple[int, Span, float] | None = None
    for number, passage in enumerate(passages, 1):
        # What a heading says holds for the sentences under it, but a number must stand in the quote itself.
        topic = content_words(" ".join([*passage.headings, passage.filename]))
        for span, words in _quotable(passage.text):
            if not exact <= words or not names <= words | topic:
                continue
            held = len(wanted & words) + 0.5 * len((wanted & topic) - words)
            score = held / len(wanted)
            rank = (round(score, 6), number in hinted, -(span.end - span.start))
            if (
                score >= MIN_SUPPORT
                and len(wanted & words) >= MIN_CONTENT_WORDS
                and (best is None or rank > best)
            ):
                best, found = rank, (number, span, min(score, 1.0))
    return found


def content_words(text: str) -> frozenset[str]:
    """Lower-case words without stop words, cut to a crude stem; numbers without their separators."""
    return frozenset(_stem(word) for word in _words(text) if word not in _STOP_WORDS)


def sentences(text: str) -> list[Span]:
    """Where the sentences of a text stand, surrounding white space left out. A line's end may be inside one."""
    spans: list[Span] = []
    start = 0
    for match in re.finditer(r"[.!?。！？]+[\"'”’)\]]*(?=\s)|\n\s*\n", text):
        if _ABBREVIATION.search(text[start : match.end()]):
            continue
        spans.append(Span(start, match.end()))
        start = match.end()
    spans.append(Span(start, len(text)))
    return [trimmed for span in spans if (trimmed := _trim(text, span)) is not None]


def _trim(text: str, span: Span) -> Span | None:
    piece = text[span.start : span.end]
    start = span.start + len(piece) - len(piece.lstrip())
    end = span.end - (len(piece) - len(piece.rstrip()))
    return Span(start, end) if end > start else None


@lru_cache(maxsize=64)
def _quotable(text: str) -> tuple[tuple[Span, frozenset[str]], ...]:
    """Every stretch of one or two sentences, and each single line (a table's row is one), with its words."""
    spans = sentences(text)
    stretches = {
        Span(spans[first].start, spans[last].end)
        for first in range(len(spans))
        for last in range(first, min(first + MAX_QUOTE_SENTENCES, len(spans)))
    }
    for line in re.finditer(r"[^\n]+", text):
        if (trimmed := _trim(text, Span(line.start(), line.end()))) is not None:
            stretches.add(trimmed)
    ordered = sorted(
        (span for span in stretches if span.end - span.start <= MAX_QUOTE_CHARS),
        key=lambda span: (span.start, span.end),
    )
    return tuple((span, content_words(text[span.start : span.end])) for span in ordered)


def _words(text: str) -> Iterator[str]:
    for match in _WORD.finditer(text.lower()):
        word = match.group()
        if word[0].isdigit() and not any(character.isalpha() for character in word):
            yield word.replace(",", "")
        else:
            yield from (part for part in re.split(r"[-'’.,/]", word) if part)


def _stem(word: str) -> str:
    if any(character.isdigit() for character in word):
        return word
    for ending in ("ies", "ing", "ed", "es", "s", "ly", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _ends_sentence(sentence: str, following: str) -> bool:
    if not sentence.strip():
        return False
    if following == "\n" and (sentence.endswith("\n") or _LIST_ITEM.match(sentence)):
        return True
    end = re.search(r"[.!?。！？]+[\"'”’)\]]*$", sentence)
    return end is not None and not _ABBREVIATION.search(sentence)


def _code_after(opened: str, sentence: str, character: str) -> str:
    """The open backticks after one more character; a line's end closes inline code, but not a fence."""
    if character == "\n":
        return opened if opened == "```" else ""
    if character != "`":
        return opened
    run = "`" * (len(sentence) - len(sentence.rstrip("`")) + 1)
    if len(run) == 1:
        return "" if opened == "`" else opened or "`"
    return "" if opened == "```" and len(run) == 3 else "```" if len(run) == 3 else opened


def _page(passage: Passage, start_char: int, end_char: int) -> int | None:
    pages = [
        place.page for place in passage.places if place.start_char < end_char and place.end_char > start_char
    ]
    return pages[0] if pages else None


def _boxes(passage: Passage, start_char: int, end_char: int) -> tuple[tuple[int, Box], ...]:
    return tuple(
        (place.page, place.box)
        for place in passage.places
        if place.start_char < end_char and place.end_char > start_char
        if place.page is not None and place.box is not None
    )
