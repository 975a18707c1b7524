"""How much there is to do, for those who watch the platform."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from geostudio_dagster.catalog.database import Database
from geostudio_dagster.catalog.schema import Request, Shard, Step, Task
from geostudio_dagster.catalog.states import (
    PREDICTION,
    RequestStatus,
    ShardStatus,
    StepStatus,
)

_WAITING = (ShardStatus.READY, ShardStatus.SUBMITTED)
_AT_WORK = (RequestStatus.SUBMITTED, RequestStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class Figures:
    """The state of the work.

    Attributes:
        requests, tasks: how many, by status; deleted requests count until they are removed.
        waiting_shards: how many shards wait for a run, or for their run to begin.
        oldest_wait_s: for how long the first of them could have run.
        pixels: predicted so far, of all requests that there are.
    """

    requests: Mapping[str, int]
    tasks: Mapping[str, int]
    waiting_shards: int
    oldest_wait_s: float
    pixels: int


class Gauges(Database):
    """The catalog in figures."""

    def figures(self, now: dt.datetime) -> Figures:
        """Counts over everything: some tenths of a second where there are millions of tasks."""
        waiting = (
            select(func.count(), func.min(Shard.not_before))
            .join(Request, Request.id == Shard.request_id)
            .where(
                Shard.status.in_(_WAITING),
                Shard.not_before <= now,
                Request.status.in_(_AT_WORK),
                Request.cancel_requested.is_(False),
            )
        )
        done = select(func.sum(Step.pixels)).where(
            Step.process_id == PREDICTION, Step.status == StepStatus.FINISHED
        )
        requests = select(Request.status, func.count()).group_by(Request.status)
        tasks = select(Task.status, func.count()).group_by(Task.status)
        with self._read() as session:
            by_status = dict(session.execute(requests).tuples().all())
            tasks_by_status = dict(session.execute(tasks).tuples().all())
            number, oldest = session.execute(waiting).tuples().one()
            pixels = session.scalar(done)
        return Figures(
            requests={status.value: by_status.get(status, 0) for status in RequestStatus},
            tasks={status.value: tasks_by_status.get(status, 0) for status in StepStatus},
            waiting_shards=number,
            oldest_wait_s=(now - oldest).total_seconds() if oldest else 0.0,
            pixels=int(pixels or 0),
        )
