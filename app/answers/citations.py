"""Citations of an answer while it streams: its sentences, the model's markers out, ours in where a check allows it.

A model's own `[n]` is a hint where to look first, never a proof. It is taken out of the text; the sentence gets a
marker of ours if, and only if, a quote that stands in the stored text supports it.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from app.answers.checking import Checked, Checker, Outcome, Sentence, Support
from app.answers.sentences import CLOSING, ENDS, FULL_ENDS, TAIL, Span, is_end, is_full_end, sentences
from app.answers.tokens_shown import ShownTokens

MAX_SENTENCE_CHARS = 1_000
"""A longer one, of a model that writes no full stops, is ended at its next white space."""
FENCE = "```"

_LABELS = ("passages", "sources", "documents", "docs", "refs", "references", "citations")
_LABEL = "|".join(f"{label}?" for label in _LABELS)
_NUMBERS = r"[1-9]\d{0,2}(?:(?: ?[,;&–-] ?|,? and )[1-9]\d{0,2}){0,15}"
_MARKER = re.compile(
    rf" ?[\[【]\^?(?:(?:{_LABEL}) ?#?)?{_NUMBERS}(?:†[^\]】\n]{{0,40}})?[\]】]", re.IGNORECASE | re.ASCII
)
_MARKER_BEGUN = re.compile(
    r" ?(?:[\[【]\^?(?P<label>[a-z]{0,10})(?P<gap> ?#?)"
    rf"(?P<numbers>{_NUMBERS}(?: ?[,;&–-] ?|,? (?:a(?:n(?:d ?)?)?)?|†[^\]】\n]{{0,40}})?)?)?\Z",
    re.IGNORECASE | re.ASCII,
)
_PLAIN = re.compile(rf"[^\s`\[【{re.escape(ENDS + FULL_ENDS + CLOSING)}]+")
"""Characters that neither end a sentence nor begin anything: taken together."""
_RUN = re.compile(rf"(?: ?{_PLAIN.pattern}+)++")
"""Words of a sentence that goes on."""
_MAY_END = re.compile(rf"[\n{re.escape(ENDS + FULL_ENDS)}]")
_HEADING = re.compile(r"#{1,6}\s|\*\*[^*]+\*\*:?\Z")
_JSON_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


@dataclass(frozen=True)
class Citation:
    """A sentence of an answer and what supports it.

    start_index and end_index are the marker's place in the answer, or the sentence's where no marker was written:
    in a table or in JSON, and in a stream for what only a reranker could judge, since the text has gone on by then.
    """

    start_index: int
    end_index: int
    support: Support


@dataclass(frozen=True)
class Shown:
    """What a client gets next: text, which may be empty, and citations of sentences that have ended."""

    text: str
    citations: tuple[Citation, ...] = ()


@dataclass
class CitationWriter:
    """Cuts an answer's text into what can be shown at once and the sentences that end in it.

    Only a tail that could still become a marker is held back: a few characters. Whatever pieces the text comes in,
    what comes out is the same.
    """

    is_prose: bool = True
    """False for answers in a form that was asked for, such as JSON: they stay as they are, but are checked."""
    _held: str = ""
    _sentence: list[str] = field(default_factory=list)
    _length: int = 0
    _tail: str = ""
    _start: int | None = None
    """Where the sentence's first character that is no white space stands; None before it."""
    _end: int = 0
    _is_worded: bool = False
    """Whether there is a letter or digit in it: lines and bullets are no sentences."""
    _hinted: list[int] = field(default_factory=list)
    _written: int = 0
    read: int = 0
    """Characters of the model's that were shown or taken out so far."""
    removed: list[Span] = field(default_factory=list)
    """The model's markers: their places in what it wrote."""
    _code: str = ""
    """The backticks that opened the code that we are in: there, `[1]` is an index."""
    _ticks: int = 0
    _is_within: bool = False
    """Whether a plain character was last: no sentence ends before the next, whatever it is but a line's end."""
    _whole: list[str] = field(default_factory=list)

    @property
    def started(self) -> bool:
        """Whether there was any text: a choice that is only a tool call has none to cite for."""
        return bool(self._written or self._held)

    def may_end(self, text: str) -> bool:
        """False where surely no sentence ends in what is shown of this text next."""
        held = self._held + text
        return self.is_prose and (
            _MAY_END.search(held) is not None
            or _MAY_END.match(self._tail.rstrip(CLOSING)[-1:]) is not None
            or self._length + len(held) >= MAX_SENTENCE_CHARS
        )

    def passes(self, text: str) -> bool:
        """True for text, most of any answer's, that is shown as it is: it was taken. Else nothing was."""
        if (
            not self._is_within
            or self._held
            or self._code
            or self._length + len(text) >= MAX_SENTENCE_CHARS
            or _RUN.fullmatch(text) is None
        ):
            return False
        self.read += len(text)
        self._add(text)
        return True

    def feed(self, text: str) -> Iterator[str | Sentence]:
        """Text to show, and each sentence right after its last character."""
        if self.is_prose:
            self._held += text
            yield from self._take(final=False)
        elif text:
            self._whole.append(text)
            self._written += len(text)
            self.read = self._written
            yield text

    def finish(self) -> Iterator[str | Sentence]:
        """What was held back, and the last sentence."""
        if self.is_prose:
            yield from self._take(final=True)
        else:
            yield from _sentences_within("".join(self._whole))

    def mark(self, number: int) -> str:
        """The marker of the sentence that was given last, to be shown before anything else is."""
        marker = f" [{number}]"
        self._written += len(marker)
        return marker

    @property
    def written(self) -> int:
        """Characters that were given to be shown so far."""
        return self._written

    def ahead(self, text: str) -> list[Sentence]:
        """The sentences that end in this text, of which nothing is taken."""
        copy = replace(
            self, removed=[], _sentence=[*self._sentence], _hinted=[*self._hinted], _whole=[*self._whole]
        )
        return [piece for piece in copy.feed(text) if isinstance(piece, Sentence)]

    def _take(self, *, final: bool) -> Iterator[str | Sentence]:
        held, at = self._held, 0
        while at < len(held):
            if not self._code and held[at] in " [【":
                if marker := _MARKER.match(held, at):
                    self._hinted += _numbers(marker.group())
                    at = marker.end()
                    self.removed.append(Span(self.read, self.read + len(marker.group())))
                    self.read += len(marker.group())
                    continue
                if not final and _may_become_marker(held, at):
                    break
            if self._is_within and not self._code:
                room = MAX_SENTENCE_CHARS - self._length - 1
                if room > 0 and (run := _RUN.match(held, at, at + room)):
                    at = run.end()
                    self.read += len(run.group())
                    self._add(run.group())
                    yield run.group()
                    continue
            if held[at] == "\n" and self._code != FENCE:
                # Inline code ends with its line, whether it was closed or not.
                self._code = ""
            if self._ends_before(held[at]):
                yield from self._ended()
            plain = _PLAIN.match(held, at)
            piece = plain.group() if plain else held[at]
            at += len(piece)
            self.read += len(piece)
            self._add(piece)
            yield piece
        self._held = held[at:]
        if final and self._start is not None:
            yield from self._ended()

    def _ends_before(self, character: str) -> bool:
        """Models do not wrap lines: a line's end ends a sentence, a list's item or a table's row."""
        if self._start is None or self._code:
            return False
        if character == "\n":
            return True
        if character.isspace():
            return self._length >= MAX_SENTENCE_CHARS or is_end(self._tail, is_whole=self._length <= TAIL)
        return character not in ENDS + FULL_ENDS + CLOSING and is_full_end(self._tail)

    def _add(self, piece: str) -> None:
        begins_at = self._written
        self._written += len(piece)
        was_fenced = self._code == FENCE
        self._ticks = self._ticks + 1 if piece == "`" else 0
        self._is_within = False
        if piece == "`":
            self._take_backtick()
        if was_fenced or self._code == FENCE:
            return
        if not piece.isspace():
            if self._start is None:
                self._start, self._is_worded = begins_at, False
                self._sentence, self._length, self._tail = [], 0, ""
            self._end = self._written
            self._is_within = _PLAIN.match(piece[-1]) is not None
            self._is_worded = self._is_worded or any(map(str.isalnum, piece))
        self._sentence.append(piece)
        self._length += len(piece)
        self._tail = (self._tail + piece[-TAIL:])[-TAIL:]

    def _take_backtick(self) -> None:
        if self._ticks == 1:
            self._code = "" if self._code == "`" else self._code or "`"
        elif self._ticks == len(FENCE):
            self._code = "" if self._code == FENCE else FENCE
            # A block of code claims nothing.
            self._start, self._hinted = None, []

    def _ended(self) -> Iterator[Sentence]:
        assert self._start is not None
        start, hinted = self._start, tuple(dict.fromkeys(self._hinted))
        self._start, self._hinted = None, []
        if not self._is_worded:
            return
        text = "".join(self._sentence).strip()
        yield Sentence(
            text=text,
            start_index=start,
            end_index=self._end,
            hinted=hinted,
            takes_marker=not text.startswith("|") and not self._code,
            is_heading=_HEADING.match(text) is not None,
        )


class CitedAnswer:
    """One choice's answer on its way to a client: what to show of it, and what is known of its sentences so far.

    `check` judges sentences at once. What it leaves open goes to `settle`, beside the text, which does not wait;
    its citations come with the text that follows.
    """

    def __init__(
        self,
        check: Callable[[Sequence[Sentence]], Awaitable[Sequence[Checked]]],
        *,
        is_prose: bool,
        settle: Callable[[Sentence, Checked], Awaitable[Checked]] | None = None,
    ) -> None:
        self.citations: list[Citation] = []
        self._writer = CitationWriter(is_prose=is_prose)
        self._check = check
        self._settle = settle
        self._ahead: deque[tuple[Sentence, Checked]] = deque()
        self._settling: list[tuple[Sentence, asyncio.Task[Checked]]] = []
        self._counts = dict.fromkeys(Outcome, 0)
        self._unsupported: list[Span] = []
        self._tokens = ShownTokens()

    def note_tokens(self, text: str, tokens: Sequence[dict[str, Any]]) -> None:
        """What the engine tells of the tokens of a text that is fed: their probabilities."""
        self._tokens.add(text, tokens)

    def take_tokens(self, *, final: bool = False) -> list[dict[str, Any]]:
        """Those of the text that was given to be shown since the last time."""
        return self._tokens.take(self._writer.read, self._writer.removed, final=final)

    @property
    def started(self) -> bool:
        return self._writer.started

    @property
    def unsupported(self) -> list[Span]:
        """Sentences that claim something for which nothing was found, in the answer's order."""
        return sorted(self._unsupported, key=lambda span: span.start)

    @property
    def counts(self) -> dict[str, int]:
        """Sentences that claim something; of them: cited, unsupported, and those among the latter that were not
        judged, since SQL or a reranker did not answer in time.
        """
        cited, unjudged = self._counts[Outcome.SUPPORTED], self._counts[Outcome.UNJUDGED]
        unsupported = self._counts[Outcome.UNSUPPORTED] + unjudged
        return {
            "sentences": cited + unsupported,
            "cited": cited,
            "unsupported": unsupported,
            "unjudged": unjudged,
        }

    def passes(self, text: str) -> bool:
        """True where this text, which is then taken, is to be shown as it is, and nothing else with it."""
        return not (self._settling and self._settling[0][1].done()) and self._writer.passes(text)

    def feed_at_once(self, text: str) -> Shown | None:
        """As `feed`, where no sentence ends; where one may, None, and nothing is taken of the text."""
        if self._writer.may_end(text):
            return None
        cited = self._take_settled()
        shown = [piece for piece in self._writer.feed(text) if isinstance(piece, str)]
        return Shown("".join(shown), cited)

    async def look_ahead(self, text: str) -> None:
        """Checks all sentences that end in a text that is there already, and is fed next, in whatever pieces: then
        they do not wait for one another.
        """
        found = self._writer.ahead(text)
        checked = await self._check(found) if found else ()
        self._ahead = deque(zip(found, checked, strict=True))

    async def feed(self, text: str) -> AsyncIterator[Shown]:
        """The last piece may be empty of text, when it brings citations."""
        async for shown in self._show(self._writer.feed(text)):
            yield shown

    async def finish(self) -> AsyncIterator[Shown]:
        """What was held back, and what is still being judged, for which it waits."""
        async for shown in self._show(self._writer.finish()):
            yield shown
        await asyncio.gather(*(task for _, task in self._settling))
        if late := self._take_settled():
            yield Shown("", late)

    async def close(self) -> None:
        """Ends what is still being judged: nobody waits for it any more."""
        for _, task in self._settling:
            task.cancel()
        await asyncio.gather(*(task for _, task in self._settling), return_exceptions=True)
        self._settling.clear()

    async def _show(self, pieces: Iterator[str | Sentence]) -> AsyncIterator[Shown]:
        text: list[str] = []
        cited = self._take_settled()
        for piece in pieces:
            if isinstance(piece, str):
                text.append(piece)
                continue
            checked = self._known(piece)
            if checked is None:
                if text or cited:
                    # Not kept from the reader while the sentence is looked up.
                    yield Shown("".join(text), cited)
                    text, cited = [], ()
                (checked,) = await self._check([piece])
            marker, found = self._judged(piece, checked)
            text += marker
            cited += found
        if text or cited:
            yield Shown("".join(text), cited)

    def _known(self, sentence: Sentence) -> Checked | None:
        """What was found ahead. Markers of ours have moved the sentence since."""
        if not self._ahead:
            return None
        seen, checked = self._ahead.popleft()
        assert (seen.text, seen.hinted) == (sentence.text, sentence.hinted)
        return checked

    def _judged(self, sentence: Sentence, checked: Checked) -> tuple[list[str], tuple[Citation, ...]]:
        if checked.outcome is Outcome.OPEN:
            assert self._settle is not None
            self._settling.append((sentence, asyncio.ensure_future(self._settle(sentence, checked))))
            return [], ()
        if checked.support is None or not (sentence.takes_marker and self._writer.is_prose):
            return [], self._count(sentence, checked)
        marker = self._writer.mark(checked.support.number)
        end_index = self._writer.written
        start_index = end_index - len(marker.lstrip())
        return [marker], self._count(sentence, checked, Span(start_index, end_index))

    def _take_settled(self) -> tuple[Citation, ...]:
        """In the order of the sentences, as far as they are judged."""
        found: list[Citation] = []
        while self._settling and self._settling[0][1].done():
            sentence, task = self._settling.pop(0)
            found += self._count(sentence, task.result())
        return tuple(found)

    def _count(self, sentence: Sentence, checked: Checked, place: Span | None = None) -> tuple[Citation, ...]:
        self._counts[checked.outcome] += 1
        if checked.support is None:
            if checked.outcome is not Outcome.NO_CLAIM:
                self._unsupported.append(Span(sentence.start_index, sentence.end_index))
            return ()
        place = place or Span(sentence.start_index, sentence.end_index)
        citation = Citation(place.start, place.end, checked.support)
        self.citations.append(citation)
        return (citation,)


def cited_stream(checker: Checker, *, is_prose: bool) -> CitedAnswer:
    """For an answer that is shown while it is written: a reranker is asked beside it."""
    return CitedAnswer(checker.by_words, is_prose=is_prose, settle=checker.by_reranker)


async def cited_whole(checker: Checker, text: str, *, is_prose: bool) -> tuple[str, CitedAnswer]:
    """The text with its markers, and what is known of it: all its sentences are judged first, and at once."""
    writer = CitationWriter(is_prose=is_prose)
    found = [piece for part in (writer.feed(text), writer.finish()) for piece in part]
    verdicts = iter(await checker.check([each for each in found if isinstance(each, Sentence)]))

    async def told(sentences: Sequence[Sentence]) -> list[Checked]:
        return [next(verdicts) for _ in sentences]

    answer = CitedAnswer(told, is_prose=is_prose)
    shown = [each.text async for each in answer.feed(text)]
    return "".join([*shown, *[each.text async for each in answer.finish()]]), answer


def _may_become_marker(held: str, at: int) -> bool:
    begun = _MARKER_BEGUN.match(held, at)
    if begun is None:
        return False
    label = (begun["label"] or "").lower()
    if begun["gap"] or (label and begun["numbers"]):
        return label in _LABELS or f"{label}s" in _LABELS
    return any(each.startswith(label) for each in _LABELS)


def _numbers(marker: str) -> list[int]:
    """Those that a marker names; of "[1-3]" all three."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?: ?[–-] ?(\d+))?", marker.partition("†")[0]):
        found += range(int(first), min(int(last or first), int(first) + 20) + 1)
    return found


def _sentences_within(text: str) -> Iterator[Sentence]:
    """The sentences of a text that gets no markers: of JSON, those of the strings that are values."""
    if not text.lstrip().startswith(("{", "[")):
        for span in sentences(text):
            yield _plain_sentence(text[span.start : span.end], span)
        return
    at = text.find('"')
    while at >= 0 and (string := _JSON_STRING.match(text, at + 1)):
        place = Span(at + 1, string.end() - 1)
        at = text.find('"', string.end())
        if not text[string.end() : string.end() + 8].lstrip().startswith(":"):
            yield from _sentences_of_value(text, place)


def _sentences_of_value(text: str, place: Span) -> Iterator[Sentence]:
    raw = text[place.start : place.end]
    try:
        value = str(orjson.loads(f'"{raw}"'))
    except orjson.JSONDecodeError:
        return
    for span in sentences(value):
        # Where something was escaped, a sentence's own place in the text is not worth finding.
        where = Span(place.start + span.start, place.start + span.end) if value == raw else place
        yield _plain_sentence(value[span.start : span.end], where)


def _plain_sentence(text: str, place: Span) -> Sentence:
    return Sentence(text, place.start, place.end, hinted=(), takes_marker=False, is_heading=False)
