"""Groups of keys and who may read what; keys that expire, rotate and have quotas."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ADDED: dict[str, dict[str, sa.types.TypeEngine[Any]]] = {
    "tenants": {"quotas": sa.JSON()},
    "keys": {
        "old_digest": sa.String(length=64),
        "old_until": sa.Double(),
        "issuer": sa.Text(),
        "quotas": sa.JSON(),
        "expires_at": sa.Double(),
        "used_at": sa.Double(),
    },
    "files": {"key_id": sa.String(length=40), "readers": sa.JSON()},
    "collections": {"readers": sa.JSON(), "writers": sa.JSON()},
    "documents": {"readers": sa.JSON()},
    "stored_completions": {"key_id": sa.String(length=40)},
}
"""What may be absent."""


class InUse(Exception):
    """A version before 0009 would show to every key what is for some, and take keys that have ended."""

    def __init__(self) -> None:
        super().__init__(
            "Keys expire or were rotated, or groups restrict who reads what, which the older version does not know: "
            "restore the backup that was made before the upgrade."
        )


def upgrade() -> None:
    for table, columns in ADDED.items():
        for name, kind in columns.items():
            op.add_column(table, sa.Column(name, kind))
    op.add_column("tenants", sa.Column("restricts", sa.Boolean(), nullable=False, server_default=sa.false()))
    for name in ("groups", "groups_held"):
        op.add_column("keys", sa.Column(name, sa.JSON(), nullable=False, server_default="[]"))
    op.create_index("ix_keys_old_digest", "keys", ["old_digest"])
    restricted = sa.text("readers IS NOT NULL")
    op.create_index(
        "ix_documents_readers",
        "documents",
        ["collection_id"],
        postgresql_where=restricted,
        sqlite_where=restricted,
    )
    op.execute("update keys set groups_held = '[\"*\"]' where role = 'admin'")


def downgrade() -> None:
    ended = "expires_at is not null or old_digest is not null or issuer is not null"
    if op.get_bind().scalar(sa.text("select count(*) from tenants where restricts")) or op.get_bind().scalar(
        sa.text(f"select count(*) from keys where {ended}")  # noqa: S608
    ):
        raise InUse
    op.drop_index("ix_documents_readers", "documents")
    op.drop_index("ix_keys_old_digest", "keys")
    op.drop_column("tenants", "restricts")
    for name in ("groups", "groups_held"):
        op.drop_column("keys", name)
    for table, columns in ADDED.items():
        for name in columns:
            op.drop_column(table, name)
