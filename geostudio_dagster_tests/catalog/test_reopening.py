from __future__ import annotations

import pytest

from geostudio_dagster.catalog.states import CONNECTOR, POSTPROCESS, PREDICTION, PUSH
from geostudio_dagster.errors import Conflict, LeaseLost, NotFound
from geostudio_dagster_tests.catalog.driving import LATER, Driver, file_of


def test_exactly_this_shard_from_this_stage_on(drive: Driver) -> None:
    r = drive.over(4, 2)
    before = drive.catalog.tasks(r)
    key = drive.key(r)
    assert drive.catalog.reopen(key, PREDICTION, "redo") == 2
    assert drive.statuses(r) == ["FrWW", "FrWW", "FFFF", "FFFF"]
    assert drive.catalog.request(r).status == "RUNNING"
    assert (drive.catalog.shard(key).status, drive.catalog.shard(key).run_id) == ("RUNNING", "redo")
    # What there is stays until it is replaced.
    assert drive.catalog.artifact(before[0].id, PREDICTION).sha256 == "a" * 64
    assert drive.task(r).steps[0] == before[0].steps[0]
    assert drive.work(key, PREDICTION, "redo") == 2
    assert drive.catalog.reopen(key, POSTPROCESS, "redo") == 0
    assert drive.statuses(r)[0] == "FFrW"
    drive.work(key, POSTPROCESS, "redo")
    drive.catalog.settle_shard(key, "redo", LATER, 5)
    due = drive.catalog.requests_to_publish(LATER)
    assert [(request.id, request.publish_attempt) for request in due] == [(r, 2)]
    assert len(list(drive.catalog.publishable_tasks(r))) == 4
    assert drive.publish(r, "push2").status == "COMPLETED"
    assert drive.catalog.tasks(r)[2:] == before[2:]


def test_a_stage_alone_leaves_the_rest_to_the_dispatcher(drive: Driver) -> None:
    r = drive.over(1, 1)
    drive.catalog.reopen(drive.key(r), CONNECTOR, "redo")
    drive.work(drive.key(r), CONNECTOR, "redo")
    drive.catalog.shard_run_ended(drive.key(r), "redo", LATER, 0)
    (shard,) = drive.catalog.shards_to_dispatch(LATER, 9)
    assert (shard.key, shard.attempt) == (drive.key(r), 1)
    assert drive.run_shard(r, 0, "rest").finished == 1
    assert drive.publish(r).status == "COMPLETED"


def test_another_run_reopens_again(drive: Driver) -> None:
    r = drive.over(1, 1)
    assert drive.catalog.reopen(drive.key(r), CONNECTOR, "a") == 1
    drive.work(drive.key(r), CONNECTOR, "a")
    assert drive.catalog.reopen(drive.key(r), CONNECTOR, "b") == 1
    assert drive.catalog.reopen(drive.key(r), CONNECTOR, "a") == 0


def test_a_failed_task_is_done_again_where_it_came_to_the_stage(drive: Driver) -> None:
    r = drive.over(2, 1, fail={0})
    assert drive.catalog.reopen(drive.key(r), POSTPROCESS, "late") == 1
    assert drive.statuses(r) == ["FXWW", "FFrW"]
    assert drive.catalog.reopen(drive.key(r), PREDICTION, "early") == 2
    assert drive.statuses(r) == ["FrWW", "FrWW"]
    assert drive.task(r).error is None


def test_nothing_to_do_again(drive: Driver) -> None:
    r = drive.over(1, 1, fail={0})
    assert drive.catalog.reopen(drive.key(r), POSTPROCESS, "redo") == 0
    assert drive.catalog.request(r).status == "FAILED"
    fresh = drive.planned(1, 1)
    assert drive.catalog.reopen(drive.key(fresh), CONNECTOR, "redo") == 0
    assert drive.catalog.shard(drive.key(fresh)).status == "READY"


def test_a_run_that_was_at_it_loses_its_result(drive: Driver) -> None:
    r = drive.planned(1, 1)
    drive.catalog.begin_shard_run(drive.key(r), "old")
    (task,) = drive.take(r, run="old")
    assert drive.catalog.reopen(drive.key(r), CONNECTOR, "new") == 1
    with pytest.raises(LeaseLost):
        drive.catalog.finish_step(task, CONNECTOR, "old", [file_of(task, "scene")])
    assert drive.take(r, run="new") == [task]


def test_a_publication_under_way_starts_over(drive: Driver) -> None:
    r = drive.settled(2, 2)
    drive.catalog.begin_publish(r, "push")
    drive.catalog.reopen(drive.key(r), CONNECTOR, "redo")
    assert drive.statuses(r) == ["rWWW", "FFFr"]
    with pytest.raises(LeaseLost, match="is RUNNING and not being published by run push any more"):
        drive.catalog.finish_publish(r, {}, run_id="push")
    drive.run_shard(r, 0, "redo")
    assert drive.publish(r, "push2").status == "COMPLETED"


def test_what_cannot_be_reopened(drive: Driver) -> None:
    r = drive.planned(1, 1)
    with pytest.raises(ValueError, match="is done for whole requests, not for shards"):
        drive.catalog.reopen(drive.key(r), PUSH, "redo")
    drive.catalog.cancel(r)
    with pytest.raises(Conflict) as refusal:
        drive.catalog.reopen(drive.key(r), CONNECTOR, "redo")
    assert str(refusal.value) == (
        f"Shard {r}/00000 cannot be done again: its request was stopped; retry the request first."
    )
    with pytest.raises(NotFound):
        drive.catalog.reopen("x/00000", CONNECTOR, "redo")
