"""/health, /ready and /metrics: for people and programs that watch over a running Strongroom."""

import asyncio
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Response
from sqlalchemy.exc import OperationalError

from app.access.audit import audited
from app.access.auth import NotOfServer, runs_server
from app.metrics import ApiMetrics
from app.routes.caller import Admin, Reader, UseServices
from app.services import Services
from app.upkeep.figures import StoredFigures, stored_figures
from retrieval.beats import SILENT_AFTER_S, living_workers
from retrieval.database import DatabaseUnavailable
from retrieval.scope import Scope
from retrieval.tables import AuditEvent
from retrieval.together import in_thread
from retrieval.verify import differences, repair
from serving.protocols import ModelUnavailable

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """This process answers; nothing else is said."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(services: UseServices) -> Response:
    """200 when every role can work, else 503; either way each role's state and the reason for it."""
    roles = await states_of_roles(services)
    is_ready = all(role["state"] == "ready" for role in roles.values())
    obstacles = services.retention.obstacles()
    modes = {"zero_data_retention": {"can_be_promised": not obstacles, "obstacles": obstacles}}
    body = {"ready": is_ready, "roles": roles, "modes": modes}
    return Response(orjson.dumps(body), 200 if is_ready else 503, media_type="application/json")


async def states_of_roles(services: Services) -> dict[str, dict[str, Any]]:
    database, worker = await asyncio.to_thread(_database_and_worker, services)
    models, engine = await asyncio.gather(_models(services), _engine(services))
    return {"database": database, "models": models, "engine": engine, "worker": worker}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(services: UseServices, scope: Reader) -> Response:
    """This role's, and those of the models server and of the engines as far as they answer.

    They tell what all tenants do together, so a key of the tenant that came with the server is needed.
    """
    await in_thread(_must_run_server, services, scope)
    stored, *of_others = await asyncio.gather(
        in_thread(_stored, services), _models_metrics(services), services.gateway.engine_metrics()
    )
    services.metrics.tell_stored(stored)
    content = b"".join([services.metrics.render(), *of_others])
    return Response(content, media_type=ApiMetrics.MEDIA_TYPE)


def _must_run_server(services: Services, scope: Scope) -> None:
    """Raises NotOfServer."""
    with services.database.read() as session:
        if not runs_server(session, scope):
            raise NotOfServer


def _stored(services: Services) -> StoredFigures | None:
    try:
        return stored_figures(services.storage.database, services.settings.storage.data_dir)
    except (OperationalError, OSError):
        return None


async def _models_metrics(services: Services) -> bytes:
    try:
        return await services.models.metrics()
    except ModelUnavailable:
        return b""


async def _models(services: Services) -> dict[str, Any]:
    try:
        models = await services.models.readiness()
    except ModelUnavailable as error:
        return {"state": "unavailable", "reason": str(error)}
    waiting = [
        f"{model.kind} {alias}: {model.reason or model.state}"
        for alias, model in models.items()
        if model.is_default and not model.can_answer
    ]
    state = "unavailable" if waiting else "ready"
    told = {alias: asdict(model) for alias, model in models.items()}
    return {"state": state, "reason": "; ".join(waiting) or "loaded", "models": told}


async def _engine(services: Services) -> dict[str, Any]:
    replicas = await services.gateway.health()
    down = [replica.reason for replica in replicas if replica.reason is not None]
    state = "unavailable" if len(down) == len(replicas) else "ready"
    reason = "; ".join(sorted(set(down))) or "all replicas answer"
    return {
        "state": state,
        "reason": reason,
        "replicas": len(replicas),
        "replicas_ready": len(replicas) - len(down),
    }


@router.get("/v1/verify")
def verify(services: UseServices, scope: Admin) -> dict[str, Any]:  # noqa: ARG001 - a key is needed
    """Compares this process's indexes, the tables and the blobs, for all tenants: ids only."""
    found = list(differences(services.storage.database, services.blobs, services.views))
    return {"object": "verification", "differences": found}


@router.post("/v1/verify/repair")
def repair_differences(services: UseServices, scope: Admin) -> dict[str, Any]:
    """Heals what SQL can heal, and tells what differs after that."""
    with audited(services.database, AuditEvent.REPAIRED, scope=scope):
        repair(services.storage.database, services.blobs, services.views)
    return verify(services, scope)


def _database_and_worker(services: Services) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        services.database.check()
    except DatabaseUnavailable as error:
        down = {"state": "unavailable", "reason": str(error)}
        return down, {"state": "unknown", "reason": "The database, where workers report, is unavailable."}
    with services.database.read() as session:
        alive = living_workers(session)
    database = {"state": "ready", "reason": services.database.engine.dialect.name}
    if not alive:
        return database, {
            "state": "unavailable",
            "reason": f"No worker reported in the last {SILENT_AFTER_S:.0f} s.",
        }
    return database, {"state": "ready", "reason": f"{alive} running"}
