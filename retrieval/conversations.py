"""Every query on conversations and their items. Each takes the caller's scope, and sees nothing outside it.

Errors (absent and forbidden look the same):
    NotFound
    ├── ConversationMissing
    └── ItemMissing
    ItemPresent             an item is to be added under an id that the conversation has already
    ConversationHeld        a response runs in it
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from retrieval.access import readable_answers, would_read
from retrieval.catalog import NotFound, PageRequest, page_of
from retrieval.ledger import record
from retrieval.scope import Scope
from retrieval.tables import Conversation, DeletedKind, Item, new_id

Json = dict[str, Any]


class ConversationMissing(NotFound):
    kind = "conversation"


class ItemMissing(NotFound):
    kind = "item"


class ItemPresent(Exception):
    """The conversation has an item with this id."""

    def __init__(self, item_id: str) -> None:
        super().__init__(f"The conversation has an item with the id '{item_id}' already.")


class ConversationHeld(Exception):
    """Another response is running in the conversation."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(
            f"Another response is running in conversation '{conversation_id}'. Try again when it has ended."
        )


class TooOpen(Exception):
    """The conversation's maker would read what is not for it."""

    def __init__(self) -> None:
        super().__init__(
            "This conversation was begun by a key of fewer groups, which would read what is answered here. "
            "Begin another one."
        )


def create_conversation(
    session: Session, scope: Scope, *, attributes: dict[str, str], now: float
) -> Conversation:
    conversation = Conversation(
        id=new_id("conv_"),
        tenant_id=scope.tenant_id,
        key_id=scope.key_id,
        attributes=attributes,
        created_at=now,
    )
    session.add(conversation)
    session.flush()
    return conversation


def get_conversation(
    session: Session, scope: Scope, conversation_id: str, *, lock: bool = False
) -> Conversation:
    """`lock` keeps others from changing it until this transaction ends."""
    query = select(Conversation).where(_readable(scope), Conversation.id == conversation_id)
    conversation = session.scalar(query.with_for_update() if lock else query)
    if conversation is None:
        raise ConversationMissing(conversation_id)
    return conversation


def own_conversations(session: Session, scope: Scope, *, limit: int) -> list[Conversation]:
    """Those that were begun with this key, the newest first."""
    query = select(Conversation).where(
        Conversation.tenant_id == scope.tenant_id, Conversation.key_id == scope.key_id
    )
    newest = (Conversation.created_at.desc(), Conversation.id)
    return list(session.scalars(query.order_by(*newest).limit(limit)))


def own_conversation(
    session: Session, scope: Scope, conversation_id: str, *, lock: bool = False
) -> Conversation:
    """As `get_conversation`, of this key alone."""
    conversation = get_conversation(session, scope, conversation_id, lock=lock)
    if conversation.key_id != scope.key_id:
        raise ConversationMissing(conversation_id)
    return conversation


def delete_conversation(session: Session, scope: Scope, conversation_id: str) -> None:
    session.delete(get_conversation(session, scope, conversation_id, lock=True))
    record(session, DeletedKind.CONVERSATION, conversation_id, scope.tenant_id)


def hold(
    session: Session, scope: Scope, conversation_id: str, response_id: str, *, now: float, hold_s: float
) -> None:
    """Keeps other responses out of the conversation. Raises ConversationMissing, ConversationHeld, TooOpen."""
    _check_maker(session, scope, get_conversation(session, scope, conversation_id))
    held = session.execute(
        update(Conversation)
        .where(
            _readable(scope),
            Conversation.id == conversation_id,
            or_(
                Conversation.response_id.is_(None),
                Conversation.response_id == response_id,
                Conversation.held_until < now,
            ),
        )
        .values(response_id=response_id, held_until=now + hold_s)
        .returning(Conversation.id)
    ).one_or_none()
    if held is None:
        get_conversation(session, scope, conversation_id)
        raise ConversationHeld(conversation_id)


def let_go(session: Session, response_id: str) -> None:
    session.execute(
        update(Conversation)
        .where(Conversation.response_id == response_id)
        .values(response_id=None, held_until=None)
    )


def add_items(
    session: Session, scope: Scope, conversation_id: str, items: Sequence[Json], *, is_output: bool = False
) -> list[Item]:
    """Each has an `id`. Raises ItemPresent, TooOpen."""
    _check_maker(session, scope, get_conversation(session, scope, conversation_id, lock=True))
    wanted = [item["id"] for item in items]
    present = session.scalars(
        select(Item.public_id).where(Item.conversation_id == conversation_id, Item.public_id.in_(wanted))
    ).all()
    twice = [*present, *(each for place, each in enumerate(wanted) if each in wanted[:place])]
    if twice:
        raise ItemPresent(twice[0])
    rows = [
        Item(
            tenant_id=scope.tenant_id,
            conversation_id=conversation_id,
            public_id=item["id"],
            is_output=is_output,
            content=item,
        )
        for item in items
    ]
    session.add_all(rows)
    session.flush()
    return rows


def list_items(session: Session, scope: Scope, conversation_id: str, page: PageRequest) -> list[Item]:
    get_conversation(session, scope, conversation_id)
    query = select(Item).where(Item.tenant_id == scope.tenant_id, Item.conversation_id == conversation_id)
    return page_of(session, query, page, created_at=Item.id, row_id=Item.id, public_id=Item.public_id)


def all_items(session: Session, scope: Scope, conversation_id: str) -> list[Json]:
    """In their order: what a response in the conversation goes on from."""
    get_conversation(session, scope, conversation_id)
    return list(
        session.scalars(
            select(Item.content)
            .where(Item.tenant_id == scope.tenant_id, Item.conversation_id == conversation_id)
            .order_by(Item.id)
        )
    )


def get_item(session: Session, scope: Scope, conversation_id: str, item_id: str) -> Item:
    get_conversation(session, scope, conversation_id)
    row = session.scalar(
        select(Item).where(
            Item.tenant_id == scope.tenant_id,
            Item.conversation_id == conversation_id,
            Item.public_id == item_id,
        )
    )
    if row is None:
        raise ItemMissing(item_id)
    return row


def delete_item(session: Session, scope: Scope, conversation_id: str, item_id: str) -> Conversation:
    conversation = get_conversation(session, scope, conversation_id, lock=True)
    item = get_item(session, scope, conversation_id, item_id)
    session.delete(item)
    record(session, DeletedKind.ITEM, name_in_ledger(item), scope.tenant_id)
    return conversation


def delete_items_from(session: Session, scope: Scope, conversation_id: str, item_id: str) -> None:
    """This item and all that came after it. Raises ConversationMissing, ItemMissing."""
    get_conversation(session, scope, conversation_id, lock=True)
    first = get_item(session, scope, conversation_id, item_id)
    query = select(Item).where(Item.conversation_id == conversation_id, Item.id >= first.id)
    for item in session.scalars(query).all():
        session.delete(item)
        record(session, DeletedKind.ITEM, name_in_ledger(item), scope.tenant_id)


def _check_maker(session: Session, scope: Scope, conversation: Conversation) -> None:
    if not would_read(session, conversation.key_id, scope):
        raise TooOpen


def _readable(scope: Scope) -> ColumnElement[bool]:
    return and_(Conversation.tenant_id == scope.tenant_id, readable_answers(scope, Conversation.key_id))


def name_in_ledger(item: Item) -> str:
    """Of this very item: its id may be a client's word, and be given to another one after it."""
    digest = hashlib.sha256(item.public_id.encode()).hexdigest()[:32]
    return f"{item.conversation_id}/{item.id}/{digest}"
