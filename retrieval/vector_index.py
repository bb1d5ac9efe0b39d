"""Exact vector search over one collection, by FAISS. The only module that imports it."""

import threading
from collections.abc import Sequence, Set

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.rankings import Hit, IndexedChunk, Ranking, best_first

# Searches come from many threads at once; letting each one fan out over all cores makes all of them slower.
faiss.omp_set_num_threads(1)


class FaissVectorIndex:
    """Inner products of unit rows, so scores are cosines. Safe to use from several threads."""

    def __init__(self, dimensions: int) -> None:
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimensions))
        self._document_of: dict[int, int] = {}
        self._chunks_of: dict[int, set[int]] = {}
        self._lock = threading.Lock()

    def apply(self, *, added: Sequence[IndexedChunk], removed: Sequence[int]) -> None:
        with self._lock:
            known = sorted(self._document_of.keys() & removed)
            if known:
                self._index.remove_ids(faiss.IDSelectorBatch(np.array(known, np.int64)))
            for chunk_id in known:
                document_id = self._document_of.pop(chunk_id)
                self._chunks_of[document_id].discard(chunk_id)
                if not self._chunks_of[document_id]:
                    del self._chunks_of[document_id]
            if added:
                vectors = np.stack([chunk.embedding for chunk in added]).astype(np.float32)
                self._index.add_with_ids(vectors, np.array([chunk.chunk_id for chunk in added], np.int64))
            for chunk in added:
                self._document_of[chunk.chunk_id] = chunk.document_id
                self._chunks_of.setdefault(chunk.document_id, set()).add(chunk.chunk_id)

    def search(
        self, vectors: NDArray[np.float32], k: int, *, documents: Set[int] | None = None
    ) -> list[Ranking]:
        with self._lock:
            parameters = None
            if documents is not None:
                allowed = [
                    chunk_id for document in documents for chunk_id in self._chunks_of.get(document, ())
                ]
                selector = faiss.IDSelectorBatch(np.array(allowed, np.int64))
                parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg] # takes any attribute
            scores, chunk_ids = self._index.search(
                np.ascontiguousarray(vectors, np.float32), k, params=parameters
            )
        return [
            best_first(
                [
                    Hit(int(chunk_id), float(score))
                    for chunk_id, score in zip(ids, row, strict=True)
                    if chunk_id >= 0
                ]
            )
            for ids, row in zip(chunk_ids, scores, strict=True)
        ]

    def vectors(self, chunk_ids: Sequence[int]) -> NDArray[np.float32]:
        with self._lock:
            found: NDArray[np.float32] = self._index.reconstruct_batch(np.array(chunk_ids, np.int64))
            return found

    def chunk_ids(self) -> Set[int]:
        with self._lock:
            return frozenset(self._document_of)
