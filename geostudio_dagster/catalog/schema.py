"""The catalog's tables."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from geostudio_dagster.catalog.states import RequestStatus, ShardStatus, StepStatus

_ID = 100
_RUN = 64
_SHARD = 120


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware time in UTC; SQLite, which knows no zones, keeps it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        """To the database."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone")
        utc = value.astimezone(dt.UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:
        """From the database."""
        if value is None:
            return None
        time: dt.datetime = value
        return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)


Json = JSON().with_variant(JSONB(), "postgresql")
# An absent value is an SQL NULL, not a JSON null.
OptionalJson = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_STEP_STATUS = Enum(StepStatus, native_enum=False, length=20)


class Base(DeclarativeBase):
    """All tables, with names for every constraint so that migrations can address them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Model(Base):
    """One version of a registered model."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("name", "version"), UniqueConstraint("name", "digest"))

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    uri: Mapped[str] = mapped_column(Text)
    manifest: Mapped[dict[str, Any]] = mapped_column(Json)
    owner: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class Request(Base):
    """One request; its row is the lock of everything that belongs to it."""

    __tablename__ = "requests"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "status", "created_at", "id"),
        Index(None, "model_id", "created_at", "id"),
        Index(None, "card_id", "created_at", "id"),
        # Lists show, and count, only what is not deleted. With deleted_at in them, SQLite counts
        # from the indexes alone.
        Index(
            "ix_requests_live",
            "created_at",
            "id",
            "deleted_at",
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index(
            "ix_requests_live_of_owner",
            "owner",
            "created_at",
            "id",
            "deleted_at",
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index(
            "ix_requests_deleted_at",
            "deleted_at",
            sqlite_where=text("deleted_at IS NOT NULL"),
            postgresql_where=text("deleted_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    owner: Mapped[str] = mapped_column(String(200))
    name: Mapped[str] = mapped_column(String(200), default="")
    location: Mapped[str] = mapped_column(String(200), default="")
    card_id: Mapped[str | None] = mapped_column(String(_ID))
    tune_id: Mapped[str | None] = mapped_column(String(_ID))
    saved: Mapped[bool] = mapped_column(default=False)
    status: Mapped[RequestStatus] = mapped_column(Enum(RequestStatus, native_enum=False, length=30))
    error: Mapped[str | None] = mapped_column(Text)
    priority: Mapped[int]
    n_tasks: Mapped[int] = mapped_column(default=0)
    estimate: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    publish_attempt: Mapped[int] = mapped_column(default=0)
    publish_failures: Mapped[int] = mapped_column(default=0)
    publish_run_id: Mapped[str | None] = mapped_column(String(_RUN))
    publish_not_before: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    deleted_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class Shard(Base):
    """One partition: the tasks that one run does together."""

    __tablename__ = "shards"
    __table_args__ = (UniqueConstraint("request_id", "number"), Index(None, "status", "not_before"))

    key: Mapped[str] = mapped_column(String(_SHARD), primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"))
    number: Mapped[int]
    status: Mapped[ShardStatus] = mapped_column(Enum(ShardStatus, native_enum=False, length=20))
    attempt: Mapped[int] = mapped_column(default=0)
    run_id: Mapped[str | None] = mapped_column(String(_RUN))
    not_before: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    n_tasks: Mapped[int]
    submitted_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    priority: Mapped[int]


class Task(Base):
    """One task: what a user sees."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("request_id", "number"),
        Index(None, "request_id", "status", "pixels"),
        Index(None, "shard_key", "number"),
    )

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(_ID))  # as its shard's, which is checked
    shard_key: Mapped[str] = mapped_column(ForeignKey("shards.key", ondelete="CASCADE"))
    number: Mapped[int]
    url: Mapped[str] = mapped_column(Text)
    date: Mapped[str | None] = mapped_column(String(40))
    window: Mapped[list[int] | None] = mapped_column(OptionalJson)
    scene_size: Mapped[list[int] | None] = mapped_column(OptionalJson)
    footprint: Mapped[dict[str, Any] | None] = mapped_column(OptionalJson)
    pixels: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[StepStatus] = mapped_column(_STEP_STATUS)
    error: Mapped[str | None] = mapped_column(Text)


class Step(Base):
    """One stage of a task, with the lease of the run that works on it.

    ``request_id`` and ``pixels`` are kept here too, so that a request's figures come from one
    index.
    """

    __tablename__ = "steps"
    __table_args__ = (
        Index(None, "request_id", "process_id", "status", "pixels"),
        Index(
            "ix_steps_run_id",
            "run_id",
            sqlite_where=text("run_id IS NOT NULL"),
            postgresql_where=text("run_id IS NOT NULL"),
        ),
        {"sqlite_with_rowid": False},
    )

    task_id: Mapped[str] = mapped_column(
        ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    request_id: Mapped[str] = mapped_column(String(_ID))
    process_id: Mapped[str] = mapped_column(String(100))
    status: Mapped[StepStatus] = mapped_column(_STEP_STATUS)
    attempts: Mapped[int]
    crashes: Mapped[int]
    in_hand: Mapped[bool]
    run_id: Mapped[str | None] = mapped_column(String(_RUN))
    lease_until: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    error_code: Mapped[str | None] = mapped_column(String(100))
    error: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    pixels: Mapped[int | None] = mapped_column(BigInteger)
    seconds: Mapped[float | None]
    metrics: Mapped[dict[str, Any] | None] = mapped_column(OptionalJson)


class Reopening(Base):
    """That a run has reopened a shard already, so that its later stages do not do so again."""

    __tablename__ = "reopenings"

    shard_key: Mapped[str] = mapped_column(
        ForeignKey("shards.key", ondelete="CASCADE"), primary_key=True
    )
    run_id: Mapped[str] = mapped_column(String(_RUN), primary_key=True)
    process_id: Mapped[str] = mapped_column(String(100))
    at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class RunLease(Base):
    """Until when a run is known to be alive."""

    __tablename__ = "run_leases"

    run_id: Mapped[str] = mapped_column(String(_RUN), primary_key=True)
    lease_until: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class Artifact(Base):
    """A file that a step made, or one of the whole request."""

    __tablename__ = "artifacts"

    owner_id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    name: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    request_id: Mapped[str] = mapped_column(
        ForeignKey("requests.id", ondelete="CASCADE"), index=True
    )
    key: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(String(200))
    size: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    details: Mapped[dict[str, Any]] = mapped_column("metadata", Json)


class Layer(Base):
    """One published layer of a request."""

    __tablename__ = "layers"

    request_id: Mapped[str] = mapped_column(
        ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    position: Mapped[int]
    title: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(20))
    bounds: Mapped[list[float]] = mapped_column(Json)
    style: Mapped[dict[str, Any]] = mapped_column(Json)
    granules: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    uri: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    published_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class Event(Base):
    """Something that happened, written together with the change that caused it."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "request_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"))
    at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(String(40))
    detail: Mapped[dict[str, Any]] = mapped_column(Json)
