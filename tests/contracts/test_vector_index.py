"""What every VectorIndex promises, on FAISS and on a brute-force oracle, and that the two agree."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.rankings import IndexedChunk, Ranking, VectorIndex
from retrieval.vector_index import FaissVectorIndex
from tests.oracles import NumpyVectorIndex

DIMENSIONS = 16


class TendedIndex(FaissVectorIndex):
    """Approximate from its 17th row, in many segments, and always tended to."""

    def __init__(self) -> None:
        super().__init__(DIMENSIONS, exact_up_to=16, segment_rows=64)

    def apply(self, *, added: Sequence[IndexedChunk], removed: Sequence[int]) -> None:
        super().apply(added=added, removed=removed)
        self.tend()


MAKERS: dict[str, Callable[[], VectorIndex]] = {
    "exact": lambda: FaissVectorIndex(DIMENSIONS),
    "approximate": TendedIndex,
    "oracle": NumpyVectorIndex,
}


@pytest.fixture(params=MAKERS)
def index(request: pytest.FixtureRequest) -> VectorIndex:
    return MAKERS[request.param]()


def along(axis: int, *, tilt: float = 0.0) -> NDArray[np.float32]:
    """A unit vector along one axis, tilted towards the last one, as far as float16 goes."""
    vector = np.zeros(DIMENSIONS, np.float16)
    vector[axis], vector[-1] = np.sqrt(1 - tilt**2), tilt
    return vector.astype(np.float32)


def chunk(chunk_id: int, embedding: NDArray[np.float32], document_id: int = 1) -> IndexedChunk:
    return IndexedChunk(chunk_id, document_id, text="", embedding=embedding)


def random_chunks(random: np.random.Generator, chunk_ids: Sequence[int]) -> list[IndexedChunk]:
    """Ten chunks a document."""
    rows = random.normal(size=(len(chunk_ids), DIMENSIONS)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows.astype(np.float16).astype(np.float32)
    return [chunk(i, row, document_id=i // 10) for i, row in zip(chunk_ids, rows, strict=True)]


def ids(ranking: Ranking) -> list[int]:
    return [hit.chunk_id for hit in ranking]


def test_hits_are_best_first_and_scores_are_cosines(index: VectorIndex) -> None:
    index.apply(added=[chunk(1, along(0, tilt=0.6)), chunk(2, along(0)), chunk(3, along(1))], removed=())
    (ranking,) = index.search(along(0)[None], 10)
    assert ids(ranking) == [2, 1, 3]
    assert [hit.score for hit in ranking] == pytest.approx([1.0, 0.8, 0.0], abs=1e-3)


def test_equal_scores_come_by_rising_id(index: VectorIndex) -> None:
    index.apply(added=[chunk(chunk_id, along(0)) for chunk_id in (9, 4, 7)], removed=())
    (ranking,) = index.search(along(0)[None], 3)
    assert ids(ranking) == [4, 7, 9]


def test_at_most_k_hits_come_back(index: VectorIndex) -> None:
    index.apply(added=[chunk(i, along(0, tilt=i / 10)) for i in range(1, 6)], removed=())
    (ranking,) = index.search(along(0)[None], 2)
    assert ids(ranking) == [1, 2]


def test_an_empty_index_finds_nothing(index: VectorIndex) -> None:
    assert index.search(along(0)[None], 5) == [()]
    assert index.chunk_ids() == set()


def test_each_query_has_its_own_ranking(index: VectorIndex) -> None:
    index.apply(added=[chunk(1, along(0)), chunk(2, along(1))], removed=())
    rankings = index.search(np.stack([along(1), along(0), along(1)]), 1)
    assert [ids(ranking) for ranking in rankings] == [[2], [1], [2]]


def test_documents_restrict_the_search_itself(index: VectorIndex) -> None:
    """A filter on the results would find nothing here: all that is admitted is worse than the best k."""
    index.apply(added=[chunk(i, along(0), document_id=1) for i in range(1, 51)], removed=())
    index.apply(added=[chunk(i, along(0, tilt=0.9), document_id=2) for i in (60, 61, 62)], removed=())
    (ranking,) = index.search(along(0)[None], 2, documents={2, 404})
    assert ids(ranking) == [60, 61]


def test_no_documents_admit_nothing(index: VectorIndex) -> None:
    index.apply(added=[chunk(1, along(0))], removed=())
    assert index.search(along(0)[None], 5, documents=frozenset()) == [()]
    assert index.search(along(0)[None], 5, documents={404}) == [()]


def test_what_is_removed_is_not_found_again(index: VectorIndex) -> None:
    index.apply(added=[chunk(1, along(0)), chunk(2, along(0, tilt=0.5))], removed=())
    index.apply(added=(), removed=[1])
    assert ids(index.search(along(0)[None], 5)[0]) == [2]
    assert ids(index.search(along(0)[None], 5, documents={1})[0]) == [2]
    assert index.chunk_ids() == {2}


def test_removing_an_unknown_id_is_ignored(index: VectorIndex) -> None:
    index.apply(added=[chunk(1, along(0))], removed=[404])
    index.apply(added=(), removed=[404, 405])
    assert ids(index.search(along(0)[None], 5)[0]) == [1]


def test_a_removed_chunk_can_be_added_again_elsewhere(index: VectorIndex) -> None:
    index.apply(added=[chunk(1, along(0), document_id=1)], removed=())
    index.apply(added=[chunk(1, along(1), document_id=2)], removed=[1])
    (ranking,) = index.search(along(1)[None], 5, documents={2})
    assert [(hit.chunk_id, round(hit.score, 5)) for hit in ranking] == [(1, 1.0)]
    assert index.search(along(1)[None], 5, documents={1}) == [()]


def test_vectors_come_back_as_they_were_indexed(index: VectorIndex) -> None:
    chunks = random_chunks(np.random.default_rng(3), range(20))
    index.apply(added=chunks, removed=())
    np.testing.assert_array_equal(index.vectors([7, 3]), np.stack([chunks[7].embedding, chunks[3].embedding]))
    with pytest.raises((KeyError, RuntimeError)):
        index.vectors([404])


def test_63_bit_ids_survive(index: VectorIndex) -> None:
    largest = 2**63 - 1
    index.apply(added=[chunk(largest, along(0), document_id=largest - 1)], removed=())
    assert ids(index.search(along(0)[None], 1, documents={largest - 1})[0]) == [largest]


@pytest.mark.parametrize("make", [MAKERS["exact"], MAKERS["approximate"]], ids=["exact", "approximate"])
@pytest.mark.parametrize("seed", range(3))
def test_faiss_ranks_as_the_oracle_does_through_random_changes(
    seed: int, make: Callable[[], VectorIndex]
) -> None:
    random = np.random.default_rng(seed)
    faiss, oracle = make(), NumpyVectorIndex()
    for step in range(6):
        added = random_chunks(random, range(step * 200, step * 200 + int(random.integers(1, 200))))
        removed = [int(i) for i in random.integers(0, step * 200 + 1, size=60)]
        for index in (faiss, oracle):
            index.apply(added=added, removed=removed)
        queries = np.stack([each.embedding for each in random_chunks(random, range(5))])
        documents = frozenset(int(i) for i in random.integers(0, 120, size=20))
        for allowed in (None, documents):
            for found, expected in zip(
                faiss.search(queries, 30, documents=allowed),
                oracle.search(queries, 30, documents=allowed),
                strict=True,
            ):
                assert ids(found) == ids(expected)
                np.testing.assert_allclose(
                    [hit.score for hit in found], [hit.score for hit in expected], atol=1e-6
                )
        assert faiss.chunk_ids() == oracle.chunk_ids()


@pytest.mark.parametrize("make", [MAKERS["exact"], MAKERS["approximate"]], ids=["exact", "approximate"])
def test_searches_see_whole_changes_while_others_are_applied(make: Callable[[], VectorIndex]) -> None:
    """One thread swaps a document's chunks for others again and again; a search finds the old or the new ones."""
    index = make()
    random = np.random.default_rng(0)
    versions = [random_chunks(random, range(start, start + 10)) for start in range(0, 1000, 10)]
    index.apply(added=versions[0], removed=())
    query = random.normal(size=(1, DIMENSIONS)).astype(np.float32)
    swapped = threading.Event()

    def search() -> None:
        while not swapped.is_set():
            (ranking,) = index.search(query, 20)
            assert len(ranking) == 10
            assert len({hit.chunk_id // 10 for hit in ranking}) == 1

    with ThreadPoolExecutor(3) as threads:
        searches = [threads.submit(search) for _ in range(3)]
        for old, new in pairwise(versions):
            index.apply(added=new, removed=[each.chunk_id for each in old])
        swapped.set()
        for each in searches:
            each.result()
