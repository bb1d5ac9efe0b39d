"""Indexes for stored responses and completions that expire."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_responses_created_at", "responses", "created_at"),
    ("ix_responses_previous_id", "responses", "previous_id"),
    ("ix_stored_completions_created_at", "stored_completions", "created_at"),
)


def upgrade() -> None:
    for name, table, column in INDEXES:
        op.create_index(name, table, [column])


def downgrade() -> None:
    for name, table, _ in INDEXES:
        op.drop_index(name, table_name=table)
