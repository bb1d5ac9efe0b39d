"""Documents in the console: collections, their documents as they come in, and what is done to many at once."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from app.access.auth import KeyInvalid
from app.console import uploads
from app.console.evidence import CollectionId
from app.console.session import SignedIn, SignedInWriter, visitor_of
from app.console.views import ConsoleRoute, Views, is_fragment, views_of
from app.edge.streaming import StreamedReply
from app.errors import BadRequest
from app.routes.caller import UseServices
from app.routes.progress import EVENTS, KEEP_ALIVE_S, LOOK_S, LOOK_SHARE
from app.routes.vector_stores import CreateStore, make_store
from app.services import Services
from retrieval import audit, batches, catalog
from retrieval.catalog import NotFound, Order, PageRequest
from retrieval.document_list import Listed, Sort, Wanted, list_named, list_sorted, place_of
from retrieval.progress import Standing, standings
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Document, DocumentStatus
from retrieval.together import in_thread

router = APIRouter(prefix="/console/collections", include_in_schema=False, route_class=ConsoleRoute)

ROWS = 50
MOST_COLLECTIONS = 1000
MOST_CHOSEN = 1000
CHANGED_AT_ONCE = 50
"""Files in one transaction, so that others get their turn."""
RETRIED = (DocumentStatus.FAILED, DocumentStatus.CANCELLED)

Change = Callable[[Services, Scope, str, Sequence[str]], None]


@router.get("")
def collections_page(request: Request, services: UseServices, visitor: SignedIn) -> Response:
    with services.database.read() as session:
        page = PageRequest(limit=MOST_COLLECTIONS)
        rows = catalog.list_collections(session, visitor.scope, page)
        ids = [row.id for row in rows]
        counts = catalog.count_documents(session, visitor.scope, ids)
        usage = catalog.usage_bytes(session, visitor.scope, ids)
    return views_of(request).page(
        "collections.html", visitor, collections=rows, counts=counts, usage=usage, states=DocumentStatus
    )


@router.post("")
def create_collection(
    services: UseServices, visitor: SignedInWriter, name: Annotated[str, Form(min_length=1, max_length=256)]
) -> Response:
    made = make_store(CreateStore(name=name.strip()), services, visitor.scope)
    return Response(headers={"HX-Redirect": f"/console/collections/{made['id']}"})


def _wanted(
    status: str = "",
    named: Annotated[str, Query(max_length=255)] = "",
    sort: Sort = Sort.NEWEST,
    after: Annotated[str, Query(max_length=2000)] = "",
) -> Wanted:
    try:
        value, row_id = orjson.loads(after) if after else (None, 0)
        chosen = DocumentStatus(status) if status else None
    except (ValueError, TypeError) as error:
        raise BadRequest("This list cannot be shown so. Begin with its first page.", param="after") from error
    return Wanted(chosen, named, sort, (value, int(row_id)) if after else None)


Asked = Annotated[Wanted, Depends(_wanted)]


@router.get("/{collection_id}")
def collection_page(
    collection_id: CollectionId, request: Request, services: UseServices, visitor: SignedIn, wanted: Asked
) -> Response:
    """The whole page, or for htmx its table."""
    with services.database.read() as session:
        collection = catalog.get_collection(session, visitor.scope, collection_id)
        listed = list_sorted(session, visitor.scope, collection_id, wanted, limit=ROWS + 1)
    shown = listed[:ROWS]
    told = {
        **_look(services, visitor.scope, collection_id, [each.document.file_id for each in shown]).told(),
        "rows": shown,
        "collection": collection,
        "wanted": wanted,
        "after": orjson.dumps(wanted.after).decode() if wanted.after else "",
        "sorts": list(Sort),
        "next": orjson.dumps(place_of(shown[-1], wanted.sort)).decode() if len(listed) > ROWS else None,
        "may_write": visitor.scope.may_write,
        "part_bytes": uploads.PART_BYTES,
    }
    views = views_of(request)
    if is_fragment(request):
        return Response(views.render("documents_table.html", **told), media_type="text/html; charset=utf-8")
    return views.page("collection.html", visitor, **told)


@router.delete("/{collection_id}")
def delete_collection(
    collection_id: CollectionId, services: UseServices, visitor: SignedInWriter
) -> Response:
    """With its files, but for those that other collections hold."""
    while True:
        with services.database.read() as session:
            first = PageRequest(limit=CHANGED_AT_ONCE, order=Order.ASC)
            rows = catalog.list_documents(session, visitor.scope, collection_id, first)
        if not rows:
            break
        _delete(services, visitor.scope, collection_id, [row.file_id for row in rows])
    with services.database.write() as session:
        catalog.delete_collection(session, visitor.scope, collection_id)
        audit.record(session, AuditEvent.COLLECTION_DELETED, collection_id, scope=visitor.scope)
    services.views.forget(collection_id)
    return Response(headers={"HX-Redirect": "/console/collections"})


@router.post("/{collection_id}/selected/{action}")
def act_on_selected(
    collection_id: CollectionId,
    action: str,
    services: UseServices,
    visitor: SignedInWriter,
    file: Annotated[list[str], Form(max_length=MOST_CHOSEN)] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    if not file:
        raise BadRequest("Choose documents first: tick the boxes at their names.", param="file")
    change, _ = _action(action)
    for first in range(0, len(file), CHANGED_AT_ONCE):
        change(services, visitor.scope, collection_id, file[first : first + CHANGED_AT_ONCE])
    return Response(status_code=204, headers={"HX-Trigger": "documents-changed"})


@router.post("/{collection_id}/matching/{action}")
def act_on_matching(
    collection_id: CollectionId,
    action: str,
    services: UseServices,
    visitor: SignedInWriter,
    status: Annotated[str, Form()] = "",
    named: Annotated[str, Form(max_length=255)] = "",
) -> Response:
    """All that a list shows, on all of its pages."""
    change, changed = _action(action)
    # The newest first: what is retried is newer than all of them, and is not met again.
    wanted = _wanted(status, named, Sort.NEWEST)
    while True:
        with services.database.read() as session:
            rows = list_sorted(session, visitor.scope, collection_id, wanted, limit=CHANGED_AT_ONCE)
            place = place_of(rows[-1], wanted.sort) if rows else None
        if not rows:
            break
        file_ids = [row.document.file_id for row in rows if row.document.status in changed]
        change(services, visitor.scope, collection_id, file_ids)
        wanted = replace(wanted, after=place)
    return Response(status_code=204, headers={"HX-Trigger": "documents-changed"})


@router.get("/{collection_id}/live")
async def live(
    collection_id: CollectionId,
    request: Request,
    services: UseServices,
    visitor: SignedIn,
    file: Annotated[list[str], Query(max_length=ROWS)] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Server-sent events: `rows` with those of these documents that changed, `done` when none is in progress."""

    async def look() -> _Seen:
        await visitor_of(request)
        return await in_thread(_look, services, visitor.scope, collection_id, file)

    events = _events(look, partial(_rendered, views_of(request), collection_id, visitor.scope.may_write))
    return StreamedReply(events, media_type=EVENTS, headers={"X-Accel-Buffering": "no"})


@dataclass(frozen=True)
class _Seen:
    """What a table shows of its documents now."""

    counts: dict[DocumentStatus, int]
    rows: list[Listed]
    standings: dict[int, Standing]

    @property
    def in_progress(self) -> int:
        return self.counts.get(DocumentStatus.IN_PROGRESS, 0)

    def told(self) -> dict[str, Any]:
        return {"counts": self.counts, "standings": self.standings, "statuses": list(DocumentStatus)}


def _look(services: Services, scope: Scope, collection_id: str, file_ids: Sequence[str]) -> _Seen:
    with services.database.read() as session:
        catalog.get_collection(session, scope, collection_id)
        counts = catalog.count_documents(session, scope, [collection_id])[collection_id]
        rows = list_named(session, scope, collection_id, file_ids)
        found = standings(session, scope, [row.document for row in rows], now=time.time())
    return _Seen(counts, rows, found)


def _rendered(views: Views, collection_id: str, may_write: bool, seen: _Seen) -> dict[str, str]:
    """Each row, and the counts, by its name on the page."""
    rows = {
        row.document.file_id: views.render(
            "document_row.html",
            row=row,
            standing=seen.standings[row.document.id],
            collection_id=collection_id,
            may_write=may_write,
            is_news=True,
        )
        for row in seen.rows
    }
    told = {"counts": seen.counts, "collection_id": collection_id, "is_news": True}
    return {**rows, "counts": views.render("document_counts.html", statuses=list(DocumentStatus), **told)}


async def _events(
    look: Callable[[], Any], rendered: Callable[[_Seen], dict[str, str]]
) -> AsyncGenerator[bytes]:
    shown: dict[str, str] = {}
    told_at = time.monotonic()
    while True:
        began = time.monotonic()
        try:
            seen = await look()
        except (NotFound, KeyInvalid, OperationalError):
            # The page asks again, and is told why.
            yield _event("done", "")
            return
        now_shown = rendered(seen)
        changed = [written for name, written in now_shown.items() if shown.get(name) != written]
        if changed:
            yield _event("rows", "".join(changed))
            shown, told_at = now_shown, began
        if not seen.in_progress:
            yield _event("done", "")
            return
        if began - told_at > KEEP_ALIVE_S:
            yield b": still here\n\n"
            told_at = began
        await asyncio.sleep(max(LOOK_S, (time.monotonic() - began) / LOOK_SHARE))


def _event(name: str, content: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in content.splitlines() or [""])
    return f"event: {name}\n{lines}\n".encode()


def _action(name: str) -> tuple[Change, Collection[DocumentStatus]]:
    """And the documents that it changes."""
    actions: dict[str, tuple[Change, Collection[DocumentStatus]]] = {
        "delete": (_delete, tuple(DocumentStatus)),
        "retry": (_retry, RETRIED),
        "cancel": (_cancel, (DocumentStatus.IN_PROGRESS,)),
    }
    if name not in actions:
        raise BadRequest(f"There is no action '{name}'.", param="action")
    return actions[name]


def _delete(services: Services, scope: Scope, collection_id: str, file_ids: Sequence[str]) -> None:
    """Takes them out, and deletes those files that are in no other collection."""
    orphans: list[str] = []
    with services.database.write() as session:
        for file_id in file_ids:
            try:
                catalog.delete_document(session, scope, collection_id, file_id)
            except NotFound:
                continue  # It went with an archive that it was in, or somebody was quicker.
            audit.record(session, AuditEvent.DOCUMENT_DELETED, collection_id, file_id, scope=scope)
            session.flush()
            if session.scalar(select(Document.id).where(Document.file_id == file_id).limit(1)) is None:
                orphans += catalog.delete_file(session, scope, file_id)
                audit.record(session, AuditEvent.FILE_DELETED, file_id, scope=scope)
    for blob_id in orphans:
        services.blobs.remove(blob_id)


def _retry(services: Services, scope: Scope, collection_id: str, file_ids: Sequence[str]) -> None:
    """Those that failed or were cancelled; others stay as they are."""
    with services.database.write() as session:
        catalog.lock_tenant(session, scope.tenant_id)
        collection = catalog.lock_collection(session, scope, collection_id)
        for file_id in file_ids:
            try:
                document = catalog.get_document(session, scope, collection_id, file_id)
            except NotFound:
                continue  # Somebody deleted it.
            if document.status not in RETRIED:
                continue
            catalog.attach_file(
                session,
                scope,
                collection=collection,
                file=catalog.get_file(session, scope, file_id),
                attributes=document.attributes,
                chunking=document.chunking,
                now=time.time(),
            )
            audit.record(session, AuditEvent.DOCUMENT_ADDED, collection_id, file_id, scope=scope)


def _cancel(services: Services, scope: Scope, collection_id: str, file_ids: Sequence[str]) -> None:
    with services.database.write() as session:
        for file_id in file_ids:
            try:
                batches.cancel_document(session, scope, collection_id, file_id)
            except NotFound:
                continue
            audit.record(session, AuditEvent.DOCUMENT_CHANGED, collection_id, file_id, scope=scope)
