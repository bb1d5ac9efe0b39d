"""Runs migrations on the connection that app/storage/migrate.py passes."""

from alembic import context

from retrieval.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
