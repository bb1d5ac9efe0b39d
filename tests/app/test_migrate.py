"""Migrations on both databases: they lead to the tables of the code, once, and never from a newer version."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError

from app.storage.migrate import SchemaMismatch, _config, check_schema, migrate
from retrieval.database import Database, open_database
from retrieval.scope import Scope
from retrieval.tables import (
    EVERY_GROUP,
    AuditEntry,
    Base,
    Batch,
    BatchLine,
    Blob,
    Collection,
    Conversation,
    File,
    Item,
    Key,
    SourceEntry,
    StoredCompletionFile,
    StoredResponse,
    Tenant,
    Upload,
    UploadPart,
)


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
    assert declared == ["chunks", "documents", "items", "jobs", "sweeps"]


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


RELEASED = tuple(f"{number:04}" for number in range(1, 17))
ROWS = {
    "0001": (
        "insert into tenants (id, name, created_at) values ('t', 'north', 1.0)",
        "insert into blobs (id, tenant_id, sha256, size_bytes) values ('blob-1', 't', 'abc', 3)",
        "insert into files (id, tenant_id, blob_id, filename, purpose, media_type, size_bytes, created_at)"
        " values ('file-1', 't', 'blob-1', 'a.txt', 'assistants', 'text/plain', 3, 1.0)",
        "insert into collections (id, tenant_id, name, attributes, fingerprint, head, created_at,"
        " last_active_at) values ('vs_1', 't', 'letters', '{}', 'some weights', 0, 1.0, 1.0)",
    ),
    "0003": (
        "insert into sources (id, tenant_id, collection_id, url, include, exclude, max_bytes, is_watched,"
        " is_paused, attributes, chunking, failures, created_at)"
        " values ('src_1', 't', 'vs_1', '/letters', '[]', '[]', 9, false, false, '{}', '{}', 0, 1.0)",
        "insert into source_entries (source_id, path_hash, path, tag, sha256, file_id)"
        " values ('src_1', 'h', 'a.txt', 'tag', 'abc', 'file-1')",
    ),
    "0004": (
        "insert into conversations (id, tenant_id, key_id, attributes, created_at)"
        " values ('conv_1', 't', 'key-1', '{}', 1.0)",
        "insert into responses (id, tenant_id, key_id, status, is_background, content, attempt, last_event,"
        " created_at) values ('resp_1', 't', 'key-1', 'completed', false, '{}', 0, -1, 1.0)",
        "insert into items (tenant_id, response_id, public_id, is_output, content)"
        " values ('t', 'resp_1', 'msg_1', true, '{}')",
        "insert into items (tenant_id, conversation_id, public_id, is_output, content)"
        " values ('t', 'conv_1', 'msg_2', false, '{}')",
    ),
    "0005": (
        "insert into uploads (id, tenant_id, state, filename, purpose, mime_type, size_bytes, created_at,"
        " expires_at) values ('upload_1', 't', 'pending', 'b.txt', 'assistants', 'text/plain', 9, 1.0, 9.0)",
        "insert into upload_parts (id, upload_id, size_bytes, created_at)"
        " values ('part_1', 'upload_1', 4, 1.0)",
    ),
    "0006": (
        "insert into stored_completions (id, tenant_id, model, attributes, messages, completion, created_at)"
        " values ('chatcmpl-1', 't', 'rag', '{}', '[]', '{}', 1.0)",
        "insert into stored_completion_files (completion_id, file_id) values ('chatcmpl-1', 'file-1')",
    ),
    "0007": (
        "insert into keys (id, tenant_id, digest, name, role, created_at)"
        " values ('key-1', 't', 'abc', 'first', 'admin', 1.0)",
        "insert into batches (id, tenant_id, key_id, endpoint, input_file_id, attributes, status, reached, total,"
        " completed, failed, usage, created_at, expires_at)"
        " values ('batch_1', 't', 'key-1', '/v1/responses', 'file-1', '{}', 'validating', '{}', 0, 0, 0, '{}',"
        " 1.0, 9.0)",
        "insert into batch_lines (batch_id, number, is_ok, told) values ('batch_1', 1, true, '{}')",
    ),
    "0010": (
        "insert into audit_entries (seq, time, event, outcome, objects, details, previous, hash)"
        " values (1, 1.0, 'search', 'done', '[]', '{}', 'abc', 'def')",
    ),
}
"""What a database of that revision can hold that one before it cannot."""


def to_revision(database: Database, revision: str, *, up: bool = True) -> None:
    with database.engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        (command.upgrade if up else command.downgrade)(config, revision)


@pytest.mark.parametrize("released", RELEASED)
def test_data_of_every_released_revision_comes_along(empty_database_url: str, released: str) -> None:
    database = open_database(empty_database_url)
    for revision in RELEASED[: RELEASED.index(released) + 1]:
        to_revision(database, revision)
        with database.write() as session:
            for statement in ROWS.get(revision, ()):
                session.execute(text(statement))
    migrate(database)
    check_schema(database)
    with database.read() as session:
        blob = session.get_one(Blob, "blob-1")
        assert (blob.digest, blob.key, blob.size_bytes) == ("abc", None, 3)
        assert session.get_one(File, "file-1").blob_id == "blob-1"
        tenant = session.get_one(Tenant, "t")
        assert (tenant.key, tenant.keeps_nothing) == (None, False)
        entries = session.scalars(select(SourceEntry)).all()
        assert [(entry.digest, entry.file_id) for entry in entries] == (
            [("abc", "file-1")] if released >= "0003" else []
        )
        for revision, table in (
            ("0004", Conversation),
            ("0004", StoredResponse),
            ("0005", Upload),
            ("0005", UploadPart),
            ("0006", StoredCompletionFile),
            ("0007", Batch),
            ("0007", BatchLine),
            ("0010", AuditEntry),
        ):
            assert len(session.scalars(select(table)).all()) == (released >= revision)
        assert len(session.scalars(select(Item)).all()) == (2 if released >= "0004" else 0)
    database.close()


def test_keys_and_ledger_go_back_and_forth_while_nothing_is_encrypted(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    for revision in ("0001", "0003", "0004", "0005"):
        to_revision(database, revision)
        with database.write() as session:
            for statement in ROWS[revision]:
                session.execute(text(statement))
    to_revision(database, "0008")
    to_revision(database, "0007", up=False)
    with database.read() as session:
        assert session.scalar(text("select sha256 from blobs")) == "abc"
        assert session.scalar(text("select sha256 from source_entries")) == "abc"
    with pytest.raises(IntegrityError), database.write() as session:
        # The constraint is there under both names.
        session.execute(
            text("insert into blobs (id, tenant_id, sha256, size_bytes) values ('blob-2', 't', 'abc', 3)")
        )
    migrate(database)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    for table in ("blobs", "upload_parts"):
        with database.write() as session:
            session.execute(text(f"update {table} set key = :key"), {"key": b"wrapped"})
        with pytest.raises(Exception, match="Files of this data folder are encrypted"):
            to_revision(database, "0007", up=False)
        check_schema(database)
        with database.write() as session:
            session.execute(text(f"update {table} set key = null"))
    to_revision(database, "0003", up=False)
    database.close()


def test_groups_come_and_go_while_nothing_rests_on_them(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    for revision in ("0001", "0003", "0004", "0005", "0006", "0007"):
        to_revision(database, revision)
        with database.write() as session:
            for statement in ROWS[revision]:
                session.execute(text(statement))
    migrate(database)
    with database.read() as session:
        key = session.get_one(Key, "key-1")
        # What an admin was answered before is not for all, once a tenant names readers.
        assert (key.groups, key.groups_held, key.expires_at) == ([], [EVERY_GROUP], None)
        assert not session.get_one(Tenant, "t").restricts
    to_revision(database, "0008", up=False)
    migrate(database)
    for statement in (
        "update tenants set restricts = true",
        "update keys set expires_at = 9.0",
        "update keys set old_digest = 'abc'",
        "update keys set issuer = 'https://people.example'",
    ):
        with database.write() as session:
            session.execute(text("update tenants set restricts = false"))
            session.execute(text("update keys set expires_at = null, old_digest = null"))
            session.execute(text(statement))
        with pytest.raises(Exception, match="restore the backup"):
            to_revision(database, "0008", up=False)
    database.close()
