"""Transactions on both databases: consistent reads, writers that wait for each other, errors that undo."""

import fcntl
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DatabaseError, IntegrityError

from app.storage.migrate import check_schema
from retrieval.database import (
    MOST_WAITING,
    TURN_PATIENCE_S,
    Database,
    DatabaseUnavailable,
    WriteLockHeld,
    encrypt_database,
    is_plain_sqlite,
    open_database,
)
from retrieval.scope import Scope
from retrieval.tables import Collection, Document, DocumentStatus, Tenant
from tests.conftest import tenant_scope
from tests.retrieval.library import new_collection, shelve


def tenant(name: str) -> Tenant:
    return Tenant(id=f"tenant-{name}", name=name, created_at=1.0)


def names(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Tenant.name).order_by(Tenant.name)))


def test_a_write_is_there_for_every_later_read(database: Database, database_url: str) -> None:
    with database.write() as session:
        session.add(tenant("north"))
    assert names(database) == ["north"]
    elsewhere = open_database(database_url)
    assert names(elsewhere) == ["north"]
    elsewhere.close()


def test_an_error_undoes_the_whole_write(database: Database) -> None:
    with suppress(ConnectionError), database.write() as session:
        session.add(tenant("north"))
        session.flush()
        raise ConnectionError
    assert names(database) == []


def test_a_read_sees_one_state_while_others_write(database: Database) -> None:
    with database.read() as session:
        before = session.scalars(select(Tenant.name)).all()
        with database.write() as writing:
            writing.add(tenant("north"))
        assert session.scalars(select(Tenant.name)).all() == before == []
    assert names(database) == ["north"]


def test_writers_wait_for_each_other_and_all_succeed(
    database: Database, database_url: str, scope: Scope
) -> None:
    """Each reads before it writes: in SQLite that fails at once, however long it may wait, unless the write
    lock is taken at the transaction's begin.
    """
    collection = new_collection(database, scope)

    def count_up(writer: Database) -> None:
        for _ in range(10):
            with writer.write() as session:
                session.scalars(select(Collection.head)).all()
                session.execute(update(Collection).values(head=Collection.head + 1))

    elsewhere = open_database(database_url)
    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(count_up, each) for each in (database, elsewhere, database, elsewhere)]
    for writer in writers:
        writer.result()
    elsewhere.close()
    with database.read() as session:
        assert session.get_one(Collection, collection.id).head == 40


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    with ThreadPoolExecutor(1) as threads, database.write() as session:
        session.add(tenant("north"))
        session.flush()
        assert threads.submit(names, database).result(timeout=5) == []


def test_foreign_keys_hold(database: Database, scope: Scope) -> None:
    document = Document(
        tenant_id=scope.tenant_id,
        collection_id="vs_absent",
        file_id="file-absent",
        status=DocumentStatus.COMPLETED,
        attributes={},
        chunking={},
        created_at=1.0,
    )
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(document)


def test_check_is_silent_when_all_is_well(database: Database) -> None:
    database.check()


def test_an_absent_server_is_told_without_its_password() -> None:
    database = open_database("postgresql://ada:hunter2@127.0.0.1:1/strongroom?connect_timeout=2")
    with pytest.raises(DatabaseUnavailable) as failure:
        database.check()
    assert "hunter2" not in str(failure.value)
    database.close()


def test_an_embedded_database_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "strongroom.db"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(DatabaseUnavailable, match="cannot be read as a database"):
        open_database(f"sqlite:///{path}")


KEY = bytes(range(32))
CANARY = "the heron stood by the weir"


def encrypted_with_canary(path: Path, *, rows: int = 1) -> None:
    database = open_database(f"sqlite:///{path}", key=KEY)
    with database.write() as session:
        session.execute(text("create table letters (id integer primary key, text text)"))
        for _ in range(rows):
            session.execute(text("insert into letters (text) values (:text)"), {"text": CANARY * 20})
    database.close()


def test_with_a_key_neither_the_database_nor_its_log_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "strongroom.db"
    database = open_database(f"sqlite:///{path}", key=KEY)
    with database.write() as session:
        session.execute(text("create table letters (text text)"))
        session.execute(text("insert into letters values (:text)"), {"text": CANARY})
    # Open, so that the log is there.
    files = [each for each in tmp_path.iterdir() if each.is_file()]
    assert {each.name for each in files} >= {"strongroom.db", "strongroom.db-wal"}
    assert not any(b"heron" in each.read_bytes() or b"letters" in each.read_bytes() for each in files)
    database.close()
    again = open_database(f"sqlite:///{path}", key=KEY)
    with again.read() as session:
        assert session.scalar(text("select text from letters")) == CANARY
    again.close()


def test_another_key_than_the_database_s_is_told_and_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "strongroom.db"
    encrypted_with_canary(path)
    database = open_database(f"sqlite:///{path}", key=bytes(32))
    with pytest.raises(DatabaseUnavailable, match=r"other keys than keys/root\.key"):
        database.check()
    database.close()


def test_a_database_that_is_not_as_the_key_says_is_not_opened(tmp_path: Path) -> None:
    encrypted, plain = tmp_path / "encrypted.db", tmp_path / "plain.db"
    encrypted_with_canary(encrypted)
    database = open_database(f"sqlite:///{plain}")
    with database.write() as session:
        session.execute(text("create table letters (text text)"))
    database.close()
    with pytest.raises(DatabaseUnavailable, match=r"encryption\.enabled"):
        open_database(f"sqlite:///{encrypted}")
    with pytest.raises(DatabaseUnavailable, match="strongroom migrate"):
        open_database(f"sqlite:///{plain}", key=KEY)


@pytest.mark.parametrize("place", [20, 3000, 4096 + 17, 4096 * 5 + 2000, -3])
def test_no_row_is_read_from_a_page_of_which_one_bit_was_flipped(tmp_path: Path, place: int) -> None:
    path = tmp_path / "strongroom.db"
    encrypted_with_canary(path, rows=100)
    stored = bytearray(path.read_bytes())
    stored[place] ^= 1
    path.write_bytes(stored)
    database = open_database(f"sqlite:///{path}", key=KEY)
    with pytest.raises((DatabaseUnavailable, DatabaseError)), database.read() as session:
        session.execute(text("select text from letters")).all()
    database.close()


def test_a_plain_database_is_encrypted_with_all_that_it_holds(migrated_sqlite: Path, tmp_path: Path) -> None:
    path = tmp_path / "strongroom.db"
    shutil.copy(migrated_sqlite, path)
    plain = open_database(f"sqlite:///{path}")
    scope = tenant_scope(plain, "north")
    collection = new_collection(plain, scope)
    last = shelve(plain, scope, collection, CANARY, "another")
    with plain.write() as session:
        session.execute(text("delete from chunk_log"))
        session.execute(text("delete from chunks"))
        session.execute(text("delete from documents"))
    with pytest.raises(DatabaseUnavailable, match="stop what uses it"):
        encrypt_database(path, KEY)
    plain.close()
    encrypt_database(path, KEY)
    assert not is_plain_sqlite(path)
    assert b"heron" not in path.read_bytes()
    database = open_database(f"sqlite:///{path}", key=KEY)
    check_schema(database)
    with database.read() as session:
        assert session.get(Collection, collection.id) is not None
    # Ids go on where they were.
    assert shelve(database, scope, collection, CANARY).id > last.id
    database.close()


def test_an_embedded_database_needs_a_path() -> None:
    with pytest.raises(ValueError, match="sqlite:///PATH"):
        open_database("sqlite://")


def test_the_embedded_database_is_durable_and_overwrites_what_is_deleted(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'strongroom.db'}")
    with database.read() as session:
        pragmas = {
            name: session.scalar(text(f"pragma {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    database.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}


def test_many_threads_may_read_at_once(database: Database) -> None:
    together = threading.Barrier(16)

    def read() -> list[str]:
        with database.read() as session:
            session.execute(text("select 1"))
            together.wait(10)
            return list(session.scalars(select(Tenant.name)))

    with ThreadPoolExecutor(16) as threads:
        assert [each.result() for each in [threads.submit(read) for _ in range(16)]] == [[]] * 16


def test_an_error_does_not_quote_what_was_written(database: Database) -> None:
    """It may go to a log, and the values may be a document's text."""
    with database.write() as session:
        session.add(tenant("north"))
    again = Tenant(id="the words of a document", name="north", created_at=1.0)
    with pytest.raises(IntegrityError) as failure, database.write() as session:
        session.add(again)
    assert "the words of a document" not in str(failure.value)


def test_a_process_that_writes_without_a_pause_keeps_nobody_out(tmp_path: Path) -> None:
    """SQLite alone would: here the others waited 2 s for each write. Two databases stand for two processes."""
    url = f"sqlite:///{tmp_path / 'some.db'}"
    busy, other = open_database(url), open_database(url)
    with busy.write() as session:
        session.execute(text("create table counts (n integer)"))
    is_over = threading.Event()

    def write_on() -> None:
        while not is_over.is_set():
            with busy.write() as session:
                session.execute(text("insert into counts values (1)"))
                time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write_on) for _ in range(4)]
        waits = []
        for _ in range(10):
            started = time.monotonic()
            with other.write() as session:
                session.execute(text("insert into counts values (2)"))
            waits.append(time.monotonic() - started)
        is_over.set()
        for each in writers:
            each.result()
    assert sorted(waits)[5] < 0.2
    busy.close()
    other.close()


def test_whoever_holds_a_turn_for_long_costs_the_others_their_patience_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was suspended in a write that SQLite does not know of yet, say."""
    monkeypatch.setattr("retrieval.database.TURN_PATIENCE_S", 0.5)
    database = open_database(f"sqlite:///{tmp_path / 'some.db'}")
    with database.write() as session:
        session.execute(text("create table counts (n integer)"))

    def took_s() -> float:
        started = time.monotonic()
        with database.write() as session:
            session.execute(text("insert into counts values (1)"))
        return time.monotonic() - started

    for _ in range(2):
        with (tmp_path / "some.db-turn").open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert took_s() >= 0.5
            assert max(took_s() for _ in range(5)) < 0.4
        took_s()
    database.close()


def test_while_somebody_holds_the_write_lock_so_many_wait_and_the_others_are_told_at_once(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "strongroom.db")
    database = open_database(f"sqlite:///{tmp_path / 'strongroom.db'}")

    def write(_: int) -> str:
        try:
            with database.write() as session:
                session.execute(text("select 1"))
        except WriteLockHeld:
            return "told"
        return "done"

    with ThreadPoolExecutor(MOST_WAITING + 4) as writers:
        with database.write() as session:
            session.execute(text("select 1"))
            asked = [writers.submit(write, number) for number in range(MOST_WAITING + 4)]
            wait(asked, timeout=5, return_when=FIRST_COMPLETED)
            time.sleep(2 * TURN_PATIENCE_S)
            assert [each.result() for each in asked if each.done()] == ["told"] * 4
        assert sorted(each.result() for each in asked) == ["done"] * MOST_WAITING + ["told"] * 4
    database.close()
