"""What tests of every room start from: a migrated database of each kind, and two tenants."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.auth import KeyRing
from app.migrate import migrate
from retrieval.database import Database, open_database
from retrieval.scope import Scope
from retrieval.tables import Role
from tests.postgres import PostgresServer, postgres_server

__all__ = ["postgres_server"]

SERVER_SECRET = b"a secret of 32 bytes for tests.."


def pytest_configure(config: pytest.Config) -> None:
    # Before any test module imports a library that reads it.
    environment = pytest.MonkeyPatch()
    environment.setenv("HF_HUB_OFFLINE", "1")
    config.add_cleanup(environment.undo)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "strongroom.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """The name of a database to copy."""
    name = postgres_server.create_database()
    _migrate(postgres_server.url(name))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def empty_database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database without tables."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path / 'strongroom.db'}"
        return
    yield from _postgres_copy(request, "template1")


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database with the tables of today: copied from one that was migrated, to save time."""
    if database_kind == "sqlite":
        path = tmp_path / "strongroom.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    yield from _postgres_copy(request, request.getfixturevalue("migrated_postgres"))


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


def _postgres_copy(request: pytest.FixtureRequest, template: str) -> Iterator[str]:
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database(template)
    yield server.url(name)
    server.drop_database(name)
