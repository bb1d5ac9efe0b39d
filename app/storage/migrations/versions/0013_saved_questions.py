"""Questions that are saved in the search lab, with the places that answer them."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "saved_questions",
        sa.Column("id", ROW_ID, primary_key=True),
        sa.Column("tenant_id", sa.String(length=40), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("question_id", sa.String(length=40), nullable=False),
        sa.Column("set_name", sa.String(length=80), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text()),
        sa.Column("document_id", ROW_ID, sa.ForeignKey("documents.id", ondelete="cascade")),
        sa.Column("start_char", sa.BigInteger()),
        sa.Column("end_char", sa.BigInteger()),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_saved_questions_listing", "saved_questions", ["tenant_id", "set_name", "id"])
    op.create_index("ix_saved_questions_document_id", "saved_questions", ["document_id"])


def downgrade() -> None:
    op.drop_table("saved_questions")
