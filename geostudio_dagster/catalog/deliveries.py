"""What webhooks are to be told: written with the change that is told of, taken when due."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from geostudio_dagster.catalog.api_schema import WebhookDelivery
from geostudio_dagster.catalog.changes import add_event, error_text
from geostudio_dagster.catalog.conclusions import backoff
from geostudio_dagster.catalog.database import Database
from geostudio_dagster.catalog.schema import Event, Request


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


class Deliveries(Database):
    """The catalog's webhook deliveries."""

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
