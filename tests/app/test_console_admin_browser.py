"""The admin's pages, signing in and access in a real browser: usable by everybody, and harmless whatever names say."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import orjson
import pytest
from playwright.async_api import Browser, expect
from sqlalchemy import update

from app.access.auth import put_in_groups
from retrieval.tables import AuditEntry, AuditEvent, Key, Role
from tests.app.alone import Alone, api_alone
from tests.app.browser import AXE, NO_AXE, opened_browser, signed_in
from tests.app.issuer import Issuer
from tests.app.test_console_browser import A_MOMENT_MS, must_be_usable
from tests.payloads import PAYLOADS
from tests.serving.hosting import loopback_socket, served

pytestmark = pytest.mark.processes

WIDTHS = (360, 1280, 2560)
Served = tuple[Alone, str]


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
async def served_api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """Where people may also sign in at an issuer."""
    folder, bound, issuer = tmp_path_factory.mktemp("admin"), loopback_socket(), Issuer()
    async with issuer.served():
        sections = {
            "oidc": issuer.settings(),
            "server": {"port": bound.getsockname()[1]},
            "backup": {"folder": str(folder / "backups")},
        }
        async with (
            api_alone(folder / "data", sections=sections) as alone,
            served(alone.app, is_started=True, bound=bound) as url,
            alone.working(),
        ):
            yield alone, url


async def filled(alone: Alone) -> tuple[str, str, str]:
    """A collection for a group, a document of it, and a key of that group."""
    store = (
        await alone.http.post("/v1/vector_stores", json={"name": "minutes", "readers": ["board"]})
    ).json()
    file = (await alone.http.post("/v1/files", files={"file": ("minutes.txt", b"It opens at nine.")})).json()
    await alone.http.post(
        f"/v1/vector_stores/{store['id']}/files", json={"file_id": file["id"], "readers": ["board"]}
    )
    quotas = {"requests_per_minute": 600}
    asked = {"name": "night shift", "role": "writer", "groups": ["board", "staff"], "quotas": quotas}
    key = (await alone.http.post("/v1/keys", json=asked)).json()
    return store["id"], file["id"], key["id"]


async def test_an_admin_makes_a_key_rotates_it_and_revokes_it(browser: Browser, served_api: Served) -> None:
    alone, url = served_api
    async with signed_in(browser, url, alone.key) as visit:
        page = visit.page
        page.on("dialog", lambda dialog: dialog.accept())
        await visit.open("/console/admin")
        await page.fill("[name=name]", "weather station")
        await page.fill("[name=groups]", "field, staff")
        await page.select_option("[name=role]", "writer")
        await page.click("text=Make a key")
        await expect(page.locator("#new-key .secret")).to_contain_text("sr-")
        await page.click("#keys >> text=weather station")
        await page.fill("[name=name]", "weather mast")
        await page.click("summary:has-text('Limits')")
        await page.fill("[name=streams]", "2")
        await page.click("form:has([name=streams]) >> text=Keep")
        await expect(page.locator("h1")).to_have_text("weather mast")
        await page.click("button:has-text('Give it another text')")
        await expect(page.locator("#new-key .secret")).to_contain_text("sr-")
        await page.click("button:has-text('Revoke')")
        await expect(page.locator("h1")).to_have_text("Keys")
        await expect(page.locator("#keys >> text=weather mast")).to_have_count(0)
        await page.check("[name=ended]")
        await expect(page.locator("#keys >> text=weather mast")).to_have_count(1)


async def test_an_admin_narrows_verifies_and_saves_the_log_and_makes_a_backup(
    browser: Browser, served_api: Served
) -> None:
    alone, url = served_api
    await filled(alone)
    async with signed_in(browser, url, alone.key) as visit:
        page = visit.page
        await visit.open("/console/admin/audit")
        await page.select_option("[name=event]", "key.added")
        await expect(page.locator("#entries tbody tr td:nth-child(3)").first).to_have_text("key.added")
        await expect(page.locator("#entries td:has-text('document.added')")).to_have_count(0)
        async with page.expect_download() as saving:
            await page.click("text=Save as JSON lines")
        lines = Path(await (await saving.value).path()).read_text().splitlines()
        assert {orjson.loads(line)["event"] for line in lines} == {"key.added"}
        await page.click("text=Verify")
        await expect(page.locator("#verdict")).to_contain_text("All is as it was written")
        await page.click("nav >> text=Backups")
        await page.click("text=Back up now")
        await expect(page.locator("#backups")).to_contain_text("Made:")
        await expect(page.locator("#backups tbody tr")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_every_page_of_the_admin_is_usable_by_everybody_at_every_width(
    browser: Browser, served_api: Served, width: int, scheme: str
) -> None:
    if not AXE.is_file():
        pytest.skip(NO_AXE)
    alone, url = served_api
    store, file, key = await filled(alone)
    document = f"/console/collections/{store}/files/{file}"
    async with signed_in(browser, url, alone.key, width=width, height=900, scheme=scheme) as visit:
        page = visit.page
        await page.click("summary:has-text('Sign out')")
        await must_be_usable(visit)
        for path in (
            "/console/admin",
            "/console/admin?ended=true&named=nobody",
            f"/console/admin/keys/{key}",
            "/console/admin/audit",
            "/console/admin/audit?event=repaired",
            "/console/admin/retention",
            "/console/admin/backups",
            f"/console/collections/{store}",
            f"/console/collections/{store}/access",
            f"{document}?view=access",
        ):
            await visit.open(path)
            await must_be_usable(visit)
        await visit.open("/console/admin")
        await page.fill("[name=name]", "shown once")
        await page.click("summary:has-text('Limits')")
        await page.click("text=Make a key")
        await page.wait_for_selector("#new-key .secret")
        await must_be_usable(visit)
        await visit.open("/console/admin/audit")
        await page.click("text=Verify")
        await page.wait_for_selector("#verdict .card")
        await must_be_usable(visit)
        await visit.open("/console/admin/backups")
        await page.click("text=Back up now")
        await page.wait_for_selector("text=Made:")
        await must_be_usable(visit)
        # Whoever comes back with a state that is none.
        for path in ("/console/sign-in", "/console/sign-in/return?state=x&code=y"):
            await visit.open(path)
            await must_be_usable(visit)


async def test_no_name_group_or_detail_runs_or_calls_home(browser: Browser, served_api: Served) -> None:
    """Names and groups of people come from claims of their issuer; details of the log, from a database that somebody
    may have written to.
    """
    alone, url = served_api
    ids = []
    store, file, _ = await filled(alone)
    with alone.services.storage.database.write() as session:
        ring = alone.services.keys
        for payload in PAYLOADS:
            key, _ = ring.add(
                session, tenant_name="default", name=payload[:200], role=Role.READER, now=time.time()
            )
            put_in_groups(key, [payload[:64]])
            key.issuer = f"https://people.example/{payload}"
            ids.append(key.id)
        session.flush()
    with alone.services.storage.database.write() as session:
        for payload, key_id in zip(PAYLOADS, ids, strict=True):
            told = orjson.dumps({payload: payload}).decode()
            session.execute(
                update(AuditEntry)
                .where(AuditEntry.event == AuditEvent.KEY_ADDED, AuditEntry.objects.contains(key_id))
                .values(details=told, objects=orjson.dumps([payload]).decode(), key_id=key_id)
            )
    async with signed_in(browser, url, alone.key) as visit:
        lists = (("/console/admin", "Next page"), ("/console/admin/audit?event=key.added", "Older"))
        for first, leads_on in lists:
            path, pages = first, 0
            while path:
                await visit.open(path)
                assert await visit.was_harmless(), (visit.elsewhere, visit.errors)
                following = visit.page.locator(f"a:has-text('{leads_on}')")
                path = (await following.get_attribute("href") or "") if await following.count() else ""
                pages += 1
            assert pages > len(PAYLOADS) // 50
        for key_id in ids[::20]:
            await visit.open(f"/console/admin/keys/{key_id}")
            assert await visit.was_harmless(), (visit.elsewhere, visit.errors)
        for path in (f"/{store}/access", f"/{store}/files/{file}?view=access"):
            await visit.open(f"/console/collections{path}")
            assert await visit.was_harmless(), (visit.elsewhere, visit.errors)
        for payload in PAYLOADS[::20]:
            await visit.page.goto(f"{url}/console/sign-in/return?" + as_query(payload))
            assert await visit.was_harmless(), (visit.elsewhere, visit.errors)
        await visit.page.wait_for_timeout(A_MOMENT_MS)
        assert await visit.was_harmless(), (visit.elsewhere, visit.errors)
    with alone.services.storage.database.write() as session:
        session.execute(update(Key).where(Key.id.in_(ids)).values(revoked_at=1.0))


def as_query(payload: str) -> str:
    """What an issuer, or somebody in its place, may send a browser back with."""
    return urlencode({"state": payload, "code": payload, "error": payload, "error_description": payload})
