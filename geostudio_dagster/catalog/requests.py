"""Requests: written as PENDING, planned once, found again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from typing import Any, cast
from uuid import uuid4

from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    bindparam,
    column,
    false,
    func,
    insert,
    literal,
    null,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.artifacts import upsert_artifacts
from geostudio_dagster.catalog.changes import (
    add_event,
    chunks,
    lock_request,
    move_request,
)
from geostudio_dagster.catalog.database import Database, to_json, utc_now
from geostudio_dagster.catalog.processor_records import PinnedProcessor
from geostudio_dagster.catalog.processors import pin_processors
from geostudio_dagster.catalog.records import ArtifactRecord, Plan, PlannedTask, RequestRecord
from geostudio_dagster.catalog.rows import columns, request_record
from geostudio_dagster.catalog.schema import Model, Request, Shard, Step, Task
from geostudio_dagster.catalog.states import PUSH, RequestStatus, ShardStatus, StepStatus
from geostudio_dagster.errors import Conflict, InvalidRequest, NotFound

_REQUEST_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$")
_ROWS = 5_000  # of one insert statement
_MODEL = select(Model.id).where(Model.id == bindparam("model"))
_WRITTEN = columns(Request, RequestRecord)
_INSERT = insert(cast("Table", Request.__table__)).returning(*_WRITTEN)
# SQLAlchemy compiles this one anew each time.
_INSERT_IF_NEW = {
    dialect: insert_into(Request).on_conflict_do_nothing().returning(*_WRITTEN)
    for dialect, insert_into in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}


class Requests(Database):
    """The catalog's requests, up to the point where their shards can run."""

    def create_request(
        self,
        *,
        request_id: str | None,
        spec: dict[str, Any],
        model_id: str,
        owner: str,
        processors: Sequence[PinnedProcessor] = (),
        card_id: str | None = None,
    ) -> RequestRecord:
        """Write a request as PENDING, with its chain; without an id it gets a new one.

        The same id with the same spec and owner gives the request that is there.

        Raises:
            Conflict: the id belongs to a request with another spec or owner.
            InvalidRequest: the id has other characters than letters, digits and hyphens.
            NotFound: there is no such model, or a processor was deleted meanwhile.
        """
        identifier = str(uuid4()) if request_id is None else request_id
        if not _REQUEST_ID.match(identifier):
            raise InvalidRequest("id", "is not a plain id", "use a UUID, or leave it out")
        now = utc_now()
        row = {
            "id": identifier,
            "model_id": model_id,
            "spec": json.loads(to_json(spec)),
            "owner": owner,
            "name": spec.get("name") or "",
            "location": spec.get("location") or "",
            "card_id": card_id or model_id,
            **_from_client(spec.get("client") or {}),
            "status": RequestStatus.PENDING,
            "priority": int(spec.get("priority") or 0),
            "created_at": now,
            "updated_at": now,
        }
        with self._write() as session:
            connection = session.connection()
            if connection.scalar(_MODEL, {"model": model_id}) is None:
                raise NotFound(f"There is no model with the id {model_id}.")
            new = _INSERT if request_id is None else _INSERT_IF_NEW[connection.dialect.name]
            written = connection.execute(new, row).first()
            if written is not None:
                pin_processors(session, identifier, processors)
                add_event(session, identifier, "created", now, owner=owner)
                return request_record(written)
            request = lock_request(session, identifier)
            same = _comparable(request.spec) == _comparable(row["spec"])
            if not same or request.owner != owner:
                raise Conflict(
                    f"The id {identifier} belongs to another request; "
                    "leave the id out or choose a new one."
                )
            return request_record(request)

    def request(self, request_id: str) -> RequestRecord:
        """The request.

        Raises:
            NotFound: there is none.
        """
        with self._read() as session:
            row = session.get(Request, request_id)
            if row is None:
                raise NotFound(f"There is no request {request_id}.")
            return request_record(row)

    def is_cancelled(self, request_id: str) -> bool:
        """Whether work on the request is to end; cheap, for workers to ask between batches.

        Raises:
            NotFound: there is no such request.
        """
        with self._read() as session:
            query = select(Request.cancel_requested).where(Request.id == request_id)
            asked = session.scalar(query)
            if asked is None:
                raise NotFound(f"There is no request {request_id}.")
            return asked

    def requests(
        self, status: RequestStatus | None = None, limit: int = 100, offset: int = 0
    ) -> list[RequestRecord]:
        """Requests, the newest first."""
        query = select(Request).order_by(Request.created_at.desc(), Request.id.desc())
        if status is not None:
            query = query.where(Request.status == status)
        with self._read() as session:
            return [
                request_record(row) for row in session.scalars(query.limit(limit).offset(offset))
            ]

    def requests_to_plan(self, limit: int = 100) -> list[RequestRecord]:
        """PENDING requests: the highest priority first, then the oldest."""
        query = (
            select(Request)
            .where(Request.status == RequestStatus.PENDING)
            .order_by(Request.priority.desc(), Request.created_at, Request.id)
            .limit(limit)
        )
        with self._read() as session:
            return [request_record(row) for row in session.scalars(query)]

    def record_plan(
        self, request_id: str, plan: Plan, artifacts: Sequence[ArtifactRecord] = ()
    ) -> bool:
        """Write all tasks, steps and shards in one transaction; the request is SUBMITTED.

        The files that describe the plan are written with it.

        Returns:
            False, and nothing is written, if it was planned already or was cancelled.

        Raises:
            NotFound: there is no such request.
            ValueError: the plan contradicts itself.
        """
        _check(plan)
        now = utc_now()
        with self._write() as session:
            request = lock_request(session, request_id)
            if request.n_tasks or request.status == RequestStatus.STOPPED:
                return False
            move_request(session, request, RequestStatus.SUBMITTED, now)
            request.n_tasks = len(plan.tasks)
            request.estimate = plan.estimate
            shards = _insert_shards(session, request, plan, now)
            _insert_tasks(session, request_id, plan)
            upsert_artifacts(session, request_id, artifacts)
            add_event(session, request_id, "planned", now, tasks=len(plan.tasks), shards=shards)
            return True


def _comparable(value: Any) -> Any:
    """A JSON value such that those which say the same are equal.

    Names without a value are left out, for those that came with a newer version are not in what an
    older one wrote. Numbers are told by their decimal digits: PostgreSQL gives 1e23 back as the
    whole number, which no float is.
    """
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return Decimal(repr(value)) if isinstance(value, float) else value


def _from_client(client: dict[str, Any]) -> dict[str, Any]:
    """What lists are filtered by, of what a client sent."""
    tune, demo = client.get("fine_tuning_id"), client.get("demo")
    return {
        "tune_id": str(tune).lower() if tune else None,
        "saved": isinstance(demo, dict) and demo.get("demo") is True,
    }


def _check(plan: Plan) -> None:
    if not plan.tasks:
        raise ValueError("a plan has at least one task")
    for task in plan.tasks:
        if not 0 <= task.shard < plan.shard_count:
            raise ValueError(f"{task.id} is in shard {task.shard} of {plan.shard_count}")
    for steps in {task.steps for task in plan.tasks}:
        if not steps or len(set(steps)) != len(steps):
            raise ValueError(f"a task has each of its steps once, not {steps}")
        if PUSH in steps[:-1]:
            raise ValueError(f"{PUSH} is the last step")


def _insert_shards(session: Session, request: Request, plan: Plan, now: datetime) -> int:
    sizes = Counter(task.shard for task in plan.tasks)
    rows = [
        {
            "key": shard_key(request.id, number),
            "request_id": request.id,
            "number": number,
            "status": ShardStatus.READY,
            "attempt": 0,
            "not_before": now,
            "n_tasks": size,
            "priority": request.priority,
        }
        for number, size in sorted(sizes.items())
    ]
    session.execute(insert(Shard), rows)
    return len(rows)


def shard_key(request_id: str, number: int) -> str:
    """A shard's key, which is its Dagster partition key."""
    return f"{request_id}/{number:05d}"


def _insert_tasks(session: Session, request_id: str, plan: Plan) -> None:
    numbered = list(enumerate(plan.tasks))
    for part in chunks(numbered, _ROWS):
        _insert_task_rows(session, [_task_row(request_id, *item) for item in part])
    for steps, first, last in _runs_of_equal_steps(plan.tasks):
        of_tasks = and_(Task.request_id == request_id, Task.number.between(first, last))
        for number, process_id in enumerate(steps):
            _insert_steps(session, of_tasks, number, process_id)


def _insert_task_rows(session: Session, rows: list[dict[str, Any]]) -> None:
    table = cast("Table", Task.__table__)
    if session.get_bind().dialect.name == "sqlite":
        session.execute(insert(table), rows)
        return
    # One JSON document is several times faster than as many rows of parameters.
    columns = [column(name, table.c[name].type) for name in rows[0]]
    document = func.jsonb_to_recordset(bindparam("rows", rows, type_=JSONB()))
    source = select(document.table_valued(*columns).render_derived(with_types=True))
    session.execute(insert(table).from_select(list(rows[0]), source))


def _task_row(request_id: str, number: int, task: PlannedTask) -> dict[str, Any]:
    return {
        "id": task.id,
        "request_id": request_id,
        "shard_key": shard_key(request_id, task.shard),
        "number": number,
        "url": task.url,
        "date": task.date,
        "window": list(task.window) if task.window else None,
        "scene_size": list(task.scene_size) if task.scene_size else None,
        "footprint": task.footprint,
        "pixels": task.pixels,
        "status": StepStatus.READY,
    }


def _runs_of_equal_steps(
    tasks: tuple[PlannedTask, ...],
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    for steps, run in groupby(enumerate(tasks), key=lambda item: item[1].steps):
        numbers = [number for number, _ in run]
        yield steps, numbers[0], numbers[-1]


def _insert_steps(
    session: Session, of_tasks: ColumnElement[bool], number: int, process_id: str
) -> None:
    # The database makes the rows from the tasks: half a million of them in about a second.
    status = StepStatus.WAITING if number else StepStatus.READY
    columns = {
        Step.task_id: Task.id,
        Step.number: literal(number),
        Step.request_id: Task.request_id,
        Step.process_id: literal(process_id),
        Step.status: literal(status.value),
        Step.attempts: literal(0),
        Step.crashes: literal(0),
        Step.in_hand: false(),
        Step.metrics: null(),
    }
    source = select(*columns.values()).where(of_tasks)
    names = [column.key for column in columns]
    session.execute(insert(Step).from_select(names, source))
