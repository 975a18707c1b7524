"""What nobody can see any more and nothing needs, found and forgotten.

A request pins its model, card, tune and processors for as long as its row is there, whatever
became of it: it may be looked at, and tried again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from geostudio_dagster.catalog.api_schema import ModelCard, Permission, Tune
from geostudio_dagster.catalog.changes import chunks, lock_request
from geostudio_dagster.catalog.database import Database
from geostudio_dagster.catalog.processor_schema import Processor, RequestProcessor
from geostudio_dagster.catalog.records import RequestRecord
from geostudio_dagster.catalog.rows import request_record
from geostudio_dagster.catalog.schema import Artifact, Event, Model, Request, Shard, Task
from geostudio_dagster.catalog.states import LIVE_REQUESTS
from geostudio_dagster.errors import Conflict

Column = InstrumentedAttribute[Any]
_ROWS = 2000  # of one transaction: others wait for it


class Leavings(Database):
    """The catalog's rows that are left over."""

    def removable_requests(self, before: dt.datetime, limit: int) -> list[RequestRecord]:
        """Requests deleted before a time, and over; the longest gone first."""
        query = (
            select(Request)
            .where(Request.deleted_at <= before, Request.status.notin_(LIVE_REQUESTS))
            .order_by(Request.deleted_at, Request.id)
            .limit(limit)
        )
        with self._read() as session:
            return [request_record(row) for row in session.scalars(query)]

    def over_requests(self, request_ids: Sequence[str], before: dt.datetime) -> list[str]:
        """Those of the requests that were over before a time, the oldest first."""
        found: list[tuple[dt.datetime, str]] = []
        with self._read() as session:
            for part in chunks(request_ids):
                query = select(Request.finished_at, Request.id).where(
                    Request.id.in_(part),
                    Request.finished_at <= before,
                    Request.status.notin_(LIVE_REQUESTS),
                )
                found += [(at, key) for at, key in session.execute(query).tuples() if at]
        return [key for _, key in sorted(found)]

    def forget_request(self, request_id: str) -> None:
        """Remove all rows of a deleted request, part by part; the request's own goes last.

        Raises:
            Conflict: the request is not deleted, or not over.
            NotFound: there is no such request.
        """
        with self._write() as session:
            _check_removable(session, request_id)
        for column, of_request in _PARTS:
            while self._forget_some(column, of_request == request_id):
                pass
        with self._write() as session:
            session.delete(_check_removable(session, request_id))
            _forget_permissions(session, "inference_run", [request_id])

    def forget_cards(self, before: dt.datetime, limit: int) -> list[str]:
        """Remove cards deleted before a time whose model no request is of; their ids."""
        pinned = select(Request.id).where(
            (Request.card_id == ModelCard.id) | (Request.model_id == ModelCard.model_id)
        )
        gone = (ModelCard.deleted_at <= before) & ~pinned.exists()
        return self._forget(ModelCard.id, gone, limit, kind="model")

    def forget_tunes(self, before: dt.datetime, limit: int) -> list[str]:
        """Remove tunes deleted before a time that no request tries out; their ids."""
        pinned = select(Request.id).where(Request.tune_id == Tune.id)
        gone = (Tune.deleted_at <= before) & ~pinned.exists()
        return self._forget(Tune.id, gone, limit, kind="tune")

    def forget_processors(self, before: dt.datetime, limit: int) -> list[str]:
        """Remove processors deleted before a time that no request was made with; their ids."""
        pinned = select(RequestProcessor.request_id).where(
            RequestProcessor.processor_id == Processor.id
        )
        gone = (Processor.deleted_at <= before) & ~pinned.exists()
        return self._forget(Processor.id, gone, limit, kind="generic_processor")

    def forget_models(self, before: dt.datetime, limit: int) -> list[str]:
        """Remove models registered before a time that no card, tune or request has; their ids."""
        gone = Model.created_at <= before
        for user in (ModelCard.model_id, Tune.model_id, Request.model_id):
            gone &= ~select(user).where(user == Model.id).exists()
        return self._forget(Model.id, gone, limit)

    def model_digests(self) -> set[str]:
        """Of all registered bundles."""
        with self._read() as session:
            return set(session.scalars(select(Model.digest)))

    def _forget(
        self, key: Column, gone: ColumnElement[bool], limit: int, kind: str | None = None
    ) -> list[str]:
        with self._write() as session:
            found = list(session.scalars(select(key).where(gone).order_by(key).limit(limit)))
            # Asked again: what a request took up meanwhile stays.
            session.execute(delete(key.class_).where(key.in_(found), gone))
            left = set(session.scalars(select(key).where(key.in_(found))))
            removed = [item for item in found if item not in left]
            if kind is not None:
                _forget_permissions(session, kind, removed)
        return removed

    def _forget_some(self, column: Column, condition: ColumnElement[bool]) -> int:
        """Delete rows in one transaction of bounded size; how many."""
        with self._write() as session:
            keys = list(session.scalars(select(column).where(condition).limit(_ROWS)))
            for part in chunks(keys):
                session.execute(delete(column.class_).where(column.in_(part)))
        return len(keys)


# What grows with a request, steps with their tasks; the rest goes with its own row.
_PARTS: tuple[tuple[Column, Column], ...] = (
    (Task.id, Task.request_id),
    (Shard.key, Shard.request_id),
    (Event.id, Event.request_id),
    (Artifact.owner_id, Artifact.request_id),
)


def _check_removable(session: Session, request_id: str) -> Request:
    request = lock_request(session, request_id)
    if request.deleted_at is None or request.status in LIVE_REQUESTS:
        raise Conflict(f"Request {request_id} is not deleted, or not over.")
    return request


def _forget_permissions(session: Session, kind: str, ids: Sequence[str]) -> None:
    for part in chunks(ids):
        session.execute(
            delete(Permission).where(Permission.kind == kind, Permission.artifact_id.in_(part))
        )
