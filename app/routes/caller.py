"""What every route asks for: the services, and the scope of the caller's key."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from app.access.auth import KeyInvalid, NotAllowed
from app.access.people import is_token
from app.access.retention import NONE, RETENTION_HEADER, RetentionForbids
from app.batches.inside import KEY_ID
from app.errors import BadRequest
from app.services import Services
from retrieval.row_security import act_for
from retrieval.scope import Scope
from retrieval.tables import Role
from serving.protocols import Lane


# Async, as a plain dependency costs a thread's turn for each request.
async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def scope_of(request: Request) -> Scope:
    """Any valid key, or a person's token. Raises KeyInvalid, and what `_keeping_nothing` raises."""
    return await noted(request, await services_of(request), await _scope_of_key(request))


async def noted(request: Request, services: Services, scope: Scope) -> Scope:
    """The scope as it holds for this request, whose key is entered into the audit log."""
    act_for(scope.tenant_id)
    services.audit.key_used(scope)
    request.state.asked_by = scope  # Should it be refused something.
    if scope.keeps_nothing or RETENTION_HEADER in request.headers:
        return await _keeping_nothing(request, services, scope)
    return scope


async def _scope_of_key(request: Request) -> Scope:
    if (key_id := request.scope.get(KEY_ID)) is not None:
        services = await services_of(request)
        return await asyncio.to_thread(services.keys.scope_of_id, key_id)
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not key.strip():
        raise KeyInvalid
    services = await services_of(request)
    if services.people is not None and is_token(key.strip()):
        return await services.people.scope_of(key.strip())
    return await services.keys.scope_of(key.strip())


async def _keeping_nothing(request: Request, services: Services, scope: Scope) -> Scope:
    """Zero data retention, as the key, its tenant or the request wants it; the reply carries the receipt.

    Raises BadRequest, RetentionForbids, RetentionUnavailable, AuditUnavailable.
    """
    if request.headers.get(RETENTION_HEADER, NONE) != NONE:
        raise BadRequest(f"{RETENTION_HEADER} can only be '{NONE}'.", param=RETENTION_HEADER)
    if KEY_ID in request.scope:
        raise RetentionForbids("batch")
    scope = replace(scope, keeps_nothing=True)
    if not hasattr(request.state, "receipt"):
        request.state.receipt = await services.retention.receipt(scope, request.state.request_id)
    return scope


class KeyWith(SecurityBase):
    """A key of at least this role: what a route asks for, and what the description of the API says that it asks."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.scheme_name = "key"
        self.model = HTTPBearer()

    async def __call__(self, request: Request) -> Scope:
        """Raises KeyInvalid, NotAllowed, QuotaExceeded."""
        scope = await scope_of(request)
        if not scope.may_act_as(self.role):
            raise NotAllowed(self.role)
        await admit(request, await services_of(request), scope)
        return scope


async def admit(request: Request, services: Services, scope: Scope) -> None:
    """Counts the request, and its reply, against the quotas of its key. Raises QuotaExceeded."""
    if bounds := services.keys.bounds_of(scope):
        await services.limiter.admit(bounds, request.scope)


def deadline_of(request: Request, *, longest_s: float) -> float:
    """How long from now the caller still waits for a reply that comes whole: OpenAI's own clients tell, in seconds."""
    try:
        told = float(request.headers.get("x-stainless-read-timeout", longest_s))
    except ValueError:
        told = longest_s
    now = time.monotonic()
    waited_s = now - getattr(request.state, "arrived_at", now)
    return (min(told, longest_s) if told > 0 else longest_s) - waited_s


def lane_of(service_tier: str | None) -> Lane:
    """OpenAI's cheap and slow tier stands behind people, and batches behind that."""
    return _LANES.get(service_tier or "", Lane.INTERACTIVE)


_LANES = {"flex": Lane.BULK, "batch": Lane.BACKGROUND}

UseServices = Annotated[Services, Depends(services_of)]
READING, WRITING, ADMINISTERING = KeyWith(Role.READER), KeyWith(Role.WRITER), KeyWith(Role.ADMIN)
Reader = Annotated[Scope, Security(READING, scopes=[Role.READER])]
Writer = Annotated[Scope, Security(WRITING, scopes=[Role.WRITER])]
Admin = Annotated[Scope, Security(ADMINISTERING, scopes=[Role.ADMIN])]


# The key is looked at before, too: what a route needs stands in its arguments.
async def recheck_of(request: Request, _: Reader) -> Callable[[], Awaitable[Scope]]:
    """What a reply that goes on for long calls again and again: a revoked key hears no more, and one whose groups
    have changed no longer the same. Raises KeyInvalid.
    """
    return partial(scope_of, request)


Recheck = Annotated[Callable[[], Awaitable[Scope]], Depends(recheck_of)]
