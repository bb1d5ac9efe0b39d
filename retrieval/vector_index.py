"""Vector search over one collection, by FAISS: exact while small, then approximate. The only module that imports it.

Vectors are kept as the float16 rows that SQL holds, in segments. One with more than `EXACT_UP_TO` rows gets a
sketch, two bits a dimension, of which a search scans all; what is best by it is then ranked by the rows themselves.

Four families were compared on 100,000 vectors of MiniLM and mixtures of them, 384 dimensions: CPU time on one core with
AVX-512, recall of the best 10, bytes beside the float16 rows (768), CPU time to build. The middle three are refined.
    exact, float16             3.0 ms   1.000     0 B
    PQ, 4 bits a pair, all     0.6 ms   1.000   104 B    2 s   to add 1,000: 8 ms
    RaBitQ, 1 bit, all         2.4 ms   0.999    62 B    1 s   takes no filter; of the best 400 it finds .96, PQ .998
    IVF-SQ8, 1/8 of the lists  0.8 ms   0.965   408 B    5 s   each change of topics asks for new lists
    HNSW 32, float16, ef 512   1.3 ms   0.975   272 B   22 s   cannot remove
PQ scans everything, so its recall rests on no choice of lists to look into, with a filter or without, and there is
nothing to balance as rows come and go. It is kept. On 1,000,000: 1.000 in 7 ms, the best 400 in 11 ms, 1.3 times the
memory of the rows, 19 s to build.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.rankings import Hit, IndexedChunk, Ranking

EXACT_UP_TO = 20_000
"""Rows that a search reads one by one: in 0.6 ms."""
SEGMENT_ROWS = 262_144
"""Of one segment: so few that to write one anew takes little memory and seconds."""
CANDIDATES = 4
"""For each hit that is asked for, so many of the sketch are ranked by their rows."""
FEWEST_CANDIDATES = 400
GROWTH = 3
"""A sketch is drawn anew when its segment has so many times the rows that it was trained on a sample of."""
DEAD_SHARE = 0.2
"""A segment is written anew when removed rows are more of it."""
BLOCK = 2_048
"""Rows that are copied at once. A change waits for no more than this, and a search for none."""
CENTRES = 16
"""Of each pair of dimensions; fewer rows cannot train them."""
TRAINED_ON = 8_192
"""Rows of the segment, at random."""
RECALL_K = 10
RECALLS = 100
"""Of the last so many queries the recall is told."""
MEASURING_SHARE = 0.01
"""Of one core's time, for measuring recall."""

DEAD = -1
"""The chunk id of a row that was removed."""


class FaissVectorIndex:
    """Inner products of unit rows, so scores are cosines: those of the rows themselves, exact or not.

    Safe to use from several threads; searches run side by side, a change runs alone. Somebody calls `tend` now and
    then: until then a search is exact and takes as long as it takes.
    """

    def __init__(
        self,
        dimensions: int,
        *,
        exact_up_to: int = EXACT_UP_TO,
        segment_rows: int = SEGMENT_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dimensions = dimensions
        self._exact_up_to = exact_up_to
        self._segment_rows = segment_rows
        self._clock = clock
        self._segments: list[_Segment] = []
        """Rows are added to the last one."""
        self._lock = _SharedLock()
        self._changes = 0
        self._recent: deque[NDArray[np.float32]] = deque(maxlen=RECALLS)
        """Queries that were not measured yet."""
        self._recalls: deque[float] = deque(maxlen=RECALLS)
        self._measure_at = 0.0
        self._random = np.random.default_rng(0)

    @classmethod
    def of(
        cls,
        rows: NDArray[np.float16],
        *,
        chunk_ids: NDArray[np.int64],
        document_ids: NDArray[np.int64],
    ) -> Self:
        """An index of these rows, float16 (n, dimensions), unit rows."""
        index = cls(rows.shape[1])
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            index._add(rows[part].astype(np.float32), chunk_ids[part], document_ids[part])
        return index

    def apply(self, *, added: Sequence[IndexedChunk], removed: Sequence[int]) -> None:
        _use_one_thread()
        with self._lock.alone():
            self._changes += 1
            if removed:
                for segment in self._segments:
                    segment.remove(np.array(removed, np.int64))
            if added:
                self._add(
                    np.stack([chunk.embedding for chunk in added]).astype(np.float32),
                    np.array([chunk.chunk_id for chunk in added], np.int64),
                    np.array([chunk.document_id for chunk in added], np.int64),
                )

    def search(
        self, vectors: NDArray[np.float32], k: int, *, documents: Set[int] | None = None
    ) -> list[Ranking]:
        _use_one_thread()
        queries = np.ascontiguousarray(vectors, np.float32)
        with self._lock.shared():
            rankings = self._search(queries, k, documents)
            if documents is None and not self.is_exact:
                self._recent.extend(queries.copy())
        return rankings

    def vectors(self, chunk_ids: Sequence[int]) -> NDArray[np.float32]:
        wanted = np.array(chunk_ids, np.int64)
        order = np.argsort(wanted)
        rows = np.empty((len(wanted), self._dimensions), np.float32)
        is_found = np.zeros(len(wanted), bool)
        with self._lock.shared():
            for segment in self._segments:
                slots = np.flatnonzero(np.isin(segment.chunk_ids, wanted))
                places = order[np.searchsorted(wanted, segment.chunk_ids[slots], sorter=order)]
                rows[places] = segment.read(slots)
                is_found[places] = True
        if not is_found.all():
            raise KeyError(f"Chunk {wanted[~is_found][0]} is not in the index.")
        return rows

    def chunk_ids(self) -> Set[int]:
        with self._lock.shared():
            return frozenset(
                chunk_id
                for segment in self._segments
                for chunk_id in segment.chunk_ids[segment.chunk_ids != DEAD].tolist()
            )

    @property
    def is_exact(self) -> bool:
        return all(segment.sketch is None for segment in self._segments)

    @property
    def recall(self) -> float | None:
        recalls = list(self._recalls)
        return float(np.mean(recalls)) if recalls else None

    def tend(self) -> None:
        _use_one_thread()
        self._rewrite_worn()
        with self._lock.shared():
            wanting = [segment for segment in self._segments if segment.wants_sketch(self._exact_up_to)]
        for segment in wanting:
            self._draw_sketch(segment)
        if not self.is_exact and self._clock() >= self._measure_at:
            self._measure_recall()

    def _add(
        self, rows: NDArray[np.float32], chunk_ids: NDArray[np.int64], document_ids: NDArray[np.int64]
    ) -> None:
        while len(rows):
            if not self._segments or len(self._segments[-1]) >= self._segment_rows:
                self._segments.append(_Segment(self._dimensions))
            room = self._segment_rows - len(self._segments[-1])
            self._segments[-1].add(rows[:room], chunk_ids[:room], document_ids[:room])
            rows, chunk_ids, document_ids = rows[room:], chunk_ids[room:], document_ids[room:]

    def _search(self, queries: NDArray[np.float32], k: int, documents: Set[int] | None) -> list[Ranking]:
        """The caller holds the lock."""
        if documents is None:
            parts = [segment.search(queries, k) for segment in self._segments]
            return _best(parts, k, len(queries))
        wanted = np.fromiter(documents, np.int64, len(documents))
        wanted.sort()
        admitted = [(segment, segment.slots_of(wanted)) for segment in self._segments]
        # So few are read one by one, which finds them all and takes less than to look for them in the sketches.
        is_exact = sum(len(slots) for _, slots in admitted) <= self._exact_up_to
        parts = [
            segment.search(queries, k, slots, is_exact=is_exact) for segment, slots in admitted if len(slots)
        ]
        return _best(parts, k, len(queries))

    def _rewrite_worn(self) -> None:
        """Puts segments with many dead rows, and what has become small, into one new segment without those."""
        with self._lock.shared():
            worn = [(segment, segment.chunk_ids.copy()) for segment in self._worn()]
        if not worn:
            return
        fresh = _Segment(self._dimensions)
        for segment, chunk_ids in worn:
            alive = np.flatnonzero(chunk_ids != DEAD)
            for start in range(0, len(alive), BLOCK):
                slots = alive[start : start + BLOCK]
                with self._lock.shared():
                    rows, document_ids = segment.read(slots), segment.document_ids[slots]
                fresh.add(rows, chunk_ids[slots], document_ids)
        if fresh.wants_sketch(self._exact_up_to):
            self._draw_sketch(fresh)
        with self._lock.alone():
            for segment, chunk_ids in worn:
                then_alive, is_dead = chunk_ids != DEAD, segment.chunk_ids[: len(chunk_ids)] == DEAD
                fresh.remove(chunk_ids[then_alive & is_dead])
                since = np.arange(len(chunk_ids), len(segment))
                since = since[segment.chunk_ids[since] != DEAD]
                if len(since):
                    fresh.add(segment.read(since), segment.chunk_ids[since], segment.document_ids[since])
            replaced = [segment for segment, _ in worn]
            last = self._segments.index(replaced[-1])
            self._segments[last] = fresh
            self._segments = [
                segment for segment in self._segments if segment not in replaced and len(segment)
            ]

    def _worn(self) -> "list[_Segment]":
        few_dead = self._exact_up_to // 20
        group: list[_Segment] = []
        is_any_worn = False
        for segment in self._segments:
            is_worn = segment.dead > max(few_dead, DEAD_SHARE * len(segment))
            is_small = segment is not self._segments[-1] and segment.alive <= self._segment_rows // 4
            if (is_worn or is_small) and sum(s.alive for s in group) + segment.alive <= self._segment_rows:
                group.append(segment)
                is_any_worn |= is_worn
        return group if is_any_worn or len(group) > 1 else []

    def _draw_sketch(self, segment: "_Segment") -> None:
        sketch = _new_sketch(self._dimensions)
        with self._lock.shared():
            count = len(segment)
            sample = segment.read(self._random.choice(count, min(count, TRAINED_ON), replace=False))
        sketch.train(sample)
        while len(segment) - sketch.ntotal > BLOCK:
            with self._lock.shared():
                rows = segment.read_range(sketch.ntotal, BLOCK)
            sketch.add(rows)
        with self._lock.alone():
            if lacking := len(segment) - sketch.ntotal:
                sketch.add(segment.read_range(sketch.ntotal, lacking))
            segment.take(sketch)
            self._recalls.clear()

    def _measure_recall(self) -> None:
        """Of one query that was asked lately, else of a stored row."""
        began_at, changes = self._clock(), self._changes
        query = self._recent.popleft() if self._recent else self._any_row()
        with self._lock.shared():
            (found,) = self._search(query[None], RECALL_K, None)
        exact = self._exact_scores(query)
        if changes == self._changes and len(exact):
            # By score, since texts that stand twice have equal ones: either of them is right.
            self._recalls.append(sum(hit.score >= exact[-1] - 1e-6 for hit in found) / len(exact))
        self._measure_at = self._clock() + (self._clock() - began_at) / MEASURING_SHARE

    def _exact_scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """The best RECALL_K scores, best first. Holds the lock for a stretch of rows at a time."""
        scores = np.empty(0, np.float32)
        for segment in list(self._segments):
            for start in range(0, len(segment), BLOCK):
                with self._lock.shared():
                    slots = np.arange(start, min(start + BLOCK, len(segment)))
                    rows, is_alive = segment.read_range(start, len(slots)), segment.chunk_ids[slots] != DEAD
                scores = np.sort(np.concatenate([scores, (rows @ query)[is_alive]]))[-RECALL_K:]
        return scores[::-1]

    def _any_row(self) -> NDArray[np.float32]:
        with self._lock.shared():
            segment = self._segments[self._random.integers(len(self._segments))]
            row: NDArray[np.float32] = segment.read(self._random.integers(len(segment), size=1))[0]
        return row


class _Segment:
    """A stretch of rows. Each keeps its slot until all of the segment is written anew."""

    def __init__(self, dimensions: int) -> None:
        self._rows = faiss.IndexScalarQuantizer(
            dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        self.chunk_ids = np.empty(0, np.int64)
        """By slot; DEAD where the row was removed."""
        self.document_ids = np.empty(0, np.int64)
        self.dead = 0
        self.sketch: faiss.Index | None = None
        self._refined: faiss.IndexRefine | None = None
        """Searches the sketch, then ranks what it found by the rows."""
        self._drawn_at = 0
        self._alive_bits = np.empty(0, np.uint8)
        self._by_document: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Dead rows count."""
        return len(self.chunk_ids)

    @property
    def alive(self) -> int:
        return len(self) - self.dead

    def add(
        self, rows: NDArray[np.float32], chunk_ids: NDArray[np.int64], document_ids: NDArray[np.int64]
    ) -> None:
        (self._refined or self._rows).add(np.ascontiguousarray(rows))
        self.chunk_ids = np.concatenate([self.chunk_ids, chunk_ids])
        self.document_ids = np.concatenate([self.document_ids, document_ids])
        self._changed()

    def remove(self, chunk_ids: NDArray[np.int64]) -> None:
        """An id that is not here is ignored."""
        slots = np.flatnonzero(np.isin(self.chunk_ids, chunk_ids))
        if len(slots):
            self.chunk_ids[slots] = DEAD
            self.dead += len(slots)
            self._changed()

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        slots: NDArray[np.int64] | None = None,
        *,
        is_exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and chunk ids, k or more of each for each query, DEAD where there are fewer.

        `slots` restricts the search to those rows.
        """
        selector = self._selector(slots)
        if self._refined is None or is_exact:
            scores, found = self._rows.search(
                queries, k, params=_parameters(faiss.SearchParameters, sel=selector)
            )
        else:
            refined = _parameters(
                faiss.IndexRefineSearchParameters,
                k_factor=1.0,
                base_index_params=_parameters(faiss.SearchParametersIVF, nprobe=1, sel=selector),
            )
            # All candidates come back: of equal scores, the sketch's order would choose those that do.
            candidates = max(CANDIDATES * k, FEWEST_CANDIDATES)
            scores, found = self._refined.search(queries, min(candidates, len(self)), params=refined)
        return scores, np.where(found >= 0, self.chunk_ids[found], DEAD)

    def slots_of(self, document_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The alive rows of these documents, whose ids rise."""
        if self._by_document is None:
            alive = np.flatnonzero(self.chunk_ids != DEAD)
            order = alive[np.argsort(self.document_ids[alive], kind="stable")]
            self._by_document = self.document_ids[order], order
        sorted_ids, order = self._by_document
        starts = np.searchsorted(sorted_ids, document_ids, side="left")
        counts = np.searchsorted(sorted_ids, document_ids, side="right") - starts
        starts, counts = starts[counts > 0], counts[counts > 0]
        # All of start, start + 1, ... of each document, put together.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        slots: NDArray[np.int64] = order[np.repeat(starts, counts) + within]
        return slots

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._rows.reconstruct_batch(np.ascontiguousarray(slots, np.int64))
        return rows

    def read_range(self, start: int, count: int) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._rows.reconstruct_n(start, count)
        return rows

    def wants_sketch(self, exact_up_to: int) -> bool:
        least = max(exact_up_to, CENTRES)
        return len(self) > least and (self.sketch is None or len(self) >= GROWTH * self._drawn_at)

    def take(self, sketch: faiss.Index) -> None:
        """It was drawn of all rows."""
        self.sketch, self._drawn_at = sketch, len(self)
        self._refined = faiss.IndexRefine(sketch, self._rows)

    def _selector(self, slots: NDArray[np.int64] | None) -> faiss.IDSelectorBitmap | None:
        if slots is None:
            return _selector(self._alive_bits) if self.dead else None
        admitted = np.zeros(len(self), bool)
        admitted[slots] = True
        return _selector(np.packbits(admitted, bitorder="little"))

    def _changed(self) -> None:
        self._by_document = None
        if self.dead:
            self._alive_bits = np.packbits(self.chunk_ids != DEAD, bitorder="little")


class _SharedLock:
    """Held by many at once, or by one alone. Who waits to be alone goes before those that come after."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._sharing = 0
        self._is_alone = False
        self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._is_alone and not self._waiting)
            self._sharing += 1
        try:
            yield
        finally:
            with self._condition:
                self._sharing -= 1
                if not self._sharing:
                    self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._waiting += 1
            try:
                self._condition.wait_for(lambda: not self._is_alone and not self._sharing)
            finally:
                self._waiting -= 1
            self._is_alone = True
        try:
            yield
        finally:
            with self._condition:
                self._is_alone = False
                self._condition.notify_all()


def _new_sketch(dimensions: int) -> faiss.IndexIVFPQFastScan:
    """Four bits for every two dimensions. It has one list, since FAISS's index without lists takes no selector."""
    centre = faiss.IndexFlatIP(dimensions)
    pairs = dimensions // 2 if dimensions % 2 == 0 else dimensions
    sketch = faiss.IndexIVFPQFastScan(centre, dimensions, 1, pairs, 4, faiss.METRIC_INNER_PRODUCT)
    sketch.by_residual = False
    # A few rows train it as well, only worse.
    sketch.cp.min_points_per_centroid = sketch.pq.cp.min_points_per_centroid = 1
    return sketch


def _best(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int, queries: int
) -> list[Ranking]:
    """One ranking of each query, from its scores and chunk ids in each segment."""
    if not parts:
        return [()] * queries
    rankings: list[Ranking] = []
    scores, chunk_ids = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    for row_scores, row_ids in zip(scores, chunk_ids, strict=True):
        is_hit = row_ids != DEAD
        hit_scores, hit_ids = row_scores[is_hit], row_ids[is_hit]
        order = np.lexsort((hit_ids, -hit_scores))[:k]
        rankings.append(tuple(map(Hit, hit_ids[order].tolist(), hit_scores[order].tolist())))
    return rankings


def _selector(bits: NDArray[np.uint8]) -> faiss.IDSelectorBitmap:
    return faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type] # the stubs have C++'s arguments


def _parameters(kind: Callable[[], Any], **values: Any) -> Any:
    """FAISS takes any of its attributes as an argument, which its stubs do not tell."""
    parameters = kind()
    for name, value in values.items():
        setattr(parameters, name, value)
    return parameters


def _use_one_thread() -> None:
    """Searches come from many threads at once; letting each one fan out over all cores makes all of them slower.

    OpenMP keeps the number for each thread, so it is set where FAISS is called.
    """
    faiss.omp_set_num_threads(1)
