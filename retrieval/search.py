"""Search, read aloud: rank by words while the query is embedded, rank by meaning, fuse, join to SQL, rerank."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.catalog import CollectionMissing
from retrieval.database import Database
from retrieval.duplicates import without_duplicates
from retrieval.expiry import CollectionExpired, is_expired
from retrieval.filters import Filter, matches
from retrieval.places import Place, places_from_rows, under_headings
from retrieval.rankings import Fusion, Hit, Ranking, best_first, fuse, fuse_weighted, scaled
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.tables import Chunk, Collection, Document, DocumentStatus, File
from retrieval.together import in_thread, together
from retrieval.views import IndexViews
from serving.protocols import Embedder, Lane, ModelUnknown, Reranker, ServingError

DEPTH = 400
"""How many chunks both rankings go deep before they are fused. Scores are scaled by the least of them, and a long
document has several, so a shallow ranking scales away what only one of the two has found.
"""
RERANK_DEPTH = 30
"""How many candidates the reranker reads: beyond it a small cross-encoder does more harm than good."""
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


class EmbeddingModelRemoved(EmbeddingModelChanged):
    """A collection's embedding model is no longer among those that are served."""

    def __init__(self, collection_id: str, alias: str) -> None:
        Exception.__init__(
            self,
            f"Vector store '{collection_id}' needs the embedding model '{alias}', which is not served. "
            "Add it to models.embedding again, or rebuild the store with `strongroom collections rebuild`.",
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


@dataclass(frozen=True)
class Candidates:
    """The fused ranking, and the best cosine in it: unlike a fused score, that one compares across queries."""

    chunks: tuple[FoundChunk, ...]
    best_similarity: float


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
    """What the keyword indexes found. `documents`: those that a filter admits, or None without a filter."""

    ranking: Ranking
    documents: Set[int] | None
    likely: tuple[FoundChunk, ...]
    """The first few, which will hardly be missing among the candidates."""


@dataclass(frozen=True)
class _EmbeddedQuery:
    """vectors: float32 (1, dimensions)."""

    fingerprint: str
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class _Early:
    """Relevance of some chunks by id, that is being computed; empty when the reranker failed."""

    chunk_ids: Set[int]
    scoring: asyncio.Task[dict[int, float]]


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

        Raises CollectionMissing, CollectionExpired, EmbeddingModelChanged, and what the models raise: a failed
        model never turns a search into a lesser one in silence.
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
        reranker = self._reranker if options.rerank else None
        async with together() as tasks:
            embedding = tasks.create_task(self._embed(asked))
            by_words = await in_thread(self._rank_by_words, asked, reranks=reranker is not None)
            early = None
            if reranker and by_words.likely and not embedding.done():
                scoring = tasks.create_task(_score_early(reranker, asked, by_words.likely))
                early = _Early({chunk.chunk_id for chunk in by_words.likely}, scoring)
            depth = max(options.limit, RERANK_DEPTH) if reranker else options.limit
            candidates = await in_thread(self._rank, asked, by_words, await embedding, depth)
            if reranker:
                relevance = await _relevance(reranker, asked, candidates.chunks, early)
                candidates = _blended(candidates, relevance)
        kept = [chunk for chunk in candidates.chunks if chunk.score >= options.score_threshold]
        return replace(candidates, chunks=tuple(kept[: options.limit]))

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
        try:
            embedder = self._embedder_of(alias)
            card = await embedder.describe()
            vectors = await embedder.embed(
                [asked.query], lane=asked.lane, cache_salt=asked.scope.tenant_id, truncate=True
            )
        except ModelUnknown as error:
            needing = next(each for each, wanted in asked.aliases.items() if wanted == alias)
            raise EmbeddingModelRemoved(needing, alias) from error
        return _EmbeddedQuery(card.fingerprint, vectors)

    def _rank_by_words(self, asked: _Asked, *, reranks: bool) -> _ByWords:
        """Also lets the indexes follow the log and the filter choose its documents, whatever the mode."""
        with self._database.read() as session:
            with asked.stages.measure("keywords"):
                collections = _present(session, asked)
                documents = _matching(session, asked, collections)
                hits: list[Hit] = []
                for collection in collections:
                    view = self._views.follow(session, collection)
                    if view is not None and asked.options.mode is not SearchMode.VECTOR:
                        hits += view.keywords.search([asked.query], DEPTH, documents=documents)[0]
                ranking = best_first(hits)[:DEPTH]
            likely: tuple[FoundChunk, ...] = ()
            if reranks and (hits_to_load := _likely(ranking, asked.options)):
                with asked.stages.measure("load"):
                    likely = _load(session, asked, hits_to_load, EARLY)
        return _ByWords(ranking, documents, likely)

    def _rank(
        self, asked: _Asked, by_words: _ByWords, queries: Mapping[str, _EmbeddedQuery], depth: int
    ) -> Candidates:
        with self._database.read() as session:
            by_meaning: list[Ranking] = []
            collections = _present(session, asked)
            if queries:
                with asked.stages.measure("vectors"):
                    by_meaning = self._rank_by_meaning(
                        session, asked, collections, by_words.documents, queries
                    )
            with asked.stages.measure("load"):
                ranking = _fuse(_joined(by_meaning), by_words.ranking, asked.options)
                chunks = _load(session, asked, ranking, depth)
        best = max((ranking[0].score for ranking in by_meaning if ranking), default=0.0)
        return Candidates(chunks=chunks, best_similarity=best)

    def _rank_by_meaning(
        self,
        session: Session,
        asked: _Asked,
        collections: Sequence[Collection],
        documents: Set[int] | None,
        queries: Mapping[str, _EmbeddedQuery],
    ) -> list[Ranking]:
        """One ranking of each model."""
        hits: dict[str, list[Hit]] = {alias: [] for alias in queries}
        for collection in collections:
            view = self._views.follow(session, collection)
            if view is None:
                continue
            alias = asked.aliases[collection.id]
            query = queries[alias]
            if collection.fingerprint != query.fingerprint:
                raise EmbeddingModelChanged(collection.id, alias)
            hits[alias] += view.vectors.search(query.vectors, DEPTH, documents=documents)[0]
        return [best_first(each)[:DEPTH] for each in hits.values()]


def _readable(
    session: Session, scope: Scope, collection_ids: Sequence[str] | None, *, now: float
) -> list[Collection]:
    """Raises CollectionMissing, CollectionExpired for one that was named."""
    query = select(Collection).where(Collection.tenant_id == scope.tenant_id)
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
        select(Collection).where(
            Collection.tenant_id == asked.scope.tenant_id, Collection.id.in_(asked.aliases)
        )
    ).all()
    if any(each.generation != asked.generations[each.id] for each in collections):
        raise GenerationSwitched
    return list(collections)


def _matching(session: Session, asked: _Asked, collections: Sequence[Collection]) -> Set[int] | None:
    """The documents that a filter admits, or None without a filter."""
    filters = asked.options.filters
    if filters is None:
        return None
    rows = session.execute(
        select(Document.id, Document.attributes).where(
            Document.tenant_id == asked.scope.tenant_id,
            Document.collection_id.in_([collection.id for collection in collections]),
        )
    )
    return frozenset(document_id for document_id, attributes in rows if matches(filters, attributes))


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
    """The best `limit` chunks of a ranking that are there to be found, each text once."""
    found: list[FoundChunk] = []
    start, window = 0, limit * 2
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
            Chunk.collection_id.in_(asked.aliases),
            Document.status == DocumentStatus.COMPLETED,
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
        if filters is None or matches(filters, attributes)
    ]
    return _ordered(found)


async def _score(reranker: Reranker, asked: _Asked, chunks: Sequence[FoundChunk]) -> dict[int, float]:
    """Relevance by chunk id."""
    if not chunks:
        return {}
    with asked.stages.measure("rerank"):
        scores = await reranker.score(
            asked.query,
            [under_headings(chunk.headings, chunk.text) for chunk in chunks],
            lane=asked.lane,
            cache_salt=asked.scope.tenant_id,
            truncate=True,
        )
    return {chunk.chunk_id: float(score) for chunk, score in zip(chunks, scores, strict=True)}


async def _score_early(reranker: Reranker, asked: _Asked, chunks: Sequence[FoundChunk]) -> dict[int, float]:
    """As `_score`, but a failure is none yet: what fails may not even be a candidate in the end."""
    try:
        return await _score(reranker, asked, chunks)
    except ServingError:
        return {}


async def _relevance(
    reranker: Reranker, asked: _Asked, chunks: Sequence[FoundChunk], early: _Early | None
) -> dict[int, float]:
    """As `_score` of all chunks, the same however many of them were begun early."""
    if early is None:
        return await _score(reranker, asked, chunks)
    begun = [chunk for chunk in chunks if chunk.chunk_id in early.chunk_ids]
    others = [chunk for chunk in chunks if chunk.chunk_id not in early.chunk_ids]
    if not begun:
        early.scoring.cancel()
        return await _score(reranker, asked, others)
    async with together() as tasks:
        scoring = tasks.create_task(_score(reranker, asked, others))
        known = await early.scoring
        if not known:
            known = await _score(reranker, asked, begun)
    return {**known, **scoring.result()}


def _blended(candidates: Candidates, relevance: Mapping[int, float]) -> Candidates:
    """Blends the first stage with the reranker in equal parts, both scaled to 0..1 over the candidates.

    Alone, a small cross-encoder orders texts outside its training worse than the first stage does.
    """
    first = tuple(Hit(chunk.chunk_id, chunk.score) for chunk in candidates.chunks)
    second = tuple(Hit(chunk.chunk_id, relevance[chunk.chunk_id]) for chunk in candidates.chunks)
    blended = {hit.chunk_id: hit.score for hit in fuse_weighted([first, second], [0.5, 0.5])}
    return replace(
        candidates,
        chunks=_ordered([replace(chunk, score=blended[chunk.chunk_id]) for chunk in candidates.chunks]),
    )


def _ordered(chunks: Sequence[FoundChunk]) -> tuple[FoundChunk, ...]:
    return tuple(sorted(chunks, key=lambda chunk: (-chunk.score, chunk.chunk_id)))
