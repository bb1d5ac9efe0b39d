"""PostgreSQL shows a transaction its tenant's rows alone, whatever the query forgets, whoever owns the tables."""

import asyncio
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, delete, inspect, select, text, update
from sqlalchemy.exc import ProgrammingError

from app.storage.migrate import migrate
from retrieval.database import Database, open_database
from retrieval.row_security import act_for
from retrieval.scope import Scope
from retrieval.tables import Base, Blob, Collection, Key, ParsedFile, ParsedPart, Tenant, new_id
from tests.conftest import tenant_scope
from tests.postgres import PostgresServer

TEXT = "the vault opens at nine"

pytestmark = pytest.mark.slow


@pytest.fixture(params=["superuser", "owner"])
def server_database(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[Database]:
    """Migrated and used by a superuser, whom no policy binds, or by an ordinary user who owns the tables."""
    name = postgres_server.create_database()
    url = postgres_server.url(name)
    if request.param == "owner":
        owner = f"owner_of_{name}"
        with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("create role {} login").format(sql.Identifier(owner)))
            connection.execute(
                sql.SQL("alter database {} owner to {}").format(sql.Identifier(name), sql.Identifier(owner))
            )
        url = url.replace("postgres@", f"{owner}@")
    database = open_database(url)
    migrate(database)
    yield database
    database.close()
    postgres_server.drop_database(name)


@pytest.fixture
def north(server_database: Database) -> Scope:
    return with_a_text(server_database, "north")


@pytest.fixture
def south(server_database: Database) -> Scope:
    return with_a_text(server_database, "south")


def with_a_text(database: Database, tenant_name: str) -> Scope:
    """A tenant that has a collection, and a parsed file."""
    scope = tenant_scope(database, tenant_name)
    with database.write() as session:
        blob = new_id("blob-")
        session.add(Blob(id=blob, tenant_id=scope.tenant_id, digest=tenant_name, size_bytes=1))
        session.add(
            Collection(
                id=new_id("vs_"),
                tenant_id=scope.tenant_id,
                name=tenant_name,
                attributes={},
                created_at=1.0,
                last_active_at=1.0,
            )
        )
        session.flush()
        session.add(ParsedFile(blob_id=blob, media_type="text/plain"))
        session.flush()
        part = ParsedPart(blob_id=blob, media_type="text/plain", number=0, start_char=0, text=TEXT)
        part.elements = b""
        session.add(part)
    return scope


def acting_for(scope: Scope | None, work: Callable[[], object]) -> object:
    async def act() -> object:
        if scope is not None:
            act_for(scope.tenant_id)
        return await asyncio.to_thread(work)

    return asyncio.run(act())


def test_a_query_that_forgets_its_tenant_finds_nothing_of_others(
    server_database: Database, north: Scope, south: Scope
) -> None:
    held = server_database.for_callers()

    def forgetful() -> object:
        with held.read() as session:
            return (
                session.scalars(select(Collection.tenant_id)).all(),
                session.scalars(select(Key.id)).all(),
                session.scalars(select(Tenant.name)).all(),
                len(session.scalars(select(ParsedPart.text)).all()),
            )

    assert acting_for(north, forgetful) == ([north.tenant_id], [north.key_id], ["north"], 1)
    assert acting_for(south, forgetful) == ([south.tenant_id], [south.key_id], ["south"], 1)
    with server_database.read() as session:
        assert len(session.scalars(select(ParsedPart.text)).all()) == 2


@pytest.mark.usefixtures("north", "south")
def test_who_acts_for_nobody_sees_nothing(server_database: Database) -> None:
    def every_row() -> object:
        with server_database.for_callers().read() as session:
            counts = {
                table.name: session.scalar(text(f"select count(*) from {table.name}"))
                for table in Base.metadata.sorted_tables
            }
        return {name for name, count in counts.items() if count}

    # Where the audit log stands is nobody's.
    assert acting_for(None, every_row) == {"audit_head"}


def test_a_change_that_forgets_its_tenant_touches_nothing_of_others(
    server_database: Database, north: Scope, south: Scope
) -> None:
    held = server_database.for_callers()

    def forgetful() -> object:
        with held.write() as session:
            session.execute(update(Collection).values(name="taken"))
            session.execute(delete(ParsedPart))
        return None

    acting_for(north, forgetful)
    with server_database.read() as session:
        rows = session.execute(select(Collection.tenant_id, Collection.name))
        assert {row.tenant_id: row.name for row in rows} == {
            north.tenant_id: "taken",
            south.tenant_id: "south",
        }
        assert session.scalars(select(ParsedPart.text)).all() == [TEXT]


def test_a_row_cannot_be_written_for_others(server_database: Database, north: Scope, south: Scope) -> None:
    held = server_database.for_callers()

    def smuggle() -> object:
        with held.write() as session:
            session.add(Blob(id=new_id("blob-"), tenant_id=south.tenant_id, digest="x", size_bytes=1))
        return None

    with pytest.raises(ProgrammingError, match="row-level security"):
        acting_for(north, smuggle)


def test_a_connection_forgets_its_tenant_with_its_transaction(
    server_database: Database, north: Scope
) -> None:
    held = server_database.for_callers()

    def rows() -> object:
        with held.read() as session:
            return session.scalars(select(Collection.tenant_id)).all()

    assert acting_for(north, rows) == [north.tenant_id]
    # It comes back from the pool, and this one says nothing for whom.
    assert acting_for(None, rows) == []
    with server_database.engine.connect() as connection:
        said = connection.scalar(text("select current_setting('strongroom.tenant', true)"))
        assert not said
        assert connection.scalar(text("select current_user = session_user"))


def test_the_tenant_goes_along_into_tasks_and_threads_and_not_back(
    server_database: Database, north: Scope, south: Scope
) -> None:
    held = server_database.for_callers()

    def rows() -> list[str]:
        with held.read() as session:
            return list(session.scalars(select(Collection.tenant_id)))

    async def of(scope: Scope) -> list[str]:
        act_for(scope.tenant_id)
        await asyncio.sleep(0.01)
        return await asyncio.create_task(asyncio.to_thread(rows))

    async def both() -> tuple[list[str], list[str], list[str]]:
        one, other = await asyncio.gather(of(north), of(south))
        return one, other, await asyncio.to_thread(rows)

    assert asyncio.run(both()) == ([north.tenant_id], [south.tenant_id], [])


def test_every_table_that_names_a_tenant_or_such_a_table_is_protected(server_database: Database) -> None:
    """A new table needs `protect` in its migration."""
    with server_database.engine.connect() as connection:
        protected = set(
            connection.scalars(
                text(
                    "select relname from pg_class join pg_policy on polrelid = pg_class.oid"
                    " where relrowsecurity and relforcerowsecurity and polname = 'of_tenant'"
                )
            )
        )
        assert protected == set(that_belong(connection))


def that_belong(connection: Connection) -> Iterator[str]:
    found = inspect(connection)
    for table in found.get_table_names():
        names_one = any(column["name"] == "tenant_id" for column in found.get_columns(table))
        if table == "tenants" or names_one or found.get_foreign_keys(table):
            yield table
