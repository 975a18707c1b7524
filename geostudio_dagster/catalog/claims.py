"""Steps: claimed under a lease by one run, worked, and ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from geostudio_dagster.catalog.artifacts import forget_artifacts, upsert_artifacts
from geostudio_dagster.catalog.changes import (
    add_event,
    error_text,
    follow_steps,
    lock_requests_of_run,
    lock_shard,
    lock_task,
    move_request,
    move_step,
    reset_step,
    rows_changed,
    stop_if_idle,
)
from geostudio_dagster.catalog.database import Database, utc_now
from geostudio_dagster.catalog.records import ArtifactRecord, TaskRecord
from geostudio_dagster.catalog.rows import task_records
from geostudio_dagster.catalog.schema import Request, Step, Task
from geostudio_dagster.catalog.states import PUSH, RequestStatus, StepStatus
from geostudio_dagster.errors import LeaseLost, NotFound, TaskError

MAX_CRASHES = 10


class Claims(Database):
    """The catalog's steps."""

    def claim(
        self,
        shard_key: str,
        process_id: str,
        run_id: str,
        lease_s: float,
        now: datetime | None = None,
        *,
        max_crashes: int = MAX_CRASHES,
    ) -> list[TaskRecord]:
        """Take every task of the shard whose step can be worked now; each goes to one run only.

        These are the steps that are READY, those whose run let its lease run out, and those
        that this run holds already. A step that a lost run had in hand counts one crash more;
        past ``max_crashes`` it fails. A cancelled request yields nothing.

        Returns:
            the tasks, those with fewest crashes first, then in the order of the plan.

        Raises:
            NotFound: there is no such shard.
        """
        now = now or utc_now()
        with self._write() as session:
            request, _ = lock_shard(session, shard_key)
            if request.cancel_requested or process_id == PUSH:
                return []
            held = []
            for step, task in _claimable(session, shard_key, process_id, run_id, now):
                _count_crash(step)
                if step.crashes > max_crashes:
                    _fail_dying(session, task, step, now)
                    continue
                move_step(step, StepStatus.RUNNING)
                step.in_hand = False
                step.run_id = run_id
                step.lease_until = now + timedelta(seconds=lease_s)
                task.status = StepStatus.RUNNING
                held.append((step.crashes, task.number, task))
            if held and request.status == RequestStatus.SUBMITTED:
                move_request(session, request, RequestStatus.RUNNING, now)
            session.flush()
            return task_records(session, [task for _, _, task in sorted(held, key=_by_crashes)])

    def extend_leases(self, run_id: str, lease_s: float, now: datetime | None = None) -> int:
        """Keep what the run holds for another ``lease_s`` seconds; how many steps that are."""
        until = (now or utc_now()) + timedelta(seconds=lease_s)
        with self._write() as session:
            # The locks keep this from meeting, step by step, a cancellation of the same steps.
            lock_requests_of_run(session, run_id)
            statement = update(Step).where(
                Step.run_id == run_id,
                Step.status == StepStatus.RUNNING,
                Step.process_id != PUSH,
            )
            return rows_changed(session.execute(statement.values(lease_until=until)))

    def start_step(
        self, task_id: str, process_id: str, run_id: str, now: datetime | None = None
    ) -> bool:
        """Take a claimed step in hand, right before its work; False if it is not to be worked.

        That is when the request was cancelled or another run took the step over. Only a step
        in hand counts a crash when its process dies.
        """
        not_cancelled = (
            select(Request.id)
            .where(Request.id == Step.request_id, Request.cancel_requested.is_(False))
            .exists()
        )
        statement = (
            update(Step)
            .where(
                Step.task_id == task_id,
                Step.process_id == process_id,
                Step.run_id == run_id,
                Step.status == StepStatus.RUNNING,
                not_cancelled,
            )
            .values(in_hand=True, started_at=now or utc_now())
        )
        with self._write() as session:
            result = session.execute(statement, execution_options={"synchronize_session": False})
            return rows_changed(result) == 1

    def finish_step(
        self,
        task_id: str,
        process_id: str,
        run_id: str,
        artifacts: Sequence[ArtifactRecord] = (),
        metrics: Mapping[str, Any] | None = None,
        *,
        replaces: str = "",
        now: datetime | None = None,
    ) -> list[str]:
        """End a step with its results: the next one is READY, or the task is FINISHED.

        The metrics ``pixels`` and ``seconds`` of the prediction make up the model's speed. With
        ``replaces``, artifacts whose role begins so and is not among the new ones are forgotten.

        Returns:
            the storage keys of the files that were forgotten.

        Raises:
            LeaseLost: the run does not hold the step any more; nothing is written.
            NotFound: there is no such task or step.
        """
        now = now or utc_now()
        with self._write() as session:
            request, task, steps = lock_task(session, task_id)
            step = _held_step(steps, task_id, process_id, run_id)
            move_step(step, StepStatus.FINISHED)
            step.attempts += 1
            step.finished_at = now
            step.error_code = step.error = None
            _keep_metrics(task, step, metrics or {})
            forgotten = forget_artifacts(session, task_id, replaces, artifacts)
            upsert_artifacts(session, request.id, artifacts)
            following = steps[steps.index(step) + 1 :]
            if following and following[0].status == StepStatus.WAITING:
                move_step(following[0], StepStatus.READY)
            follow_steps(task, steps)
            if all(later.process_id == PUSH for later in following):
                add_event(session, request.id, "task_finished", now, task_id=task_id)
            stop_if_idle(session, request, now)
            return forgotten

    def fail_step(
        self,
        task_id: str,
        process_id: str,
        run_id: str,
        error: TaskError,
        max_attempts: int,
        *,
        now: datetime | None = None,
    ) -> StepStatus:
        """End a step with an error: READY again if it is worth another try, else FAILED.

        In a cancelled request it is STOPPED instead of READY.

        Raises:
            LeaseLost: the run does not hold the step any more; nothing is written.
            NotFound: there is no such task or step.
        """
        now = now or utc_now()
        with self._write() as session:
            request, task, steps = lock_task(session, task_id)
            step = _held_step(steps, task_id, process_id, run_id)
            step.attempts += 1
            step.error_code = error.code
            step.error = error_text(str(error))
            if not error.retryable or step.attempts >= max_attempts:
                move_step(step, StepStatus.FAILED)
                step.finished_at = now
                _task_failed(session, task, step, now)
            else:
                again = StepStatus.STOPPED if request.cancel_requested else StepStatus.READY
                move_step(step, again)
            follow_steps(task, steps)
            stop_if_idle(session, request, now)
            return step.status

    def reject_results(self, task_id: str, error: TaskError, now: datetime | None = None) -> None:
        """Take back what a task's stages made: the last one before its layer is FAILED after all.

        Nothing changes where that stage is not FINISHED (any more).

        Raises:
            NotFound: there is no such task.
        """
        now = now or utc_now()
        with self._write() as session:
            _, task, steps = lock_task(session, task_id)
            *_, last = (step for step in steps if step.process_id != PUSH)
            if last.status != StepStatus.FINISHED:
                return
            move_step(last, StepStatus.FAILED)
            last.error_code = error.code
            last.error = error_text(str(error))
            last.finished_at = now
            for later in steps[steps.index(last) + 1 :]:
                reset_step(later, StepStatus.WAITING)
            follow_steps(task, steps)
            _task_failed(session, task, last, now)


def _claimable(
    session: Session, shard_key: str, process_id: str, run_id: str, now: datetime
) -> list[tuple[Step, Task]]:
    free = or_(
        Step.status == StepStatus.READY,
        and_(
            Step.status == StepStatus.RUNNING,
            or_(Step.run_id == run_id, Step.lease_until <= now),
        ),
    )
    query = (
        select(Step, Task)
        .join(Task, Task.id == Step.task_id)
        .where(Task.shard_key == shard_key, Step.process_id == process_id, free)
        .order_by(Task.number)
        .execution_options(populate_existing=True)
    )
    return [(step, task) for step, task in session.execute(query)]


def _by_crashes(item: tuple[int, int, Task]) -> tuple[int, int]:
    return item[:2]


def _count_crash(step: Step) -> None:
    if step.status == StepStatus.RUNNING and step.in_hand:
        step.crashes += 1


def _fail_dying(session: Session, task: Task, step: Step, now: datetime) -> None:
    move_step(step, StepStatus.FAILED)
    step.finished_at = now
    step.error_code = "process_died"
    step.error = (
        f"The process died {step.crashes} times while working on it; "
        "look for too little memory in the run's log, then retry the request."
    )
    task.status = StepStatus.FAILED
    _task_failed(session, task, step, now)


def _task_failed(session: Session, task: Task, step: Step, now: datetime) -> None:
    task.error = step.error
    add_event(
        session,
        task.request_id,
        "task_failed",
        now,
        task_id=task.id,
        process_id=step.process_id,
        code=step.error_code,
        error=step.error,
    )


def _held_step(steps: Sequence[Step], task_id: str, process_id: str, run_id: str) -> Step:
    step = next((step for step in steps if step.process_id == process_id), None)
    if step is None:
        raise NotFound(f"Task {task_id} has no step {process_id}.")
    if step.status == StepStatus.RUNNING and step.run_id == run_id:
        return step
    now_is = f"run {step.run_id} holds it" if step.status == StepStatus.RUNNING else step.status
    raise LeaseLost(
        f"Run {run_id} lost step {process_id} of task {task_id} (now: {now_is}); "
        "its result is dropped."
    )


def _keep_metrics(task: Task, step: Step, metrics: Mapping[str, Any]) -> None:
    pixels, seconds = metrics.get("pixels"), metrics.get("seconds")
    step.metrics = dict(metrics)
    step.seconds = float(seconds) if isinstance(seconds, int | float) else None
    step.pixels = int(pixels) if isinstance(pixels, int | float) else task.pixels
    if task.pixels is None:
        task.pixels = step.pixels
