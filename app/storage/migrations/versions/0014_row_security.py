"""PostgreSQL shows a transaction the rows of the tenant that it works for, whatever its queries say."""

from alembic import op
from sqlalchemy import inspect

from retrieval.row_security import drop_role, expose, make_role, protect

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    for table in inspect(connection).get_table_names():
        protect(connection, table)
    make_role(connection)


def downgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    for table in inspect(connection).get_table_names():
        expose(connection, table)
    drop_role(connection)
