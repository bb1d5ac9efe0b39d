"""/v1/conversations: items that responses go on from and append to."""

import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy.orm import Session

from app.access.auth import must_own
from app.access.retention import must_not_keep
from app.responses.answering import with_includes
from app.responses.description import keeping
from app.responses.items import Json, read_input
from app.responses.quoting import requote, unquoted
from app.responses.reading import resolved
from app.routes.body import Body, read_model
from app.routes.caller import Reader, UseServices
from app.routes.responses import Limit, UseIncludes, check_id, page, read_json
from app.routes.vector_stores import Metadata
from retrieval import audit, conversations
from retrieval.catalog import Order, PageRequest
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Conversation
from retrieval.together import in_thread

router = APIRouter(prefix="/v1/conversations")

MOST_ITEMS = 20
"""OpenAI's own bound, of one request."""


class ConversationBody(Body):
    metadata: Metadata | None = None
    items: list[Any] | None = Field(None, max_length=MOST_ITEMS)


class ConversationChange(Body):
    metadata: Metadata | None


class NewItems(Body):
    items: list[Any] = Field(min_length=1, max_length=MOST_ITEMS)


@router.post("", openapi_extra=keeping(ConversationBody, is_required=False))
async def create(request: Request, services: UseServices, scope: Reader) -> Json:
    must_not_keep(scope, "conversation")
    raw = await request.body()
    body = read_model(ConversationBody, read_json(raw) if raw else {})
    items = read_input(body.items, param="items")

    def add() -> Json:
        with services.database.write() as session:
            conversation = conversations.create_conversation(
                session, scope, attributes=body.metadata or {}, now=time.time()
            )
            _add(session, scope, conversation.id, items)
            audit.record(session, AuditEvent.CONVERSATION_ADDED, conversation.id, scope=scope)
            return _shape(conversation)

    return await in_thread(add)


@router.get("/{conversation_id}")
def retrieve(conversation_id: str, services: UseServices, scope: Reader) -> Json:
    check_id(conversation_id, "conv_", "conversation_id")
    with services.database.read() as session:
        return _shape(conversations.get_conversation(session, scope, conversation_id))


@router.post("/{conversation_id}", openapi_extra=keeping(ConversationChange))
async def update(conversation_id: str, request: Request, services: UseServices, scope: Reader) -> Json:
    must_not_keep(scope, "metadata")
    check_id(conversation_id, "conv_", "conversation_id")
    body = read_model(ConversationChange, read_json(await request.body()))

    def change() -> Json:
        with services.database.write() as session:
            conversation = conversations.get_conversation(session, scope, conversation_id, lock=True)
            must_own(scope, conversation.key_id)
            conversation.attributes = body.metadata or {}
            audit.record(session, AuditEvent.CONVERSATION_CHANGED, conversation_id, scope=scope)
            return _shape(conversation)

    return await in_thread(change)


@router.delete("/{conversation_id}")
def delete(conversation_id: str, services: UseServices, scope: Reader) -> Json:
    """With its items; responses keep their own."""
    check_id(conversation_id, "conv_", "conversation_id")
    with services.database.write() as session:
        must_own(scope, conversations.get_conversation(session, scope, conversation_id, lock=True).key_id)
        conversations.delete_conversation(session, scope, conversation_id)
        audit.record(session, AuditEvent.CONVERSATION_DELETED, conversation_id, scope=scope)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post("/{conversation_id}/items", openapi_extra=keeping(NewItems))
async def create_items(
    conversation_id: str, request: Request, services: UseServices, scope: Reader, includes: UseIncludes
) -> Json:
    must_not_keep(scope, "items")
    check_id(conversation_id, "conv_", "conversation_id")
    body = read_model(NewItems, read_json(await request.body()))
    items = read_input(body.items, param="items")

    def add() -> Json:
        with services.database.write() as session:
            added = _add(session, scope, conversation_id, items)
            audit.record(session, AuditEvent.CONVERSATION_CHANGED, conversation_id, scope=scope)
            return page(session, scope, added, MOST_ITEMS, includes)

    return await in_thread(add)


@router.get("/{conversation_id}/items")
def list_items(
    conversation_id: str,
    services: UseServices,
    scope: Reader,
    includes: UseIncludes,
    limit: Limit = 20,
    order: Order = Order.DESC,
    after: str | None = None,
) -> Json:
    check_id(conversation_id, "conv_", "conversation_id")
    with services.database.read() as session:
        asked = PageRequest(limit=limit + 1, order=order, after=after)
        rows = conversations.list_items(session, scope, conversation_id, asked)
        return page(session, scope, [row.content for row in rows], limit, includes)


@router.get("/{conversation_id}/items/{item_id}")
def retrieve_item(
    conversation_id: str, item_id: str, services: UseServices, scope: Reader, includes: UseIncludes
) -> Json:
    check_id(conversation_id, "conv_", "conversation_id")
    with services.database.read() as session:
        item = conversations.get_item(session, scope, conversation_id, item_id).content
        requote(session, scope, [item])
        return with_includes([item], includes)[0]


@router.delete("/{conversation_id}/items/{item_id}")
def delete_item(conversation_id: str, item_id: str, services: UseServices, scope: Reader) -> Json:
    check_id(conversation_id, "conv_", "conversation_id")
    with services.database.write() as session:
        must_own(scope, conversations.get_conversation(session, scope, conversation_id).key_id)
        audit.record(session, AuditEvent.CONVERSATION_CHANGED, conversation_id, item_id, scope=scope)
        return _shape(conversations.delete_item(session, scope, conversation_id, item_id))


def _add(session: Session, scope: Scope, conversation_id: str, items: list[Json]) -> list[Json]:
    """Raises BadRequest, ItemPresent, ConversationMissing."""
    found = resolved(session, scope, items, param="items")
    added = unquoted(found)
    conversations.add_items(session, scope, conversation_id, added)
    return found


def _shape(conversation: Conversation) -> Json:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": int(conversation.created_at),
        "metadata": conversation.attributes,
    }
