"""Whether the chunks that were found bear on a question at all: several signals, weighed into one score. Pure.

A search always finds something. Each signal alone is fooled by some questions: a cosine by whatever is about the
same subject, words by those that mean two things, a small reranker by texts unlike those that it was trained on.
"""

import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Protocol

from retrieval.analysers import Language, read
from retrieval.keyword_index import stems_of, wholes_of, words_of
from retrieval.languages import function_words, without_bound
from retrieval.places import under_headings
from retrieval.rankings import Vocabulary

UNRELATED = (
    "The orchestra tuned its instruments before the concert began.",
    "Fresh basil should be added to the sauce at the very end.",
    "The invoice is payable within thirty days of receipt.",
    "Glaciers carve wide valleys as they slide towards the sea.",
    "She parked her bicycle behind the old railway station.",
    "A compiler turns source code into machine instructions.",
    "The goalkeeper saved two penalties in the final minutes.",
    "Vaccines train the immune system to recognise a virus.",
    "The treaty was signed by both kings after a long war.",
    "Knitting a pullover takes about twelve balls of wool.",
    "Interest rates were raised to slow down inflation.",
    "The telescope showed rings of dust around a young star.",
    "Beavers build dams out of branches, stones and mud.",
    "Tenants must give notice three months in advance.",
    "The poem describes a sailor who longs for his home.",
    "Concrete hardens because cement reacts with water.",
)
"""Texts that no question is about. How near a question is to them tells what a cosine of its embedding model means:
for some models .3 is near, for others .7 is far. Source: test normalisation, Auckenthaler et al. 2000.
"""
READ = 12
"""How many chunks are looked through, the best first."""
PRIOR_CHUNKS = 500
PRIOR_FREQUENCY = 5
"""So many chunks, of which so few hold a word, are added to those of a collection: how often a word stands in three
chunks says nothing of how rare it is.
"""
MAX_LOG_ODDS = 6.0


class Text(Protocol):
    """A chunk as evidence is looked for in it."""

    @property
    def headings(self) -> tuple[str, ...]: ...

    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Signals:
    """What tells whether chunks bear on a question. All are 0..1, and more speaks for them."""

    nearness: float
    """Of the nearest chunk: from 0, as near as UNRELATED texts, to 1, the same text."""
    words: float
    """Share of the question's content words, weighed by rarity, that the best chunk for it holds."""
    sentence: float
    """The same of two sentences in a row, under their headings."""
    identifiers: float
    """Share of identifiers in the question, such as part numbers, that one chunk holds; 0 where it has none."""
    relevance: float | None = None
    """The best score that a reranker gave, its log-odds scaled to 0..1. None where none read."""

    def values(self) -> dict[str, float]:
        """By name; without the reranker's where there is none."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def with_relevance(self, score: float) -> "Signals":
        """`score`: the best of a reranker, 0..1."""
        return replace(self, relevance=_scaled_log_odds(score))


SIGNALS = frozenset(each.name for each in fields(Signals))
"""Their names."""


def signals_of(question: str, found: Sequence[Text], *, nearness: float, vocabulary: Vocabulary) -> Signals:
    """`found`: best first. Without a reranker's word. Takes some milliseconds for a dozen chunks."""
    asked = _Asked.of(question, vocabulary)
    looked_through = [_looked_through(asked, each) for each in found[:READ]] or [_Read()]
    return Signals(
        nearness=nearness,
        words=max(each.words for each in looked_through),
        sentence=max(each.sentence for each in looked_through),
        identifiers=max(each.identifiers for each in looked_through),
    )


def nearness_of(cosine: float, unrelated: float) -> float:
    """`unrelated`: the question's mean cosine with UNRELATED texts, by the same embedding model. Both -1..1."""
    return min(max((cosine - unrelated) / max(1 - unrelated, 1e-6), 0.0), 1.0)


@dataclass(frozen=True)
class Weighing:
    """How signals are weighed: a logistic model, and the score below which they speak against a question."""

    intercept: float
    weights: Mapping[str, float]
    """By the signal's name; one that is missing counts nothing."""
    threshold: float

    def score(self, signals: Signals) -> float:
        """0..1: how likely the chunks bear on the question, were as many questions covered as not."""
        total = self.intercept + sum(
            self.weights.get(name, 0.0) * value for name, value in signals.values().items()
        )
        return 1 / (1 + math.exp(-min(max(total, -30.0), 30.0)))


@dataclass(frozen=True)
class Calibration:
    """How signals are weighed without a reranker's word and with it."""

    plain: Weighing
    reranked: Weighing

    def with_threshold(self, threshold: float) -> "Calibration":
        return Calibration(
            plain=replace(self.plain, threshold=threshold),
            reranked=replace(self.reranked, threshold=threshold),
        )


@dataclass(frozen=True)
class Evidence:
    """What speaks for an answer from the chunks that were found."""

    score: float
    threshold: float
    signals: Signals

    @property
    def is_enough(self) -> bool:
        return self.score >= self.threshold


def weigh(signals: Signals, calibration: Calibration) -> Evidence:
    weighing = calibration.plain if signals.relevance is None else calibration.reranked
    return Evidence(weighing.score(signals), weighing.threshold, signals)


SHIPPED = Calibration(
    plain=Weighing(
        intercept=-4.425,
        weights={"nearness": 7.233, "words": 1.72, "sentence": 0.424, "identifiers": 3.0},
        threshold=0.333,
    ),
    reranked=Weighing(
        intercept=-6.423,
        weights={
            "nearness": 3.941,
            "words": 1.511,
            "sentence": 1.296,
            "identifiers": 3.0,
            "relevance": 6.478,
        },
        threshold=0.25,
    ),
)
"""Fitted with all-MiniLM-L6-v2, and with a small cross-encoder, on half of some questions (crc32 of their id even)
of SQuAD, CLAPNQ, SciFact, Cranfield and MedQuAD, asked of their own texts and of those of another set, all of them or
1 to 12 chunks; and on questions of SQuAD 2.0 and CLAPNQ that no text answers, at a weight of .15. On the other half:
balanced accuracy .97 without the reranker, .98 with it. Only the weight of identifiers is set by hand: questions with
them are rare there, but of 46 that were asked of other texts none found one.
"""


@dataclass(frozen=True)
class _Asked:
    """A question as its words are looked for. `weights`: by content word."""

    weights: Mapping[str, float]
    identifiers: Set[str]
    """As they stand."""
    spelling: dict[Language, Mapping[str, Set[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, question: str, vocabulary: Vocabulary) -> "_Asked":
        wholes = wholes_of(read(question, is_query=True))
        return cls(
            weights={word: _weight(word, vocabulary) for word in content_words(question)},
            identifiers={
                whole for whole in wholes if any(map(str.isdigit, whole)) and any(map(str.isalpha, whole))
            },
        )

    def held_by(self, stems: Set[str], language: Language) -> Set[str]:
        """Which of its words are among the stems of a text in that language."""
        if language not in self.spelling:
            self.spelling[language] = {word: _stems(word, language) for word in self.weights}
        spelt = self.spelling[language]
        # A stop word of the text's language is not among its stems, and tells nothing against it.
        return {word for word, known in spelt.items() if not known or known & stems}

    def share(self, held: Set[str]) -> float:
        """Of its words, by weight, those that are held. 0 without words."""
        whole = sum(self.weights.values())
        # In the question's order, so that the sum is the same in every process.
        return sum(weight for word, weight in self.weights.items() if word in held) / whole if whole else 0.0


@dataclass(frozen=True)
class _Read:
    """What one text holds of a question."""

    words: float = 0.0
    sentence: float = 0.0
    identifiers: float = 0.0


def content_words(question: str) -> tuple[str, ...]:
    """The words of a question that say what it is about, lower case, each once, in order; text without spaces in pairs.

    All its words when none is left.
    """
    binding = function_words(question)
    said = [
        word.lower() for word in words_of(read(without_bound(question), is_query=True)) if word.strip("_")
    ]
    telling = [word for word in said if word not in binding and (len(word) > 1 or not word.isalpha())]
    return tuple(dict.fromkeys(telling or said))


def _looked_through(asked: _Asked, chunk: Text) -> _Read:
    reading = read(under_headings(chunk.headings, chunk.text))
    held = asked.held_by(frozenset(stems_of(reading)), reading.language)
    wholes = asked.identifiers & set(wholes_of(reading)) if asked.identifiers else ()
    return _Read(
        words=asked.share(held),
        sentence=_best_sentences(asked, chunk, reading.language),
        identifiers=len(wholes) / len(asked.identifiers) if asked.identifiers else 0.0,
    )


def _best_sentences(asked: _Asked, chunk: Text, language: Language) -> float:
    """The share of the question's words in the best two sentences in a row, or in one that stands alone."""
    under = _stems(" ".join(chunk.headings), language)
    stems = [_stems(piece, language) for piece in _SENTENCE_END.split(chunk.text)]
    pairs = [under.union(*stems[at : at + 2]) for at in range(max(1, len(stems) - 1))]
    return max(asked.share(asked.held_by(pair, language)) for pair in pairs)


def _stems(text: str, language: Language) -> frozenset[str]:
    return frozenset(stems_of(replace(read(text), language=language)))


def _weight(word: str, vocabulary: Vocabulary) -> float:
    """Its inverse document frequency, as BM25 has it, above 0."""
    count = vocabulary.chunk_count + PRIOR_CHUNKS
    frequency = min(vocabulary.frequency_of.get(word, 0) + PRIOR_FREQUENCY, count)
    return math.log(1 + (count - frequency + 0.5) / (frequency + 0.5))


def _scaled_log_odds(share: float) -> float:
    bounded = min(max(share, 1e-6), 1 - 1e-6)
    log_odds = math.log(bounded / (1 - bounded))
    return (min(max(log_odds, -MAX_LOG_ODDS), MAX_LOG_ODDS) + MAX_LOG_ODDS) / (2 * MAX_LOG_ODDS)


_SENTENCE_END = re.compile(r"(?<=[.!?।])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")
