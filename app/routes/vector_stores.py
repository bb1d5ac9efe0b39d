"""/v1/vector_stores: collections, their documents, and search in them."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy.orm import Session

from app.errors import BadRequest
from app.routes.caller import Reader, UseServices, Writer
from app.routes.filters import FilterBody, to_filter
from app.routes.listing import Page, listing, one_more
from app.routes.models import embedding_aliases
from app.services import Services
from retrieval import catalog
from retrieval.passages import read_text
from retrieval.rankings import Fusion
from retrieval.scope import Scope
from retrieval.search import FoundChunk, SearchMode, SearchOptions
from retrieval.stages import Stages
from retrieval.tables import Collection, Document, DocumentStatus
from serving.departure import unless_departed

router = APIRouter(prefix="/v1/vector_stores")

OPENAI_ERROR_CODES = {
    "unsupported": "unsupported_file",
    "encrypted": "invalid_file",
    "corrupt": "invalid_file",
    "empty": "invalid_file",
    "too_large": "invalid_file",
    "limit": "invalid_file",
    "unreadable_text": "invalid_file",
}
"""Our codes for a failed document in OpenAI's coarser ones; any other is a `server_error`."""

AttributeKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeText = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[AttributeKey, AttributeText], Field(max_length=16)]
Attributes = Annotated[dict[AttributeKey, bool | float | AttributeText], Field(max_length=16)]
Name = Annotated[str, StringConstraints(max_length=256)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StaticChunking(Body):
    max_chunk_size_tokens: int = Field(ge=100, le=4096)
    chunk_overlap_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def overlap_is_at_most_half(self) -> "StaticChunking":
        if self.chunk_overlap_tokens > self.max_chunk_size_tokens // 2:
            raise ValueError("chunk_overlap_tokens must not exceed half of max_chunk_size_tokens")
        return self


class AutoStrategy(Body):
    type: Literal["auto"]


class StaticStrategy(Body):
    type: Literal["static"]
    static: StaticChunking


Chunking = Annotated[AutoStrategy | StaticStrategy, Field(discriminator="type")]


class CreateStore(Body):
    name: Name | None = None
    file_ids: list[str] = Field(default_factory=list, max_length=500)
    metadata: Metadata | None = None
    chunking_strategy: Chunking | None = None
    embedding_model: str | None = None
    """Ours: the alias of a configured embedding model. It stays; without one, the default is taken."""


class ModifyStore(Body):
    name: Name | None = None
    metadata: Metadata | None = None


class AttachFile(Body):
    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class UpdateAttributes(Body):
    attributes: Attributes | None


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
        for file_id in body.file_ids:
            catalog.attach_file(
                session,
                scope,
                collection_id=collection.id,
                file_id=file_id,
                attributes={},
                chunking=_chunking(body.chunking_strategy),
                now=now,
            )
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
        return _shape_stores(session, services, scope, [collection])[0]


@router.delete("/{store_id}")
def delete_store(store_id: str, services: UseServices, scope: Writer) -> dict[str, Any]:
    with services.database.write() as session:
        catalog.delete_collection(session, scope, store_id)
    services.views.forget(store_id)
    return {"id": store_id, "object": "vector_store.deleted", "deleted": True}


@router.post("/{store_id}/files")
def attach_file(store_id: str, body: AttachFile, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Queues a file for ingestion. It is searchable, whole, once its status is `completed`."""
    with services.database.write() as session:
        document = catalog.attach_file(
            session,
            scope,
            collection_id=store_id,
            file_id=body.file_id,
            attributes=dict(body.attributes or {}),
            chunking=_chunking(body.chunking_strategy),
            now=time.time(),
        )
        return _shape_document(document)


@router.get("/{store_id}/files")
def list_documents(
    store_id: str,
    services: UseServices,
    scope: Reader,
    page: Page,
    filter: DocumentStatus | None = None,  # noqa: A002 - OpenAI's name
) -> dict[str, Any]:
    with services.database.read() as session:
        rows = catalog.list_documents(session, scope, store_id, one_more(page), status=filter)
        return listing(rows, page, _shape_document)


@router.get("/{store_id}/files/{file_id}")
def get_document(store_id: str, file_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        return _shape_document(catalog.get_document(session, scope, store_id, file_id))


@router.post("/{store_id}/files/{file_id}")
def update_document(
    store_id: str, file_id: str, body: UpdateAttributes, services: UseServices, scope: Writer
) -> dict[str, Any]:
    with services.database.write() as session:
        document = catalog.get_document(session, scope, store_id, file_id)
        document.attributes = dict(body.attributes or {})
        return _shape_document(document)


@router.delete("/{store_id}/files/{file_id}")
def delete_document(store_id: str, file_id: str, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Takes the file out of this store; the file itself stays."""
    with services.database.write() as session:
        catalog.delete_document(session, scope, store_id, file_id)
    return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}


@router.get("/{store_id}/files/{file_id}/content")
def get_parsed_content(store_id: str, file_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    """The text that offsets of citations index."""
    with services.database.read() as session:
        document = catalog.get_document(session, scope, store_id, file_id)
        text = read_text(session, scope, document.id) or ""
    return {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": text}],
        "has_more": False,
        "next_page": None,
    }


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


def _chunking(strategy: AutoStrategy | StaticStrategy | None) -> dict[str, Any]:
    return strategy.model_dump() if strategy is not None else {"type": "auto"}


def _shape_stores(
    session: Session, services: Services, scope: Scope, collections: list[Collection]
) -> list[dict[str, Any]]:
    """OpenAI's VectorStore objects, with the embedding model's alias beside."""
    default = _embedding_model(services, None)
    ids = [collection.id for collection in collections]
    counts = catalog.count_documents(session, scope, ids)
    usage = catalog.usage_bytes(session, scope, ids)
    return [_shape_store(each, counts[each.id], usage.get(each.id, 0), default) for each in collections]


def _shape_store(
    collection: Collection,
    counts: dict[DocumentStatus, int],
    usage_bytes: int,
    default_embedding: str,
) -> dict[str, Any]:
    by_status = {status.value: counts.get(status, 0) for status in DocumentStatus}
    return {
        "id": collection.id,
        "object": "vector_store",
        "created_at": int(collection.created_at),
        "name": collection.name,
        "usage_bytes": usage_bytes,
        "file_counts": {**by_status, "total": sum(by_status.values())},
        "status": "in_progress" if by_status["in_progress"] else "completed",
        "expires_after": None,
        "expires_at": None,
        "last_active_at": int(collection.last_active_at),
        "metadata": collection.attributes,
        "embedding_model": collection.embedding_model or default_embedding,
    }


def _shape_document(document: Document) -> dict[str, Any]:
    """OpenAI's VectorStoreFile object; `reason` beside it is our own, finer code of a failure."""
    failed = document.status is DocumentStatus.FAILED
    return {
        "id": document.file_id,
        "object": "vector_store.file",
        "vector_store_id": document.collection_id,
        "created_at": int(document.created_at),
        "status": document.status.value,
        "last_error": {
            "code": OPENAI_ERROR_CODES.get(document.error_code or "", "server_error"),
            "message": document.error_message,
            "reason": document.error_code,
        }
        if failed
        else None,
        "usage_bytes": document.usage_bytes,
        "attributes": document.attributes,
        "chunking_strategy": document.chunking
        if document.chunking["type"] == "static"
        else {"type": "other"},
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
