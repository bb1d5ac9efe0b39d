"""/v1/vector_stores: collections, and search in them."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from app.errors import BadRequest
from app.routes.caller import Reader, UseServices, Writer
from app.routes.documents import AttributeKey, AttributeText, Body, Chunking, chunking_of, shape_counts
from app.routes.filters import FilterBody, to_filter
from app.routes.listing import Page, listing, one_more
from app.routes.models import embedding_aliases
from app.services import Services
from retrieval import catalog
from retrieval.batches import Member, attach_files
from retrieval.expiry import expires_at, is_expired
from retrieval.rankings import Fusion
from retrieval.scope import Scope
from retrieval.search import FoundChunk, SearchMode, SearchOptions
from retrieval.stages import Stages
from retrieval.tables import Collection, DocumentStatus
from serving.departure import unless_departed

router = APIRouter(prefix="/v1/vector_stores")

Metadata = Annotated[dict[AttributeKey, AttributeText], Field(max_length=16)]
Name = Annotated[str, StringConstraints(max_length=256)]


class ExpiresAfter(Body):
    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class CreateStore(Body):
    name: Name | None = None
    file_ids: list[str] = Field(default_factory=list, max_length=500)
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: Chunking | None = None
    embedding_model: str | None = None
    """Ours: the alias of a configured embedding model. It stays; without one, the default is taken."""


class ModifyStore(Body):
    name: Name | None = None
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None
    """Null takes the expiry away; without it, it stays."""


class RankingOptions(Body):
    ranker: Literal["auto", "none", "weighted", "rrf", "default-2024-11-15"] = "auto"
    score_threshold: float = Field(0.0, ge=0, le=1)
    dense_weight: float | None = Field(None, ge=0, le=1)


class SearchStore(Body):
    query: str | list[str]
    filters: FilterBody | None = None
    max_num_results: int = Field(10, ge=1, le=50)
    ranking_options: RankingOptions = RankingOptions()
    rewrite_query: bool = False
    search_mode: SearchMode = SearchMode.HYBRID


@router.post("")
def create_store(body: CreateStore, services: UseServices, scope: Writer) -> dict[str, Any]:
    now = time.time()
    embedding_model = _embedding_model(services, body.embedding_model)
    with services.database.write() as session:
        collection = catalog.create_collection(
            session,
            scope,
            name=body.name or "",
            attributes=dict(body.metadata or {}),
            embedding_model=embedding_model,
            now=now,
        )
        collection.expires_after_days = _days(body.expires_after)
        if body.file_ids:
            chunking = chunking_of(body.chunking_strategy)
            members = [
                Member(file_id, attributes={}, chunking=chunking) for file_id in dict.fromkeys(body.file_ids)
            ]
            attach_files(session, scope, collection.id, members, now=now)
        return _shape_stores(session, services, scope, [collection])[0]


@router.get("")
def list_stores(services: UseServices, scope: Reader, page: Page) -> dict[str, Any]:
    with services.database.read() as session:
        rows = catalog.list_collections(session, scope, one_more(page))
        return listing(_shape_stores(session, services, scope, rows), page, lambda shaped: shaped)


@router.get("/{store_id}")
def get_store(store_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        return _shape_stores(session, services, scope, [catalog.get_collection(session, scope, store_id)])[0]


@router.post("/{store_id}")
def modify_store(store_id: str, body: ModifyStore, services: UseServices, scope: Writer) -> dict[str, Any]:
    with services.database.write() as session:
        collection = catalog.get_collection(session, scope, store_id)
        if body.name is not None:
            collection.name = body.name
        if body.metadata is not None:
            collection.attributes = dict(body.metadata)
        if "expires_after" in body.model_fields_set:
            collection.expires_after_days = _days(body.expires_after)
        return _shape_stores(session, services, scope, [collection])[0]


@router.delete("/{store_id}")
def delete_store(store_id: str, services: UseServices, scope: Writer) -> dict[str, Any]:
    with services.database.write() as session:
        catalog.delete_collection(session, scope, store_id)
    services.views.forget(store_id)
    return {"id": store_id, "object": "vector_store.deleted", "deleted": True}


@router.post("/{store_id}/search")
async def search_store(
    request: Request,
    response: Response,
    store_id: str,
    body: SearchStore,
    services: UseServices,
    scope: Reader,
) -> dict[str, Any]:
    query = body.query if isinstance(body.query, str) else "\n".join(body.query)
    ranking = body.ranking_options
    default_weight = services.settings.search.dense_weight
    options = SearchOptions(
        limit=body.max_num_results,
        mode=body.search_mode,
        fusion=Fusion.RRF if ranking.ranker == "rrf" else Fusion.WEIGHTED,
        dense_weight=default_weight if ranking.dense_weight is None else ranking.dense_weight,
        score_threshold=ranking.score_threshold,
        filters=to_filter(body.filters) if body.filters is not None else None,
        rerank=ranking.ranker in ("auto", "default-2024-11-15"),
    )
    stages = Stages()
    searching = services.searcher.search(
        scope, query, collection_ids=[store_id], options=options, stages=stages
    )
    candidates = await unless_departed(request.receive, searching)
    services.activity.note(scope, [store_id])
    response.headers.update(services.metrics.told(stages))
    return {
        "object": "vector_store.search_results.page",
        "search_query": [query],
        "data": [_shape_found(chunk) for chunk in candidates.chunks],
        "has_more": False,
        "next_page": None,
    }


def _embedding_model(services: Services, asked: str | None) -> str:
    aliases = embedding_aliases(services)
    if asked is None:
        return aliases[0]
    if asked not in aliases:
        raise BadRequest(
            f"embedding_model must be one of {', '.join(aliases)}; it is '{asked}'.", param="embedding_model"
        )
    return asked


def _days(expires_after: ExpiresAfter | None) -> int | None:
    return expires_after.days if expires_after is not None else None


def _shape_stores(
    session: Session, services: Services, scope: Scope, collections: list[Collection]
) -> list[dict[str, Any]]:
    """OpenAI's VectorStore objects, with the embedding model's alias beside."""
    default = _embedding_model(services, None)
    now = time.time()
    ids = [collection.id for collection in collections]
    counts = catalog.count_documents(session, scope, ids)
    usage = catalog.usage_bytes(session, scope, ids)
    return [_shape_store(each, counts[each.id], usage.get(each.id, 0), default, now) for each in collections]


def _shape_store(
    collection: Collection,
    counts: dict[DocumentStatus, int],
    usage_bytes: int,
    default_embedding: str,
    now: float,
) -> dict[str, Any]:
    days, ends_at = collection.expires_after_days, expires_at(collection)
    if is_expired(collection, now=now):
        status = "expired"
    else:
        status = "in_progress" if counts.get(DocumentStatus.IN_PROGRESS) else "completed"
    return {
        "id": collection.id,
        "object": "vector_store",
        "created_at": int(collection.created_at),
        "name": collection.name,
        "usage_bytes": usage_bytes,
        "file_counts": shape_counts(counts),
        "status": status,
        "expires_after": {"anchor": "last_active_at", "days": days} if days is not None else None,
        "expires_at": int(ends_at) if ends_at is not None else None,
        "last_active_at": int(collection.last_active_at),
        "metadata": collection.attributes,
        "embedding_model": collection.embedding_model or default_embedding,
    }


def _shape_found(chunk: FoundChunk) -> dict[str, Any]:
    """OpenAI's search result, with the chunk's place beside it."""
    pages = [place.page for place in chunk.places if place.page is not None]
    return {
        "file_id": chunk.file_id,
        "filename": chunk.filename,
        "score": round(min(max(chunk.score, 0.0), 1.0), 6),
        "attributes": chunk.attributes,
        "content": [{"type": "text", "text": chunk.text}],
        "chunk_id": chunk.chunk_id,
        "start_char": chunk.start_char,
        "end_char": chunk.end_char,
        "page": pages[0] if pages else None,
        "headings": list(chunk.headings),
    }
