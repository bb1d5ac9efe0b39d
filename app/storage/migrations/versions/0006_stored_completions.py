"""Stored chat completions."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stored_completions",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("messages", sa.Text(), nullable=False),
        sa.Column("completion", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("stored_completions", schema=None) as batch_op:
        batch_op.create_index(
            "ix_stored_completions_listing", ["tenant_id", "created_at", "id"], unique=False
        )
    op.create_table(
        "stored_completion_files",
        sa.Column("completion_id", sa.String(length=40), nullable=False),
        sa.Column("file_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["completion_id"], ["stored_completions.id"], ondelete="cascade"),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], ondelete="cascade"),
        sa.PrimaryKeyConstraint("completion_id", "file_id"),
    )
    with op.batch_alter_table("stored_completion_files", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_stored_completion_files_file_id"), ["file_id"], unique=False)


def downgrade() -> None:
    op.drop_table("stored_completion_files")
    op.drop_table("stored_completions")
