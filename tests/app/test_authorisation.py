"""Every operation of our OpenAPI document, asked by every kind of caller about everything that it can be about."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select

from app.console.session import admin_of, asking_visitor_of, visitor_of, writing_visitor_of
from app.console.views import REPORTS, SIGN_IN
from app.routes.caller import KeyWith
from retrieval.tables import Role, SavedQuestion
from tests.app.authorisation import (
    CANARY,
    GROUP,
    QUESTION,
    SENT,
    Caller,
    Ids,
    Operation,
    State,
    absent,
    ask,
    elsewhere,
    expected,
    furnish,
    in_order,
    masked,
    names_any,
    operations_of,
    samples_of,
)
from tests.app.conftest import Api
from tests.app.visitor import visiting

OPEN = {
    *("/health", "/ready"),
    *("/citations/{token}", "/citations/{token}/source"),
    *("/", SIGN_IN, f"{SIGN_IN}/begin", f"{SIGN_IN}/return", "/console/static/{name}", REPORTS),
}
"""Without a key: some say nothing of what is stored, and two are for those who hold a link that was signed."""
ASKS_FOR_A_KEY = (visitor_of, asking_visitor_of, writing_visitor_of, admin_of)
"""The console's way to ask."""


@dataclass(frozen=True)
class World:
    """Sets of everything: one to be refused, one for each caller that may ask, one that is deleted, and what callers
    who are refused have themselves.
    """

    operations: Sequence[Operation]
    callers: dict[str, Caller]
    live: Mapping[str, Ids]
    deleted: Ids
    own: Mapping[str, Ids]


@pytest.fixture
async def world(api: Api) -> AsyncIterator[World]:
    api.engine.answer = lambda request: orjson.dumps(request).decode()
    api.engine.count_tokens = len
    async with AsyncExitStack() as stack:

        async def caller(
            name: str,
            role: Role | None,
            *groups: str,
            tenant: str = "north",
            ends: str = "",
            sees: bool = False,
        ) -> Caller:
            headers = {}
            if name != "none":
                with api.services.database.write() as session:
                    ring, now = api.services.keys, time.time()
                    key, text = ring.add(
                        session,
                        tenant_name=tenant,
                        name=name,
                        role=role or Role.ADMIN,
                        now=now,
                        groups=groups,
                    )
                    headers["Authorization"] = f"Bearer {text}"
                    if ends == "revoked":
                        ring.revoke(session, key.id, now=now)
                    if ends == "expired":
                        key.expires_at = now - 1
            http = httpx.AsyncClient(
                transport=httpx.ASGITransport(api.app), base_url="http://strongroom", headers=headers
            )
            return Caller(name, await stack.enter_async_context(http), role, tenant == "north", sees)

        callers = {
            each.name: each
            for each in (
                await caller("none", None),
                await caller("revoked", None, GROUP, ends="revoked"),
                await caller("expired", None, GROUP, ends="expired"),
                await caller("other tenant", Role.ADMIN, GROUP, tenant="south"),
                await caller("reader without grant", Role.READER),
                await caller("writer without grant", Role.WRITER, "another group"),
                await caller("reader", Role.READER, GROUP, sees=True),
                await caller("writer", Role.WRITER, GROUP, sees=True),
                await caller("admin", Role.ADMIN, sees=True),
            )
        }
        staff: dict[str, Any] = {name: callers[name].http for name in ("admin", "writer", "reader")}
        secret: dict[str, Any] = {"word": CANARY, "groups": {"readers": [GROUP], "writers": [GROUP]}}
        live = {
            name: await furnish(api, f"aviary of {name}", **secret, **staff)
            for name in ("nobody", "reader", "writer")
        }
        # What a reader began is not for an admin to go on with: the reader would read the answers.
        live["admin"] = await furnish(
            api, "aviary of admin", **secret, **dict.fromkeys(staff, staff["admin"])
        )
        gone = await furnish(api, "aviary of the past", **secret, **staff)
        operations = operations_of((await callers["admin"].http.get("/openapi.json")).json())
        for operation in in_order(operations):
            if operation.method == "DELETE" and "number" not in operation.parameters:
                await ask(callers["admin"], operation, gone)
        stranger = callers["other tenant"].http
        own = {
            "other tenant": await furnish(
                api, "a", word=SENT, groups={}, admin=stranger, writer=stranger, reader=stranger
            ),
            "writer without grant": await furnish(
                api,
                "b",
                word=SENT,
                groups={},
                admin=callers["admin"].http,
                writer=callers["writer without grant"].http,
                reader=callers["reader without grant"].http,
            ),
        }
        yield World(operations, callers, live, gone, own)


def test_every_route_declares_what_key_it_needs(api: Api) -> None:
    """One that forgets to would be open to all."""

    def asks(dependant: Any) -> bool:
        is_so = isinstance(dependant.call, KeyWith) or dependant.call in ASKS_FOR_A_KEY
        return is_so or any(map(asks, dependant.dependencies))

    routes = _routes(api.app.routes)
    assert len(routes) > 100
    assert {route.path for route in routes if not asks(route.dependant)} == OPEN


def _routes(routes: Sequence[Any]) -> list[APIRoute]:
    found: list[APIRoute] = []
    for route in routes:
        if isinstance(route, APIRoute):
            found.append(route)
        found += _routes(
            getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", [])
        )
    return found


async def test_no_caller_gets_more_than_its_key_is_for(world: World) -> None:
    """Each is refused as it should be, and cannot tell what is there and not its to see from what is not there."""
    asked, wrong = 0, list[str]()
    for caller in world.callers.values():
        live = world.live[caller.name if caller.sees else "nobody"]
        never = absent(live)
        ids_of = {
            State.ABSENT: never,
            State.DELETED: world.deleted,
            State.ELSEWHERE: elsewhere(live, world.live["nobody"] if caller.sees else world.live["admin"]),
            State.LIVE: live,
        }
        for operation in in_order(world.operations):
            of_absent: list[str] = []
            for state in operation.states():
                ids = ids_of[state]
                for number, body in enumerate(samples_of(operation, ids)):
                    reply = await ask(caller, operation, ids, body)
                    asked += 1
                    is_seen = state is State.LIVE and caller.sees
                    is_known = state is State.LIVE and caller.is_of_tenant
                    names_others = not is_seen and names_any(body, ids, is_of_tenant=is_known)
                    right = expected(operation, caller, state, names_others=names_others)
                    told = f"{caller.name}: {operation} {state.name}: {reply.status_code} {reply.text[:300]}"
                    if reply.status_code not in right:
                        wrong.append(f"{told}, not {right}")
                    if not caller.sees and CANARY in reply.text:
                        wrong.append(f"{told} shows it")
                    said = masked(reply, ids)
                    if state is State.ABSENT:
                        of_absent.append(said)
                    elif 404 in right and not caller.sees and said != of_absent[number]:
                        wrong.append(f"{told} differs from {of_absent[number]}")
    assert not wrong, "\n".join(wrong)
    assert asked > 1500


async def test_an_own_object_opens_no_other_that_the_body_names(world: World) -> None:
    asked, wrong = 0, list[str]()
    for name, own in world.own.items():
        caller, others = world.callers[name], world.live["nobody"]
        for operation in in_order(world.operations):
            if not operation.parameters:
                continue
            samples = zip(samples_of(operation, others), samples_of(operation, absent(others)), strict=True)
            for of_others, of_absent in samples:
                if not names_any(of_others, others):
                    continue
                replies = [await ask(caller, operation, own, body) for body in (of_absent, of_others)]
                asked += 1
                told = [(reply.status_code, masked(reply, others, absent(others))) for reply in replies]
                if told[0] != told[1] or told[0][0] not in (400, 404):
                    wrong.append(f"{name}: {operation}: {told}")
    assert not wrong, "\n".join(wrong)
    assert asked >= 6


FORMS: Mapping[str, Mapping[str, str]] = {
    "/console/ask": {"question": QUESTION[0]["content"], "collections": "{collection_id}"},
    "/console/search": {"query": SENT, "dense_weight": "0.5", "collection": "{collection_id}"},
    "/console/search/questions": {
        "query": SENT,
        "set_name": "of strangers",
        "answer": "There.",
        "right": "{collection_id}/{file_id}/0/9",
    },
    "/console/collections": {"name": "more"},
    "/console/collections/{collection_id}/selected/{action}": {"file": "{file_id}"},
    "/console/conversations/{conversation_id}/rename": {"title": SENT},
    "/console/sources": {"url": "/letters", "collection": "{collection_id}"},
    "/console/admin/keys": {"name": "more"},
    "/console/admin/keys/{key_id}": {"name": SENT},
}
"""What the console's pages send where it is needed."""
QUERIES: Mapping[str, Mapping[str, str]] = {
    "/console/collections/{collection_id}/files/{file_id}/quote": {"start": "0", "end": "9"},
    "/console/collections/{collection_id}/uploads": {"bytes": "5"},
    "/console/collections/{collection_id}/uploads/{upload_id}/parts": {"after": "0"},
    "/console/collections/{collection_id}/live": {"file": "{file_id}"},
}
SECRET_SET = "of the board"
OF_ITSELF = {
    "/console/sign-out",
    "/console/sign-out/everywhere",
    "/console/invitations",
    "/console/{path:path}",
}
"""What a visitor does to its own session."""


async def test_no_page_of_the_console_opens_to_who_has_no_grant(world: World, api: Api) -> None:
    """Each of its routes, with the ids of what is for others and with ids that nothing ever had."""
    routes = [
        (method, route.path)
        for route in _routes(api.app.routes)
        if route.path.startswith("/console/") and route.path not in OPEN | OF_ITSELF
        for method in sorted(route.methods or ())
    ]
    assert len(routes) > 55
    routes.sort(key=lambda each: (each[0] != "GET", each[0] == "DELETE", -each[1].count("/")))
    live = await _named_in_the_console(world, api)
    never = {**absent(live), "set_name": "of nobody", "number": "1", "action": live["action"]}
    told, shown = list[str](), 0
    for name in ("other tenant", "reader without grant", "writer without grant", "admin"):
        caller = world.callers[name]
        async with visiting(api, caller.http.headers["authorization"].removeprefix("Bearer ")) as visitor:
            for method, path in routes:
                if caller.sees and method != "GET":
                    continue
                replies = [await _visit(visitor, method, path, ids) for ids in (live, never)]
                shown += caller.sees and CANARY in replies[0].text
                if caller.sees:
                    continue
                said = [(reply.status_code, masked(reply, live, never)) for reply in replies]
                names = "".join([path, *FORMS.get(path, {}).values()]).count("{")
                is_own_tenants = caller.is_of_tenant and "{upload_id}" in path
                differs = bool(names) and not is_own_tenants and said[0] != said[1]
                if differs or CANARY in replies[0].text or replies[0].status_code >= 500:
                    told.append(f"{name}: {method} {path}: {said}")
    assert not told, "\n".join(told)
    assert shown > 8


async def _named_in_the_console(world: World, api: Api) -> dict[str, str]:
    others, admin = world.live["nobody"], world.callers["admin"].http
    own = world.live["admin"]
    async with visiting(api, admin.headers["authorization"].removeprefix("Bearer ")) as visitor:
        right = f"{others['vector_store_id']}/{others['file_id']}/0/9"
        saved = {"query": CANARY, "set_name": SECRET_SET, "answer": CANARY, "right": right}
        assert (await visitor.post("/console/search/questions", data=saved)).status_code == 200
    with api.services.database.read() as session:
        (question,) = session.scalars(select(SavedQuestion))
    return {
        **others,
        "collection_id": others["vector_store_id"],
        "conversation_id": own["conversation_id"],  # Those of the console are of one key.
        "question_id": question.question_id,
        "set_name": SECRET_SET,
        "number": "1",
        "action": "delete",
    }


async def _visit(visitor: httpx.AsyncClient, method: str, path: str, ids: Ids) -> httpx.Response:
    def put(told: Mapping[str, str]) -> dict[str, str]:
        return {name: each.format(**ids) for name, each in told.items()}

    sent: dict[str, Any] = {"params": put(QUERIES.get(path, {}))}
    form = put(FORMS.get(path, {}))
    if path == "/console/ask":
        sent["json"] = {**form, "collections": [form["collections"]]}
    elif method == "POST":
        sent["data"] = form
    return await visitor.request(method, path.format(**ids), **sent)


FIRST_LOOK, CLOSER_LOOK = 12, 100
"""Pairs of requests, in turn."""
SUSPICIOUS, TELLING = 0.25, 0.2
"""How far from a half the chance may be that the one of a pair took longer. Of equals it strays by .12 and by .04, one
standard deviation; and nearly all of 130 operations get no closer look.
"""


@pytest.mark.slow
async def test_time_does_not_tell_what_is_there_from_what_is_not(world: World) -> None:
    others, asked, telling = world.live["nobody"], 0, list[str]()
    never = absent(others)
    for name in ("other tenant", "writer without grant"):
        caller = world.callers[name]
        for operation in in_order(world.operations):
            samples = zip(samples_of(operation, others), samples_of(operation, never), strict=True)
            for of_others, of_absent in samples:
                pair = [partial(ask, caller, operation, others, of_others)]
                pair += [partial(ask, caller, operation, never, of_absent)]
                if [(await each()).status_code for each in pair] != [404, 404]:
                    continue
                asked += 1
                if abs(await chance_to_be_slower(pair, FIRST_LOOK) - 0.5) < SUSPICIOUS:
                    continue
                chance = await chance_to_be_slower(pair, CLOSER_LOOK)
                if abs(chance - 0.5) > TELLING:
                    telling.append(
                        f"{name}: {operation}: what is there is slower with a chance of {chance:.2f}"
                    )
    assert not telling, "\n".join(telling)
    assert asked > 100


async def test_the_measure_of_time_tells_what_does_differ(world: World) -> None:
    reader, operation = (
        world.callers["reader"],
        operation_of(world, "GET /v1/vector_stores/{vector_store_id}/files"),
    )
    seen = world.live["reader"]
    pair = [partial(ask, reader, operation, seen), partial(ask, reader, operation, absent(seen))]
    assert await chance_to_be_slower(pair, CLOSER_LOOK) > 0.5 + TELLING


def operation_of(world: World, name: str) -> Operation:
    return next(each for each in world.operations if str(each) == name)


async def chance_to_be_slower(pair: Sequence[Callable[[], Awaitable[httpx.Response]]], times: int) -> float:
    """That of two requests the first takes longer; they take turns, so that a busy machine is busy for both."""
    took: list[list[float]] = [[], []]
    for number in range(times):
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            await pair[which]()
            took[which].append(time.perf_counter() - began)
    slower = sum(one > other for one in took[0] for other in took[1])
    return slower / times**2
