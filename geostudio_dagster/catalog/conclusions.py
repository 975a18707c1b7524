"""How work ends: leases given back, shards settled, requests over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.changes import (
    add_event,
    chunks,
    follow_steps_in_bulk,
    move_request,
    move_shard,
    move_step,
    shard_again,
    stop_if_idle,
)
from geostudio_dagster.catalog.records import Settlement
from geostudio_dagster.catalog.schema import Request, Shard, Step, Task
from geostudio_dagster.catalog.states import (
    PUSH,
    RequestStatus,
    ShardStatus,
    StepStatus,
)

_LONGEST_DELAY_S = 3600.0
_MOST_DOUBLINGS = 16


def backoff(now: datetime, delay_s: float, attempt: int) -> datetime:
    """When to try again after ``attempt`` tries: the delay doubles, up to an hour."""
    delay = min(delay_s * 2 ** min(attempt, _MOST_DOUBLINGS), _LONGEST_DELAY_S)
    return now + timedelta(seconds=delay)


def held_steps(session: Session, run_id: str, request_id: str) -> Sequence[Step]:
    """The steps of the request's shards that a run holds (its publication aside)."""
    query = select(Step).where(
        Step.run_id == run_id,
        Step.status == StepStatus.RUNNING,
        Step.request_id == request_id,
        Step.process_id != PUSH,
    )
    return session.scalars(query.execution_options(populate_existing=True)).all()


def hand_back(session: Session, request: Request, steps: Sequence[Step], *, crashed: bool) -> None:
    """Free steps that a run held: READY again, or STOPPED where the request was cancelled."""
    target = StepStatus.STOPPED if request.cancel_requested else StepStatus.READY
    for step in steps:
        if crashed and step.in_hand:
            step.crashes += 1
        move_step(step, target)
    for part in chunks([step.task_id for step in steps]):
        follow_steps_in_bulk(session, Task.id.in_(part))


def conclude_shard(
    session: Session,
    request: Request,
    shard: Shard,
    now: datetime,
    retry_delay_s: float,
    *,
    again: bool,
    settles: bool,
) -> Settlement:
    """Settle the shard if ``settles`` and its work is done; else, if ``again``, make it READY."""
    session.flush()
    settlement, free_at = _stand(session, shard, now)
    if request.cancel_requested:
        if shard.status != ShardStatus.SETTLED and not settlement.held_elsewhere:
            move_shard(shard, ShardStatus.STOPPED)
        stop_if_idle(session, request, now)
        return settlement
    if shard.status in (ShardStatus.SETTLED, ShardStatus.STOPPED):
        return settlement
    if settlement.waiting or settlement.held_elsewhere or not settles:
        if again:
            retry_at = max(backoff(now, retry_delay_s, shard.attempt), free_at)
            shard_again(shard, retry_at)
            add_event(
                session, request.id, "shard_deferred", now, shard=shard.key, attempt=shard.attempt
            )
        ready = shard.status == ShardStatus.READY
        return replace(settlement, retry_at=shard.not_before if ready else None)
    move_shard(shard, ShardStatus.SETTLED)
    add_event(
        session,
        request.id,
        "shard_settled",
        now,
        shard=shard.key,
        finished=settlement.finished,
        failed=settlement.failed,
    )
    _publish_if_settled(session, request, now)
    return settlement


def _stand(session: Session, shard: Shard, now: datetime) -> tuple[Settlement, datetime]:
    """The shard's tasks in figures, and when the last foreign lease ends."""
    states = select(Task.status, func.count()).where(Task.shard_key == shard.key)
    counts = dict(session.execute(states.group_by(Task.status)).tuples().all())
    # At most one step of a task is READY or RUNNING: the one that comes next.
    query = (
        select(Step)
        .join(Task, Task.id == Step.task_id)
        .where(
            Task.shard_key == shard.key,
            Step.process_id != PUSH,
            Step.status.in_([StepStatus.READY, StepStatus.RUNNING]),
        )
    )
    open_steps = session.scalars(query).all()
    leases = [
        step.lease_until
        for step in open_steps
        if step.status == StepStatus.RUNNING and step.lease_until and step.lease_until > now
    ]
    failed = counts.get(StepStatus.FAILED, 0)
    stopped = counts.get(StepStatus.STOPPED, 0)
    settlement = Settlement(
        finished=shard.n_tasks - failed - stopped - len(open_steps),
        failed=failed,
        stopped=stopped,
        waiting=len(open_steps) - len(leases),
        held_elsewhere=len(leases),
        retry_at=None,
    )
    return settlement, max(leases, default=now)


def _publish_if_settled(session: Session, request: Request, now: datetime) -> None:
    session.flush()
    query = select(func.count()).where(
        Shard.request_id == request.id, Shard.status != ShardStatus.SETTLED
    )
    if session.scalar(query):
        return
    if request.status == RequestStatus.SUBMITTED:
        move_request(session, request, RequestStatus.RUNNING, now)
    if request.status == RequestStatus.RUNNING:
        enter_publication(session, request, now)


def enter_publication(session: Session, request: Request, now: datetime) -> None:
    """The request's results are to be published, by a run of a new key."""
    move_request(session, request, RequestStatus.PUBLISHING_RESULTS, now)
    request.publish_attempt += 1
    request.publish_failures = 0
    request.publish_run_id = None
    request.publish_not_before = now


def conclude_request(session: Session, request: Request, now: datetime) -> None:
    """Give a published request the status that its tasks make."""
    session.flush()
    if request.cancel_requested:
        stop_if_idle(session, request, now)
        return
    states = select(Task.status, func.count()).where(Task.request_id == request.id)
    counts = dict(session.execute(states.group_by(Task.status)).tuples().all())
    finished = counts.get(StepStatus.FINISHED, 0)
    if finished == request.n_tasks:
        move_request(session, request, RequestStatus.COMPLETED, now)
    elif finished:
        error = f"{request.n_tasks - finished} of {request.n_tasks} tasks did not succeed."
        move_request(session, request, RequestStatus.COMPLETED_WITH_ERRORS, now, error)
    else:
        first = session.scalar(
            select(Task.error)
            .where(Task.request_id == request.id, Task.error.isnot(None))
            .order_by(Task.number)
            .limit(1)
        )
        error = f"None of the {request.n_tasks} tasks succeeded; the first says: {first}"
        move_request(session, request, RequestStatus.FAILED, now, error)
