"""Alembic's entry: runs on the connection, and in the transaction, that ``migrate`` opened."""

from alembic import context

from geostudio_dagster.catalog import (  # noqa: F401 - they add their tables to the metadata
    api_schema,
    processor_schema,
)
from geostudio_dagster.catalog.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
