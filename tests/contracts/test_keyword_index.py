"""What every KeywordIndex promises, on tantivy and on a brute-force oracle, and that the two agree."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from retrieval.keyword_index import MAX_QUERY_TERMS, TantivyKeywordIndex
from retrieval.rankings import IndexedChunk, KeywordIndex, Ranking
from tests.oracles import NaiveKeywordIndex

NO_VECTOR = np.zeros(0, np.float32)
WORDS = [f"word{chr(ord('a') + i // 26)}{chr(ord('a') + i % 26)}" for i in range(60)]


@pytest.fixture(params=[TantivyKeywordIndex, NaiveKeywordIndex], ids=["tantivy", "oracle"])
def index(request: pytest.FixtureRequest) -> KeywordIndex:
    make: Callable[[], KeywordIndex] = request.param
    return make()


def chunk(chunk_id: int, text: str, document_id: int = 1) -> IndexedChunk:
    return IndexedChunk(chunk_id, document_id, text=text, embedding=NO_VECTOR)


def ids(ranking: Ranking) -> list[int]:
    return [hit.chunk_id for hit in ranking]


def test_rarer_and_more_frequent_words_rank_higher(index: KeywordIndex) -> None:
    index.apply(
        added=[
            chunk(1, "vault door steel hinge"),
            chunk(2, "vault vault steel hinge"),
            chunk(3, "lamp oil wick glass"),
            chunk(4, "vault lamp rope glass"),
        ],
        removed=(),
    )
    assert ids(index.search(["vault"], 10)[0])[0] == 2
    # `rope` stands in one text, `vault` in three.
    assert ids(index.search(["rope vault"], 10)[0])[0] == 4


def test_scores_are_bm25(index: KeywordIndex) -> None:
    """By hand: idf = ln(1 + 1.5 / 1.5) = ln 2 for one text of two; the text has the average length, and
    tf = 1 * 2.2 / (1 + 1.2) = 1, tf = 2 * 2.2 / (2 + 1.2) = 1.375 for a word that stands twice.
    """
    index.apply(added=[chunk(1, "vault door"), chunk(2, "lamp lamp")], removed=())
    (vault,), (lamp,) = index.search(["vault", "lamp"], 10)
    assert vault.score == pytest.approx(np.log(2), rel=1e-5)
    assert lamp.score == pytest.approx(1.375 * np.log(2), rel=1e-5)


def test_a_shorter_text_ranks_before_a_longer_one(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault " + "lamp " * 30), chunk(2, "vault lamp")], removed=())
    assert ids(index.search(["vault"], 10)[0]) == [2, 1]


def test_words_match_in_any_inflection_case_and_accent(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "The Locks were FORGED in Orléans."), chunk(2, "lamp")], removed=())
    rankings = index.search(["locking", "forge", "orleans"], 10)
    assert [ids(ranking) for ranking in rankings] == [[1], [1], [1]]


def test_equal_scores_come_by_rising_id(index: KeywordIndex) -> None:
    index.apply(added=[chunk(chunk_id, "vault door") for chunk_id in (9, 4, 7)], removed=())
    assert ids(index.search(["vault"], 3)[0]) == [4, 7, 9]


def test_at_most_k_hits_come_back(index: KeywordIndex) -> None:
    index.apply(added=[chunk(i, "vault " * i) for i in range(1, 6)], removed=())
    assert len(index.search(["vault"], 2)[0]) == 2


def test_an_empty_index_finds_nothing(index: KeywordIndex) -> None:
    assert index.search(["vault"], 5) == [()]
    assert index.chunk_ids() == set()


@pytest.mark.parametrize("query", ["the and of", "", "?! …", " \n\t"])
def test_a_query_without_a_word_that_counts_finds_nothing(index: KeywordIndex, query: str) -> None:
    index.apply(added=[chunk(1, "the vault and the key of the hall")], removed=())
    assert index.search([query], 5) == [()]


def test_a_query_is_text_and_never_a_language(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault"), chunk(2, "lamp")], removed=())
    rankings = index.search(['vault AND NOT "lamp', "chunk_id:2 -vault", "va*"], 5)
    assert [sorted(ids(ranking)) for ranking in rankings] == [[1, 2], [1], []]


def test_a_word_counts_once_however_often_it_is_asked(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault"), chunk(2, "lamp")], removed=())
    once, often = index.search(["vault", "vault vaults vault"], 5)
    assert once == often


def test_each_query_has_its_own_ranking(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault"), chunk(2, "lamp")], removed=())
    rankings = index.search(["lamp", "vault", "nothing", "lamp"], 5)
    assert [ids(ranking) for ranking in rankings] == [[2], [1], [], [2]]


def test_documents_restrict_the_search_itself(index: KeywordIndex) -> None:
    """A filter on the results would find nothing here: all that is admitted is worse than the best k."""
    index.apply(added=[chunk(i, "vault vault vault", document_id=1) for i in range(1, 51)], removed=())
    index.apply(added=[chunk(i, "vault " + "lamp " * 20, document_id=2) for i in (60, 61, 62)], removed=())
    assert ids(index.search(["vault"], 2, documents={2, 404})[0]) == [60, 61]


def test_documents_do_not_change_scores(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault", 1), chunk(2, "vault lamp", 2), chunk(3, "lamp", 3)], removed=())
    (everywhere,) = index.search(["vault"], 5)
    (within,) = index.search(["vault"], 5, documents={2})
    assert [hit for hit in everywhere if hit.chunk_id == 2] == list(within)


def test_no_documents_admit_nothing(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault")], removed=())
    assert index.search(["vault"], 5, documents=frozenset()) == [()]
    assert index.search(["vault"], 5, documents={404}) == [()]


def test_what_is_removed_is_not_found_again(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault"), chunk(2, "vault lamp")], removed=())
    index.apply(added=(), removed=[1])
    assert ids(index.search(["vault"], 5)[0]) == [2]
    assert ids(index.search(["vault"], 5, documents={1})[0]) == [2]
    assert index.chunk_ids() == {2}


def test_removing_an_unknown_id_is_ignored(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault")], removed=[404])
    index.apply(added=(), removed=[404, 405])
    assert ids(index.search(["vault"], 5)[0]) == [1]


def test_a_removed_chunk_can_be_added_again_elsewhere(index: KeywordIndex) -> None:
    index.apply(added=[chunk(1, "vault", document_id=1)], removed=())
    index.apply(added=[chunk(1, "lamp", document_id=2)], removed=[1])
    assert index.search(["vault"], 5) == [()]
    assert ids(index.search(["lamp"], 5, documents={2})[0]) == [1]
    assert index.search(["lamp"], 5, documents={1}) == [()]


def test_63_bit_ids_survive(index: KeywordIndex) -> None:
    largest = 2**63 - 1
    index.apply(added=[chunk(largest, "vault", document_id=largest - 1)], removed=())
    assert ids(index.search(["vault"], 1, documents={largest - 1})[0]) == [largest]


def test_a_pasted_page_is_searched_by_its_beginning() -> None:
    index = TantivyKeywordIndex()
    index.apply(added=[chunk(1, "vault"), chunk(2, "lamp")], removed=())
    page = "vault " + " ".join(f"page{i}" for i in range(MAX_QUERY_TERMS)) + " lamp"
    assert ids(index.search([page], 5)[0]) == [1]


@pytest.mark.parametrize("seed", range(3))
def test_tantivy_scores_as_the_oracle_does(seed: int) -> None:
    """Texts of up to 40 words have their length stored exactly, so only float32 arithmetic differs."""
    for found, expected in _both_rankings(seed, longest=40):
        assert ids(found) == ids(expected)
        np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_tantivy_scores_long_texts_within_what_rounded_lengths_allow(seed: int) -> None:
    """A length beyond 40 is stored in one byte, rounded down by up to an eighth.

    The score's share that depends on it is at most b of the norm, so a score moves by less than an eighth too.
    """
    for found, expected in _both_rankings(seed, longest=500):
        exact = {hit.chunk_id: hit.score for hit in expected}
        assert {hit.chunk_id for hit in found} == set(exact)
        for hit in found:
            assert hit.score == pytest.approx(exact[hit.chunk_id], rel=1 / 8)


def _both_rankings(seed: int, *, longest: int) -> list[tuple[Ranking, Ranking]]:
    generator = random.Random(seed)
    chunks = [
        chunk(i, " ".join(generator.choices(WORDS, k=generator.randint(1, longest))), document_id=i // 5)
        for i in range(1, 151)
    ]
    tantivy, oracle = TantivyKeywordIndex(), NaiveKeywordIndex()
    for index in (tantivy, oracle):
        index.apply(added=chunks[:100], removed=())
        index.apply(added=chunks[100:], removed=())
    queries = [" ".join(generator.choices(WORDS, k=generator.randint(1, 4))) for _ in range(8)]
    documents = frozenset(generator.sample(range(31), 10))
    return [
        pair
        for allowed in (None, documents)
        for pair in zip(
            tantivy.search(queries, 200, documents=allowed),
            oracle.search(queries, 200, documents=allowed),
            strict=True,
        )
    ]


def test_searches_go_on_while_changes_are_applied() -> None:
    """One thread swaps a document's chunks for others again and again; a search finds the old or the new ones."""
    index = TantivyKeywordIndex()
    versions = [[chunk(i, "vault door") for i in range(start, start + 10)] for start in range(0, 200, 10)]
    index.apply(added=versions[0], removed=())
    swapped = threading.Event()

    def search() -> None:
        while not swapped.is_set():
            (ranking,) = index.search(["vault"], 20)
            assert len(ranking) == 10
            assert len({hit.chunk_id // 10 for hit in ranking}) == 1

    with ThreadPoolExecutor(3) as threads:
        searches = [threads.submit(search) for _ in range(3)]
        for old, new in pairwise(versions):
            index.apply(added=new, removed=[each.chunk_id for each in old])
        swapped.set()
        for each in searches:
            each.result()
    assert index.chunk_ids() == {each.chunk_id for each in versions[-1]}
