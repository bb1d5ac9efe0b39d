"""A database that is locked, cut off and killed while clients add and delete: `python -m tests.faults.database`.

The role stays up: what it cannot do gets 503 with Retry-After, reads go on while somebody holds the write lock, what it
acknowledged is there, and it works again as soon as the database does. `--kind` names one of the two. F13 and F14.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psycopg
from psycopg import sql

from app.settings import read_settings
from app.storage.opening import open_storage
from retrieval.database import Database
from tests.api_role import ApiRole
from tests.faults.report import Row
from tests.faults.storm import Storm, Told, violations
from tests.postgres import PostgresServer, running_postgres
from tests.stack import eventually

LOCKED_S = 35.0
"""Longer than a writer waits for the lock."""
AWAY_S = 2.0
CALM_S = 0.5
"""Of the storm before and after a strike."""
READ_WITHIN_S = 1.0
"""The slowest read beside a locked database."""
RECOVERS_WITHIN_S = 10.0
WRITERS = 24
"""More than the role has threads, if each of them waited in one."""
READER_S = 5.0
MIB = 1 << 20
MOST_LOG_BYTES = 8 * MIB
"""Of SQLite's log once nobody reads an old state of it any more."""
FEW = {"max_connections": "8"}
"""Less than the role would like: its own pool goes to 32."""
LASTING = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}

Strike = Callable[[], None]


@dataclass
class Suffered:
    """What came of all strikes."""

    strikes: int = 0
    violations: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    acknowledged: int = 0
    refused: int = 0
    reads_s: list[float] = field(default_factory=list)
    """Each while the database was locked."""
    most_log_bytes: int = 0
    """While an old state was read."""

    def row(self, fault: str, figures: str) -> Row:
        for each in self.violations:
            print(each)
        told = f"{self.acknowledged} acknowledged, {self.refused} refused with 503; {figures}"
        return Row(fault, self.strikes, len(self.violations), max(self.recovery_s), told)


class Ground:
    """A role that stays up, and what its clients were told."""

    def __init__(self, role: ApiRole, seed: int) -> None:
        self.role = role
        self.suffered = Suffered()
        self._random = random.Random(seed)
        with httpx.Client(base_url=role.url, headers=role.headers) as http:
            self._told = Told(http.post("/v1/vector_stores", json={"name": "storm"}).json()["id"])

    def suffer(self, strike: Strike, *, name: str) -> None:
        """Clients work before it, during it and after it; then all that was acknowledged is looked at."""

        def in_the_middle() -> None:
            time.sleep(CALM_S)
            strike()

        Storm(self.role, self._told, self._random.randrange(1 << 30)).blow(in_the_middle)
        suffered, told = self.suffered, self._told
        suffered.strikes += 1
        suffered.recovery_s.append(self._until_back())
        if suffered.recovery_s[-1] > RECOVERS_WITHIN_S:
            suffered.violations.append(f"{name}: back after {suffered.recovery_s[-1]:.1f} s")
        suffered.violations += [f"{name}: {each}" for each in violations(self.role, told)]
        told.crashed.clear()
        suffered.acknowledged, suffered.refused = told.acknowledged, told.refused
        print(
            f"{name}: {told.acknowledged} acknowledged, {told.refused} refused, back in {suffered.recovery_s[-1]:.1f} s"
        )

    def end(self) -> None:
        """What is at rest agrees with itself."""
        self.role.kill()
        self.role.command("verify", "--url", "http://127.0.0.1:9")

    def read_meanwhile(self, until: threading.Event) -> None:
        """Lists, downloads and searches, one after the other, as somebody would who changes nothing."""
        search = {"query": "a", "search_mode": "keyword"}
        with httpx.Client(base_url=self.role.url, headers=self.role.headers, timeout=60) as http:
            while not until.is_set():
                for method, path, body in (
                    ("GET", "/v1/files?limit=10", None),
                    ("GET", f"/v1/vector_stores/{self._told.store_id}", None),
                    ("POST", f"/v1/vector_stores/{self._told.store_id}/search", search),
                    ("GET", "/health", None),
                ):
                    began = time.monotonic()
                    reply = http.request(method, path, json=body)
                    self.suffered.reads_s.append(time.monotonic() - began)
                    if reply.status_code != 200:
                        self.suffered.violations.append(
                            f"locked: {path} was {reply.status_code} {reply.text[:100]}"
                        )
                until.wait(0.05)

    def write_meanwhile(self, until: threading.Event) -> None:
        """Another client that makes stores, and counts what is neither done nor refused in order."""
        with httpx.Client(base_url=self.role.url, headers=self.role.headers, timeout=60) as http:
            while not until.is_set():
                reply = http.post("/v1/vector_stores", json={"name": "another"})
                if reply.status_code == 503 and "retry-after" in reply.headers:
                    self._told.refused += 1
                    until.wait(0.2)
                elif reply.status_code != 200:
                    self.suffered.violations.append(f"a store was {reply.status_code} {reply.text[:100]}")

    def _until_back(self) -> float:
        began = time.monotonic()
        with httpx.Client(base_url=self.role.url, headers=self.role.headers, timeout=60) as http:
            eventually(
                lambda: http.post("/v1/vector_stores", json={"name": "back"}).status_code == 200,
                within_s=60,
                every_s=0.02,
            )
        return time.monotonic() - began


@contextmanager
def embedded(folder: Path) -> Iterator[Ground]:
    with ApiRole(folder / "data") as role:
        role.start()
        yield Ground(role, seed=1)


@contextmanager
def on_postgres(folder: Path, settings: Mapping[str, str]) -> Iterator[tuple[Ground, PostgresServer, str]]:
    """With a server of its own, and the name of the database there.

    The role is no superuser, for whom the server holds back the connections that the strikes need.
    """
    with running_postgres({**LASTING, **settings}) as server:
        name = server.create_database()
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("create role owner login")
            connection.execute(sql.SQL("alter database {} owner to owner").format(sql.Identifier(name)))
        url = server.url(name, user="owner")
        with ApiRole(folder / "data", {"STRONGROOM_STORAGE__DATABASE_URL": url}) as role:
            role.start()
            yield Ground(role, seed=2), server, name


def hold_the_lock(ground: Ground, folder: Path, *, locked_s: float) -> None:
    """As a program would that opened the file and began something exclusive."""
    over = threading.Event()
    beside = [threading.Thread(target=ground.write_meanwhile, args=(over,)) for _ in range(WRITERS)]
    beside.append(threading.Thread(target=ground.read_meanwhile, args=(over,)))
    with raw_connection(folder) as execute:
        execute("begin exclusive")
        try:
            for each in beside:
                each.start()
            time.sleep(locked_s)
        finally:
            over.set()
            execute("rollback")
    for each in beside:
        each.join()
    if max(ground.suffered.reads_s) > READ_WITHIN_S:
        ground.suffered.violations.append(f"locked: a read took {max(ground.suffered.reads_s):.1f} s")


def read_for_long(ground: Ground, folder: Path, *, reading_s: float) -> None:
    """The log grows meanwhile, since an old state is still read; once it is not, the next upkeep empties the log."""
    with raw_connection(folder) as execute:
        execute("begin")
        execute("select count(*) from files")
        time.sleep(reading_s)
        ground.suffered.most_log_bytes = max(ground.suffered.most_log_bytes, log_bytes(folder))
        execute("rollback")


@contextmanager
def raw_connection(folder: Path) -> Iterator[Callable[[str], object]]:
    with opened(folder) as database, database.engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        yield lambda statement: raw.execute(statement).fetchall()


def end_sessions(server: PostgresServer, name: str) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
        )


def crash_server(server: PostgresServer, name: str) -> None:
    """One of its processes is killed: it ends all the others, and recovers from its log."""
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        (pid,) = connection.execute("select pg_backend_pid()").fetchone() or (0,)
        os.kill(pid, signal.SIGKILL)


def leave_for_a_while(server: PostgresServer, name: str) -> None:
    """As while it is restarted: whoever comes is turned away."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        allow = sql.SQL("alter database {} allow_connections {}")
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        end_sessions(server, name)
        time.sleep(AWAY_S)
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("true")))


def suffer_embedded(folder: Path, *, times: int, locked_s: float, reading_s: float) -> Suffered:
    folder.mkdir(exist_ok=True)
    with embedded(folder) as ground:
        for _ in range(times):
            ground.suffer(partial(hold_the_lock, ground, folder, locked_s=locked_s), name="locked")
            ground.suffer(partial(read_for_long, ground, folder, reading_s=reading_s), name="read for long")
            with opened(folder) as database:
                database.settle()
            if (left := log_bytes(folder)) > MOST_LOG_BYTES:
                ground.suffered.violations.append(f"the log has {left} bytes")
        ground.end()
    return ground.suffered


@contextmanager
def opened(folder: Path) -> Iterator[Database]:
    settings = read_settings().with_options(storage={"data_dir": str(folder / "data")})
    with open_storage(settings) as storage:
        yield storage.database


def log_bytes(folder: Path) -> int:
    return (folder / "data" / "strongroom.db-wal").stat().st_size


STRIKES: Sequence[Callable[[PostgresServer, str], None]] = (end_sessions, crash_server, leave_for_a_while)


def suffer_postgres(folder: Path, *, times: int, settings: Mapping[str, str] = {}) -> Suffered:
    folder.mkdir(exist_ok=True)
    with on_postgres(folder, settings) as (ground, server, name):
        for _ in range(times):
            for strike in STRIKES:
                ground.suffer(partial(strike, server, name), name=strike.__name__)
        ground.end()
    return ground.suffered


def embedded_row(suffered: Suffered) -> Row:
    figures = (
        f"reads beside the lock: {max(suffered.reads_s):.2f} s at most ({READ_WITHIN_S:.0f}); log of SQLite "
        f"{suffered.most_log_bytes / MIB:.1f} MiB, then below {MOST_LOG_BYTES / MIB:.0f}"
    )
    return suffered.row("F13 embedded database locked for longer than anybody waits, read for long", figures)


def postgres_row(suffered: Suffered, few: Suffered) -> Row:
    figures = f"of them {few.strikes} with {FEW['max_connections']} connections for all"
    both = Suffered(
        suffered.strikes + few.strikes,
        [*suffered.violations, *few.violations],
        [*suffered.recovery_s, *few.recovery_s],
        suffered.acknowledged + few.acknowledged,
        suffered.refused + few.refused,
    )
    return both.row("F14 PostgreSQL ends sessions, crashes, turns everybody away", figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=50, help="of what a server suffers; the file a tenth")
    parser.add_argument("--kind", choices=["embedded", "postgresql"])
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, few_times = Path(name), max(1, asked.times // 10)
        if asked.kind != "postgresql":
            found = suffer_embedded(folder / "file", times=few_times, locked_s=LOCKED_S, reading_s=READER_S)
            rows.append(embedded_row(found))
        if asked.kind != "embedded":
            found = suffer_postgres(folder / "server", times=asked.times)
            few = suffer_postgres(folder / "few", times=few_times, settings=FEW)
            rows.append(postgres_row(found, few))
    for row in rows:
        row.show()
    return int(any(row.violations for row in rows))


if __name__ == "__main__":
    sys.exit(main())
