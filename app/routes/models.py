"""/v1/models: what can be named as a model here."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request

from app.answers.chat import RAG_MODEL
from app.errors import ModelFixed, UnknownModel
from app.routes.caller import Admin, Reader, UseServices
from app.services import Services
from retrieval import catalog
from retrieval.catalog import CollectionMissing, PageRequest
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Collection
from serving.departure import unless_departed
from serving.generation.replicas import base_url
from serving.protocols import ServingError

router = APIRouter(prefix="/v1/models")

MOST_COLLECTIONS = 10_000
MOST_NAMED = 100
"""In an error's text."""
LONGEST_ASK_S = 1.0


@router.get("")
async def list_models(services: UseServices, scope: Reader) -> dict[str, Any]:
    collections = await asyncio.to_thread(_collections, services, scope)
    generation, others = await _generation(services), await _others(services)
    rag = [_rag(None, generation), *(_rag(each, generation) for each in collections)]
    return {"object": "list", "data": [*rag, *generation, *others]}


@router.get("/{name:path}")
async def get_model(name: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    generation = await _generation(services)
    if name == RAG_MODEL:
        return _rag(None, generation)
    if name.startswith(f"{RAG_MODEL}/"):
        collection = await asyncio.to_thread(_collection, services, scope, name.removeprefix(f"{RAG_MODEL}/"))
        if collection is not None:
            return {**_rag(collection, generation), "id": name}
    for model in [*generation, *await _others(services)]:
        if model["id"] == name:
            return model
    raise UnknownModel(name, await model_names(services, scope))


@router.delete("/{name:path}")
async def delete_model(name: str, request: Request, services: UseServices, scope: Admin) -> dict[str, Any]:
    """Of engines that came by `POST /v1/engines`: they go, when their last requests are done. All else stays."""
    await get_model(name, services, scope)
    serving = [engine for engine in await services.gateway.health() if name in engine.models]
    fixed = {base_url(url) for url in services.settings.engine_urls}
    if not serving or any(engine.url in fixed or len(engine.models) > 1 for engine in serving):
        raise ModelFixed(name)
    for engine in serving:
        async with services.audit.audited(
            AuditEvent.ENGINE_REMOVED, urlsplit(engine.url).netloc, scope=scope
        ):
            await unless_departed(request.receive, services.gateway.drain(engine.url))
    return {"id": name, "object": "model", "deleted": True}


async def model_names(services: Services, scope: Scope) -> list[str]:
    """`rag`, one `rag/…` for each collection of the scope, and the plain models."""
    engines = await engine_model_names(services)
    plain = [*engines, *embedding_aliases(services), *reranker_aliases(services)]
    collections = await asyncio.to_thread(_collection_names, services, scope)
    return [RAG_MODEL, *(f"{RAG_MODEL}/{name}" for name in collections), *plain]


async def engine_model_names(services: Services) -> Sequence[str]:
    """Those that ready engines serve: none while all are down."""
    return [model.id for model in await services.gateway.models()]


def embedding_aliases(services: Services) -> list[str]:
    """The default first."""
    return [model.alias for model in services.settings.models.embeddings]


def reranker_aliases(services: Services) -> list[str]:
    """The default first; none when reranking is off."""
    return [model.alias for model in services.settings.models.rerankers]


async def _generation(services: Services) -> list[dict[str, Any]]:
    shown = []
    for model in await services.gateway.models():
        sees = await services.generation.takes_images(model.id)
        speaks = model.id in services.settings.engine.speaking_models
        more = [*(["image_input"] if sees else []), *(["audio_output"] if speaks else [])]
        capabilities = ["chat.completions", "responses", "completions", *more]
        shown.append(_shape(model.id, capabilities, context_length=model.max_model_len))
    return shown


async def _others(services: Services) -> list[dict[str, Any]]:
    """Embedding and reranking models. What they read is told while the models role answers."""
    aliases = [(name, "embeddings") for name in embedding_aliases(services)]
    aliases += [(name, "rerank") for name in reranker_aliases(services)]
    return list(await asyncio.gather(*(_other(services, name, capability) for name, capability in aliases)))


async def _other(services: Services, name: str, capability: str) -> dict[str, Any]:
    found: dict[str, Any] = {"context_length": None}
    with suppress(ServingError, TimeoutError):
        async with asyncio.timeout(LONGEST_ASK_S):
            if capability == "embeddings":
                embedding = await services.models.embedder(name).describe()
                found = {"context_length": embedding.max_tokens, "dimensions": embedding.dimensions}
            else:
                found = {"context_length": (await services.models.reranker(name).describe()).max_tokens}
    return _shape(name, [capability], **found)


def _rag(collection: Collection | None, generation: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first generation model writes its answers."""
    capabilities = ["chat.completions", "responses", "file_search"]
    context_length = generation[0]["context_length"] if generation else None
    if collection is None:
        return _shape(RAG_MODEL, capabilities, context_length=context_length)
    return _shape(
        f"{RAG_MODEL}/{collection.name or collection.id}",
        capabilities,
        created=int(collection.created_at),
        context_length=context_length,
        vector_store={"id": collection.id, "name": collection.name},
    )


def _shape(name: str, capabilities: Sequence[str], *, created: int = 0, **more: Any) -> dict[str, Any]:
    """OpenAI's model, and beside it what it can do and how many tokens it reads."""
    told = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "strongroom",
        "shutdown_date": None,
    }
    return {**told, "capabilities": list(capabilities), **more}


def _collection(services: Services, scope: Scope, name_or_id: str) -> Collection | None:
    with services.database.read() as session, suppress(CollectionMissing):
        return catalog.find_collection(session, scope, name_or_id)
    return None


def _collections(services: Services, scope: Scope) -> list[Collection]:
    with services.database.read() as session:
        return catalog.list_collections(session, scope, PageRequest(limit=MOST_COLLECTIONS))


def _collection_names(services: Services, scope: Scope) -> list[str]:
    with services.database.read() as session:
        rows = catalog.list_collections(session, scope, PageRequest(limit=MOST_NAMED))
        return [row.name or row.id for row in rows]
