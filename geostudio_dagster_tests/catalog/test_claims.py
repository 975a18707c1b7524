from __future__ import annotations

import datetime as dt

import pytest

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.catalog.states import CONNECTOR, POSTPROCESS, PREDICTION, PUSH
from geostudio_dagster.errors import LeaseLost, NotFound, TaskError
from geostudio_dagster_tests.catalog.driving import (
    BROKEN,
    FLAKY,
    LATER,
    STAGES,
    Driver,
    file_of,
    seconds,
)


def test_each_task_goes_to_one_run(drive: Driver) -> None:
    r = drive.planned(4, 2)
    assert drive.take(r, run="a") == [f"{r}-task_0", f"{r}-task_1"]
    assert drive.take(r, run="b") == []
    task = drive.task(r)
    assert (task.status, task.steps[0].status, task.steps[0].run_id) == ("RUNNING", "RUNNING", "a")
    assert task.steps[0].lease_until is not None
    assert drive.catalog.request(r).status == "RUNNING"
    assert drive.task(r, 2).status == "READY"  # of the other shard


def test_a_run_may_claim_again_what_it_holds(drive: Driver) -> None:
    r = drive.planned(2, 1)
    assert drive.take(r) == drive.take(r)
    assert drive.task(r).steps[0].crashes == 0


def test_a_later_stage_waits_for_the_earlier(drive: Driver) -> None:
    r = drive.planned(2, 1)
    assert drive.take(r, PREDICTION) == []
    first, second = drive.take(r)
    drive.catalog.finish_step(first, CONNECTOR, "run")
    assert drive.take(r, PREDICTION) == [first]
    drive.catalog.finish_step(second, CONNECTOR, "run")
    assert drive.take(r, PREDICTION) == [first, second]


def test_publishing_is_not_claimed(drive: Driver) -> None:
    r = drive.settled(1, 1)
    assert drive.statuses(r) == ["FFFr"]
    assert drive.take(r, PUSH) == []


def test_a_lease_that_ran_out_is_taken_over(drive: Driver) -> None:
    r = drive.planned(1, 1)
    start = dt.datetime.now(dt.UTC)
    task = f"{r}-task_0"
    drive.catalog.claim(drive.key(r), CONNECTOR, "a", 60, start)
    assert drive.catalog.claim(drive.key(r), CONNECTOR, "b", 60, start + seconds(59.9)) == []
    (taken,) = drive.catalog.claim(drive.key(r), CONNECTOR, "b", 60, start + seconds(60))
    assert (taken.steps[0].run_id, taken.steps[0].crashes) == ("b", 0)
    assert drive.catalog.start_step(task, CONNECTOR, "a") is False
    with pytest.raises(LeaseLost) as lost:
        drive.catalog.finish_step(task, CONNECTOR, "a", [file_of(task, "scene")])
    assert str(lost.value) == (
        f"Run a lost step url-connector of task {task} (now: run b holds it); "
        "its result is dropped."
    )
    assert drive.catalog.artifacts(task) == []
    drive.catalog.finish_step(task, CONNECTOR, "b")
    with pytest.raises(LeaseLost, match=r"\(now: FINISHED\)"):
        drive.catalog.fail_step(task, CONNECTOR, "a", BROKEN, 3)
    assert drive.statuses(r) == ["FrWW"]


def test_a_late_finisher_whom_nobody_replaced_is_in_time(drive: Driver) -> None:
    r = drive.planned(1, 1)
    drive.take(r, now=LATER - seconds(10_000_000))
    drive.catalog.finish_step(f"{r}-task_0", CONNECTOR, "run")
    assert drive.statuses(r) == ["FrWW"]


def test_leases_are_extended_together(drive: Driver) -> None:
    r = drive.planned(3, 1)
    drive.take(r, run="a")
    drive.catalog.finish_step(f"{r}-task_0", CONNECTOR, "a")
    assert drive.catalog.extend_leases("a", 60, LATER) == 2
    assert drive.task(r, 1).steps[0].lease_until == LATER + seconds(60)
    assert drive.take(r, run="b", now=LATER + seconds(59)) == []
    assert drive.catalog.extend_leases("b", 60, LATER) == 0


def test_only_the_step_in_hand_counts_a_crash(drive: Driver) -> None:
    r = drive.planned(3, 1)
    drive.take(r, run="a")
    assert drive.catalog.start_step(f"{r}-task_0", CONNECTOR, "a", LATER)
    step = drive.task(r).steps[0]
    assert (step.in_hand, step.started_at) == (True, LATER)
    assert drive.catalog.release("a") == 3
    assert [drive.task(r, n).steps[0].crashes for n in range(3)] == [1, 0, 0]
    assert drive.statuses(r) == ["rWWW"] * 3
    assert drive.task(r).status == "READY"
    # What was never in doubt comes first.
    assert drive.take(r, run="b") == [f"{r}-task_{n}" for n in (1, 2, 0)]


def test_a_run_that_ends_in_order_counts_no_crash(drive: Driver) -> None:
    r = drive.planned(1, 1)
    (task,) = drive.take(r)
    drive.catalog.start_step(task, CONNECTOR, "run")
    assert drive.catalog.release("run", crashed=False) == 1
    assert drive.task(r).steps[0].crashes == 0
    assert drive.catalog.release("run") == 0


def test_a_takeover_counts_the_crash_too(drive: Driver) -> None:
    r = drive.planned(1, 1)
    (task,) = drive.take(r, run="a")
    drive.catalog.start_step(task, CONNECTOR, "a")
    drive.take(r, run="b", now=LATER)
    assert drive.task(r).steps[0].crashes == 1
    assert drive.task(r).steps[0].in_hand is False


def test_a_task_that_kills_its_process_fails_in_the_end(drive: Driver) -> None:
    r = drive.planned(2, 1)
    task = f"{r}-task_0"
    for death in range(3):
        run = f"run{death}"
        assert task in drive.take(r, run=run, max_crashes=2)
        assert drive.catalog.start_step(task, CONNECTOR, run)
        drive.catalog.release(run)
    assert drive.take(r, run="last", max_crashes=2) == [f"{r}-task_1"]
    failed = drive.task(r)
    sentence = (
        "The process died 3 times while working on it; "
        "look for too little memory in the run's log, then retry the request."
    )
    assert (failed.status, failed.error) == ("FAILED", sentence)
    assert (failed.steps[0].error_code, failed.steps[0].crashes) == ("process_died", 3)
    assert drive.statuses(r) == ["XWWW", "RWWW"]


def test_finishing_writes_files_and_wakes_the_next_step(drive: Driver) -> None:
    r = drive.planned(1, 1)
    (task,) = drive.take(r)
    drive.catalog.start_step(task, CONNECTOR, "run")
    files = [file_of(task, "scene"), file_of(task, "mask")]
    drive.catalog.finish_step(
        task, CONNECTOR, "run", files, {"pixels": 7, "nodata": float("nan")}, now=LATER
    )
    step = drive.task(r).steps[0]
    assert (step.status, step.attempts, step.finished_at) == ("FINISHED", 1, LATER)
    assert (step.in_hand, step.lease_until) == (False, None)
    assert step.metrics == {"pixels": 7, "nodata": None}
    assert drive.catalog.artifact(task, "scene") == files[0]
    assert drive.catalog.artifacts(task) == sorted(files, key=lambda file: file.name)
    assert drive.statuses(r) == ["FrWW"]
    assert drive.task(r).status == "RUNNING"


def test_a_task_learns_its_size_from_its_scene(drive: Driver) -> None:
    r = drive.planned(1, 1)
    with drive.catalog._write() as session:
        session.connection().exec_driver_sql("UPDATE tasks SET pixels = NULL")
    (task,) = drive.take(r)
    drive.catalog.finish_step(task, CONNECTOR, "run", metrics={"pixels": 90_000})
    assert drive.task(r).pixels == 90_000


def test_a_permanent_error_fails_the_task_alone(drive: Driver) -> None:
    r = drive.planned(2, 1)
    first, second = drive.take(r)
    error = TaskError("not_a_raster", "x.tif is\0 not a raster." + "!" * 9000)
    assert drive.catalog.fail_step(first, CONNECTOR, "run", error, 3) == "FAILED"
    failed = drive.task(r)
    assert (failed.status, failed.steps[0].error_code) == ("FAILED", "not_a_raster")
    assert failed.error == failed.steps[0].error
    assert failed.error is not None
    assert failed.error.startswith("x.tif is not a raster.!")
    assert len(failed.error) == 4000
    assert drive.statuses(r) == ["XWWW", "RWWW"]
    drive.catalog.finish_step(second, CONNECTOR, "run")
    event = drive.catalog.events(r)[-1]
    assert (event.kind, event.detail["task_id"], event.detail["code"]) == (
        "task_failed",
        first,
        "not_a_raster",
    )


def test_a_passing_error_is_tried_again_so_often(drive: Driver) -> None:
    r = drive.planned(1, 1)
    for attempt in (1, 2):
        (task,) = drive.take(r)
        assert drive.catalog.fail_step(task, CONNECTOR, "run", FLAKY, 3) == "READY"
        step = drive.task(r).steps[0]
        assert (step.attempts, step.error) == (attempt, "example.org did not answer.")
        assert drive.task(r).error is None
    (task,) = drive.take(r)
    assert drive.catalog.fail_step(task, CONNECTOR, "run", FLAKY, 3) == "FAILED"
    assert drive.task(r).error == "example.org did not answer."


def test_success_clears_the_error(drive: Driver) -> None:
    r = drive.planned(1, 1)
    (task,) = drive.take(r)
    drive.catalog.fail_step(task, CONNECTOR, "run", FLAKY, 3)
    drive.take(r)
    drive.catalog.finish_step(task, CONNECTOR, "run")
    step = drive.task(r).steps[0]
    assert (step.attempts, step.error, step.error_code) == (2, None, None)


def test_a_task_without_publication_is_finished_by_its_last_stage(drive: Driver) -> None:
    r = drive.planned(1, 1, steps=STAGES)
    drive.run_shard(r)
    assert drive.task(r).status == "FINISHED"
    kinds = [event.kind for event in drive.catalog.events(r)]
    assert kinds.count("task_finished") == 1
    assert drive.publish(r).status == "COMPLETED"


def test_what_is_not_there(catalog: Catalog, drive: Driver) -> None:
    r = drive.planned(1, 1)
    with pytest.raises(NotFound, match=r"^There is no shard x/00000\.$"):
        catalog.claim("x/00000", CONNECTOR, "run", 60)
    with pytest.raises(NotFound, match=r"^There is no task x\.$"):
        catalog.finish_step("x", CONNECTOR, "run")
    with pytest.raises(NotFound, match=rf"^Task {r}-task_0 has no step dance\.$"):
        catalog.finish_step(f"{r}-task_0", "dance", "run")
    assert catalog.start_step("x", POSTPROCESS, "run") is False
    with pytest.raises(KeyError, match="dance"):
        drive.task(r).step("dance")
    assert drive.task(r).step(PREDICTION).number == 1
