"""/v1/vector_stores: collections, and search in them."""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from sqlalchemy.orm import Session

from app.access.auth import NotAllowed
from app.answers.questions import merged
from app.edge.waiting import is_soon, until_ingested
from app.errors import BadRequest
from app.routes.body import Body
from app.routes.caller import Reader, UseServices, Writer
from app.routes.documents import NO_NUL, AttributeKey, AttributeText, Chunking, chunking_of, shape_counts
from app.routes.filters import HALF_PAIR, FilterBody
from app.routes.groups import Groups
from app.routes.ids import NamedFile, StoreId
from app.routes.listing import Page, listing, one_more
from app.routes.models import embedding_aliases, engine_model_names
from app.services import Services
from retrieval import audit, catalog
from retrieval.access import named
from retrieval.batches import Member, attach_files
from retrieval.catalog import NotFound
from retrieval.evidence import Evidence, weigh
from retrieval.expiry import expires_at, is_expired
from retrieval.rankings import Fusion
from retrieval.scope import Scope
from retrieval.search import Candidates, FoundChunk, SearchMode, SearchOptions
from retrieval.stages import Stages
from retrieval.tables import AuditEvent, Collection, DocumentStatus, Role
from retrieval.together import in_thread, together
from serving.departure import unless_departed
from serving.protocols import Lane

router = APIRouter(prefix="/v1/vector_stores")

Metadata = Annotated[dict[AttributeKey, AttributeText], Field(max_length=16)]
Name = Annotated[str, StringConstraints(max_length=256, pattern=NO_NUL)]
Description = Annotated[str, StringConstraints(max_length=512, pattern=NO_NUL)]


class ExpiresAfter(Body):
    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class CreateStore(Body):
    """Ours beside OpenAI's: `embedding_model`, `readers`, `writers`."""

    name: Name | None = None
    description: Description | None = None
    file_ids: Annotated[list[NamedFile], Field(max_length=500)] | None = None
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: Chunking | None = None
    embedding_model: str | None = None
    """Ours: the alias of a configured embedding model. It stays; without one, the default is taken."""
    readers: Groups | None = None
    """Ours: the groups whose keys may read it, beside the writers; null is all keys of the tenant."""
    writers: Groups | None = None
    """Ours: the groups whose writers may change it; null is all writers that may read it."""


class ModifyStore(Body):
    """What is null is taken away; what is left out stays. Who reads and who writes it is for admins to change."""

    name: Name | None = None
    description: Description | None = None
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None
    readers: Groups | None = None
    writers: Groups | None = None


class HybridSearch(Body):
    """How much a ranking by meaning and one by words count beside each other."""

    embedding_weight: float = Field(ge=0, le=1e6)
    text_weight: float = Field(ge=0, le=1e6)

    @model_validator(mode="after")
    def one_counts(self) -> "HybridSearch":
        if self.embedding_weight + self.text_weight == 0:
            raise ValueError("embedding_weight and text_weight must not both be 0")
        return self

    @property
    def dense_weight(self) -> float:
        return self.embedding_weight / (self.embedding_weight + self.text_weight)


class RankingOptions(Body):
    ranker: Literal["auto", "none", "weighted", "rrf", "default-2024-11-15"] | None = None
    score_threshold: float | None = Field(None, ge=0, le=1)
    hybrid_search: HybridSearch | None = None
    """As OpenAI's file_search tool has it."""

    @property
    def fusion(self) -> Fusion:
        return Fusion.RRF if self.ranker == "rrf" else Fusion.WEIGHTED

    @property
    def reranks(self) -> bool:
        return self.ranker in (None, "auto", "default-2024-11-15")


MOST_QUERIES = 16


def _as_texts(told: Any) -> Any:
    if not isinstance(told, list):
        return [told] if isinstance(told, str) else told
    if not 1 <= len(told) <= MOST_QUERIES or not all(isinstance(each, str) for each in told):
        raise ValueError(f"it must be a text, or a list of 1 to {MOST_QUERIES} texts")
    return list(dict.fromkeys(told))


def _searchable(queries: list[str]) -> list[str]:
    for query in queries:
        if not query.strip():
            raise ValueError("it must not be empty")
        if HALF_PAIR.search(query):
            raise ValueError("it must not contain half of a surrogate pair")
    return queries


Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_QUERIES)]
Queries = Annotated[
    list[str],
    BeforeValidator(_as_texts, json_schema_input_type=Text | Texts),
    AfterValidator(_searchable),
]


class SearchStore(Body):
    query: Queries
    """One that is longer than the embedding model reads is cut, and the reply says so in `query_cuts`. Of several,
    each is searched, and what they find is shuffled together: the best of each, then the second, and so on.
    """
    filters: FilterBody | None = None
    max_num_results: int = Field(10, ge=1, le=50)
    ranking_options: RankingOptions | None = None
    rewrite_query: bool = False
    """Searches for what the generation model makes of the query; the reply says in `search_query` what that is."""
    search_mode: SearchMode = Field(SearchMode.HYBRID, strict=False)
    include: list[Literal["scores"]] = Field(default_factory=list)
    """Ours: "scores" tells of each result why it stands where it does, and how long each stage took."""


@router.post("")
async def create_store(body: CreateStore, services: UseServices, scope: Writer) -> dict[str, Any]:
    shaped = await in_thread(make_store, body, services, scope)
    file_ids = list(dict.fromkeys(body.file_ids or ()))
    if not await in_thread(is_soon, services.database, scope, shaped["id"], file_ids):
        return shaped
    await until_ingested(services.database, scope, shaped["id"], file_ids)
    try:
        return await in_thread(get_store, shaped["id"], services, scope)
    except NotFound:
        return shaped  # Deleted as soon as it was there.


@router.get("")
def list_stores(services: UseServices, scope: Reader, page: Page) -> dict[str, Any]:
    with services.database.read() as session:
        rows = catalog.list_collections(session, scope, one_more(page))
        return listing(_shape_stores(session, services, scope, rows), page, lambda shaped: shaped)


@router.get("/{vector_store_id}")
def get_store(store_id: StoreId, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        return _shape_stores(session, services, scope, [catalog.get_collection(session, scope, store_id)])[0]


@router.post("/{vector_store_id}")
def modify_store(
    store_id: StoreId, body: ModifyStore, services: UseServices, scope: Writer
) -> dict[str, Any]:
    sent, now = body.model_fields_set, time.time()
    if sent & {"readers", "writers"} and not scope.is_admin:
        raise NotAllowed(Role.ADMIN)
    with services.database.write() as session:
        if body.readers is not None or body.writers is not None:
            catalog.note_restriction(session, scope.tenant_id)
        collection = catalog.lock_collection(session, scope, store_id)
        if "readers" in sent:
            collection.readers = named(body.readers)
        if "writers" in sent:
            collection.writers = named(body.writers)
        if "name" in sent:
            collection.name = body.name or ""
        if "description" in sent:
            collection.description = body.description
        if "metadata" in sent:
            collection.attributes = dict(body.metadata or {})
        if "expires_after" in sent or not is_expired(collection, now=now):
            collection.last_active_at = now
        if "expires_after" in sent:
            collection.expires_after_days = _days(body.expires_after)
        audit.record(session, AuditEvent.COLLECTION_CHANGED, store_id, scope=scope)
        return _shape_stores(session, services, scope, [collection])[0]


@router.delete("/{vector_store_id}")
def delete_store(store_id: StoreId, services: UseServices, scope: Writer) -> dict[str, Any]:
    with services.database.write() as session:
        catalog.delete_collection(session, scope, store_id)
        audit.record(session, AuditEvent.COLLECTION_DELETED, store_id, scope=scope)
    services.views.forget(store_id)
    return {"id": store_id, "object": "vector_store.deleted", "deleted": True}


@router.post("/{vector_store_id}/search")
async def search_store(
    request: Request,
    response: Response,
    store_id: StoreId,
    body: SearchStore,
    services: UseServices,
    scope: Reader,
) -> dict[str, Any]:
    options = _options(body, services)
    queries = body.query
    stages = Stages()
    failure: str | None = None
    if body.rewrite_query:
        with stages.measure("rewrite"):
            queries, failure = await unless_departed(request.receive, _reworded(queries, services, scope))
    searching = _search(services, scope, store_id, queries, options, stages)
    found = await unless_departed(request.receive, searching)
    services.activity.note(scope, [store_id])
    response.headers.update(services.metrics.told(stages))
    chunks = merged(found, limit=options.limit).chunks
    read = (store_id, *dict.fromkeys(chunk.file_id for chunk in chunks))
    asked = services.audit.keyed_hash("\n".join(body.query))
    services.audit.note(scope, AuditEvent.SEARCH, read, query=asked)
    page: dict[str, Any] = {
        "object": "vector_store.search_results.page",
        "search_query": queries,
        "data": [_shape_found(chunk) for chunk in chunks],
        "has_more": False,
        "next_page": None,
    }
    if failure is not None:
        page["rewrite_failed"] = failure
    if options.explains:
        for shaped, chunk in zip(page["data"], chunks, strict=True):
            shaped["scores"] = _shape_scores(chunk)
        page["stage_ms"] = {name: round(1000 * seconds, 2) for name, seconds in stages}
    evidence = [weigh(each.signals, services.calibration) for each in found if each.signals is not None]
    if evidence:
        page["evidence"] = _shape_evidence(max(evidence, key=lambda each: each.score))
    if cuts := dict.fromkeys(cut for each in found for cut in each.cuts):
        page["query_cuts"] = [
            {"embedding_model": cut.alias, "tokens": cut.tokens, "max_tokens": cut.max_tokens} for cut in cuts
        ]
    return page


def _options(body: SearchStore, services: Services) -> SearchOptions:
    ranking = body.ranking_options or RankingOptions()
    weights = ranking.hybrid_search
    return SearchOptions(
        limit=body.max_num_results,
        mode=body.search_mode,
        fusion=ranking.fusion,
        dense_weight=weights.dense_weight if weights is not None else services.settings.search.dense_weight,
        score_threshold=ranking.score_threshold or 0.0,
        filters=body.filters,
        rerank=ranking.reranks,
        explains="scores" in body.include,
        weighs="scores" in body.include,
    )


async def _search(
    services: Services,
    scope: Scope,
    store_id: str,
    queries: Sequence[str],
    options: SearchOptions,
    stages: Stages,
) -> list[Candidates]:
    """One for each query. All at once."""
    async with together() as tasks:
        searching = [
            tasks.create_task(
                services.searcher.search(
                    scope, query, collection_ids=[store_id], options=options, stages=stages
                )
            )
            for query in queries
        ]
    return [each.result() for each in searching]


async def _reworded(queries: Sequence[str], services: Services, scope: Scope) -> tuple[list[str], str | None]:
    """What to search for instead, and why a query stayed as it is, if one did. Raises BadRequest."""
    models = await engine_model_names(services)
    if not models:
        raise BadRequest(
            "Query rewriting is not available: no generation model is served. Leave rewrite_query out.",
            param="rewrite_query",
        )
    asked = await asyncio.gather(
        *(
            services.questions.reworded(query, model=models[0], tenant=scope.tenant_id, lane=Lane.INTERACTIVE)
            for query in queries
        )
    )
    failures = [each.failure for each in asked if each.failure is not None]
    return list(dict.fromkeys(query for each in asked for query in each.queries)), next(iter(failures), None)


def make_store(body: CreateStore, services: Services, scope: Scope) -> dict[str, Any]:
    """Blocks. Raises BadRequest, NotFound."""
    now = time.time()
    embedding_model = _embedding_model(services, body.embedding_model)
    with services.database.write() as session:
        if body.readers is not None or body.writers is not None:
            catalog.note_restriction(session, scope.tenant_id)
        collection = catalog.create_collection(
            session,
            scope,
            name=body.name or "",
            attributes=dict(body.metadata or {}),
            embedding_model=embedding_model,
            now=now,
        )
        collection.description = body.description
        collection.expires_after_days = _days(body.expires_after)
        collection.readers, collection.writers = named(body.readers), named(body.writers)
        if body.file_ids:
            chunking = chunking_of(body.chunking_strategy)
            members = [
                Member(file_id, attributes={}, chunking=chunking) for file_id in dict.fromkeys(body.file_ids)
            ]
            attach_files(session, scope, collection.id, members, now=now)
        file_ids = dict.fromkeys(body.file_ids or ())
        audit.record(session, AuditEvent.COLLECTION_ADDED, collection.id, *file_ids, scope=scope)
        return _shape_stores(session, services, scope, [collection])[0]


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
        "description": collection.description,
        "usage_bytes": usage_bytes,
        "file_counts": shape_counts(counts),
        "status": status,
        **({"expires_after": {"anchor": "last_active_at", "days": days}} if days is not None else {}),
        "expires_at": int(ends_at) if ends_at is not None else None,
        "last_active_at": int(collection.last_active_at),
        "metadata": collection.attributes,
        "embedding_model": collection.embedding_model or default_embedding,
        "readers": collection.readers,
        "writers": collection.writers,
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
        "pages": sorted(set(pages)),
        "headings": list(chunk.headings),
    }


def _shape_evidence(evidence: Evidence) -> dict[str, Any]:
    """How likely the results bear on the query, as a chat weighs it, and the signals that this is weighed from."""
    signals = {name: round(value, 6) for name, value in evidence.signals.values().items()}
    return {"score": round(evidence.score, 6), "threshold": evidence.threshold, "signals": signals}


def _shape_scores(chunk: FoundChunk) -> dict[str, Any]:
    """Why a result stands where it does: null where a stage did not see it."""
    dense, bm25, rerank = chunk.dense_score, chunk.keyword_score, chunk.rerank_score
    return {
        "dense": None if dense is None else {"rank": chunk.dense_rank, "score": dense},
        "bm25": None if bm25 is None else {"rank": chunk.keyword_rank, "score": bm25},
        "fused": {"rank": chunk.fused_rank, "score": chunk.fused_score},
        "rerank": None if rerank is None else {"score": rerank},
        "filters": list(chunk.admitted_by),
    }
