"""Server-sent events that tell how far ingestion is: of one file, of a file batch, of a whole vector store.

`progress` whenever something changed, `done` at the end, `error` when there is no end to wait for.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.access.auth import KeyInvalid
from app.edge.streaming import StreamedReply, with_first
from app.errors import error_body
from app.routes import file_batches
from app.routes.caller import Recheck, UseServices
from app.routes.documents import shape_counts, shape_documents
from app.routes.ids import BatchId, FileId, StoreId
from retrieval import batches, catalog
from retrieval.catalog import NotFound
from retrieval.progress import running_documents
from retrieval.scope import Scope
from retrieval.tables import DocumentStatus
from retrieval.together import in_thread

router = APIRouter(prefix="/v1/vector_stores/{vector_store_id}")

EVENTS = "text/event-stream"
LOOK_S = 0.5
LOOK_SHARE = 0.1
"""Of the time, at most, goes into looking: a store of many documents takes longer to count."""
KEEP_ALIVE_S = 15.0
MOST_RUNNING = 50
"""Documents in hand that are told of one by one: more than any worker has."""
FOLLOWS_THE_CLOCK = ("rate", "seconds_left")

Look = Callable[[Scope], "Seen"]


@dataclass(frozen=True)
class Seen:
    """What one look found."""

    body: dict[str, Any]
    is_done: bool


@router.get("/files/{file_id}/events", response_class=StreamedReply, status_code=200)
async def document_events(
    store_id: StoreId, file_id: FileId, services: UseServices, recheck: Recheck
) -> StreamedReply:
    """The vector store file, as GET shows it."""

    def look(scope: Scope) -> Seen:
        with services.database.read() as session:
            document = catalog.get_document(session, scope, store_id, file_id)
            body = shape_documents(session, scope, [document])[0]
            return Seen(body, is_done=document.status is not DocumentStatus.IN_PROGRESS)

    return await _reply(look, recheck)


@router.get("/file_batches/{batch_id}/events", response_class=StreamedReply, status_code=200)
async def batch_events(
    store_id: StoreId, batch_id: BatchId, services: UseServices, recheck: Recheck
) -> StreamedReply:
    """The file batch, as GET shows it, with the files that are in hand now as `running`."""

    def look(scope: Scope) -> Seen:
        with services.database.read() as session:
            batch = batches.get_batch(session, scope, store_id, batch_id)
            counts = batches.count_batch(session, scope, batch)
            running = _running(session, scope, store_id, batch_id=batch_id)
            body = {**file_batches.shape(batch, counts), "running": running}
            return Seen(body, is_done=not counts.get(DocumentStatus.IN_PROGRESS))

    return await _reply(look, recheck)


@router.get("/events", response_class=StreamedReply, status_code=200)
async def store_events(store_id: StoreId, services: UseServices, recheck: Recheck) -> StreamedReply:
    """The vector store's file_counts, with the files that are in hand now as `running`."""

    def look(scope: Scope) -> Seen:
        with services.database.read() as session:
            catalog.get_collection(session, scope, store_id)
            counts = catalog.count_documents(session, scope, [store_id])[store_id]
            body = {
                "id": store_id,
                "object": "vector_store.progress",
                "file_counts": shape_counts(counts),
                "running": _running(session, scope, store_id, batch_id=None),
            }
            return Seen(body, is_done=not counts.get(DocumentStatus.IN_PROGRESS))

    return await _reply(look, recheck)


def _running(session: Session, scope: Scope, store_id: str, *, batch_id: str | None) -> list[dict[str, Any]]:
    documents = running_documents(session, scope, store_id, batch_id=batch_id, limit=MOST_RUNNING)
    return shape_documents(session, scope, documents)


async def _reply(look: Look, recheck: Callable[[], Awaitable[Scope]]) -> StreamedReply:
    # Its first look comes before the reply, so that what is not there is a plain 404.
    events = await with_first(_events(look, recheck))
    # A proxy that collects a reply before it passes it on would make the events useless.
    return StreamedReply(events, media_type=EVENTS, headers={"X-Accel-Buffering": "no"})


async def _events(look: Look, recheck: Callable[[], Awaitable[Scope]]) -> AsyncGenerator[bytes]:
    told: object = None
    told_at = 0.0
    while True:
        began = time.monotonic()
        try:
            seen = await in_thread(look, await recheck())
        except (NotFound, KeyInvalid, OperationalError) as error:
            if told is None:
                raise
            yield b"event: error\ndata: " + _last_words(error) + b"\n\n"
            return
        if seen.is_done:
            yield _event("done", seen.body)
            return
        now = time.monotonic()
        facts = _facts(seen.body)
        if facts != told:
            told, told_at = facts, now
            yield _event("progress", seen.body)
        elif now - told_at >= KEEP_ALIVE_S:
            told_at = now
            yield b": still here\n\n"
        await asyncio.sleep(max(LOOK_S, (now - began) / LOOK_SHARE))


def _facts(told: Any) -> Any:
    """Without the figures that change by themselves as time goes by."""
    match told:
        case dict():
            return {name: _facts(each) for name, each in told.items() if name not in FOLLOWS_THE_CLOCK}
        case list():
            return [_facts(each) for each in told]
        case _:
            return told


def _event(name: str, body: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"


def _last_words(error: Exception) -> bytes:
    if isinstance(error, OperationalError):
        return error_body("The database cannot be reached. Try again soon.", "server_error")
    return error_body(str(error), "invalid_request_error")
