"""/v1/audit: ours. What was done in the caller's tenant, and whether the log of it is whole."""

from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from sqlalchemy import Select, select

from app.access.audit import head_of, read_checkpoints
from app.access.retention import jwk_of
from app.routes.caller import Admin, Reader, UseServices
from app.routes.listing import listed
from app.services import Services
from app.storage.opening import checkpoint_file
from retrieval.audit_check import Verdict, verify_audit
from retrieval.catalog import Order
from retrieval.scope import Scope
from retrieval.tables import AuditEntry, AuditEvent

router = APIRouter(prefix="/v1/audit")

ID = "audit_"


Time = Annotated[float, Query(ge=0, le=10**11)]
"""Seconds since 1970."""


@dataclass(frozen=True)
class Chosen:
    """Which entries are asked for: None is all; `since` is among them, `until` is not."""

    event: AuditEvent | None = None
    key_id: str | None = None
    since: float | None = None
    until: float | None = None


def entries_chosen(scope: Scope, chosen: Chosen) -> Select[AuditEntry]:
    """Of the caller's tenant."""
    query = select(AuditEntry).where(AuditEntry.tenant_id == scope.tenant_id)
    if chosen.event is not None:
        query = query.where(AuditEntry.event == chosen.event.value)
    if chosen.key_id is not None:
        query = query.where(AuditEntry.key_id == chosen.key_id)
    if chosen.since is not None:
        query = query.where(AuditEntry.time >= chosen.since)
    if chosen.until is not None:
        query = query.where(AuditEntry.time < chosen.until)
    return query


@router.get("")
def list_entries(
    services: UseServices,
    scope: Admin,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    order: Order = Order.DESC,
    after: Annotated[str | None, Query(pattern=f"^{ID}[0-9]{{1,18}}$")] = None,
    event: AuditEvent | None = None,
    key_id: Annotated[str | None, Query(pattern="^[A-Za-z0-9_-]{1,40}$")] = None,
    since: Time | None = None,
    until: Time | None = None,
) -> dict[str, Any]:
    """Searches and answers come to it within a second of their reply, all else with it."""
    query = entries_chosen(scope, Chosen(event, key_id, since, until))
    rises = order is Order.ASC
    if after is not None:
        seq = int(after.removeprefix(ID))
        query = query.where(AuditEntry.seq > seq if rises else AuditEntry.seq < seq)
    query = query.order_by(AuditEntry.seq if rises else AuditEntry.seq.desc()).limit(limit + 1)
    with services.database.read() as session:
        rows = session.scalars(query).all()
    return listed([shape_entry(row) for row in rows[:limit]], has_more=len(rows) > limit)


@router.get("/verify")
def verify(services: UseServices, scope: Admin) -> dict[str, Any]:  # noqa: ARG001 - an admin asks
    """Of all tenants' entries: the number of the first that is not as it was written, and no more."""
    verdict, checkpoints = verified(services)
    problem = verdict.problem
    return {
        "object": "audit.verification",
        "entries": verdict.entries,
        "checkpoints": checkpoints,
        "problem": None if problem is None else {"seq": problem.seq, "reason": problem.reason},
    }


def verified(services: Services) -> tuple[Verdict, int]:
    """And against how many checkpoints."""
    path = checkpoint_file(services.settings)
    checkpoints = read_checkpoints(path) if path.exists() else []
    with services.storage.database.read() as session:
        return verify_audit(session, services.audit.key, checkpoints), len(checkpoints)


@router.get("/checkpoint")
def checkpoint(services: UseServices, scope: Admin) -> dict[str, Any]:  # noqa: ARG001 - an admin asks
    """Where the log stands, signed: to be kept elsewhere, for `strongroom audit verify --checkpoint`."""
    head = head_of(services.storage.database)
    told: dict[str, Any] = orjson.loads(head.line()) if head is not None else {}
    return {"object": "audit.checkpoint", **told}


@router.get("/key")
async def key(services: UseServices, scope: Reader) -> dict[str, Any]:  # noqa: ARG001 - a key is needed
    """The public key that receipts and checkpoints are signed with: a JWK set."""
    return {"keys": [jwk_of(services.audit.key)]}


def shape_entry(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": f"{ID}{entry.seq}",
        "object": "audit.entry",
        "seq": entry.seq,
        "time": entry.time,
        "key_id": entry.key_id,
        "event": entry.event,
        "outcome": entry.outcome,
        "objects": orjson.loads(entry.objects),
        "details": orjson.loads(entry.details),
        "hash": entry.hash,
    }
