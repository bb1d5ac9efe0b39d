"""The audit log: what was done stands in it, by ids and keyed hashes, and what cannot be entered is not done."""

import ast
import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import delete, select, update
from typer.testing import CliRunner

from app.access.audit import GROUP_S, MOST_WAITING, AuditTrail, read_checkpoints
from app.access.auth import KeyRing
from app.cli import cli
from app.settings import read_settings
from app.storage.opening import open_storage
from retrieval.audit import AuditKey, AuditUnavailable
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import AuditEntry, AuditEvent, AuditHead, AuditOutcome, Role
from tests.app.alone import Alone, api_alone
from tests.app.test_at_rest import CANARY, QUESTION, add, found
from tests.fakes import ScriptedEngine

APP = Path(__file__).parents[2] / "app"
UNRECORDED = {
    ("uploads", "begin"),
    ("uploads", "create_upload"),
    ("uploads", "keep_part"),
    ("uploads", "cancel_upload"),
}
"""Of a file that arrives in parts its completion is an entry."""
RECORDS = re.compile(r"audit\.record\(|(keys\.\w+|set_retention)\(.*by=|(?<![\w.])keep\(")
KEY = AuditKey(b"s" * 32, b"w" * 32)
Entry = dict[str, Any]


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Alone]:
    async with api_alone(tmp_path / "data") as opened:
        yield opened


async def entries(alone: Alone, http: httpx.AsyncClient | None = None, **params: Any) -> list[Entry]:
    """Oldest first."""
    await alone.services.audit.settle()
    reply = await (http or alone.http).get("/v1/audit", params={"order": "asc", "limit": 1000, **params})
    assert reply.status_code == 200, reply.text
    listed: list[Entry] = reply.json()["data"]
    return listed


def key_of(alone: Alone, role: Role, tenant: str = "default") -> dict[str, str]:
    """The header of a new key."""
    ring: KeyRing = alone.services.keys
    with alone.services.database.write() as session:
        _, text = ring.add(session, tenant_name=tenant, name="tests", role=role, now=1.0)
    return {"Authorization": f"Bearer {text}"}


def spoil(database: Database) -> None:
    """As who can write to the database, and has no key."""
    with database.engine.begin() as connection:
        connection.execute(update(AuditHead).values(hash="11" * 32))


async def test_what_a_person_does_stands_in_the_log_by_ids_and_never_by_words(alone: Alone) -> None:
    store_id, file_id = await add(alone)
    assert await found(alone, store_id) == [file_id]
    assert (await alone.http.get(f"/v1/files/{file_id}/content")).status_code == 200
    assert (await alone.http.delete(f"/v1/files/{file_id}")).status_code == 200
    listed = await entries(alone)
    events = [each["event"] for each in listed]
    for event in ("key.used", "file.added", "collection.added", "document.added", "search", "file.read"):
        assert event in events, events
    assert "file.deleted" in events
    assert CANARY not in str(listed)
    (search,) = (each for each in listed if each["event"] == "search")
    assert search["objects"] == [store_id, file_id]
    assert search["details"] == {"query": alone.services.audit.keyed_hash(QUESTION)}
    assert (await alone.http.get("/v1/audit/verify")).json()["problem"] is None


async def test_an_answer_names_its_request_and_hashes_the_question(tmp_path: Path) -> None:
    async with ScriptedEngine() as engine, api_alone(tmp_path, engine={"url": engine.url}) as alone:
        body = {"model": "scripted", "messages": [{"role": "user", "content": QUESTION}]}
        told = await alone.http.post("/v1/chat/completions", json={**body, "store": True})
        await alone.http.post("/v1/responses", json={"model": "scripted", "input": QUESTION})
        await alone.http.post("/v1/completions", json={"model": "scripted", "prompt": QUESTION})
        answers = await entries(alone, event="answer")
        asked = {"question": alone.services.audit.keyed_hash(QUESTION)}
        assert [each["details"] for each in answers] == [asked] * 3
        assert answers[0]["objects"] == [told.headers["x-request-id"]]
        (stored,) = await entries(alone, event="completion.stored")
        assert stored["objects"] == [told.json()["id"]]
        (response,) = await entries(alone, event="response.stored")
        assert answers[1]["objects"] == response["objects"]


def test_each_transaction_of_a_route_is_recorded() -> None:
    """A route that changes something and leaves no entry would be an act that nobody can tell of."""
    unrecorded = set()
    for path in [*(APP / "routes").glob("*.py"), *(APP / "console").glob("*.py")]:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.unparse(function)
                if "database.write()" in text and not RECORDS.search(text):
                    unrecorded.add((path.stem, function.name))
    assert unrecorded == UNRECORDED


async def test_pages_go_both_ways_and_filters_narrow_them(alone: Alone) -> None:
    for name in "abc":
        await alone.http.post("/v1/vector_stores", json={"name": name})
    all_of_them = await entries(alone)
    newest = (await alone.http.get("/v1/audit", params={"limit": 2})).json()
    assert newest["has_more"]
    assert [each["id"] for each in newest["data"]] == [each["id"] for each in all_of_them[:-3:-1]]
    rest = (await alone.http.get("/v1/audit", params={"after": newest["last_id"]})).json()
    assert [each["id"] for each in rest["data"]] == [each["id"] for each in all_of_them[-3::-1]]
    added = await entries(alone, event="collection.added")
    assert len(added) == 3
    assert await entries(alone, key_id="key_none") == []
    for wrong in ({"event": "nonsense"}, {"after": "5"}, {"limit": 0}):
        refused = await alone.http.get("/v1/audit", params=wrong)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == next(iter(wrong))


async def test_only_admins_read_it_and_only_of_their_tenant(alone: Alone) -> None:
    await add(alone)
    south = key_of(alone, Role.ADMIN, "south")
    transport = httpx.ASGITransport(alone.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://strongroom", headers=south) as other:
        await entries(alone, other)
        theirs = await entries(alone, other)
    assert {each["event"] for each in theirs} == {"key.added", "key.used"}
    for path in ("", "/verify", "/checkpoint"):
        refused = await alone.http.get(f"/v1/audit{path}", headers=key_of(alone, Role.WRITER))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_role")
    anybody = await alone.http.get("/v1/audit/key", headers=key_of(alone, Role.READER))
    assert anybody.json()["keys"][0]["crv"] == "Ed25519"


async def test_refusals_are_told_with_the_key_that_was_refused_and_fill_no_disk(alone: Alone) -> None:
    for number in range(300):
        wrong = {"Authorization": f"Bearer sr-wrong-{number}"}
        assert (await alone.http.get("/v1/files", headers=wrong)).status_code == 401
    reader = key_of(alone, Role.READER)
    for _ in range(5):
        refused = await alone.http.post("/v1/vector_stores", json={"name": "mine"}, headers=reader)
        assert refused.status_code == 403
    await alone.services.audit.settle()
    alone.services.audit._count_refusals(after_s=0.0)
    await alone.services.audit.settle()
    with alone.services.database.read() as session:
        rows = session.query(AuditEntry).where(AuditEntry.event == AuditEvent.REFUSED).all()
    told = [(row.key_id is not None, orjson.loads(row.details)) for row in rows]
    assert [(by_key, each["reason"], each["count"]) for by_key, each in told] == [
        (False, "invalid_api_key", 1),
        (True, "insufficient_role", 1),
        (False, "invalid_api_key", 299),
        (True, "insufficient_role", 4),
    ]
    assert all(row.outcome == AuditOutcome.REFUSED for row in rows)
    assert "sr-wrong" not in str(told)


async def test_a_key_in_use_is_told_once_in_a_while(database: Database) -> None:
    now = 1_000.0
    trail = trail_of(database, lambda: now)
    scope = Scope("t", "key_1", Role.READER)
    for _ in range(50):
        trail.key_used(scope)
    now += 3_601
    trail.key_used(scope)
    await trail.settle()
    assert [event for event, _ in written(database)] == ["key.used", "key.used"]


async def test_an_act_that_cannot_be_entered_is_refused_and_not_done(alone: Alone) -> None:
    store_id, file_id = await add(alone)
    await alone.services.audit.settle()
    spoil(alone.services.database)
    engine = {"url": "http://127.0.0.1:9"}
    for refused in (
        await alone.http.delete(f"/v1/files/{file_id}"),
        await alone.http.delete(f"/v1/vector_stores/{store_id}"),
        await alone.http.post("/v1/vector_stores", json={"name": "another"}),
        await alone.http.post("/v1/files", files={"file": ("b.txt", b"more")}),
        await alone.http.post("/v1/engines", json=engine),
        await alone.http.post("/v1/verify/repair"),
    ):
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "audit_unavailable"
        assert "nothing was done" in refused.json()["error"]["message"]
    assert (await alone.http.get(f"/v1/files/{file_id}")).status_code == 200
    assert len((await alone.http.get("/v1/files")).json()["data"]) == 1
    assert engine["url"] not in alone.services.gateway.urls()
    # What changes nothing goes on meanwhile; it is entered once that is possible again.
    assert await found(alone, store_id) == [file_id]


async def test_engines_come_and_go_with_an_entry_before_and_after(alone: Alone) -> None:
    url = "http://name:secret@127.0.0.1:9"
    await alone.http.post("/v1/engines", json={"url": url})
    await alone.http.post("/v1/engines", json={"url": url})
    await alone.http.delete("/v1/engines", params={"url": url})
    told = [
        (each["event"], each["outcome"], each["objects"])
        for each in await entries(alone)
        if each["event"].startswith("engine.")
    ]
    host = ["127.0.0.1:9"]
    assert told == [
        ("engine.added", "begun", host),
        ("engine.added", "done", host),
        ("engine.added", "begun", host),
        ("engine.added", "failed", host),
        ("engine.removed", "begun", host),
        ("engine.removed", "done", host),
    ]


async def test_a_clean_stop_loses_none_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    async with api_alone(tmp_path) as alone:
        store_id, _ = await add(alone)
        for _ in range(40):
            await found(alone, store_id)
    async with api_alone(tmp_path) as alone:
        assert len(await entries(alone, event="search")) == 40
        verified = (await alone.http.get("/v1/audit/verify")).json()
    assert verified["problem"] is None
    assert verified["checkpoints"] == 1


async def test_a_stop_in_the_midst_of_a_write_enters_nothing_twice(
    database: Database, tmp_path: Path
) -> None:
    trail = AuditTrail(database, KEY, checkpoints=tmp_path / "kept", checkpoint_every_s=1e9)
    scope = Scope("t", "key_1", Role.READER)
    trail.note(scope, AuditEvent.SEARCH, ("first",))
    await trail.settle()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(trail.opened())
        trail.note(scope, AuditEvent.SEARCH, ("second",))
        with database.write() as session:
            session.execute(select(AuditHead).with_for_update())
            await asyncio.sleep(2 * GROUP_S)
            stopping = asyncio.create_task(stack.aclose())
            await asyncio.sleep(0.1)
        await stopping
    assert written(database) == [("search", '["first"]'), ("search", '["second"]')]
    assert [each.seq for each in read_checkpoints(tmp_path / "kept")] == [2]


def trail_of(database: Database, clock: Any = lambda: 1.0) -> AuditTrail:
    return AuditTrail(database, KEY, checkpoints=Path("unused"), checkpoint_every_s=1e9, clock=clock)


def written(database: Database) -> list[tuple[str, str]]:
    with database.read() as session:
        return [(row.event, row.objects) for row in session.query(AuditEntry).order_by(AuditEntry.seq)]


async def test_while_the_database_is_away_what_is_noted_waits_and_is_bounded(database: Database) -> None:
    trail = trail_of(database)
    scope = Scope("t", "key_1", Role.READER)
    with database.engine.begin() as connection:
        connection.execute(delete(AuditHead))
        connection.exec_driver_sql(
            "insert into audit_entries values (7, 1.0, null, null, 'search', 'done', '[]', '{}', 'x', 'y')"
        )
    trail.note(scope, AuditEvent.SEARCH, ("first",))
    await trail.settle()
    for _ in range(MOST_WAITING - 1):
        trail.note(scope, AuditEvent.SEARCH, ("more",))
    with pytest.raises(AuditUnavailable, match="Try again soon"):
        trail.note(scope, AuditEvent.SEARCH, ("too many",))
    with database.engine.begin() as connection:
        connection.execute(delete(AuditEntry))
    await trail.settle()
    told = written(database)
    assert len(told) == MOST_WAITING
    assert told[0] == ("search", '["first"]')


def run(folder: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [*words, "--data-dir", str(folder)])
    return result.exit_code, result.output


async def test_the_commands_verify_copy_and_write_out_the_log(tmp_path: Path) -> None:
    data, kept = tmp_path / "data", tmp_path / "kept"
    async with api_alone(data) as alone:
        store_id, _ = await add(alone)
        await found(alone, store_id)
    code, line = run(data, "audit", "checkpoint")
    assert code == 0
    kept.write_text(line)
    code, told = run(data, "audit", "verify", "--checkpoint", str(kept))
    assert (code, "all as they were written" in told) == (0, True), told
    code, told = run(data, "audit", "export")
    exported = [orjson.loads(each) for each in told.splitlines()]
    assert [each["seq"] for each in exported] == list(range(1, len(exported) + 1))
    assert CANARY not in told
    code, told = run(data, "audit", "export", "--about", QUESTION)
    assert [orjson.loads(each)["event"] for each in told.splitlines()] == ["search"]
    assert run(data, "audit", "export", "--since", "2100-01-01") == (0, "")
    assert [each["event"] for each in exported[:2]] == ["migrated", "key.added"]
    assert run(data, "keys", "revoke", *orjson.loads(exported[1]["objects"]))[0] == 0
    code, told = run(data, "audit", "export")
    assert orjson.loads(told.splitlines()[-1])["event"] == "key.revoked"

    with open_storage(settings_of(data)) as storage, storage.database.engine.begin() as connection:
        connection.execute(update(AuditEntry).where(AuditEntry.seq == 3).values(objects="[]"))
    code, told = run(data, "audit", "verify")
    assert (code, "First bad entry: 3" in told) == (1, True), told


async def test_a_tail_that_is_cut_with_its_head_shows_against_the_checkpoint_alone(tmp_path: Path) -> None:
    data, kept = tmp_path / "data", tmp_path / "kept"
    async with api_alone(data) as alone:
        await add(alone)
        await alone.services.audit.settle()
        with alone.services.database.read() as session:
            older = dict(session.execute(AuditHead.__table__.select()).mappings().one())
        await add(alone, "More.", "more.txt")
    kept.write_text(run(data, "audit", "checkpoint")[1])
    (data / "audit.checkpoints").unlink()
    with open_storage(settings_of(data)) as storage, storage.database.engine.begin() as connection:
        connection.execute(delete(AuditEntry).where(AuditEntry.seq > older["seq"]))
        connection.execute(update(AuditHead).values(older))
    assert run(data, "audit", "verify")[0] == 0
    code, told = run(data, "audit", "verify", "--checkpoint", str(kept))
    assert (code, f"First bad entry: {older['seq'] + 1}" in told) == (1, True), told
    kept.write_text("nonsense")
    assert run(data, "audit", "verify", "--checkpoint", str(kept))[0] == 2


async def test_a_log_that_does_not_verify_is_written_out_and_begun_anew(tmp_path: Path) -> None:
    data, export = tmp_path / "data", tmp_path / "old.jsonl"
    async with api_alone(data) as alone:
        await add(alone)
    assert run(data, "audit", "restart", str(export))[0] == 2
    with open_storage(settings_of(data)) as storage:
        spoil(storage.database)
    code, told = run(data, "audit", "restart", str(export))
    assert code == 0, told
    assert len(export.read_text().splitlines()) > 3
    (data / "audit.checkpoints").unlink()
    async with api_alone(data) as alone:
        await add(alone, "More.", "more.txt")
    assert run(data, "audit", "verify")[0] == 0


def settings_of(folder: Path) -> Any:
    return read_settings().with_options(storage={"data_dir": str(folder)})
