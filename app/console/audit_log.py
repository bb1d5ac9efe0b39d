"""The audit log in the console: who did what and when, whether the log is whole, and a copy of it to keep."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from app.console.session import SignedInAdmin
from app.console.views import ConsoleRoute, fragment, is_fragment, read_time, show_minute, views_of
from app.errors import BadRequest
from app.routes.audit import Chosen, entries_chosen, shape_entry, verified
from app.routes.caller import UseServices
from app.services import Services
from retrieval.scope import Scope
from retrieval.tables import AuditEntry, AuditEvent, Key

router = APIRouter(prefix="/console/admin/audit", include_in_schema=False, route_class=ConsoleRoute)

ROWS = 50
WRITTEN_AT_ONCE = 1_000


def _chosen(
    event: str = "",
    key_id: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{0,40}$")] = "",
    since: Annotated[str, Query(max_length=40)] = "",
    until: Annotated[str, Query(max_length=40)] = "",
) -> Chosen:
    """As a form sends it: texts, which are empty where nothing was chosen."""
    try:
        chosen = AuditEvent(event) if event else None
    except ValueError as error:
        raise BadRequest("There is no such event. Choose one of the list.", param="event") from error
    return Chosen(chosen, key_id or None, read_time(since, param="since"), read_time(until, param="until"))


Asked = Annotated[Chosen, Depends(_chosen)]


@router.get("")
def audit_page(
    request: Request,
    services: UseServices,
    visitor: SignedInAdmin,
    chosen: Asked,
    before: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> Response:
    """The whole page, or for htmx its table. The newest first; `before` is the number of an entry."""
    query = entries_chosen(visitor.scope, chosen).order_by(AuditEntry.seq.desc()).limit(ROWS + 1)
    if before:
        query = query.where(AuditEntry.seq < before)
    with services.database.read() as session:
        rows = session.scalars(query).all()
        shown = rows[:ROWS]
        ids = {row.key_id for row in shown if row.key_id is not None}
        keys = session.execute(select(Key.id, Key.name).where(Key.id.in_(ids)))
        names = {row.id: row.name for row in keys}
    told: dict[str, Any] = {
        "entries": [shape_entry(row) for row in shown],
        "names": names,
        "chosen": chosen,
        "address": _address(chosen),
        "before": before,
        "next": shown[-1].seq if len(rows) > ROWS else None,
    }
    if is_fragment(request):
        return fragment(request, "audit_table.html", **told)
    return views_of(request).page("audit.html", visitor, events=list(AuditEvent), **told)


@router.get("/verify")
def verify(request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:  # noqa: ARG001
    began = time.monotonic()
    verdict, checkpoints = verified(services)
    return fragment(
        request,
        "audit_verdict.html",
        verdict=verdict,
        checkpoints=checkpoints,
        seconds=time.monotonic() - began,
    )


@router.get("/export")
def export(services: UseServices, visitor: SignedInAdmin, chosen: Asked) -> Response:
    """What was chosen, oldest first: one JSON object a line."""
    name = f"audit-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.jsonl"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    lines = _lines(services, visitor.scope, chosen)
    return StreamingResponse(lines, media_type="application/x-ndjson", headers=headers)


def _lines(services: Services, scope: Scope, chosen: Chosen) -> Iterator[bytes]:
    """A part at a time, so that a slow client holds no reader of the database."""
    query = entries_chosen(scope, chosen).order_by(AuditEntry.seq).limit(WRITTEN_AT_ONCE)
    seq = 0
    while True:
        with services.database.read() as session:
            rows = session.scalars(query.where(AuditEntry.seq > seq)).all()
        yield b"".join(orjson.dumps(shape_entry(row)) + b"\n" for row in rows)
        if len(rows) < WRITTEN_AT_ONCE:
            return
        seq = rows[-1].seq


def _address(chosen: Chosen) -> dict[str, str]:
    """The same choice, for a link."""
    return {
        "event": chosen.event.value if chosen.event is not None else "",
        "key_id": chosen.key_id or "",
        "since": show_minute(chosen.since) if chosen.since is not None else "",
        "until": show_minute(chosen.until) if chosen.until is not None else "",
    }
