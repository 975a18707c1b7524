"""What clients and processors say about a request, beside what happens to it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import Select, String, cast, func, literal, select, union_all

from geostudio_dagster.catalog.api_schema import Notification
from geostudio_dagster.catalog.changes import add_event, lock_request
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.records import EventRecord
from geostudio_dagster.catalog.rows import event_record
from geostudio_dagster.catalog.schema import Event, Request
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import Conflict

NOTIFICATION = "notification"  # the kind of the event that comes with each
_KIND = "inference_run"
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class NotificationRecord:
    """A message about an event; ``timestamp`` is its sender's."""

    id: str
    event_id: str
    source: str
    detail_type: str
    timestamp: dt.datetime
    detail: dict[str, Any]
    request_id: str | None


class Notifications(Database):
    """The catalog's messages. They inform; no status follows from them."""

    def create_notification(
        self,
        request_id: str,
        *,
        event_id: str,
        source: str,
        detail_type: str,
        timestamp: dt.datetime,
        detail: Mapping[str, Any],
        owner: str,
    ) -> NotificationRecord:
        """Write a message about a request, and tell those who listen to the request.

        Raises:
            Conflict: the request has too many already.
            NotFound: there is no such request.
        """
        now = utc_now()
        row = Notification(
            id=str(uuid4()),
            event_id=event_id,
            source=source,
            detail_type=detail_type,
            timestamp=timestamp,
            detail=dict(detail),
            request_id=request_id,
            owner=owner,
            created_at=now,
        )
        count = select(func.count()).where(Notification.request_id == request_id)
        with self._write() as session:
            lock_request(session, request_id)
            if (session.scalar(count) or 0) >= _MOST:
                raise Conflict(f"Request {request_id} has {_MOST} notifications already.")
            session.add(row)
            told = {"detail_type": detail_type, "source": source, "detail": dict(detail)}
            add_event(session, request_id, NOTIFICATION, now, id=row.id, **told)
            return _record(row)

    def notices(
        self,
        event_id: str,
        viewer: Viewer,
        *,
        source: str | None,
        kinds: Collection[str],
        limit: int,
        skip: int,
    ) -> tuple[int, list[NotificationRecord | EventRecord]]:
        """Messages of an event and what happened to its request, the latest first, and how many.

        What the viewer may not see is not there.

        Args:
            event_id: of the messages; also the request's id.
            source: only messages of this sender; None is all.
            kinds: of what happened that are wanted, too.
        """
        parts = [_messages(event_id, viewer, source)]
        if kinds:
            parts.append(_happened(event_id, viewer, kinds))
        found = union_all(*parts).subquery()
        newest = select(found.c.kind, found.c.id).order_by(
            found.c.at.desc(), found.c.number.desc(), found.c.id.desc()
        )
        with self._read() as session:
            total = session.scalar(select(func.count()).select_from(found)) or 0
            page = session.execute(newest.limit(limit).offset(skip)).tuples().all()
            said = [key for kind, key in page if kind == NOTIFICATION]
            rows: dict[str, NotificationRecord | EventRecord] = {
                row.id: _record(row)
                for row in session.scalars(select(Notification).where(Notification.id.in_(said)))
            }
            events = [int(key) for kind, key in page if kind != NOTIFICATION]
            for event in session.scalars(select(Event).where(Event.id.in_(events))):
                rows[str(event.id)] = event_record(event)
        return total, [rows[key] for _, key in page if key in rows]


def _messages(event_id: str, viewer: Viewer, source: str | None) -> Select[Any]:
    query = (
        select(
            literal(NOTIFICATION).label("kind"),
            Notification.id.label("id"),
            Notification.created_at.label("at"),
            literal(0).label("number"),
        )
        .join(Request, Request.id == Notification.request_id)
        .where(Notification.event_id == event_id, *_visible(viewer))
    )
    return query if source is None else query.where(Notification.source == source)


def _happened(event_id: str, viewer: Viewer, kinds: Collection[str]) -> Select[Any]:
    return (
        select(
            literal("event").label("kind"),
            cast(Event.id, String).label("id"),
            Event.at.label("at"),
            Event.id.label("number"),
        )
        .join(Request, Request.id == Event.request_id)
        .where(Event.request_id == event_id, Event.kind.in_(sorted(kinds)), *_visible(viewer))
    )


def _visible(viewer: Viewer) -> tuple[Any, ...]:
    seen = viewer.sees(_KIND, owner=Request.owner, artifact_id=Request.id)
    return (Request.deleted_at.is_(None), seen)


def _record(row: Notification) -> NotificationRecord:
    return NotificationRecord(
        id=row.id,
        event_id=row.event_id,
        source=row.source,
        detail_type=row.detail_type,
        timestamp=row.timestamp,
        detail=row.detail,
        request_id=row.request_id,
    )
