"""Whether a stretch of a passage says what a sentence claims, by words alone: for the check of an answer's citations.

Words cannot prove that two sentences say the same, but they show where they do not: another number, unit, date or
name, a negation on one side only. What holds all of a claim's words and none of these is taken for support.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from app.answers.refusal import declines
from app.answers.sentences import TAIL, Span, is_end, sentences, trim
from app.answers.wording import (
    BEGINS_CLAUSE,
    ENGLISH,
    NEGATES_CLAUSE,
    NEGATES_WHAT_FOLLOWS,
    UNITS,
    Wording,
    wording_of,
)
from retrieval.passages import Passage

MIN_SUPPORT = 0.7
"""Share of a claim's words that must stand in the quote or, at half their weight, in the headings above it."""
MIN_WORDS = 2
"""So many of a claim's words stand in the quote itself: one proves nothing, unless the question gives it a sense."""
MIN_OPEN = 0.8
"""From this share on, a claim whose other words are missing is left open: a paraphrase may say the same. Below it a
reranker takes for support what is only about the same: of the demo engine's sentences, none below was supported.
"""
MAX_DENSE_MISSING = 0.1
"""Share of pairs of characters that may be missing in languages without spaces: they also stand across words."""
MIN_QUESTION = 0.6
"""Share of the question's words that must stand beside an answer of one word."""
MAX_FRAGMENT_WORDS = 3
"""An answer of so few words, and no function word among them, is judged by the question that it answers."""
MAX_QUOTE_CHARS = 500
"""Longer ones are no sentences but tables or lists, whose single lines can be quoted."""
MAX_CLAIM_CHARS = 2_000
MAX_FINDINGS = 3
SENSE_REACH = 3
"""Words from "more" to the number that it turns."""

# Scripts that are written without spaces, and Korean, whose words end in particles.
_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
)
# Signs above and below letters, which to Python's \w are none.
_MARKS = (
    "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0962\u0963\u0981-\u0983\u09bc-\u09cd"
    "\u0a3c-\u0a4d\u0abc-\u0acd\u0b3c-\u0b4d\u0bbe-\u0bcd\u0c3e-\u0c4d\u0cbc-\u0ccd\u0d3e-\u0d4d"
)
_LETTERS = rf"[^\W_{_DENSE}][{_MARKS}]*"
_TOKEN = re.compile(
    r"(?P<number>(?:(?<!\w)[-−](?=\d))?\d+(?:[.,’']\d+)*)"
    rf"|(?P<dense>[{_DENSE}]+)"
    rf"|(?P<word>(?:{_LETTERS})+(?:['’](?:{_LETTERS})+)*)"
    r"|(?P<sign>[%$€£]|°[CF])"
    r"|(?P<end>[.!?](?=\s|$)|[\n|。！？])"
    r"|(?P<pause>[,;:()\[\]—–、，；：]| - )"
)
_THOUSANDS = re.compile(
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3})+(?:,\d+)?|\d{1,3}(?:[’']\d{3})+(?:\.\d+)?"
)
_DECIMAL = re.compile(r"\d+(?:[.,]\d+)?")
_KATAKANA = re.compile(r"[\u30a1-\u30ff]{2,}")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_OTHER_DENSE = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uac00-\ud7af]+")
_HAN_FUNCTION = re.compile(r"[的了是在被把于於之也就都和与與及着著]+")
_HAN_NUMBER = re.compile(r"[〇零二三四五六七八九十百千万萬亿億两兩]+|一[十百千万萬亿億]+")
_NAMED_PASSAGE = re.compile(
    r"\b(?:passages?|sources?|documents?|Textstellen?|Abschnitte?|Passagen?|extraits?|pasajes?|passagg[io])"
    r" (?:no\. ?|#)?[1-9]\d?(?:(?:, | and | und | et | y | e )[1-9]\d?)*\b(?!\.\d)",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\A\s*(?:[-*•+>]|\(?\d{1,3}[.)])\s+")
_NUMBER_AFTER_NO = re.compile(r"\. ?\d")
_VERB_ENDINGS = ("ed", "ing", "ly")
_CONTRACTED = {"can't": "can", "won't": "will", "shan't": "shall"}
"""What is left of others without their n't is a word."""


@dataclass(frozen=True)
class Finding:
    """A stretch of a passage that may support a claim: characters [start, end) of the passage's text."""

    number: int
    """The passage's number as the model was told it, from 1."""
    start: int
    end: int
    score: float
    """Share of the claim's words that it holds, up to 1."""


@dataclass(frozen=True)
class Judged:
    """What words say of a sentence. `sure` and `open` are at most a few stretches, the best first."""

    is_claim: bool
    sure: tuple[Finding, ...] = ()
    open: tuple[Finding, ...] = ()
    """Without contradiction, but with words missing."""


class PassageWords:
    """The sentences, and the lines, of some passages as words, to hold claims against. Safe to use from threads."""

    def __init__(self, passages: Sequence[Passage], *, question: str = "") -> None:
        """`question` gives an answer of one word its sense, and decides among equal quotes."""
        told = " ".join([question, *(passage.text for passage in passages)])
        self._count = len(passages)
        self._stretches = [
            stretch
            for number, passage in enumerate(passages, 1)
            for stretch in _quotable(number, passage, wording_of(passage.text) or wording_of(told) or ENGLISH)
        ]
        self._wordings = list({id(each.wording): each.wording for each in self._stretches}.values())
        self._questions = {id(each): read(question, each).words for each in self._wordings}

    def judge(self, sentence: str, hinted: Sequence[int] = ()) -> Judged:
        """Every number, unit, date and name of a claim must stand in the quote, and what it negates must be negated
        there: those are what invented answers get wrong. A passage that the model named itself comes first.
        """
        if sentence.rstrip().endswith(("?", ":", "？", "：")):
            return Judged(is_claim=False)
        if len(sentence) > MAX_CLAIM_CHARS:
            return Judged(is_claim=True)
        if declines(sentence):
            return Judged(is_claim=False)
        hints = set(hinted)
        bare = _NAMED_PASSAGE.sub(
            lambda match: self._taken_as_hint(match, hints), _BULLET.sub("", sentence, 1)
        )
        claims = {id(each): read(bare, each) for each in self._wordings}
        questions = self._questions
        if not any(_is_claim(claim, questions[each]) for each, claim in claims.items()):
            return Judged(is_claim=False)
        if any(stretch.is_title(claims[id(stretch.wording)]) for stretch in self._stretches):
            return Judged(is_claim=False)
        sure: list[_Ranked] = []
        left_open: list[_Ranked] = []
        for stretch in self._stretches:
            claim, question = claims[id(stretch.wording)], questions[id(stretch.wording)]
            found = stretch.supports(claim, question)
            if found is None:
                continue
            asked = len(question & (stretch.words.words | stretch.topic))
            length = stretch.span.end - stretch.span.start
            ranked = _Ranked(
                (
                    -float(stretch.number in hints),
                    -round(found.score, 6),
                    float(stretch.pair is not None),
                    -asked,
                    length,
                ),
                Finding(stretch.number, stretch.span.start, stretch.span.end, min(found.score, 1.0)),
            )
            findings = sure if found.is_sure else left_open
            insort(findings, ranked, key=lambda each: each.rank)
            del findings[MAX_FINDINGS:]
        return Judged(True, tuple(each.finding for each in sure), tuple(each.finding for each in left_open))

    def _taken_as_hint(self, match: re.Match[str], hints: set[int]) -> str:
        """ "Passage 2 says": a number of ours, that no quote holds."""
        numbers = [int(number) for number in re.findall(r"\d+", match.group())]
        if max(numbers) > self._count:
            return match.group()
        hints.update(numbers)
        return " "


@dataclass(frozen=True)
class Words:
    """A text as far as it can be compared: content words by their stem, numbers in one spelling."""

    words: frozenset[str]
    heavy: frozenset[str]
    """Without those whose exchange changes little."""
    dense: frozenset[str]
    """Of these, pairs of characters of a script without spaces."""
    exact: frozenset[str]
    """Numbers, months, days."""
    names: frozenset[str]
    """Words with a capital inside a sentence."""
    opening: str | None
    """The first word, if it has a capital and is neither function word nor verb: it may be a name."""
    units: frozenset[tuple[str, str]]
    """A number and the unit after it."""
    counted: frozenset[tuple[str, str]]
    """A number and the content word after it; here an article counts as 1."""
    senses: frozenset[tuple[str, str]]
    """A number and what stands before it: more, less, before, after, or nothing."""
    affirmed: frozenset[str]
    negated: frozenset[str]
    is_leaning: bool
    """Whether it begins with a pronoun."""
    is_fragment: bool
    """Whether it has no function word: a name or a number, and no sentence."""

    def contradicts(self, quote: "Words") -> bool:
        """Whether a quote about the same says something else in a number or by a negation."""
        if (self.affirmed & quote.negated) - quote.affirmed or (
            self.negated & quote.affirmed
        ) - quote.negated:
            return True
        if any(number == other for number, _ in self.units - quote.units for other, _ in quote.units):
            return True
        counted = quote.counted | quote.units
        if any(
            what == thing and number != other
            for number, what in self.counted - counted
            for other, thing in counted
        ):
            return True
        return any(
            _senses(self, number).isdisjoint(_senses(quote, number))
            for number in {each for each, _ in self.senses}
        )


@dataclass(frozen=True)
class _Found:
    is_sure: bool
    score: float


@dataclass(frozen=True)
class _Ranked:
    """The least rank is the best."""

    rank: tuple[float, ...]
    finding: Finding


@dataclass(frozen=True)
class _Stretch:
    """Something of a passage that can be quoted: one or two sentences, or a line."""

    number: int
    span: Span
    wording: Wording
    words: Words
    topic: frozenset[str]
    """Words of the headings above and of the file's name: they hold for what stands below."""
    pair: tuple[Words, Words] | None = None
    """Of two sentences, each."""

    def is_title(self, claim: Words) -> bool:
        """Whether the claim does no more than repeat a title, as some models do before they quote."""
        return claim.is_fragment and claim.words == self.words.words

    def supports(self, claim: Words, question: frozenset[str]) -> _Found | None:
        """None when it does not, or hardly."""
        quote = self.words
        wanted = claim.heavy or claim.words
        found = wanted & quote.words
        if not found:
            return None
        present = quote.words | self.topic
        # What a heading says holds for the sentences under it, but a number must stand in the quote itself.
        if not claim.exact <= quote.words or not claim.names <= present or claim.contradicts(quote):
            return None
        if claim.opening is not None and claim.opening not in present:
            return None
        is_fragment = claim.is_fragment or wanted <= question
        if len(wanted) < MIN_WORDS or (is_fragment and len(wanted) <= MAX_FRAGMENT_WORDS):
            return self._answers(claim, wanted, question)
        score = (len(found) + 0.5 * len((wanted & self.topic) - quote.words)) / len(wanted)
        if len(found) < MIN_WORDS or score < MIN_OPEN:
            return None
        missing = wanted - present
        is_sure = (
            score >= MIN_SUPPORT
            and missing <= claim.dense
            and len(missing) <= MAX_DENSE_MISSING * len(claim.dense)
            and self._is_one_thought(claim)
        )
        return _Found(is_sure, score)

    def _answers(self, claim: Words, wanted: frozenset[str], question: frozenset[str]) -> _Found | None:
        """A name or a number is supported where all of it stands among the question's words, and is none of them."""
        asked = question - wanted
        beside = asked & (self.words.words | self.topic)
        least = max(MIN_WORDS, MIN_QUESTION * len(asked)) if len(wanted) < MIN_WORDS else min(1, len(asked))
        if not wanted <= self.words.words or wanted <= question or len(beside) < least:
            return None
        return _Found(True, (len(beside) + 1) / (len(asked) + 1)) if self._is_one_thought(claim) else None

    def _is_one_thought(self, claim: Words) -> bool:
        """Of two sentences, the second must be about the first's subject: else a claim mixed from both would pass."""
        if self.pair is None:
            return True
        first, second = self.pair
        only_in_first = (claim.names & first.words) - second.words
        is_told_by_second = 2 * len(claim.words & second.words) > len(claim.words)
        is_mixed = only_in_first and second.names - claim.words
        return second.is_leaning and is_told_by_second and not is_mixed


def content_words(text: str, wording: Wording | None = None) -> frozenset[str]:
    """Lower-case words without function words, cut to a stem; numbers in one spelling."""
    return read(text, wording or wording_of(text) or ENGLISH).words


def read(text: str, wording: Wording) -> Words:
    """The text's words as that language has them. Takes time linear in the text's length."""
    reader = _Reader(wording)
    for token in _TOKEN.finditer(unicodedata.normalize("NFKC", text)):
        reader.take(token)
    return reader.words()


def _is_claim(claim: Words, question: frozenset[str]) -> bool:
    return len(claim.heavy) >= MIN_WORDS or bool(claim.heavy and question)


def _senses(words: Words, number: str) -> set[str]:
    return {sense for each, sense in words.senses if each == number}


def _quotable(number: int, passage: Passage, wording: Wording) -> Iterator[_Stretch]:
    """Every stretch of one or two sentences, and each line that stands for itself: a table's row is one."""
    text = passage.text
    topic = content_words("\n".join([*passage.headings, passage.filename]), wording)
    spans = sentences(text)
    single = {
        each: read(text[each.start : each.end], wording)
        for each in [*spans, *_lines(text, spans)]
        if each.end - each.start <= MAX_QUOTE_CHARS
    }
    for span, words in single.items():
        yield _Stretch(number, span, wording, words, topic)
    for one, other in pairwise(spans):
        both = Span(one.start, other.end)
        if both.end - both.start <= MAX_QUOTE_CHARS:
            words = read(text[both.start : both.end], wording)
            yield _Stretch(number, both, wording, words, topic, pair=(single[one], single[other]))


def _lines(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    """Lines of no more than a sentence; but not those of wrapped prose, which go on in small letters: half a
    sentence may mean the opposite.
    """
    starts = [span.start for span in spans]
    found = (trim(text, Span(line.start(), line.end())) for line in re.finditer(r"[^\n]+", text))
    lines = [each for each in found if each is not None]
    for index, line in enumerate(lines):
        following = lines[index + 1 : index + 2]
        is_wrapped = any(text[each.start].islower() for each in (line, *following))
        if not is_wrapped and bisect_left(starts, line.end) - bisect_right(starts, line.start) < 1:
            yield line


@dataclass
class _Reader:
    """Takes a text's tokens in their order."""

    wording: Wording
    _words: set[str] = field(default_factory=set)
    _light: set[str] = field(default_factory=set)
    _dense: set[str] = field(default_factory=set)
    _exact: set[str] = field(default_factory=set)
    _names: set[str] = field(default_factory=set)
    _units: set[tuple[str, str]] = field(default_factory=set)
    _counted: set[tuple[str, str]] = field(default_factory=set)
    _senses: set[tuple[str, str]] = field(default_factory=set)
    _affirmed: set[str] = field(default_factory=set)
    _negated: set[str] = field(default_factory=set)
    _before: list[str] = field(default_factory=list)
    """The clause's words before its negation; all of them if it has none."""
    _after: list[str] = field(default_factory=list)
    _is_negated: bool = False
    _is_all_negated: bool = False
    _number: str | None = None
    """That which has just been read."""
    _number_ends: int = -1
    _currency: str | None = None
    _sense: str = ""
    _sense_left: int = 0
    _opening: str | None = None
    _begun: str | None = None
    """A sentence's first word, with a capital, until the next one is read."""
    _is_start: bool = True
    """Whether a sentence begins here."""
    _is_first: bool = True
    """Whether the text does."""
    _is_leaning: bool = False
    _is_fragment: bool = True

    def take(self, token: re.Match[str]) -> None:
        match token.lastgroup:
            case "number":
                self._take_number(token)
            case "dense":
                self._take_dense(token.group())
            case "word":
                self._take_word(token)
            case "sign":
                self._take_sign(token)
            case "end":
                self._take_end(token)
            case _:
                self._end_clause()

    def words(self) -> Words:
        self._end_clause()
        return Words(
            words=frozenset(self._words),
            heavy=frozenset(self._words - self._light),
            dense=frozenset(self._dense),
            exact=frozenset(self._exact),
            names=frozenset(self._names),
            opening=self._opening,
            units=frozenset(self._units),
            counted=frozenset(self._counted),
            senses=frozenset(self._senses),
            affirmed=frozenset(self._affirmed),
            negated=frozenset(self._negated),
            is_leaning=self._is_leaning,
            is_fragment=self._is_fragment,
        )

    def _take_end(self, token: re.Match[str]) -> None:
        tail = token.string[max(0, token.end() - TAIL) : token.end()]
        is_wrapped = token.group() == "\n" and token.string[token.end() : token.end() + 1].islower()
        if is_wrapped or (token.group() == "." and not is_end(tail, is_whole=False)):
            # "Dr. Lund" goes on.
            return
        self._end_clause()
        self._is_start, self._begun = True, None

    def _take_number(self, token: re.Match[str]) -> None:
        self._is_start = self._is_first = False
        for number in _spelled(token.group()):
            self._add_number(number, {self._sense if self._sense_left > 0 else ""})
        self._number_ends = token.end()

    def _add_number(self, number: str, senses: set[str]) -> None:
        self._exact.add(number)
        self._add(number)
        self._senses |= {(number, sense) for sense in senses}
        if self._currency is not None:
            self._units.add((number, self._currency))
            self._currency = None
        self._number = number

    def _take_sign(self, token: re.Match[str]) -> None:
        unit = UNITS[token.group().lower()]
        if self._number is None or token.string[token.end() : token.end() + 1].isdigit():
            self._currency = unit
        else:
            self._units.add((self._number, unit))
        self._add(unit)

    def _take_word(self, token: re.Match[str]) -> None:
        raw = token.group().replace("’", "'")
        lower = raw.lower()
        if lower.endswith("n't"):
            self._take_part(_CONTRACTED.get(lower, lower.removesuffix("n't")), raw, token)
            self._is_negated = True
            return
        for part in raw.split("'"):
            self._take_part(part.lower(), part, token)

    def _take_part(self, part: str, raw: str, token: re.Match[str]) -> None:
        wording = self.wording
        is_start, self._is_start = self._is_start, False
        begun, self._begun = self._begun, None
        number, self._number = self._number, None
        self._sense_left -= 1
        if self._is_first:
            self._is_first, self._is_leaning = False, part in wording.pronouns
        if part in wording.function_words or part in wording.negations:
            self._is_fragment = False
        if part in wording.contrasts:
            self._end_clause()
        if part in wording.before_numbers:
            self._sense, self._sense_left = wording.before_numbers[part], SENSE_REACH
        if part in wording.negations:
            # "No. 5" denies nothing.
            is_numbered = part == "no" and _NUMBER_AFTER_NO.match(token.string, token.end())
            self._is_negated = self._is_negated or not is_numbered
        elif part in wording.only:
            # "not only" denies nothing either.
            self._is_negated = self._is_negated and bool(self._after)
        elif part in wording.numbers:
            self._take_number_word(wording.numbers[part], number)
        elif part in wording.one:
            self._number = "1"
        elif number is not None and self._is_unit(part, number, token):
            self._units.add((number, UNITS[part]))
            if number not in self._exact:
                self._counted.add((number, UNITS[part]))
            self._add(UNITS[part])
        elif part in wording.dates and (raw[0].isupper() or part not in wording.function_words):
            self._exact.add(self._stem(part))
            self._add(self._stem(part))
        elif part and part not in wording.function_words and (len(part) > 1 or raw[0].isupper()):
            self._take_content(part, raw, number, is_start=is_start, begun=begun)

    def _take_content(
        self, part: str, raw: str, number: str | None, *, is_start: bool, begun: str | None
    ) -> None:
        unit = UNITS.get(part) if len(part) > 2 else None
        stem = unit or self._stem(part)
        self._add(stem)
        if part in self.wording.light_words and (is_start or not raw[0].isupper()):
            self._light.add(stem)
        if number is not None:
            self._counted.add((number, stem))
        if raw[0].isupper():
            self._take_capital(stem, part, raw, is_start=is_start, begun=begun)

    def _take_capital(self, stem: str, part: str, raw: str, *, is_start: bool, begun: str | None) -> None:
        """A sentence's first word has a capital anyway: it is a name if the next one has one too."""
        if not is_start or (raw.isupper() and len(raw) > 1):
            self._names.add(stem)
            if begun is not None:
                self._names.add(begun)
            return
        self._begun = stem
        is_verb = part.endswith(_VERB_ENDINGS) or part in self.wording.light_words
        if len(self._words) == 1 and not is_verb:
            self._opening = stem

    def _is_unit(self, part: str, number: str, token: re.Match[str]) -> bool:
        is_decade = part == "s" and len(number) == 4 and token.start() == self._number_ends
        is_word = len(part) > 1 and part in self.wording.function_words
        return part in UNITS and not is_decade and not is_word

    def _take_number_word(self, value: str, previous: str | None) -> None:
        """ "3 million" and "three hundred" are one number each, and so is "twenty-five"."""
        senses = {self._sense if self._sense_left > 0 else ""}
        joined = _joined(previous, value) if previous in self._exact else None
        if previous is None or joined is None:
            self._add_number(value, senses)
            return
        senses = {sense for number, sense in self._senses if number == previous}
        self._senses = {each for each in self._senses if each[0] != previous}
        self._units = {(joined if number == previous else number, unit) for number, unit in self._units}
        self._exact.discard(previous)
        self._words.discard(previous)
        self._add_number(joined, senses)

    def _take_dense(self, run: str) -> None:
        # Where function words are letters of a run, nobody knows a fragment.
        self._is_start = self._is_first = self._is_fragment = False
        self._number = None
        for index, clause in enumerate(BEGINS_CLAUSE.split(run)):
            if index:
                self._end_clause()
            self._take_dense_clause(clause)

    def _take_dense_clause(self, clause: str) -> None:
        self._is_all_negated = self._is_all_negated or NEGATES_CLAUSE.search(clause) is not None
        for name in _KATAKANA.findall(clause):
            self._names.add(name)
            self._add(name)
        for number in _HAN_NUMBER.findall(clause):
            self._exact.add(number)
            self._add(number)
        for stretch in _HAN.findall(clause):
            negation = NEGATES_WHAT_FOLLOWS.search(stretch)
            self._add_pairs(stretch[: negation.start()] if negation else stretch)
            if negation:
                self._is_negated = True
                self._add_pairs(stretch[negation.end() :])
        for stretch in _OTHER_DENSE.findall(clause):
            self._add_pairs(stretch)

    def _add_pairs(self, stretch: str) -> None:
        for piece in _HAN_FUNCTION.split(stretch):
            for pair in [piece[at : at + 2] for at in range(max(1, len(piece) - 1)) if piece]:
                self._dense.add(pair)
                self._add(pair)

    def _add(self, word: str) -> None:
        self._words.add(word)
        (self._after if self._is_negated else self._before).append(word)

    def _end_clause(self) -> None:
        """What stands after a negation is negated; all of the clause where nothing does."""
        if self._is_all_negated or (self._is_negated and not self._after):
            self._negated.update(self._before, self._after)
        else:
            self._affirmed.update(self._before)
            self._negated.update(self._after)
        self._before, self._after = [], []
        self._is_negated = self._is_all_negated = False
        self._number = self._currency = None

    def _stem(self, word: str) -> str:
        if not word.isalpha() and any(map(str.isdigit, word)):
            return word
        for ending in self.wording.endings:
            if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
                return word[: -len(ending)]
        return word


def _spelled(raw: str) -> Iterator[str]:
    """One spelling for each number: no leading zeros, no separators of thousands, a decimal point.

    What has more separators than a number, such as a date or an address, is several.
    """
    digits = raw.lstrip("-−")
    sign = "-" if len(digits) < len(raw) else ""
    if _THOUSANDS.fullmatch(digits):
        decimal_sign = "," if re.search(r"\.\d{3}(?:[.,]|$)", digits) else "."
        whole, _, fraction = digits.partition(decimal_sign)
        yield sign + _trimmed(re.sub(r"\D", "", whole), fraction)
    elif _DECIMAL.fullmatch(digits):
        whole, _, fraction = digits.replace(",", ".").partition(".")
        yield sign + _trimmed(whole, fraction)
    else:
        for part in re.split(r"\D", digits):
            yield _trimmed(part, "")


def _trimmed(whole: str, fraction: str) -> str:
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def _joined(one: str | None, other: str) -> str | None:
    """What two number words, or a number and one, make together; None where they are two numbers."""
    if one is None or len(one) > 20:
        return None
    first, second = Decimal(one), Decimal(other)
    if second >= 100:
        product = first * second
    elif first in range(20, 100, 10) and second < 10:
        product = first + second
    else:
        return None
    whole, _, fraction = f"{product:f}".partition(".")
    return _trimmed(whole, fraction)
