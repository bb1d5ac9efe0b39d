"""Brings the database to the tables of this version, and tells when it is not there."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from retrieval.database import Database
from retrieval.row_security import EVERY_TENANT, enter


class SchemaMismatch(Exception):
    """The database has other tables than this version of Strongroom works with."""


def migrate(database: Database) -> bool:
    """Upgrades to the newest tables, as one transaction, and tells whether they were older.

    Raises SchemaMismatch for a database from a newer version.
    """
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            enter(connection, EVERY_TENANT, as_role=False)
        _refuse_newer(connection)
        is_older = _revision(connection) != _scripts().get_current_head()
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return is_older


def check_schema(database: Database) -> None:
    with database.engine.connect() as connection:
        _refuse_newer(connection)
        if _revision(connection) != _scripts().get_current_head():
            raise SchemaMismatch("The database is from an older version: run `strongroom migrate` first.")


def _refuse_newer(connection: Connection) -> None:
    revision = _revision(connection)
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaMismatch(
            f"The database is from a newer version of Strongroom (schema {revision}): install that version, "
            "or set storage.data_dir or storage.database_url to another database."
        )


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
