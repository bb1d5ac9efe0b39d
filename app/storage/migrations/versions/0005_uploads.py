"""Uploads in parts, places of deleted rows in lists, what a collection is for, and the size of its chunks."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=40), primary_key=True),
        sa.Column("tenant_id", sa.String(length=40), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(length=40), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("life_s", sa.Integer()),
        sa.Column("file_id", sa.String(length=40), sa.ForeignKey("files.id", ondelete="set null")),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_uploads_file_id", "uploads", ["file_id"])
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(length=40), primary_key=True),
        sa.Column(
            "upload_id", sa.String(length=40), sa.ForeignKey("uploads.id", ondelete="cascade"), nullable=False
        ),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_upload_parts_upload_id", "upload_parts", ["upload_id"])
    op.create_table(
        "gone_rows",
        sa.Column("tenant_id", sa.String(length=40), sa.ForeignKey("tenants.id"), primary_key=True),
        sa.Column("list_name", sa.String(length=40), primary_key=True),
        sa.Column("public_id", sa.String(length=40), primary_key=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("row_id", sa.String(length=40), nullable=False),
        sa.Column("gone_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_gone_rows_gone_at", "gone_rows", ["gone_at"])
    op.add_column("collections", sa.Column("description", sa.Text()))
    op.add_column("collections", sa.Column("window_tokens", sa.Integer()))
    op.add_column("generations", sa.Column("window_tokens", sa.Integer()))


def downgrade() -> None:
    op.drop_column("generations", "window_tokens")
    op.drop_column("collections", "window_tokens")
    op.drop_column("collections", "description")
    op.drop_table("gone_rows")
    op.drop_table("upload_parts")
    op.drop_table("uploads")
