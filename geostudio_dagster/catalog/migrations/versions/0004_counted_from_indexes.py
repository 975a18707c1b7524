"""Requests that are not deleted are counted from an index alone, on SQLite, too.

SQLite reads the table for every column that it compares, even one that is the same in all of a
partial index, unless the index has it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LIVE = sa.text("deleted_at IS NULL")
INDEXES = {
    "ix_requests_live": ["created_at", "id"],
    "ix_requests_live_of_owner": ["owner", "created_at", "id"],
}


def upgrade() -> None:
    for name, columns in INDEXES.items():
        _replace(name, [*columns, "deleted_at"])


def downgrade() -> None:
    for name, columns in INDEXES.items():
        _replace(name, columns)


def _replace(name: str, columns: list[str]) -> None:
    op.drop_index(name, table_name="requests")
    op.create_index(name, "requests", columns, sqlite_where=LIVE, postgresql_where=LIVE)
