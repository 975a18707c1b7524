"""Tasks and requests as users look at them: pages, and figures that one SQL query makes."""

from __future__ import annotations

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.database import Database
from geostudio_dagster.catalog.records import RequestSummary, TaskRecord
from geostudio_dagster.catalog.rows import model_record, request_record, task_records
from geostudio_dagster.catalog.schema import Model, Request, Shard, Step, Task
from geostudio_dagster.catalog.states import PREDICTION, STEP_ORDER, ShardStatus, StepStatus
from geostudio_dagster.errors import NotFound

_RECENT_REQUESTS = 20


class Tasks(Database):
    """The catalog's tasks."""

    def task(self, task_id: str) -> TaskRecord:
        """The task.

        Raises:
            NotFound: there is none.
        """
        with self._read() as session:
            row = session.get(Task, task_id)
            if row is None:
                raise NotFound(f"There is no task {task_id}.")
            return task_records(session, [row])[0]

    def tasks(
        self,
        request_id: str,
        *,
        status: StepStatus | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[TaskRecord]:
        """A page of the request's tasks, in the order of the plan."""
        query = select(Task).where(Task.request_id == request_id)
        if status is not None:
            query = query.where(Task.status == status)
        return self._tasks(query.order_by(Task.number).limit(limit).offset(offset))

    def shard_tasks(self, shard_key: str) -> list[TaskRecord]:
        """The shard's tasks, in the order of the plan."""
        return self._tasks(select(Task).where(Task.shard_key == shard_key).order_by(Task.number))

    def _tasks(self, query: Select[tuple[Task]]) -> list[TaskRecord]:
        with self._read() as session:
            return task_records(session, session.scalars(query).all())

    def summary(self, request_id: str) -> RequestSummary:
        """The request in figures.

        Raises:
            NotFound: there is no such request.
        """
        with self._read() as session:
            request = session.get(Request, request_id)
            if request is None:
                raise NotFound(f"There is no request {request_id}.")
            tasks, total = _task_figures(session, request_id)
            steps, done = _step_figures(session, request_id)
            return RequestSummary(
                request=request_record(request),
                model=model_record(session.get_one(Model, request.model_id)),
                tasks_by_status=tasks,
                steps_by_status=steps,
                shards_by_status=_shard_figures(session, request_id),
                pixels_done=done,
                pixels_total=total,
            )

    def prediction_speed(self, model_id: str) -> float | None:
        """Mpx/s that the model's latest predictions made; None before there are any."""
        recent = (
            select(Request.id)
            .where(Request.model_id == model_id, Request.n_tasks > 0)
            .order_by(Request.created_at.desc(), Request.id.desc())
            .limit(_RECENT_REQUESTS)
        )
        query = select(func.sum(Step.pixels), func.sum(Step.seconds)).where(
            Step.request_id.in_(recent.scalar_subquery()),
            Step.process_id == PREDICTION,
            Step.status == StepStatus.FINISHED,
            Step.seconds > 0,
        )
        with self._read() as session:
            pixels, seconds = session.execute(query).one()
            return float(pixels) / float(seconds) / 1e6 if pixels and seconds else None


def _task_figures(session: Session, request_id: str) -> tuple[dict[str, int], int]:
    counts: dict[str, int] = {status: 0 for status in StepStatus if status != StepStatus.WAITING}
    total = 0
    rows = session.execute(
        select(Task.status, func.count(), func.sum(Task.pixels))
        .where(Task.request_id == request_id)
        .group_by(Task.status)
    )
    for status, number, pixels in rows:
        counts[status] = number
        total += int(pixels or 0)
    return counts, total


def _step_figures(session: Session, request_id: str) -> tuple[dict[str, dict[str, int]], int]:
    """Steps by process (in their order) and status, and the pixels predicted."""
    counts: dict[str, dict[str, int]] = {}
    done = 0
    rows = session.execute(
        select(Step.process_id, Step.status, func.count(), func.sum(Step.pixels))
        .where(Step.request_id == request_id)
        .group_by(Step.process_id, Step.status)
    )
    for process_id, status, number, pixels in rows:
        counts.setdefault(process_id, dict.fromkeys(StepStatus, 0))[status] = number
        if process_id == PREDICTION and status == StepStatus.FINISHED:
            done = int(pixels or 0)
    return dict(sorted(counts.items(), key=_in_order)), done


def _in_order(entry: tuple[str, object]) -> int:
    # The numbers of the steps are not in the index that these figures are made from.
    return STEP_ORDER.index(entry[0]) if entry[0] in STEP_ORDER else len(STEP_ORDER)


def _shard_figures(session: Session, request_id: str) -> dict[str, int]:
    counts: dict[str, int] = dict.fromkeys(ShardStatus, 0)
    rows = session.execute(
        select(Shard.status, func.count())
        .where(Shard.request_id == request_id)
        .group_by(Shard.status)
    )
    for status, number in rows:
        counts[status] = number
    return counts
