"""Backups are whole while all goes on, open with the master key alone, and bring nothing back that was deleted."""

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.access.key_files import KeysUnusable
from app.running.serve import prepare_data
from app.settings import Settings, read_settings
from app.storage.backup import SUFFIX, BackupUnusable, back_up, clear_remains, restore
from app.storage.backup_runs import back_up_when_due
from app.storage.migrate import migrate
from app.storage.opening import open_storage
from retrieval.database import Database, open_database
from retrieval.tables import Base, Document
from tests.app.alone import api_alone
from tests.app.test_at_rest import CANARY, TEXT, add, found, holding, killed_at, send_part, settings_of


def backed_up(settings: Settings, archive: Path, *, with_master_key: bool = False) -> None:
    with open_storage(settings) as storage:
        back_up(settings, storage, archive, with_master_key=with_master_key)


def with_master_key_of(source: Path, target: Path) -> None:
    (target / "keys").mkdir(parents=True)
    shutil.copy(source / "keys" / "master.key", target / "keys" / "master.key")


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_restored_backup_answers_as_before_and_tells_nothing_on_its_way(
    tmp_path: Path, enabled: bool
) -> None:
    old, new, archive = tmp_path / "old", tmp_path / "new", tmp_path / "all.strongroom"
    async with api_alone(old, enabled=enabled) as alone:
        store_id, file_id = await add(alone)
        await asyncio.to_thread(backed_up, settings_of(old, enabled=enabled), archive)
        # Later than the backup.
        await add(alone, f"A later {CANARY}.", "later.txt")
        key = alone.key
    assert CANARY.encode() not in archive.read_bytes().lower()
    assert archive.stat().st_mode & 0o077 == 0
    with_master_key_of(old, new)
    restored = restore(settings_of(new, enabled=enabled), archive)
    assert (restored.deleted_again, restored.differences) == (0, [])
    assert bool(holding(new)) is not enabled
    told = (new / "settings.env").read_text()
    assert f"STRONGROOM_STORAGE__DATA_DIR={old}" in told
    assert "MASTER_KEY=" not in told
    async with api_alone(new, enabled=enabled) as alone:
        assert alone.key == key
        assert await found(alone, store_id) == [file_id]
        assert (await alone.http.get(f"/v1/files/{file_id}/content")).text == TEXT
        assert len((await alone.client.files.list()).data) == 1
        await add(alone, f"Another {CANARY}.", "another.txt")


async def test_an_upload_that_is_half_sent_goes_on_where_the_backup_was_restored(tmp_path: Path) -> None:
    old, new, archive = tmp_path / "old", tmp_path / "new", tmp_path / "all.strongroom"
    async with api_alone(old) as alone:
        path = await send_part(alone.http, 2 * len(TEXT), TEXT)
        await asyncio.to_thread(backed_up, settings_of(old), archive)
    with_master_key_of(old, new)
    assert restore(settings_of(new), archive).differences == []
    async with api_alone(new) as alone:
        await alone.http.post(f"{path}/parts", files={"data": ("blob", TEXT.encode())})
        parts = [part["id"] for part in (await alone.http.get(f"{path}/parts")).json()["data"]]
        whole = (await alone.http.post(f"{path}/complete", json={"part_ids": parts})).json()
        assert (await alone.http.get(f"/v1/files/{whole['file']['id']}/content")).text == 2 * TEXT


async def test_what_was_deleted_after_the_backup_stays_deleted_where_the_ledger_is_at_hand(
    tmp_path: Path,
) -> None:
    old, new, archive = tmp_path / "old", tmp_path / "new", tmp_path / "all.strongroom"
    async with api_alone(old) as alone:
        store_id, file_id = await add(alone)
        backed_up(settings_of(old), archive)
        await alone.http.delete(f"/v1/files/{file_id}")
    with_master_key_of(old, new)
    restored = restore(settings_of(new), archive, newer_ledger=old / "deletions.ledger")
    assert (restored.deleted_again, restored.differences) == (1, [])
    async with api_alone(new) as alone:
        assert await found(alone, store_id) == []
        assert (await alone.http.get(f"/v1/files/{file_id}/content")).status_code == 404
        assert list(alone.services.blobs.ids()) == []


async def test_backups_under_load_are_each_one_state(tmp_path: Path) -> None:
    old, done = tmp_path / "old", asyncio.Event()
    async with api_alone(old) as alone:

        async def work() -> None:
            for number in range(12):
                _, file_id = await add(alone, f"{TEXT} {number}", f"{number}.txt")
                if number % 3 == 0:
                    await alone.http.delete(f"/v1/files/{file_id}")
            done.set()

        working = asyncio.create_task(work())
        count = 0
        while not done.is_set() or not count:
            count += 1
            await asyncio.to_thread(backed_up, settings_of(old), tmp_path / f"{count}.strongroom")
        await working
    for number in range(1, count + 1):
        new = tmp_path / f"new{number}"
        with_master_key_of(old, new)
        assert restore(settings_of(new), tmp_path / f"{number}.strongroom").differences == []


async def test_only_the_master_key_opens_a_backup_unless_it_was_put_in(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    async with api_alone(old) as alone:
        store_id, file_id = await add(alone)
    sealed, opens = tmp_path / "sealed.strongroom", tmp_path / "opens.strongroom"
    backed_up(settings_of(old), sealed)
    backed_up(settings_of(old), opens, with_master_key=True)
    with pytest.raises(KeysUnusable, match="missing"):
        restore(settings_of(new), sealed)
    with pytest.raises(KeysUnusable, match="lies under"):
        restore(settings_of(new, master_key=os.urandom(32).hex()), sealed)
    assert restore(settings_of(new), opens).differences == []
    async with api_alone(new) as alone:
        assert await found(alone, store_id) == [file_id]


async def test_a_backup_that_is_damaged_cut_off_or_none_restores_nothing(tmp_path: Path) -> None:
    old, archive, bad = tmp_path / "old", tmp_path / "all.strongroom", tmp_path / "bad"
    async with api_alone(old) as alone:
        await add(alone)
    backed_up(settings_of(old), archive)
    whole = archive.read_bytes()
    spoiled = [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in (len(whole) - 1, len(whole) // 2, whole.index(b"\n") + 1, whole.index(b'"id":"') + 8)
    ]
    for number, content in enumerate([*spoiled, whole[:-1], whole[: len(whole) // 2], b"", b"no backup\n"]):
        bad.write_bytes(content)
        new = tmp_path / f"new{number}"
        with_master_key_of(old, new)
        with pytest.raises((BackupUnusable, KeysUnusable)):
            restore(settings_of(new), bad)
        assert [str(path.relative_to(new)) for path in new.rglob("*")] == ["keys", "keys/master.key"]
    with pytest.raises(BackupUnusable, match="not empty"):
        restore(settings_of(old), archive)
    with pytest.raises(BackupUnusable, match="exists"):
        backed_up(settings_of(old), archive)


async def test_the_leader_backs_up_when_it_is_time_and_keeps_so_many(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    async with api_alone(tmp_path / "data") as alone:
        await add(alone)
    settings = settings_of(tmp_path / "data").with_options(
        backup={"folder": str(kept), "every_hours": 1, "keep": 2}
    )
    now = time.time()
    with open_storage(settings) as storage:
        for hour in range(4):
            for _ in range(2):
                back_up_when_due(settings, storage, now=now + hour * 4000)
            for path in kept.glob(f"*{SUFFIX}"):
                os.utime(path, (now + hour * 4000, now + hour * 4000))
    assert len(list(kept.glob(f"*{SUFFIX}"))) == 2
    new = tmp_path / "new"
    with_master_key_of(tmp_path / "data", new)
    assert restore(settings_of(new), max(kept.iterdir())).differences == []


def test_what_a_killed_backup_left_is_cleared_away_in_a_day(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "data")
    prepare_data(settings)
    archive = tmp_path / "all.strongroom"
    step = 0
    while killed_at(step := step + 1, tmp_path, lambda: backed_up(settings, archive)):
        if list((tmp_path / "data").glob(".backup-*")):
            break
    (remains,) = (tmp_path / "data").glob(".backup-*")
    clear_remains(settings, now=time.time())
    assert remains.exists()
    clear_remains(settings, now=time.time() + 100_000)
    assert not remains.exists()
    backed_up(settings, archive)


@pytest.mark.slow
async def test_a_backup_goes_from_the_embedded_database_to_postgresql_and_back(
    tmp_path: Path, empty_database_url: str
) -> None:
    if empty_database_url.startswith("sqlite"):
        return
    old, server, back = tmp_path / "old", tmp_path / "server", tmp_path / "back"
    async with api_alone(old) as alone:
        store_id, file_id = await add(alone)
        await send_part(alone.http, 2 * len(TEXT), TEXT)
        item = {"type": "message", "role": "user", "content": TEXT}
        assert (await alone.http.post("/v1/conversations", json={"items": [item]})).status_code == 200
        await alone.services.audit.settle()
        counts = {
            table.name: _count(alone.services.database, table.name) for table in Base.metadata.sorted_tables
        }
        with alone.services.database.read() as session:
            last_id = session.scalar(select(func.max(Document.id)))
    backed_up(settings_of(old), tmp_path / "one.strongroom")
    with_master_key_of(old, server)
    on_server = read_settings().with_options(
        storage={"data_dir": str(server), "database_url": empty_database_url}
    )
    assert restore(on_server, tmp_path / "one.strongroom").differences == []
    database = open_database(empty_database_url)
    migrate(database)
    # And one that it was restored.
    assert {name: _count(database, name) for name in counts} == counts | {
        "audit_entries": counts["audit_entries"] + 1
    }
    database.close()
    backed_up(on_server, tmp_path / "two.strongroom")
    with_master_key_of(old, back)
    assert restore(settings_of(back), tmp_path / "two.strongroom").differences == []
    async with api_alone(back) as alone:
        assert await found(alone, store_id) == [file_id]
        assert (await alone.http.get("/v1/audit/verify")).json()["problem"] is None
        await add(alone, f"Another {CANARY}.", "another.txt")
        with alone.services.database.read() as session:
            assert (session.scalar(select(func.max(Document.id))) or 0) > (last_id or 0)


def _count(database: Database, name: str) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Base.metadata.tables[name])) or 0
