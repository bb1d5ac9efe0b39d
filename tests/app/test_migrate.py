"""Migrations on both databases: they lead to the tables of the code, once, and never from a newer version."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from app.migrate import SchemaMismatch, _config, check_schema, migrate
from retrieval.database import Database, open_database
from retrieval.scope import Scope
from retrieval.tables import Base, Collection, Tenant


def test_migrations_lead_to_the_tables_that_the_code_declares(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    migrate(database)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.close()


def test_sqlite_never_reuses_the_ids_of_a_migrated_table(database: Database) -> None:
    """compare_metadata does not see AUTOINCREMENT; PostgreSQL's sequences need nothing."""
    if database.engine.dialect.name != "sqlite":
        return
    with database.read() as session:
        declared = session.scalars(
            text("select name from sqlite_master where sql like '%autoincrement%' order by name")
        ).all()
    assert declared == ["chunks", "documents", "jobs", "sweeps"]


def test_a_second_migration_changes_nothing(database: Database, scope: Scope) -> None:
    migrate(database)
    check_schema(database)
    with database.read() as session:
        assert session.get(Tenant, scope.tenant_id) is not None


def test_collections_from_before_models_could_be_chosen_stay_and_name_none(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with database.engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("insert into tenants values ('t', 'north', 1.0)"))
        connection.execute(
            text(
                "insert into collections (id, tenant_id, name, attributes, fingerprint, head, created_at,"
                " last_active_at) values ('vs_1', 't', 'letters', '{}', 'some weights', 7, 1.0, 1.0)"
            )
        )
    migrate(database)
    with database.read() as session:
        collection = session.get_one(Collection, "vs_1")
        assert (collection.embedding_model, collection.fingerprint, collection.head) == (
            None,
            "some weights",
            7,
        )
    database.close()


def test_a_database_from_a_newer_version_is_refused_and_left_alone(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    migrate(database)
    with database.write() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match=r"newer version.*9999"):
        migrate(database)
    with pytest.raises(SchemaMismatch, match="newer version"):
        check_schema(database)
    with database.read() as session:
        assert session.scalar(text("select version_num from alembic_version")) == "9999"
    database.close()


def test_a_database_from_an_older_version_is_refused_until_it_is_migrated(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with pytest.raises(SchemaMismatch, match="strongroom migrate"):
        check_schema(database)
    migrate(database)
    check_schema(database)
    database.close()


def test_a_migration_that_fails_leaves_no_table(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with database.write() as session:
        # The tables' last one stands in the way.
        session.execute(text("create table jobs (id integer)"))
    with pytest.raises(Exception, match="jobs"):
        migrate(database)
    with database.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) <= {"jobs", "alembic_version"}
    database.close()
