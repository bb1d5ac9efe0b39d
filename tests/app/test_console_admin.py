"""What admins do in the console: keys, the audit log, what is kept, backups, and who may read what."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
import pytest
from sqlalchemy import update

from app.access.auth import DEFAULT_TENANT
from app.access.retention import NONE
from app.console.audit_log import ROWS
from app.settings import read_settings
from app.storage.backup import Progress, restore
from app.storage.backup_runs import (
    LOST_AFTER_S,
    back_up_when_due,
    begin_run,
    end_run,
    last_run,
    name_at,
    tell_run,
)
from app.storage.opening import open_storage
from retrieval.tables import AuditEntry, Key, Role
from tests.app.alone import Alone, api_alone
from tests.app.visitor import visiting
from tests.fakes import ScriptedEngine

HTML = {"accept": "text/html"}
FRAGMENT = {"HX-Request": "true"}


@pytest.fixture(scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    folder = tmp_path_factory.mktemp("admin")
    async with (
        ScriptedEngine() as engine,
        api_alone(
            folder / "data",
            engine={"url": engine.url, "keeps_nothing": True},
            sections={"backup": {"folder": str(folder / "backups")}, "audit": {"keep_days": 400}},
        ) as opened,
    ):
        yield opened


@pytest.fixture
async def admin(alone: Alone) -> AsyncIterator[httpx.AsyncClient]:
    async with visiting(alone, alone.key) as client:
        yield client


def new_key(alone: Alone, role: Role, *groups: str, tenant: str = DEFAULT_TENANT) -> tuple[str, str]:
    """Its id and its text."""
    with alone.services.storage.database.write() as session:
        key, text = alone.services.keys.add(
            session, tenant_name=tenant, name="of a test", role=role, now=time.time(), groups=groups
        )
        return key.id, text


async def made(admin: httpx.AsyncClient, **form: str) -> str:
    """The text of a key that was made in the console."""
    reply = await admin.post("/console/admin/keys", data={"name": "laptop", **form})
    assert reply.status_code == 200, reply.text
    assert reply.headers["HX-Trigger"] == "keys-changed"
    told = re.search(r'class="secret">(sr-[\w-]+)<', reply.text)
    assert told is not None
    return told[1]


async def event_of(alone: Alone, event: str) -> dict[str, object]:
    """The newest entry of that event."""
    listed = (await alone.http.get("/v1/audit", params={"event": event, "limit": 1})).json()["data"]
    assert listed, event
    entry: dict[str, object] = listed[0]
    return entry


async def test_a_key_is_made_with_all_that_it_may_do(alone: Alone, admin: httpx.AsyncClient) -> None:
    text = await made(
        admin,
        name="night shift",
        role="writer",
        groups="staff, board",
        expires_at="2099-12-31T18:00",
        requests_per_minute="60",
        stored_bytes="1000000",
    )
    headers = {"Authorization": f"Bearer {text}"}
    assert (await alone.http.get("/v1/files", headers=headers)).headers["x-ratelimit-limit-requests"] == "60"
    key = next(
        each for each in (await alone.http.get("/v1/keys")).json()["data"] if each["name"] == "night shift"
    )
    assert (key["role"], key["groups"], key["expires_at"]) == ("writer", ["board", "staff"], 4102423200)
    assert key["quotas"] == {"requests_per_minute": 60, "stored_bytes": 1000000}
    page = (await admin.get("/console/admin")).text
    assert text not in page
    assert "board, staff" in page
    shown = (await admin.get(f"/console/admin/keys/{key['id']}")).text
    assert 'value="2099-12-31T18:00"' in shown
    assert 'name="requests_per_minute" inputmode="numeric" value="60"' in shown
    assert (await event_of(alone, "key.added"))["objects"] == [key["id"]]


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"name": ""}, "name"),
        ({"role": "owner"}, "role"),
        ({"groups": "*"}, "groups"),
        ({"groups": "<img>"}, "groups"),
        ({"expires_at": "2001-01-01T00:00"}, "lie ahead"),
        ({"expires_at": "soon"}, "2030-12-31T18:00"),
        ({"streams": "many"}, "quotas.streams"),
        ({"streams": "0"}, "quotas.streams"),
        ({"streams": "9" * 40}, "quotas.streams"),
        ({"name": "x" * 201}, "name"),
    ],
)
async def test_what_a_key_cannot_be_is_said_where_it_was_written(
    admin: httpx.AsyncClient, form: dict[str, str], says: str
) -> None:
    reply = await admin.post("/console/admin/keys", data={"name": "laptop", **form}, headers=FRAGMENT)
    assert (reply.status_code, reply.headers["HX-Retarget"]) == (400, "#notice")
    assert says in reply.text


async def test_a_key_is_changed_and_what_was_not_changed_stays(
    alone: Alone, admin: httpx.AsyncClient
) -> None:
    await made(admin, name="old name", groups="staff", expires_at="2099-12-31T18:00", streams="4")
    key = (await alone.http.get("/v1/keys", params={"limit": 1})).json()["data"][0]
    here = f"/console/admin/keys/{key['id']}"
    form = {"name": "new name", "groups": "board", "expires_at": "2099-12-31T18:00", "streams": ""}
    assert (await admin.post(here, data=form)).headers["HX-Refresh"] == "true"
    now = (await alone.http.get(f"/v1/keys/{key['id']}")).json()
    assert (now["name"], now["groups"], now["quotas"]) == ("new name", ["board"], None)
    assert now["expires_at"] == key["expires_at"]
    # One that has ended can still be renamed.
    with alone.services.storage.database.write() as session:
        session.execute(update(Key).where(Key.id == key["id"]).values(expires_at=1_000_000_020.0))
    reply = await admin.post(here, data={"name": "ended", "expires_at": "2001-09-09T01:47"})
    assert reply.status_code == 200, reply.text
    assert "ended 2001-09-09 01:47" in (await admin.get("/console/admin")).text


async def test_another_text_is_shown_once_and_the_old_one_stops_when_it_was_said(
    alone: Alone, admin: httpx.AsyncClient
) -> None:
    key_id, old = new_key(alone, Role.READER)
    for grace_s, status in ((3600, 200), (0, 401)):
        rotated = await admin.post(
            f"/console/admin/keys/{key_id}/rotate", data={"grace_seconds": str(grace_s)}
        )
        new = re.search(r'class="secret">(sr-[\w-]+)<', rotated.text)
        assert new is not None
        alone.services.keys._remembered.clear()
        for text, wanted in ((new[1], 200), (old, status)):
            headers = {"Authorization": f"Bearer {text}"}
            assert (await alone.http.get("/v1/files", headers=headers)).status_code == wanted
        assert new[1] not in (await admin.get(f"/console/admin/keys/{key_id}")).text


async def test_an_admin_signs_a_key_out_everywhere_and_revokes_it(
    alone: Alone, admin: httpx.AsyncClient
) -> None:
    key_id, text = new_key(alone, Role.READER)
    async with visiting(alone, text) as visitor:
        await admin.post(f"/console/admin/keys/{key_id}/sign-out")
        assert (await visitor.get("/console")).status_code == 401
        assert (await event_of(alone, "session.ended"))["objects"] == [key_id]
    async with visiting(alone, text) as visitor:
        assert (await visitor.get("/console")).status_code == 200
        revoked = await admin.delete(f"/console/admin/keys/{key_id}")
        assert revoked.headers["HX-Redirect"] == "/console/admin"
        assert (await visitor.get("/console")).status_code == 401
    assert (await admin.get(f"/console/admin/keys/{key_id}")).status_code == 404
    assert key_id not in (await admin.get("/console/admin")).text
    assert key_id in (await admin.get("/console/admin", params={"ended": "true"})).text


async def test_keys_are_gone_through_by_pages_and_by_name(alone: Alone, admin: httpx.AsyncClient) -> None:
    with alone.services.storage.database.write() as session:
        for number in range(120):
            alone.services.keys.add(
                session, tenant_name=DEFAULT_TENANT, name=f"sensor {number:03}%", role=Role.READER, now=1.0
            )
    seen: list[str] = []
    path = "/console/admin?named=sensor"
    while path:
        page = (await admin.get(path, headers=FRAGMENT)).text
        seen += re.findall(r">(sensor \d+%)<", page)
        following = re.search(r'href="([^"]+)">Next page', page)
        path = following[1].replace("&amp;", "&") if following is not None else ""
    assert sorted(seen) == [f"sensor {number:03}%" for number in range(120)]
    assert "sensor" not in (await admin.get("/console/admin?named=%25%25", headers=FRAGMENT)).text


async def test_the_log_is_gone_through_by_event_key_and_time(alone: Alone, admin: httpx.AsyncClient) -> None:
    key_id, text = new_key(alone, Role.WRITER)
    headers = {"Authorization": f"Bearer {text}"}
    for _ in range(ROWS + 5):
        assert (await alone.http.post("/v1/vector_stores", json={}, headers=headers)).status_code == 200
    await alone.services.audit.settle()
    here = "/console/admin/audit"
    page = (await admin.get(here, params={"event": "collection.added", "key_id": key_id})).text
    assert len(re.findall(r"<td>collection\.added</td>", page)) == ROWS
    older = re.search(r'href="([^"]+)">Older', page)
    assert older is not None
    rest = (await admin.get(older[1].replace("&amp;", "&"))).text
    assert len(re.findall(r"<td>collection\.added</td>", rest)) == 5
    assert "Newest" in rest
    assert "of a test" in rest
    tomorrow = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(time.time() + 86_400))
    assert "No entry is so." in (await admin.get(here, params={"since": tomorrow})).text
    assert key_id in (await admin.get(here, params={"until": tomorrow, "key_id": key_id})).text
    for wrong in ("event=nonsense", "since=yesterday", "key_id=<b>"):
        assert (await admin.get(f"{here}?{wrong}")).status_code == 400


async def test_the_log_is_saved_whole_and_as_the_api_tells_it(alone: Alone, admin: httpx.AsyncClient) -> None:
    reply = await admin.get("/console/admin/audit/export", params={"event": "key.added"})
    assert re.search(r'attachment; filename="audit-[\d-]+\.jsonl"', reply.headers["content-disposition"])
    lines = [orjson.loads(line) for line in reply.text.splitlines()]
    told = await alone.http.get("/v1/audit?event=key.added&order=asc&limit=1000")
    assert lines == told.json()["data"]
    everything = await admin.get("/console/admin/audit/export")
    assert len(everything.text.splitlines()) > len(lines)


async def test_the_log_is_verified_and_what_was_changed_is_named(tmp_path: Path) -> None:
    async with api_alone(tmp_path) as alone, visiting(alone, alone.key) as admin:
        told = (await admin.get("/console/admin/audit/verify", headers=FRAGMENT)).text
        assert "All is as it was written" in told
        await alone.http.post("/v1/vector_stores", json={})
        with alone.services.database.engine.begin() as connection:
            connection.execute(update(AuditEntry).where(AuditEntry.seq == 1).values(event="search"))
        told = (await admin.get("/console/admin/audit/verify", headers=FRAGMENT)).text
        assert "not as it was written" in told
        assert "number 1." in told


async def test_an_admin_has_nothing_kept_of_a_key_or_of_all_where_that_can_be_promised(
    alone: Alone, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, _ = new_key(alone, Role.READER)
    key, tenant = f"/console/admin/keys/{key_id}/retention", "/console/admin/retention"
    monkeypatch.setattr(alone.services.retention, "obstacles", lambda: ["Swap is on."])
    for path in (key, tenant):
        refused = await admin.post(path, data={"retention": NONE})
        assert refused.status_code == 400
        assert "Swap is on." in refused.text
    assert "Swap is on." in (await admin.get(tenant)).text
    monkeypatch.setattr(alone.services.retention, "obstacles", list)
    await admin.post(key, data={"retention": NONE})
    assert (await event_of(alone, "retention.changed"))["details"] == {"retention": "none"}
    assert alone.services.keys.scope_of_id(key_id).keeps_nothing
    page = (await admin.get(tenant)).text
    assert "of a test" in page
    assert "for 400 days" in page
    await admin.post(key, data={"retention": "usual"})
    other_id, _ = new_key(alone, Role.READER)
    await admin.post(tenant, data={"retention": NONE})
    assert alone.services.keys.scope_of_id(other_id).keeps_nothing
    assert (await admin.get(tenant)).headers["x-strongroom-receipt"]
    await admin.post(tenant, data={"retention": "usual"})
    assert not alone.services.keys.scope_of_id(other_id).keeps_nothing


async def test_what_a_key_asks_that_keeps_nothing_is_in_no_conversation(
    alone: Alone, admin: httpx.AsyncClient
) -> None:
    key_id, text = new_key(alone, Role.READER)
    await admin.post(f"/console/admin/keys/{key_id}/retention", data={"retention": NONE})
    async with visiting(alone, text) as visitor:
        reply = await visitor.post("/console/ask", json={"question": "Where does the heron stand?"})
        assert reply.status_code == 200
        lines = [orjson.loads(line) for line in reply.text.splitlines()]
        assert any("closing" in line for line in lines)
        assert not any(line.get("conversation") for line in lines)
        page = (await visitor.get("/console")).text
        assert "Nothing is kept of what this key asks" in page
        assert "heron" not in page


async def test_a_backup_is_made_while_its_page_tells_how_far_it_is(
    alone: Alone, admin: httpx.AsyncClient
) -> None:
    for number in (1, 2, 3):
        await alone.http.post("/v1/files", files={"file": (f"{number}.txt", b"Nine" * number)})
    assert "There is none yet." in (await admin.get("/console/admin/backups")).text
    begun = (await admin.post("/console/admin/backups")).text
    assert "Making <code>" in begun
    assert "load delay:1s" in begun
    async with asyncio.timeout(20):
        while "Making" in (now := (await admin.get("/console/admin/backups/now")).text):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    name = re.search(r"<strong>Made:</strong> <code>([\w.-]+)</code>", now)
    assert name is not None
    assert (Path(alone.services.settings.backup.folder) / name[1]).stat().st_size > 10_000
    outcomes = (await alone.http.get("/v1/audit", params={"event": "backed_up", "limit": 2})).json()["data"]
    assert [each["outcome"] for each in outcomes] == ["done", "begun"]


async def test_two_backups_are_not_made_at_once_and_one_that_fails_says_why(
    alone: Alone, admin: httpx.AsyncClient
) -> None:
    folder = Path(alone.services.settings.backup.folder)
    folder.mkdir(exist_ok=True)
    # What is there under the name of this second, and the next few, cannot be made again.
    for second in range(4):
        name = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() + second))
        (folder / f"{name}.strongroom").touch()
    first, second_try = await asyncio.gather(*(admin.post("/console/admin/backups") for _ in range(2)))
    assert sorted((first.status_code, second_try.status_code)) == [200, 400]
    async with asyncio.timeout(20):
        while "Making" in (now := (await admin.get("/console/admin/backups/now")).text):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert "It was not made." in now
    assert "name another file" in now


async def test_every_process_tells_how_far_a_backup_is_and_makes_no_second_one(tmp_path: Path) -> None:
    sections = {"backup": {"folder": str(tmp_path / "backups")}}
    async with (
        api_alone(tmp_path / "data", sections=sections) as one,
        api_alone(tmp_path / "data", sections=sections) as other,
        visiting(one, one.key) as asking,
        visiting(other, one.key) as looking,
    ):
        database = one.services.storage.database
        maker = begin_run(database, "half.strongroom", now=time.time())
        tell_run(database, maker, Progress("files", 3, 8), now=time.time())
        for visitor in (asking, looking):
            page = (await visitor.get("/console/admin/backups")).text
            assert "Making <code>half.strongroom</code>: files" in page
            assert "3 of 8" in page
            assert "wait for its end" in (await visitor.post("/console/admin/backups")).text
        # Its process was killed: after a while another may begin, and the dead one has no say any more.
        tell_run(database, maker, Progress("files", 4, 8), now=time.time() - LOST_AFTER_S)
        assert "was ended before it was whole" in (await looking.get("/console/admin/backups/now")).text
        assert (await asking.post("/console/admin/backups")).status_code == 200
        end_run(database, maker, failed="from the grave", now=time.time())
        async with asyncio.timeout(20):
            while "Making" in (now := (await looking.get("/console/admin/backups/now")).text):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert "Made:" in now
        assert "grave" not in now
        run = last_run(database)
        assert run is not None
        archive = tmp_path / "backups" / run.name
    restored = read_settings().with_options(storage={"data_dir": str(tmp_path / "again")})
    (tmp_path / "again" / "keys").mkdir(parents=True)
    shutil.copy(tmp_path / "data" / "keys" / "master.key", tmp_path / "again" / "keys")
    assert restore(restored, archive).differences == []
    with open_storage(restored) as storage:
        assert last_run(storage.database) is None


async def test_a_backup_that_was_due_is_shown_as_one_that_was_asked_for(tmp_path: Path) -> None:
    sections = {"backup": {"folder": str(tmp_path / "backups"), "every_hours": 1}}
    async with api_alone(tmp_path / "data", sections=sections) as alone, visiting(alone, alone.key) as admin:
        settings, storage = alone.services.settings, alone.services.storage
        now = time.time()
        maker = begin_run(storage.database, "asked.strongroom", now=now)
        await asyncio.to_thread(back_up_when_due, settings, storage, now=now)
        assert not list((tmp_path / "backups").glob("*")), "beside one that an admin asked for"
        end_run(storage.database, maker, failed=None, now=now)
        making = asyncio.create_task(asyncio.to_thread(back_up_when_due, settings, storage, now=now))
        seen = set()
        while not making.done():
            seen.add("Making <code>" in (await admin.get("/console/admin/backups/now")).text)
        assert True in seen
        assert f"Made:</strong> <code>{name_at(now)}" in (await admin.get("/console/admin/backups")).text
        # That a later one fails is told, too.
        (tmp_path / "backups" / name_at(now)).rename(tmp_path / "elsewhere")
        (tmp_path / "backups").rmdir()
        (tmp_path / "backups").write_bytes(b"no folder")
        await asyncio.to_thread(back_up_when_due, settings, storage, now=now + 7200)
        run = last_run(storage.database)
        assert run is not None
        assert run.failed
        (tmp_path / "backups").unlink()
        assert "It was not made." in (await admin.get("/console/admin/backups")).text


async def test_without_a_folder_for_backups_the_page_says_what_to_do(tmp_path: Path) -> None:
    async with api_alone(tmp_path) as alone, visiting(alone, alone.key) as admin:
        assert "backup.folder" in (await admin.get("/console/admin/backups")).text
        assert (await admin.post("/console/admin/backups")).status_code == 400


async def test_only_admins_get_in_and_only_at_keys_of_their_tenant(alone: Alone) -> None:
    key_id, _ = new_key(alone, Role.READER)
    asked = [
        ("GET", "/console/admin"),
        ("GET", "/console/admin/audit"),
        ("GET", "/console/admin/audit/verify"),
        ("GET", "/console/admin/audit/export"),
        ("GET", "/console/admin/retention"),
        ("POST", "/console/admin/retention"),
        ("GET", "/console/admin/backups"),
        ("GET", "/console/admin/backups/now"),
        ("POST", "/console/admin/backups"),
        ("POST", "/console/admin/keys"),
    ]
    of_key = [
        ("GET", f"/console/admin/keys/{key_id}"),
        ("POST", f"/console/admin/keys/{key_id}"),
        ("POST", f"/console/admin/keys/{key_id}/rotate"),
        ("POST", f"/console/admin/keys/{key_id}/sign-out"),
        ("POST", f"/console/admin/keys/{key_id}/retention"),
        ("DELETE", f"/console/admin/keys/{key_id}"),
    ]
    _, writer = new_key(alone, Role.WRITER)
    async with visiting(alone, writer) as visitor:
        for method, path in asked + of_key:
            reply = await visitor.request(method, path, data={"name": "x"} if method == "POST" else None)
            assert reply.status_code == 403, path
    south_id, south = new_key(alone, Role.ADMIN, tenant="south")
    async with visiting(alone, south) as visitor:
        for method, path in of_key:
            reply = await visitor.request(method, path, data={"name": "x"} if method == "POST" else None)
            assert reply.status_code == 404, path
        assert key_id not in (await visitor.get("/console/admin")).text
        await alone.services.audit.settle()
        export = (await visitor.get("/console/admin/audit/export")).text
        assert {orjson.loads(line)["key_id"] for line in export.splitlines()} <= {None, south_id}


async def test_how_busy_all_tenants_are_is_told_to_who_runs_the_server(alone: Alone) -> None:
    texts = {
        (tenant, role): new_key(alone, role, tenant=tenant)[1]
        for tenant in (DEFAULT_TENANT, "south")
        for role in (Role.READER, Role.ADMIN)
    }
    for (tenant, role), text in texts.items():
        async with visiting(alone, text) as visitor:
            for path in ("/console/overview", "/console/overview/now"):
                page = (await visitor.get(path)).text
                assert "database: ready" in page
                runs_server = tenant == DEFAULT_TENANT and role is Role.ADMIN
                assert ("Tokens written" in page) is runs_server
                assert ("Disk used" in page) is runs_server
        reply = await alone.http.get("/metrics", headers={"Authorization": f"Bearer {text}"})
        assert reply.status_code == (200 if tenant == DEFAULT_TENANT else 403)


async def statuses(path: str, *visitors: httpx.AsyncClient) -> list[int]:
    return [(await each.get(path)).status_code for each in visitors]


async def test_who_reads_a_collection_and_a_document_is_shown_and_changed_by_groups(
    alone: Alone, admin: httpx.AsyncClient
) -> None:
    store = (await alone.http.post("/v1/vector_stores", json={"name": "minutes"})).json()["id"]
    file = (
        await alone.http.post("/v1/files", files={"file": ("minutes.txt", b"The vault opens at nine.")})
    ).json()
    await alone.http.post(f"/v1/vector_stores/{store}/files", json={"file_id": file["id"]})
    await alone.worker.drain()
    here, document = f"/console/collections/{store}", f"/console/collections/{store}/files/{file['id']}"
    assert "Read by every key" in (await admin.get(here)).text
    _, board = new_key(alone, Role.READER, "board")
    _, staff = new_key(alone, Role.WRITER, "staff")
    async with visiting(alone, board) as of_board, visiting(alone, staff) as of_staff:
        assert await statuses(document, of_board, of_staff) == [200, 200]
        await admin.post(f"{document}/access", data={"readers": "staff"})
        assert await statuses(document, of_board, of_staff) == [404, 200]
        assert "Keys in staff read this document" in (await admin.get(f"{document}?view=access")).text
        await admin.post(f"{document}/access", data={"readers": ""})
        await admin.post(f"{here}/access", data={"readers": "board", "writers": ""})
        assert await statuses(document, of_board, of_staff) == [200, 404]
        assert "Read by some groups" in (await of_board.get(here)).text
        shown = (await of_board.get(f"{here}/access")).text
        assert "Keys in board read this collection" in shown
        assert "An admin changes this." in shown
        assert 'name="readers"' not in (await of_board.get(f"{document}?view=access")).text
        refused = [
            await of_board.post(f"{here}/access", data={"readers": ""}),
            await of_board.post(f"{document}/access", data={"readers": ""}),
            await of_staff.post(f"{here}/access", data={"readers": ""}),
            await of_staff.post(f"{document}/access", data={"readers": "staff"}),
        ]
        assert [each.status_code for each in refused] == [403, 403, 403, 404]
    wrong = await admin.post(f"{here}/access", data={"readers": "<img>"})
    assert wrong.status_code == 400
    assert "readers" in wrong.text
    groups = (await admin.get(f"{here}/access")).text
    assert "Keys are in: " in groups
    await admin.post(f"{here}/access", data={"readers": "", "writers": ""})
    assert (await alone.http.get(f"/v1/vector_stores/{store}")).json()["readers"] is None
