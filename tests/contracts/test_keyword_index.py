"""What every KeywordIndex promises, on tantivy and on a brute-force oracle, and that the two agree."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.analysers import read
from retrieval.keyword_index import (
    FEW_DOCUMENTS,
    MANY_DOCUMENTS,
    MAX_QUERY_TERMS,
    TantivyKeywordIndex,
    stems_of,
)
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


def test_words_of_a_first_line_count_twice(index: KeywordIndex) -> None:
    """By hand: both texts have 3 words and 1 more of their first line; `vault` stands twice in the one, once in the
    other, and ln(1 + .5 / 2.5) is its idf.
    """
    index.apply(added=[chunk(1, "vault\nlamp door"), chunk(2, "lamp\nvault door")], removed=())
    (first, second) = index.search(["vault"], 10)[0]
    assert (first.chunk_id, second.chunk_id) == (1, 2)
    assert first.score == pytest.approx(1.375 * np.log(1.2), rel=1e-5)
    assert second.score == pytest.approx(np.log(1.2), rel=1e-5)


def test_a_first_line_that_is_long_or_all_there_is_counts_once(index: KeywordIndex) -> None:
    index.apply(
        added=[chunk(1, "vault"), chunk(2, f"vault {'lamp ' * 40}\n{'lamp ' * 60}")],
        removed=(),
    )
    assert len(index.search(["vault"], 10)[0]) == 2
    assert index.search(["vault"], 10)[0][0].score > index.search(["vault"], 10)[0][1].score


def test_words_of_a_file_s_name_find_its_chunks(index: KeywordIndex) -> None:
    named = {1: "Icehouse_2018-annual-Report.pdf", 2: "Icehouse_2017-annual-Report.pdf", 3: "2018.txt"}
    index.apply(
        added=[
            replace(chunk(number, "lamp wick", number), filename=filename)
            for number, filename in named.items()
        ],
        removed=(),
    )
    # One word alone, such as a number, is no title.
    assert ids(index.search(["2018"], 10)[0]) == [1]
    assert ids(index.search(["reports of the icehouse"], 10)[0]) == [1, 2]


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


def test_the_vocabulary_tells_how_many_chunks_hold_a_word_in_any_inflection(index: KeywordIndex) -> None:
    index.apply(
        added=[chunk(1, "The doors of the vault"), chunk(2, "A door, a door, a lamp"), chunk(3, "Lamps")],
        removed=(),
    )
    told = index.vocabulary(["door", "lamps", "rope"])
    assert told.chunk_count == 3
    assert dict(told.frequency_of) == {"door": 2, "lamps": 2, "rope": 0}
    both = told + index.vocabulary(["door"])
    assert (both.chunk_count, both.frequency_of["door"], both.frequency_of["rope"]) == (6, 4, 0)


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


# Identifiers, code, languages


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("what does error E-4031 mean", "The controller reports E-4031 when the door is open."),
        ("E-4031", "The controller reports E-4031 when the door is open."),
        ("order part ax-12/7B", "Replace part AX-12/7b every year."),
        ("changes in version 2.3.1", "Fixed in v2.3.1, released in May."),
        ("host 10.0.3.17", "The gateway is 10.0.3.17 and answers pings."),
        ("o'brien", "Conor O’Brien signed the lease."),
        ("Jean-Luc", "Captain Jean-Luc is on the bridge."),
        ("a_b_c", "Set a_b_c to true."),
        ("os.path.join", "Call os.path.join with both parts."),
        ("C++", "The firmware is written in C++ only."),
        ("1,234,567", "Revenue was $1,234,567 last year."),
    ],
)
def test_an_identifier_is_found_before_what_has_only_its_parts(
    index: KeywordIndex, asked: str, wanted: str
) -> None:
    texts = [
        "The part is 12, the error is in version 3, and path is 7b; e 4031 E-4032 4031-E AX 12 7B.",
        "Version 1.2.3 changes host 17.10.3.0 and 10.0.3.1 and 3.17; order part AX-12/7c; C means 1,234 567.",
        "Brien O luc jean path.os join a.b.c b_a_c C c 2.3.2 and 2 3 1 also 10 0 3 17 E4031.",
        "The controller reports E-4031 when the door is open.",
        "Replace part AX-12/7b every year.",
        "Fixed in v2.3.1, released in May.",
        "The gateway is 10.0.3.17 and answers pings.",
        "Conor O’Brien signed the lease.",
        "Captain Jean-Luc is on the bridge.",
        "Set a_b_c to true.",
        "Call os.path.join with both parts.",
        "The firmware is written in C++ only.",
        "Revenue was $1,234,567 last year.",
    ]
    index.apply(added=[chunk(number, text) for number, text in enumerate(texts, 1)], removed=())
    best, *_ = index.search([asked], 3)[0]
    assert texts[best.chunk_id - 1] == wanted


@pytest.mark.parametrize("asked", ["1,577", "262", "8.5"])
def test_a_figure_in_a_table_is_found_before_what_has_only_its_parts(index: KeywordIndex, asked: str) -> None:
    table = "Purchases | (1,577) | $ 262 | 8.5 %\nDividends | 3,193 | 2,803 | —"
    texts = ["Of 577 keys 1 is lost.", "Page 8, line 5.", table, "2,620 and 26 and 1,577,000."]
    index.apply(added=[chunk(number, text) for number, text in enumerate(texts, 1)], removed=())
    assert ids(index.search([asked], 1)[0]) == [3]


def test_the_figures_of_a_table_do_not_make_it_a_long_text(index: KeywordIndex) -> None:
    label = "Purchases of keys"
    row = " | ".join([label, *(f"{number},{number}" for number in range(100, 120))])
    index.apply(added=[chunk(1, f"{label} of the icehouse"), chunk(2, row)], removed=())
    assert ids(index.search(["purchases"], 2)[0]) == [2, 1]


@pytest.mark.parametrize("asked", ["FY2018", "2018", "Q12018"])
def test_a_year_is_found_in_a_table_and_with_letters_before_it(index: KeywordIndex, asked: str) -> None:
    index.apply(added=[chunk(1, "Sales | 2018 | 2017"), chunk(2, "Sales | 2016 | 2015")], removed=())
    assert ids(index.search([asked], 2)[0]) == [1]


def test_code_is_found_whole_and_in_parts(index: KeywordIndex) -> None:
    texts = ["return parseHttpResponse(body)", "max_retry_count = 3", "import os.path", "nothing of the kind"]
    index.apply(added=[chunk(number, text) for number, text in enumerate(texts, 1)], removed=())
    asked = ["parseHttpResponse", "parse a response", "http", "max_retry_count", "retry", "os.path"]
    assert [ids(ranking) for ranking in index.search(asked, 1)] == [[1], [1], [1], [2], [2], [3]]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("金庫", [1]),
        ("鍵はどこですか", [2]),
        ("水", [3]),
        ("保险库", [4]),
        ("钥匙在哪里", [5]),
        ("금고는 언제", [6]),
        ("ตู้นิรภัย", [7]),
        ("ｖａｕｌｔ", [8]),
    ],
)
def test_scripts_without_spaces_are_found_by_what_stands_in_them(
    index: KeywordIndex, asked: str, found: list[int]
) -> None:
    texts = [
        "その金庫は毎朝九時に開きます。",
        "鍵は廊下に掛かっています。",
        "地下室には水がある。",
        "保险库每天早上九点开门。",
        "钥匙挂在走廊里。",
        "금고가 아침 아홉 시에 열립니다.",
        "ตู้นิรภัยเปิดเวลาเก้าโมงเช้า",
        "The vault opens at nine.",
    ]
    index.apply(added=[chunk(number, text) for number, text in enumerate(texts, 1)], removed=())
    assert ids(index.search([asked], 1)[0]) == found


FTS = [
    'vault AND (lamp OR "door")',
    "+vault -lamp",
    "text:vault^3",
    '"vault',
    "vault~2 *",
    "(((((",
    "wholes:IN [a b]",
    "/va.*/",
    "\\",
    "vault\0lamp",
    "' OR 1=1 --",
    "\ud800",
    "😀" * 50,
    "𝓋𝒶𝓊𝓁𝓉",
    "\u202e\u200b\u0301",
    "a" * 100_000,
    "a b " * 50_000,
    "ab-" * 30_000,
    "aB" * 30_000,
    "水" * 30_000,
]


@pytest.mark.parametrize("query", FTS, ids=range(len(FTS)))
def test_no_query_fails(query: str) -> None:
    index = TantivyKeywordIndex()
    assert index.search([query], 5) == [()]
    index.apply(added=[chunk(1, "The vault door."), chunk(2, "Der Tresor und die Tür.")], removed=())
    (ranking,) = index.search([query], 5)
    assert len(ranking) <= 2
    (within,) = index.search([query], 5, documents={1})
    assert len(within) <= 2


@given(st.text())
def test_any_text_is_a_query_and_finds_itself_unless_it_has_no_word(text: str) -> None:
    index = TantivyKeywordIndex()
    index.apply(added=[chunk(1, text), chunk(2, "vault")], removed=())
    (ranking,) = index.search([text], 5)
    if stems_of(read(text)):
        assert 1 in ids(ranking)


GERMAN = "Die Mietverträge und die Schlüssel liegen bei der Verwaltung, nicht im Tresor."
ENGLISH = "The leases and the keys are with the caretakers and not in the vault."
FRENCH = "Les contrats et les clés sont chez les gardiens et pas dans le coffre."


def test_a_collection_of_several_languages_is_searched_in_each() -> None:
    index = TantivyKeywordIndex()
    texts = [GERMAN, ENGLISH, FRENCH]
    index.apply(added=[chunk(number, text) for number, text in enumerate(texts, 1)], removed=())
    asked = {
        "Wo liegt der Mietvertrag?": 1,
        "Verwaltungen": 1,
        "lease": 2,
        "Which caretaker has the key?": 2,
        "contrat": 3,
        "Où est le gardien des coffres ?": 3,
    }
    for query, best in asked.items():
        assert ids(index.search([query], 1)[0]) == [best], query


def test_stop_words_are_those_of_the_querys_language() -> None:
    index = TantivyKeywordIndex()
    war = "Es war in den Straßen der Stadt, und es war nicht das, was man sich unter dem Namen denkt."
    index.apply(added=[chunk(1, war), chunk(2, ENGLISH), chunk(3, "The war of the keys.")], removed=())
    assert ids(index.search(["war"], 1)[0]) == [3]
    assert index.search(["was ist das, und wie war es?"], 5) == [()]


def test_a_stem_of_few_texts_does_not_count_as_a_rare_word() -> None:
    """`nationen` is a stem of its own only where a text was taken for another language than the others."""
    index = TantivyKeywordIndex()
    running = [chunk(i, f"The keys of the vault are running out in the office {i}.") for i in range(1, 40)]
    other = chunk(90, "Der Tresor und die Tür sind nicht im Flur bei der Verwaltung. Running.")
    rare = chunk(91, "The lamp was running.")
    index.apply(added=[*running, other, rare], removed=())
    (ranking,) = index.search(["running lamp"], 50)
    assert ids(ranking)[0] == 91
    scores = {hit.chunk_id: hit.score for hit in ranking}
    assert scores[90] == pytest.approx(scores[1], rel=0.3)


def test_an_index_in_files_is_the_one_that_was_written(tmp_path: Path) -> None:
    texts = [GERMAN, ENGLISH, FRENCH, "Error E-4031"]
    chunks = [chunk(number, text) for number, text in enumerate(texts, 1)]
    in_files, in_memory = TantivyKeywordIndex(tmp_path / "index"), TantivyKeywordIndex()
    for index in (in_files, in_memory):
        index.apply(added=chunks, removed=())
    loaded = TantivyKeywordIndex.load(tmp_path / "index", chunk_ids=[1, 2, 3, 4])
    queries = ["Wo liegt der Mietvertrag?", "lease", "contrat", "E-4031"]
    assert loaded.search(queries, 5) == in_memory.search(queries, 5)
    loaded.apply(added=[chunk(5, "E-4031 again")], removed=[4])
    assert ids(loaded.search(["E-4031"], 5)[0]) == [5]
    with pytest.raises(ValueError, match="another number"):
        TantivyKeywordIndex.load(tmp_path / "index", chunk_ids=[1, 2, 3])
    with pytest.raises(ValueError, match=r".*"):
        TantivyKeywordIndex.load(tmp_path, chunk_ids=[])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("others", [0, FEW_DOCUMENTS, MANY_DOCUMENTS])
def test_many_documents_restrict_a_search_as_few_do(share: float, others: int) -> None:
    """Few are looked up one by one, more at once, many are looked for among the best."""
    generator = random.Random(7)
    chunks = [
        chunk(i, " ".join(generator.choices(WORDS, k=generator.randint(3, 12))), document_id=i)
        for i in range(1, 3_001)
    ]
    index = TantivyKeywordIndex()
    index.apply(added=chunks, removed=())
    held = set(generator.sample(range(1, 3_001), int(3_000 * share)))
    elsewhere = set(range(10_000, 10_000 + others))
    queries = [" ".join(generator.choices(WORDS, k=3)) for _ in range(5)]
    whole = index.search(queries, 3_000)
    for k in (10, 400):
        for ranking, found in zip(whole, index.search(queries, k, documents=held | elsewhere), strict=True):
            expected = [hit for hit in ranking if hit.chunk_id in held][:k]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected])
            assert {hit.chunk_id for hit in found} <= held
