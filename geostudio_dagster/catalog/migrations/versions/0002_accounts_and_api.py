"""What the API needs: users, keys, groups, cards of models, tunes, messages, shared files."""

import datetime as dt

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

json = sa.JSON().with_variant(JSONB(), "postgresql")
moment = sa.DateTime(timezone=True)
LIVE, DELETED = sa.text("deleted_at IS NULL"), sa.text("deleted_at IS NOT NULL")
UNDELIVERED = sa.text("delivered_at IS NULL")


def upgrade() -> None:
    accounts()
    groups()
    models()
    messages()
    requests()
    cards_of_registered_models()


def accounts() -> None:
    op.create_table(
        "users",
        sa.Column("email", sa.String(length=200), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("email", name="pk_users"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("email", sa.String(length=200), nullable=False),
        sa.Column("hashed_key", sa.String(length=64), nullable=False),
        sa.Column("shown", sa.String(length=12), nullable=False),
        sa.Column("label", sa.String(length=200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("revoked_at", moment, nullable=True),
        sa.Column("last_used_at", moment, nullable=True),
        sa.ForeignKeyConstraint(
            ["email"], ["users.email"], name="fk_api_keys_email_users", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("hashed_key", name="uq_api_keys_hashed_key"),
    )
    op.create_index("ix_api_keys_email", "api_keys", ["email"])


def groups() -> None:
    op.create_table(
        "groups",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_groups"),
        sa.UniqueConstraint("name", name="uq_groups_name"),
    )
    op.create_table(
        "group_members",
        sa.Column("group_id", sa.String(length=100), nullable=False),
        sa.Column("email", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("added_at", moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name="fk_group_members_group_id_groups", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "email", name="pk_group_members"),
    )
    op.create_index("ix_group_members_email_group_id", "group_members", ["email", "group_id"])
    op.create_table(
        "permissions",
        sa.Column("group_id", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("artifact_id", sa.String(length=100), nullable=False),
        sa.Column("granted_by", sa.String(length=200), nullable=False),
        sa.Column("granted_at", moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name="fk_permissions_group_id_groups", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "kind", "artifact_id", name="pk_permissions"),
    )
    op.create_index("ix_permissions_kind_artifact_id", "permissions", ["kind", "artifact_id"])


def models() -> None:
    op.create_table(
        "model_cards",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("display_name", sa.String(length=100), nullable=False),
        sa.Column("internal_name", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("latest", sa.Boolean(), nullable=False),
        sa.Column("sharable", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(length=50), nullable=False),
        sa.Column("details", json, nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("model_id", sa.String(length=100), nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("deleted_at", moment, nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_model_cards_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_model_cards"),
        sa.UniqueConstraint("internal_name", name="uq_model_cards_internal_name"),
    )
    op.create_index("ix_model_cards_model_id", "model_cards", ["model_id"])
    op.create_index("ix_model_cards_created_at_id", "model_cards", ["created_at", "id"])
    op.create_index(
        "ix_model_cards_owner_display_name_version",
        "model_cards",
        ["owner", "display_name", "version"],
    )
    op.create_table(
        "tunes",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=50), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("details", json, nullable=False),
        sa.Column("config_url", sa.Text(), nullable=True),
        sa.Column("checkpoint_url", sa.Text(), nullable=True),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("model_id", sa.String(length=100), nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("deleted_at", moment, nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_tunes_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_tunes"),
    )
    op.create_index("ix_tunes_owner_created_at_id", "tunes", ["owner", "created_at", "id"])
    op.create_table(
        "data_sources",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("connector", sa.String(length=100), nullable=False),
        sa.Column("collection", sa.String(length=200), nullable=False),
        sa.Column("document", json, nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_data_sources"),
        sa.UniqueConstraint(
            "connector", "collection", "owner", name="uq_data_sources_connector_collection_owner"
        ),
    )


def messages() -> None:
    op.create_table(
        "notifications",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("event_id", sa.String(length=100), nullable=False),
        sa.Column("source", sa.String(length=100), nullable=False),
        sa.Column("detail_type", sa.String(length=100), nullable=False),
        sa.Column("timestamp", moment, nullable=False),
        sa.Column("detail", json, nullable=False),
        sa.Column("request_id", sa.String(length=100), nullable=True),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["requests.id"],
            name="fk_notifications_request_id_requests",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
    )
    op.create_index("ix_notifications_request_id", "notifications", ["request_id"])
    op.create_index(
        "ix_notifications_event_id_created_at_id", "notifications", ["event_id", "created_at", "id"]
    )
    op.create_table(
        "shares",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("media_type", sa.String(length=200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("uploaded_at", moment, nullable=True),
        sa.Column("expires_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_shares"),
    )
    op.create_index("ix_shares_owner_created_at", "shares", ["owner", "created_at"])
    op.create_index("ix_shares_expires_at", "shares", ["expires_at"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("request_id", sa.String(length=100), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", moment, nullable=False),
        sa.Column("delivered_at", moment, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["requests.id"],
            name="fk_webhook_deliveries_request_id_requests",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.UniqueConstraint(
            "request_id", "event_id", name="uq_webhook_deliveries_request_id_event_id"
        ),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_at"],
        sqlite_where=UNDELIVERED,
        postgresql_where=UNDELIVERED,
    )


def requests() -> None:
    for name in ("name", "location"):
        column = sa.Column(name, sa.String(length=200), nullable=False, server_default="")
        op.add_column("requests", column)
    op.add_column("requests", sa.Column("card_id", sa.String(length=100), nullable=True))
    op.add_column("requests", sa.Column("tune_id", sa.String(length=100), nullable=True))
    op.add_column(
        "requests", sa.Column("saved", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("requests", sa.Column("deleted_at", moment, nullable=True))
    table = sa.table(
        "requests",
        *map(sa.column, ("id", "model_id", "card_id", "name", "location")),
        sa.column("spec", json),
    )
    op.execute(
        sa.update(table).values(
            card_id=table.c.model_id,
            name=sa.func.coalesce(table.c.spec["name"].as_string(), ""),
            location=sa.func.coalesce(table.c.spec["location"].as_string(), ""),
        )
    )
    op.drop_index("ix_requests_owner_created_at_id", table_name="requests")
    op.create_index(
        "ix_requests_card_id_created_at_id", "requests", ["card_id", "created_at", "id"]
    )
    for name, columns in (
        ("ix_requests_live", ["created_at", "id"]),
        ("ix_requests_live_of_owner", ["owner", "created_at", "id"]),
    ):
        op.create_index(name, "requests", columns, sqlite_where=LIVE, postgresql_where=LIVE)
    op.create_index(
        "ix_requests_deleted_at",
        "requests",
        ["deleted_at"],
        sqlite_where=DELETED,
        postgresql_where=DELETED,
    )


def cards_of_registered_models() -> None:
    known = sa.table(
        "models",
        *map(sa.column, ("id", "name", "version", "owner")),
        sa.column("manifest", json),
        sa.column("created_at", moment),
    )
    cards = sa.table(
        "model_cards",
        *map(sa.column, ("id", "display_name", "internal_name", "version", "latest", "sharable")),
        *map(sa.column, ("status", "owner", "model_id")),
        sa.column("details", json),
        *(sa.column(name, moment) for name in ("created_at", "updated_at")),
    )
    rows = op.get_bind().execute(sa.select(known)).all()
    newest: dict[str, int] = {}
    for row in rows:
        newest[row.name] = max(row.version, newest.get(row.name, 0))
    for row in rows:
        created: dt.datetime = row.created_at
        plain = row.name.lower().replace("_", "-")[:30]
        op.execute(
            sa.insert(cards).values(
                id=row.id,
                display_name=row.name[:100],
                internal_name=f"{plain}-v{row.version}-{row.id[:8]}",
                version=row.version,
                latest=row.version == newest[row.name],
                sharable=True,
                status="COMPLETED",
                details={"description": row.manifest.get("description") or ""},
                owner=row.owner,
                model_id=row.id,
                created_at=created,
                updated_at=created,
            )
        )


def downgrade() -> None:
    for name in ("card_id_created_at_id", "live", "live_of_owner", "deleted_at"):
        op.drop_index(f"ix_requests_{name}", table_name="requests")
    op.create_index(
        "ix_requests_owner_created_at_id", "requests", ["owner", "created_at", "id"], unique=False
    )
    for name in ("name", "location", "card_id", "tune_id", "saved", "deleted_at"):
        op.drop_column("requests", name)
    for table in (
        "webhook_deliveries",
        "shares",
        "notifications",
        "data_sources",
        "tunes",
        "model_cards",
        "permissions",
        "group_members",
        "groups",
        "api_keys",
        "users",
    ):
        op.drop_table(table)
