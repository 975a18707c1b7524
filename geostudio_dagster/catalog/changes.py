"""The pieces that every change of the catalog is made of.

Whoever changes anything that belongs to a request locks the request's row first, so all
changes of one request follow one another, its events have ids in the order of commit, and no
two changes can wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast
from uuid import uuid4

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Result,
    ScalarSelect,
    Select,
    and_,
    case,
    func,
    not_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from geostudio_dagster.catalog.api_schema import WebhookDelivery
from geostudio_dagster.catalog.schema import Event, Request, Shard, Step, Task
from geostudio_dagster.catalog.states import (
    LIVE_REQUESTS,
    REQUEST_CHANGES,
    SHARD_CHANGES,
    STEP_CHANGES,
    TASK_CHANGES,
    RequestStatus,
    ShardStatus,
    StepStatus,
    changed,
    sources,
    task_status,
)
from geostudio_dagster.errors import NotFound

_DECISIVE = (StepStatus.RUNNING, StepStatus.FAILED, StepStatus.STOPPED)
_CHUNK = 500  # ids in one statement
_LONGEST_ERROR = 4000
_Item = TypeVar("_Item")


def chunks(items: Sequence[_Item], size: int = _CHUNK) -> Iterator[Sequence[_Item]]:
    """``items`` in pieces that fit one SQL statement."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def insert_into(session: Session, table: Any) -> sqlite.Insert | postgresql.Insert:
    """An INSERT with ON CONFLICT, which both databases spell alike, but SQLAlchemy keeps apart."""
    if session.get_bind().dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


def error_text(text: str) -> str:
    """An error as it can be stored: bounded, without NUL."""
    return text.replace("\0", "")[:_LONGEST_ERROR]


def _locked(query: Select[tuple[Request]]) -> Select[tuple[Request]]:
    # NO KEY: rows that refer to the request (artifacts, events) can still be inserted.
    return query.with_for_update(key_share=True, of=Request).execution_options(
        populate_existing=True
    )


def lock_request(session: Session, request_id: str) -> Request:
    """The request, locked until the transaction ends.

    Raises:
        NotFound: there is no such request.
    """
    request = session.scalar(_locked(select(Request).where(Request.id == request_id)))
    if request is None:
        raise NotFound(f"There is no request {request_id}.")
    return request


def lock_shard(session: Session, shard_key: str) -> tuple[Request, Shard]:
    """The shard and its request, locked.

    Raises:
        NotFound: there is no such shard.
    """
    request_id = session.scalar(select(Shard.request_id).where(Shard.key == shard_key))
    if request_id is None:
        raise NotFound(f"There is no shard {shard_key}.")
    request = lock_request(session, request_id)
    shard = session.get_one(Shard, shard_key, populate_existing=True)
    return request, shard


def lock_task(session: Session, task_id: str) -> tuple[Request, Task, list[Step]]:
    """The task, its steps in order and its request, locked.

    Raises:
        NotFound: there is no such task.
    """
    request_id = session.scalar(select(Task.request_id).where(Task.id == task_id))
    if request_id is None:
        raise NotFound(f"There is no task {task_id}.")
    request = lock_request(session, request_id)
    task = session.get_one(Task, task_id, populate_existing=True)
    steps = session.scalars(
        select(Step)
        .where(Step.task_id == task_id)
        .order_by(Step.number)
        .execution_options(populate_existing=True)
    )
    return request, task, list(steps)


def lock_requests_of_run(session: Session, run_id: str) -> list[Request]:
    """The requests that a run holds steps of, locked in a fixed order."""
    holding = (
        select(Step.request_id)
        .where(Step.run_id == run_id, Step.status == StepStatus.RUNNING)
        .distinct()
    )
    # Two statements: the lock must be taken on rows, which DISTINCT does not have.
    ids = sorted(session.scalars(holding))
    return [lock_request(session, request_id) for request_id in ids]


def add_event(session: Session, request_id: str, kind: str, now: datetime, **detail: Any) -> Event:
    """Record what happened, to be committed with the change itself."""
    event = Event(request_id=request_id, at=now, kind=kind, detail=detail)
    session.add(event)
    return event


def _tell_webhook(session: Session, request: Request, event: Event, now: datetime) -> None:
    url = request.spec.get("webhook")
    if url:
        session.flush()  # which gives the event its id
        session.add(
            WebhookDelivery(
                id=str(uuid4()),
                request_id=request.id,
                event_id=event.id,
                url=url,
                attempts=0,
                next_at=now,
            )
        )


def move_request(
    session: Session,
    request: Request,
    target: RequestStatus,
    now: datetime,
    error: str | None = None,
) -> None:
    """Give the request a new status, with its event."""
    before = request.status
    request.status = changed(REQUEST_CHANGES, f"Request {request.id}", before, target)
    request.error = error_text(error) if error else None
    request.updated_at = now
    request.finished_at = None if target in LIVE_REQUESTS else now
    if before != target:
        event = add_event(session, request.id, "status", now, before=before, after=target)
        _tell_webhook(session, request, event, now)


def move_shard(shard: Shard, target: ShardStatus) -> None:
    """Give the shard a new status."""
    shard.status = changed(SHARD_CHANGES, f"Shard {shard.key}", shard.status, target)


def shard_again(shard: Shard, not_before: datetime) -> None:
    """Make the shard READY for one more run."""
    move_shard(shard, ShardStatus.READY)
    shard.attempt += 1
    shard.not_before = not_before


def move_step(step: Step, target: StepStatus) -> None:
    """Give the step a new status; the lease ends where RUNNING ends."""
    what = f"Step {step.process_id} of task {step.task_id}"
    step.status = changed(STEP_CHANGES, what, step.status, target)
    if target != StepStatus.RUNNING:
        step.lease_until = None
        step.in_hand = False


def reset_step(step: Step, target: StepStatus) -> None:
    """Give the step a new status as if it had never been tried."""
    move_step(step, target)
    for name, value in RESET.items():
        setattr(step, name, value)


# What a step that is to be tried afresh loses.
RESET: dict[str, Any] = {
    "attempts": 0,
    "crashes": 0,
    "in_hand": False,
    "lease_until": None,
    "run_id": None,
    "error_code": None,
    "error": None,
    "started_at": None,
    "finished_at": None,
    "pixels": None,
    "seconds": None,
    "metrics": None,
}


def follow_steps(task: Task, steps: Sequence[Step]) -> None:
    """Give the task the status that its steps make."""
    target = task_status(step.status for step in steps)
    task.status = changed(TASK_CHANGES, f"Task {task.id}", task.status, target)
    failed = next((step for step in steps if step.status == StepStatus.FAILED), None)
    task.error = failed.error if failed is not None else None


def derived_status() -> ScalarSelect[str]:
    """``states.task_status`` in SQL, of the task of the enclosing statement."""
    step = aliased(Step)

    def has(status: StepStatus) -> ColumnElement[bool]:
        return func.max(case((step.status == status, 1), else_=0)) == 1

    unfinished = func.max(case((step.status != StepStatus.FINISHED, 1), else_=0)) == 1
    status = case(
        *((has(state), state.value) for state in _DECISIVE),
        (not_(unfinished), StepStatus.FINISHED.value),
        (has(StepStatus.FINISHED), StepStatus.RUNNING.value),
        else_=StepStatus.READY.value,
    )
    return select(status).where(step.task_id == Task.id).correlate(Task).scalar_subquery()


def follow_steps_in_bulk(session: Session, condition: ColumnElement[bool]) -> None:
    """:func:`follow_steps` for all tasks of a condition."""
    step = aliased(Step)
    failed = step.status == StepStatus.FAILED
    error = select(func.max(step.error)).where(step.task_id == Task.id, failed)
    session.flush()
    session.execute(
        update(Task)
        .where(condition)
        .values(status=derived_status(), error=error.correlate(Task).scalar_subquery()),
        execution_options={"synchronize_session": False},
    )


def move_steps_in_bulk(
    session: Session, target: StepStatus, condition: ColumnElement[bool], **values: Any
) -> int:
    """Give all steps of a condition a new status, as far as the table allows; how many."""
    session.flush()
    allowed = Step.status.in_(sources(STEP_CHANGES, target))
    changes: dict[str, Any] = {"status": target, "lease_until": None, "in_hand": False}
    return rows_changed(
        session.execute(
            update(Step).where(and_(condition, allowed)).values(**changes | values),
            execution_options={"synchronize_session": False},
        )
    )


def rows_changed(result: Result[Any]) -> int:
    """How many rows an UPDATE changed."""
    return cast("CursorResult[Any]", result).rowcount


def count_steps(session: Session, request_id: str, status: StepStatus) -> int:
    """How many steps of the request have the status."""
    query = select(func.count()).where(Step.request_id == request_id, Step.status == status)
    return int(session.scalar(query) or 0)


def stop_if_idle(session: Session, request: Request, now: datetime) -> None:
    """End a cancelled request once nothing of it runs any more."""
    session.flush()
    if not request.cancel_requested or request.status == RequestStatus.STOPPED:
        return
    if count_steps(session, request.id, StepStatus.RUNNING):
        return
    stop_shards(session, request.id)
    move_request(session, request, RequestStatus.STOPPED, now)


def stop_shards(session: Session, request_id: str) -> None:
    """No shard of the request is to run (again); the settled ones stay so."""
    session.execute(
        update(Shard)
        .where(
            Shard.request_id == request_id,
            Shard.status.in_(sources(SHARD_CHANGES, ShardStatus.STOPPED)),
        )
        .values(status=ShardStatus.STOPPED),
        execution_options={"synchronize_session": "fetch"},
    )
