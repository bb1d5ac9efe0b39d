"""Keys: what is stored of them, how soon they end, and secrets that are made exactly once."""

import hashlib
import multiprocessing
import os
import stat
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, inspect, select, text

from app.auth import (
    REMEMBER_S,
    KeyInvalid,
    KeyMissing,
    KeyRing,
    ensure_admin_key,
    server_secret,
    write_once,
)
from retrieval.database import Database
from retrieval.tables import Key, Role, Tenant
from tests.conftest import SERVER_SECRET


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(database: Database, clock: Clock) -> KeyRing:
    return KeyRing(database, SERVER_SECRET, clock)


def add(
    database: Database, ring: KeyRing, *, tenant: str = "north", role: Role = Role.READER
) -> tuple[Key, str]:
    with database.write() as session:
        return ring.add(session, tenant_name=tenant, name="laptop", role=role, now=1.0)


def revoke(database: Database, ring: KeyRing, key: Key, now: float = 2.0) -> None:
    with database.write() as session:
        ring.revoke(session, key.id, now=now)


async def test_a_key_gives_the_scope_of_its_tenant_and_role(database: Database, ring: KeyRing) -> None:
    key, secret = add(database, ring, role=Role.WRITER)
    scope = await ring.scope_of(secret)
    assert (scope.tenant_id, scope.key_id, scope.role) == (key.tenant_id, key.id, Role.WRITER)
    assert scope == ring.scope_of_id(key.id)
    assert scope.may_write
    assert not scope.is_admin


async def test_keys_of_one_tenant_name_share_the_tenant(database: Database, ring: KeyRing) -> None:
    (first, one), (second, two) = add(database, ring), add(database, ring)
    assert one != two
    assert first.tenant_id == second.tenant_id != add(database, ring, tenant="south")[0].tenant_id


@pytest.mark.parametrize("wrong", ["", "sr-", "sr-" + "A" * 43, "schlüssel", "' or 1=1 --"])
async def test_an_unknown_key_is_refused(database: Database, ring: KeyRing, wrong: str) -> None:
    add(database, ring)
    with pytest.raises(KeyInvalid):
        await ring.scope_of(wrong)


async def test_a_refusal_does_not_repeat_the_key(ring: KeyRing) -> None:
    with pytest.raises(KeyInvalid) as refusal:
        await ring.scope_of("sr-mistyped")
    assert "mistyped" not in str(refusal.value)


async def test_a_revoked_key_is_refused_within_half_a_second(
    database: Database, ring: KeyRing, clock: Clock
) -> None:
    key, secret = add(database, ring)
    await ring.scope_of(secret)
    revoke(database, ring, key)
    clock.now += REMEMBER_S
    with pytest.raises(KeyInvalid):
        await ring.scope_of(secret)
    with pytest.raises(KeyInvalid):
        ring.scope_of_id(key.id)
    assert REMEMBER_S <= 0.5


async def test_use_does_not_prolong_a_revoked_key(database: Database, ring: KeyRing, clock: Clock) -> None:
    key, secret = add(database, ring)
    await ring.scope_of(secret)
    revoke(database, ring, key)
    for now in (100.1, 100.2, 100.3, 100.4):
        clock.now = now
        await ring.scope_of(secret)
    clock.now = 100.0 + REMEMBER_S
    with pytest.raises(KeyInvalid):
        await ring.scope_of(secret)


async def test_a_key_that_was_never_used_is_refused_as_soon_as_it_is_revoked(
    database: Database, ring: KeyRing
) -> None:
    key, secret = add(database, ring)
    revoke(database, ring, key)
    with pytest.raises(KeyInvalid):
        await ring.scope_of(secret)


def test_revoking_twice_keeps_the_first_time_and_an_unknown_key_is_told(
    database: Database, ring: KeyRing
) -> None:
    key, _ = add(database, ring)
    revoke(database, ring, key, now=2.0)
    revoke(database, ring, key, now=3.0)
    with database.read() as session:
        assert session.get_one(Key, key.id).revoked_at == 2.0
    with database.write() as session, pytest.raises(KeyMissing):
        ring.revoke(session, "key_absent", now=1.0)


def test_a_copied_database_does_not_tell_its_keys(database: Database, ring: KeyRing) -> None:
    """Neither the key nor a plain hash of it, against which guesses could be checked, stands in any row."""
    _, secret = add(database, ring)
    with database.read() as session:
        tables = inspect(session.connection()).get_table_names()
        stored = " ".join(
            str(row) for table in tables for row in session.execute(text(f"select * from {table}"))
        )
    assert secret not in stored
    assert hashlib.sha256(secret.encode()).hexdigest() not in stored
    assert ring.digest(secret) in stored


async def test_another_servers_secret_knows_no_key(database: Database, ring: KeyRing) -> None:
    _, secret = add(database, ring)
    with pytest.raises(KeyInvalid):
        await KeyRing(database, b"another secret").scope_of(secret)


def test_a_secret_file_is_written_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "server.secret"
    write_once(path, "first")
    write_once(path, "second")
    assert path.read_text() == "first\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_wide_umask_does_not_open_a_secret_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_once(tmp_path / "keys" / "server.secret", "first")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys" / "server.secret").stat().st_mode) == 0o600


def test_threads_and_processes_that_start_at_once_share_one_secret(tmp_path: Path) -> None:
    keys_dir = tmp_path / "keys"
    with (
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes,
        ThreadPoolExecutor(4) as threads,
    ):
        made = [pool.submit(server_secret, keys_dir) for _ in range(8) for pool in (threads, processes)]
        secrets = {each.result() for each in made}
    assert len(secrets) == 1
    assert len(secrets.pop()) == 32
    assert [path.name for path in keys_dir.iterdir()] == ["server.secret"]


async def test_the_first_start_makes_one_admin_key(database: Database, ring: KeyRing, tmp_path: Path) -> None:
    path = ensure_admin_key(database, ring, tmp_path / "keys")
    key = path.read_text().strip()
    assert (await ring.scope_of(key)).is_admin
    assert ensure_admin_key(database, ring, tmp_path / "keys") == path
    assert path.read_text().strip() == key
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Key)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_key_file_left_by_a_start_that_died_is_replaced(
    database: Database, ring: KeyRing, tmp_path: Path
) -> None:
    write_once(tmp_path / "admin.key", "sr-never-committed")
    key = ensure_admin_key(database, ring, tmp_path).read_text().strip()
    assert key != "sr-never-committed"
    assert (await ring.scope_of(key)).is_admin


async def test_admins_who_removed_the_key_file_do_not_get_another_key(
    database: Database, ring: KeyRing, tmp_path: Path
) -> None:
    """Whoever can write to the folder and restart the server would be an admin."""
    add(database, ring)
    assert not ensure_admin_key(database, ring, tmp_path).exists()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Tenant)) == 1
