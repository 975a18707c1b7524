"""Requests as their owners see them: looked up, listed, filtered, deleted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    bindparam,
    func,
    literal,
    select,
    union_all,
)

from geostudio_dagster.catalog.api_schema import Permission
from geostudio_dagster.catalog.changes import add_event, chunks, lock_request
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.pages import Column, Paging, beside_total
from geostudio_dagster.catalog.records import (
    RequestRecord,
    ShownLayer,
    StepRecord,
    TaskRecord,
)
from geostudio_dagster.catalog.rows import columns, request_record, shown_layer, task_record
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
Counts = Mapping[StepStatus, int]


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

    @property
    def values(self) -> dict[str, Any]:
        """What is asked for, by the names of :data:`_CONDITIONS`."""
        given = {name: value for name in _CONDITIONS if (value := getattr(self, name)) is not None}
        if not self.statuses:
            del given["statuses"]
        if self.tune_id is not None:
            given["tune_id"] = self.tune_id.lower()
        return given


_CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "statuses": Request.status.in_(bindparam("statuses", expanding=True)),
    "card_id": Request.card_id == bindparam("card_id"),
    "tune_id": Request.tune_id == bindparam("tune_id"),
    "created_by": Request.owner == bindparam("created_by"),
    "location": Request.location == bindparam("location"),
    "saved": Request.saved == bindparam("saved"),
    "created_after": Request.created_at >= bindparam("created_after"),
    "created_before": Request.created_at < bindparam("created_before"),
}
_REQUEST = columns(Request, RequestRecord)
_STEP = [Step.task_id, *columns(Step, StepRecord)]
_TASK = columns(Task, TaskRecord)
_TASKS = "tasks"
_OF_REQUESTS = bindparam("requests", type_=String, expanding=True)
_LAYERS = (
    select(*columns(Layer, ShownLayer))
    .where(Layer.request_id.in_(_OF_REQUESTS))
    .order_by(Layer.request_id, Layer.position)
)
_FIGURES = union_all(
    *(
        select(literal(kind), table.request_id, table.status, func.count())
        .where(table.request_id.in_(_OF_REQUESTS))
        .group_by(table.request_id, table.status)
        for kind, table in (("steps", Step), (_TASKS, Task))
    )
)
_STEPS = (
    select(*_STEP)
    .where(Step.task_id.in_(bindparam("tasks", type_=String, expanding=True)))
    .order_by(Step.task_id, Step.number)
)


_SHARING = (
    select(Permission.group_id)
    .where(
        Permission.kind == _KIND,
        Permission.group_id.in_(bindparam("groups", type_=String, expanding=True)),
    )
    .distinct()
)

# The statements below are made once for each pattern of viewers, filters and pages.


@lru_cache
def _one_request(viewer: Viewer, to_change: bool) -> Select[Any]:
    return select(*_REQUEST).where(
        Request.id == bindparam("request"),
        Request.deleted_at.is_(None),
        _may(viewer, to_change),
    )


@lru_cache
def _one_task(viewer: Viewer, to_change: bool) -> Select[Any]:
    return (
        select(*_TASK)
        .join(Request, Request.id == Task.request_id)
        .where(Task.id == bindparam("task"), Request.deleted_at.is_(None), _may(viewer, to_change))
    )


def _may(viewer: Viewer, to_change: bool) -> ColumnElement[bool]:
    if to_change:
        return viewer.owns(Request.owner)
    return viewer.sees(_KIND, owner=Request.owner, artifact_id=Request.id)


@lru_cache(maxsize=500)
def _page_of_requests(viewer: Viewer, asked: frozenset[str], page: Paging) -> Select[Any]:
    """The total, beside each row of the page; alone where the page is beyond the end."""
    conditions = [
        Request.deleted_at.is_(None),
        _may(viewer, to_change=False),
        *(_CONDITIONS[name] for name in sorted(asked)),
    ]
    description = Request.spec["description"].as_string()
    text = page.contains(Request.name, Request.location, description, Request.id)
    if text is not None:
        conditions.append(text)
    order = page.order(_SORTED_BY, Request.id)
    total, rows = beside_total(select(Request.id).where(*conditions), page, order, Request.id)
    return select(total, *_REQUEST).select_from(rows).order_by(*order)


@lru_cache
def _tasks_of_request(of_status: bool) -> Select[Any]:
    query = select(*_TASK).where(
        Task.request_id == bindparam("request"), Task.number > bindparam("last")
    )
    if of_status:
        query = query.where(Task.status == bindparam("status"))
    return query.order_by(Task.number).limit(bindparam("size")).offset(bindparam("skip"))


class RequestListing(Database):
    """The catalog's requests, to each viewer their own and what their groups share."""

    def visible_request(self, request_id: str, viewer: Viewer) -> RequestRecord:
        """A request that the viewer may read.

        Raises:
            NotFound: there is none, it was deleted, or it is somebody else's.
        """
        return self._request(request_id, viewer, to_change=False)

    def owned_request(self, request_id: str, viewer: Viewer) -> RequestRecord:
        """A request that the viewer may change.

        Raises:
            NotFound: as for :meth:`visible_request`.
        """
        return self._request(request_id, viewer, to_change=True)

    def _request(self, request_id: str, viewer: Viewer, *, to_change: bool) -> RequestRecord:
        query = _one_request(viewer.pattern, to_change)
        found = self._rows(query, request=request_id, **viewer.values)
        if not found:
            raise NotFound(f"There is no request {request_id}.")
        return request_record(found[0])

    def visible_task(self, task_id: str, viewer: Viewer, *, to_change: bool = False) -> TaskRecord:
        """A task of a request that the viewer may read, or change.

        Raises:
            NotFound: there is none, or its request is deleted or somebody else's.
        """
        query = _one_task(viewer.pattern, to_change)
        found = self._rows(query, task=task_id, **viewer.values)
        if not found:
            raise NotFound(f"There is no task {task_id}.")
        return task_record(found[0], self._rows(_STEPS, tasks=[task_id]))

    def list_requests(
        self, viewer: Viewer, wanted: RequestFilter, page: Paging
    ) -> tuple[int, list[RequestRecord]]:
        """How many requests match in all, and those on the page.

        ``page.q`` is looked for in name, location, description and id.

        Raises:
            InvalidRequest: the page is sorted by an unknown field.
        """
        asked = wanted.values
        viewer = self._with_sharing_groups(viewer)
        query = _page_of_requests(viewer.pattern, frozenset(asked), page.pattern)
        rows = self._rows(query, **viewer.values, **asked, **page.values)
        # Beyond the end there is the total alone.
        return rows[0].total, [request_record(row) for row in rows if row.id is not None]

    def _with_sharing_groups(self, viewer: Viewer) -> Viewer:
        """The viewer without the groups that share no request.

        Most people's requests are their own alone: then their page and its total are read from one
        index, which takes a tenth of the time.
        """
        if viewer.admin or not viewer.groups:
            return viewer
        found = self._rows(_SHARING, groups=sorted(viewer.groups))
        return replace(viewer, groups=frozenset(row.group_id for row in found))

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
        self.owned_request(request_id, viewer)  # nobody else may even lock it
        with self._write() as session:
            request = lock_request(session, request_id)
            if request.deleted_at is not None:
                raise NotFound(f"There is no request {request_id}.")
            if request.status in LIVE_REQUESTS:
                begin_to_stop(session, request, now)
            request.deleted_at = request.updated_at = now
            add_event(session, request_id, "deleted", now)
            return request_record(request)

    def figures_of_requests(self, request_ids: Sequence[str]) -> dict[str, tuple[Counts, Counts]]:
        """Steps and tasks by status, of each request."""
        found: dict[str, tuple[dict[StepStatus, int], dict[StepStatus, int]]]
        found = {request_id: ({}, {}) for request_id in request_ids}
        for part in chunks(request_ids):
            for kind, request_id, status, number in self._rows(_FIGURES, requests=part):
                found[request_id][kind == _TASKS][status] = number
        return dict(found)

    def layers_of_requests(self, request_ids: Sequence[str]) -> dict[str, list[ShownLayer]]:
        """The layers of many requests, each in their order."""
        found: dict[str, list[ShownLayer]] = defaultdict(list)
        for part in chunks(request_ids):
            for row in self._rows(_LAYERS, requests=part):
                found[row.request_id].append(shown_layer(row))
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
            page = self._tasks_after(request_id, last, status, skip, size)
            yield from page
            if len(page) < size:
                return
            last, skip = page[-1].number, 0
            left = None if left is None else left - len(page)

    def _tasks_after(
        self, request_id: str, last: int, status: StepStatus | None, skip: int, size: int
    ) -> list[TaskRecord]:
        which = {"request": request_id} | ({} if status is None else {"status": status})
        query = _tasks_of_request(status is not None)
        tasks = self._rows(query, last=last, size=size, skip=skip, **which)
        steps = defaultdict(list)
        if tasks:
            for step in self._rows(_STEPS, tasks=[task.id for task in tasks]):
                steps[step.task_id].append(step)
        return [task_record(task, steps[task.id]) for task in tasks]
