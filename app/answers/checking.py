"""Checks what an answer says against its passages: by words, then in SQL, then by a reranker what words leave open.

For citations.py. Whatever it finds stands in SQL: a quote leaves only if the stored text holds it at its offsets, and
its page and boxes are those that are stored for it, as the caller may see them now.
"""

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from sqlalchemy.exc import SQLAlchemyError

from app.answers.support import Finding, PassageWords
from retrieval.database import Database
from retrieval.passages import Passage
from retrieval.places import Box, Place, under_headings
from retrieval.quotes import read_quote
from retrieval.scope import Scope
from serving.protocols import Lane, Reranker, ServingError

SQL_WAIT_S = 1.0
"""What a sentence's end waits for SQL, which takes a millisecond, before it goes on without a citation."""
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

    async def check(self, sentence: Sentence) -> Checked:
        """All there is to know; takes as long as `by_words` and `by_reranker` may."""
        checked = await self.by_words(sentence)
        return await self.by_reranker(sentence, checked) if checked.outcome is Outcome.OPEN else checked

    async def by_words(self, sentence: Sentence) -> Checked:
        """Takes a millisecond or two, and at most SQL_WAIT_S."""
        if sentence.is_heading:
            return Checked(Outcome.NO_CLAIM)
        try:
            # A thread that takes longer is left to itself: it only reads.
            return await asyncio.wait_for(asyncio.to_thread(self._by_words, sentence), SQL_WAIT_S)
        except (TimeoutError, SQLAlchemyError):
            return Checked(Outcome.UNJUDGED)

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
                support = await asyncio.to_thread(self._first_stored, rated, Judge.RERANKER)
        except (TimeoutError, ServingError, SQLAlchemyError):
            return Checked(Outcome.UNJUDGED)
        return Checked(Outcome.SUPPORTED, support) if support else Checked(Outcome.UNSUPPORTED)

    def _by_words(self, sentence: Sentence) -> Checked:
        judged = self._read_passages().judge(sentence.text, sentence.hinted)
        if not judged.is_claim:
            return Checked(Outcome.NO_CLAIM)
        if support := self._first_stored(judged.sure, Judge.WORDS):
            return Checked(Outcome.SUPPORTED, support)
        if judged.open and self._reranker is not None:
            return Checked(Outcome.OPEN, open=judged.open)
        return Checked(Outcome.UNSUPPORTED)

    def _read_passages(self) -> PassageWords:
        with self._reading:
            if self._words is None:
                self._words = PassageWords(self._passages, question=self._question)
            return self._words

    def _first_stored(self, findings: Iterable[Finding], judge: Judge) -> Support | None:
        """The best of them whose quote stands in SQL where we say that it does."""
        with self._database.read() as session:
            for finding in findings:
                passage, quote = self._quoted(finding)
                start_char, end_char = passage.start_char + finding.start, passage.start_char + finding.end
                stored = read_quote(session, self._scope, passage.document_id, start_char, end_char)
                if stored is None or stored.text != quote:
                    continue
                return Support(
                    number=finding.number,
                    passage=passage,
                    quote=quote,
                    start_char=start_char,
                    end_char=end_char,
                    page=stored.places[0].page if stored.places else None,
                    boxes=_boxes(stored.places),
                    score=finding.score,
                    judge=judge,
                )
        return None

    def _quoted(self, finding: Finding) -> tuple[Passage, str]:
        passage = self._passages[finding.number - 1]
        return passage, passage.text[finding.start : finding.end]


def _boxes(places: Sequence[Place]) -> tuple[tuple[int, Box], ...]:
    return tuple(
        (place.page, place.box) for place in places if place.page is not None and place.box is not None
    )
