"""What every route asks for: the services, and the scope of the caller's key."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import Depends, Request

from app.auth import KeyInvalid, NotAllowed
from app.services import Services
from retrieval.scope import Scope
from retrieval.tables import Role
from serving.protocols import Lane


# Async, as a plain dependency costs a thread's turn for each request.
async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def scope_of(request: Request) -> Scope:
    """Any valid key. Raises KeyInvalid."""
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not key.strip():
        raise KeyInvalid
    services = await services_of(request)
    return await services.keys.scope_of(key.strip())


async def writing_scope_of(request: Request) -> Scope:
    """A key that may add and delete. Raises KeyInvalid, NotAllowed."""
    scope = await scope_of(request)
    if not scope.may_write:
        raise NotAllowed(Role.WRITER)
    return scope


async def recheck_of(request: Request) -> Callable[[], Awaitable[Scope]]:
    """What a reply that goes on for long calls again and again: a revoked key hears no more. Raises KeyInvalid."""
    return partial(scope_of, request)


def deadline_of(request: Request, *, longest_s: float) -> float:
    """How long the caller waits for a reply that comes whole: OpenAI's own clients tell, in seconds."""
    try:
        told = float(request.headers.get("x-stainless-read-timeout", longest_s))
    except ValueError:
        return longest_s
    return min(told, longest_s) if told > 0 else longest_s


def lane_of(service_tier: str | None) -> Lane:
    """OpenAI's cheap and slow tier stands behind people."""
    return Lane.BULK if service_tier == "flex" else Lane.INTERACTIVE


UseServices = Annotated[Services, Depends(services_of)]
Reader = Annotated[Scope, Depends(scope_of)]
Writer = Annotated[Scope, Depends(writing_scope_of)]
Recheck = Annotated[Callable[[], Awaitable[Scope]], Depends(recheck_of)]
