"""Search, read aloud: embed the query, rank by meaning and by words, fuse, join to SQL, rerank."""

import asyncio
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.catalog import CollectionMissing
from retrieval.database import Database
from retrieval.filters import Filter, matches
from retrieval.places import Place, places_from_rows, under_headings
from retrieval.rankings import Fusion, Hit, Ranking, best_first, fuse, fuse_weighted
from retrieval.scope import Scope
from retrieval.tables import Chunk, Collection, Document, DocumentStatus, File
from retrieval.views import IndexViews
from serving.protocols import Embedder, Lane, Reranker

DEPTH = 400
"""How many chunks both rankings go deep before they are fused. Scores are scaled by the least of them, and a long
document has several, so a shallow ranking scales away what only one of the two has found.
"""
RERANK_DEPTH = 30
"""How many candidates the reranker reads: beyond it a small cross-encoder does more harm than good."""


class SearchMode(StrEnum):
    HYBRID = "hybrid"
    VECTOR = "vector"
    KEYWORD = "keyword"


class EmbeddingModelChanged(Exception):
    """A collection holds vectors of another embedding model than the one that is running."""

    def __init__(self, collection_id: str) -> None:
        super().__init__(
            f"Vector store '{collection_id}' was made with another embedding model. "
            "Set models.embedding to that model, or add its files to a new vector store."
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
    position: int
    text: str
    start_char: int
    end_char: int
    headings: tuple[str, ...]
    places: tuple[Place, ...]
    token_count: int
    score: float


@dataclass(frozen=True)
class Candidates:
    """The fused ranking, and the best cosine in it: unlike a fused score, that one compares across queries."""

    chunks: tuple[FoundChunk, ...]
    best_similarity: float


class Searcher:
    """Searches what a scope may read. `reranker` is None when none is configured."""

    def __init__(
        self, database: Database, views: IndexViews, embedder: Embedder, reranker: Reranker | None
    ) -> None:
        self._database = database
        self._views = views
        self._embedder = embedder
        self._reranker = reranker

    async def search(
        self,
        scope: Scope,
        query: str,
        *,
        collection_ids: Sequence[str] | None = None,
        options: SearchOptions | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> Candidates:
        """Searches the named collections, or all that the scope may read.

        Raises CollectionMissing, EmbeddingModelChanged, and what the models raise: a failed model never turns
        a search into a lesser one in silence.
        """
        options = options or SearchOptions()
        vectors, fingerprint = None, None
        if options.mode is not SearchMode.KEYWORD:
            fingerprint = (await self._embedder.describe()).fingerprint
            vectors = await self._embedder.embed([query], lane=lane)
        reranker = self._reranker if options.rerank else None
        depth = max(options.limit, RERANK_DEPTH) if reranker else options.limit
        candidates = await asyncio.to_thread(
            self._rank, scope, query, vectors, fingerprint, collection_ids, options, depth
        )
        if reranker and candidates.chunks:
            candidates = await _rerank(reranker, query, candidates, lane)
        kept = [chunk for chunk in candidates.chunks if chunk.score >= options.score_threshold]
        return replace(candidates, chunks=tuple(kept[: options.limit]))

    def _rank(
        self,
        scope: Scope,
        query: str,
        vectors: NDArray[np.float32] | None,
        fingerprint: str | None,
        collection_ids: Sequence[str] | None,
        options: SearchOptions,
        depth: int,
    ) -> Candidates:
        with self._database.read() as session:
            collections = _readable(session, scope, collection_ids)
            documents = _matching(session, scope, collections, options.filters)
            dense: list[Hit] = []
            words: list[Hit] = []
            for collection in collections:
                view = self._views.follow(session, collection)
                if view is None:
                    continue
                if vectors is not None:
                    if collection.fingerprint != fingerprint:
                        raise EmbeddingModelChanged(collection.id)
                    dense += view.vectors.search(vectors, DEPTH, documents=documents)[0]
                if options.mode is not SearchMode.VECTOR:
                    words += view.keywords.search([query], DEPTH, documents=documents)[0]
            ranking = _fuse(best_first(dense)[:DEPTH], best_first(words)[:DEPTH], options)
            return Candidates(
                chunks=_load(session, scope, collections, ranking, depth),
                best_similarity=max((hit.score for hit in dense), default=0.0),
            )


def _readable(session: Session, scope: Scope, collection_ids: Sequence[str] | None) -> list[Collection]:
    query = select(Collection).where(Collection.tenant_id == scope.tenant_id)
    if collection_ids is None:
        return list(session.scalars(query))
    found = {each.id: each for each in session.scalars(query.where(Collection.id.in_(collection_ids)))}
    for collection_id in collection_ids:
        if collection_id not in found:
            raise CollectionMissing(collection_id)
    return list(found.values())


def _matching(
    session: Session, scope: Scope, collections: Sequence[Collection], filters: Filter | None
) -> Set[int] | None:
    """The documents that a filter admits, or None without a filter."""
    if filters is None:
        return None
    rows = session.execute(
        select(Document.id, Document.attributes).where(
            Document.tenant_id == scope.tenant_id,
            Document.collection_id.in_([collection.id for collection in collections]),
        )
    )
    return frozenset(document_id for document_id, attributes in rows if matches(filters, attributes))


def _fuse(dense: Ranking, words: Ranking, options: SearchOptions) -> Ranking:
    match options.mode:
        case SearchMode.VECTOR:
            return tuple(Hit(hit.chunk_id, max(hit.score, 0.0)) for hit in dense)
        case SearchMode.KEYWORD:
            return fuse_weighted([words], [1.0])
        case SearchMode.HYBRID:
            return fuse(options.fusion, [dense, words], [options.dense_weight, 1 - options.dense_weight])


def _load(
    session: Session, scope: Scope, collections: Sequence[Collection], ranking: Ranking, limit: int
) -> tuple[FoundChunk, ...]:
    """Joins hits to SQL: what is deleted or not the scope's to see drops out, whatever an index said."""
    scores = {hit.chunk_id: hit.score for hit in ranking[: limit * 2]}
    rows = session.execute(
        select(Chunk, Document.file_id, Document.attributes, File.filename)
        .join(Document, Document.id == Chunk.document_id)
        .join(File, File.id == Document.file_id)
        .where(
            Chunk.id.in_(scores),
            Chunk.tenant_id == scope.tenant_id,
            Chunk.collection_id.in_([collection.id for collection in collections]),
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
            position=chunk.position,
            text=chunk.text,
            start_char=chunk.start_char,
            end_char=chunk.end_char,
            headings=tuple(chunk.headings),
            places=places_from_rows(chunk.places),
            token_count=chunk.token_count,
            score=scores[chunk.id],
        )
        for chunk, file_id, attributes, filename in rows
    ]
    return _ordered(found)[:limit]


async def _rerank(reranker: Reranker, query: str, candidates: Candidates, lane: Lane) -> Candidates:
    """Blends the first stage with the reranker in equal parts, both scaled to 0..1 over the candidates.

    Alone, a small cross-encoder orders texts outside its training worse than the first stage does.
    """
    texts = [under_headings(chunk.headings, chunk.text) for chunk in candidates.chunks]
    relevance = await reranker.score(query, texts, lane=lane)
    first = tuple(Hit(chunk.chunk_id, chunk.score) for chunk in candidates.chunks)
    second = tuple(
        Hit(chunk.chunk_id, float(score)) for chunk, score in zip(candidates.chunks, relevance, strict=True)
    )
    blended = {hit.chunk_id: hit.score for hit in fuse_weighted([first, second], [0.5, 0.5])}
    return replace(
        candidates,
        chunks=_ordered([replace(chunk, score=blended[chunk.chunk_id]) for chunk in candidates.chunks]),
    )


def _ordered(chunks: Sequence[FoundChunk]) -> tuple[FoundChunk, ...]:
    return tuple(sorted(chunks, key=lambda chunk: (-chunk.score, chunk.chunk_id)))
