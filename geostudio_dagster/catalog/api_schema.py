"""Tables of what only the API knows: accounts, groups, cards of models, tunes, messages, files."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from geostudio_dagster.catalog.schema import Base, Json, UtcDateTime

_ID = 100
EMAIL = 200  # characters; an owner's name everywhere


class User(Base):
    """Somebody who asked at least once, or was given a key."""

    __tablename__ = "users"

    email: Mapped[str] = mapped_column(String(EMAIL), primary_key=True)
    admin: Mapped[bool]
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class ApiKey(Base):
    """A key, of which only the SHA-256 is kept; ``shown`` is its beginning, to recognise it by."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    email: Mapped[str] = mapped_column(ForeignKey("users.email", ondelete="CASCADE"), index=True)
    hashed_key: Mapped[str] = mapped_column(String(64), unique=True)
    shown: Mapped[str] = mapped_column(String(12))
    label: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    active: Mapped[bool]
    revoked_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class Group(Base):
    """People who share artifacts."""

    __tablename__ = "groups"

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    description: Mapped[str | None] = mapped_column(Text)
    created_by: Mapped[str] = mapped_column(String(EMAIL))
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class GroupMember(Base):
    """Who belongs to a group, as ``owner`` or ``member``."""

    __tablename__ = "group_members"
    __table_args__ = (Index(None, "email", "group_id"),)

    group_id: Mapped[str] = mapped_column(
        ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True
    )
    email: Mapped[str] = mapped_column(String(EMAIL), primary_key=True)
    role: Mapped[str] = mapped_column(String(20))
    added_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class Permission(Base):
    """That a group may see an artifact."""

    __tablename__ = "permissions"
    __table_args__ = (Index(None, "kind", "artifact_id"),)

    group_id: Mapped[str] = mapped_column(
        ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True
    )
    kind: Mapped[str] = mapped_column(String(40), primary_key=True)
    artifact_id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    granted_by: Mapped[str] = mapped_column(String(EMAIL))
    granted_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class ModelCard(Base):
    """What users see of a model: a registered bundle's card has its id, others have no bundle yet.

    ``sharable`` cards are seen by everybody.
    """

    __tablename__ = "model_cards"
    __table_args__ = (
        Index(None, "owner", "display_name", "version"),
        Index(None, "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    display_name: Mapped[str] = mapped_column(String(_ID))
    internal_name: Mapped[str] = mapped_column(String(_ID), unique=True)
    version: Mapped[int]
    latest: Mapped[bool]
    sharable: Mapped[bool]
    status: Mapped[str] = mapped_column(String(50))
    details: Mapped[dict[str, Any]] = mapped_column(Json)
    owner: Mapped[str] = mapped_column(String(EMAIL))
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"), index=True)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    deleted_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class Tune(Base):
    """A fine-tuned model that a user uploaded."""

    __tablename__ = "tunes"
    __table_args__ = (Index(None, "owner", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(50))
    error: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(Json)
    config_url: Mapped[str | None] = mapped_column(Text)
    checkpoint_url: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(String(EMAIL))
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    deleted_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class Notification(Base):
    """A message that a client or a processor posted about an event."""

    __tablename__ = "notifications"
    __table_args__ = (Index(None, "event_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    event_id: Mapped[str] = mapped_column(String(_ID))
    source: Mapped[str] = mapped_column(String(_ID))
    detail_type: Mapped[str] = mapped_column(String(_ID))
    timestamp: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    detail: Mapped[dict[str, Any]] = mapped_column(Json)
    request_id: Mapped[str | None] = mapped_column(
        ForeignKey("requests.id", ondelete="CASCADE"), index=True
    )
    owner: Mapped[str] = mapped_column(String(EMAIL))
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class DataSource(Base):
    """A data source that a user described, beside those that the package knows."""

    __tablename__ = "data_sources"
    __table_args__ = (UniqueConstraint("connector", "collection", "owner"),)

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    connector: Mapped[str] = mapped_column(String(_ID))
    collection: Mapped[str] = mapped_column(String(200))
    document: Mapped[dict[str, Any]] = mapped_column(Json)
    owner: Mapped[str] = mapped_column(String(EMAIL))
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class Share(Base):
    """A file that a user uploads to hand on."""

    __tablename__ = "shares"
    __table_args__ = (Index(None, "owner", "created_at"),)

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    owner: Mapped[str] = mapped_column(String(EMAIL))
    name: Mapped[str] = mapped_column(String(200))
    key: Mapped[str] = mapped_column(Text)
    size: Mapped[int | None] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    uploaded_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    expires_at: Mapped[dt.datetime] = mapped_column(UtcDateTime, index=True)


class WebhookDelivery(Base):
    """One event to be told to a request's webhook, until it is delivered or given up."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("request_id", "event_id"),
        Index(
            "ix_webhook_deliveries_due",
            "next_at",
            sqlite_where=text("delivered_at IS NULL"),
            postgresql_where=text("delivered_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"))
    event_id: Mapped[int] = mapped_column(BigInteger)
    url: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int]
    next_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    delivered_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    error: Mapped[str | None] = mapped_column(Text)
