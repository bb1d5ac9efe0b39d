"""Keys: what is stored of them, how soon they end, and secrets that are made exactly once."""

import hashlib
import multiprocessing
import os
import re
import stat
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, inspect, select, text

from app.access.auth import (
    REMEMBER_S,
    KeyHasNoText,
    KeyInvalid,
    KeyMissing,
    KeyRing,
    NewKey,
    NotAllowed,
    ensure_admin_key,
    must_own,
    put_in_groups,
    server_secret,
    tenant_named,
)
from app.access.key_files import KeysUnusable, write_once
from app.access.quotas import Bound, Quotas
from retrieval.blobs import BlobStore
from retrieval.database import Database
from retrieval.ledger import Entry, LedgerFile, recorded
from retrieval.replay import catch_up
from retrieval.scope import Scope
from retrieval.tables import EVERY_GROUP, AuditEntry, DeletedKind, Key, Role, Tenant
from tests.conftest import SERVER_SECRET


class Clock:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def time_of_day() -> Clock:
    return Clock(10_000.0)


@pytest.fixture
async def ring(database: Database, clock: Clock, time_of_day: Clock) -> AsyncIterator[KeyRing]:
    ring = KeyRing(database, SERVER_SECRET, clock, now=time_of_day)
    yield ring
    await ring.close()


def add(
    database: Database,
    ring: KeyRing,
    *,
    tenant: str = "north",
    role: Role = Role.READER,
    groups: Sequence[str] = (),
    expires_at: float | None = None,
) -> tuple[Key, str]:
    with database.write() as session:
        return ring.add(
            session,
            tenant_name=tenant,
            name="laptop",
            role=role,
            now=1.0,
            groups=groups,
            expires_at=expires_at,
        )


async def is_taken(ring: KeyRing, text: str) -> bool:
    try:
        await ring.scope_of(text)
    except KeyInvalid:
        return False
    return True


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
    with database.write() as session, pytest.raises(KeyMissing, match="'key_absent'"):
        ring.revoke(session, "key_absent", now=1.0)


async def test_a_key_ends_at_its_time(
    database: Database, ring: KeyRing, clock: Clock, time_of_day: Clock
) -> None:
    key, secret = add(database, ring, expires_at=10_060.0)
    assert await is_taken(ring, secret)
    time_of_day.now, clock.now = 10_059.9, 200.0
    assert await is_taken(ring, secret)
    time_of_day.now, clock.now = 10_060.0, 300.0
    assert not await is_taken(ring, secret)
    with pytest.raises(KeyInvalid):
        ring.scope_of_id(key.id)


async def test_a_rotated_key_keeps_its_id_and_its_old_text_for_as_long_as_was_said(
    database: Database, ring: KeyRing, clock: Clock, time_of_day: Clock
) -> None:
    key, first = add(database, ring)
    with database.write() as session:
        second = ring.rotate(session, session.get_one(Key, key.id), now=time_of_day.now, grace_s=60)
    assert (await ring.scope_of(first)).key_id == (await ring.scope_of(second)).key_id == key.id
    time_of_day.now, clock.now = 10_060.0, 200.0
    assert not await is_taken(ring, first)
    assert await is_taken(ring, second)
    with database.write() as session:
        third = ring.rotate(session, session.get_one(Key, key.id), now=time_of_day.now)
    clock.now = 300.0
    assert [await is_taken(ring, text) for text in (first, second, third)] == [False, False, True]


async def test_an_older_database_does_not_bring_a_rotated_text_back(
    database: Database, ring: KeyRing, clock: Clock, tmp_path: Path
) -> None:
    (key, first), (_, other) = add(database, ring), add(database, ring)
    with database.write() as session:
        ring.rotate(session, session.get_one(Key, key.id), now=2.0)
        entries = recorded(session)
        session.rollback()  # As after a restore.
    assert await is_taken(ring, first)
    clock.now += REMEMBER_S
    ledger = LedgerFile(tmp_path / "deletions.ledger")
    ledger.append(entries)
    # The text, and the sessions that it opened.
    assert catch_up(database, BlobStore(tmp_path / "blobs"), ledger) == 2
    assert [await is_taken(ring, text) for text in (first, other)] == [False, True]
    with database.write() as session:
        again = ring.rotate(session, session.get_one(Key, key.id), now=3.0)
    assert await is_taken(ring, again)
    assert catch_up(database, BlobStore(tmp_path / "blobs"), ledger) == 0


async def test_a_second_rotation_ends_the_grace_of_the_first(
    database: Database, ring: KeyRing, time_of_day: Clock
) -> None:
    key, first = add(database, ring)
    with database.write() as session:
        row = session.get_one(Key, key.id)
        second = ring.rotate(session, row, now=time_of_day.now, grace_s=60)
        third = ring.rotate(session, row, now=time_of_day.now, grace_s=60)
    assert [await is_taken(ring, text) for text in (first, second, third)] == [False, True, True]


async def test_rotation_does_not_bring_a_revoked_or_an_expired_key_back(
    database: Database, ring: KeyRing
) -> None:
    (revoked, one), (expired, other) = add(database, ring), add(database, ring, expires_at=5.0)
    revoke(database, ring, revoked)
    with database.write() as session:
        texts = [ring.rotate(session, session.get_one(Key, key.id), now=3.0) for key in (revoked, expired)]
    assert [await is_taken(ring, text) for text in (one, other, *texts)] == [False] * 4


async def test_a_key_that_stands_for_a_person_has_no_text_to_rotate(
    database: Database, ring: KeyRing
) -> None:
    key, _ = add(database, ring)
    with database.write() as session:
        row = session.get_one(Key, key.id)
        row.issuer = "https://people.example"
        with pytest.raises(KeyHasNoText):
            ring.rotate(session, row, now=3.0)


async def test_groups_are_in_the_scope_and_what_was_held_is_remembered(
    database: Database, ring: KeyRing, clock: Clock
) -> None:
    key, secret = add(database, ring, groups=["board", "audit", "board"])
    assert (await ring.scope_of(secret)).groups == {"audit", "board"}
    with database.write() as session:
        put_in_groups(session.get_one(Key, key.id), ["staff"])
    clock.now += REMEMBER_S
    assert (await ring.scope_of(secret)).groups == {"staff"}
    with database.read() as session:
        assert session.get_one(Key, key.id).groups_held == ["audit", "board", "staff"]


async def test_the_last_use_is_noted_once_an_hour(
    database: Database, ring: KeyRing, clock: Clock, time_of_day: Clock
) -> None:
    key, secret = add(database, ring)

    async def used_at() -> float | None:
        clock.now += REMEMBER_S
        await ring.scope_of(secret)
        await ring.close()
        with database.read() as session:
            return session.get_one(Key, key.id).used_at

    assert await used_at() == 10_000.0
    time_of_day.now += 3_599.0
    assert await used_at() == 10_000.0
    time_of_day.now += 1.0
    assert await used_at() == 13_600.0


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


ACTS_ON_A_KEY = ("key.added", "session.ended", "key.changed", "key.revoked")
"""Made, given another text, which ends its sessions, and revoked."""


def test_what_is_done_to_a_key_is_entered_with_the_key_its_tenant_and_who_asked(
    database: Database, ring: KeyRing
) -> None:
    admin, _ = add(database, ring, role=Role.ADMIN)
    by = ring.scope_of_id(admin.id)
    with database.write() as session:
        key, _ = ring.add_to(session, by.tenant_id, NewKey("laptop", Role.READER), now=2.0, by=by)
        ring.rotate(session, key, now=3.0, by=by)
        ring.revoke(session, key.id, now=4.0, by=by)
    with database.read() as session:
        entries = session.scalars(select(AuditEntry).where(AuditEntry.key_id == admin.id)).all()
    told = [(each.event, each.objects, each.tenant_id) for each in entries]
    assert told == [(event, f'["{key.id}"]', by.tenant_id) for event in ACTS_ON_A_KEY]


def test_the_owner_s_acts_on_keys_are_entered_for_the_key_s_tenant(database: Database, ring: KeyRing) -> None:
    key, _ = add(database, ring)
    with database.write() as session:
        held = session.get_one(Key, key.id)
        ring.rotate(session, held, now=2.0)
        ring.revoke(session, key.id, now=3.0)
    with database.read() as session:
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.seq)).all()
    assert [(each.event, each.key_id, each.tenant_id) for each in entries] == [
        (event, None, key.tenant_id) for event in ACTS_ON_A_KEY
    ]


@pytest.mark.parametrize(("grace_s", "kept"), [(0, False), (0.5, True), (60, True)])
def test_an_old_text_is_kept_only_for_a_time_of_grace(
    database: Database, ring: KeyRing, grace_s: float, kept: bool
) -> None:
    key, _ = add(database, ring)
    with database.write() as session:
        held = session.get_one(Key, key.id)
        before = held.digest
        ring.rotate(session, held, now=2.0, grace_s=grace_s)
        assert (held.old_digest, held.old_until) == ((before, 2.0 + grace_s) if kept else (None, None))


def test_a_reader_changes_what_its_key_made_and_a_writer_all() -> None:
    def scope(role: Role) -> Scope:
        return Scope(tenant_id="t", key_id="key_mine", role=role)

    must_own(scope(Role.READER), "key_mine")
    must_own(scope(Role.WRITER), "key_mine")
    must_own(scope(Role.WRITER), "key_theirs")
    with pytest.raises(NotAllowed, match="role 'writer'"):
        must_own(scope(Role.READER), "key_theirs")


async def test_a_new_key_is_what_was_asked_for_and_its_text_256_random_bits(
    database: Database, ring: KeyRing
) -> None:
    new = NewKey("laptop", Role.ADMIN, ["b", "a"], expires_at=20_000.0, quotas={"streams": 2})
    with database.write() as session:
        tenant = tenant_named(session, "north", now=1.0)
        made, text = ring.add_to(session, tenant.id, new, now=2.0)
    with database.read() as session:
        key, kept = session.get_one(Key, made.id), session.get_one(Tenant, made.tenant_id)
        (entry,) = session.scalars(select(AuditEntry).where(AuditEntry.event == "key.added"))
    assert re.fullmatch(r"sr-[\w-]{43}", text)
    assert key.id.startswith("key_")
    assert kept.id.startswith("tenant-")
    assert (kept.name, kept.created_at) == ("north", 1.0)
    assert (key.name, key.role, key.created_at, key.expires_at) == ("laptop", Role.ADMIN, 2.0, 20_000.0)
    assert (key.groups, key.groups_held) == (["a", "b"], [EVERY_GROUP, "a", "b"])
    assert key.quotas == {"streams": 2}
    assert '"role":"admin"' in entry.details
    assert (await ring.scope_of(text)).groups == {"a", "b"}


def test_the_ledger_names_the_text_the_sessions_and_the_key_that_ended(
    database: Database, ring: KeyRing
) -> None:
    """By which they stay ended where an older database is put back."""
    key, _ = add(database, ring)
    with database.write() as session:
        row = session.get_one(Key, key.id)
        before = row.digest
        ring.rotate(session, row, now=3.0)
        ring.revoke(session, key.id, now=4.0)
        assert recorded(session) == [
            Entry(DeletedKind.KEY_TEXT, f"{key.id}/{before}", key.tenant_id),
            Entry(DeletedKind.KEY_SESSIONS, f"{key.id}/3.0", key.tenant_id),
            Entry(DeletedKind.KEY, key.id, key.tenant_id),
        ]
        assert row.sessions_since == 3.0


@pytest.mark.parametrize("is_tenants", [False, True])
async def test_zero_retention_of_a_key_or_of_its_tenant_is_in_the_scope(
    database: Database, ring: KeyRing, *, is_tenants: bool
) -> None:
    key, secret = add(database, ring)
    assert ring.scope_of_id(key.id).keeps_nothing is False
    with database.write() as session:
        row = session.get_one(Tenant, key.tenant_id) if is_tenants else session.get_one(Key, key.id)
        row.keeps_nothing = True
    assert (await ring.scope_of(secret)).keeps_nothing is True


async def test_what_a_request_counts_against_follows_the_quotas_of_its_key_and_tenant(
    database: Database, ring: KeyRing, clock: Clock
) -> None:
    (key, secret), (other, _) = add(database, ring), add(database, ring)

    async def bounds(of_key: dict[str, int] | None, of_tenant: dict[str, int] | None) -> tuple[Bound, ...]:
        with database.write() as session:
            session.get_one(Key, key.id).quotas = of_key
            session.get_one(Tenant, key.tenant_id).quotas = of_tenant
        clock.now += REMEMBER_S
        return ring.bounds_of(await ring.scope_of(secret))

    own, shared = Bound(key.id, Quotas(streams=2)), Bound(key.tenant_id, Quotas(streams=9))
    assert await bounds(None, None) == ()
    assert await bounds({"streams": 2}, None) == (own,)
    assert await bounds({"streams": 2}, {"streams": 9}) == (own, shared)
    assert ring.bounds_of(ring.scope_of_id(other.id)) == (shared,)
    assert await bounds(None, {"streams": 9}) == (shared,)
    assert await bounds(None, None) == ()


@pytest.mark.parametrize("damaged", ["", "no digits", "ab" * 31, "ab" * 33])
def test_a_damaged_secret_is_named_and_not_made_anew(tmp_path: Path, damaged: str) -> None:
    """With another one no key would be known."""
    write_once(tmp_path / "server.secret", damaged)
    with pytest.raises(KeysUnusable, match=r"server\.secret is damaged: it must be 64 hexadecimal digits"):
        server_secret(tmp_path)
    assert (tmp_path / "server.secret").read_text() == f"{damaged}\n"


def test_a_secret_is_made_once_and_one_that_others_may_read_is_refused(tmp_path: Path) -> None:
    made = server_secret(tmp_path / "keys")
    assert len(made) == 32
    assert server_secret(tmp_path / "keys") == made
    path = tmp_path / "keys" / "server.secret"
    path.chmod(0o644)
    with pytest.raises(KeysUnusable, match="chmod 600"):
        server_secret(tmp_path / "keys")


def test_the_first_key_is_named_admin_and_is_of_the_tenant_default(
    database: Database, ring: KeyRing, tmp_path: Path
) -> None:
    assert ensure_admin_key(database, ring, tmp_path) == tmp_path / "admin.key"
    with database.read() as session:
        key = session.scalars(select(Key)).one()
        assert (key.name, key.role) == ("admin", Role.ADMIN)
        assert session.get_one(Tenant, key.tenant_id).name == "default"


def test_refusals_say_what_to_do() -> None:
    assert str(KeyInvalid()) == (
        "Incorrect API key. Send 'Authorization: Bearer KEY'; the first key is in the file keys/admin.key."
    )
    assert str(KeyMissing("key_1")) == "No key with id 'key_1'."
    assert str(KeyHasNoText()) == (
        "This key stands for a person who signs in elsewhere: there is no text to rotate."
    )
    assert str(NotAllowed(Role.ADMIN)) == "This needs a key with the role 'admin'."
