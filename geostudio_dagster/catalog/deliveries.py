"""What webhooks are to be told: written with the change that is told of, taken when due."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, select

from geostudio_dagster.catalog.api_schema import WebhookDelivery
from geostudio_dagster.catalog.changes import add_event, error_text
from geostudio_dagster.catalog.conclusions import backoff
from geostudio_dagster.catalog.database import Database
from geostudio_dagster.catalog.pages import Column, Paging
from geostudio_dagster.catalog.schema import Event, Request
from geostudio_dagster.catalog.viewer import Viewer


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one receiver; ``attempt`` counts from 1, ``last`` is the last one.

    ``sequence`` grows with the changes of a request.
    """

    id: str
    request_id: str
    owner: str
    url: str
    sequence: int
    at: dt.datetime
    kind: str
    detail: dict[str, Any]
    attempt: int
    last: bool


DeliveryState = Literal["delivered", "waiting", "given_up"]


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """How the telling of one change of a request stands.

    ``error`` is why the last attempt failed; ``next_at`` is when another is due.
    """

    id: str
    request_id: str
    url: str
    sequence: int
    created_at: dt.datetime
    status: str | None
    state: DeliveryState
    attempts: int
    next_at: dt.datetime | None
    delivered_at: dt.datetime | None
    error: str | None


_SORTED_BY: Mapping[str, Column] = {
    "created_at": Event.at,
    "next_at": WebhookDelivery.next_at,
    "attempts": WebhookDelivery.attempts,
}


class Deliveries(Database):
    """The catalog's webhook deliveries."""

    def deliveries(
        self,
        viewer: Viewer,
        page: Paging,
        *,
        attempts: int,
        request_id: str | None = None,
        state: DeliveryState | None = None,
    ) -> tuple[int, list[DeliveryRecord]]:
        """How many deliveries of the viewer's own requests there are, and those on the page.

        Args:
            attempts: after how many one is given up.
            request_id, state: of those that are wanted; None is any.

        Raises:
            InvalidRequest: the page is sorted by an unknown field.
        """
        query = (
            select(WebhookDelivery, Event)
            .join(Request, Request.id == WebhookDelivery.request_id)
            .join(Event, Event.id == WebhookDelivery.event_id)
            .where(Request.deleted_at.is_(None), viewer.owns(Request.owner))
        )
        if request_id is not None:
            query = query.where(WebhookDelivery.request_id == request_id)
        if state is not None:
            query = query.where(*_in_state(state, attempts))
        text = page.contains(WebhookDelivery.url)
        if text is not None:
            query = query.where(text)
        ordered = query.order_by(*page.order(_SORTED_BY, WebhookDelivery.event_id))
        counted = select(func.count()).select_from(
            query.with_only_columns(WebhookDelivery.id).subquery()
        )
        with self._read() as session:
            total = session.scalar(counted) or 0
            rows = session.execute(ordered.limit(page.limit).offset(page.skip)).tuples()
            return total, [_record(row, event, attempts) for row, event in rows]

    def take_deliveries(
        self, now: dt.datetime, limit: int, *, attempts: int, delay_s: float
    ) -> list[Delivery]:
        """Deliveries that are due, the longest due first, each with one more attempt on record.

        Another attempt is due after ``delay_s``, which doubles with each, unless this one is
        reported as done: whoever took it may die.
        """
        query = (
            select(WebhookDelivery, Request.owner, Event)
            .join(Request, Request.id == WebhookDelivery.request_id)
            .join(Event, Event.id == WebhookDelivery.event_id)
            .where(
                WebhookDelivery.delivered_at.is_(None),
                WebhookDelivery.next_at <= now,
                WebhookDelivery.attempts < attempts,
            )
            .order_by(WebhookDelivery.next_at, WebhookDelivery.event_id)
            .limit(limit)
            .with_for_update(of=WebhookDelivery, skip_locked=True)
        )
        taken = []
        with self._write() as session:
            for row, owner, event in session.execute(query).tuples():
                row.next_at = backoff(now, delay_s, row.attempts)
                row.attempts += 1
                taken.append(
                    Delivery(
                        id=row.id,
                        request_id=row.request_id,
                        owner=owner,
                        url=row.url,
                        sequence=event.id,
                        at=event.at,
                        kind=event.kind,
                        detail=event.detail,
                        attempt=row.attempts,
                        last=row.attempts >= attempts,
                    )
                )
        return taken

    def delivered(self, delivery_id: str, now: dt.datetime) -> None:
        """Note that the receiver took it."""
        with self._write() as session:
            row = session.get(WebhookDelivery, delivery_id)
            if row is not None:
                row.delivered_at, row.error = now, None

    def not_delivered(
        self, delivery_id: str, error: str, now: dt.datetime, *, give_up_after: int | None
    ) -> None:
        """Note why an attempt failed; with ``give_up_after`` attempts there are no more.

        Args:
            give_up_after: the number that attempts are limited to, where this was the last or
                another cannot help; None leaves it to be tried again.
        """
        with self._write() as session:
            row = session.get(WebhookDelivery, delivery_id)
            if row is None:
                return
            row.error = error_text(error)
            if give_up_after is not None:
                row.attempts = max(row.attempts, give_up_after)
                add_event(session, row.request_id, "webhook_failed", now, error=row.error)


def _in_state(state: DeliveryState, attempts: int) -> tuple[ColumnElement[bool], ...]:
    if state == "delivered":
        return (WebhookDelivery.delivered_at.is_not(None),)
    tried = WebhookDelivery.attempts
    open_still = tried >= attempts if state == "given_up" else tried < attempts
    return (WebhookDelivery.delivered_at.is_(None), open_still)


def _record(row: WebhookDelivery, event: Event, attempts: int) -> DeliveryRecord:
    state: DeliveryState = "given_up" if row.attempts >= attempts else "waiting"
    if row.delivered_at is not None:
        state = "delivered"
    return DeliveryRecord(
        id=row.id,
        request_id=row.request_id,
        url=row.url,
        sequence=row.event_id,
        created_at=event.at,
        status=event.detail.get("after"),
        state=state,
        attempts=row.attempts,
        next_at=row.next_at if state == "waiting" else None,
        delivered_at=row.delivered_at,
        error=row.error,
    )
