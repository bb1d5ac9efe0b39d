"""Every query on stored responses, their items and events, and the queue of those that run in the background.

Those for callers take their scope, and see nothing outside it; those for the queue take a lease.

Errors (absent and forbidden look the same):
    NotFound
    └── ResponseMissing
    PreviousMissing         a response is to go on from one that is absent, deleted, or has not ended
    LeaseLost               a background response was cancelled, deleted, or claimed by another process
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from retrieval.access import readable_answers
from retrieval.catalog import NotFound
from retrieval.ledger import record
from retrieval.scope import Scope
from retrieval.tables import Conversation, DeletedKind, Item, ResponseEvent, ResponseStatus, StoredResponse

MOST_TURNS = 1_000
"""Responses that go on from one another."""

Json = dict[str, Any]


class ResponseMissing(NotFound):
    kind = "response"


class PreviousMissing(Exception):
    """The response to go on from cannot be had."""

    param = "previous_response_id"


class LeaseLost(Exception):
    """Nothing more may be written of this background response."""


@dataclass(frozen=True)
class ClaimedResponse:
    response_id: str
    tenant_id: str
    key_id: str
    request: Json
    content: Json
    attempt: int
    first_event: int
    lease: str


def add_response(
    session: Session, response: StoredResponse, *, asked: Sequence[Json], said: Sequence[Json] = ()
) -> None:
    session.add(response)
    session.flush()
    _add_items(session, response.tenant_id, response.id, asked, is_output=False)
    _add_items(session, response.tenant_id, response.id, said, is_output=True)


def get_response(session: Session, scope: Scope, response_id: str, *, lock: bool = False) -> StoredResponse:
    query = select(StoredResponse).where(_readable(scope), StoredResponse.id == response_id)
    response = session.scalar(query.with_for_update() if lock else query)
    if response is None:
        raise ResponseMissing(response_id)
    return response


def output_of(session: Session, response: StoredResponse) -> list[Json]:
    return list(
        session.scalars(
            select(Item.content).where(Item.response_id == response.id, Item.is_output).order_by(Item.id)
        )
    )


def input_of(session: Session, response: StoredResponse) -> list[Json]:
    """Without what it went on from."""
    return list(
        session.scalars(
            select(Item.content).where(Item.response_id == response.id, ~Item.is_output).order_by(Item.id)
        )
    )


def said_before(session: Session, scope: Scope, response_id: str) -> list[Json]:
    """All that was asked and said up to and with this response, in order. Raises PreviousMissing."""
    first = select(
        StoredResponse.id, StoredResponse.previous_id, StoredResponse.status, literal(0).label("back")
    ).where(_readable(scope), StoredResponse.id == response_id)
    chain = first.cte(recursive=True)
    chain = chain.union_all(
        select(StoredResponse.id, StoredResponse.previous_id, StoredResponse.status, chain.c.back + 1)
        .join(chain, StoredResponse.id == chain.c.previous_id)
        .where(_readable(scope), chain.c.back < MOST_TURNS)
    )
    turns = session.execute(
        select(chain.c.id, chain.c.previous_id, chain.c.status).order_by(chain.c.back)
    ).all()
    if not turns:
        raise PreviousMissing(f"Previous response with id '{response_id}' not found.")
    if not ResponseStatus(turns[0].status).is_final:
        raise PreviousMissing(f"Previous response with id '{response_id}' has not ended yet.")
    if turns[-1].previous_id is not None:
        raise PreviousMissing(
            f"Response '{turns[-1].previous_id}', from which '{response_id}' goes on, was deleted, or there are "
            f"more than {MOST_TURNS} responses. Send the conversation as input."
        )
    rows = session.execute(
        select(Item.response_id, Item.content)
        .where(Item.response_id.in_([turn.id for turn in turns]))
        .order_by(Item.id)
    )
    items: dict[str | None, list[Json]] = {turn.id: [] for turn in turns}
    for owner, content in rows:
        items[owner].append(content)
    return [content for turn in reversed(turns) for content in items[turn.id]]


def find_items(session: Session, scope: Scope, item_ids: Sequence[str]) -> dict[str, Json]:
    """By id, those that stand in any response or conversation; the latest of several with one id."""
    rows = session.execute(
        select(Item.public_id, Item.content)
        .outerjoin(StoredResponse, StoredResponse.id == Item.response_id)
        .outerjoin(Conversation, Conversation.id == Item.conversation_id)
        .where(
            Item.tenant_id == scope.tenant_id,
            Item.public_id.in_(item_ids),
            or_(
                readable_answers(scope, StoredResponse.key_id),
                readable_answers(scope, Conversation.key_id),
            ),
        )
        .order_by(Item.id)
    )
    return {row.public_id: row.content for row in rows}


def _readable(scope: Scope) -> ColumnElement[bool]:
    return and_(StoredResponse.tenant_id == scope.tenant_id, readable_answers(scope, StoredResponse.key_id))


def delete_response(session: Session, response: StoredResponse) -> None:
    """With its items and events. What runs it in the background loses its lease."""
    session.delete(response)
    record(session, DeletedKind.RESPONSE, response.id, response.tenant_id)


def stored_before(session: Session, before: float, *, most: int) -> list[StoredResponse]:
    """The oldest of all tenants. One from which another goes on, or that runs, is not among them."""
    following = aliased(StoredResponse)
    return list(
        session.scalars(
            select(StoredResponse)
            .where(
                StoredResponse.created_at < before,
                StoredResponse.due_at.is_(None),
                ~select(following.id).where(following.previous_id == StoredResponse.id).exists(),
            )
            .order_by(StoredResponse.created_at)
            .limit(most)
            .with_for_update(skip_locked=True)
        )
    )


# The queue of background responses


def any_due(session: Session, *, now: float) -> bool:
    """A cheap look without a lock, before `claim` takes one."""
    return session.scalar(select(StoredResponse.id).where(StoredResponse.due_at <= now).limit(1)) is not None


def claim(session: Session, *, now: float, lease_s: float, most: int) -> list[ClaimedResponse]:
    """Takes the responses that are due longest: those that wait, and those whose process stopped renewing its lease.

    The events of an attempt that came to no end are forgotten; those of the next have higher numbers.
    """
    due = select(StoredResponse).where(StoredResponse.due_at <= now).order_by(StoredResponse.due_at)
    taken = session.scalars(due.limit(most).with_for_update(skip_locked=True)).all()
    claimed = []
    for response in taken:
        assert response.request is not None
        if response.status is ResponseStatus.IN_PROGRESS:
            session.execute(delete(ResponseEvent).where(ResponseEvent.response_id == response.id))
        response.attempt += 1
        response.lease = secrets.token_hex(16)
        response.due_at = now + lease_s
        response.status = ResponseStatus.IN_PROGRESS
        claimed.append(
            ClaimedResponse(
                response_id=response.id,
                tenant_id=response.tenant_id,
                key_id=response.key_id,
                request=response.request,
                content=response.content,
                attempt=response.attempt,
                first_event=response.last_event + 1,
                lease=response.lease,
            )
        )
    return claimed


def renew(session: Session, claimed: ClaimedResponse, *, now: float, lease_s: float) -> None:
    """Raises LeaseLost."""
    _hold(session, claimed, {"due_at": now + lease_s})


def is_held(session: Session, claimed: ClaimedResponse) -> bool:
    """A cheap look without a lock."""
    lease = session.scalar(select(StoredResponse.lease).where(StoredResponse.id == claimed.response_id))
    return lease == claimed.lease


def add_events(
    session: Session, claimed: ClaimedResponse, events: Sequence[Json], *, now: float, lease_s: float
) -> None:
    """Each has a `sequence_number`; the lease is renewed as well. Raises LeaseLost."""
    _hold(session, claimed, {"due_at": now + lease_s, "last_event": events[-1]["sequence_number"]})
    insert_events(session, claimed.response_id, events)


def insert_events(session: Session, response_id: str, events: Sequence[Json]) -> None:
    rows = [
        {"response_id": response_id, "number": event["sequence_number"], "content": event} for event in events
    ]
    session.execute(insert(ResponseEvent), rows)


def next_event(session: Session, claimed: ClaimedResponse) -> int:
    """The number of its next event. Raises LeaseLost."""
    last = session.scalar(
        select(StoredResponse.last_event).where(
            StoredResponse.id == claimed.response_id, StoredResponse.lease == claimed.lease
        )
    )
    if last is None:
        raise LeaseLost
    return last + 1


def give_back(session: Session, claimed: ClaimedResponse, *, due_at: float) -> None:
    """To be tried again. Raises LeaseLost."""
    session.execute(delete(ResponseEvent).where(ResponseEvent.response_id == claimed.response_id))
    _hold(session, claimed, {"status": ResponseStatus.QUEUED, "lease": None, "due_at": due_at})


def finish(
    session: Session,
    claimed: ClaimedResponse,
    *,
    status: ResponseStatus,
    content: Json,
    said: Sequence[Json],
    events: Sequence[Json],
    now: float,
) -> None:
    """Ends it, with its last events, in one transaction. Raises LeaseLost."""
    if events:
        add_events(session, claimed, events, now=now, lease_s=0)
    ended: Json = {"status": status, "content": content, "request": None, "lease": None, "due_at": None}
    _hold(session, claimed, ended)
    _add_items(session, claimed.tenant_id, claimed.response_id, said, is_output=True)


def cancel(session: Session, response: StoredResponse, content: Json, event: Json) -> None:
    """The process that runs it loses its lease, and with it all that it was about to write."""
    response.status = ResponseStatus.CANCELLED
    response.content = content
    response.request = response.lease = response.due_at = None
    response.last_event = event["sequence_number"]
    session.add(ResponseEvent(response_id=response.id, number=event["sequence_number"], content=event))


def events_after(session: Session, response: StoredResponse, number: int, *, most: int) -> list[Json]:
    return list(
        session.scalars(
            select(ResponseEvent.content)
            .where(ResponseEvent.response_id == response.id, ResponseEvent.number > number)
            .order_by(ResponseEvent.number)
            .limit(most)
        )
    )


def count_waiting(session: Session, scope: Scope) -> int:
    """The tenant's background responses that have not ended."""
    return (
        session.scalar(
            select(func.count()).where(
                StoredResponse.tenant_id == scope.tenant_id, StoredResponse.due_at.is_not(None)
            )
        )
        or 0
    )


def _hold(session: Session, claimed: ClaimedResponse, values: Json) -> None:
    held = session.execute(
        update(StoredResponse)
        .where(StoredResponse.id == claimed.response_id, StoredResponse.lease == claimed.lease)
        .values(**values)
        .returning(StoredResponse.id)
    ).one_or_none()
    if held is None:
        raise LeaseLost


def _add_items(
    session: Session, tenant_id: str, response_id: str, items: Sequence[Json], *, is_output: bool
) -> None:
    rows = [
        {
            "tenant_id": tenant_id,
            "response_id": response_id,
            "public_id": item["id"],
            "is_output": is_output,
            "content": item,
        }
        for item in items
    ]
    if rows:
        session.execute(insert(Item), rows)
