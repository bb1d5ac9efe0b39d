"""The vector index beyond the size at which it is exact: recall, changes, rebuilds behind the searches."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.rankings import IndexedChunk
from retrieval.vector_index import FaissVectorIndex
from tests.oracles import NumpyVectorIndex

DIMENSIONS = 128
EXACT_UP_TO = 2_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def clustered(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit rows (count, DIMENSIONS) around topics, as texts are, that float16 holds."""
    topics = np.random.default_rng(0).normal(size=(50, DIMENSIONS))
    random = np.random.default_rng((1, seed))
    rows = topics[random.integers(50, size=count)] + 0.8 * random.normal(size=(count, DIMENSIONS))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16).astype(np.float32)


def chunks(rows: NDArray[np.float32], first_id: int = 0) -> list[IndexedChunk]:
    """Ten a document."""
    return [IndexedChunk(i, i // 10, "", row) for i, row in enumerate(rows, first_id)]


def large(count: int = 12_000, *, segment_rows: int = 5_000, clock: Clock | None = None) -> FaissVectorIndex:
    """Of three segments, two of which are searched approximately."""
    index = FaissVectorIndex(
        DIMENSIONS, exact_up_to=EXACT_UP_TO, segment_rows=segment_rows, clock=clock or Clock()
    )
    index.apply(added=chunks(clustered(count)), removed=())
    return index


def found(index: FaissVectorIndex, query: NDArray[np.float32], k: int = 10) -> list[int]:
    return [hit.chunk_id for hit in index.search(query[None], k)[0]]


def recall(
    index: FaissVectorIndex, rows: NDArray[np.float32], alive: NDArray[np.int64], queries: NDArray[np.float32]
) -> float:
    """Of the best 10, against numpy."""
    expected = alive[np.argsort(-(queries @ rows[alive].T), axis=1)[:, :10]]
    shares = [
        len(set(found(index, query)) & set(best.tolist())) / 10
        for query, best in zip(queries, expected, strict=True)
    ]
    return float(np.mean(shares))


def test_it_is_exact_while_it_is_small() -> None:
    index = large(EXACT_UP_TO)
    index.tend()
    assert index.is_exact
    assert index.recall is None


def test_it_is_exact_until_it_is_tended_and_approximate_after() -> None:
    index, rows = large(), clustered(12_000)
    queries = clustered(100, seed=1)
    was_exact, before = index.is_exact, recall(index, rows, np.arange(12_000), queries)
    index.tend()
    assert (was_exact, before, index.is_exact) == (True, 1.0, False)
    assert recall(index, rows, np.arange(12_000), queries) >= 0.99


def test_scores_are_cosines_of_the_rows_whatever_the_sketch_says() -> None:
    index, rows, query = large(), clustered(12_000), clustered(1, seed=2)[0]
    index.tend()
    (ranking,) = index.search(query[None], 400)
    assert len(ranking) == 400
    assert [hit.score for hit in ranking] == pytest.approx(
        [float(rows[hit.chunk_id] @ query) for hit in ranking], abs=1e-5
    )
    assert list(ranking) == sorted(ranking, key=lambda hit: (-hit.score, hit.chunk_id))


def test_what_is_removed_is_gone_at_once_and_what_is_added_is_there() -> None:
    index, query = large(), clustered(1, seed=2)[0]
    index.tend()
    best = found(index, query)
    index.apply(added=[IndexedChunk(99_999, 9_999, "", query)], removed=best[:3])
    assert found(index, query) == [99_999, *best[3:], *found(index, query)[8:]]
    assert not set(best[:3]) & set(found(index, query, 400))
    assert not set(best[:3]) & index.chunk_ids()
    with pytest.raises(KeyError):
        index.vectors(best[:1])


@pytest.mark.parametrize("documents", [5, 600], ids=["few", "many"])
def test_a_filter_restricts_the_search_itself(documents: int) -> None:
    """600 documents are 6,000 chunks, more than are searched one by one."""
    index, rows, query = large(), clustered(12_000), clustered(1, seed=2)[0]
    index.tend()
    allowed = range(200, 200 + documents)
    ids = np.arange(2_000, 2_000 + 10 * documents)
    expected = ids[np.argsort(-(rows[ids] @ query))][:10].tolist()
    (ranking,) = index.search(query[None], 10, documents=frozenset(allowed))
    assert [hit.chunk_id for hit in ranking] == expected


def test_segments_that_wear_out_are_written_anew_without_what_was_removed() -> None:
    index, rows = large(), clustered(12_000)
    index.tend()
    removed = [i for i in range(12_000) if i % 3 != 0]
    index.apply(added=(), removed=removed)
    assert sum(len(segment) for segment in index._segments) == 12_000
    for _ in range(5):
        index.tend()
    assert sum(len(segment) for segment in index._segments) == 4_000
    assert len(index._segments) == 1
    alive = np.arange(0, 12_000, 3)
    assert index.chunk_ids() == set(alive.tolist())
    assert recall(index, rows, alive, clustered(50, seed=1)) >= 0.99
    np.testing.assert_array_equal(index.vectors([3, 9_999]), rows[[3, 9_999]])


def test_an_index_that_lost_nearly_all_is_exact_again() -> None:
    index = large()
    index.tend()
    index.apply(added=(), removed=range(500, 12_000))
    for _ in range(5):
        index.tend()
    assert index.is_exact
    assert len(index.chunk_ids()) == 500


def test_an_emptied_index_finds_nothing_and_takes_in_again() -> None:
    index, query = large(), clustered(1, seed=2)[0]
    index.tend()
    index.apply(added=(), removed=range(12_000))
    for _ in range(5):
        index.tend()
        assert found(index, query) == []
    index.apply(added=[IndexedChunk(1, 1, "", query)], removed=())
    assert found(index, query) == [1]


def test_a_sketch_is_drawn_anew_once_its_segment_has_grown_several_fold() -> None:
    index = FaissVectorIndex(DIMENSIONS, exact_up_to=EXACT_UP_TO)
    rows = clustered(9_000)
    index.apply(added=chunks(rows[:2_500]), removed=())
    index.tend()
    first = index._segments[0].sketch
    index.apply(added=chunks(rows[2_500:7_000], 2_500), removed=())
    index.tend()
    assert index._segments[0].sketch is first
    index.apply(added=chunks(rows[7_000:], 7_000), removed=())
    index.tend()
    assert index._segments[0].sketch is not first
    assert recall(index, rows, np.arange(9_000), clustered(50, seed=1)) >= 0.99


def test_recall_is_measured_of_queries_that_were_asked() -> None:
    clock = Clock()
    index = large(clock=clock)
    index.tend()
    assert index.recall is not None  # of a stored row: nobody has asked yet
    for query in clustered(20, seed=1):
        found(index, query)
    for _ in range(20):
        clock.now += 1000
        index.tend()
    assert not index._recent
    assert len(index._recalls) == 21
    assert index.recall >= 0.99


def test_a_sketch_that_finds_little_is_told_of() -> None:
    """The figure must be able to fall: here half of the rows are missing from what is searched."""
    clock = Clock()
    index = large(5_000, clock=clock)
    index.tend()
    segment = index._segments[0]
    segment._alive_bits = np.packbits(np.arange(5_000) % 2 == 0, bitorder="little")
    segment.dead = 1
    for query in clustered(50, seed=1):
        found(index, query)
        clock.now += 1000
        index.tend()
    assert index.recall is not None
    assert 0.3 < index.recall < 0.7


def test_searches_and_changes_go_on_while_it_is_tended() -> None:
    """One thread tends, one adds and removes, two search; in the end it is as if each had been alone."""
    rows = clustered(20_000)
    index = FaissVectorIndex(DIMENSIONS, exact_up_to=500, segment_rows=4_000)
    index.apply(added=chunks(rows[:1_000]), removed=())
    done = threading.Event()

    def tend() -> None:
        while not done.is_set():
            index.tend()

    def search() -> None:
        while not done.is_set():
            (ranking,) = index.search(rows[:1], 10)
            assert ranking[0].chunk_id == 0
            assert len(ranking) == len({hit.chunk_id for hit in ranking}) == 10

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(tend), threads.submit(search), threads.submit(search)]
        for start in range(1_000, 20_000, 500):
            gone = range(start - 500, start - 100)
            index.apply(added=chunks(rows[start : start + 500], start), removed=gone)
        done.set()
        for each in running:
            each.result()
    kept = set(range(500)) | {i for i in range(500, 20_000) if i % 500 >= 400 or i >= 19_500}
    assert index.chunk_ids() == kept
    for _ in range(10):
        index.tend()
    assert index.chunk_ids() == kept
    alive = np.array(sorted(kept))
    np.testing.assert_array_equal(index.vectors(alive.tolist()), rows[alive])
    assert recall(index, rows, alive, clustered(50, seed=1)) >= 0.99


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[int, list[int], bool]]:
    """How many rows are added, which ids are removed, and whether the index is tended after."""
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        removed = draw(st.lists(st.integers(0, 400), max_size=60))
        steps.append((draw(st.integers(0, 60)), removed, draw(st.booleans())))
    return steps


@settings(max_examples=30, deadline=None)
@given(changes())
def test_however_it_was_changed_and_tended_it_ranks_as_brute_force_does(
    steps: Sequence[tuple[int, list[int], bool]],
) -> None:
    rows, queries = clustered(1_000), clustered(3, seed=1)
    index, oracle = FaissVectorIndex(DIMENSIONS, exact_up_to=20, segment_rows=48), NumpyVectorIndex()
    next_id = 0
    for count, removed, is_tended in steps:
        added = chunks(rows[next_id : next_id + count], next_id)
        next_id += count
        for each in (index, oracle):
            each.apply(added=added, removed=removed)
        if is_tended:
            index.tend()
        assert index.chunk_ids() == oracle.chunk_ids()
        for documents in (None, frozenset(range(0, 40, 3))):
            for ours, expected in zip(
                index.search(queries, 15, documents=documents),
                oracle.search(queries, 15, documents=documents),
                strict=True,
            ):
                assert [hit.chunk_id for hit in ours] == [hit.chunk_id for hit in expected]
