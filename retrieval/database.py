"""Opens the SQL database, embedded or PostgreSQL, and hands out transactions that a with-block commits."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlcipher3.dbapi2 as sqlite
from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

BUSY_TIMEOUT_S = 30


class DatabaseUnavailable(Exception):
    """The database cannot be reached or refuses the connection."""


class Database:
    """Two ways in: `read` sees one consistent state, `write` holds the write lock from its first statement.

    Callers are threads: the drivers block.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite lets one write at a time, and has the others sleep and try again: in one process they queue here.
        self._turn: AbstractContextManager[object] = nullcontext()
        if engine.dialect.name == "sqlite":
            self._turn = threading.Lock()
            self._reading = engine.execution_options(sqlite_begin="DEFERRED")
            self._writing = engine.execution_options(sqlite_begin="IMMEDIATE")
        else:
            self._reading = engine.execution_options(isolation_level="REPEATABLE READ")
            self._writing = engine.execution_options()

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._reading, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        with Session(self._writing, expire_on_commit=False) as session, self._turn, session.begin():
            yield session

    def check(self) -> None:
        """Raises DatabaseUnavailable with the driver's reason, without the address or its password."""
        try:
            with self.read() as session:
                session.execute(text("select 1"))
        except SQLAlchemyError as error:
            raise DatabaseUnavailable(reason_of(error)) from error

    def close(self) -> None:
        self.engine.dispose()


def open_database(url: str) -> Database:
    """`sqlite:///PATH` for the embedded database, `postgresql://...` for a server."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database is None:
            raise ValueError("An embedded database needs a path: sqlite:///PATH")
        return Database(_open_sqlite(Path(parsed.database)))
    engine = create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_size=8,
        max_overflow=24,
        pool_pre_ping=True,
        hide_parameters=True,  # An error's text may be logged, and parameters hold text of documents.
    )
    return Database(engine)


def reason_of(error: SQLAlchemyError) -> str:
    """The driver's own words, without SQL or parameters: those may hold text of documents."""
    cause = error.orig if isinstance(error, OperationalError) and error.orig is not None else error
    return " ".join(str(cause).split())


def _open_sqlite(path: Path) -> Engine:
    def connect() -> Any:
        # isolation_level=None leaves BEGIN to the event below; the default would open a deferred
        # transaction at the first write and fail with "database is locked" when another got there first.
        connection = sqlite.connect(
            str(path), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma foreign_keys = on")
        # Deleted pages are overwritten with zeros, so that a deleted text is not left in the file.
        connection.execute("pragma secure_delete = on")
        return connection

    engine = create_engine(
        "sqlite://",
        module=sqlite,
        creator=connect,
        poolclass=QueuePool,
        pool_size=8,
        max_overflow=56,
        hide_parameters=True,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        kind = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"begin {kind}")

    return engine
