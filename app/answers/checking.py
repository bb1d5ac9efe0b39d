"""Checks what an answer says against its passages: by words, then in SQL, then by a reranker what words leave open.

For citations.py. Whatever it finds stands in SQL: a quote leaves only if the stored text holds it at its offsets, and
its page and boxes are those that are stored for it, as the caller may see them now.
"""

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.answers.support import Finding, Judged, PassageWords
from retrieval.database import Database
from retrieval.passages import Passage
from retrieval.places import Box, Place, under_headings
from retrieval.quotes import StoredQuote, StoredStretch, read_stretch
from retrieval.scope import Scope
from serving.protocols import Lane, Reranker, ServingError

SQL_WAIT_S = 1.0
"""What a sentence's end waits for SQL, which takes a millisecond, before it goes on without a citation."""
MOST_AT_ONCE = 16
"""Sentences that are checked in one go: some milliseconds, and far from SQL_WAIT_S."""
RERANK_WAIT_S = 2.0
"""What a citation, though no text, may wait for the reranker."""
MIN_RERANKED = 0.5
"""The reranker's score, 0..1, from which a quote supports a claim that contradicts it in nothing."""


class Outcome(StrEnum):
    """What became of a sentence's check."""

    NO_CLAIM = "no claim"
    """A question, a heading, a refusal, a word of politeness: nothing to support."""
    SUPPORTED = "supported"
    UNSUPPORTED = "unsupported"
    OPEN = "open"
    """Only a reranker can tell."""
    UNJUDGED = "unjudged"
    """SQL or the reranker did not answer in time: taken for unsupported, and told apart."""


class Judge(StrEnum):
    """What found that a quote supports a sentence."""

    WORDS = "words"
    RERANKER = "reranker"


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer: characters [start_index, end_index) of the text as it is shown."""

    text: str
    """Without the model's markers."""
    start_index: int
    end_index: int
    hinted: tuple[int, ...]
    """Numbers of passages that the model's own markers named."""
    takes_marker: bool
    """False in a table or in code, which a marker would break."""
    is_heading: bool


@dataclass(frozen=True)
class Support:
    """A verbatim quote with its place: start_char and end_char are those in the document's text."""

    number: int
    """The passage's number as the model was told it, from 1."""
    passage: Passage
    quote: str
    start_char: int
    end_char: int
    page: int | None
    boxes: tuple[tuple[int, Box], ...]
    """Page and rectangle of each line that the quote touches."""
    score: float
    """0..1: the share of the sentence's words that the quote holds, or the reranker's score."""
    judge: Judge


@dataclass(frozen=True)
class Checked:
    """`support` is there if, and only if, the sentence is supported."""

    outcome: Outcome
    support: Support | None = None
    open: tuple[Finding, ...] = ()


class Checker:
    """Checks the sentences of one request's answers. `reranker` None: what words leave open is unsupported."""

    def __init__(
        self,
        database: Database,
        scope: Scope,
        passages: Sequence[Passage],
        *,
        question: str,
        reranker: Reranker | None,
        lane: Lane,
    ) -> None:
        self._database = database
        self._scope = scope
        self._passages = passages
        self._question = question
        self._reranker = reranker
        self._lane = lane
        self._words: PassageWords | None = None
        self._reading = threading.Lock()

    async def check(self, sentences: Sequence[Sentence]) -> list[Checked]:
        """All there is to know of each; takes as long as `by_words` and `by_reranker` may."""

        async def settled(sentence: Sentence, checked: Checked) -> Checked:
            return await self.by_reranker(sentence, checked) if checked.outcome is Outcome.OPEN else checked

        judged = zip(sentences, await self.by_words(sentences), strict=True)
        return await asyncio.gather(*(settled(sentence, checked) for sentence, checked in judged))

    async def by_words(self, sentences: Sequence[Sentence]) -> list[Checked]:
        """Each by itself, but up to MOST_AT_ONCE against one state of SQL: the way there costs more than its answer."""
        checked: list[Checked] = []
        for first in range(0, len(sentences), MOST_AT_ONCE):
            at_once = sentences[first : first + MOST_AT_ONCE]
            try:
                # A thread that takes longer is left to itself: it only reads.
                checked += await asyncio.wait_for(asyncio.to_thread(self._by_words, at_once), SQL_WAIT_S)
            except (TimeoutError, SQLAlchemyError):
                checked += [
                    Checked(Outcome.NO_CLAIM if each.is_heading else Outcome.UNJUDGED) for each in at_once
                ]
        return checked

    async def by_reranker(self, sentence: Sentence, checked: Checked) -> Checked:
        """Judges what words left open. Many at once make one batch at the models server."""
        assert self._reranker is not None
        quotes = [self._quoted(finding) for finding in checked.open]
        try:
            async with asyncio.timeout(RERANK_WAIT_S):
                scores = await self._reranker.score(
                    sentence.text,
                    [under_headings(passage.headings, quote) for passage, quote in quotes],
                    lane=self._lane,
                    deadline_s=RERANK_WAIT_S,
                    cache_salt=self._scope.cache_salt,
                    truncate=True,
                )
                rated = [
                    replace(finding, score=float(score))
                    for finding, score in zip(checked.open, scores, strict=True)
                    if score >= MIN_RERANKED
                ]
                rated.sort(key=lambda finding: -finding.score)
                (support,) = await asyncio.to_thread(self._stored, [rated], Judge.RERANKER)
        except (TimeoutError, ServingError, SQLAlchemyError):
            return Checked(Outcome.UNJUDGED)
        return Checked(Outcome.SUPPORTED, support) if support else Checked(Outcome.UNSUPPORTED)

    def _by_words(self, sentences: Sequence[Sentence]) -> list[Checked]:
        words = self._read_passages()
        judged = [
            Judged(is_claim=False) if each.is_heading else words.judge(each.text, each.hinted)
            for each in sentences
        ]
        supports = self._stored([each.sure for each in judged], Judge.WORDS)
        return [self._checked(each, support) for each, support in zip(judged, supports, strict=True)]

    def _checked(self, judged: Judged, support: Support | None) -> Checked:
        if not judged.is_claim:
            return Checked(Outcome.NO_CLAIM)
        if support is not None:
            return Checked(Outcome.SUPPORTED, support)
        if judged.open and self._reranker is not None:
            return Checked(Outcome.OPEN, open=judged.open)
        return Checked(Outcome.UNSUPPORTED)

    def _read_passages(self) -> PassageWords:
        with self._reading:
            if self._words is None:
                self._words = PassageWords(self._passages, question=self._question)
            return self._words

    def _stored(self, found: Sequence[Sequence[Finding]], judge: Judge) -> list[Support | None]:
        """Of each sentence's findings the best whose quote stands in SQL where we say that it does."""
        if not any(found):
            return [None] * len(found)
        with self._database.read() as session:
            stored = _Stored(session, self._scope, self._passages, chain.from_iterable(found))
            return [
                next((support for each in findings if (support := self._support(each, judge, stored))), None)
                for findings in found
            ]

    def _support(self, finding: Finding, judge: Judge, stored: "_Stored") -> Support | None:
        passage, quote = self._quoted(finding)
        now = stored.quote(finding)
        if now is None or now.text != quote:
            return None
        return Support(
            number=finding.number,
            passage=passage,
            quote=quote,
            start_char=passage.start_char + finding.start,
            end_char=passage.start_char + finding.end,
            page=now.places[0].page if now.places else None,
            boxes=_boxes(now.places),
            score=finding.score,
            judge=judge,
        )

    def _quoted(self, finding: Finding) -> tuple[Passage, str]:
        passage = self._passages[finding.number - 1]
        return passage, passage.text[finding.start : finding.end]


class _Stored:
    """What SQL holds where findings stand: of each passage that is asked for, the stretch with all of them, once."""

    def __init__(
        self, session: Session, scope: Scope, passages: Sequence[Passage], findings: Iterable[Finding]
    ) -> None:
        self._session = session
        self._scope = scope
        self._passages = passages
        self._spans: dict[int, tuple[int, int]] = {}
        for each in findings:
            start, end = self._spans.get(each.number, (each.start, each.end))
            self._spans[each.number] = min(start, each.start), max(end, each.end)
        self._read: dict[int, StoredStretch | None] = {}

    def quote(self, finding: Finding) -> StoredQuote | None:
        passage = self._passages[finding.number - 1]
        if finding.number not in self._read:
            start, end = self._spans[finding.number]
            self._read[finding.number] = read_stretch(
                self._session,
                self._scope,
                passage.document_id,
                passage.start_char + start,
                passage.start_char + end,
            )
        stretch = self._read[finding.number]
        if stretch is None:
            return None
        return stretch.quote(passage.start_char + finding.start, passage.start_char + finding.end)


def _boxes(places: Sequence[Place]) -> tuple[tuple[int, Box], ...]:
    return tuple(
        (place.page, place.box) for place in places if place.page is not None and place.box is not None
    )
