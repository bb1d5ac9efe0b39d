"""Keys of tenants and blobs, digests that may be keyed, and the ledger of what was deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


class KeysInUse(Exception):
    """A version before 0008 cannot read encrypted files."""

    def __init__(self) -> None:
        super().__init__(
            "Files of this data folder are encrypted, which the older version cannot read: "
            "restore the backup that was made before the upgrade."
        )


def upgrade() -> None:
    op.add_column("tenants", sa.Column("key", sa.LargeBinary()))
    _rename_digest("sha256", "digest")
    op.add_column("blobs", sa.Column("key", sa.LargeBinary()))
    op.add_column("upload_parts", sa.Column("key", sa.LargeBinary()))
    op.create_table(
        "deletions",
        sa.Column("kind", sa.String(length=20), primary_key=True),
        sa.Column("object_id", sa.String(length=150), primary_key=True),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
    )


def downgrade() -> None:
    for table in ("blobs", "upload_parts"):
        if op.get_bind().scalar(sa.text(f"select count(*) from {table} where key is not null")):  # noqa: S608
            raise KeysInUse
    op.drop_table("deletions")
    op.drop_column("upload_parts", "key")
    op.drop_column("blobs", "key")
    _rename_digest("digest", "sha256")
    op.drop_column("tenants", "key")


def _rename_digest(old: str, new: str) -> None:
    """A plain rename on both: SQLite's own keeps constraints, and the names that PostgreSQL gave them follow."""
    op.execute(f"ALTER TABLE blobs RENAME COLUMN {old} TO {new}")
    op.execute(f"ALTER TABLE source_entries RENAME COLUMN {old} TO {new}")
    if op.get_bind().dialect.name == "postgresql":
        names = (f"blobs_tenant_id_{column}_key" for column in (old, new))
        op.execute("ALTER TABLE blobs RENAME CONSTRAINT {} TO {}".format(*names))
