"""A real PostgreSQL for the tests, from the system's own packages: started once a session, thrown away at its end."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

BINARIES = Path("/usr/lib/postgresql")
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "listen_addresses": "127.0.0.1",
}
START_WITHIN_S = 30.0


@dataclass(frozen=True)
class PostgresServer:
    """Trusts every loopback connection: it holds nothing but tests."""

    port: int

    def url(self, database: str, *, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """The name of a new database."""
        name = f"test_{secrets.token_hex(6)}"
        self._execute(sql.SQL("create database {} strategy file_copy").format(sql.Identifier(name)))
        return name

    def drop_database(self, name: str) -> None:
        self._execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    if not list(BINARIES.glob("*/bin/initdb")):
        pytest.skip(f"PostgreSQL is not installed: there is no {BINARIES}/*/bin/initdb")
    with running_postgres() as server:
        yield server


@contextmanager
def running_postgres(settings: Mapping[str, str] = {}) -> Iterator[PostgresServer]:
    """A server with a folder of its own, which goes with it; `settings` in the place of those above."""
    found = sorted(BINARIES.glob("*/bin/initdb"))
    folder = Path(tempfile.mkdtemp(prefix="strongroom-postgres-", dir="/tmp"))
    binaries, as_user = found[-1].parent, _unprivileged()
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    server = PostgresServer(_free_port())
    initdb = [f"{binaries}/initdb", f"--pgdata={folder}/cluster", "--username=postgres", "--auth=trust"]
    # The signal reaches it even when the tests are killed: no server is left behind.
    postgres = ["setpriv", "--pdeathsig=QUIT", f"{binaries}/postgres", "-D", f"{folder}/cluster"]
    postgres += ["-k", str(folder), "-p", str(server.port)]
    postgres += [
        word for name, value in {**SETTINGS, **settings}.items() for word in ("-c", f"{name}={value}")
    ]
    try:
        subprocess.run(
            [*as_user, *initdb, "--encoding=UTF8", "--locale=C", "--no-sync"], check=True, capture_output=True
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*as_user, *postgres], stdout=log, stderr=log)
        try:
            _wait_until_ready(server, process, folder / "log")
            yield server
        finally:
            # An immediate stop: nothing here is worth a checkpoint.
            process.send_signal(signal.SIGQUIT)
            process.wait(10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> list[str]:
    """What goes in front of a command so that it does not run as root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(server: PostgresServer, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_WITHIN_S
    while True:
        try:
            psycopg.connect(server.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > give_up_at:
                pytest.fail(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.05)
        else:
            return
