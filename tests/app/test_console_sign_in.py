"""Who gets into the console and for how long: sessions that end on the server, and signing in at an issuer."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from sqlalchemy import event

from app.access.auth import KeyRing
from app.access.issuer_sign_in import BEGUN_FOR_S
from app.console.entry import BEGUN, VOUCHED
from app.console.session import COOKIE
from app.settings import SettingsInvalid, read_settings
from retrieval.ledger import Entry
from retrieval.replay import replay
from retrieval.tables import DeletedKind, Deletion, Key, Role
from tests.app.alone import Alone, api_alone
from tests.app.browser import opened_browser
from tests.app.issuer import CLIENT_ID, OTHER_KEY, Issuer, Json
from tests.app.visitor import copy_of, take_token, visiting
from tests.serving.hosting import loopback_socket, served


@pytest.fixture(scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    async with api_alone(tmp_path_factory.mktemp("console")) as opened:
        yield opened


def new_key(alone: Alone, role: Role = Role.WRITER) -> tuple[str, str]:
    """Its id and its text."""
    ring: KeyRing = alone.services.keys
    with alone.services.storage.database.write() as session:
        key, text = ring.add(session, tenant_name="default", name="of a test", role=role, now=time.time())
        return key.id, text


async def is_in(client: httpx.AsyncClient) -> bool:
    status = (await client.get("/console")).status_code
    assert status in (200, 401)
    return status == 200


async def test_who_signs_out_is_out_with_every_copy_of_the_cookie_and_nobody_else(alone: Alone) -> None:
    _, text = new_key(alone)
    async with visiting(alone, text) as visitor, visiting(alone, text) as elsewhere:
        copied = copy_of(visitor, alone)
        assert await is_in(copied)
        await visitor.post("/console/sign-out")
        assert not await is_in(visitor)
        assert not await is_in(copied)
        assert (await copied.post("/console/sign-out")).status_code == 401
        assert await is_in(elsewhere)


async def test_the_owner_of_a_key_signs_out_everywhere(alone: Alone) -> None:
    _, text = new_key(alone)
    _, other = new_key(alone)
    async with visiting(alone, text) as one, visiting(alone, text) as two, visiting(alone, other) as another:
        await one.post("/console/sign-out/everywhere")
        assert [await is_in(each) for each in (one, two, another)] == [False, False, True]
        async with visiting(alone, text) as again:
            assert await is_in(again)


async def test_another_text_of_a_key_ends_the_sessions_that_the_old_one_opened(alone: Alone) -> None:
    key_id, text = new_key(alone)
    async with visiting(alone, text) as visitor:
        assert (await alone.http.post(f"/v1/keys/{key_id}/rotate", json={})).status_code == 200
        assert not await is_in(visitor)


async def test_sessions_outlive_the_process_and_so_does_their_end(tmp_path: Path) -> None:
    async with (
        api_alone(tmp_path) as first,
        visiting(first, first.key) as stays,
        visiting(first, first.key) as out,
    ):
        left = copy_of(out, first)
        await out.post("/console/sign-out")
        stays_on, stays_out = copy_of(stays, first), left
    async with api_alone(tmp_path) as second:
        assert await is_in(copy_of(stays_on, second))
        assert not await is_in(copy_of(stays_out, second))


async def test_what_was_ended_stays_so_when_an_older_database_is_put_back(alone: Alone) -> None:
    """As a restore does it: the ledger is told again to rows that know nothing of it."""
    key_id, text = new_key(alone)
    async with visiting(alone, text) as one, visiting(alone, text) as two:
        copies = [copy_of(each, alone) for each in (one, two)]
        await one.post("/console/sign-out")
        await two.post("/console/sign-out/everywhere")
        kinds = (DeletedKind.SESSION, DeletedKind.KEY_SESSIONS)
        with alone.services.storage.database.write() as session:
            rows = session.query(Deletion).where(Deletion.kind.in_(kinds)).all()
            entries = [Entry(row.kind, row.object_id, row.tenant_id) for row in rows]
            for row in rows:
                session.delete(row)
            session.get_one(Key, key_id).sessions_since = None
        assert [await is_in(each) for each in copies] == [True, True]
        assert replay(alone.services.database, alone.services.blobs, entries) >= 1
        assert [await is_in(each) for each in copies] == [False, False]


async def test_a_request_of_a_visitor_asks_sql_no_more_than_one_with_a_key(alone: Alone) -> None:
    """Its session and its key are read as one."""
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement)

    key_id, text = new_key(alone)
    async with visiting(alone, text) as visitor:
        engine = alone.services.database.engine
        await alone.services.audit.settle()
        event.listen(engine, "before_cursor_execute", note)
        alone.services.keys.scope_of_id(key_id)
        of_key, statements[:] = len(statements), []
        await visitor.get("/console/collections/vs_none", headers={"accept": "application/json"})
        event.remove(engine, "before_cursor_execute", note)
    of_session = [
        each for each in statements if " keys" in each or " tenants" in each or " deletions" in each
    ]
    assert len(of_session) <= of_key


async def test_signing_in_and_out_is_told_in_the_audit_log_and_so_is_a_wrong_key(alone: Alone) -> None:
    key_id, text = new_key(alone)
    async with visiting(alone, text) as visitor:
        await visitor.post("/console/sign-in", data={"key": "sr-wrong"})
        await visitor.post("/console/sign-out")
    await alone.services.audit.settle()
    listed = (await alone.http.get("/v1/audit", params={"key_id": key_id, "order": "asc"})).json()["data"]
    begun, ended = (each for each in listed if each["event"].startswith("session."))
    assert (begun["event"], ended["event"]) == ("session.begun", "session.ended")
    assert begun["objects"] == ended["objects"]


# At an issuer.


@pytest.fixture(scope="module")
async def issuer_of_module() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    async with issuer.served():
        yield issuer


@pytest.fixture(scope="module")
async def trusting(
    issuer_of_module: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Alone]:
    """A server that lets people sign in at that issuer."""
    oidc = {"oidc": issuer_of_module.settings()}
    async with api_alone(tmp_path_factory.mktemp("trusting"), sections=oidc) as opened:
        yield opened


@pytest.fixture
def issuer(issuer_of_module: Issuer) -> Issuer:
    """As it was at first."""
    issuer_of_module.person, issuer_of_module.lies = {}, {}
    issuer_of_module.signs_with, issuer_of_module.exchanges = Issuer().signs_with, 0
    issuer_of_module.signed_out = []
    return issuer_of_module


@asynccontextmanager
async def at_issuer(alone: Alone) -> AsyncIterator[tuple[httpx.AsyncClient, Json]]:
    """A browser that went there, and what it was sent with."""
    transport = httpx.ASGITransport(alone.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://strongroom") as client:
        reply = await client.get("/console/sign-in/begin")
        assert reply.status_code == 303
        asked = dict(parse_qsl(urlsplit(reply.headers["location"]).query))
        # httpx sends what is for this path to no other, as browsers do.
        yield client, asked


async def comes_back(client: httpx.AsyncClient, told: Json) -> httpx.Response:
    return await client.get("/console/sign-in/return", params=told, headers={"sec-fetch-site": "cross-site"})


async def test_a_person_signs_in_at_the_issuer_as_their_claims_say(trusting: Alone, issuer: Issuer) -> None:
    issuer.person = {"sub": "grace", "groups": ["board"]}
    async with at_issuer(trusting) as (client, asked):
        back = await comes_back(client, issuer.allow(asked))
        assert back.status_code == 200
        assert 'content="0;url=/console"' in back.text
        cookie = next(each for each in back.headers.get_list("set-cookie") if each.startswith(COOKIE))
        assert "SameSite=strict" in cookie
        await take_token(client)
        await client.post("/console/collections", data={"name": "hers"})  # A writer may.
        assert "hers" in (await client.get("/console/collections")).text
    keys = (await trusting.http.get("/v1/keys")).json()["data"]
    (key,) = (each for each in keys if each["name"] == "grace")
    assert (key["role"], key["groups"], key["issuer"]) == ("writer", ["board"], "https://people.example")


async def test_a_session_ends_with_the_token_that_it_rests_on_or_as_the_settings_say(
    trusting: Alone, issuer: Issuer, tmp_path: Path
) -> None:
    async def lasts(alone: Alone) -> int:
        async with at_issuer(alone) as (client, asked):
            back = await comes_back(client, issuer.allow(asked))
            cookie = next(each for each in back.headers.get_list("set-cookie") if each.startswith(COOKIE))
            return int(cookie.partition("Max-Age=")[2].partition(";")[0])

    assert 290 <= await lasts(trusting) <= 300
    async with api_alone(tmp_path, sections={"oidc": issuer.settings(session_minutes=90)}) as other:
        assert await lasts(other) == 90 * 60
    issuer.lies = {"exp": int(time.time()) + 2}
    async with at_issuer(trusting) as (client, asked):
        await comes_back(client, issuer.allow(asked))
        copied = copy_of(client, trusting)
        assert await is_in(copied)
        for cookie in copied.cookies.jar:
            cookie.expires = None  # A thief's browser forgets nothing.
        time.sleep(2.1)  # noqa: ASYNC251
        assert not await is_in(copied)


@pytest.mark.parametrize("where", ["", "/everywhere"])
async def test_who_signs_out_here_is_sent_to_sign_out_at_the_issuer(
    trusting: Alone, issuer: Issuer, where: str
) -> None:
    issuer.person = {"sub": "grace"}
    async with at_issuer(trusting) as (client, asked):
        back = await comes_back(client, issuer.allow(asked))
        cookie = next(each for each in back.headers.get_list("set-cookie") if each.startswith(VOUCHED))
        assert "SameSite=strict" in cookie
        assert "HttpOnly" in cookie
        assert "Path=/console/sign-out" in cookie
        await take_token(client)
        address = (await client.post(f"/console/sign-out{where}")).headers["hx-redirect"]
        assert not await is_in(client)
        assert VOUCHED not in client.cookies
    async with httpx.AsyncClient() as browser:
        ended = await browser.get(address)
    assert issuer.signed_out == ["grace"]
    assert ended.headers["location"] == f"{trusting.services.settings.public_url}/console/sign-in"


async def test_a_token_that_no_cookie_can_hold_lets_the_issuer_ask_who_signs_out(
    trusting: Alone, issuer: Issuer
) -> None:
    issuer.person = {"sub": "hedy", "groups": [f"a group with a long name {number}" for number in range(200)]}
    async with at_issuer(trusting) as (client, asked):
        back = await comes_back(client, issuer.allow(asked))
        assert max(map(len, back.headers.get_list("set-cookie"))) < 4096
        await take_token(client)
        address = (await client.post("/console/sign-out")).headers["hx-redirect"]
    assert "id_token_hint" not in address


async def test_who_came_with_a_key_or_where_the_issuer_has_no_such_address_stays_here(
    trusting: Alone, issuer: Issuer, tmp_path: Path
) -> None:
    async with visiting(trusting, trusting.key) as visitor:
        assert (await visitor.post("/console/sign-out")).headers["hx-redirect"] == "/console/sign-in"
    async with (
        api_alone(tmp_path, sections={"oidc": issuer.settings(end_session_endpoint="")}) as other,
        at_issuer(other) as (client, asked),
    ):
        await comes_back(client, issuer.allow(asked))
        await take_token(client)
        assert (await client.post("/console/sign-out")).headers["hx-redirect"] == "/console/sign-in"


Attack = Callable[[Json, Json], Json]
"""What comes with the browser, from what it was sent to the issuer with and what the issuer answered."""

ATTACKS: dict[str, Attack] = {
    "another state": lambda _, told: {**told, "state": "0" * 43},
    "no state": lambda _, told: {"code": told["code"]},
    "empty state": lambda _, told: {**told, "state": ""},
    "a state that is no text of ours": lambda _, told: {**told, "state": "ÿ\x00"},
    "a code that was made up": lambda _, told: {**told, "code": "made up"},
    "no code": lambda _, told: {**told, "code": ""},
    "another issuer": lambda _, told: {**told, "iss": "https://evil.example"},
    "an error of the issuer": lambda _, told: {"state": told["state"], "error": "<b>server_error</b>"},
    "no for an answer": lambda _, told: {"state": told["state"], "error": "access_denied"},
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_who_comes_back_with_something_else_stays_out(
    trusting: Alone, issuer: Issuer, attack: str
) -> None:
    async with at_issuer(trusting) as (client, asked):
        back = await comes_back(client, ATTACKS[attack](asked, issuer.allow(asked)))
        assert back.status_code == 401
        assert 'role="alert"' in back.text
        assert "server_error" not in back.text
        assert not await is_in(client)


LIES: dict[str, Json] = {
    "another nonce": {"nonce": "0" * 43},
    "no nonce": {"nonce": None},
    "another audience": {"aud": "another program"},
    "our audience of bearer tokens": {"aud": "strongroom"},
    "two audiences, and for the other one": {"aud": [CLIENT_ID, "another"], "azp": "another"},
    "two audiences, and not for whom": {"aud": [CLIENT_ID, "another"]},
    "asked for by another": {"azp": "another"},
    "another issuer": {"iss": "https://evil.example"},
    "ended": {"exp": int(time.time()) - 60},
    "a role that is none": {"role": "owner"},
    "no role": {"role": None},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_token_that_is_not_for_this_sign_in_lets_nobody_in(
    trusting: Alone, issuer: Issuer, lie: str
) -> None:
    issuer.lies = LIES[lie]
    async with at_issuer(trusting) as (client, asked):
        back = await comes_back(client, issuer.allow(asked))
        assert (back.status_code, issuer.exchanges) == (401, 1)
        assert not await is_in(client)


async def test_a_token_that_somebody_else_signed_lets_nobody_in(trusting: Alone, issuer: Issuer) -> None:
    issuer.signs_with = OTHER_KEY
    async with at_issuer(trusting) as (client, asked):
        assert (await comes_back(client, issuer.allow(asked))).status_code == 401
        assert not await is_in(client)


async def test_a_code_is_used_once(trusting: Alone, issuer: Issuer) -> None:
    async with at_issuer(trusting) as (client, asked):
        told = issuer.allow(asked)
        thief = copy_of(client, trusting)
        assert (await comes_back(client, told)).status_code == 200
        # The same browser has forgotten it; who copied its cookies in time is refused by the issuer.
        again = await comes_back(client, told)
        assert (again.status_code, issuer.exchanges) == (401, 1)
        assert (await comes_back(thief, told)).status_code == 401
        assert issuer.exchanges == 2
        assert not await is_in(thief)


async def test_nobody_finishes_in_one_browser_what_was_begun_in_another(
    trusting: Alone, issuer: Issuer
) -> None:
    """Else a person could be signed in as the attacker, and tell them all that they ask."""
    async with at_issuer(trusting) as (_, of_attacker), at_issuer(trusting) as (victim, __):
        assert (await comes_back(victim, issuer.allow(of_attacker))).status_code == 401
        assert issuer.exchanges == 0
    transport = httpx.ASGITransport(trusting.app)
    async with (
        at_issuer(trusting) as (_, asked),
        httpx.AsyncClient(transport=transport, base_url="http://strongroom") as nobody,
    ):
        assert (await comes_back(nobody, issuer.allow(asked))).status_code == 401
        nobody.cookies.set(BEGUN, "Zm9yZ2Vk")
        assert (await comes_back(nobody, issuer.allow(asked))).status_code == 401


async def test_a_code_that_was_stolen_on_its_way_is_of_no_use_without_what_the_browser_keeps(
    trusting: Alone, issuer: Issuer
) -> None:
    """PKCE: the thief begins a sign-in of their own, and puts in the code of somebody else."""
    async with at_issuer(trusting) as (_, of_victim), at_issuer(trusting) as (thief, asked):
        stolen = issuer.allow(of_victim)["code"]
        back = await comes_back(thief, {"code": stolen, "state": asked["state"]})
        assert (back.status_code, issuer.exchanges) == (401, 1)


async def test_it_leads_to_our_first_page_whatever_the_address_says(trusting: Alone, issuer: Issuer) -> None:
    evil = dict.fromkeys(("next", "redirect_uri", "url", "return_to"), "https://evil.example/")
    async with at_issuer(trusting) as (client, asked):
        assert asked["redirect_uri"] == "http://127.0.0.1:8080/console/sign-in/return"
        back = await comes_back(client, {**issuer.allow(asked), **evil})
        assert back.status_code == 200
        assert "evil" not in back.text + str(back.headers)
        begun = await client.get("/console/sign-in/begin", params=evil)
        assert "evil" not in begun.headers["location"]


async def test_who_takes_too_long_begins_again(
    trusting: Alone, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in = trusting.services.issuer_sign_in
    async with at_issuer(trusting) as (client, asked):
        told = issuer.allow(asked)
        monkeypatch.setattr(sign_in, "_clock", lambda: time.time() + BEGUN_FOR_S + 1)
        back = await comes_back(client, told)
        assert back.status_code == 401
        assert "took too long" in back.text


async def test_an_issuer_that_is_away_is_told_so(trusting: Alone, issuer: Issuer, tmp_path: Path) -> None:
    with loopback_socket() as nobody_listens:
        away = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/token"
        async with (
            api_alone(tmp_path, sections={"oidc": issuer.settings(token_endpoint=away)}) as alone,
            at_issuer(alone) as (client, asked),
        ):
            assert "cannot be reached" in (await comes_back(client, issuer.allow(asked))).text


async def test_a_person_whose_key_was_revoked_is_told_that_they_have_no_access(
    trusting: Alone, issuer: Issuer
) -> None:
    issuer.person = {"sub": "mallory"}
    async with at_issuer(trusting) as (client, asked):
        await comes_back(client, issuer.allow(asked))
        assert await is_in(client)
        keys = (await trusting.http.get("/v1/keys")).json()["data"]
        (key_id,) = (each["id"] for each in keys if each["name"] == "mallory")
        await trusting.http.delete(f"/v1/keys/{key_id}")
        assert not await is_in(client)
    async with at_issuer(trusting) as (client, asked):
        back = await comes_back(client, issuer.allow(asked))
        assert "you have no access here" in back.text


async def test_without_an_issuer_there_is_nothing_to_sign_in_at(alone: Alone) -> None:
    assert "organisation" not in (await alone.http.get("/console/sign-in")).text
    for path in ("begin", "return"):
        assert (await alone.http.get(f"/console/sign-in/{path}")).status_code == 404


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"client_id": "a"}, "client_id needs"),
        ({"scopes": "profile"}, "openid"),
        ({"client_secret": "a", "client_secret_file": "b"}, "one of"),
        ({"token_endpoint": "http://people.example/token"}, "https"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "no address"),
        ({"end_session_endpoint": "http://people.example/end"}, "https"),
    ],
)
def test_settings_that_would_lead_people_astray_are_refused(settings: Json, says: str) -> None:
    with pytest.raises(SettingsInvalid, match=says):
        read_settings().with_options(oidc=settings)


@pytest.mark.processes
async def test_a_person_signs_in_at_another_site_in_a_real_browser(issuer: Issuer, tmp_path: Path) -> None:
    """Browsers keep a strict cookie from what another site's page leads to, which this has to get around."""
    bound = loopback_socket()
    sections = {"oidc": issuer.settings(), "server": {"port": bound.getsockname()[1]}}
    issuer.person = {"sub": "ada", "role": "admin"} | {"name": "<img src=x onerror=window.pwned=1>"}
    async with (
        api_alone(tmp_path, sections=sections) as alone,
        served(alone.app, is_started=True, bound=bound) as url,
        opened_browser() as browser,
    ):
        page = await browser.new_page()
        await page.goto(url)
        await page.wait_for_load_state()
        await page.click("text=Sign in with your organisation")
        assert urlsplit(page.url).hostname == "localhost"
        await page.click("text=Allow")
        await page.wait_for_selector("#composer")
        assert page.url == f"{url}/console"
        await page.click("text=Sign out")
        await page.click("text=Sign out here")
        await page.wait_for_selector("text=Sign in with your organisation")
        assert page.url == f"{url}/console/sign-in"
        assert issuer.signed_out == ["ada"]
