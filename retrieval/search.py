"""Search, read aloud: rank by words while the query is embedded, rank by meaning, fuse, join to SQL, rerank."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select, true
from sqlalchemy.orm import Session

from retrieval.access import readable_collections, readable_documents
from retrieval.catalog import CollectionMissing
from retrieval.database import Database
from retrieval.duplicates import without_duplicates
from retrieval.evidence import UNRELATED, Signals, content_words, nearness_of, signals_of
from retrieval.expiry import CollectionExpired, is_expired
from retrieval.filters import Filter, admitted, comparisons
from retrieval.places import Place, places_from_rows, under_headings
from retrieval.rankings import (
    Fusion,
    Hit,
    Ranking,
    Vocabulary,
    best_first,
    fuse,
    fuse_weighted,
    scaled,
    varied,
)
from retrieval.reranking import RERANK_DEPTH, Readable, Reading
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.tables import Chunk, Collection, Document, DocumentStatus, File
from retrieval.together import in_thread, together
from retrieval.views import CollectionView, IndexViews
from serving.protocols import Embedder, Lane, ModelUnavailable, ModelUnknown, Reranker, TextTooLong

EXTRA = 8
"""Chunks that are read from SQL beside those that are wanted, in case some are duplicates or were deleted."""
EMBEDS_WITHIN_S = 20.0
"""A query that the models server has not embedded by then is not searched: the server hangs."""
DEPTH = 400
"""How many chunks both rankings go deep before they are fused. Scores are scaled by the least of them, and a long
document has several, so a shallow ranking scales away what only one of the two has found.
"""
VARIETY = 2
"""For each chunk that a hybrid search is asked for, so many are candidates: those of other pages and sections may come
before.
"""
EARLY = 10
"""How many of the best by words the reranker may read while it is not known yet whether they are candidates: so few
that even if none is, it reads a third more and not twice as much.
"""
EARLY_SHARE = 0.2
"""What words alone must give such a chunk of its fused score. Measured on 1,000 texts of SciFact with MiniLM: of six
begun early, half a text is no candidate in the end; without this bound two of ten are none, and more where meaning
weighs more.
"""


class SearchMode(StrEnum):
    HYBRID = "hybrid"
    VECTOR = "vector"
    KEYWORD = "keyword"


class EmbeddingModelChanged(Exception):
    """A collection holds vectors of another model than the one that its alias names now."""

    def __init__(self, collection_id: str, alias: str) -> None:
        super().__init__(
            f"Vector store '{collection_id}' was made with another embedding model than '{alias}' is now. "
            f"Let '{alias}' in models.embedding be that model again, or rebuild the store with "
            "`strongroom collections rebuild`."
        )


class GenerationSwitched(Exception):
    """Another generation of a collection answers than the one that the search began with."""


class EmbeddingModelUnavailable(ModelUnavailable):
    """A collection's embedding model cannot be asked: it is not among those that are served, or does not answer."""

    def __init__(self, collection_id: str, alias: str, why: str) -> None:
        super().__init__(
            f"Vector store '{collection_id}' needs the embedding model '{alias}', which is not available. {why} "
            "A search by words alone (search_mode 'keyword') needs no model."
        )


@dataclass(frozen=True)
class SearchOptions:
    limit: int = 10
    mode: SearchMode = SearchMode.HYBRID
    fusion: Fusion = Fusion.WEIGHTED
    dense_weight: float = 0.5
    """Of the vector ranking in a hybrid search; the keyword ranking has the rest."""
    score_threshold: float = 0.0
    filters: Filter | None = None
    rerank: bool = True
    """Use the reranker when one is configured."""
    explains: bool = False
    """Tell which comparisons of the filter each document that was found meets."""
    weighs: bool = False
    """Tell the signals of whether what was found bears on the query."""


@dataclass(frozen=True)
class QueryCut:
    """An embedding model that reads less than the query's `tokens`: only its first `max_tokens` were searched by."""

    alias: str
    tokens: int
    max_tokens: int


@dataclass(frozen=True)
class FoundChunk:
    """A chunk that was found, with what a reader needs to see where it stands."""

    chunk_id: int
    document_id: int
    collection_id: str
    file_id: str
    filename: str
    attributes: dict[str, Any]
    generation: int
    position: int
    text: str
    start_char: int
    end_char: int
    headings: tuple[str, ...]
    places: tuple[Place, ...]
    token_count: int
    score: float
    similarity_hash: int | None = None
    dense_score: float | None = None
    """The cosine with the query. None where the vector ranking, DEPTH deep, lacks it."""
    dense_rank: int | None = None
    keyword_score: float | None = None
    """BM25. None where the keyword ranking lacks it."""
    keyword_rank: int | None = None
    fused_score: float = 0.0
    """0..1, before the reranker had its say. `score` is what the ranking goes by in the end."""
    fused_rank: int = 0
    """Among the candidates, from 1, as all ranks."""
    rerank_score: float | None = None
    """0..1. None where no reranker read it."""
    admitted_by: tuple[str, ...] = ()
    """The keys of the comparisons in the filter that its document meets, if the search explains itself."""


@dataclass(frozen=True)
class Candidates:
    """The ranking, best first, and what tells whether it bears on the query, if the search weighs that.

    `cuts` tells of each embedding model that read only the beginning of the query.
    """

    chunks: tuple[FoundChunk, ...]
    signals: Signals | None = None
    cuts: tuple[QueryCut, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """One search. `aliases` and `generations`: for each collection that held chunks when it began, that of its
    embedding model, and the one that answered.
    """

    scope: Scope
    query: str
    options: SearchOptions
    lane: Lane
    stages: Stages
    aliases: Mapping[str, str]
    generations: Mapping[str, int]


@dataclass(frozen=True)
class _ByWords:
    """What the keyword indexes found. `documents`: those that may be found, or None if all may be."""

    ranking: Ranking
    documents: Set[int] | None
    likely: tuple[FoundChunk, ...]
    """The first few, which will hardly be missing among the candidates."""
    vocabulary: Vocabulary
    """Of the query's words, if the search weighs evidence."""
    views: Mapping[str, CollectionView]
    """By collection; those without a text have none."""


@dataclass(frozen=True)
class _EmbeddedQuery:
    """vectors: float32 (1, dimensions)."""

    fingerprint: str
    vectors: NDArray[np.float32]
    cut: QueryCut | None
    unrelated: float
    """Mean cosine with texts that have nothing to do with it, if the search weighs evidence."""


class Searcher:
    """Searches what a scope may read. `reranker` is None when none is configured.

    `embedder_of` gives the embedding model of an alias; `default_embedding` is the alias of collections that
    name none.
    """

    def __init__(
        self,
        database: Database,
        views: IndexViews,
        embedder_of: Callable[[str], Embedder],
        reranker: Reranker | None,
        *,
        default_embedding: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._views = views
        self._embedder_of = embedder_of
        self._reranker = reranker
        self._default_embedding = default_embedding
        self._unrelated: dict[str, NDArray[np.float32]] = {}
        """UNRELATED texts as each model embeds them, by its fingerprint."""
        self._clock = clock

    async def search(
        self,
        scope: Scope,
        query: str,
        *,
        collection_ids: Sequence[str] | None = None,
        options: SearchOptions | None = None,
        lane: Lane = Lane.INTERACTIVE,
        stages: Stages | None = None,
    ) -> Candidates:
        """Searches the named collections, or all that the scope may read.

        Each of the three reads of SQL begins after the call, so that all of them see what was committed before
        it; the last one decides what is still there to be found. Its times go into `stages`: embed, keywords,
        vectors, load, rerank.

        Raises CollectionMissing, CollectionExpired, EmbeddingModelChanged, EmbeddingModelUnavailable, and what the
        models raise: a failed model never turns a search into a lesser one in silence.
        """
        options = options or SearchOptions()
        while True:
            asked = await in_thread(
                self._ask, scope, query, collection_ids, options, lane, stages or Stages()
            )
            try:
                return await self._search(asked)
            except GenerationSwitched:
                # Seldom, and begun anew it is quick: what the query's models have computed is in their caches.
                continue

    async def _search(self, asked: _Asked) -> Candidates:
        options = asked.options
        reading = self._reading(asked)
        async with together() as tasks:
            embedding = tasks.create_task(self._embed(asked))
            by_words = await in_thread(self._rank_by_words, asked, reranks=reading is not None)
            if reading and by_words.likely and not embedding.done():
                reading.begin(tasks, {chunk.chunk_id: _indexed(chunk) for chunk in by_words.likely})
            depth = VARIETY * options.limit if options.mode is SearchMode.HYBRID else options.limit
            depth = max(depth, RERANK_DEPTH) if reading else depth
            candidates = await in_thread(self._rank, asked, by_words, await embedding, depth)
            if reading:
                candidates = await _reranked(reading, candidates, limit=options.limit)
        chunks = candidates.chunks
        if options.mode is SearchMode.HYBRID:
            chunks = _varied(chunks)
        kept = [chunk for chunk in chunks if chunk.score >= options.score_threshold]
        return replace(candidates, chunks=tuple(kept[: options.limit]))

    def _reading(self, asked: _Asked) -> Reading | None:
        if self._reranker is None or not asked.options.rerank:
            return None
        return Reading(
            self._reranker,
            asked.query,
            lane=asked.lane,
            cache_salt=asked.scope.cache_salt,
            stages=asked.stages,
        )

    def _ask(
        self,
        scope: Scope,
        query: str,
        collection_ids: Sequence[str] | None,
        options: SearchOptions,
        lane: Lane,
        stages: Stages,
    ) -> _Asked:
        """Names the collections that hold chunks: an empty one needs no model, not even one that is gone."""
        with self._database.read() as session:
            collections = [
                collection
                for collection in _readable(session, scope, collection_ids, now=self._clock())
                if collection.head > 0
            ]
        return _Asked(
            scope,
            query,
            options,
            lane,
            stages,
            aliases={each.id: each.embedding_model or self._default_embedding for each in collections},
            generations={each.id: each.generation for each in collections},
        )

    async def _embed(self, asked: _Asked) -> dict[str, _EmbeddedQuery]:
        """The query as each alias's model understands it. All at once."""
        if asked.options.mode is SearchMode.KEYWORD:
            return {}
        with asked.stages.measure("embed"):
            async with together() as tasks:
                embedding = {
                    alias: tasks.create_task(self._embed_by(asked, alias))
                    for alias in dict.fromkeys(asked.aliases.values())
                }
        return {alias: task.result() for alias, task in embedding.items()}

    async def _embed_by(self, asked: _Asked, alias: str) -> _EmbeddedQuery:
        """A query that is too long for the model is cut, and that is told."""
        cut: QueryCut | None = None
        try:
            embedder = self._embedder_of(alias)
            embed = partial(
                embedder.embed,
                [asked.query],
                lane=asked.lane,
                deadline_s=EMBEDS_WITHIN_S,
                cache_salt=asked.scope.cache_salt,
            )
            card = await embedder.describe()
            try:
                vectors = await embed()
            except TextTooLong as error:
                cut = QueryCut(alias, tokens=error.tokens, max_tokens=error.max_tokens)
                vectors = await embed(truncate=True)
            unrelated = await self._unrelated_to(vectors, embedder, card.fingerprint, asked)
        except (ModelUnknown, ModelUnavailable) as error:
            needing = next(each for each, wanted in asked.aliases.items() if wanted == alias)
            raise EmbeddingModelUnavailable(needing, alias, _why(error)) from error
        return _EmbeddedQuery(card.fingerprint, vectors, cut, unrelated)

    async def _unrelated_to(
        self, vectors: NDArray[np.float32], embedder: Embedder, fingerprint: str, asked: _Asked
    ) -> float:
        if not asked.options.weighs:
            return 0.0
        if fingerprint not in self._unrelated:
            # Kept for all tenants, since these texts are nobody's.
            self._unrelated[fingerprint] = await embedder.embed(UNRELATED, lane=asked.lane, truncate=True)
        return float((self._unrelated[fingerprint] @ vectors[0]).mean())

    def _rank_by_words(self, asked: _Asked, *, reranks: bool) -> _ByWords:
        """Also lets the indexes follow the log and the filter choose its documents, whatever the mode."""
        with self._database.read() as session:
            with asked.stages.measure("keywords"):
                collections = _present(session, asked)
                documents = _matching(session, asked, collections)
                views: dict[str, CollectionView] = {}
                hits: list[Hit] = []
                said = content_words(asked.query) if asked.options.weighs else ()
                vocabulary = Vocabulary()
                for collection in collections:
                    view = self._views.follow(session, collection)
                    if view is None:
                        continue
                    views[collection.id] = view
                    if asked.options.mode is not SearchMode.VECTOR:
                        hits += view.keywords.search([asked.query], DEPTH, documents=documents)[0]
                    if said:
                        vocabulary += view.keywords.vocabulary(said)
                ranking = best_first(hits)[:DEPTH]
            likely: tuple[FoundChunk, ...] = ()
            if reranks and (hits_to_load := _likely(ranking, asked.options)):
                with asked.stages.measure("load"):
                    likely = _load(session, asked, hits_to_load, EARLY)
        return _ByWords(ranking, documents, likely, vocabulary, views)

    def _rank(
        self, asked: _Asked, by_words: _ByWords, queries: Mapping[str, _EmbeddedQuery], depth: int
    ) -> Candidates:
        with self._database.read() as session:
            by_meaning: list[Ranking] = []
            collections = _present(session, asked)
            if queries:
                with asked.stages.measure("vectors"):
                    by_meaning = self._rank_by_meaning(asked, collections, by_words, queries)
            with asked.stages.measure("load"):
                ranking = _fuse(_joined(by_meaning), by_words.ranking, asked.options)
                chunks = _load(session, asked, ranking, depth)
                if asked.options.explains:
                    chunks = _with_filter_keys(session, asked.options.filters, chunks)
        signals = None
        if asked.options.weighs:
            with asked.stages.measure("weigh"):
                signals = signals_of(
                    asked.query,
                    chunks,
                    nearness=max(
                        (
                            nearness_of(each[0].score, query.unrelated)
                            for each, query in zip(by_meaning, queries.values(), strict=True)
                            if each
                        ),
                        default=0.0,
                    ),
                    vocabulary=by_words.vocabulary,
                )
        return Candidates(
            chunks=_with_ranks(chunks, by_meaning, by_words.ranking),
            signals=signals,
            cuts=tuple(query.cut for query in queries.values() if query.cut),
        )

    def _rank_by_meaning(
        self,
        asked: _Asked,
        collections: Sequence[Collection],
        by_words: _ByWords,
        queries: Mapping[str, _EmbeddedQuery],
    ) -> list[Ranking]:
        """One ranking of each model. What came in since the words were looked up is not waited for again."""
        hits: dict[str, list[Hit]] = {alias: [] for alias in queries}
        for collection in collections:
            view = by_words.views.get(collection.id)
            if view is None:
                continue
            alias = asked.aliases[collection.id]
            query = queries[alias]
            if collection.fingerprint != query.fingerprint:
                raise EmbeddingModelChanged(collection.id, alias)
            hits[alias] += view.vectors.search(query.vectors, DEPTH, documents=by_words.documents)[0]
        return [best_first(each)[:DEPTH] for each in hits.values()]


def _readable(
    session: Session, scope: Scope, collection_ids: Sequence[str] | None, *, now: float
) -> list[Collection]:
    """Raises CollectionMissing, CollectionExpired for one that was named."""
    query = select(Collection).where(readable_collections(scope))
    if collection_ids is None:
        return [each for each in session.scalars(query) if not is_expired(each, now=now)]
    found = {each.id: each for each in session.scalars(query.where(Collection.id.in_(collection_ids)))}
    for collection_id in collection_ids:
        if collection_id not in found:
            raise CollectionMissing(collection_id)
        if is_expired(found[collection_id], now=now):
            raise CollectionExpired(collection_id)
    return list(found.values())


def _present(session: Session, asked: _Asked) -> list[Collection]:
    """The collections of a search that are there still, as this transaction sees them. Raises GenerationSwitched."""
    collections = session.scalars(
        select(Collection).where(readable_collections(asked.scope), Collection.id.in_(asked.aliases))
    ).all()
    if any(each.generation != asked.generations[each.id] for each in collections):
        raise GenerationSwitched
    return list(collections)


def _matching(session: Session, asked: _Asked, collections: Sequence[Collection]) -> Set[int] | None:
    """The documents that the filter admits and the scope may read, or None where both mean all."""
    filters = asked.options.filters
    ids = select(Document.id).where(Document.collection_id.in_([collection.id for collection in collections]))
    hidden = ids.where(Document.readers.is_not(None), ~readable_documents(asked.scope)).limit(1)
    if filters is None and (asked.scope.is_admin or session.scalar(hidden) is None):
        return None
    wanted = admitted(filters, session) if filters is not None else true()
    return frozenset(session.scalars(ids.where(readable_documents(asked.scope), wanted)))


def _likely(by_words: Ranking, options: SearchOptions) -> Ranking:
    """The first hits of a hybrid search that will hardly be missing once it is fused. Scores are scaled."""
    if options.mode is not SearchMode.HYBRID:
        return ()
    weight = 1 - options.dense_weight
    return tuple(hit for hit in scaled(by_words)[:EARLY] if weight * hit.score >= EARLY_SHARE)


def _joined(rankings: Sequence[Ranking]) -> Ranking:
    """One ranking from one of each model. Cosines of two models do not compare, so each is scaled first."""
    if len(rankings) == 1:
        return rankings[0]
    return best_first([hit for ranking in rankings for hit in scaled(ranking)])[:DEPTH]


def _fuse(dense: Ranking, words: Ranking, options: SearchOptions) -> Ranking:
    match options.mode:
        case SearchMode.VECTOR:
            return tuple(Hit(hit.chunk_id, max(hit.score, 0.0)) for hit in dense)
        case SearchMode.KEYWORD:
            return fuse_weighted([words], [1.0])
        case SearchMode.HYBRID:
            return fuse(options.fusion, [dense, words], [options.dense_weight, 1 - options.dense_weight])


def _load(session: Session, asked: _Asked, ranking: Ranking, limit: int) -> tuple[FoundChunk, ...]:
    """The best `limit` chunks of a ranking that are there to be found, each text once.

    Copies of it in other collections as well would take the room of what else there is to be found.
    """
    found: list[FoundChunk] = []
    start, window = 0, limit + EXTRA
    while len(found) < limit and start < len(ranking):
        found = without_duplicates([*found, *_join(session, asked, ranking[start : start + window])])
        start, window = start + window, window * 4
    return tuple(found[:limit])


def _join(session: Session, asked: _Asked, ranking: Ranking) -> tuple[FoundChunk, ...]:
    """Joins hits to SQL: what is deleted or not the scope's to see drops out, whatever an index said.

    So does what the filter no longer admits: the documents were chosen in an earlier transaction.
    """
    filters = asked.options.filters
    scores = {hit.chunk_id: hit.score for hit in ranking}
    rows = session.execute(
        select(Chunk, Document.file_id, Document.attributes, File.filename)
        .join(Document, Document.id == Chunk.document_id)
        .join(File, File.id == Document.file_id)
        .where(
            Chunk.id.in_(scores),
            Chunk.tenant_id == asked.scope.tenant_id,
            readable_documents(asked.scope),
            Chunk.collection_id.in_(asked.aliases),
            Document.status == DocumentStatus.COMPLETED,
            admitted(filters, session) if filters is not None else true(),
        )
    )
    found = [
        FoundChunk(
            chunk_id=chunk.id,
            document_id=chunk.document_id,
            collection_id=chunk.collection_id,
            file_id=file_id,
            filename=filename,
            attributes=attributes,
            generation=chunk.generation,
            position=chunk.position,
            text=chunk.text,
            start_char=chunk.start_char,
            end_char=chunk.end_char,
            headings=tuple(chunk.headings),
            places=places_from_rows(chunk.places),
            token_count=chunk.token_count,
            score=scores[chunk.id],
            similarity_hash=chunk.similarity_hash,
        )
        for chunk, file_id, attributes, filename in rows
    ]
    return _ordered(found)


def _with_filter_keys(
    session: Session, filters: Filter | None, chunks: tuple[FoundChunk, ...]
) -> tuple[FoundChunk, ...]:
    """The candidates, each with those comparisons of the filter that its document meets, by their keys."""
    if filters is None or not chunks:
        return chunks
    compared = comparisons(filters)
    met = (admitted(each, session).label(f"comparison_{number}") for number, each in enumerate(compared))
    keys = [each.key_as_written for each in compared]
    of_documents = {
        document_id: tuple(dict.fromkeys(key for key, meets in zip(keys, row_of_met, strict=True) if meets))
        for document_id, *row_of_met in session.execute(
            select(Document.id, *met).where(Document.id.in_({chunk.document_id for chunk in chunks}))
        )
    }
    # Between two statements a document may go.
    return tuple(replace(chunk, admitted_by=of_documents.get(chunk.document_id, ())) for chunk in chunks)


def _with_ranks(
    chunks: Sequence[FoundChunk], by_meaning: Sequence[Ranking], by_words: Ranking
) -> tuple[FoundChunk, ...]:
    """The fused candidates, each with what both rankings say of it."""
    cosines = {hit.chunk_id: hit.score for ranking in by_meaning for hit in ranking}
    dense_ranks = {hit.chunk_id: rank for rank, hit in enumerate(_joined(by_meaning), 1)}
    words = {hit.chunk_id: (rank, hit.score) for rank, hit in enumerate(by_words, 1)}
    told = []
    for fused_rank, chunk in enumerate(chunks, 1):
        keyword_rank, keyword_score = words.get(chunk.chunk_id, (None, None))
        told.append(
            replace(
                chunk,
                dense_rank=dense_ranks.get(chunk.chunk_id),
                dense_score=cosines.get(chunk.chunk_id),
                keyword_rank=keyword_rank,
                keyword_score=keyword_score,
                fused_rank=fused_rank,
                fused_score=chunk.score,
            )
        )
    return tuple(told)


async def _reranked(reading: Reading, candidates: Candidates, *, limit: int) -> Candidates:
    readable = [
        Readable(chunk.chunk_id, _indexed(chunk), chunk.token_count, chunk.score)
        for chunk in candidates.chunks
    ]
    verdict = await reading.judge(readable, limit=limit)
    judged = [
        replace(
            chunk, score=verdict.scores[chunk.chunk_id], rerank_score=verdict.relevance.get(chunk.chunk_id)
        )
        for chunk in candidates.chunks
    ]
    signals = candidates.signals
    if signals is not None:
        signals = signals.with_relevance(max(verdict.relevance.values(), default=0.0))
    return replace(candidates, chunks=_ordered(judged), signals=signals)


def _varied(chunks: Sequence[FoundChunk]) -> tuple[FoundChunk, ...]:
    hits = varied(
        tuple(Hit(chunk.chunk_id, chunk.score) for chunk in chunks),
        {chunk.chunk_id: _groups(chunk) for chunk in chunks},
    )
    scores = {hit.chunk_id: hit.score for hit in hits}
    return _ordered([replace(chunk, score=scores[chunk.chunk_id]) for chunk in chunks])


def _groups(chunk: FoundChunk) -> list[Hashable]:
    """Its section and the page that it begins on. A table's header is no heading of a section.

    A text without headings is no section: it may be long, and speak of anything.
    """
    headings = chunk.headings
    if headings and " | " in headings[-1]:
        headings = headings[:-1]
    groups: list[Hashable] = [(chunk.document_id, headings)] if headings else []
    page = next((place.page for place in chunk.places if place.page is not None), None)
    return groups if page is None else [*groups, (chunk.document_id, page)]


def _indexed(chunk: FoundChunk) -> str:
    return under_headings(chunk.headings, chunk.text)


def _why(error: ModelUnknown | ModelUnavailable) -> str:
    if isinstance(error, ModelUnknown):
        return (
            "It is not served: add it to models.embedding again, or rebuild the store with "
            "`strongroom collections rebuild`."
        )
    return str(error) or "It does not answer."


def _ordered(chunks: Sequence[FoundChunk]) -> tuple[FoundChunk, ...]:
    return tuple(sorted(chunks, key=lambda chunk: (-chunk.score, chunk.chunk_id)))
