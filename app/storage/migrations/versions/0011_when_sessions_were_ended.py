"""When all sessions of a key were ended."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("sessions_since", sa.Double()))


def downgrade() -> None:
    op.drop_column("keys", "sessions_since")
