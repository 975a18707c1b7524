"""Shards: handed to runs, and taken back from runs that ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.changes import (
    chunks,
    lock_request,
    lock_requests_of_run,
    lock_shard,
    move_request,
    move_shard,
    stop_if_idle,
)
from geostudio_dagster.catalog.conclusions import conclude_shard, hand_back, held_steps
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.heartbeats import planner_holds
from geostudio_dagster.catalog.records import Settlement, ShardRecord
from geostudio_dagster.catalog.rows import shard_record
from geostudio_dagster.catalog.schema import Request, Shard, Step, Task
from geostudio_dagster.catalog.states import (
    LIVE_SHARDS,
    RequestStatus,
    ShardStatus,
    StepStatus,
)
from geostudio_dagster.errors import Conflict, NotFound


class Dispatch(Database):
    """The catalog's shards."""

    def shards_to_dispatch(
        self, now: datetime, limit: int, request_id: str | None = None
    ) -> list[ShardRecord]:
        """READY shards that are due, of one request or of all that no planner holds.

        The highest priority comes first, then the oldest request. Who planned a request outside
        of Dagster launches it, too.
        """
        query = (
            select(Shard)
            .join(Request, Request.id == Shard.request_id)
            .where(
                Shard.status == ShardStatus.READY,
                Shard.not_before <= now,
                Request.status.in_([RequestStatus.SUBMITTED, RequestStatus.RUNNING]),
                Request.cancel_requested.is_(False),
            )
            .order_by(Shard.priority.desc(), Request.created_at, Request.id, Shard.number)
            .limit(limit)
        )
        if request_id is None:
            query = query.where(~planner_holds(now))
        else:
            query = query.where(Shard.request_id == request_id)
        with self._read() as session:
            return [shard_record(row) for row in session.scalars(query)]

    def mark_submitted(self, keys: Sequence[str], now: datetime) -> list[str]:
        """Note that runs of these shards are asked for; those of them that were still READY.

        Of several who do so for a shard, one is told of it: that one is to ask for its run. A
        shard whose run has begun already, or that was stopped meanwhile, stays as it is.
        """
        changed: list[str] = []
        with self._write() as session:
            owners = select(Shard.request_id).where(Shard.key.in_(keys)).distinct()
            for request_id in sorted(session.scalars(owners)):
                lock_request(session, request_id)
            for part in chunks(keys):
                statement = (
                    update(Shard)
                    .where(Shard.key.in_(part), Shard.status == ShardStatus.READY)
                    .values(status=ShardStatus.SUBMITTED, submitted_at=now)
                    .returning(Shard.key)
                )
                changed += session.scalars(
                    statement, execution_options={"synchronize_session": False}
                )
        return changed

    def begin_shard_run(
        self, shard_key: str, run_id: str, now: datetime | None = None
    ) -> ShardRecord:
        """Note that a run works on the shard; its request is RUNNING.

        Nothing changes where the shard is SETTLED, or where another run still holds tasks of
        it under a lease: that one goes on answering for the shard.

        Raises:
            Conflict: the shard was stopped or its request cancelled.
            NotFound: there is no such shard.
        """
        now = now or utc_now()
        with self._write() as session:
            request, shard = lock_shard(session, shard_key)
            if request.cancel_requested or shard.status == ShardStatus.STOPPED:
                raise Conflict(
                    f"Shard {shard_key} is not to run: its request was stopped; "
                    "retry the request first."
                )
            if shard.status == ShardStatus.SETTLED or _is_held(session, shard, run_id, now):
                return shard_record(shard)
            move_shard(shard, ShardStatus.RUNNING)
            shard.run_id = run_id
            if request.status == RequestStatus.SUBMITTED:
                move_request(session, request, RequestStatus.RUNNING, now)
            return shard_record(shard)

    def settle_shard(
        self, shard_key: str, run_id: str, now: datetime, retry_delay_s: float
    ) -> Settlement:
        """Close a run of the shard: the shard is SETTLED if no task needs more work.

        Tasks that are left make it READY again with the next attempt, after a delay that
        doubles with each. Where another run answers for the shard, that is left to it. When
        every shard is settled, the request is PUBLISHING_RESULTS.

        Raises:
            NotFound: there is no such shard.
        """
        with self._write() as session:
            request, shard = lock_shard(session, shard_key)
            hand_back(session, request, held_steps(session, run_id, request.id), crashed=False)
            answers = shard.status == ShardStatus.RUNNING and shard.run_id == run_id
            return conclude_shard(
                session, request, shard, now, retry_delay_s, again=answers, settles=True
            )

    def shard_run_ended(
        self, shard_key: str, run_id: str, now: datetime, retry_delay_s: float
    ) -> Settlement:
        """Reconcile a shard with a run that is over: what it held is free, the rest is redone.

        The shard is READY for another run even if every step of it is done: only a run that
        closes it itself has packaged its results.

        For a SUBMITTED shard ``run_id`` is that of the run that never began (or empty, where
        there is none); a run that is not the one that answers for the shard changes nothing
        but its own leases.

        Raises:
            NotFound: there is no such shard.
        """
        with self._write() as session:
            request, shard = lock_shard(session, shard_key)
            hand_back(session, request, held_steps(session, run_id, request.id), crashed=True)
            # A SUBMITTED shard still names the run before: only another run can be the new one.
            responsible = {
                ShardStatus.RUNNING: shard.run_id == run_id,
                ShardStatus.SUBMITTED: shard.run_id != run_id,
            }
            answers = responsible.get(shard.status, False)
            return conclude_shard(
                session, request, shard, now, retry_delay_s, again=answers, settles=False
            )

    def release(self, run_id: str, *, crashed: bool = True) -> int:
        """Free the steps that a run holds: READY again, or STOPPED if cancelled; how many.

        Args:
            run_id: a run that is over, or about to end.
            crashed: whether it died, which counts against the step that it had in hand.
        """
        freed = 0
        now = utc_now()
        with self._write() as session:
            for request in lock_requests_of_run(session, run_id):
                steps = held_steps(session, run_id, request.id)
                hand_back(session, request, steps, crashed=crashed)
                stop_if_idle(session, request, now)
                freed += len(steps)
        return freed

    def live_shards(self) -> list[ShardRecord]:
        """The SUBMITTED and RUNNING shards, which must have a live run each."""
        query = select(Shard).where(Shard.status.in_(LIVE_SHARDS)).order_by(Shard.key)
        with self._read() as session:
            return [shard_record(row) for row in session.scalars(query)]

    def shard(self, shard_key: str) -> ShardRecord:
        """The shard.

        Raises:
            NotFound: there is none.
        """
        with self._read() as session:
            row = session.get(Shard, shard_key)
            if row is None:
                raise NotFound(f"There is no shard {shard_key}.")
            return shard_record(row)

    def shards(self, request_id: str) -> list[ShardRecord]:
        """The request's shards in order; none for a request that is unknown or not planned."""
        query = select(Shard).where(Shard.request_id == request_id).order_by(Shard.number)
        with self._read() as session:
            return [shard_record(row) for row in session.scalars(query)]


def _is_held(session: Session, shard: Shard, run_id: str, now: datetime) -> bool:
    """Whether the run that answers for the shard is another one, and alive as far as one sees."""
    if shard.status != ShardStatus.RUNNING or shard.run_id == run_id:
        return False
    holding = (
        select(Step.task_id)
        .join(Task, Task.id == Step.task_id)
        .where(
            Task.shard_key == shard.key,
            Step.run_id == shard.run_id,
            Step.status == StepStatus.RUNNING,
            Step.lease_until > now,
        )
    )
    return session.scalar(holding.limit(1)) is not None
