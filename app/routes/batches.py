"""/v1/batches: many requests from a file, run behind all others."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.routing import Match

from app.access.retention import must_not_keep
from app.answers.generation import CHAT_PATH
from app.errors import BadRequest
from app.routes.body import Body
from app.routes.caller import Reader, UseServices, Writer
from app.routes.chat import COMPLETIONS_PATH
from app.routes.files import LONGEST_LIFE_S, SHORTEST_LIFE_S
from app.routes.listing import listing, one_more
from app.routes.vector_stores import Metadata
from retrieval import audit, catalog, request_batches
from retrieval.catalog import PageRequest
from retrieval.tables import AuditEvent, Batch, BatchStatus

router = APIRouter(prefix="/v1/batches")

PURPOSE = "batch"
ENDPOINTS = (CHAT_PATH, "/v1/responses", COMPLETIONS_PATH, "/v1/embeddings")


def _page_of(limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None) -> PageRequest:
    return PageRequest(limit=limit, after=after)


Page = Annotated[PageRequest, Depends(_page_of)]


class OutputExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_LIFE_S, le=LONGEST_LIFE_S)


class CreateBatch(Body):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


@router.post("")
def create_batch(request: Request, body: CreateBatch, services: UseServices, scope: Writer) -> dict[str, Any]:
    """The file is read line by line soon after; what is wrong in it stands in `errors` then."""
    must_not_keep(scope, "input_file_id")
    taken = [endpoint for endpoint in ENDPOINTS if _is_served(request, endpoint)]
    if body.endpoint not in taken:
        raise BadRequest(f"endpoint must be one of {', '.join(taken)}.", param="endpoint")
    expires = body.output_expires_after
    with services.database.write() as session:
        file = catalog.get_file(session, scope, body.input_file_id)
        if file.purpose != PURPOSE:
            raise BadRequest(
                f"The file '{file.id}' was uploaded with the purpose '{file.purpose}', not '{PURPOSE}'.",
                param="input_file_id",
            )
        batch = request_batches.create_batch(
            session,
            scope,
            endpoint=body.endpoint,
            input_file_id=file.id,
            attributes=body.metadata or {},
            output_life_s=expires.seconds if expires else None,
            now=time.time(),
        )
        audit.record(session, AuditEvent.BATCH_ADDED, batch.id, file.id, scope=scope)
        return shape(batch)


@router.get("")
def list_batches(services: UseServices, scope: Reader, page: Page) -> dict[str, Any]:
    with services.database.read() as session:
        return listing(request_batches.list_batches(session, scope, one_more(page)), page, shape)


@router.get("/{batch_id}")
def get_batch(batch_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        return shape(request_batches.get_batch(session, scope, batch_id))


@router.post("/{batch_id}/cancel")
def cancel_batch(batch_id: str, services: UseServices, scope: Writer) -> dict[str, Any]:
    """What is answered by then becomes the output file. A batch that has ended stays as it is."""
    with services.database.write() as session:
        audit.record(session, AuditEvent.BATCH_CANCELLED, batch_id, scope=scope)
        return shape(request_batches.cancel_batch(session, scope, batch_id, now=time.time()))


def _is_served(request: Request, path: str) -> bool:
    asked = {**request.scope, "path": path, "raw_path": path.encode(), "root_path": ""}
    return any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)


def shape(batch: Batch) -> dict[str, Any]:
    times = {
        f"{status.value}_at": int(batch.reached[status.value]) if status.value in batch.reached else None
        for status in BatchStatus
        if status is not BatchStatus.VALIDATING
    }
    shown = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": None if batch.errors is None else {"object": "list", "data": batch.errors},
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.expires_at),
        **times,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": _usage(batch),
        "metadata": batch.attributes,
    }
    # OpenAI's description has no null here.
    return {name: value for name, value in shown.items() if value is not None}


def _usage(batch: Batch) -> dict[str, Any]:
    used = batch.usage
    read, written = used.get("input_tokens", 0), used.get("output_tokens", 0)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": used.get("cached_tokens", 0)},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": used.get("reasoning_tokens", 0)},
        "total_tokens": read + written,
    }
