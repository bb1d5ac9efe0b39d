"""An embedding model per collection."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Collections from before get null, which is the default model: a migration cannot know which one embedded
    # them, and a guess that is wrong could never be mended by a setting.
    with op.batch_alter_table("collections", schema=None) as batch_op:
        batch_op.add_column(sa.Column("embedding_model", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("collections", schema=None) as batch_op:
        batch_op.drop_column("embedding_model")
