"""What tests of every room start from: a migrated database of each kind, and two tenants."""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from app.access.auth import KeyRing
from app.storage.migrate import migrate
from retrieval.database import Database, open_database
from retrieval.scope import Scope
from retrieval.tables import Base, Role
from tests.postgres import PostgresServer, postgres_server

__all__ = ["postgres_server"]

SERVER_SECRET = b"a secret of 32 bytes for tests.."


def pytest_configure(config: pytest.Config) -> None:
    # Before any test module imports a library that reads it.
    environment = pytest.MonkeyPatch()
    environment.setenv("HF_HUB_OFFLINE", "1")
    # Of these tests alone, so that nothing of them stays in memory.
    memory = tempfile.mkdtemp(prefix="strongroom-tests-", dir="/dev/shm")
    environment.setenv("STRONGROOM_ENCRYPTION__MEMORY_FOLDER", memory)
    config.add_cleanup(partial(shutil.rmtree, memory, ignore_errors=True))
    config.add_cleanup(environment.undo)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "strongroom.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """The url of the one database that these tests share: emptied after each."""
    url = postgres_server.url(postgres_server.create_database())
    _migrate(url)
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def empty_database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database without tables."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'strongroom.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database with the tables of today and nothing in them."""
    if database_kind == "sqlite":
        path = tmp_path / "strongroom.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    url: str = request.getfixturevalue("migrated_postgres")
    yield url
    # A copy for each test would take 100 ms, to truncate all tables 40 ms, this takes 4.
    with psycopg.connect(url, options="-c lock_timeout=5s") as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(sql.SQL("delete from {}").format(sql.Identifier(table.name)))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = open_database(database_url)
    yield database
    database.close()


@pytest.fixture
def scope(database: Database) -> Scope:
    return tenant_scope(database, "north")


@pytest.fixture
def other_scope(database: Database) -> Scope:
    """Another tenant's."""
    return tenant_scope(database, "south")


def tenant_scope(database: Database, tenant_name: str) -> Scope:
    """The scope of a new key of that tenant."""
    with database.write() as session:
        key, _ = KeyRing(database, SERVER_SECRET).add(
            session, tenant_name=tenant_name, name="tests", role=Role.WRITER, now=1.0
        )
        return Scope(tenant_id=key.tenant_id, key_id=key.id, role=key.role)


def _migrate(url: str) -> None:
    database = open_database(url)
    migrate(database)
    database.close()
