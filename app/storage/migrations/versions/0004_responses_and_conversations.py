"""Responses and conversations, with their items and events."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(length=40), primary_key=True),
        sa.Column("tenant_id", sa.String(length=40), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("response_id", sa.String(length=40)),
        sa.Column("held_until", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "responses",
        sa.Column("id", sa.String(length=40), primary_key=True),
        sa.Column("tenant_id", sa.String(length=40), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("previous_id", sa.String(length=40)),
        sa.Column("conversation_id", sa.String(length=40)),
        sa.Column("is_background", sa.Boolean(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("request", sa.JSON()),
        sa.Column("lease", sa.String(length=40)),
        sa.Column("due_at", sa.Double()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_responses_due_at", "responses", ["due_at"])
    op.create_table(
        "items",
        sa.Column("id", ROW_ID, primary_key=True),
        sa.Column("tenant_id", sa.String(length=40), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("response_id", sa.String(length=40), sa.ForeignKey("responses.id", ondelete="cascade")),
        sa.Column(
            "conversation_id", sa.String(length=40), sa.ForeignKey("conversations.id", ondelete="cascade")
        ),
        sa.Column("public_id", sa.String(length=80), nullable=False),
        sa.Column("is_output", sa.Boolean(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.UniqueConstraint("conversation_id", "public_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_items_response_id", "items", ["response_id"])
    op.create_index("ix_items_conversation_id", "items", ["conversation_id"])
    op.create_index("ix_items_public_id", "items", ["tenant_id", "public_id"])
    op.create_table(
        "response_events",
        sa.Column(
            "response_id",
            sa.String(length=40),
            sa.ForeignKey("responses.id", ondelete="cascade"),
            primary_key=True,
        ),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("content", sa.JSON(), nullable=False),
    )


def downgrade() -> None:
    for table in ("response_events", "items", "responses", "conversations"):
        op.drop_table(table)
