from __future__ import annotations

import pytest

from geostudio_dagster.catalog.states import CONNECTOR, PREDICTION
from geostudio_dagster.errors import Conflict, LeaseLost, NotFound
from geostudio_dagster_tests.catalog.driving import BROKEN, FLAKY, LATER, Driver, file_of


def test_a_request_that_does_not_run_stops_at_once(drive: Driver) -> None:
    r = drive.planned(2, 2)
    stopped = drive.catalog.cancel(r)
    assert (stopped.status, stopped.cancel_requested) == ("STOPPED", True)
    assert stopped.finished_at is not None
    assert drive.statuses(r) == ["SSSS", "SSSS"]
    assert {task.status for task in drive.catalog.tasks(r)} == {"STOPPED"}
    assert {shard.status for shard in drive.catalog.shards(r)} == {"STOPPED"}
    assert drive.catalog.is_cancelled(r)


def test_what_is_in_hand_may_end(drive: Driver) -> None:
    r = drive.planned(3, 1)
    drive.catalog.begin_shard_run(drive.key(r), "run")
    first, second, _ = drive.take(r)
    drive.catalog.start_step(first, CONNECTOR, "run")
    assert drive.catalog.cancel(r).status == "RUNNING"
    assert drive.catalog.requests_to_stop() == [drive.catalog.request(r)]
    assert drive.statuses(r) == ["RSSS", "SSSS", "SSSS"]
    assert drive.catalog.start_step(second, CONNECTOR, "run") is False
    assert drive.take(r) == []
    drive.catalog.finish_step(first, CONNECTOR, "run", [file_of(first, "scene")])
    assert drive.statuses(r) == ["FSSS", "SSSS", "SSSS"]
    assert drive.catalog.request(r).status == "STOPPED"
    assert drive.catalog.shard(drive.key(r)).status == "STOPPED"
    assert drive.catalog.artifact(first, "scene").sha256 == "a" * 64
    settlement = drive.catalog.settle_shard(drive.key(r), "run", LATER, 5)
    assert (settlement.stopped, settlement.retry_at) == (3, None)
    assert drive.catalog.requests_to_stop() == []


def test_a_result_that_comes_after_the_stop_is_dropped(drive: Driver) -> None:
    r = drive.planned(1, 1)
    (task,) = drive.take(r)
    drive.catalog.cancel(r)
    with pytest.raises(LeaseLost, match=r"\(now: STOPPED\)"):
        drive.catalog.finish_step(task, CONNECTOR, "run", [file_of(task, "scene")])
    with pytest.raises(LeaseLost):
        drive.catalog.fail_step(task, CONNECTOR, "run", BROKEN, 3)
    assert drive.catalog.artifacts(task) == []
    assert drive.catalog.request(r).status == "STOPPED"


@pytest.mark.parametrize(("error", "left"), [(BROKEN, "XSSS"), (FLAKY, "SSSS")])
def test_an_error_in_hand_still_ends_in_stopped(drive: Driver, error: object, left: str) -> None:
    r = drive.planned(1, 1)
    (task,) = drive.take(r)
    drive.catalog.start_step(task, CONNECTOR, "run")
    drive.catalog.cancel(r)
    drive.catalog.fail_step(task, CONNECTOR, "run", error, 3)  # type: ignore[arg-type]
    assert drive.statuses(r) == [left]
    assert drive.catalog.request(r).status == "STOPPED"
    assert drive.catalog.fail_request(r, "late news").status == "STOPPED"


def test_a_run_that_is_terminated_leaves_stopped_steps(drive: Driver) -> None:
    r = drive.planned(2, 1)
    drive.catalog.begin_shard_run(drive.key(r), "run")
    first, _ = drive.take(r)
    drive.catalog.start_step(first, CONNECTOR, "run")
    drive.catalog.cancel(r)
    assert drive.catalog.release("run") == 1
    assert drive.statuses(r) == ["SSSS", "SSSS"]
    assert drive.catalog.request(r).status == "STOPPED"


def test_leftovers_of_a_dead_run_are_stopped(drive: Driver) -> None:
    r = drive.planned(2, 1)
    drive.catalog.begin_shard_run(drive.key(r), "run")
    first, _ = drive.take(r)
    drive.catalog.start_step(first, CONNECTOR, "run")
    drive.catalog.cancel(r)
    assert drive.catalog.finish_cancel(r).status == "STOPPED"
    assert drive.statuses(r) == ["SSSS", "SSSS"]
    assert drive.catalog.finish_cancel(r).status == "STOPPED"
    with pytest.raises(LeaseLost):
        drive.catalog.finish_step(first, CONNECTOR, "run")


def test_the_reconciler_stops_a_cancelled_shard(drive: Driver) -> None:
    r = drive.planned(1, 1)
    drive.catalog.begin_shard_run(drive.key(r), "run")
    (task,) = drive.take(r)
    drive.catalog.start_step(task, CONNECTOR, "run")
    drive.catalog.cancel(r)
    assert drive.catalog.shard_run_ended(drive.key(r), "run", LATER, 5).retry_at is None
    assert drive.catalog.request(r).status == "STOPPED"
    assert drive.catalog.shard(drive.key(r)).status == "STOPPED"


def test_finish_cancel_needs_a_cancellation(drive: Driver) -> None:
    r = drive.planned(1, 1)
    with pytest.raises(Conflict, match=rf"^Request {r} was not cancelled: it is SUBMITTED\.$"):
        drive.catalog.finish_cancel(r)


def test_asking_twice_is_asking_once(drive: Driver) -> None:
    r = drive.planned(1, 1)
    (task,) = drive.take(r)
    drive.catalog.start_step(task, CONNECTOR, "run")
    assert drive.catalog.cancel(r) == drive.catalog.cancel(r)
    kinds = [event.kind for event in drive.catalog.events(r)]
    assert kinds.count("cancel_requested") == 1


def test_what_is_over_is_not_cancelled(drive: Driver) -> None:
    r = drive.over(1, 1)
    with pytest.raises(Conflict) as refusal:
        drive.catalog.cancel(r)
    assert str(refusal.value) == f"Request {r} is COMPLETED: it cannot be cancelled."
    stopped = drive.planned(1, 1)
    drive.catalog.cancel(stopped)
    with pytest.raises(Conflict, match="is STOPPED: it cannot be cancelled"):
        drive.catalog.cancel(stopped)


def test_cancelled_before_the_publication(drive: Driver) -> None:
    r = drive.settled(1, 1)
    assert drive.catalog.cancel(r).status == "STOPPED"
    assert drive.statuses(r) == ["FFFS"]
    assert drive.catalog.shard(drive.key(r)).status == "SETTLED"
    with pytest.raises(Conflict, match="was cancelled: it is not to be published"):
        drive.catalog.begin_publish(r, "push")


@pytest.mark.parametrize("ending", ["finish", "defer", "reconcile"])
def test_cancelled_during_the_publication(drive: Driver, ending: str) -> None:
    r = drive.settled(1, 1)
    drive.catalog.begin_publish(r, "push")
    assert drive.catalog.cancel(r).status == "PUBLISHING_RESULTS"
    if ending == "finish":
        over = drive.catalog.finish_publish(r, {}, run_id="push")
    elif ending == "defer":
        over = drive.catalog.defer_publish(r, "GeoServer is away.", LATER, 5, 1, run_id="push")
    else:
        over = drive.catalog.finish_cancel(r)
    assert over.status == "STOPPED"
    assert drive.statuses(r) == ["FFFF" if ending == "finish" else "FFFS"]


def test_failures_stay_failures_when_the_rest_is_stopped(drive: Driver) -> None:
    r = drive.planned(2, 2)
    drive.run_shard(r, 0, fail={0})
    drive.catalog.cancel(r)
    assert drive.statuses(r) == ["FXWW", "SSSS"]
    assert drive.task(r).status == "FAILED"
    assert drive.task(r).error == str(BROKEN)


def test_a_request_fails_as_a_whole(drive: Driver) -> None:
    r = drive.planned(2, 1)
    first, second = drive.take(r)
    drive.catalog.finish_step(first, CONNECTOR, "run")
    drive.catalog.start_step(second, CONNECTOR, "run")
    failed = drive.catalog.fail_request(r, "The model is gone.")
    assert (failed.status, failed.error) == ("FAILED", "The model is gone.")
    assert drive.statuses(r) == ["FSSS", "SSSS"]
    assert drive.catalog.shard(drive.key(r)).status == "STOPPED"
    assert drive.catalog.fail_request(r, "later") == failed
    with pytest.raises(Conflict, match="is COMPLETED and cannot become FAILED"):
        drive.catalog.fail_request(drive.over(1, 1), "no")


def test_retry_does_the_failed_tasks_only(drive: Driver) -> None:
    r = drive.over(4, 2, fail={1})
    before = drive.catalog.tasks(r)
    assert drive.catalog.retry(r) == 1
    request = drive.catalog.request(r)
    assert (request.status, request.error, request.finished_at) == ("RUNNING", None, None)
    assert drive.statuses(r) == ["FFFF", "FrWW", "FFFF", "FFFF"]
    step = drive.task(r, 1).step(PREDICTION)
    assert (step.attempts, step.crashes, step.error, step.error_code) == (0, 0, None, None)
    assert drive.task(r, 1).error is None
    shards = drive.catalog.shards(r)
    assert [(s.status, s.attempt) for s in shards] == [("READY", 1), ("SETTLED", 0)]
    assert drive.run_shard(r, 0, "retry").finished == 2
    assert drive.publish(r, "push2").status == "COMPLETED"
    after = drive.catalog.tasks(r)
    assert [after[n] for n in (0, 2, 3)] == [before[n] for n in (0, 2, 3)]
    assert drive.catalog.request(r).publish_attempt == 2


def test_retry_of_a_stopped_request_goes_on_where_it_was(drive: Driver) -> None:
    r = drive.planned(4, 2)
    drive.run_shard(r, 0, fail={0})
    drive.catalog.begin_shard_run(drive.key(r, 1), "run1")
    drive.work(drive.key(r, 1), CONNECTOR, "run1")
    drive.catalog.cancel(r)
    assert drive.statuses(r) == ["FXWW", "FFFS", "FSSS", "FSSS"]
    assert drive.catalog.retry(r) == 4
    assert drive.statuses(r) == ["FrWW", "FFFr", "FrWW", "FrWW"]
    request = drive.catalog.request(r)
    assert (request.status, request.cancel_requested) == ("RUNNING", False)
    assert [s.attempt for s in drive.catalog.shards_to_dispatch(LATER, 9)] == [1, 1]


def test_retry_of_a_publication_alone(drive: Driver) -> None:
    r = drive.settled(2, 1)
    drive.catalog.begin_publish(r, "push")
    drive.catalog.defer_publish(r, "GeoServer is away.", LATER, 5, 1)
    assert drive.catalog.retry(r) == 2
    request = drive.catalog.request(r)
    assert (request.status, request.publish_attempt) == ("PUBLISHING_RESULTS", 2)
    assert drive.catalog.shards(r)[0].status == "SETTLED"
    assert drive.publish(r).status == "COMPLETED"


def test_retry_while_other_shards_run(drive: Driver) -> None:
    r = drive.planned(4, 2)
    drive.run_shard(r, 0, fail={0})
    drive.catalog.begin_shard_run(drive.key(r, 1), "run1")
    assert drive.catalog.retry(r) == 1
    assert [(s.status, s.attempt) for s in drive.catalog.shards(r)] == [
        ("READY", 1),
        ("RUNNING", 0),
    ]


def test_retry_within_the_shard_that_runs(drive: Driver) -> None:
    r = drive.planned(2, 1)
    key = drive.key(r)
    drive.catalog.begin_shard_run(key, "run")
    drive.work(key, CONNECTOR, "run", fail={0})
    assert drive.catalog.retry(r) == 1
    assert drive.catalog.shard(key).status == "RUNNING"
    drive.work(key, PREDICTION, "run")
    settlement = drive.catalog.settle_shard(key, "run", LATER, 5)
    assert settlement.waiting == 2
    assert drive.catalog.shard(key).status == "READY"


def test_nothing_to_retry(drive: Driver) -> None:
    r = drive.over(1, 1)
    with pytest.raises(Conflict) as refusal:
        drive.catalog.retry(r)
    assert str(refusal.value) == (
        f"Request {r} is COMPLETED: none of its tasks failed or was stopped, "
        "so there is nothing to retry."
    )
    drive.pending("r")
    drive.catalog.cancel("r")
    with pytest.raises(Conflict) as refusal:
        drive.catalog.retry("r")
    assert str(refusal.value) == (
        "Request r is STOPPED and has no tasks to retry; submit it again under a new id."
    )


def test_no_retry_in_the_middle_of_an_ending(drive: Driver) -> None:
    r = drive.settled(2, 1, fail={0})
    with pytest.raises(Conflict) as refusal:
        drive.catalog.retry(r)
    assert str(refusal.value) == (
        f"Request {r} is publishing its results: retry it when that is over."
    )
    r = drive.planned(2, 1)
    (task, _) = drive.take(r)
    drive.catalog.start_step(task, CONNECTOR, "run")
    drive.catalog.cancel(r)
    with pytest.raises(Conflict, match="is being cancelled: retry it when that is over"):
        drive.catalog.retry(r)


def test_what_is_not_there(drive: Driver) -> None:
    for verb in (drive.catalog.cancel, drive.catalog.retry, drive.catalog.finish_cancel):
        with pytest.raises(NotFound, match=r"^There is no request x\.$"):
            verb("x")
