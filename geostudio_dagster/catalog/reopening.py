"""One stage of a shard done once more, on an operator's wish."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.changes import (
    add_event,
    chunks,
    follow_steps_in_bulk,
    lock_shard,
    move_request,
    move_shard,
    move_steps_in_bulk,
    reset_step,
)
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.schema import Reopening, Request, Shard, Step, Task
from geostudio_dagster.catalog.states import PUSH, RequestStatus, ShardStatus, StepStatus
from geostudio_dagster.errors import Conflict


class Reopenings(Database):
    """The catalog's answer to a re-materialisation."""

    def reopen(
        self, shard_key: str, process_id: str, run_id: str, now: datetime | None = None
    ) -> int:
        """Make the shard's tasks do this step and all later ones again; how many tasks.

        Tasks that have not come to this step are left alone. A run reopens a shard once: what
        its later stages ask for is part of that already. The layer follows, because the
        request is published anew when the shard is settled. A run that Dagster starts in place
        of another should pass the first one's id.

        Raises:
            Conflict: the request was stopped.
            NotFound: there is no such shard.
            ValueError: the step is not one that shards do.
        """
        if process_id == PUSH:
            raise ValueError(f"{PUSH} is done for whole requests, not for shards")
        now = now or utc_now()
        with self._write() as session:
            request, shard = lock_shard(session, shard_key)
            if request.cancel_requested or shard.status == ShardStatus.STOPPED:
                raise Conflict(
                    f"Shard {shard_key} cannot be done again: its request was stopped; "
                    "retry the request first."
                )
            if session.get(Reopening, (shard_key, run_id)) is not None:
                return 0
            session.add(
                Reopening(shard_key=shard_key, run_id=run_id, process_id=process_id, at=now)
            )
            tasks = _reset_from(_steps_by_task(session, shard_key), process_id)
            if tasks:
                _revive(session, request, shard, run_id, now)
                for part in chunks(tasks):
                    follow_steps_in_bulk(session, Task.id.in_(part))
                add_event(
                    session,
                    request.id,
                    "reopened",
                    now,
                    shard=shard_key,
                    process_id=process_id,
                    tasks=len(tasks),
                )
            return len(tasks)


def _steps_by_task(session: Session, shard_key: str) -> list[list[Step]]:
    query = (
        select(Step)
        .join(Task, Task.id == Step.task_id)
        .where(Task.shard_key == shard_key)
        .order_by(Task.number, Step.number)
    )
    steps: dict[str, list[Step]] = {}
    for step in session.scalars(query.execution_options(populate_existing=True)):
        steps.setdefault(step.task_id, []).append(step)
    return list(steps.values())


def _reset_from(tasks: Sequence[Sequence[Step]], process_id: str) -> list[str]:
    reset = []
    for steps in tasks:
        place = next((i for i, step in enumerate(steps) if step.process_id == process_id), None)
        if place is None or any(step.status != StepStatus.FINISHED for step in steps[:place]):
            continue
        if steps[place].status == StepStatus.READY:  # is to be done anyway
            continue
        reset_step(steps[place], StepStatus.READY)
        for later in steps[place + 1 :]:
            reset_step(later, StepStatus.WAITING)
        reset.append(steps[place].task_id)
    return reset


def _revive(session: Session, request: Request, shard: Shard, run_id: str, now: datetime) -> None:
    move_shard(shard, ShardStatus.RUNNING)
    shard.run_id = run_id
    if request.status != RequestStatus.RUNNING:
        move_request(session, request, RequestStatus.RUNNING, now)
    # A publication under way shows what is being replaced: it is to start over.
    request.publish_run_id = None
    move_steps_in_bulk(
        session,
        StepStatus.READY,
        and_(
            Step.request_id == request.id,
            Step.process_id == PUSH,
            Step.status == StepStatus.RUNNING,
        ),
    )
