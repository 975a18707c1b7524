"""The first tables: models, requests, shards, tasks, steps, artifacts, layers, events."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

json = sa.JSON().with_variant(JSONB(), "postgresql")
moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("manifest", json, nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("name", "digest", name="uq_models_name_digest"),
        sa.UniqueConstraint("name", "version", name="uq_models_name_version"),
    )
    op.create_table(
        "run_leases",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("lease_until", moment, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_run_leases"),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("model_id", sa.String(length=100), nullable=False),
        sa.Column("spec", json, nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=30), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("n_tasks", sa.Integer(), nullable=False),
        sa.Column("estimate", json, nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("publish_attempt", sa.Integer(), nullable=False),
        sa.Column("publish_failures", sa.Integer(), nullable=False),
        sa.Column("publish_run_id", sa.String(length=64), nullable=True),
        sa.Column("publish_not_before", moment, nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("finished_at", moment, nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_requests_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
    )
    op.create_index("ix_requests_created_at_id", "requests", ["created_at", "id"], unique=False)
    op.create_index(
        "ix_requests_model_id_created_at_id",
        "requests",
        ["model_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_requests_owner_created_at_id", "requests", ["owner", "created_at", "id"], unique=False
    )
    op.create_index(
        "ix_requests_status_created_at_id", "requests", ["status", "created_at", "id"], unique=False
    )
    op.create_table(
        "artifacts",
        sa.Column("owner_id", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("request_id", sa.String(length=100), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("media_type", sa.String(length=200), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("metadata", json, nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["requests.id"],
            name="fk_artifacts_request_id_requests",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("owner_id", "name", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_request_id", "artifacts", ["request_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("request_id", sa.String(length=100), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("detail", json, nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["requests.id"],
            name="fk_events_request_id_requests",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_request_id_id", "events", ["request_id", "id"], unique=False)
    op.create_table(
        "layers",
        sa.Column("request_id", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("bounds", json, nullable=False),
        sa.Column("style", json, nullable=False),
        sa.Column("granules", json, nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("published_at", moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["requests.id"],
            name="fk_layers_request_id_requests",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("request_id", "name", name="pk_layers"),
    )
    op.create_table(
        "shards",
        sa.Column("key", sa.String(length=120), nullable=False),
        sa.Column("request_id", sa.String(length=100), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("not_before", moment, nullable=False),
        sa.Column("n_tasks", sa.Integer(), nullable=False),
        sa.Column("submitted_at", moment, nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["requests.id"],
            name="fk_shards_request_id_requests",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("key", name="pk_shards"),
        sa.UniqueConstraint("request_id", "number", name="uq_shards_request_id_number"),
    )
    op.create_index("ix_shards_status_not_before", "shards", ["status", "not_before"], unique=False)
    op.create_table(
        "reopenings",
        sa.Column("shard_key", sa.String(length=120), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("process_id", sa.String(length=100), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["shard_key"], ["shards.key"], name="fk_reopenings_shard_key_shards", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("shard_key", "run_id", name="pk_reopenings"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("request_id", sa.String(length=100), nullable=False),
        sa.Column("shard_key", sa.String(length=120), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("date", sa.String(length=40), nullable=True),
        sa.Column("window", json, nullable=True),
        sa.Column("scene_size", json, nullable=True),
        sa.Column("footprint", json, nullable=True),
        sa.Column("pixels", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["shard_key"], ["shards.key"], name="fk_tasks_shard_key_shards", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("request_id", "number", name="uq_tasks_request_id_number"),
    )
    op.create_index(
        "ix_tasks_request_id_status_pixels",
        "tasks",
        ["request_id", "status", "pixels"],
        unique=False,
    )
    op.create_index("ix_tasks_shard_key_number", "tasks", ["shard_key", "number"], unique=False)
    op.create_table(
        "steps",
        sa.Column("task_id", sa.String(length=100), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.String(length=100), nullable=False),
        sa.Column("process_id", sa.String(length=100), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("in_hand", sa.Boolean(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("lease_until", moment, nullable=True),
        sa.Column("error_code", sa.String(length=100), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", moment, nullable=True),
        sa.Column("finished_at", moment, nullable=True),
        sa.Column("pixels", sa.BigInteger(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("metrics", json, nullable=True),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name="fk_steps_task_id_tasks", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "number", name="pk_steps"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_steps_request_id_process_id_status_pixels",
        "steps",
        ["request_id", "process_id", "status", "pixels"],
        unique=False,
    )
    op.create_index(
        "ix_steps_run_id",
        "steps",
        ["run_id"],
        unique=False,
        sqlite_where=sa.text("run_id IS NOT NULL"),
        postgresql_where=sa.text("run_id IS NOT NULL"),
    )


def downgrade() -> None:
    for table in (
        "steps",
        "tasks",
        "reopenings",
        "shards",
        "layers",
        "events",
        "artifacts",
        "requests",
        "run_leases",
        "models",
    ):
        op.drop_table(table)
