"""A request's results: published as layers, then the request is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.changes import (
    add_event,
    error_text,
    follow_steps_in_bulk,
    lock_request,
    move_step,
    move_steps_in_bulk,
    stop_if_idle,
)
from geostudio_dagster.catalog.conclusions import backoff, conclude_request, enter_publication
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.records import LayerRecord, RequestRecord, TaskRecord
from geostudio_dagster.catalog.rows import layer_record, request_record, task_records
from geostudio_dagster.catalog.schema import Layer, Request, Step, Task
from geostudio_dagster.catalog.states import LIVE_REQUESTS, PUSH, RequestStatus, StepStatus
from geostudio_dagster.errors import Conflict, LeaseLost, NotFound, TaskError

_PUBLISHABLE = (StepStatus.READY, StepStatus.RUNNING, StepStatus.FINISHED)


class Publishing(Database):
    """The catalog's layers."""

    def requests_to_publish(self, now: datetime, limit: int = 100) -> list[RequestRecord]:
        """Requests whose results are due and that no run publishes yet."""
        query = (
            select(Request)
            .where(
                Request.status == RequestStatus.PUBLISHING_RESULTS,
                Request.publish_run_id.is_(None),
                Request.cancel_requested.is_(False),
                or_(Request.publish_not_before.is_(None), Request.publish_not_before <= now),
            )
            .order_by(Request.priority.desc(), Request.created_at, Request.id)
            .limit(limit)
        )
        with self._read() as session:
            return [request_record(row) for row in session.scalars(query)]

    def begin_publish(
        self, request_id: str, run_id: str, now: datetime | None = None
    ) -> RequestRecord:
        """Note that a run publishes the request's results; the last one to say so does.

        A request that is over may be published again.

        Raises:
            Conflict: the request has work left, has nothing to publish, or was cancelled.
            NotFound: there is no such request.
        """
        now = now or utc_now()
        with self._write() as session:
            request = lock_request(session, request_id)
            _check_publishable(session, request)
            if request.status != RequestStatus.PUBLISHING_RESULTS:
                enter_publication(session, request, now)
                move_steps_in_bulk(
                    session, StepStatus.READY, _pushes(request_id, StepStatus.FAILED)
                )
            request.publish_run_id = run_id
            taken_over = _pushes(request_id, StepStatus.RUNNING)
            move_steps_in_bulk(session, StepStatus.READY, taken_over)
            # In hand: a cancellation lets a publication end.
            ready = _pushes(request_id, StepStatus.READY)
            move_steps_in_bulk(
                session, StepStatus.RUNNING, ready, run_id=run_id, in_hand=True, started_at=now
            )
            follow_steps_in_bulk(session, _of_request(request_id, StepStatus.FAILED))
            return request_record(request)

    def publishable_tasks(self, request_id: str, page_size: int = 500) -> Iterator[TaskRecord]:
        """All tasks whose results belong into the layers, in order, read page by page."""
        last = -1
        while True:
            query = (
                select(Task)
                .join(Step, Step.task_id == Task.id)
                .where(
                    Task.request_id == request_id,
                    Task.number > last,
                    Step.process_id == PUSH,
                    Step.status.in_(_PUBLISHABLE),
                )
                .order_by(Task.number)
                .limit(page_size)
            )
            with self._read() as session:
                page = task_records(session, session.scalars(query).all())
            yield from page
            if len(page) < page_size:
                return
            last = page[-1].number

    def record_layers(
        self, request_id: str, layers: Sequence[LayerRecord], *, run_id: str | None = None
    ) -> None:
        """Write the request's layers in place of all that it had.

        Raises:
            LeaseLost: ``run_id`` is given and does not publish the request any more; nothing
                is written.
            NotFound: there is no such request.
        """
        with self._write() as session:
            request = lock_request(session, request_id)
            if run_id is not None:
                _check_publishes(request, run_id)
            session.execute(delete(Layer).where(Layer.request_id == request_id))
            session.add_all(
                Layer(
                    request_id=request_id,
                    name=layer.name,
                    position=position,
                    title=layer.title,
                    kind=layer.kind,
                    bounds=list(layer.bounds),
                    style=layer.style,
                    granules=list(layer.granules),
                    uri=layer.uri,
                    digest=layer.digest,
                    published_at=layer.published_at,
                )
                for position, layer in enumerate(layers)
            )
            now = utc_now()
            request.updated_at = now  # by which the gateway knows whether what it remembers holds
            names = [layer.name for layer in layers]
            add_event(session, request_id, "layers_ready", now, layers=names)

    def layers(self, request_id: str) -> list[LayerRecord]:
        """The request's layers, in the order in which they were recorded."""
        query = select(Layer).where(Layer.request_id == request_id).order_by(Layer.position)
        with self._read() as session:
            return [layer_record(row) for row in session.scalars(query)]

    def finish_publish(
        self,
        request_id: str,
        failed: Mapping[str, TaskError] | None = None,
        *,
        run_id: str | None = None,
        now: datetime | None = None,
    ) -> RequestRecord:
        """End the publication: its tasks are FINISHED, but for ``failed``; the request is over.

        Args:
            request_id: the request.
            failed: errors by the id of the task that could not be published.
            run_id: the run that says so; None is whichever publishes.
            now: the present time.

        Raises:
            LeaseLost: the run does not publish the request any more; nothing is written.
            NotFound: there is no such request, or no such task in it.
        """
        now = now or utc_now()
        with self._write() as session:
            request = lock_request(session, request_id)
            _check_publishes(request, run_id)
            for task_id, error in (failed or {}).items():
                _fail_push(session, request_id, task_id, error, now)
            pushed = _pushes(request_id, StepStatus.RUNNING)
            move_steps_in_bulk(
                session,
                StepStatus.FINISHED,
                pushed,
                finished_at=now,
                attempts=Step.attempts + 1,
                error_code=None,
                error=None,
            )
            follow_steps_in_bulk(session, _of_request(request_id, StepStatus.RUNNING))
            request.publish_run_id = None
            conclude_request(session, request, now)
            return request_record(request)

    def defer_publish(
        self,
        request_id: str,
        error: TaskError | str,
        now: datetime,
        delay: float,
        max_attempts: int,
        *,
        run_id: str | None = None,
    ) -> RequestRecord:
        """Publish later, after ``delay`` seconds that double with each failure.

        After ``max_attempts`` failures the tasks to be published are FAILED, and the request
        is over. Nothing changes where the request is not being published, or not by
        ``run_id``, if that is given.

        Raises:
            NotFound: there is no such request.
        """
        with self._write() as session:
            request = lock_request(session, request_id)
            publishes = request.status == RequestStatus.PUBLISHING_RESULTS
            if not publishes or request.publish_run_id != (run_id or request.publish_run_id):
                return request_record(request)
            running = _pushes(request_id, StepStatus.RUNNING)
            request.publish_run_id = None
            if request.cancel_requested:
                move_steps_in_bulk(session, StepStatus.STOPPED, running)
                follow_steps_in_bulk(session, _of_request(request_id, StepStatus.RUNNING))
                stop_if_idle(session, request, now)
                return request_record(request)
            move_steps_in_bulk(session, StepStatus.READY, running)
            request.publish_failures += 1
            if request.publish_failures >= max_attempts:
                _fail_all_pushes(session, request, error, now)
            else:
                due = backoff(now, delay, request.publish_failures - 1)
                _publish_later(session, request, error, due, now)
            return request_record(request)


def _publish_later(
    session: Session, request: Request, error: TaskError | str, due: datetime, now: datetime
) -> None:
    request.publish_attempt += 1
    request.publish_not_before = due
    request.error = error_text(str(error))
    request.updated_at = now
    add_event(session, request.id, "publish_deferred", now, error=request.error)


def _fail_all_pushes(
    session: Session, request: Request, error: TaskError | str, now: datetime
) -> None:
    text = error_text(f"The layer could not be published: {error}")
    move_steps_in_bulk(
        session,
        StepStatus.FAILED,
        _pushes(request.id, StepStatus.READY),
        error_code=error.code if isinstance(error, TaskError) else "publish_failed",
        error=text,
        finished_at=now,
    )
    follow_steps_in_bulk(session, _of_request(request.id, StepStatus.RUNNING))
    add_event(session, request.id, "publish_failed", now, error=text)
    conclude_request(session, request, now)


def _pushes(request_id: str, *states: StepStatus) -> ColumnElement[bool]:
    return and_(Step.request_id == request_id, Step.process_id == PUSH, Step.status.in_(states))


def _of_request(request_id: str, *states: StepStatus) -> ColumnElement[bool]:
    return and_(Task.request_id == request_id, Task.status.in_(states))


def _check_publishes(request: Request, run_id: str | None) -> None:
    publishes = request.status == RequestStatus.PUBLISHING_RESULTS
    if not publishes or request.publish_run_id != (run_id or request.publish_run_id):
        raise LeaseLost(
            f"Request {request.id} is {request.status} and not being published by "
            f"{f'run {run_id}' if run_id else 'this run'} any more."
        )


def _check_publishable(session: Session, request: Request) -> None:
    if request.cancel_requested:
        raise Conflict(f"Request {request.id} was cancelled: it is not to be published.")
    if request.status == RequestStatus.PUBLISHING_RESULTS:
        return
    if request.status in LIVE_REQUESTS:
        raise Conflict(
            f"Request {request.id} is {request.status}: it is published when all its shards "
            "are settled."
        )
    published = _pushes(request.id, StepStatus.FINISHED, StepStatus.FAILED)
    if session.scalar(select(Step.task_id).where(published).limit(1)) is None:
        raise Conflict(f"Request {request.id} is {request.status} and has nothing to publish.")


def _fail_push(
    session: Session, request_id: str, task_id: str, error: TaskError, now: datetime
) -> None:
    query = select(Step, Task).join(Task, Task.id == Step.task_id)
    row = session.execute(
        query.where(
            Task.id == task_id, Task.request_id == request_id, Step.process_id == PUSH
        ).execution_options(populate_existing=True)
    ).first()
    if row is None:
        raise NotFound(f"Request {request_id} has no task {task_id} to publish.")
    step, task = row
    move_step(step, StepStatus.FAILED)
    step.attempts += 1
    step.error_code, step.error = error.code, error_text(str(error))
    step.finished_at = now
    task.status, task.error = StepStatus.FAILED, step.error
    add_event(
        session,
        request_id,
        "task_failed",
        now,
        task_id=task_id,
        process_id=PUSH,
        code=error.code,
        error=step.error,
    )
