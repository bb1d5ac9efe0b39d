"""Indexes and filters by brute force, for comparison: nothing in them is clever, so nothing in them is wrong."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from retrieval.analysers import read
from retrieval.filters import AllOf, AnyOf, AttributeValue, Comparator, Comparison, FileField, Filter
from retrieval.keyword_index import asked_of, stems_of, stems_of_chunk, weight_of, wholes_of
from retrieval.rankings import Hit, IndexedChunk, Ranking, Vocabulary, best_first

BM25_K1 = 1.2
BM25_B = 0.75


class _Shelf:
    """The chunks that are in an index."""

    def __init__(self) -> None:
        self._chunks: dict[int, IndexedChunk] = {}

    def apply(self, *, added: Sequence[IndexedChunk], removed: Sequence[int]) -> None:
        for chunk_id in removed:
            self._chunks.pop(chunk_id, None)
        self._chunks |= {chunk.chunk_id: chunk for chunk in added}

    def chunk_ids(self) -> Set[int]:
        return frozenset(self._chunks)

    def _allowed(self, documents: Set[int] | None) -> list[IndexedChunk]:
        chunks = list(self._chunks.values())
        return [chunk for chunk in chunks if documents is None or chunk.document_id in documents]


class NumpyVectorIndex(_Shelf):
    """Every cosine, sorted."""

    def search(
        self, vectors: NDArray[np.float32], k: int, *, documents: Set[int] | None = None
    ) -> list[Ranking]:
        allowed = self._allowed(documents)
        return [
            best_first([Hit(chunk.chunk_id, float(vector @ chunk.embedding)) for chunk in allowed])[:k]
            for vector in vectors
        ]

    def vectors(self, chunk_ids: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([self._chunks[chunk_id].embedding for chunk_id in chunk_ids])

    def tend(self) -> None:
        pass

    @property
    def is_exact(self) -> bool:
        return True

    @property
    def recall(self) -> float | None:
        return None


class NaiveKeywordIndex(_Shelf):
    """BM25 as in Robertson and Zaragoza, 2009, with Lucene's idf, which is never negative.

    What a word is, the product says, for that is not what this checks. It is for texts of one language.
    """

    def search(self, queries: Sequence[str], k: int, *, documents: Set[int] | None = None) -> list[Ranking]:
        chunks = [(chunk, read(chunk.text)) for chunk in self._allowed(None)]
        stems = {chunk.chunk_id: Counter(stems_of_chunk(chunk, text)) for chunk, text in chunks}
        wholes = {chunk.chunk_id: Counter(wholes_of(text)) for chunk, text in chunks}
        allowed = {chunk.chunk_id for chunk in self._allowed(documents)}
        rankings: list[Ranking] = []
        for query in queries:
            reading = asked_of(query)
            asked_stems = dict.fromkeys(stems_of(reading), 1)
            asked_wholes = {whole: weight_of(whole) for whole in wholes_of(reading)}
            scores = {
                chunk_id: _bm25(asked_stems, stems[chunk_id], list(stems.values()))
                + _bm25(asked_wholes, wholes[chunk_id], list(wholes.values()))
                for chunk_id in allowed
            }
            found = [Hit(chunk_id, score) for chunk_id, score in scores.items() if score > 0]
            rankings.append(best_first(found)[:k])
        return rankings

    def vocabulary(self, words: Sequence[str]) -> Vocabulary:
        texts = [set(stems_of_chunk(chunk, read(chunk.text))) for chunk in self._allowed(None)]
        return Vocabulary(
            len(texts),
            {word: sum(bool(text & set(stems_of(read(word)))) for text in texts) for word in words},
        )


def _bm25(query: Mapping[str, int], text: Counter[str], all_texts: Sequence[Counter[str]]) -> float:
    average_length = sum(each.total() for each in all_texts) / len(all_texts)
    score = 0.0
    for word in query.keys() & text.keys():
        holding = sum(word in each for each in all_texts)
        idf = math.log(1 + (len(all_texts) - holding + 0.5) / (holding + 0.5))
        norm = BM25_K1 * (1 - BM25_B + BM25_B * text.total() / average_length)
        score += query[word] * idf * text[word] * (BM25_K1 + 1) / (text[word] + norm)
    return score


def matches(
    wanted: Filter, attributes: Mapping[str, AttributeValue], file: Mapping[FileField, AttributeValue]
) -> bool:
    """What a filter means: the SQL that it becomes must say the same of each document."""
    match wanted:
        case AllOf(filters):
            return all(matches(each, attributes, file) for each in filters)
        case AnyOf(filters):
            return any(matches(each, attributes, file) for each in filters)
        case Comparison(key=FileField() as field):
            return _compare(wanted, file.get(field))
        case Comparison():
            return _compare(wanted, attributes.get(str(wanted.key)))


def _compare(wanted: Comparison, found: AttributeValue | None) -> bool:
    equal = found is not None and any(_same_kind(found, value) and found == value for value in wanted.values)
    match wanted.comparator:
        case Comparator.EQ | Comparator.IN:
            return equal
        case Comparator.NE | Comparator.NIN:
            return not equal
        case _:
            value = wanted.values[0]
            return found is not None and _same_kind(found, value) and _ordered(wanted, found, value)


def _ordered(wanted: Comparison, found: AttributeValue, value: AttributeValue) -> bool:
    # Both are strings or both are numbers here; a tuple's first element decides, which mypy cannot see.
    difference = (found > value) - (found < value)  # type: ignore[operator]
    match wanted.comparator:
        case Comparator.GT:
            return difference > 0
        case Comparator.GTE:
            return difference >= 0
        case Comparator.LT:
            return difference < 0
        case _:
            return difference <= 0


def _same_kind(left: AttributeValue, right: AttributeValue) -> bool:
    # True == 1 in Python, but a switch is not a number to the person who set it.
    if isinstance(left, bool) or isinstance(right, bool):
        return isinstance(left, bool) and isinstance(right, bool)
    return isinstance(left, str) == isinstance(right, str)
