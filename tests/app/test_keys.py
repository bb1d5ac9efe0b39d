"""/v1/keys and `strongroom keys`: made, shown once, changed, rotated, ended, by admins of the tenant alone."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import inspect, text
from typer.testing import CliRunner

from app.cli import cli
from retrieval.tables import Role
from tests.app.alone import Alone, api_alone

Json = dict[str, Any]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Alone]:
    async with api_alone(tmp_path) as opened:
        yield opened


async def made(desk: Alone, **body: Any) -> Json:
    reply = await desk.http.post("/v1/keys", json={"name": "laptop", **body})
    assert reply.status_code == 200, reply.text
    key: Json = reply.json()
    return key


async def status_with(desk: Alone, value: str, path: str = "/v1/files") -> int:
    return (await desk.http.get(path, headers={"Authorization": f"Bearer {value}"})).status_code


def of_another_tenant(desk: Alone) -> str:
    services = desk.services
    with services.database.write() as session:
        return services.keys.add(
            session, tenant_name="south", name="admin", role=Role.ADMIN, now=time.time()
        )[1]


async def test_a_key_is_shown_once_and_works(desk: Alone) -> None:
    key = await made(desk, role="writer", groups=["staff", "board"])
    assert (key["object"], key["role"], key["groups"]) == ("key", "writer", ["board", "staff"])
    assert await status_with(desk, key["value"]) == 200
    shown = (await desk.http.get(f"/v1/keys/{key['id']}")).json()
    assert shown == {name: each for name, each in key.items() if name != "value"} | {
        "last_used_at": shown["last_used_at"]
    }
    assert key["value"] not in (await desk.http.get("/v1/keys")).text
    with desk.services.database.read() as session:
        tables = inspect(session.connection()).get_table_names()
        stored = " ".join(
            str(row) for table in tables for row in session.execute(text(f"select * from {table}"))
        )
    assert key["value"] not in stored


async def test_a_key_reads_unless_more_is_said(desk: Alone) -> None:
    key = await made(desk)
    assert (key["role"], key["groups"], key["expires_at"]) == ("reader", [], None)


async def test_keys_are_listed_page_by_page_without_those_that_were_deleted(desk: Alone) -> None:
    ids = [(await made(desk, name=f"{number}"))["id"] for number in range(3)]
    assert (await desk.http.delete(f"/v1/keys/{ids[1]}")).json()["deleted"] is True
    page = (await desk.http.get("/v1/keys", params={"limit": 1, "order": "desc"})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([ids[2]], True)
    rest = (await desk.http.get("/v1/keys", params={"after": ids[2], "order": "desc"})).json()
    assert [each["name"] for each in rest["data"]] == ["0", "admin"]


async def test_a_deleted_key_is_refused_within_a_second_and_looks_absent(desk: Alone) -> None:
    key = await made(desk)
    assert await status_with(desk, key["value"]) == 200
    await desk.http.delete(f"/v1/keys/{key['id']}")
    deadline = time.monotonic() + 1
    while await status_with(desk, key["value"]) == 200:
        assert time.monotonic() < deadline
    absent = await desk.http.get("/v1/keys/key_absent")
    for method, path in (("GET", ""), ("POST", ""), ("POST", "/rotate"), ("DELETE", "")):
        body: Json | None = {} if method == "POST" else None
        reply = await desk.http.request(method, f"/v1/keys/{key['id']}{path}", json=body)
        assert (reply.status_code, reply.text) == (404, absent.text.replace("key_absent", key["id"]))


async def test_a_key_may_end_at_a_time(desk: Alone) -> None:
    ends = int(time.time()) + 3600
    key = await made(desk, expires_at=ends)
    assert key["expires_at"] == ends
    changed = (await desk.http.post(f"/v1/keys/{key['id']}", json={"expires_at": None})).json()
    assert changed["expires_at"] is None
    past = await desk.http.post("/v1/keys", json={"name": "x", "expires_at": 5})
    assert (past.status_code, past.json()["error"]["param"]) == (400, "expires_at")


async def test_what_is_left_out_stays(desk: Alone) -> None:
    key = await made(desk, groups=["board"], quotas={"streams": 2})
    changed = (await desk.http.post(f"/v1/keys/{key['id']}", json={"name": "desktop"})).json()
    assert (changed["name"], changed["groups"], changed["quotas"]) == ("desktop", ["board"], {"streams": 2})
    changed = (await desk.http.post(f"/v1/keys/{key['id']}", json={"groups": [], "quotas": None})).json()
    assert (changed["name"], changed["groups"], changed["quotas"]) == ("desktop", [], None)


async def test_rotation_gives_another_text_at_once_or_with_grace(desk: Alone) -> None:
    key = await made(desk)
    first = key["value"]
    rotated = (await desk.http.post(f"/v1/keys/{key['id']}/rotate", json={"grace_seconds": 60})).json()
    second = rotated["value"]
    assert rotated["id"] == key["id"]
    assert [await status_with(desk, value) for value in (first, second)] == [200, 200]
    third = (await desk.http.post(f"/v1/keys/{key['id']}/rotate", json={})).json()["value"]
    desk.services.keys._remembered.clear()
    assert [await status_with(desk, value) for value in (first, second, third)] == [401, 401, 200]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x", "role": "owner"}, "role"),
        ({"name": "x", "groups": ["*"]}, "groups.0"),
        ({"name": "x", "groups": "board"}, "groups"),
        ({"name": "x", "tenant_id": "t"}, "tenant_id"),
        ({"name": "x", "quotas": {"requests_per_minute": 0}}, "quotas.requests_per_minute"),
    ],
)
async def test_what_a_key_cannot_be_is_told_by_its_field(desk: Alone, body: Json, param: str) -> None:
    reply = await desk.http.post("/v1/keys", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


async def test_only_admins_of_the_tenant_see_its_keys(desk: Alone) -> None:
    key = await made(desk, role="writer")
    for value, status in ((key["value"], 403), (of_another_tenant(desk), 404)):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(desk.app),
            base_url="http://strongroom",
            headers={"Authorization": f"Bearer {value}"},
        ) as http:
            assert (await http.get(f"/v1/keys/{key['id']}")).status_code == status
            assert (await http.delete(f"/v1/keys/{key['id']}")).status_code == status
            assert key["id"] not in (await http.get("/v1/keys")).text
    assert await status_with(desk, key["value"]) == 200


async def test_the_commands_make_rotate_and_end_keys(desk: Alone, tmp_path: Path) -> None:
    def keys(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["keys", *arguments, "--data-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.output.strip()

    value = keys("add", "reading room", "--group", "board", "--expires", "2999-01-31")
    (key,) = [
        each for each in (await desk.http.get("/v1/keys")).json()["data"] if each["name"] == "reading room"
    ]
    assert (key["groups"], key["expires_at"]) == (["board"], 32_474_736_000)
    assert await status_with(desk, value) == 200
    again = keys("rotate", key["id"])
    desk.services.keys._remembered.clear()
    assert [await status_with(desk, each) for each in (value, again)] == [401, 200]
    assert "expired" in keys("expire", key["id"])
    desk.services.keys._remembered.clear()
    assert await status_with(desk, again) == 401
    keys("expire", key["id"], "--at", "2999-01-31")
    assert await status_with(desk, again) == 200
    keys("revoke", key["id"])
    desk.services.keys._remembered.clear()
    assert await status_with(desk, again) == 401
