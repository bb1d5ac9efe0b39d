"""What every route asks of its caller: the key in the header, the role, the quota."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.openapi.models import HTTPBearer

from app.access.auth import DEFAULT_TENANT, REMEMBER_S, KeyInvalid, NewKey, tenant_named
from app.access.retention import RetentionForbids, read_jws
from app.batches.inside import KEY_ID
from app.routes.caller import KeyWith, deadline_of, lane_of, recheck_of, scope_of
from app.running.core_dumps import forbid_core_dumps
from retrieval.row_security import the_caller
from retrieval.tables import AuditEvent, Key, Role
from serving.protocols import Lane
from tests.app.alone import Alone, api_alone
from tests.app.test_audit import entries


@pytest.fixture(scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    forbid_core_dumps()
    async with api_alone(tmp_path_factory.mktemp("desk"), engine={"keeps_nothing": True}) as alone:
        yield alone


def new_key(desk: Alone, role: Role, **quotas: int) -> tuple[Key, str]:
    with desk.services.database.write() as session:
        tenant = tenant_named(session, DEFAULT_TENANT, now=1.0)
        new = NewKey("tests", role, quotas=quotas or None)
        return desk.services.keys.add_to(session, tenant.id, new, now=1.0)


def asked(desk: Alone, *headers: tuple[str, str], **scope: Any) -> Request:
    """As a route gets it."""
    sent: Sequence[tuple[bytes, bytes]] = [(name.encode(), value.encode()) for name, value in headers]
    state = {"request_id": "req_1"}
    return Request({"type": "http", "headers": sent, "app": desk.app, "state": state, **scope})


def bearing(text: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {text}")


@pytest.mark.parametrize(
    ("tier", "lane"),
    [
        (None, Lane.INTERACTIVE),
        ("", Lane.INTERACTIVE),
        ("auto", Lane.INTERACTIVE),
        ("flex", Lane.BULK),
        ("batch", Lane.BACKGROUND),
    ],
)
def test_a_service_tier_names_a_lane(tier: str | None, lane: Lane) -> None:
    assert lane_of(tier) is lane


@pytest.mark.parametrize(
    ("told", "deadline_s"),
    [(None, 9.0), ("4", 4.0), ("0.5", 0.5), ("9.5", 9.0), ("0", 9.0), ("-3", 9.0), ("soon", 9.0), ("", 9.0)],
)
def test_a_client_tells_how_long_it_waits_up_to_the_server_s_own_bound(
    told: str | None, deadline_s: float
) -> None:
    headers = [] if told is None else [(b"x-stainless-read-timeout", told.encode())]
    request = Request({"type": "http", "headers": headers})
    assert deadline_of(request, longest_s=9.0) == deadline_s


def test_the_time_that_a_client_waits_begins_when_its_request_arrives() -> None:
    scope = {"type": "http", "headers": [], "state": {"arrived_at": time.monotonic() - 4.0}}
    assert deadline_of(Request(scope), longest_s=9.0) == pytest.approx(5.0, abs=0.5)


@pytest.mark.parametrize("role", list(Role))
def test_what_a_route_asks_for_is_described_as_a_bearer_key(role: Role) -> None:
    asked = KeyWith(role)
    assert (asked.role, asked.scheme_name) == (role, "key")
    assert isinstance(asked.model, HTTPBearer)


async def test_zero_retention_is_asked_for_by_one_word_alone(desk: Alone) -> None:
    reply = await desk.http.get("/v1/files", headers={"x-strongroom-retention": "some"})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "x-strongroom-retention")
    assert error["message"] == "x-strongroom-retention can only be 'none'."


async def test_a_reply_that_goes_on_asks_for_its_key_again(desk: Alone) -> None:
    """As its route did: a key that is revoked meanwhile is refused."""
    key, text = new_key(desk, Role.READER)
    again = await recheck_of(asked(desk, bearing(text)), await desk.services.keys.scope_of(text))
    assert (await again()).key_id == key.id
    with desk.services.storage.database.write() as session:
        desk.services.keys.revoke(session, key.id, now=2.0)
    await asyncio.sleep(REMEMBER_S)
    with pytest.raises(KeyInvalid):
        await again()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("Bearer {}", 200),
        ("bearer {}", 200),
        ("BEARER  {} ", 200),
        (None, 401),
        ("", 401),
        ("{}", 401),
        ("Bearer", 401),
        ("Bearer  ", 401),
        ("Basic {}", 401),
        ("Bearer key {}", 401),
    ],
)
async def test_a_key_is_sent_as_a_bearer_and_in_no_other_way(
    desk: Alone, sent: str | None, status: int
) -> None:
    headers = {} if sent is None else {"authorization": sent.format(desk.key)}
    transport = httpx.ASGITransport(desk.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://strongroom", headers=headers) as http:
        assert (await http.get("/v1/files")).status_code == status


async def test_a_route_asks_for_a_role_and_then_for_what_is_left_of_the_quota(desk: Alone) -> None:
    _, text = new_key(desk, Role.READER, requests_per_minute=2)
    headers = dict([bearing(text)])
    replies = [
        await desk.http.request(method, path, headers=headers)
        for method, path in [
            ("GET", "/v1/files"),
            ("DELETE", "/v1/files/file-absent"),
            ("GET", "/v1/files"),
            ("GET", "/v1/files"),
        ]
    ]
    assert [reply.status_code for reply in replies] == [200, 403, 200, 429]
    assert replies[1].json()["error"]["message"] == "This needs a key with the role 'writer'."
    # One whose key has no quota is not counted.
    assert "x-ratelimit-limit-requests" in replies[0].headers
    assert "x-ratelimit-limit-requests" not in (await desk.http.get("/v1/files")).headers


async def test_who_asks_is_told_to_the_audit_log_and_to_the_database(desk: Alone) -> None:
    key, text = new_key(desk, Role.READER)
    request = asked(desk, bearing(text))
    scope = await scope_of(request)
    assert scope.key_id == key.id
    assert request.state.asked_by == scope
    assert the_caller() == scope.tenant_id == key.tenant_id
    (used,) = await entries(desk, event=AuditEvent.KEY_USED.value, key_id=key.id)
    assert used["objects"] == [key.id]


async def test_work_without_a_client_is_done_for_the_key_that_asked_for_it(desk: Alone) -> None:
    """A line of a batch: no header names the key, and none can."""
    (key, _), (_, other) = new_key(desk, Role.WRITER), new_key(desk, Role.ADMIN)
    assert (await scope_of(asked(desk, bearing(other), **{KEY_ID: key.id}))).key_id == key.id
    with pytest.raises(KeyInvalid):
        await scope_of(asked(desk, (KEY_ID, key.id)))
    with desk.services.storage.database.write() as session:
        session.get_one(Key, key.id).keeps_nothing = True
    with pytest.raises(RetentionForbids) as refusal:
        await scope_of(asked(desk, **{KEY_ID: key.id}))
    assert refusal.value.param == "batch"
    with desk.services.storage.database.write() as session:
        desk.services.keys.revoke(session, key.id, now=2.0)
    with pytest.raises(KeyInvalid):
        await scope_of(asked(desk, **{KEY_ID: key.id}))


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_request_that_keeps_nothing_has_one_receipt_however_often_its_key_is_looked_at(
    desk: Alone, *, by_header: bool
) -> None:
    key, text = new_key(desk, Role.READER)
    if not by_header:
        with desk.services.storage.database.write() as session:
            session.get_one(Key, key.id).keeps_nothing = True
    wish = [("x-strongroom-retention", "none")] if by_header else []
    request = asked(desk, bearing(text), *wish)
    scope = await scope_of(request)
    assert scope.keeps_nothing is True
    receipt = request.state.receipt
    told = read_jws(desk.services.audit.key, receipt)
    assert told is not None
    assert (told["request_id"], told["key_id"], told["tenant_id"]) == ("req_1", key.id, key.tenant_id)
    assert await scope_of(request) == scope
    assert request.state.receipt == receipt


async def test_a_request_that_says_nothing_of_it_may_be_kept(desk: Alone) -> None:
    request = asked(desk, bearing(desk.key))
    assert not (await scope_of(request)).keeps_nothing
    assert not hasattr(request.state, "receipt")
