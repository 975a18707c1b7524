"""Any order of claims, crashes, cancellations, retries and publications, against a small model."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from geostudio_dagster.catalog import Catalog, RequestStatus, StepStatus, TaskRecord
from geostudio_dagster.catalog.states import (
    PUSH,
    REQUEST_CHANGES,
    task_status,
)
from geostudio_dagster.errors import Conflict, LeaseLost
from geostudio_dagster_tests.catalog.driving import BROKEN, FLAKY, LATER, STAGES, Driver, file_of

TASKS, SHARDS = 3, 2
RUNS = st.sampled_from(["a", "b"])
SHARD = st.integers(0, SHARDS - 1)
TASK = st.integers(0, TASKS - 1)
STAGE = st.sampled_from(STAGES)
DEAD = {"COMPLETED", "COMPLETED_WITH_ERRORS", "FAILED", "STOPPED"}


class Requests(RuleBasedStateMachine):
    """One request; the model is who holds which step, and which files were accepted."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.catalog = catalog
        self.drive = Driver(catalog)
        self.request = self.drive.planned(TASKS, SHARDS)
        self.holders: dict[tuple[str, str], str] = {}
        self.files: dict[tuple[str, str], str] = {}
        self.moment = 0
        self.seen = self.look()

    def look(self) -> list[TaskRecord]:
        return self.catalog.tasks(self.request)

    def key(self, shard: int) -> str:
        return self.drive.key(self.request, shard)

    def forget(self, run: str) -> None:
        self.holders = {held: by for held, by in self.holders.items() if by != run}

    @property
    def status(self) -> RequestStatus:
        return self.catalog.request(self.request).status

    def conflicts(self, expected: bool, verb: object, *arguments: object) -> bool:
        """Call ``verb``; whether it was refused, which must be as expected."""
        try:
            verb(*arguments)  # type: ignore[operator]
        except Conflict:
            assert expected, verb
        else:
            assert not expected, verb
        return expected

    @rule(shard=SHARD, run=RUNS)
    def begin(self, shard: int, run: str) -> None:
        stopped = self.catalog.shard(self.key(shard)).status == "STOPPED"
        asked = self.catalog.is_cancelled(self.request)
        self.conflicts(stopped or asked, self.catalog.begin_shard_run, self.key(shard), run)

    @rule(shard=SHARD, stage=STAGE, run=RUNS, late=st.booleans())
    def claim(self, shard: int, stage: str, run: str, late: bool) -> None:
        ready = {
            task.id
            for task in self.look()
            if task.shard_key == self.key(shard)
            and not self.catalog.is_cancelled(self.request)
            and (
                task.step(stage).status == "READY"
                or (
                    task.step(stage).status == "RUNNING"
                    and (late or task.step(stage).run_id == run)
                )
            )
        }
        now = LATER if late else None
        claimed = self.catalog.claim(self.key(shard), stage, run, 60, now, max_crashes=10_000)
        assert {task.id for task in claimed} == ready
        self.holders |= {(task.id, stage): run for task in claimed}

    @rule(task=TASK, stage=STAGE, run=RUNS)
    def start(self, task: int, stage: str, run: str) -> None:
        task_id = f"{self.request}-task_{task}"
        holds = self.holders.get((task_id, stage)) == run
        asked = self.catalog.is_cancelled(self.request)
        assert self.catalog.start_step(task_id, stage, run) == (holds and not asked)

    @rule(task=TASK, stage=STAGE, run=RUNS)
    def finish(self, task: int, stage: str, run: str) -> None:
        task_id = f"{self.request}-task_{task}"
        self.moment += 1
        artifact = file_of(task_id, stage, f"{self.moment % 10}")
        try:
            self.catalog.finish_step(task_id, stage, run, [artifact])
        except LeaseLost:
            assert self.holders.get((task_id, stage)) != run
        else:
            assert self.holders.pop((task_id, stage)) == run
            self.files[task_id, stage] = artifact.sha256 or ""

    @rule(task=TASK, stage=STAGE, run=RUNS, error=st.sampled_from([BROKEN, FLAKY]))
    def fail(self, task: int, stage: str, run: str, error: object) -> None:
        task_id = f"{self.request}-task_{task}"
        try:
            self.catalog.fail_step(task_id, stage, run, error, 3)  # type: ignore[arg-type]
        except LeaseLost:
            assert self.holders.get((task_id, stage)) != run
        else:
            assert self.holders.pop((task_id, stage)) == run

    @rule(shard=SHARD, run=RUNS)
    def whole_run(self, shard: int, run: str) -> None:
        """What a run that nothing disturbs does; the way to the later states."""
        try:
            self.catalog.begin_shard_run(self.key(shard), run)
        except Conflict:
            return
        for stage in STAGES:
            self.claim(shard, stage, run, False)
            for task in self.catalog.shard_tasks(self.key(shard)):
                self.finish(task.number, stage, run)
        self.settle(shard, run)

    @rule(run=RUNS, crashed=st.booleans())
    def release(self, run: str, crashed: bool) -> None:
        self.catalog.release(run, crashed=crashed)
        self.forget(run)

    @rule(shard=SHARD, run=RUNS)
    def settle(self, shard: int, run: str) -> None:
        settlement = self.catalog.settle_shard(self.key(shard), run, LATER, 0)
        of_run = {held for held, by in self.holders.items() if by == run}
        for held in of_run:
            if not self.holds_still(held, run):
                del self.holders[held]
        counted = (
            settlement.finished
            + settlement.failed
            + settlement.stopped
            + settlement.waiting
            + settlement.held_elsewhere
        )
        assert counted == self.catalog.shard(self.key(shard)).n_tasks

    def holds_still(self, held: tuple[str, str], run: str) -> bool:
        step = self.catalog.task(held[0]).step(held[1])
        return step.status == "RUNNING" and step.run_id == run

    @rule(shard=SHARD, run=RUNS)
    def ended(self, shard: int, run: str) -> None:
        self.catalog.mark_submitted([self.key(shard)], LATER)
        self.catalog.shard_run_ended(self.key(shard), run, LATER, 0)
        self.holders = {held: by for held, by in self.holders.items() if self.holds_still(held, by)}

    @rule(shard=SHARD, stage=STAGE, run=st.sampled_from(["c", "d"]))
    def reopen(self, shard: int, stage: str, run: str) -> None:
        stopped = self.catalog.shard(self.key(shard)).status == "STOPPED"
        asked = self.catalog.is_cancelled(self.request)
        if not self.conflicts(stopped or asked, self.catalog.reopen, self.key(shard), stage, run):
            self.holders = {
                held: by for held, by in self.holders.items() if self.holds_still(held, by)
            }

    @precondition(lambda self: self.moment % 3 == 2)
    @rule()
    def cancel(self) -> None:
        if not self.conflicts(self.status in DEAD, self.catalog.cancel, self.request):
            self.holders = {
                held: by for held, by in self.holders.items() if self.holds_still(held, by)
            }
            running = [step for task in self.look() for step in task.steps if step.in_hand]
            assert (self.status == "STOPPED") == (not running)

    @rule()
    def finish_cancel(self) -> None:
        asked = self.catalog.is_cancelled(self.request)
        if not self.conflicts(not asked, self.catalog.finish_cancel, self.request):
            assert self.status == "STOPPED"
            self.holders = {}

    @rule()
    def retry(self) -> None:
        bad = [task for task in self.look() if task.status in ("FAILED", "STOPPED")]
        stopping = self.catalog.is_cancelled(self.request) and self.status not in DEAD
        refused = not bad or stopping or self.status == "PUBLISHING_RESULTS"
        if not self.conflicts(refused, self.catalog.retry, self.request):
            assert self.status in ("RUNNING", "PUBLISHING_RESULTS")

    @rule(failed=st.sets(TASK, max_size=1))
    def publish(self, failed: set[int]) -> None:
        if self.status != "PUBLISHING_RESULTS" or self.catalog.is_cancelled(self.request):
            return
        self.catalog.begin_publish(self.request, "push")
        ids = [task.id for task in self.catalog.publishable_tasks(self.request)]
        errors = {task: BROKEN for n in failed if (task := f"{self.request}-task_{n}") in ids}
        over = self.catalog.finish_publish(self.request, errors, run_id="push")
        finished = len(ids) - len(errors)
        expected = {0: "FAILED", TASKS: "COMPLETED"}.get(finished, "COMPLETED_WITH_ERRORS")
        assert over.status == expected

    @invariant()
    def tasks_are_what_their_steps_are(self) -> None:
        for task in self.look():
            assert task.status == task_status(step.status for step in task.steps)
            assert (task.error is not None) == (task.status == "FAILED")

    @invariant()
    def steps_follow_one_another(self) -> None:
        for task in self.look():
            states = [step.status for step in task.steps]
            begun = [n for n, state in enumerate(states) if state not in ("WAITING", "STOPPED")]
            assert all(state == "FINISHED" for state in states[: max(begun, default=0)])

    @invariant()
    def leases_belong_to_running_steps(self) -> None:
        held = {
            (task.id, step.process_id): step.run_id
            for task in self.look()
            for step in task.steps
            if step.status == "RUNNING" and step.process_id != PUSH
        }
        assert held == self.holders
        for task in self.look():
            for step in task.steps:
                assert step.status == "RUNNING" or not (step.in_hand or step.lease_until)

    @invariant()
    def accepted_files_are_never_lost(self) -> None:
        for (task_id, stage), sha256 in self.files.items():
            assert self.catalog.artifact(task_id, stage).sha256 == sha256
        for task in self.look():
            for step in task.steps:
                if step.status == "FINISHED" and step.process_id != PUSH:
                    assert (task.id, step.process_id) in self.files

    @invariant()
    def counts_add_up(self) -> None:
        summary = self.catalog.summary(self.request)
        tasks = self.look()
        assert summary.tasks_by_status == {
            status: sum(task.status == status for task in tasks)
            for status in StepStatus
            if status != StepStatus.WAITING
        }
        steps = Counter((s.process_id, s.status) for task in tasks for s in task.steps)
        for process_id, counts in summary.steps_by_status.items():
            assert counts == {status: steps[process_id, status] for status in StepStatus}
        assert sum(summary.shards_by_status.values()) == SHARDS

    @invariant()
    def a_request_is_over_when_its_work_is(self) -> None:
        states = {step.status for task in self.look() for step in task.steps}
        if self.status == "STOPPED":
            assert not states & {"READY", "RUNNING"}
        if self.status in ("COMPLETED", "COMPLETED_WITH_ERRORS", "FAILED"):
            assert not states & {"READY", "RUNNING", "STOPPED"}
        if self.status == "PUBLISHING_RESULTS":
            assert {shard.status for shard in self.catalog.shards(self.request)} == {"SETTLED"}
        if self.status == "COMPLETED":
            assert states == {"FINISHED"}

    @invariant()
    def requests_move_as_the_table_says(self) -> None:
        moves = [e.detail for e in self.catalog.events(self.request) if e.kind == "status"]
        for move in moves:
            assert move["after"] in REQUEST_CHANGES[RequestStatus(move["before"])]
        for move, following in pairwise(moves):
            assert move["after"] == following["before"]
        assert moves[-1]["after"] == self.status


def test_any_history(catalog: Catalog) -> None:
    run_state_machine_as_test(
        lambda: Requests(catalog),
        settings=settings(
            max_examples=8,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
