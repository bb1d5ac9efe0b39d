"""/v1/vector_stores/{id}/generations: ours. A collection cut or embedded anew beside the one that answers."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path

from app.errors import BadRequest
from app.routes.body import Body
from app.routes.caller import Reader, UseServices, Writer
from app.routes.documents import Chunking, chunking_of
from app.routes.ids import StoreId
from app.routes.models import embedding_aliases
from app.services import Services
from retrieval import audit, generations
from retrieval.catalog import get_collection
from retrieval.generation_progress import GenerationStanding, list_generations
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Collection

router = APIRouter(prefix="/v1/vector_stores/{vector_store_id}/generations")

Number = Annotated[int, Path(ge=0, lt=2**31)]


class BeginGeneration(Body):
    """What is left out stays as it is."""

    embedding_model: str | None = None
    chunking_strategy: Chunking | None = None


class SwitchGeneration(Body):
    force: bool = False
    """Even if documents that can be found now are in progress or failed after it."""


@router.post("")
def begin(store_id: StoreId, body: BeginGeneration, services: UseServices, scope: Writer) -> dict[str, Any]:
    """Begins a rebuild. It answers as soon as it is complete; until then, what is answers."""
    with services.database.write() as session:
        collection = get_collection(session, scope, store_id)
        begun = generations.begin(
            session,
            scope,
            store_id,
            embedding_model=_embedding_model(services, collection, body.embedding_model),
            chunking=chunking_of(body.chunking_strategy) if body.chunking_strategy else collection.chunking,
            now=time.time(),
        )
        audit.record(session, AuditEvent.GENERATION_BEGUN, store_id, scope=scope, number=begun.number)
        shaped = _shape_all(services, list_generations(session, scope, store_id), store_id)
        return next(each for each in shaped if each["number"] == begun.number)


@router.get("")
def list_(store_id: StoreId, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        found = list_generations(session, scope, store_id)
    return {"object": "list", "data": _shape_all(services, found, store_id)}


@router.post("/{number}/switch")
def switch(
    store_id: StoreId, number: Number, body: SwitchGeneration, services: UseServices, scope: Writer
) -> dict[str, Any]:
    """Lets this generation answer. The one that did is kept, so that a rollback is a switch to that."""
    _make_ready(services, scope, store_id, number)
    with services.database.write() as session:
        generations.switch(session, scope, store_id, number, force=body.force, now=time.time())
        audit.record(session, AuditEvent.GENERATION_SWITCHED, store_id, scope=scope, number=number)
        return _shape_all(services, list_generations(session, scope, store_id), store_id)[0]


@router.delete("/{number}")
def discard(store_id: StoreId, number: Number, services: UseServices, scope: Writer) -> dict[str, Any]:
    with services.database.write() as session:
        generations.discard(session, scope, store_id, number)
        audit.record(session, AuditEvent.GENERATION_DELETED, store_id, scope=scope, number=number)
    return {
        "object": "vector_store.generation.deleted",
        "vector_store_id": store_id,
        "number": number,
        "deleted": True,
    }


def _make_ready(services: Services, scope: Scope, store_id: str, number: int) -> None:
    """Builds the index before the switch: what this process serves goes on without a pause, used before or not."""
    with services.database.read() as session:
        collection = get_collection(session, scope, store_id)
        generation = generations.find(session, collection, number)
        services.views.follow(session, generation)


def _embedding_model(services: Services, collection: Collection, asked: str | None) -> str:
    aliases = embedding_aliases(services)
    wanted = asked if asked is not None else collection.embedding_model or aliases[0]
    if wanted not in aliases:
        raise BadRequest(
            f"embedding_model must be one of {', '.join(aliases)}; it is '{wanted}'.", param="embedding_model"
        )
    return wanted


def _shape_all(services: Services, found: list[GenerationStanding], store_id: str) -> list[dict[str, Any]]:
    default = embedding_aliases(services)[0]
    return [_shape(each, store_id, default) for each in found]


def _shape(standing: GenerationStanding, store_id: str, default_embedding: str) -> dict[str, Any]:
    return {
        "object": "vector_store.generation",
        "vector_store_id": store_id,
        "number": standing.number,
        "state": standing.state.value if standing.state is not None else "active",
        "created_at": int(standing.created_at),
        "embedding_model": standing.embedding_model or default_embedding,
        "chunking_strategy": standing.chunking,
        "file_counts": {
            "completed": standing.completed,
            "in_progress": standing.in_progress,
            "failed": standing.failed,
            "total": standing.total,
        },
        "failures": [{"file_id": each.file_id, "message": each.message} for each in standing.failures],
        "waits_for": standing.waits_for,
    }
