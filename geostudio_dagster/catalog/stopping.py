"""Requests: cancelled, failed as a whole, tried again, partly done again."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, ScalarSelect, and_, case, func, or_, select, true, update
from sqlalchemy.orm import Session, aliased

from geostudio_dagster.catalog.changes import (
    RESET,
    add_event,
    follow_steps_in_bulk,
    lock_request,
    move_request,
    move_shard,
    move_steps_in_bulk,
    shard_again,
    stop_if_idle,
    stop_shards,
)
from geostudio_dagster.catalog.conclusions import enter_publication
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.records import RequestRecord
from geostudio_dagster.catalog.rows import request_record
from geostudio_dagster.catalog.schema import Request, Shard, Step, Task
from geostudio_dagster.catalog.states import (
    LIVE_REQUESTS,
    PUSH,
    RequestStatus,
    ShardStatus,
    StepStatus,
)
from geostudio_dagster.errors import Conflict

_ENDED_BADLY = (StepStatus.FAILED, StepStatus.STOPPED)
_OPEN = (StepStatus.WAITING, StepStatus.READY, StepStatus.RUNNING)


class Stopping(Database):
    """What ends a request early, and what starts it once more."""

    def cancel(self, request_id: str) -> RequestRecord:
        """Stop a request: nothing more begins, what is in hand may end, then it is STOPPED.

        Asking twice is the same as asking once.

        Raises:
            Conflict: the request is over.
            NotFound: there is no such request.
        """
        now = utc_now()
        with self._write() as session:
            request = lock_request(session, request_id)
            if request.status not in LIVE_REQUESTS:
                raise Conflict(f"Request {request_id} is {request.status}: it cannot be cancelled.")
            begin_to_stop(session, request, now)
            return request_record(request)

    def requests_to_stop(self) -> list[RequestRecord]:
        """Cancelled requests of which something still runs."""
        query = select(Request).where(
            Request.cancel_requested.is_(True), Request.status.in_(LIVE_REQUESTS)
        )
        with self._read() as session:
            return [request_record(row) for row in session.scalars(query)]

    def finish_cancel(self, request_id: str) -> RequestRecord:
        """Stop what a cancelled request still has RUNNING; for when its runs are over.

        Raises:
            Conflict: the request was not cancelled.
            NotFound: there is no such request.
        """
        now = utc_now()
        with self._write() as session:
            request = lock_request(session, request_id)
            if not request.cancel_requested:
                raise Conflict(f"Request {request_id} was not cancelled: it is {request.status}.")
            _stop_steps(session, request_id, in_hand_too=True)
            stop_if_idle(session, request, now)
            return request_record(request)

    def fail_request(self, request_id: str, error: str) -> RequestRecord:
        """End a request that cannot go on at all, such as one that cannot be planned.

        Tasks that are under way are STOPPED. A request that is STOPPED, or about to be, stays
        so; one that FAILED keeps its first error.

        Raises:
            Conflict: the request is completed.
            NotFound: there is no such request.
        """
        now = utc_now()
        with self._write() as session:
            request = lock_request(session, request_id)
            if request.cancel_requested or request.status == RequestStatus.FAILED:
                return request_record(request)
            move_request(session, request, RequestStatus.FAILED, now, error)
            _stop_steps(session, request_id, in_hand_too=True)
            stop_shards(session, request_id)
            return request_record(request)

    def retry(self, request_id: str, task_id: str | None = None) -> int:
        """Try the FAILED and STOPPED tasks again, and nothing else; how many these are.

        Each goes on at the step where it ended. A request whose publication alone failed is
        published again. With ``task_id`` only that task is tried.

        Raises:
            Conflict: there is nothing to try again, or a publication or cancellation is under
                way.
            NotFound: there is no such request.
        """
        now = utc_now()
        with self._write() as session:
            request = lock_request(session, request_id)
            wanted = Task.id == task_id if task_id is not None else true()
            tasks = _tasks_to_retry(session, request, wanted)
            _reset_tasks(session, request_id, task_id)
            _shards_again(session, request_id, now)
            request.cancel_requested = False
            request.updated_at = now
            add_event(session, request_id, "retried", now, tasks=tasks)
            session.flush()
            unsettled = select(func.count()).where(
                Shard.request_id == request_id, Shard.status != ShardStatus.SETTLED
            )
            if session.scalar(unsettled):
                move_request(session, request, RequestStatus.RUNNING, now)
            else:
                enter_publication(session, request, now)
            return tasks


def begin_to_stop(session: Session, request: Request, now: datetime) -> None:
    """Let nothing more of a live request begin; it is STOPPED at once if nothing is in hand."""
    if request.cancel_requested:
        return
    request.cancel_requested = True
    request.updated_at = now
    add_event(session, request.id, "cancel_requested", now)
    _stop_steps(session, request.id, in_hand_too=False)
    _stop_waiting_shards(session, request.id)
    stop_if_idle(session, request, now)


def _stop_steps(session: Session, request_id: str, *, in_hand_too: bool) -> None:
    """Stop the open steps, but for those after a failure, which stay WAITING."""
    open_steps = Step.status.in_(_OPEN)
    idle = and_(open_steps, or_(Step.status != StepStatus.RUNNING, Step.in_hand.is_(False)))
    move_steps_in_bulk(
        session,
        StepStatus.STOPPED,
        and_(
            Step.request_id == request_id,
            open_steps if in_hand_too else idle,
            _task_status() != StepStatus.FAILED,
        ),
    )
    follow_steps_in_bulk(
        session,
        and_(
            Task.request_id == request_id,
            Task.status.in_([StepStatus.READY, StepStatus.RUNNING]),
        ),
    )


def _stop_waiting_shards(session: Session, request_id: str) -> None:
    session.execute(
        update(Shard)
        .where(
            Shard.request_id == request_id,
            Shard.status.in_([ShardStatus.READY, ShardStatus.SUBMITTED]),
        )
        .values(status=ShardStatus.STOPPED)
    )


def _tasks_to_retry(session: Session, request: Request, wanted: ColumnElement[bool]) -> int:
    """How many tasks may be tried again.

    Raises:
        Conflict: none, or not now.
    """
    stopping = request.cancel_requested and request.status in LIVE_REQUESTS
    if stopping or request.status == RequestStatus.PUBLISHING_RESULTS:
        doing = "being cancelled" if stopping else "publishing its results"
        raise Conflict(f"Request {request.id} is {doing}: retry it when that is over.")
    if not request.n_tasks:
        raise Conflict(
            f"Request {request.id} is {request.status} and has no tasks to retry; "
            "submit it again under a new id."
        )
    ended_badly = Task.status.in_(_ENDED_BADLY)
    query = select(func.count()).where(Task.request_id == request.id, ended_badly, wanted)
    tasks = int(session.scalar(query) or 0)
    if not tasks:
        raise Conflict(
            f"Request {request.id} is {request.status}: none of its tasks failed or was stopped, "
            "so there is nothing to retry."
        )
    return tasks


def _task_status() -> ScalarSelect[StepStatus]:
    # Looked up by key for each step: a join would be planned by statistics that, right after
    # a large plan was written, know nothing of it.
    return select(Task.status).where(Task.id == Step.task_id).correlate(Step).scalar_subquery()


def _reset_tasks(session: Session, request_id: str, task_id: str | None) -> None:
    """The first step of each that is not FINISHED is READY, as if never tried; later ones wait.

    None of these steps is READY or RUNNING, so every change is one that the table has.
    """
    earlier = aliased(Step)
    first_open = (
        select(func.min(earlier.number))
        .where(earlier.task_id == Step.task_id, earlier.status != StepStatus.FINISHED)
        .correlate(Step)
        .scalar_subquery()
    )
    status = case(
        (Step.number == first_open, StepStatus.READY.value), else_=StepStatus.WAITING.value
    )
    session.execute(
        update(Step)
        .where(
            Step.request_id == request_id,
            Step.task_id == task_id if task_id is not None else true(),
            _task_status().in_(_ENDED_BADLY),
            Step.status != StepStatus.FINISHED,
        )
        .values(status=status, **RESET),
        execution_options={"synchronize_session": False},
    )
    follow_steps_in_bulk(
        session, and_(Task.request_id == request_id, Task.status.in_(_ENDED_BADLY))
    )


def _shards_again(session: Session, request_id: str, now: datetime) -> None:
    """Shards that are over, but have work again, get one more run."""
    with_work = set(
        session.scalars(
            select(Task.shard_key)
            .join(Step, Step.task_id == Task.id)
            .where(
                Step.request_id == request_id,
                Step.status == StepStatus.READY,
                Step.process_id != PUSH,
            )
            .distinct()
        )
    )
    query = select(Shard).where(
        Shard.request_id == request_id,
        Shard.status.in_([ShardStatus.SETTLED, ShardStatus.STOPPED]),
    )
    for shard in session.scalars(query.execution_options(populate_existing=True)):
        if shard.key in with_work:
            shard_again(shard, now)
        else:
            move_shard(shard, ShardStatus.SETTLED)
