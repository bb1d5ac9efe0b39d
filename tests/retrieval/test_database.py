"""Transactions on both databases: consistent reads, writers that wait for each other, errors that undo."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError

from retrieval.database import Database, DatabaseUnavailable, open_database
from retrieval.scope import Scope
from retrieval.tables import Collection, Document, DocumentStatus, Tenant
from tests.retrieval.library import new_collection


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
    database = open_database(f"sqlite:///{path}")
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        database.check()
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
