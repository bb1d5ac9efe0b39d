"""Hits and rankings, the seams VectorIndex and KeywordIndex that produce them, and their fusion."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

RRF_K = 60
"""Source: Cormack, Clarke and Buettcher, 2009."""
HEARD_SHARE = 0.8
"""Of its score, what a hit keeps whose page or section has a better one. On 1,460 questions about nine annual and
quarterly reports, 1,400 of them made of rows of tables, a page that answers was among the first 10 chunks for 1,331;
for 1,334 with .75, 1,328 with .85 and 1,294 with 1. Of what differs so little, not the least: a page may answer in two
chunks, and the second should stand above what is only akin.
"""


@dataclass(frozen=True)
class Hit:
    chunk_id: int
    score: float


Ranking = tuple[Hit, ...]
"""Best first; equal scores by rising chunk id, so that the same search always gives the same order."""


class Fusion(StrEnum):
    """How two rankings become one."""

    WEIGHTED = "weighted"
    RRF = "rrf"


@dataclass(frozen=True)
class IndexedChunk:
    """What an index needs to know of a chunk."""

    chunk_id: int
    document_id: int
    text: str
    embedding: NDArray[np.float32]
    """(dimensions,), a unit row, of values that float16 holds: indexes keep it so."""
    filename: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """How common some words are among the chunks of an index, or of several."""

    chunk_count: int = 0
    frequency_of: Mapping[str, int] = field(default_factory=dict)
    """By word, the number of chunks that hold it."""

    def __add__(self, other: "Vocabulary") -> "Vocabulary":
        frequencies = Counter(self.frequency_of)
        frequencies.update(other.frequency_of)
        return Vocabulary(self.chunk_count + other.chunk_count, frequencies)


class VectorIndex(Protocol):
    """Finds chunks by the meaning of their text."""

    def apply(self, *, added: Sequence[IndexedChunk], removed: Sequence[int]) -> None:
        """Takes in a stretch of the log: an unknown removed id is ignored."""
        ...

    def search(
        self, vectors: NDArray[np.float32], k: int, *, documents: Set[int] | None = None
    ) -> list[Ranking]:
        """One ranking of at most k hits for each row of `vectors`, float32 (n, dimensions); scores are cosines.

        `documents` restricts the search itself to chunks of these documents.
        """
        ...

    def vectors(self, chunk_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 (n, dimensions) as indexed, for verification. Raises for an id that is not in the index."""
        ...

    def chunk_ids(self) -> Set[int]: ...

    def tend(self) -> None:
        """Does what can wait, such as building what makes searches fast, in the caller's thread.

        Searches and changes go on meanwhile. Call it now and then, from one thread at a time.
        """
        ...

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared, as it is while there are few."""
        ...

    @property
    def recall(self) -> float | None:
        """Of an index that is not exact: the share of the best 10 that it finds, over a sample of queries that `tend`
        measures. None before the first.
        """
        ...


class KeywordIndex(Protocol):
    """Finds chunks by the words of their text."""

    def apply(self, *, added: Sequence[IndexedChunk], removed: Sequence[int]) -> None: ...

    def search(self, queries: Sequence[str], k: int, *, documents: Set[int] | None = None) -> list[Ranking]:
        """One ranking of at most k hits for each query; scores are BM25 with k1 = 1.2 and b = 0.75.

        That of words, by their stems, and that of identifiers, whole, are added. Words of a chunk's first line, which
        are its headings, title or columns, stand twice in it, and those of its file's name once.
        """
        ...

    def vocabulary(self, words: Sequence[str]) -> Vocabulary:
        """How many chunks hold each word, inflected as it may be."""
        ...

    def chunk_ids(self) -> Set[int]: ...


def best_first(hits: Sequence[Hit]) -> Ranking:
    return tuple(sorted(hits, key=lambda hit: (-hit.score, hit.chunk_id)))


def scaled(ranking: Ranking) -> Ranking:
    """Its scores from 0 to 1, by their own minimum and maximum; all 1 when they are equal."""
    if not ranking:
        return ()
    low = min(hit.score for hit in ranking)
    span = max(hit.score for hit in ranking) - low
    return tuple(Hit(hit.chunk_id, (hit.score - low) / span if span > 0 else 1.0) for hit in ranking)


def fuse_weighted(rankings: Sequence[Ranking], weights: Sequence[float]) -> Ranking:
    """Sums each ranking's scores, `scaled`, times its weight.

    A chunk that a ranking lacks counts 0 there. With weights that sum to 1, so do the scores of a chunk that
    leads them all. Source: Fox and Shaw, CombSUM, 1994.
    """
    fused: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for hit in scaled(ranking):
            fused[hit.chunk_id] = fused.get(hit.chunk_id, 0.0) + weight * hit.score
    return best_first([Hit(chunk_id, score) for chunk_id, score in fused.items()])


def fuse_rrf(rankings: Sequence[Ranking], weights: Sequence[float]) -> Ranking:
    """Reciprocal rank fusion: the weighted sum of 1 / (60 + rank), divided by its largest possible value."""
    fused: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, hit in enumerate(ranking, 1):
            fused[hit.chunk_id] = fused.get(hit.chunk_id, 0.0) + weight / (RRF_K + rank)
    largest = sum(weights) / (RRF_K + 1)
    return best_first([Hit(chunk_id, score / largest) for chunk_id, score in fused.items()])


def varied(ranking: Ranking, groups_of: Mapping[int, Sequence[Hashable]]) -> Ranking:
    """Lets more pages and sections speak: the second and later hits of a group, by chunk id, count HEARD_SHARE.

    Who reads the best chunk of a page or section finds the others beside it.
    """
    heard: set[Hashable] = set()
    hits = []
    for hit in ranking:
        groups = groups_of[hit.chunk_id]
        hits.append(hit if heard.isdisjoint(groups) else Hit(hit.chunk_id, hit.score * HEARD_SHARE))
        heard.update(groups)
    return best_first(hits)


def fuse(method: Fusion, rankings: Sequence[Ranking], weights: Sequence[float]) -> Ranking:
    return (fuse_weighted if method is Fusion.WEIGHTED else fuse_rrf)(rankings, weights)
