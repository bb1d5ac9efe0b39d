"""Parsed files in parts, generations of chunks, progress of jobs, files inside files, expiry, sources."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

POSTGRES_NAMES = {"uq": "%(table_name)s_%(column_0_N_name)s_key"}
"""SQLite's constraints have no names; PostgreSQL made these."""
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _parsed_files()
    _files_and_documents()
    _generations()
    _chunks_and_jobs()
    _sources()


def _parsed_files() -> None:
    op.create_table(
        "parsed_parts",
        sa.Column("blob_id", sa.String(length=40), primary_key=True),
        sa.Column("media_type", sa.String(length=100), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("start_char", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("elements", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["blob_id", "media_type"],
            ["parsed_files.blob_id", "parsed_files.media_type"],
            ondelete="cascade",
        ),
    )
    op.execute(
        "INSERT INTO parsed_parts (blob_id, media_type, number, start_char, text, elements)"
        " SELECT blob_id, media_type, 0, 0, text, elements FROM parsed_files"
    )
    op.execute("ALTER TABLE parsed_files ADD COLUMN attachments INTEGER NOT NULL DEFAULT 0")
    op.add_column("parsed_files", sa.Column("lease", sa.String(length=40)))
    op.drop_column("parsed_files", "text")
    op.drop_column("parsed_files", "elements")


def _files_and_documents() -> None:
    op.add_column("files", sa.Column("path", sa.Text()))
    op.add_column("files", sa.Column("password", sa.LargeBinary()))
    op.add_column("files", sa.Column("expires_at", sa.Double()))
    # With its reference in one statement, as SQLite cannot add a constraint later.
    op.execute("ALTER TABLE files ADD COLUMN parent_id VARCHAR(40) REFERENCES files (id)")
    op.create_index("ix_files_parent_id", "files", ["parent_id"])
    op.create_index("ix_files_expires_at", "files", ["expires_at"])
    op.execute("ALTER TABLE documents ADD COLUMN parent_id BIGINT REFERENCES documents (id)")
    op.add_column("documents", sa.Column("replaces_id", sa.BigInteger()))
    op.add_column("documents", sa.Column("batch_id", sa.String(length=40)))
    op.create_index("ix_documents_parent_id", "documents", ["parent_id"])
    op.create_index("ix_documents_batch_id", "documents", ["batch_id"])
    op.create_index("ix_documents_status", "documents", ["collection_id", "status"])
    op.create_table(
        "file_batches",
        sa.Column("id", sa.String(length=40), primary_key=True),
        sa.Column("tenant_id", sa.String(length=40), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column(
            "collection_id",
            sa.String(length=40),
            sa.ForeignKey("collections.id", ondelete="cascade"),
            nullable=False,
        ),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("cancelled_at", sa.Double()),
    )
    op.create_index("ix_file_batches_collection_id", "file_batches", ["collection_id"])


def _generations() -> None:
    op.execute("ALTER TABLE collections ADD COLUMN generation INTEGER NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE collections ADD COLUMN last_generation INTEGER NOT NULL DEFAULT 0")
    op.add_column("collections", sa.Column("chunking", sa.JSON()))
    op.add_column("collections", sa.Column("expires_after_days", sa.Integer()))
    op.create_table(
        "generations",
        sa.Column(
            "collection_id",
            sa.String(length=40),
            sa.ForeignKey("collections.id", ondelete="cascade"),
            primary_key=True,
        ),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column(
            "state",
            sa.Enum(
                "building", "previous", "discarded", name="generationstate", native_enum=False, length=20
            ),
            nullable=False,
        ),
        sa.Column("embedding_model", sa.Text()),
        sa.Column("fingerprint", sa.String(length=80)),
        sa.Column("chunking", sa.JSON()),
        sa.Column("head", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.rename_table("chunk_log", "old_chunk_log")
    op.create_table(
        "chunk_log",
        sa.Column("collection_id", sa.String(length=40), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("op", sa.Enum("add", "remove", name="logop", native_enum=False, length=20), nullable=False),
        sa.Column("chunk_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["collection_id"], ["collections.id"], ondelete="cascade"),
        sa.PrimaryKeyConstraint("collection_id", "generation", "seq", name="chunk_log_by_generation"),
    )
    op.execute(
        "INSERT INTO chunk_log (collection_id, generation, seq, op, chunk_id)"
        " SELECT collection_id, 0, seq, op, chunk_id FROM old_chunk_log"
    )
    op.drop_table("old_chunk_log")


def _chunks_and_jobs() -> None:
    highest = _highest_ids()
    with op.batch_alter_table(
        "chunks", naming_convention=POSTGRES_NAMES, table_kwargs={"sqlite_autoincrement": True}
    ) as batch_op:
        batch_op.add_column(sa.Column("generation", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("is_table", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("similarity_hash", sa.BigInteger()))
        batch_op.drop_constraint("chunks_document_id_position_key", type_="unique")
        batch_op.create_unique_constraint(
            "chunks_document_id_generation_position_key", ["document_id", "generation", "position"]
        )
    with op.batch_alter_table(
        "jobs", naming_convention=POSTGRES_NAMES, table_kwargs={"sqlite_autoincrement": True}
    ) as batch_op:
        batch_op.add_column(sa.Column("generation", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(
            sa.Column("is_background", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch_op.add_column(sa.Column("next_part", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("step", sa.String(length=20), nullable=False, server_default="queued"))
        batch_op.add_column(sa.Column("done", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("total", sa.BigInteger()))
        batch_op.add_column(sa.Column("unit", sa.String(length=20)))
        batch_op.add_column(sa.Column("step_since", sa.Double()))
        batch_op.add_column(sa.Column("error_code", sa.String(length=40)))
        batch_op.add_column(sa.Column("error", sa.Text()))
        batch_op.drop_constraint("jobs_document_id_key", type_="unique")
        batch_op.drop_index("ix_jobs_due")
        batch_op.create_index("ix_jobs_due", ["is_background", "tenant_id", "due_at", "id"])
        batch_op.create_unique_constraint("jobs_document_id_generation_key", ["document_id", "generation"])
    for table, highest_id in highest.items():
        op.execute(
            sa.text("UPDATE sqlite_sequence SET seq = :seq WHERE name = :name").bindparams(
                seq=highest_id, name=table
            )
        )


def _highest_ids() -> dict[str, int]:
    """SQLite copies a table to alter it so, and would forget the highest id that was ever given."""
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        return {}
    rows = connection.execute(sa.text("SELECT name, seq FROM sqlite_sequence"))
    return {name: seq for name, seq in rows if name in ("chunks", "jobs")}


def _sources() -> None:
    op.create_table(
        "sources",
        sa.Column("id", sa.String(length=40), primary_key=True),
        sa.Column("tenant_id", sa.String(length=40), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column(
            "collection_id",
            sa.String(length=40),
            sa.ForeignKey("collections.id", ondelete="cascade"),
            nullable=False,
        ),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("options", sa.LargeBinary()),
        sa.Column("include", sa.JSON(), nullable=False),
        sa.Column("exclude", sa.JSON(), nullable=False),
        sa.Column("max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("every_s", sa.Double()),
        sa.Column("cron", sa.String(length=200)),
        sa.Column("is_watched", sa.Boolean(), nullable=False),
        sa.Column("is_paused", sa.Boolean(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("chunking", sa.JSON(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_sources_tenant_id", "sources", ["tenant_id"])
    op.create_index("ix_sources_collection_id", "sources", ["collection_id"])
    op.create_index("ix_sources_due_at", "sources", ["due_at"])
    op.create_table(
        "source_entries",
        sa.Column(
            "source_id",
            sa.String(length=40),
            sa.ForeignKey("sources.id", ondelete="cascade"),
            primary_key=True,
        ),
        sa.Column("path_hash", sa.String(length=64), primary_key=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64)),
        sa.Column("file_id", sa.String(length=40)),
        sa.Column("error", sa.Text()),
    )
    op.create_index("ix_source_entries_file_id", "source_entries", ["file_id"])
    op.create_table(
        "sweeps",
        sa.Column("id", ROW_ID, primary_key=True),
        sa.Column(
            "source_id",
            sa.String(length=40),
            sa.ForeignKey("sources.id", ondelete="cascade"),
            nullable=False,
        ),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("is_dry", sa.Boolean(), nullable=False),
        sa.Column("may_empty", sa.Boolean(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("ended_at", sa.Double()),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.UniqueConstraint("source_id", "due_at"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "leaderships",
        sa.Column("name", sa.String(length=40), primary_key=True),
        sa.Column("holder", sa.String(length=40), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError("Restore the backup that was made before the upgrade.")
