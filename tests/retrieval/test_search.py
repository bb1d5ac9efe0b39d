"""Search as a caller sees it: fresh after each commit, within its scope, never from an index alone."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import delete, select, update

from retrieval import catalog
from retrieval.catalog import CollectionMissing
from retrieval.database import Database
from retrieval.duplicates import similarity_hash
from retrieval.filters import AllOf, Comparator, Comparison
from retrieval.rankings import Fusion
from retrieval.scope import Scope
from retrieval.search import (
    EmbeddingModelChanged,
    EmbeddingModelUnavailable,
    FoundChunk,
    QueryCut,
    Searcher,
    SearchMode,
    SearchOptions,
)
from retrieval.tables import Chunk, ChunkLog, Collection, Document, DocumentStatus
from retrieval.views import IndexViews
from serving.protocols import Lane, ModelUnavailable, ModelUnknown, Reranker
from tests.fakes import FakeEmbedder, FakeReranker
from tests.retrieval.library import add_text_file, attach, complete, new_collection, shelve

NINE, KEY, WHALES = "The vault opens at nine.", "The key hangs in the hall.", "Whales feed on krill."
CLAUSE = (
    "The tenant shall keep the premises in good repair and shall return all keys of the vault to the landlord's "
    "office at the end of the term, together with a sum for the cleaning of the cellar."
)


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


def searcher_of(database: Database, *embedders: FakeEmbedder, reranker: Reranker | None = None) -> Searcher:
    """The first is the default."""
    by_alias = {embedder.name: embedder for embedder in embedders}

    def embedder_of(alias: str) -> FakeEmbedder:
        if alias not in by_alias:
            raise ModelUnknown(alias, list(by_alias))
        return by_alias[alias]

    return Searcher(database, IndexViews(), embedder_of, reranker, default_embedding=embedders[0].name)


@pytest.fixture
def searcher(database: Database, embedder: FakeEmbedder) -> Searcher:
    return searcher_of(database, embedder)


async def texts(
    searcher: Searcher, scope: Scope, query: str, options: SearchOptions | None = None
) -> list[str]:
    return [chunk.text for chunk in (await searcher.search(scope, query, options=options)).chunks]


async def test_a_hit_tells_where_it_stands(database: Database, scope: Scope, searcher: Searcher) -> None:
    collection = new_collection(database, scope)
    document = shelve(
        database,
        scope,
        collection,
        NINE,
        KEY,
        filename="letter.txt",
        attributes={"year": 1843},
        headings=["Keys"],
    )
    best, *_ = (await searcher.search(scope, "where hangs the key")).chunks
    assert (best.text, best.position, best.start_char, best.end_char) == (KEY, 1, 26, 52)
    assert (best.file_id, best.filename, best.collection_id) == (
        document.file_id,
        "letter.txt",
        collection.id,
    )
    assert (best.document_id, best.attributes, best.headings) == (document.id, {"year": 1843}, ("Keys",))
    assert [place.page for place in best.places] == [2]


@pytest.mark.parametrize("mode", SearchMode)
async def test_what_was_committed_is_found_and_what_was_deleted_is_not(
    database: Database, scope: Scope, searcher: Searcher, mode: SearchMode
) -> None:
    options = SearchOptions(mode=mode)
    collection = new_collection(database, scope)
    assert await texts(searcher, scope, "vault", options) == []
    for _ in range(2):
        document = shelve(database, scope, collection, NINE)
        assert await texts(searcher, scope, "vault", options) == [NINE]
        with database.write() as session:
            catalog.delete_document(session, scope, collection.id, document.file_id)
        assert await texts(searcher, scope, "vault", options) == []


async def test_a_section_that_was_heard_lets_others_speak(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    """Two chunks of one section answer; one of another section does so in more words than they."""
    collection = new_collection(database, scope)
    opening = [f"The vault opens at nine in {month}." for month in ("May", "June")]
    shelve(database, scope, collection, *opening, headings=["Hours"])
    longer = "The vault opens at nine to those in the hall."
    shelve(database, scope, collection, longer, headings=["Keys"])
    shelve(
        database, scope, collection, WHALES, "Krill feeds on algae, and the vault is dry.", headings=["Sea"]
    )
    query = "vault opens at nine"
    found = (await searcher.search(scope, query, options=SearchOptions(limit=2))).chunks
    assert [chunk.headings for chunk in found] == [("Hours",), ("Keys",)]
    plain = (
        await searcher.search(scope, query, options=SearchOptions(limit=2, mode=SearchMode.KEYWORD))
    ).chunks
    assert [chunk.headings for chunk in plain] == [("Hours",), ("Hours",)]


async def test_words_of_a_file_s_name_find_it(database: Database, scope: Scope, searcher: Searcher) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, WHALES, filename="notes.txt")
    shelve(database, scope, collection, KEY, filename="castle_2018_inventory.txt")
    options = SearchOptions(mode=SearchMode.KEYWORD)
    assert await texts(searcher, scope, "inventory of 2018", options) == [KEY]


async def test_what_is_not_committed_is_not_found(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, NINE)
    await texts(searcher, scope, "vault")
    with database.write() as session:
        file = add_text_file(session, scope, KEY)
        complete(session, attach(session, scope, collection.id, file.id), [KEY])
        session.flush()
        assert KEY not in await texts(searcher, scope, "key hall")
    assert KEY in await texts(searcher, scope, "key hall")


@pytest.mark.parametrize("lost", ["chunks", "status", "tenant"])
async def test_a_stale_index_leaks_nothing(
    database: Database, scope: Scope, other_scope: Scope, searcher: Searcher, lost: str
) -> None:
    """The index still holds a chunk that SQL no longer gives: its log was not written, as after a bug."""
    collection = new_collection(database, scope)
    shelve(database, scope, collection, NINE)
    secret = shelve(database, scope, collection, "A secret vault.")
    assert "A secret vault." in await texts(searcher, scope, "secret vault")
    with database.write() as session:
        if lost == "chunks":
            session.execute(delete(Chunk).where(Chunk.document_id == secret.id))
        elif lost == "status":
            session.execute(
                update(Document).where(Document.id == secret.id).values(status=DocumentStatus.IN_PROGRESS)
            )
        else:
            session.execute(
                update(Chunk).where(Chunk.document_id == secret.id).values(tenant_id=other_scope.tenant_id)
            )
    assert await texts(searcher, scope, "secret vault") == [NINE]


async def test_another_tenants_chunks_are_never_found(
    database: Database, scope: Scope, other_scope: Scope, searcher: Searcher
) -> None:
    theirs = new_collection(database, scope)
    shelve(database, scope, theirs, NINE)
    mine = new_collection(database, other_scope)
    shelve(database, other_scope, mine, WHALES)
    assert await texts(searcher, other_scope, "vault opens") == [WHALES]
    for absent in (theirs.id, "vs_absent"):
        with pytest.raises(CollectionMissing, match=absent):
            await searcher.search(other_scope, "vault", collection_ids=[mine.id, absent])


async def test_named_collections_are_searched_and_no_others(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    names = ("letters", "diaries", "maps")
    letters, diaries, maps = (new_collection(database, scope, name) for name in names)
    for collection, name in ((letters, "ada"), (diaries, "bob"), (maps, "cleo")):
        shelve(database, scope, collection, f"The vault of {name} opens at nine.")

    async def found(*collections: Collection) -> set[str]:
        ids = [each.id for each in collections]
        return {
            hit.collection_id for hit in (await searcher.search(scope, "vault", collection_ids=ids)).chunks
        }

    assert await found(letters) == {letters.id}
    assert await found(maps, letters) == {letters.id, maps.id}
    assert await found(letters, letters) == {letters.id}
    assert await found() == set()
    everywhere = await searcher.search(scope, "vault")
    assert {hit.collection_id for hit in everywhere.chunks} == {letters.id, diaries.id, maps.id}


async def test_the_best_of_several_collections_comes_first(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    for number in range(3):
        collection = new_collection(database, scope, f"store {number}")
        shelve(database, scope, collection, WHALES, KEY if number == 1 else "A lamp burns.")
    assert (await texts(searcher, scope, "key hangs hall"))[0] == KEY


@pytest.mark.parametrize("mode", SearchMode)
async def test_filters_restrict_the_search_itself(
    database: Database, scope: Scope, searcher: Searcher, mode: SearchMode
) -> None:
    """150 better chunks stand in the way: more than the rankings are deep."""
    collection = new_collection(database, scope)
    shelve(database, scope, collection, *["vault vault vault"] * 150, attributes={"author": "bob"})
    shelve(database, scope, collection, NINE, attributes={"author": "ada", "year": 1843})
    wanted = AllOf((Comparison(Comparator.EQ, "author", "ada"), Comparison(Comparator.GTE, "year", 1800)))
    options = SearchOptions(mode=mode, filters=wanted)
    assert await texts(searcher, scope, "vault", options) == [NINE]
    nobody = replace(options, filters=Comparison(Comparator.EQ, "author", "cleo"))
    assert await texts(searcher, scope, "vault", nobody) == []


async def test_new_attributes_count_at_once(database: Database, scope: Scope, searcher: Searcher) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, NINE, attributes={"author": "bob"})
    by_ada = SearchOptions(filters=Comparison(Comparator.EQ, "author", "ada"))
    assert await texts(searcher, scope, "vault", by_ada) == []
    with database.write() as session:
        attach(session, scope, collection.id, document.file_id, attributes={"author": "ada"})
    assert await texts(searcher, scope, "vault", by_ada) == [NINE]


async def test_a_collection_of_another_model_is_refused_unless_only_words_are_compared(
    database: Database, scope: Scope
) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, NINE)
    searcher = searcher_of(database, FakeEmbedder(fingerprint="another model"))
    for mode in (SearchMode.HYBRID, SearchMode.VECTOR):
        with pytest.raises(EmbeddingModelChanged, match=rf"{collection.id}.*'fake' in models.embedding"):
            await searcher.search(scope, "vault", options=SearchOptions(mode=mode))
    assert await texts(searcher, scope, "vault", SearchOptions(mode=SearchMode.KEYWORD)) == [NINE]


async def test_an_absent_model_fails_a_search_in_place_of_a_lesser_one(
    database: Database, scope: Scope, embedder: FakeEmbedder, searcher: Searcher
) -> None:
    shelve(database, scope, new_collection(database, scope), NINE)
    embedder.failure = ModelUnavailable()
    with pytest.raises(ModelUnavailable):
        await searcher.search(scope, "vault")
    reranker = FakeReranker()
    reranker.failure = ModelUnavailable()
    with pytest.raises(ModelUnavailable):
        await searcher_of(database, FakeEmbedder(), reranker=reranker).search(scope, "vault")


async def test_scores_below_the_threshold_are_left_out(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    shelve(database, scope, new_collection(database, scope), NINE, KEY, WHALES)
    everything = (await searcher.search(scope, "the vault opens at nine")).chunks
    assert everything[0].score == pytest.approx(1.0)
    assert len(everything) == 3
    threshold = everything[1].score
    for limit, kept in ((threshold, 2), (threshold + 1e-6, 1), (1.01, 0)):
        options = SearchOptions(score_threshold=limit)
        assert len(await texts(searcher, scope, "the vault opens at nine", options)) == kept


async def test_at_most_limit_hits_come_back_best_first(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    words = ["vault", "door", "key", "hall", "lamp"]
    shelve(database, scope, new_collection(database, scope), *(" ".join(words[:n]) for n in range(1, 6)))
    hits = (
        await searcher.search(scope, "vault", options=SearchOptions(limit=3, mode=SearchMode.KEYWORD))
    ).chunks
    assert [hit.text for hit in hits] == ["vault", "vault door", "vault door key"]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


async def test_reciprocal_rank_fusion_is_used_on_request(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    shelve(database, scope, new_collection(database, scope), NINE, KEY, WHALES)
    hits = (await searcher.search(scope, NINE, options=SearchOptions(fusion=Fusion.RRF))).chunks
    assert hits[0].text == NINE
    assert hits[0].score == pytest.approx(1.0)
    # Second by meaning, absent from the words: half of 1/62 over 1/61.
    assert 0.4 < hits[-1].score < 0.5


async def test_weights_move_a_hybrid_search_between_meaning_and_words(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    shelve(database, scope, new_collection(database, scope), NINE, KEY)

    async def scores(weight: float, mode: SearchMode = SearchMode.HYBRID) -> dict[str, float]:
        options = SearchOptions(mode=mode, dense_weight=weight)
        return {
            hit.text: hit.score
            for hit in (await searcher.search(scope, "vault nine", options=options)).chunks
        }

    assert await scores(0.5, SearchMode.KEYWORD) == {NINE: 1.0}
    assert await scores(0.0) == await scores(1.0) == {NINE: 1.0, KEY: 0.0}
    assert (await scores(0.0, SearchMode.VECTOR))[NINE] < 1.0


async def test_vector_scores_are_cosines_and_signals_of_evidence_are_told_to_who_asks(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    shelve(database, scope, new_collection(database, scope), NINE, WHALES)
    weighing = SearchOptions(mode=SearchMode.VECTOR, weighs=True)
    found = await searcher.search(scope, NINE, options=weighing)
    assert found.chunks[0].score == pytest.approx(1.0, abs=1e-3)
    assert found.signals is not None
    assert found.signals.nearness == pytest.approx(1.0, abs=1e-3)
    assert found.signals.words == 1.0
    nothing = await searcher.search(scope, NINE, collection_ids=[], options=weighing)
    assert nothing.signals is not None
    assert nothing.signals.nearness == nothing.signals.words == 0.0
    assert (await searcher.search(scope, NINE)).signals is None


async def test_the_reranker_reads_headings_and_shares_the_verdict(database: Database, scope: Scope) -> None:
    shelve(database, scope, new_collection(database, scope), KEY, WHALES, headings=["Cellar"])
    reranker = FakeReranker()
    searcher = searcher_of(database, FakeEmbedder(), reranker=reranker)
    found = await searcher.search(scope, "key hangs", lane=Lane.BULK)
    assert [hit.text for hit in found.chunks] == [KEY, WHALES]
    assert [hit.score for hit in found.chunks] == [1.0, 0.0]
    ((lane, query, read),) = reranker.calls
    assert (lane, query) == (Lane.BULK, "key hangs")
    assert read == [f"Cellar\n{KEY}", f"Cellar\n{WHALES}"]


async def test_a_search_may_go_without_the_reranker(database: Database, scope: Scope) -> None:
    shelve(database, scope, new_collection(database, scope), KEY)
    reranker = FakeReranker()
    searcher = searcher_of(database, FakeEmbedder(), reranker=reranker)
    await searcher.search(scope, "key", options=SearchOptions(rerank=False))
    await searcher.search(scope, "key", collection_ids=[])
    assert reranker.calls == []


async def test_the_query_is_embedded_on_the_callers_lane_and_not_at_all_for_words(
    database: Database, scope: Scope, embedder: FakeEmbedder, searcher: Searcher
) -> None:
    await searcher.search(scope, "vault")
    assert embedder.calls == []
    shelve(database, scope, new_collection(database, scope), NINE)
    await searcher.search(scope, "vault", options=SearchOptions(mode=SearchMode.KEYWORD))
    await searcher.search(scope, "vault")
    await searcher.search(scope, "hall", lane=Lane.BACKGROUND)
    assert embedder.calls == [(Lane.INTERACTIVE, ["vault"]), (Lane.BACKGROUND, ["hall"])]
    assert set(embedder.salts) == {scope.tenant_id}


async def test_two_searchers_that_share_nothing_but_sql_agree(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    collection = new_collection(database, scope)
    other = searcher_of(database, FakeEmbedder())

    async def both() -> tuple[tuple[FoundChunk, ...], tuple[FoundChunk, ...]]:
        return (await searcher.search(scope, "vault key")).chunks, (
            await other.search(scope, "vault key")
        ).chunks

    for text in (NINE, KEY, WHALES):
        shelve(database, scope, collection, text)
        left, right = await both()
        assert left == right
    with database.write() as session:
        catalog.delete_collection(session, scope, collection.id)
    assert await both() == ((), ())


async def test_a_deleted_collection_is_gone_from_search_together_with_its_log(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, NINE)
    await texts(searcher, scope, "vault")
    with database.write() as session:
        catalog.delete_collection(session, scope, collection.id)
        assert session.get(ChunkLog, (collection.id, 0, 1)) is None
    assert await texts(searcher, scope, "vault") == []
    with pytest.raises(CollectionMissing):
        await searcher.search(scope, "vault", collection_ids=[collection.id])


async def test_each_collection_is_searched_by_its_own_model(database: Database, scope: Scope) -> None:
    embedder, small = FakeEmbedder(), FakeEmbedder(name="small", fingerprint="small", dimensions=16)
    letters = [new_collection(database, scope, f"letters {number}") for number in range(2)]
    maps = new_collection(database, scope, "maps", embedding_model="small")
    for collection in letters:
        shelve(database, scope, collection, NINE, WHALES)
    shelve(database, scope, maps, KEY, WHALES, fingerprint="small", dimensions=16)
    both_embed = asyncio.Barrier(2)

    async def meet(_: Sequence[str]) -> None:
        await both_embed.wait()

    embedder.meanwhile = small.meanwhile = meet
    searcher = searcher_of(database, embedder, small)
    async with asyncio.timeout(10):
        found = (await searcher.search(scope, "the vault opens, the key hangs")).chunks
    assert [len(each.calls) for each in (embedder, small)] == [1, 1]
    assert {hit.text for hit in found[:3]} == {NINE, KEY}
    assert {hit.collection_id for hit in found} == {*(each.id for each in letters), maps.id}
    assert all(0 <= hit.score <= 1 for hit in found)


async def test_a_collection_that_names_no_model_has_the_default_one(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, NINE)
    with database.write() as session:
        session.execute(update(Collection).values(embedding_model=None))
    assert await texts(searcher, scope, "vault") == [NINE]


async def test_a_collection_whose_model_is_gone_is_refused_with_what_to_do(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    maps = new_collection(database, scope, "maps", embedding_model="small")
    assert await texts(searcher, scope, "vault") == []
    shelve(database, scope, maps, NINE, fingerprint="small", dimensions=16)
    with pytest.raises(EmbeddingModelUnavailable, match=rf"{maps.id}.*'small'.*models.embedding.*keyword"):
        await searcher.search(scope, "vault")
    assert await texts(searcher, scope, "vault", SearchOptions(mode=SearchMode.KEYWORD)) == [NINE]


async def test_a_model_that_does_not_answer_is_named_with_its_store(
    database: Database, scope: Scope, embedder: FakeEmbedder, searcher: Searcher
) -> None:
    letters = new_collection(database, scope)
    shelve(database, scope, letters, NINE)
    embedder.failure = ModelUnavailable("The models server is not reachable.")
    with pytest.raises(EmbeddingModelUnavailable, match=rf"{letters.id}.*'fake'.*not reachable"):
        await searcher.search(scope, "vault")
    assert await texts(searcher, scope, "vault", SearchOptions(mode=SearchMode.KEYWORD)) == [NINE]


async def test_a_query_longer_than_the_models_read_is_cut_and_that_is_told(
    database: Database, scope: Scope
) -> None:
    shelve(database, scope, new_collection(database, scope), NINE)
    reranker = FakeReranker(max_tokens=8)
    searcher = searcher_of(database, FakeEmbedder(max_tokens=8), reranker=reranker)
    found = await searcher.search(scope, "vault " * 100)
    assert [chunk.text for chunk in found.chunks] == [NINE]
    assert found.cuts == (QueryCut("fake", tokens=100, max_tokens=8),)
    assert reranker.salts == [scope.tenant_id]
    assert (await searcher.search(scope, "vault")).cuts == ()


async def test_a_hit_tells_what_each_stage_said_of_it(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, NINE, KEY, WHALES)
    searcher = searcher_of(database, FakeEmbedder(), reranker=FakeReranker())
    query = "the vault opens"
    found = (await searcher.search(scope, query)).chunks
    plain = (await searcher.search(scope, query, options=SearchOptions(rerank=False))).chunks
    for mode, score, rank in (
        (SearchMode.VECTOR, "dense_score", "dense_rank"),
        (SearchMode.KEYWORD, "keyword_score", "keyword_rank"),
    ):
        alone = (await searcher.search(scope, query, options=SearchOptions(mode=mode, rerank=False))).chunks
        ranks = {chunk.chunk_id: place for place, chunk in enumerate(alone, 1)}
        assert {chunk.chunk_id: getattr(chunk, rank) for chunk in found if getattr(chunk, rank)} == ranks
        own = {chunk.chunk_id: getattr(chunk, score) for chunk in alone}
        for chunk in found:
            assert getattr(chunk, score) == own.get(chunk.chunk_id)
    assert [(chunk.chunk_id, chunk.fused_score, chunk.fused_rank) for chunk in plain] == [
        (chunk.chunk_id, chunk.score, rank) for rank, chunk in enumerate(plain, 1)
    ]
    assert all(chunk.rerank_score is None for chunk in plain)
    assert {chunk.text: chunk.rerank_score for chunk in found} == {
        NINE: pytest.approx(1.0),
        KEY: pytest.approx(1 / 3),
        WHALES: 0.0,
    }


async def test_cosines_of_two_models_are_told_as_each_gives_them(database: Database, scope: Scope) -> None:
    shelve(database, scope, new_collection(database, scope), NINE, WHALES)
    maps = new_collection(database, scope, "maps", embedding_model="small")
    shelve(database, scope, maps, NINE, WHALES, fingerprint="small", dimensions=16)
    searcher = searcher_of(
        database, FakeEmbedder(), FakeEmbedder(name="small", fingerprint="small", dimensions=16)
    )
    found = (await searcher.search(scope, NINE)).chunks
    same = [chunk.dense_score for chunk in found if chunk.text == NINE]
    assert same == [pytest.approx(1.0, abs=1e-3)] * 2
    assert sorted(chunk.dense_rank or 0 for chunk in found) == [1, 2, 3, 4]


def hash_chunks(database: Database) -> None:
    """As ingestion does."""
    with database.write() as session:
        for chunk in session.scalars(select(Chunk)):
            chunk.similarity_hash = similarity_hash(chunk.text)


@pytest.mark.parametrize("mode", SearchMode)
@pytest.mark.parametrize("reranks", [False, True])
async def test_a_text_is_found_once_and_other_texts_take_the_room(
    database: Database, scope: Scope, embedder: FakeEmbedder, mode: SearchMode, reranks: bool
) -> None:
    collection = new_collection(database, scope)
    for year in range(1843, 1923):
        shelve(database, scope, collection, f"Signed on 12 March {year}. {CLAUSE}")
    others = [f"The vault of house {number} has keys." for number in range(5)]
    shelve(database, scope, collection, *others)
    hash_chunks(database)
    searcher = searcher_of(database, embedder, reranker=FakeReranker() if reranks else None)
    found = await texts(searcher, scope, "keys of the vault", SearchOptions(limit=6, mode=mode))
    assert sum(CLAUSE in text for text in found) == 1
    assert {text for text in found if CLAUSE not in text} == set(others)


@pytest.mark.parametrize("mode", SearchMode)
async def test_copies_in_other_collections_take_no_room(
    database: Database, scope: Scope, searcher: Searcher, mode: SearchMode
) -> None:
    """The document says one thing twice on a page, in other words each time, and others elsewhere."""
    climate = "The icehouse keeps the vault at minus 21 degrees."
    measuring = "Eleven loggers record the degrees in the vault of the icehouse."
    others = [f"The icehouse has a vault with {number} doors." for number in range(2, 9)]
    collections = [new_collection(database, scope, name) for name in ("manuals", "drafts", "archive")]
    for collection in collections:
        shelve(database, scope, collection, climate, measuring, headings=["Climate"])
        shelve(database, scope, collection, *others, headings=["Doors"])
    hash_chunks(database)
    query = "at what degrees does the icehouse keep the vault"
    for limit in (2, 4, 6):
        options = SearchOptions(limit=limit, mode=mode)
        alone = await searcher.search(scope, query, collection_ids=[collections[0].id], options=options)
        together = await searcher.search(scope, query, options=options)
        assert [chunk.text for chunk in together.chunks] == [chunk.text for chunk in alone.chunks]
        assert len(alone.chunks) == limit


async def test_the_copy_that_is_left_takes_the_place_of_one_that_may_not_be_found(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    collection = new_collection(database, scope)
    first = shelve(database, scope, collection, CLAUSE, attributes={"year": 1843})
    second = shelve(database, scope, collection, f"{CLAUSE}\n\n7", attributes={"year": 1851})
    hash_chunks(database)
    later = SearchOptions(filters=Comparison(Comparator.GTE, "year", 1850))
    assert await texts(searcher, scope, "vault") == [CLAUSE]
    assert await texts(searcher, scope, "vault", later) == [f"{CLAUSE}\n\n7"]
    with database.write() as session:
        catalog.delete_document(session, scope, collection.id, first.file_id)
    found = (await searcher.search(scope, "vault")).chunks
    assert [chunk.document_id for chunk in found] == [second.id]


async def test_equal_chunks_from_before_there_were_hashes_are_all_found(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    collection = new_collection(database, scope)
    for filename in ("a.txt", "b.txt"):
        shelve(database, scope, collection, CLAUSE, filename=filename)
    assert await texts(searcher, scope, "vault") == [CLAUSE, CLAUSE]
