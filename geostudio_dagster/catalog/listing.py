"""Requests as their owners see them: looked up, listed, filtered, deleted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.changes import add_event, chunks, lock_request
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.pages import Column, Paging
from geostudio_dagster.catalog.records import LayerRecord, RequestRecord, TaskRecord
from geostudio_dagster.catalog.rows import layer_record, request_record, task_records
from geostudio_dagster.catalog.schema import Layer, Request, Step, Task
from geostudio_dagster.catalog.states import LIVE_REQUESTS, RequestStatus, StepStatus
from geostudio_dagster.catalog.stopping import begin_to_stop
from geostudio_dagster.catalog.viewer import Viewer
from geostudio_dagster.errors import NotFound

_KIND = "inference_run"
_TASKS_A_PAGE = 500
_SORTED_BY: Mapping[str, Column] = {
    "created_at": Request.created_at,
    "updated_at": Request.updated_at,
    "name": Request.name,
    "location": Request.location,
    "status": Request.status,
}


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Which requests to list; None is any. ``tune_id`` is compared in lower case."""

    statuses: tuple[RequestStatus, ...] = ()
    card_id: str | None = None
    tune_id: str | None = None
    created_by: str | None = None
    location: str | None = None
    saved: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """The parts of the WHERE."""
        if self.statuses:
            yield Request.status.in_(self.statuses)
        if self.card_id is not None:
            yield Request.card_id == self.card_id
        if self.tune_id is not None:
            yield Request.tune_id == self.tune_id.lower()
        if self.created_by is not None:
            yield Request.owner == self.created_by
        if self.location is not None:
            yield Request.location == self.location
        if self.saved is not None:
            yield Request.saved.is_(self.saved)
        if self.created_after is not None:
            yield Request.created_at >= self.created_after
        if self.created_before is not None:
            yield Request.created_at < self.created_before


class RequestListing(Database):
    """The catalog's requests, to each viewer their own and what their groups share."""

    def visible_request(self, request_id: str, viewer: Viewer) -> RequestRecord:
        """A request that the viewer may read.

        Raises:
            NotFound: there is none, it was deleted, or it is somebody else's.
        """
        seen = viewer.sees(_KIND, owner=Request.owner, artifact_id=Request.id)
        return self._request(request_id, seen)

    def owned_request(self, request_id: str, viewer: Viewer) -> RequestRecord:
        """A request that the viewer may change.

        Raises:
            NotFound: as for :meth:`visible_request`.
        """
        return self._request(request_id, viewer.owns(Request.owner))

    def _request(self, request_id: str, condition: ColumnElement[bool]) -> RequestRecord:
        with self._read() as session:
            return request_record(_found(session, request_id, condition))

    def visible_task(self, task_id: str, viewer: Viewer, *, to_change: bool = False) -> TaskRecord:
        """A task of a request that the viewer may read, or change.

        Raises:
            NotFound: there is none, or its request is deleted or somebody else's.
        """
        seen = viewer.sees(_KIND, owner=Request.owner, artifact_id=Request.id)
        with self._read() as session:
            row = session.get(Task, task_id)
            if row is None:
                raise NotFound(f"There is no task {task_id}.")
            allowed = viewer.owns(Request.owner) if to_change else seen
            _found(session, row.request_id, allowed)
            return task_records(session, [row])[0]

    def list_requests(
        self, viewer: Viewer, wanted: RequestFilter, page: Paging
    ) -> tuple[int, list[RequestRecord]]:
        """How many requests match in all, and those on the page.

        ``page.q`` is looked for in name, location, description and id.

        Raises:
            InvalidRequest: the page is sorted by an unknown field.
        """
        conditions = [
            Request.deleted_at.is_(None),
            viewer.sees(_KIND, owner=Request.owner, artifact_id=Request.id),
            *wanted.conditions(),
        ]
        description = Request.spec["description"].as_string()
        text = page.contains(Request.name, Request.location, description, Request.id)
        if text is not None:
            conditions.append(text)
        order = page.order(_SORTED_BY, Request.id)
        # Ids alone first: what is skipped is passed over in an index, without reading its rows.
        ids_of_page = select(Request.id).where(*conditions).order_by(*order)
        with self._read() as session:
            total = session.scalar(select(func.count()).select_from(Request).where(*conditions))
            ids = session.scalars(ids_of_page.limit(page.limit).offset(page.skip)).all()
            found = session.scalars(select(Request).where(Request.id.in_(ids)))
            rows = {row.id: row for row in found}
            return int(total or 0), [request_record(rows[key]) for key in ids if key in rows]

    def live_requests_of(self, owner: str) -> int:
        """How many requests of an owner are not over."""
        query = select(func.count()).where(
            Request.owner == owner,
            Request.deleted_at.is_(None),
            Request.status.in_(LIVE_REQUESTS),
        )
        with self._read() as session:
            return int(session.scalar(query) or 0)

    def delete_request(
        self, request_id: str, viewer: Viewer, now: datetime | None = None
    ) -> RequestRecord:
        """Take a request away from all eyes; what of it still runs is stopped.

        Its files and layers stay until housekeeping removes them.

        Raises:
            NotFound: there is none, it is deleted already, or it is somebody else's.
        """
        now = now or utc_now()
        with self._write() as session:
            _found(session, request_id, viewer.owns(Request.owner))
            request = lock_request(session, request_id)
            if request.deleted_at is not None:
                raise NotFound(f"There is no request {request_id}.")
            if request.status in LIVE_REQUESTS:
                begin_to_stop(session, request, now)
            request.deleted_at = request.updated_at = now
            add_event(session, request_id, "deleted", now)
            return request_record(request)

    def step_counts(self, request_ids: Sequence[str]) -> dict[str, dict[StepStatus, int]]:
        """Steps by status, of each request that has any."""
        counts: dict[str, dict[StepStatus, int]] = defaultdict(dict)
        with self._read() as session:
            for part in chunks(request_ids):
                query = (
                    select(Step.request_id, Step.status, func.count())
                    .where(Step.request_id.in_(part))
                    .group_by(Step.request_id, Step.status)
                )
                for request_id, status, number in session.execute(query):
                    counts[request_id][status] = number
        return dict(counts)

    def task_counts(self, request_ids: Sequence[str]) -> dict[str, dict[StepStatus, int]]:
        """Tasks by status, of each request that has any."""
        counts: dict[str, dict[StepStatus, int]] = defaultdict(dict)
        with self._read() as session:
            for part in chunks(request_ids):
                query = (
                    select(Task.request_id, Task.status, func.count())
                    .where(Task.request_id.in_(part))
                    .group_by(Task.request_id, Task.status)
                )
                for request_id, status, number in session.execute(query):
                    counts[request_id][status] = number
        return dict(counts)

    def layers_of_requests(self, request_ids: Sequence[str]) -> dict[str, list[LayerRecord]]:
        """The layers of many requests, each in their order."""
        found: dict[str, list[LayerRecord]] = defaultdict(list)
        with self._read() as session:
            for part in chunks(request_ids):
                query = select(Layer).where(Layer.request_id.in_(part))
                for row in session.scalars(query.order_by(Layer.request_id, Layer.position)):
                    found[row.request_id].append(layer_record(row))
        return dict(found)

    def each_task(
        self,
        request_id: str,
        *,
        status: StepStatus | None = None,
        skip: int = 0,
        limit: int | None = None,
    ) -> Iterator[TaskRecord]:
        """The request's tasks in the order of the plan, read page by page."""
        last, left = -1, limit
        while left is None or left > 0:
            size = _TASKS_A_PAGE if left is None else min(left, _TASKS_A_PAGE)
            query = select(Task).where(Task.request_id == request_id, Task.number > last)
            if status is not None:
                query = query.where(Task.status == status)
            query = query.order_by(Task.number).limit(size).offset(skip)
            with self._read() as session:
                page = task_records(session, session.scalars(query).all())
            yield from page
            if len(page) < size:
                return
            last, skip = page[-1].number, 0
            left = None if left is None else left - len(page)


def _found(session: Session, request_id: str, condition: ColumnElement[bool]) -> Request:
    row = session.scalar(
        select(Request).where(Request.id == request_id, Request.deleted_at.is_(None), condition)
    )
    if row is None:
        raise NotFound(f"There is no request {request_id}.")
    return row
