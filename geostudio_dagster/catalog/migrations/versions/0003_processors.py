"""Users' processors, their versions, and the chains that requests pinned."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

json = sa.JSON().with_variant(JSONB(), "postgresql")
moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "processors",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("file_name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("parameters", json, nullable=False),
        sa.Column("parameters_schema", json, nullable=True),
        sa.Column("contract", sa.String(length=20), nullable=False),
        sa.Column("position", sa.String(length=30), nullable=False),
        sa.Column("limits", json, nullable=False),
        sa.Column("gpu", sa.Boolean(), nullable=False),
        sa.Column("report", json, nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("sharable", sa.Boolean(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("deprecated_at", moment, nullable=True),
        sa.Column("deleted_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_processors"),
        sa.UniqueConstraint("owner", "name", "version", name="uq_processors_owner_name_version"),
    )
    op.create_index("ix_processors_name_version", "processors", ["name", "version"])
    op.create_index("ix_processors_sha256", "processors", ["sha256"])
    op.create_index("ix_processors_created_at_id", "processors", ["created_at", "id"])
    op.create_table(
        "request_processors",
        sa.Column("request_id", sa.String(length=100), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("processor_id", sa.String(length=100), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("parameters", json, nullable=False),
        sa.Column("position", sa.String(length=30), nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["requests.id"],
            name="fk_request_processors_request_id_requests",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["processor_id"],
            ["processors.id"],
            name="fk_request_processors_processor_id_processors",
        ),
        sa.PrimaryKeyConstraint("request_id", "number", name="pk_request_processors"),
    )
    op.create_index("ix_request_processors_processor_id", "request_processors", ["processor_id"])
    op.create_index("ix_request_processors_sha256", "request_processors", ["sha256"])


def downgrade() -> None:
    op.drop_table("request_processors")
    op.drop_table("processors")
