"""Stored responses and conversations in SQL: who sees what, what goes on from what, and who may write."""

import pytest

from retrieval import conversations, responses
from retrieval.catalog import Order, PageRequest
from retrieval.conversations import ConversationHeld, ConversationMissing, ItemMissing, ItemPresent
from retrieval.database import Database
from retrieval.responses import LeaseLost, PreviousMissing, ResponseMissing
from retrieval.scope import Scope
from retrieval.tables import Item, ResponseEvent, ResponseStatus, StoredResponse, new_id


def said(item_id: str) -> dict[str, str]:
    return {"id": item_id, "type": "message"}


def add(
    database: Database,
    scope: Scope,
    name: str,
    *,
    previous_id: str | None = None,
    is_background: bool = False,
) -> str:
    """A response with an item that was asked and, if it is done, one that was said."""
    response = StoredResponse(
        id=new_id("resp_"),
        tenant_id=scope.tenant_id,
        key_id=scope.key_id,
        status=ResponseStatus.QUEUED if is_background else ResponseStatus.COMPLETED,
        previous_id=previous_id,
        is_background=is_background,
        content={"name": name},
        request={"model": "m"} if is_background else None,
        due_at=10.0 if is_background else None,
        created_at=1.0,
    )
    with database.write() as session:
        output = [] if is_background else [said(f"{name}-said")]
        responses.add_response(session, response, asked=[said(f"{name}-asked")], said=output)
    return response.id


def test_a_response_goes_on_from_all_before_it_in_order(database: Database, scope: Scope) -> None:
    first = add(database, scope, "one")
    second = add(database, scope, "two", previous_id=first)
    with database.read() as session:
        items = responses.said_before(session, scope, second)
    assert [item["id"] for item in items] == ["one-asked", "one-said", "two-asked", "two-said"]


def test_what_was_deleted_ends_all_that_went_on_from_it(database: Database, scope: Scope) -> None:
    first = add(database, scope, "one")
    second = add(database, scope, "two", previous_id=first)
    with database.write() as session:
        responses.delete_response(session, responses.get_response(session, scope, first))
    with database.read() as session:
        assert {item.public_id for item in session.query(Item)} == {"two-asked", "two-said"}
        with pytest.raises(PreviousMissing, match="was deleted"):
            responses.said_before(session, scope, second)
        with pytest.raises(PreviousMissing, match="not found"):
            responses.said_before(session, scope, first)
    waiting = add(database, scope, "three", is_background=True)
    with database.read() as session, pytest.raises(PreviousMissing, match="has not ended"):
        responses.said_before(session, scope, waiting)


def test_another_tenant_sees_neither_responses_nor_conversations_nor_items(
    database: Database, scope: Scope, other_scope: Scope
) -> None:
    first = add(database, scope, "one")
    with database.write() as session:
        conversation = conversations.create_conversation(session, scope, attributes={}, now=1.0)
        conversations.add_items(session, scope, conversation.id, [said("msg_1")])
    with database.write() as session:
        assert set(responses.find_items(session, scope, ["one-said", "msg_1"])) == {"one-said", "msg_1"}
        assert responses.find_items(session, other_scope, ["one-said", "msg_1"]) == {}
        with pytest.raises(ResponseMissing):
            responses.get_response(session, other_scope, first)
        with pytest.raises(PreviousMissing):
            responses.said_before(session, other_scope, first)
        page = PageRequest()
        for look in (
            lambda: conversations.get_conversation(session, other_scope, conversation.id),
            lambda: conversations.list_items(session, other_scope, conversation.id, page),
            lambda: conversations.all_items(session, other_scope, conversation.id),
            lambda: conversations.add_items(session, other_scope, conversation.id, []),
            lambda: conversations.hold(session, other_scope, conversation.id, "r", now=1, hold_s=1),
            lambda: conversations.delete_conversation(session, other_scope, conversation.id),
            lambda: conversations.delete_item(session, other_scope, conversation.id, "msg_1"),
        ):
            with pytest.raises(ConversationMissing):
                look()


def test_a_conversations_items_are_paged_in_the_order_of_their_coming(
    database: Database, scope: Scope
) -> None:
    with database.write() as session:
        conversation_id = conversations.create_conversation(session, scope, attributes={}, now=1.0).id
        conversations.add_items(session, scope, conversation_id, [said(f"msg_{n}") for n in range(5)])
        with pytest.raises(ItemPresent):
            conversations.add_items(session, scope, conversation_id, [said("msg_9"), said("msg_3")])
        with pytest.raises(ItemPresent):
            conversations.add_items(session, scope, conversation_id, [said("msg_9"), said("msg_9")])

    def listed(page: PageRequest) -> list[str]:
        with database.read() as session:
            return [row.public_id for row in conversations.list_items(session, scope, conversation_id, page)]

    assert listed(PageRequest(limit=2)) == ["msg_4", "msg_3"]
    assert listed(PageRequest(limit=2, after="msg_3")) == ["msg_2", "msg_1"]
    assert listed(PageRequest(order=Order.ASC, after="msg_3")) == ["msg_4"]
    with database.write() as session:
        conversations.delete_item(session, scope, conversation_id, "msg_3")
        with pytest.raises(ItemMissing):
            conversations.get_item(session, scope, conversation_id, "msg_3")
    with database.write() as session:
        conversations.delete_conversation(session, scope, conversation_id)
    with database.read() as session:
        assert session.query(Item).count() == 0


def test_a_conversation_is_held_by_one_response_until_it_lets_go_or_is_dead(
    database: Database, scope: Scope
) -> None:
    with database.write() as session:
        conversation_id = conversations.create_conversation(session, scope, attributes={}, now=1.0).id
        conversations.hold(session, scope, conversation_id, "resp_1", now=100, hold_s=30)
        conversations.hold(session, scope, conversation_id, "resp_1", now=120, hold_s=30)
    with database.write() as session, pytest.raises(ConversationHeld):
        conversations.hold(session, scope, conversation_id, "resp_2", now=149, hold_s=30)
    with database.write() as session:
        conversations.let_go(session, "resp_2")
        conversations.hold(session, scope, conversation_id, "resp_3", now=151, hold_s=30)
        conversations.let_go(session, "resp_3")
        conversations.hold(session, scope, conversation_id, "resp_4", now=151, hold_s=30)


def test_a_background_response_is_run_by_one_process_and_taken_from_it_when_its_lease_has_ended(
    database: Database, scope: Scope
) -> None:
    waiting = add(database, scope, "one", is_background=True)
    with database.write() as session:
        assert responses.claim(session, now=9, lease_s=15, most=4) == []
        assert responses.any_due(session, now=10)
        (first,) = responses.claim(session, now=10, lease_s=15, most=4)
        assert responses.claim(session, now=20, lease_s=15, most=4) == []
    with database.write() as session:
        responses.add_events(session, first, [{"sequence_number": 7}], now=20, lease_s=15)
        assert responses.claim(session, now=34, lease_s=15, most=4) == []
    with database.write() as session:
        (second,) = responses.claim(session, now=35, lease_s=15, most=4)
        assert (second.first_event, second.attempt) == (8, 2)
        assert session.query(ResponseEvent).count() == 0
        assert not responses.is_held(session, first)
        assert responses.is_held(session, second)
    for write in (
        lambda: responses.renew(session, first, now=36, lease_s=15),
        lambda: responses.add_events(session, first, [{"sequence_number": 9}], now=36, lease_s=15),
        lambda: responses.give_back(session, first, due_at=36),
        lambda: responses.next_event(session, first),
    ):
        with pytest.raises(LeaseLost), database.write() as session:
            write()
    with database.write() as session:
        responses.finish(
            session,
            second,
            status=ResponseStatus.COMPLETED,
            content={"name": "done"},
            said=[said("one-said")],
            events=[{"sequence_number": 8}],
            now=40,
        )
    with database.read() as session:
        response = responses.get_response(session, scope, waiting)
        assert response.due_at is None
        assert responses.output_of(session, response) == [said("one-said")]
        assert responses.events_after(session, response, 7, most=5) == [{"sequence_number": 8}]
        assert not responses.any_due(session, now=1e9)
