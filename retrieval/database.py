"""Opens the SQL database, embedded or PostgreSQL, and hands out transactions that a with-block commits."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from pathlib import Path
from typing import IO, Any

import sqlcipher3.dbapi2 as sqlite
from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from retrieval.audit import AuditChain, AuditKey
from retrieval.ledger import LedgerFile, recorded
from retrieval.reserve import NO_RESERVE, Reserve, disk_error
from retrieval.row_security import TenantOf, enter, everybody, is_protected, passes_by, the_caller
from retrieval.wakes import send

BUSY_TIMEOUT_S = 30
PLAIN_HEADER = b"SQLite format 3\0"
NOT_A_DATABASE = "file is not a database"
MOST_WAITING = 16
"""Writers of a process that wait on when nobody has got on for a while; each holds a thread, which reads need too."""
TURN_PATIENCE_S = 0.5
"""A process that is suspended in its turn costs each of the others so much, once."""
TURN_LOOK_S = 0.0005
TURN_GAP_S = 0.001
"""Longer than a look, so that each of the others has one."""


class DatabaseUnavailable(Exception):
    """The database cannot be reached, refuses the connection, or does not open with this key."""


class WriteLockHeld(OperationalError):
    """Somebody holds the write lock, and enough wait for it."""

    def __init__(self) -> None:
        super().__init__(None, None, BlockingIOError("the database is locked"))


class Database:
    """Two ways in: `read` sees one consistent state, `write` holds the write lock from its first statement.

    Callers are threads: the drivers block.
    """

    def __init__(
        self,
        engine: Engine,
        turns: "_Turns | None" = None,
        *,
        ledger: LedgerFile | None = None,
        audit_key: AuditKey | None = None,
        reserve: Reserve = NO_RESERVE,
    ) -> None:
        self.engine = engine
        self._turns = turns
        self._ledger = ledger
        self._audit = AuditChain(audit_key)
        self.reserve = reserve
        if engine.dialect.name == "sqlite":
            self._reading = engine.execution_options(sqlite_begin="DEFERRED")
            self._writing = engine.execution_options(sqlite_begin="IMMEDIATE")
        else:
            self._reading = engine.execution_options(isolation_level="REPEATABLE READ", tenant_of=everybody)
            self._writing = engine.execution_options(tenant_of=everybody)

    def for_callers(self) -> "Database":
        """The same, whose transactions on PostgreSQL see nothing but the rows of the tenant that they act for."""
        held = copy(self)
        if self.engine.dialect.name == "postgresql":
            held._reading = self._reading.execution_options(tenant_of=the_caller)  # noqa: SLF001 - of this class
            held._writing = self._writing.execution_options(tenant_of=the_caller)  # noqa: SLF001
        return held

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._reading, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Raises DiskFull, DiskFailed and WriteLockHeld; a deletion takes the room that is held back for it."""
        turn = nullcontext() if self._turns is None else self._turns.turn()
        try:
            with (
                Session(self._writing, expire_on_commit=False) as session,
                turn,
                session.begin() as transaction,
            ):
                yield session
                if not transaction.is_active:
                    return  # Undone by the caller: nothing was done that a log could tell.
                if recorded(session):
                    self.reserve.release_if_full()
                self._audit.append(session)
                send(session)
        except OperationalError as error:
            if (told := disk_error(error)) is not None:
                raise told from error
            raise
        if self._ledger is not None:
            self._ledger.append(recorded(session))

    def settle(self) -> None:
        """Empties the embedded database's log, which holds pages from before a deletion, unless somebody reads it."""
        if self.engine.dialect.name != "sqlite":
            return
        with self.engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.execute("pragma busy_timeout = 100")
            raw.execute("pragma wal_checkpoint(truncate)").fetchall()
            raw.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_S * 1000}")

    def damage(self) -> Iterator[str]:
        """Of the embedded database's pages and rows, in its own words, which quote nothing. A server checks its own."""
        if self.engine.dialect.name != "sqlite":
            return
        with self.engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            for (told,) in raw.execute("pragma cipher_integrity_check").fetchall():
                yield f"The database: {told}."
            for (told,) in raw.execute("pragma quick_check").fetchall():
                if told != "ok":
                    yield f"The database: {told}."
            for table, _, other, _ in raw.execute("pragma foreign_key_check").fetchall():
                yield f"The database: a row of {table} names one of {other} that is not there."

    def check(self) -> None:
        """Raises DatabaseUnavailable with the driver's reason, without the address or its password."""
        try:
            with self.read() as session:
                session.execute(text("select 1"))
        except SQLAlchemyError as error:
            raise DatabaseUnavailable(reason_of(error)) from error

    def close(self) -> None:
        self.engine.dispose()
        if self._turns is not None:
            self._turns.close()


class _Turns:
    """Lets the writers of a SQLite file in one by one, those of other processes too.

    SQLite itself has them sleep up to 100 ms and try again, so that a process that writes without a pause keeps the
    others out. This is a courtesy: whoever has waited for long goes on, and SQLite decides, until turns are free again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)
        self._file: IO[bytes] | None = None
        self._ended_at = 0.0
        self._is_patient = True

    @contextmanager
    def turn(self) -> Iterator[None]:
        if not self._has_got_in():
            if not self._waiting.acquire(blocking=False):
                raise WriteLockHeld
            try:
                yield
            finally:
                self._waiting.release()
            return
        try:
            file = self._wait_for_others()
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
                self._ended_at = time.monotonic()
        finally:
            self._own.release()

    def _has_got_in(self) -> bool:
        """Waits as long as others of this process get on."""
        latest = time.monotonic() + BUSY_TIMEOUT_S
        while not self._own.acquire(timeout=TURN_PATIENCE_S):
            now = time.monotonic()
            if now - self._ended_at > TURN_PATIENCE_S or now > latest:
                return False
        return True

    def close(self) -> None:
        with self._own:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _wait_for_others(self) -> IO[bytes]:
        if self._file is None:
            self._file = self._path.open("ab")
        started = time.monotonic()
        if started - self._ended_at < TURN_GAP_S:
            time.sleep(TURN_GAP_S)
        while not (has_turn := _has_locked(self._file)) and self._is_patient:
            time.sleep(TURN_LOOK_S)
            self._is_patient = time.monotonic() - started < TURN_PATIENCE_S
        self._is_patient = has_turn
        return self._file


def _has_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_database(
    url: str,
    *,
    key: bytes | None = None,
    ledger: LedgerFile | None = None,
    audit_key: AuditKey | None = None,
    reserve: Reserve = NO_RESERVE,
) -> Database:
    """`sqlite:///PATH` for the embedded database, `postgresql://...` for a server.

    With a key of 32 bytes the embedded one is encrypted. Raises DatabaseUnavailable where a file is not as the key,
    or its absence, says. A server encrypts by its own means or not at all. What is deleted is written to `ledger` too;
    the audit log is signed by `audit_key`.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database is None:
            raise ValueError("An embedded database needs a path: sqlite:///PATH")
        path = Path(parsed.database)
        _check_form(path, is_encrypted=key is not None)
        turns = _Turns(path.with_name(f"{path.name}-turn"))
        return Database(_open_sqlite(path, key), turns, ledger=ledger, audit_key=audit_key, reserve=reserve)
    engine = _open_postgresql(parsed)
    return Database(engine, ledger=ledger, audit_key=audit_key, reserve=reserve)


def reason_of(error: SQLAlchemyError) -> str:
    """The driver's own words, without SQL or parameters: those may hold text of documents."""
    cause = error.orig if isinstance(error, OperationalError) and error.orig is not None else error
    return " ".join(str(cause).split())


def is_plain_sqlite(path: Path) -> bool:
    """Whether it is a database that anybody can read."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return file.read(len(PLAIN_HEADER)) == PLAIN_HEADER
    return False


def copy_database(path: Path, target: Path, key: bytes | None) -> None:
    """One state of an embedded database that others go on using, under the same key."""
    source, copy = (
        sqlite.connect(str(each), timeout=BUSY_TIMEOUT_S, isolation_level=None) for each in (path, target)
    )
    try:
        for each in (source, copy):
            if key is not None:
                each.execute(f"pragma key = {key_pragma(key)}")
        source.backup(copy)
        # One file, without a log beside it.
        copy.execute("pragma journal_mode = delete")
    finally:
        copy.close()
        source.close()


def encrypt_database(path: Path, key: bytes) -> None:
    """Puts an encrypted copy in the place of a plain database that nobody uses. Raises DatabaseUnavailable."""
    fresh = path.with_name(f".{path.name}.encrypting")
    fresh.unlink(missing_ok=True)
    plain = sqlite.connect(str(path), timeout=0, isolation_level=None)
    try:
        # Fails while anybody else has it open. Writes what is in the log to the file itself.
        plain.execute("pragma journal_mode = delete")
        plain.execute(f"attach database ? as encrypted key {key_pragma(key)}", (str(fresh),))
        plain.execute("select sqlcipher_export('encrypted')")
        plain.execute("detach database encrypted")
    except sqlite.OperationalError as error:
        raise DatabaseUnavailable(f"{path} cannot be encrypted now ({error}): stop what uses it.") from error
    finally:
        plain.close()
    with fresh.open("rb") as copy:
        os.fsync(copy.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def key_pragma(key: bytes) -> str:
    """As SQLCipher takes a key that it need not stretch."""
    return f"\"x'{key.hex()}'\""


def _check_form(path: Path, *, is_encrypted: bool) -> None:
    if is_plain_sqlite(path) == is_encrypted and path.exists() and path.stat().st_size:
        raise DatabaseUnavailable(
            f"{path} is not encrypted. `strongroom migrate` encrypts this data folder; encryption.enabled=false "
            "leaves it as it is."
            if is_encrypted
            else f"{path} cannot be read as a database: it is encrypted, which needs encryption.enabled, or is none."
        )


def _open_sqlite(path: Path, key: bytes | None) -> Engine:
    def connect() -> Any:
        # isolation_level=None leaves BEGIN to the event below; the default would open a deferred
        # transaction at the first write and fail with "database is locked" when another got there first.
        connection = sqlite.connect(
            str(path), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        if key is not None:
            connection.execute("pragma cipher_log_level = none")
            connection.execute(f"pragma key = {key_pragma(key)}")
        try:
            connection.execute("pragma journal_mode = wal")
        except sqlite.DatabaseError as error:
            connection.close()
            if str(error) != NOT_A_DATABASE:
                raise
            raise DatabaseUnavailable(
                f"{path} does not open: it lies under other keys than keys/root.key holds, or its first page is "
                "damaged. Put the right keys there, or restore a backup."
            ) from error
        # Sorting may take more than fits in memory; what it puts on disk would be plain text.
        connection.execute("pragma temp_store = memory")
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


def _open_postgresql(url: URL) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=8,
        max_overflow=24,
        pool_pre_ping=True,
        hide_parameters=True,  # An error's text may be logged, and parameters hold text of documents.
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        tenant_of: TenantOf | None = connection.get_execution_options().get("tenant_of")
        if tenant_of is None:
            return  # Of migrations and looks at the schema.
        if "passes_by" not in connection.info:
            if not is_protected(connection):
                return  # It has yet to be migrated.
            connection.info["passes_by"] = passes_by(connection)
        enter(connection, tenant_of(), as_role=connection.info["passes_by"])

    return engine
