"""Tables of users' processors and of what requests pinned of them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from geostudio_dagster.catalog.schema import Base, Json, OptionalJson, UtcDateTime

_ID = 100
_OWNER = 200


class Processor(Base):
    """One version of a user's processor; the script itself lies in storage under ``key``.

    A deleted row stays: requests that pinned it tell what they were made with.
    """

    __tablename__ = "processors"
    __table_args__ = (
        UniqueConstraint("owner", "name", "version"),
        Index(None, "name", "version"),
        Index(None, "sha256"),
        Index(None, "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(_ID), primary_key=True)
    owner: Mapped[str] = mapped_column(String(_OWNER))
    name: Mapped[str] = mapped_column(String(_ID))
    version: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    key: Mapped[str] = mapped_column(Text)
    file_name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text)
    parameters: Mapped[dict[str, Any]] = mapped_column(Json)
    parameters_schema: Mapped[dict[str, Any] | None] = mapped_column(OptionalJson)
    contract: Mapped[str] = mapped_column(String(20))
    position: Mapped[str] = mapped_column(String(30))
    limits: Mapped[dict[str, Any]] = mapped_column(Json)
    gpu: Mapped[bool]
    report: Mapped[dict[str, Any]] = mapped_column(Json)
    status: Mapped[str] = mapped_column(String(20))
    sharable: Mapped[bool]
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    deprecated_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    deleted_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class RequestProcessor(Base):
    """One link of a request's chain of processors, as it was when the request was accepted."""

    __tablename__ = "request_processors"

    request_id: Mapped[str] = mapped_column(
        ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    processor_id: Mapped[str] = mapped_column(ForeignKey("processors.id"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    parameters: Mapped[dict[str, Any]] = mapped_column(Json)
    position: Mapped[str] = mapped_column(String(30))
