"""The vector index in a process of its own: `python -m tests.bench.index_alone FOLDER`, for `index_scale.py`.

FOLDER holds `rows16.npy`, `rows.npy` and `queries.npy`. It gets `best.npy`, each query's best 10 rows, and JSON is
printed: recall, seconds of searches and changes, memory.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import orjson
from numpy.typing import NDArray

from retrieval.rankings import Hit, IndexedChunk, Ranking
from retrieval.vector_index import FaissVectorIndex
from tests.bench.scale_material import CHUNKS_A_DOCUMENT, SHELVES

K = 10
BLOCK = 100_000


def main() -> None:
    folder = Path(sys.argv[1])
    queries = np.load(folder / "queries.npy")
    rows = np.load(folder / "rows16.npy", mmap_mode="r")
    chunk_ids = np.arange(len(rows))
    before = _memory_bytes()
    started = time.perf_counter()
    index = FaissVectorIndex.of(rows, chunk_ids=chunk_ids, document_ids=chunk_ids // CHUNKS_A_DOCUMENT)
    index.tend()
    build_s = time.perf_counter() - started
    memory = _memory_bytes() - before
    best = _best(rows, queries, chunk_ids)
    np.save(folder / "best.npy", best)
    found, seconds = _timed(lambda query: index.search(query[None], K)[0], queries)
    shelf = frozenset(range(7, len(rows) // CHUNKS_A_DOCUMENT, SHELVES))
    admitted = chunk_ids[np.isin(chunk_ids // CHUNKS_A_DOCUMENT, list(shelf))]
    within, filtered_s = _timed(lambda query: index.search(query[None], K, documents=shelf)[0], queries)
    filtered_recall = _recall(within, _best(rows, queries, admitted))
    new = [IndexedChunk(10**9 + n, 10**9, "", row) for n, row in enumerate(rows[:1_000].astype(np.float32))]
    started = time.perf_counter()
    index.apply(added=new, removed=())
    added_at = time.perf_counter()
    index.apply(added=(), removed=[each.chunk_id for each in new])
    removed_at = time.perf_counter()
    told = {
        "rows": len(rows),
        "seconds": seconds,
        "filtered_s": filtered_s,
        "flat_s": _flat_s(folder, queries),
        "recall": _recall(found, best),
        "filtered_recall": filtered_recall,
        "memory": memory,
        "build_s": build_s,
        "add_s": added_at - started,
        "remove_s": removed_at - added_at,
        "raw": rows.nbytes,
    }
    print(orjson.dumps(told).decode())


def _timed(
    search: Callable[[NDArray[np.float32]], Ranking], queries: NDArray[np.float32]
) -> tuple[list[list[int]], list[float]]:
    for query in queries[:K]:
        search(query)
    found, seconds = [], []
    for query in queries:
        started = time.perf_counter()
        ranking = search(query)
        seconds.append(time.perf_counter() - started)
        found.append([hit.chunk_id for hit in ranking])
    return found, seconds


def _flat_s(folder: Path, queries: NDArray[np.float32]) -> list[float]:
    rows = np.load(folder / "rows.npy")
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)

    def search(query: NDArray[np.float32]) -> Ranking:
        scores, ids = flat.search(query[None], K)
        return tuple(map(Hit, ids[0].tolist(), scores[0].tolist()))

    return _timed(search, queries[:50])[1]


def _best(
    rows: NDArray[np.float16], queries: NDArray[np.float32], admitted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The ids of each query's best K rows of those admitted, (queries, K), by brute force."""
    scores = np.empty((len(queries), 0), np.float32)
    ids = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(admitted), BLOCK):
        part = admitted[start : start + BLOCK]
        scores = np.hstack([scores, queries @ rows[part].astype(np.float32).T])
        ids = np.hstack([ids, np.broadcast_to(part, (len(queries), len(part)))])
        kept = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        scores, ids = np.take_along_axis(scores, kept, 1), np.take_along_axis(ids, kept, 1)
    return ids


def _recall(found: Sequence[Sequence[int]], best: NDArray[np.int64]) -> float:
    shares = [len(set(ours) & set(expected.tolist())) / K for ours, expected in zip(found, best, strict=True)]
    return float(np.mean(shares))


def _memory_bytes() -> int:
    """Of this process, without the pages of files that it has mapped."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


if __name__ == "__main__":
    main()
