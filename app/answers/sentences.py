"""Where sentences end, in documents and in answers that are still being written, in any script."""

import re
from dataclasses import dataclass

ENDS = ".!?…"
"""They end a sentence where white space follows."""
FULL_ENDS = "。！？｡।۔؟"
"""They end one whatever follows."""
CLOSING = "\"'”’»)]』」）】*_"
"""Quotes and brackets after an end belong to the sentence, as does the end of what is bold."""
TAIL = 24
"""So much of a sentence's end tells whether it is one."""

_CLOSING = re.escape(CLOSING)
# Possessive, and begun at the first of several signs only: each character is read once, in any text.
_END = re.compile(
    rf"(?<![{ENDS}])[{ENDS}]++[{_CLOSING}]*+(?=\s)"
    rf"|(?<![{FULL_ENDS}])[{FULL_ENDS}]++[{_CLOSING}]*+"
    r"|\n[^\S\n]*+\n"
)
_AT_END = re.compile(rf"[{ENDS}{FULL_ENDS}]+[{_CLOSING}]*\Z")
_AT_FULL_END = re.compile(rf"[{FULL_ENDS}]+[{_CLOSING}]*\Z")
_ABBREVIATION = re.compile(
    r"\b(?:[A-Za-z]|Dr|Mr|Mrs|Ms|Mme|Prof|St|Sr|Jr|Gen|Col|Lt|Capt|Sgt|Rev|Hon|Gov|Sen|Rep|No|Nr|Vol|Fig|Figs|Eq|Sec|Ch"
    r"|pp|cf|al|vs|etc|ca|approx|e\.g|i\.e|z\.B|d\.h|u\.a|bzw|Inc|Ltd|Co|Corp|Bros|Jan|Feb|Mar|Apr|Aug|Sept|Sep|Oct|Nov"
    r"|Dec|(?:am|vom|zum|bis|der|den|dem|seit|ab) \d{1,2})\.\Z"
)
_NUMBERING = re.compile(r"\s*\d{1,4}\.\Z")


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of some text."""

    start: int
    end: int


def sentences(text: str) -> list[Span]:
    """Where the sentences of a text stand, surrounding white space left out. A line's end may be inside one."""
    spans: list[Span] = []
    start = 0
    for match in _END.finditer(text):
        if is_end(text[max(start, match.end() - TAIL) : match.end()], is_whole=match.end() - start <= TAIL):
            spans.append(Span(start, match.end()))
            start = match.end()
    spans.append(Span(start, len(text)))
    return [trimmed for span in spans if (trimmed := trim(text, span)) is not None]


def is_end(tail: str, *, is_whole: bool) -> bool:
    """Whether a sentence is over, if white space follows. `tail` is its end, or, with `is_whole`, all of it."""
    if tail.endswith("\n"):
        return True
    if _AT_END.search(tail) is None or _ABBREVIATION.search(tail):
        return False
    return not (is_whole and _NUMBERING.match(tail))


def is_full_end(tail: str) -> bool:
    """Whether a sentence is over, if neither white space nor a closing sign follows."""
    return _AT_FULL_END.search(tail) is not None


def trim(text: str, span: Span) -> Span | None:
    """The span without white space at its ends; None when there is nothing else in it."""
    piece = text[span.start : span.end]
    start = span.start + len(piece) - len(piece.lstrip())
    end = span.end - (len(piece) - len(piece.rstrip()))
    return Span(start, end) if end > start else None
