"""By which names the API may be called, and the headers that every reply of it has."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.edge.hosts import KnownHosts
from app.settings import Settings
from tests.app.alone import Alone, api_alone

OF_THE_SETTINGS = {
    "host": "0.0.0.0",
    "public_url": "https://rooms.example.org",
    "hosts": "Second.example.org",
}


@pytest.fixture(scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    async with api_alone(tmp_path_factory.mktemp("desk")) as alone:
        yield alone


@pytest.mark.parametrize("path", ["/v1/files", "/mcp", "/health", "/console/sign-in", "/nowhere"])
async def test_a_name_that_a_page_elsewhere_may_have_is_refused_on_every_route(
    desk: Alone, path: str
) -> None:
    for host in (
        "evil.test",
        "127.0.0.1.evil.test",
        "evil.test:8080",
        "localhost@evil.test",
        "",
        "a/b",
        "[::1",
    ):
        reply = await desk.http.get(path, headers={"Host": host})
        assert (reply.status_code, reply.json()["error"]["code"]) == (421, "wrong_host"), host
        assert "server.hosts" in reply.json()["error"]["message"]
        assert reply.headers["x-request-id"]
    twice = httpx.Headers([("Host", "localhost"), ("Host", "evil.test")])
    assert (await desk.http.get(path, headers=twice)).status_code == 421


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "127.0.0.1:9", "[::1]:8080", "192.168.1.7", "[fe80::1]", "api:8080"],
)
async def test_names_and_addresses_that_nobody_else_can_have_are_taken(desk: Alone, host: str) -> None:
    assert (await desk.http.get("/v1/models", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    ("hosts", "asked", "status"),
    [
        ("", "rooms.example.org", 200),
        ("", "second.example.org", 421),
        ("Second.example.org", "second.EXAMPLE.org:443", 200),
        ("Second.example.org", "third.example.org", 421),
        ("*", "third.example.org", 200),
        ("*", "third.example.org/path", 421),
    ],
)
async def test_the_settings_name_more(hosts: str, asked: str, status: int) -> None:
    settings = Settings().with_options(server={**OF_THE_SETTINGS, "hosts": hosts})

    async def ok(_: object, __: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(KnownHosts(ok, settings=settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get("/", headers={"Host": asked})).status_code == status


@pytest.mark.parametrize("path", ["/v1/models", "/v1/files/file-0", "/health", "/nowhere", "/openapi.json"])
async def test_a_reply_that_a_browser_is_led_to_shows_and_keeps_nothing(desk: Alone, path: str) -> None:
    headers = (await desk.http.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


async def test_pages_keep_a_policy_of_their_own(desk: Alone) -> None:
    page = await desk.http.get("/console/sign-in")
    assert "script-src" in page.headers["content-security-policy"]
    assert len(page.headers.get_list("content-security-policy")) == 1
