"""/v1/models: what can be named as a model here."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from app.chat import RAG_MODEL
from app.errors import UnknownModel
from app.routes.caller import Reader, UseServices
from app.services import Services
from retrieval import catalog
from retrieval.catalog import PageRequest
from retrieval.scope import Scope

router = APIRouter(prefix="/v1/models")

MOST_COLLECTIONS = 100


@router.get("")
async def list_models(services: UseServices, scope: Reader) -> dict[str, Any]:
    return {"object": "list", "data": [shape(name) for name in await model_names(services, scope)]}


@router.get("/{name:path}")
async def get_model(name: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    names = await model_names(services, scope)
    if name not in names:
        raise UnknownModel(name, names)
    return shape(name)


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


def shape(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "strongroom"}


def _collection_names(services: Services, scope: Scope) -> list[str]:
    with services.database.read() as session:
        rows = catalog.list_collections(session, scope, PageRequest(limit=MOST_COLLECTIONS))
        return [row.name or row.id for row in rows]
