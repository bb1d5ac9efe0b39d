"""Stages of a search that overlap: they find exactly what the stages find one after the other, and nothing stale."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import select

from retrieval import catalog
from retrieval.database import Database
from retrieval.filters import Comparator, Comparison
from retrieval.places import under_headings
from retrieval.rankings import Fusion, Hit, best_first, fuse, varied
from retrieval.reranking import RERANK_DEPTH, Readable, Reading
from retrieval.scope import Scope
from retrieval.search import DEPTH, EARLY, VARIETY, Searcher, SearchMode, SearchOptions
from retrieval.stages import Stages
from retrieval.tables import Chunk, Collection
from retrieval.views import IndexViews, build_view
from serving.protocols import Lane, Overloaded
from tests.fakes import FakeEmbedder, FakeReranker
from tests.retrieval.library import attach, new_collection, shelve

SUBJECTS = ("vault", "key", "hall", "lamp", "whale", "krill", "ledger", "seal", "archive", "stair", "bell")
OVERLAPS = 10.0
"""A bound for what happens at once: without the overlap these tests would wait for ever."""


class Models:
    """The query's embedding ends only after the reranker was asked, so that an early start is certain."""

    def __init__(self, database: Database) -> None:
        self.embedder, self.reranker = FakeEmbedder(), FakeReranker()
        self.before_embedded: Callable[[], Awaitable[None]] | None = None
        self._asked = asyncio.Event()
        self.embedder.meanwhile = self._embed
        self.reranker.meanwhile = self._score
        self.searcher = Searcher(
            database, IndexViews(), lambda _: self.embedder, self.reranker, default_embedding="fake"
        )

    @property
    def texts_scored(self) -> list[list[str]]:
        return [texts for _, _, texts in self.reranker.calls]

    async def _embed(self, _: Sequence[str]) -> None:
        self._asked.clear()
        async with asyncio.timeout(OVERLAPS):
            await self._asked.wait()
        if self.before_embedded is not None:
            await self.before_embedded()

    async def _score(self, _: Sequence[str]) -> None:
        self._asked.set()


@pytest.fixture
def models(database: Database) -> Models:
    return Models(database)


def paragraph(chance: random.Random) -> str:
    return " ".join(chance.choices(SUBJECTS, k=chance.randint(2, 14)))


async def one_after_the_other(
    database: Database, collection: Collection, query: str, options: SearchOptions
) -> list[tuple[int, float]]:
    """The whole search by hand, without an overlap: ids and scores."""
    vectors = await FakeEmbedder().embed([query], lane=Lane.INTERACTIVE)
    with database.read() as session:
        view = build_view(session, session.get_one(Collection, collection.id))
        assert view is not None
        rows = {chunk.id: chunk for chunk in session.scalars(select(Chunk))}
    dense = best_first(view.vectors.search(vectors, DEPTH)[0])[:DEPTH]
    words = best_first(view.keywords.search([query], DEPTH)[0])[:DEPTH]
    fused = fuse(options.fusion, [dense, words], [options.dense_weight, 1 - options.dense_weight])
    first = [
        Readable(
            hit.chunk_id,
            under_headings(tuple(rows[hit.chunk_id].headings), rows[hit.chunk_id].text),
            rows[hit.chunk_id].token_count,
            hit.score,
        )
        for hit in fused[: max(VARIETY * options.limit, RERANK_DEPTH)]
    ]
    reading = Reading(FakeReranker(), query, lane=Lane.INTERACTIVE, cache_salt="", stages=Stages())
    scores = (await reading.judge(first, limit=options.limit)).scores
    ranking = varied(
        best_first([Hit(chunk_id, score) for chunk_id, score in scores.items()]),
        {each.id: [(each.document_id, *each.headings)] if each.headings else [] for each in rows.values()},
    )
    return [(hit.chunk_id, hit.score) for hit in ranking[: options.limit]]


@pytest.mark.parametrize("fusion", Fusion)
@pytest.mark.parametrize("dense_weight", [0.2, 0.5, 0.75])
async def test_an_overlapped_search_finds_what_a_sequential_one_finds(
    database: Database, scope: Scope, models: Models, fusion: Fusion, dense_weight: float
) -> None:
    chance = random.Random(7)
    collection = new_collection(database, scope)
    for _ in range(6):
        shelve(database, scope, collection, *(paragraph(chance) for _ in range(20)), headings=["Cellar"])
    for limit in (3, 10, 40):
        options = SearchOptions(limit=limit, fusion=fusion, dense_weight=dense_weight)
        query = paragraph(chance)
        found = (await models.searcher.search(scope, query, options=options)).chunks
        expected = await one_after_the_other(database, collection, query, options)
        assert [chunk.chunk_id for chunk in found] == [chunk_id for chunk_id, _ in expected]
        assert [chunk.score for chunk in found] == pytest.approx([score for _, score in expected])
    # Each began early, and read on.
    assert len(models.reranker.calls) >= 6


async def test_no_text_is_scored_twice_and_few_in_vain(
    database: Database, scope: Scope, models: Models
) -> None:
    chance = random.Random(8)
    shelve(database, scope, new_collection(database, scope), *(paragraph(chance) for _ in range(80)))
    await models.searcher.search(scope, "vault key")
    early, late = models.texts_scored
    assert 0 < len(early) <= EARLY
    assert len(early) + len(late) <= RERANK_DEPTH + EARLY
    assert len({*early, *late}) == len(early) + len(late)


async def test_a_query_that_is_embedded_at_once_is_reranked_in_one_call(
    database: Database, scope: Scope, models: Models
) -> None:
    shelve(database, scope, new_collection(database, scope), "vault key", "hall")
    models.embedder.meanwhile = lambda _: asyncio.sleep(0)
    await models.searcher.search(scope, "vault")
    assert len(models.reranker.calls) == 1


async def test_where_words_weigh_little_nothing_is_reranked_early(
    database: Database, scope: Scope, models: Models
) -> None:
    shelve(database, scope, new_collection(database, scope), "vault key", "hall")
    models.embedder.meanwhile = lambda _: asyncio.sleep(0.01)
    await models.searcher.search(scope, "vault", options=SearchOptions(dense_weight=0.9))
    assert len(models.reranker.calls) == 1


@pytest.mark.parametrize("mode", [SearchMode.KEYWORD, SearchMode.VECTOR])
async def test_without_two_rankings_nothing_is_reranked_early(
    database: Database, scope: Scope, models: Models, mode: SearchMode
) -> None:
    shelve(database, scope, new_collection(database, scope), "vault key", "hall")
    models.embedder.meanwhile = lambda _: asyncio.sleep(0.01)
    found = await models.searcher.search(scope, "vault", options=SearchOptions(mode=mode))
    assert found.chunks[0].text == "vault key"
    assert len(models.reranker.calls) == 1


async def test_an_early_start_that_fails_fails_nothing(
    database: Database, scope: Scope, models: Models
) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, "vault key", "key hall", "whale krill")
    score = models.reranker.meanwhile

    async def fail_once(texts: Sequence[str]) -> None:
        await score(texts)
        if len(models.reranker.calls) == 1:
            raise Overloaded(1.0)

    models.reranker.meanwhile = fail_once
    found = (await models.searcher.search(scope, "vault key")).chunks
    expected = await one_after_the_other(database, collection, "vault key", SearchOptions())
    assert {chunk.chunk_id: chunk.score for chunk in found} == pytest.approx(dict(expected))


async def test_an_early_start_that_nobody_needs_is_not_waited_for(
    database: Database, scope: Scope, models: Models
) -> None:
    collection = new_collection(database, scope)
    doomed = shelve(database, scope, collection, "vault vault")
    shelve(database, scope, collection, "whale krill")
    score, cancelled = models.reranker.meanwhile, asyncio.Event()

    async def hang_once(texts: Sequence[str]) -> None:
        await score(texts)
        if len(models.reranker.calls) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    async def delete() -> None:
        with database.write() as session:
            catalog.delete_document(session, scope, collection.id, doomed.file_id)

    models.reranker.meanwhile, models.before_embedded = hang_once, delete
    async with asyncio.timeout(OVERLAPS):
        found = await models.searcher.search(scope, "vault")
    assert [chunk.text for chunk in found.chunks] == ["whale krill"]
    assert cancelled.is_set()


async def test_a_search_whose_embedding_fails_leaves_no_scoring_behind(
    database: Database, scope: Scope, models: Models
) -> None:
    shelve(database, scope, new_collection(database, scope), "vault vault", "whale krill")
    score, cancelled = models.reranker.meanwhile, asyncio.Event()

    async def hang(texts: Sequence[str]) -> None:
        await score(texts)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fail() -> None:
        raise Overloaded(3.0)

    models.reranker.meanwhile, models.before_embedded = hang, fail
    with pytest.raises(Overloaded):
        await models.searcher.search(scope, "vault")
    assert cancelled.is_set()


async def test_what_is_deleted_between_the_two_rankings_is_not_found(
    database: Database, scope: Scope, models: Models
) -> None:
    collection = new_collection(database, scope)
    doomed = shelve(database, scope, collection, "the secret vault")
    shelve(database, scope, collection, "the open vault")

    async def delete() -> None:
        with database.write() as session:
            catalog.delete_document(session, scope, collection.id, doomed.file_id)

    models.before_embedded = delete
    found = await models.searcher.search(scope, "secret vault")
    assert [chunk.text for chunk in found.chunks] == ["the open vault"]


async def test_a_collection_that_is_deleted_between_the_two_rankings_is_not_found(
    database: Database, scope: Scope, models: Models
) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, "the secret vault")

    async def delete() -> None:
        with database.write() as session:
            catalog.delete_collection(session, scope, collection.id)

    models.before_embedded = delete
    assert (await models.searcher.search(scope, "secret vault")).chunks == ()


async def test_what_a_filter_no_longer_admits_is_not_found(
    database: Database, scope: Scope, models: Models
) -> None:
    collection = new_collection(database, scope)
    changed = shelve(database, scope, collection, "the vault of bob", attributes={"author": "bob"})
    shelve(database, scope, collection, "another vault of bob", attributes={"author": "bob"})

    async def change() -> None:
        with database.write() as session:
            attach(session, scope, collection.id, changed.file_id, attributes={"author": "ada"})

    models.before_embedded = change
    by_bob = SearchOptions(filters=Comparison(Comparator.EQ, "author", "bob"))
    found = await models.searcher.search(scope, "vault", options=by_bob)
    assert [chunk.text for chunk in found.chunks] == ["another vault of bob"]


async def test_what_comes_into_an_empty_collection_meanwhile_needs_no_model(
    database: Database, scope: Scope, models: Models
) -> None:
    """Its model was not asked, since it held nothing when the search began."""
    shelve(database, scope, new_collection(database, scope), "the open vault")
    empty = new_collection(database, scope, "maps", embedding_model="another")

    async def fill() -> None:
        shelve(database, scope, empty, "the secret vault", fingerprint="another", dimensions=16)

    models.before_embedded = fill
    found = await models.searcher.search(scope, "vault")
    assert [chunk.text for chunk in found.chunks] == ["the open vault"]


async def test_each_stage_is_timed(database: Database, scope: Scope, models: Models) -> None:
    shelve(database, scope, new_collection(database, scope), "the vault", "the hall")
    stages = Stages()
    await models.searcher.search(scope, "vault", stages=stages)
    assert {name for name, _ in stages} == {"embed", "keywords", "vectors", "load", "rerank"}
    assert all(seconds > 0 for _, seconds in stages)
    stages = Stages()
    by_words = replace(SearchOptions(), mode=SearchMode.KEYWORD, rerank=False)
    await models.searcher.search(scope, "vault", options=by_words, stages=stages)
    assert {name for name, _ in stages} == {"keywords", "load"}
