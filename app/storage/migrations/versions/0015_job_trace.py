"""The trace and the id of the request that queued a job."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("trace", sa.String(length=55)))
    op.add_column("jobs", sa.Column("request_id", sa.String(length=128)))


def downgrade() -> None:
    op.drop_column("jobs", "request_id")
    op.drop_column("jobs", "trace")
