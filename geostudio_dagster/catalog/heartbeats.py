"""Signs of life of runs: what tells a slow run from a dead one."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, exists, literal

from geostudio_dagster.catalog.changes import insert_into
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.schema import Request, RunLease

_PLANNER = "plan:"


def planner_lease(request_id: str) -> str:
    """Under which name somebody holds the planning of a request, as runs hold steps."""
    return f"{_PLANNER}{request_id}"


def planner_holds(now: datetime) -> ColumnElement[bool]:
    """Whether somebody holds the planning of the enclosing statement's request."""
    holds = RunLease.run_id == literal(_PLANNER) + Request.id
    return exists().where(holds, RunLease.lease_until > now).correlate(Request)


class Heartbeats(Database):
    """The leases of whole runs, beside those of the steps that they hold."""

    def keep_alive(self, run_id: str, lease_s: float, now: datetime | None = None) -> None:
        """Note that a run is alive and will say so again within ``lease_s`` seconds."""
        until = (now or utc_now()) + timedelta(seconds=lease_s)
        with self._write() as session:
            # Two processes of a run may give its first sign of life at the same time.
            row = insert_into(session, RunLease.__table__).values(run_id=run_id, lease_until=until)
            session.execute(
                row.on_conflict_do_update(index_elements=["run_id"], set_={"lease_until": until})
            )

    def run_lease(self, run_id: str) -> datetime | None:
        """Until when the run is known to be alive; None if it never gave a sign of life."""
        with self._read() as session:
            row = session.get(RunLease, run_id)
            return row.lease_until if row is not None else None

    def forget_leases(self, before: datetime) -> None:
        """Remove leases that ran out before a time: their runs are over, one way or another."""
        with self._write() as session:
            session.execute(delete(RunLease).where(RunLease.lease_until < before))
