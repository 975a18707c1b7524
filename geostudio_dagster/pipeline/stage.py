"""The loop every stage shares: claim, work, commit, record; one bad task costs itself only."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from geostudio_dagster.catalog import ArtifactRecord, StepStatus, TaskRecord
from geostudio_dagster.errors import Cancelled, LeaseLost, TaskError
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.memory import is_out_of_memory
from geostudio_dagster.pipeline import steplog
from geostudio_dagster.storage import task_key

log = logging.getLogger(__name__)

_CANCEL_POLL_S = 2.0


@dataclass(frozen=True, slots=True)
class ProducedFile:
    """A finished file in scratch: its role, its final name and what is worth telling of it."""

    role: str
    path: Path
    name: str
    media_type: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step made: files to commit, artifacts that already lie elsewhere, and figures.

    ``metrics`` is kept with the step; ``pixels`` and ``seconds`` in it feed the estimates. What an
    earlier try of the step left in roles that begin with ``replaces`` goes.
    """

    files: Sequence[ProducedFile] = ()
    external: Sequence[ArtifactRecord] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class WorkContext:
    """What the work on one task may use besides the task: scratch space and the stop sign."""

    installation: Installation
    scratch: Path
    run_id: str
    cancelled: Callable[[], bool]


Work = Callable[[TaskRecord, WorkContext], StepOutput]


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How one task fared in one stage; ``error`` is the sentence that its user reads."""

    task: TaskRecord
    state: str  # finished, failed, retry, cancelled, lost
    artifacts: tuple[ArtifactRecord, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StageReport:
    """All outcomes of one stage of one shard, in task order, and the wall time in seconds."""

    outcomes: tuple[TaskOutcome, ...]
    seconds: float

    def count(self, state: str) -> int:
        """How many tasks ended in ``state``."""
        return sum(outcome.state == state for outcome in self.outcomes)

    def total(self, metric: str) -> float:
        """Sum of a numeric metric over the finished tasks."""
        return float(sum(outcome.metrics.get(metric, 0) or 0 for outcome in self.outcomes))

    def followed_by(self, later: StageReport) -> StageReport:
        """Both as one: how each task fared in the later stage, or in this one if it ended there."""
        reached = {outcome.task.id for outcome in later.outcomes}
        before = (outcome for outcome in self.outcomes if outcome.task.id not in reached)
        return StageReport((*before, *later.outcomes), self.seconds + later.seconds)

    @property
    def finished(self) -> tuple[TaskOutcome, ...]:
        """The outcomes that left artifacts."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "finished")


def now() -> dt.datetime:
    """The current time, UTC."""
    return dt.datetime.now(dt.UTC)


def run_stage(
    installation: Installation,
    shard_key: str,
    run_id: str,
    process_id: str,
    work: Work,
    *,
    workers: int = 1,
) -> StageReport:
    """Do one stage for every task of the shard that still needs it, ``workers`` at a time.

    A task that fails is recorded and never raised; only the catalog or the storage being out
    of order ends the stage early.
    """
    started = time.monotonic()
    shards = installation.settings.shards
    with heartbeat(installation, run_id):
        tasks = installation.catalog.claim(
            shard_key,
            process_id,
            run_id,
            shards.lease_s,
            now(),
            max_crashes=shards.max_crashes,
        )
        stop = _StopSign(installation, shard_key.split("/", maxsplit=1)[0])
        run = _StageRun(installation, process_id, run_id, work, stop)
        # What a process died with last time goes alone, after the rest: else whoever happens to
        # be worked beside it would count as having killed the process as well.
        together = [task for task in tasks if workers > 1 and not task.step(process_id).crashes]
        outcomes = [*run.side_by_side(together, workers)]
        outcomes += map(run.do, tasks[len(together) :])
    return StageReport(tuple(outcomes), time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _StageRun:
    """One stage in one run; does task after task."""

    installation: Installation
    process_id: str
    run_id: str
    work: Work
    stop: _StopSign

    def side_by_side(self, tasks: Sequence[TaskRecord], workers: int) -> list[TaskOutcome]:
        """Work so many tasks at a time; an interruption ends those under way, too."""
        with ThreadPoolExecutor(workers, thread_name_prefix=self.process_id) as pool:
            try:
                return list(pool.map(self.do, tasks))
            except BaseException:
                self.stop.now()
                raise

    def do(self, task: TaskRecord) -> TaskOutcome:
        """Work one task and record how it ended."""
        if self.stop():
            return TaskOutcome(task, "cancelled")
        if not self.installation.catalog.start_step(task.id, self.process_id, self.run_id):
            return TaskOutcome(task, "lost", error="Another run took this task over.")
        key = steplog.step_log_key(task.request_id, task.id, self.process_id)
        with steplog.recording(self.installation.storage, key, self._header(task)):
            outcome = self._attempt(task)
            _tell(outcome)
        return outcome

    def _header(self, task: TaskRecord) -> str:
        step = task.step(self.process_id)
        attempt = step.attempts + step.crashes + 1
        return f"{self.process_id}, attempt {attempt}, run {self.run_id}, {now():%F %T} UTC"

    def _attempt(self, task: TaskRecord) -> TaskOutcome:
        storage = self.installation.storage
        scratch_name = f"{task.id}-{self.process_id}"
        try:
            return self._work(task, storage.scratch(scratch_name, self.run_id))
        except Cancelled:
            return TaskOutcome(task, "cancelled")
        except LeaseLost as error:
            return TaskOutcome(task, "lost", error=str(error))
        except SQLAlchemyError:
            raise  # the catalog is out of order, which is no fault of the task
        except Exception as error:
            return self._record(task, self._as_task_error(task, error))
        finally:
            storage.discard_scratch(scratch_name, self.run_id)

    def _work(self, task: TaskRecord, scratch: Path) -> TaskOutcome:
        output = self.work(task, WorkContext(self.installation, scratch, self.run_id, self.stop))
        committed = [self._commit(task, file) for file in output.files]
        artifacts = (*committed, *output.external)
        forgotten = self.installation.catalog.finish_step(
            task.id,
            self.process_id,
            self.run_id,
            artifacts,
            output.metrics,
            replaces=output.replaces,
        )
        for key in forgotten:
            self.installation.storage.delete(key)
        return TaskOutcome(task, "finished", artifacts, output.metrics)

    def _commit(self, task: TaskRecord, file: ProducedFile) -> ArtifactRecord:
        key = task_key(task.request_id, task.id, file.name)
        stored = self.installation.storage.commit(file.path, key)
        return ArtifactRecord(
            owner_id=task.id,
            name=file.role,
            key=stored.key,
            media_type=file.media_type,
            size=stored.size,
            sha256=stored.sha256,
            metadata=dict(file.metadata),
        )

    def _as_task_error(self, task: TaskRecord, error: Exception) -> TaskError:
        """What the task's user reads; the traceback of a defect is for the operator."""
        if isinstance(error, TaskError):
            return error
        if isinstance(error, OSError):
            return TaskError("storage", f"Reading or writing failed: {error}.", retryable=True)
        log.error("task %s, step %s broke", task.id, self.process_id, exc_info=error)
        if is_out_of_memory(error):
            return TaskError(
                "out_of_memory",
                f"{self.process_id} ran out of memory on this task ({type(error).__name__}); give "
                "its run more, or let fewer run at a time.",
                retryable=True,
            )
        return TaskError(
            "internal",
            f"{self.process_id} broke on this task: {type(error).__name__}: {error}.",
        )

    def _record(self, task: TaskRecord, error: TaskError) -> TaskOutcome:
        try:
            status = self.installation.catalog.fail_step(
                task.id,
                self.process_id,
                self.run_id,
                error,
                self.installation.settings.shards.max_attempts,
            )
        except LeaseLost as lost:
            return TaskOutcome(task, "lost", error=str(lost))
        state = "failed" if status == StepStatus.FAILED else "retry"
        return TaskOutcome(task, state, error=str(error))


def _tell(outcome: TaskOutcome) -> None:
    """The last line of an attempt's log."""
    if outcome.state == "finished":
        files = [f"{a.name} ({a.size or 0} bytes)" for a in outcome.artifacts]
        message = f"finished: {', '.join(files) or 'nothing to keep'}"
    elif outcome.state == "retry":
        message = f"failed, to be tried again: {outcome.error}"
    else:
        message = f"{outcome.state}: {outcome.error}" if outcome.error else outcome.state
    log.info("%s", message, extra={"last_word": True})


class _StopSign:
    """Whether the request was cancelled, asked of the catalog at most every two seconds.

    Or whether the run itself is over, so that nothing else of it need be finished.
    """

    def __init__(self, installation: Installation, request_id: str) -> None:
        self._installation = installation
        self._request_id = request_id
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._answer = False

    def now(self) -> None:
        """Say yes from now on."""
        with self._lock:
            self._answer = True

    def __call__(self) -> bool:
        with self._lock:
            if not self._answer and time.monotonic() - self._asked_at >= _CANCEL_POLL_S:
                request = self._installation.catalog.request(self._request_id)
                self._answer = request.cancel_requested
                self._asked_at = time.monotonic()
            return self._answer


def sign_of_life(installation: Installation, run_id: str) -> None:
    """Tell the catalog that the run lives, and so holds what it holds."""
    lease_s = installation.settings.shards.lease_s
    installation.catalog.keep_alive(run_id, lease_s, now())
    installation.catalog.extend_leases(run_id, lease_s, now())


@contextmanager
def heartbeat(installation: Installation, run_id: str) -> Iterator[None]:
    """Keep the run's leases alive from a thread while the body works."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(installation.settings.shards.lease_s / 3):
            try:
                sign_of_life(installation, run_id)
            except Exception:
                # A missed beat is harmless: the next may pass before the lease is over.
                log.exception("could not extend the leases of run %s", run_id)

    sign_of_life(installation, run_id)
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
