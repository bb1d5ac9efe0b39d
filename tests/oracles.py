"""Indexes by brute force, for comparison: nothing in them is clever, so nothing in them is wrong."""

import math
from collections import Counter
from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

from retrieval.keyword_index import english_analyzer
from retrieval.rankings import Hit, IndexedChunk, Ranking, best_first

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


class NaiveKeywordIndex(_Shelf):
    """BM25 as in Robertson and Zaragoza, 2009, with Lucene's idf, which is never negative.

    The analyzer is the product's own: what a word is, is not what this checks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._analyzer = english_analyzer()

    def search(self, queries: Sequence[str], k: int, *, documents: Set[int] | None = None) -> list[Ranking]:
        counts = {chunk.chunk_id: self._words(chunk.text) for chunk in self._allowed(None)}
        allowed = {chunk.chunk_id for chunk in self._allowed(documents)}
        return [
            best_first(
                [
                    Hit(chunk_id, score)
                    for chunk_id in allowed
                    if (score := _bm25(set(self._words(query)), counts[chunk_id], list(counts.values()))) > 0
                ]
            )[:k]
            for query in queries
        ]

    def _words(self, text: str) -> Counter[str]:
        return Counter(self._analyzer.analyze(text))


def _bm25(query: Set[str], text: Counter[str], all_texts: Sequence[Counter[str]]) -> float:
    average_length = sum(each.total() for each in all_texts) / len(all_texts)
    score = 0.0
    for word in query & text.keys():
        holding = sum(word in each for each in all_texts)
        idf = math.log(1 + (len(all_texts) - holding + 0.5) / (holding + 0.5))
        norm = BM25_K1 * (1 - BM25_B + BM25_B * text.total() / average_length)
        score += idf * text[word] * (BM25_K1 + 1) / (text[word] + norm)
    return score
