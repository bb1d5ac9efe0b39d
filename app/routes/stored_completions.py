"""/v1/chat/completions/…: those that were asked to be stored, found again by model and metadata."""

import re
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request

from app.access.auth import must_own
from app.access.retention import must_not_keep
from app.errors import BadRequest
from app.routes.body import Body, read_model
from app.routes.caller import Reader, UseServices
from app.routes.listing import following, listing, one_more
from app.routes.vector_stores import Metadata
from retrieval import audit, stored_completions
from retrieval.catalog import Order, PageRequest
from retrieval.tables import AuditEvent, StoredCompletion

router = APIRouter(prefix="/v1/chat/completions")

MOST_LISTED = 100
FILTER = re.compile(r"metadata\[(.*)\]\Z", re.DOTALL)


def _page_of(
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
    order: Order = Order.ASC,
    after: str | None = None,
) -> PageRequest:
    """OpenAI lists these oldest first."""
    return PageRequest(limit=limit, order=order, after=after)


Page = Annotated[PageRequest, Depends(_page_of)]


class ModifyCompletion(Body):
    metadata: Metadata | None


class MetadataFilter(Body):
    metadata: Metadata


METADATA: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "required": False,
    "schema": {"type": "object", "additionalProperties": True},
}
"""FastAPI knows no such parameter."""


@router.get("", openapi_extra={"parameters": [METADATA]})
def list_completions(
    request: Request, services: UseServices, scope: Reader, page: Page, model: str | None = None
) -> dict[str, Any]:
    """`metadata[KEY]=VALUE` restricts the list, as OpenAI's clients write it."""
    if "metadata" in request.query_params:
        raise BadRequest("metadata is sent as metadata[KEY]=VALUE.", param="metadata")
    attributes = {
        found.group(1): value
        for name, value in request.query_params.multi_items()
        if (found := FILTER.match(name))
    }
    wanted = read_model(MetadataFilter, {"metadata": attributes})
    with services.database.read() as session:
        rows = stored_completions.list_completions(
            session, scope, one_more(page), model=model, attributes=wanted.metadata
        )
        return listing(rows, page, shape)


@router.get("/{completion_id}")
def get_completion(completion_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        return shape(stored_completions.get_completion(session, scope, completion_id))


@router.get("/{completion_id}/messages")
def list_messages(completion_id: str, services: UseServices, scope: Reader, page: Page) -> dict[str, Any]:
    """That were sent."""
    with services.database.read() as session:
        row = stored_completions.get_completion(session, scope, completion_id)
    shown = [_message(row.id, number, sent) for number, sent in enumerate(orjson.loads(row.messages))]
    asked = following(shown, order=page.order, after=page.after)
    return listing(asked[: page.limit + 1], page, dict)


@router.post("/{completion_id}")
def modify_completion(
    completion_id: str, body: ModifyCompletion, services: UseServices, scope: Reader
) -> dict[str, Any]:
    must_not_keep(scope, "metadata")
    with services.database.write() as session:
        row = stored_completions.get_completion(session, scope, completion_id)
        must_own(scope, row.key_id or "")
        row.attributes = dict(body.metadata or {})
        audit.record(session, AuditEvent.COMPLETION_CHANGED, completion_id, scope=scope)
        return shape(row)


@router.delete("/{completion_id}")
def delete_completion(completion_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.write() as session:
        must_own(scope, stored_completions.get_completion(session, scope, completion_id).key_id or "")
        stored_completions.delete_completion(session, scope, completion_id)
        audit.record(session, AuditEvent.COMPLETION_DELETED, completion_id, scope=scope)
    return {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}


def shape(row: StoredCompletion) -> dict[str, Any]:
    return {**orjson.loads(row.completion), "metadata": row.attributes}


def _message(completion_id: str, number: int, sent: dict[str, Any]) -> dict[str, Any]:
    content = sent.get("content")
    parts = content if isinstance(content, list) else None
    return {
        "refusal": None,
        **sent,
        "id": f"{completion_id}-{number}",
        "content": None if parts is not None else content,
        "content_parts": parts,
    }
