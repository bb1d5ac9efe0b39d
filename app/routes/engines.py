"""/v1/engines: the generation engines behind the gateway, and their coming and going without a restart."""

from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import Field

from app.errors import BadRequest, EngineMissing
from app.routes.body import Body
from app.routes.caller import Admin, UseServices
from app.services import Services
from retrieval.tables import AuditEvent
from serving.departure import unless_departed
from serving.generation.gateway import Replica

router = APIRouter(prefix="/v1/engines")


class EngineBody(Body):
    url: str = Field(min_length=1, max_length=2_000)
    token: str | None = Field(None, max_length=10_000)
    """Sent to this engine; without it nothing is. `engine.token` stays with the engines of the settings."""


@router.get("")
async def list_engines(services: UseServices, scope: Admin) -> dict[str, Any]:  # noqa: ARG001 - a key is needed
    return {"object": "list", "data": await _engines(services)}


@router.post("")
async def add_engine(body: EngineBody, services: UseServices, scope: Admin) -> dict[str, Any]:
    """From now on it gets its share of the requests, until this process ends; `engine.url` is what lasts."""
    try:
        async with services.audit.audited(AuditEvent.ENGINE_ADDED, _host(body.url), scope=scope):
            services.gateway.add(Replica(body.url, body.token or None))
    except ValueError as error:
        raise BadRequest(f"url: {error}.", param="url") from error
    return (await _engines(services))[-1]


@router.delete("")
async def remove_engine(url: str, request: Request, services: UseServices, scope: Admin) -> dict[str, Any]:
    """Answers when the engine's last request is done. A caller who leaves before that leaves the engine in."""
    try:
        async with services.audit.audited(AuditEvent.ENGINE_REMOVED, _host(url), scope=scope):
            await unless_departed(request.receive, services.gateway.drain(url))
    except KeyError as error:
        raise EngineMissing(url, [engine["url"] for engine in await _engines(services)]) from error
    except ValueError as error:
        raise BadRequest(f"url: {error}.", param="url") from error
    return {"object": "engine.deleted", "url": url, "deleted": True}


def _host(url: str) -> str:
    """Without the credentials that an address may hold. Raises ValueError."""
    return urlsplit(url).netloc.rpartition("@")[2][:200]


async def _engines(services: Services) -> list[dict[str, Any]]:
    return [
        {
            "object": "engine",
            "url": replica.url,
            "ready": replica.reason is None,
            "reason": replica.reason,
            "models": list(replica.models),
            "in_flight": replica.in_flight,
        }
        for replica in await services.gateway.health()
    ]
