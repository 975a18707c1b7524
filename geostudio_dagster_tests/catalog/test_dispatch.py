from __future__ import annotations

import datetime as dt

import pytest

from geostudio_dagster.catalog import Settlement
from geostudio_dagster.catalog.heartbeats import planner_lease
from geostudio_dagster.catalog.states import CONNECTOR, PREDICTION
from geostudio_dagster.errors import Conflict
from geostudio_dagster_tests.catalog.driving import BROKEN, FLAKY, LATER, STAGES, Driver, seconds


def test_shards_are_due_by_priority_then_age(drive: Driver) -> None:
    old, new = drive.planned(2, 2), drive.planned(2, 2)
    urgent = drive.planned(2, 2, priority=1)
    drive.pending()
    keys = [shard.key for shard in drive.catalog.shards_to_dispatch(LATER, 100)]
    assert keys == [drive.key(r, n) for r in (urgent, old, new) for n in (0, 1)]
    assert len(drive.catalog.shards_to_dispatch(LATER, 3)) == 3
    assert drive.catalog.shards_to_dispatch(LATER - dt.timedelta(days=2), 100) == []


def test_what_a_planner_holds_takes_no_place_of_what_is_due(drive: Driver) -> None:
    held, free = drive.planned(2, 2, priority=1), drive.planned(1, 1)
    drive.catalog.keep_alive(planner_lease(held), 60, LATER)
    due = drive.catalog.shards_to_dispatch
    assert [shard.key for shard in due(LATER, 1)] == [drive.key(free)]
    assert [shard.key for shard in due(LATER, 9)] == [drive.key(free)]
    assert [shard.key for shard in due(LATER, 1, held)] == [drive.key(held)]
    assert [shard.key for shard in due(LATER + seconds(61), 1)] == [drive.key(held)]


def test_a_submitted_shard_is_not_due(drive: Driver) -> None:
    r = drive.planned(2, 2)
    assert drive.catalog.mark_submitted([drive.key(r)], LATER) == [drive.key(r)]
    assert drive.catalog.mark_submitted([drive.key(r)], LATER) == []
    assert [s.key for s in drive.catalog.shards_to_dispatch(LATER, 9)] == [drive.key(r, 1)]
    shard = drive.catalog.shard(drive.key(r))
    assert (shard.status, shard.submitted_at) == ("SUBMITTED", LATER)
    assert drive.catalog.live_shards() == [shard]
    assert drive.catalog.request(r).status == "SUBMITTED"


def test_a_run_that_was_quicker_than_the_note_of_it(drive: Driver) -> None:
    r = drive.planned(1, 1)
    begun = drive.catalog.begin_shard_run(drive.key(r), "a")
    assert (begun.status, begun.run_id) == ("RUNNING", "a")
    assert drive.catalog.mark_submitted([drive.key(r)], LATER) == []
    assert drive.catalog.shard(drive.key(r)).status == "RUNNING"
    assert drive.catalog.request(r).status == "RUNNING"


def test_a_whole_shard(drive: Driver) -> None:
    r = drive.planned(4, 2)
    assert drive.run_shard(r, 0, fail={1}) == Settlement(1, 1, 0, 0, 0, None)
    assert drive.catalog.shard(drive.key(r)).status == "SETTLED"
    assert drive.catalog.request(r).status == "RUNNING"
    assert drive.run_shard(r, 1) == Settlement(2, 0, 0, 0, 0, None)
    assert drive.catalog.request(r).status == "PUBLISHING_RESULTS"
    assert drive.statuses(r) == ["FFFr", "FXWW", "FFFr", "FFFr"]
    assert drive.catalog.live_shards() == []
    assert drive.catalog.events(r)[-2].detail["shard"] == drive.key(r, 1)


def test_settling_twice_changes_nothing(drive: Driver) -> None:
    r = drive.settled(2, 1)
    before = drive.catalog.shards(r), drive.catalog.request(r), drive.catalog.events(r)
    again = drive.catalog.settle_shard(drive.key(r), "run0", LATER, 5)
    assert again == Settlement(2, 0, 0, 0, 0, None)
    assert (drive.catalog.shards(r), drive.catalog.request(r), drive.catalog.events(r)) == before


def test_a_second_launch_of_a_settled_shard_does_nothing(drive: Driver) -> None:
    r = drive.settled(2, 2)
    assert drive.catalog.begin_shard_run(drive.key(r), "twice").status == "SETTLED"
    assert [drive.take(r, stage, "twice") for stage in STAGES] == [[], [], []]
    drive.catalog.settle_shard(drive.key(r), "twice", LATER, 5)
    assert drive.catalog.request(r).status == "PUBLISHING_RESULTS"
    assert drive.catalog.shard(drive.key(r)).run_id == "run0"


def test_the_delay_doubles_with_each_attempt(drive: Driver) -> None:
    r = drive.planned(1, 1)
    key = drive.key(r)
    for attempt, delay in enumerate((5, 10, 20)):
        assert drive.catalog.begin_shard_run(key, f"run{attempt}").attempt == attempt
        drive.work(key, CONNECTOR, f"run{attempt}", fail={0}, error=FLAKY)
        if attempt == 2:
            break
        settlement = drive.catalog.settle_shard(key, f"run{attempt}", LATER, 5)
        assert settlement == Settlement(0, 0, 0, 1, 0, LATER + seconds(delay))
        shard = drive.catalog.shard(key)
        assert (shard.status, shard.attempt) == ("READY", attempt + 1)
        assert drive.catalog.shards_to_dispatch(LATER + seconds(delay - 1), 9) == []
        assert drive.catalog.shards_to_dispatch(LATER + seconds(delay), 9) == [shard]
    settlement = drive.catalog.settle_shard(key, "run2", LATER, 5)
    assert settlement == Settlement(0, 1, 0, 0, 0, None)


def test_the_delay_has_an_end(drive: Driver) -> None:
    r = drive.planned(1, 1)
    with drive.catalog._write() as session:
        session.connection().exec_driver_sql("UPDATE shards SET attempt = 5000")
    drive.catalog.begin_shard_run(drive.key(r), "a")
    settlement = drive.catalog.settle_shard(drive.key(r), "a", LATER, 5)
    assert settlement.retry_at == LATER + seconds(3600)


def test_settling_gives_back_what_was_only_claimed(drive: Driver) -> None:
    r = drive.planned(2, 1)
    drive.catalog.begin_shard_run(drive.key(r), "a")
    drive.take(r, run="a")
    settlement = drive.catalog.settle_shard(drive.key(r), "a", LATER, 0)
    assert (settlement.waiting, settlement.retry_at) == (2, LATER)
    assert drive.statuses(r) == ["rWWW", "rWWW"]


def test_a_second_run_leaves_a_living_one_alone(drive: Driver) -> None:
    r = drive.planned(2, 1)
    key = drive.key(r)
    drive.catalog.begin_shard_run(key, "a")
    drive.take(r, run="a")
    assert drive.catalog.begin_shard_run(key, "b").run_id == "a"
    assert drive.take(r, run="b") == []
    settlement = drive.catalog.settle_shard(key, "b", dt.datetime.now(dt.UTC), 5)
    assert settlement == Settlement(0, 0, 0, 0, 2, None)
    shard = drive.catalog.shard(key)
    assert (shard.status, shard.run_id, shard.attempt) == ("RUNNING", "a", 0)
    for stage in STAGES:
        drive.work(key, stage, "a")
    assert drive.catalog.settle_shard(key, "a", LATER, 5).retry_at is None
    assert drive.catalog.shard(key).status == "SETTLED"


def test_a_run_waits_for_the_leases_of_the_one_before(drive: Driver) -> None:
    r = drive.planned(2, 1)
    key = drive.key(r)
    now = dt.datetime.now(dt.UTC)
    drive.catalog.begin_shard_run(key, "b")
    drive.catalog.claim(key, CONNECTOR, "a", 60, now)  # never began the shard, or lost it
    settlement = drive.catalog.settle_shard(key, "b", now, 5)
    assert settlement == Settlement(0, 0, 0, 0, 2, now + seconds(60))
    assert drive.catalog.shard(key).status == "READY"


def test_a_run_given_up_for_dead_may_still_end_the_work(drive: Driver) -> None:
    r = drive.planned(1, 1)
    key = drive.key(r)
    drive.catalog.begin_shard_run(key, "a")
    drive.work(key, CONNECTOR, "a")
    drive.catalog.shard_run_ended(key, "a", LATER, 5)
    drive.catalog.mark_submitted([key], LATER)
    for stage in STAGES[1:]:
        drive.work(key, stage, "a")
    assert drive.catalog.settle_shard(key, "a", LATER, 5).finished == 1
    assert drive.catalog.shard(key).status == "SETTLED"
    assert drive.catalog.begin_shard_run(key, "b").status == "SETTLED"


def test_a_run_that_died_is_cleared_away(drive: Driver) -> None:
    r = drive.planned(2, 1)
    key = drive.key(r)
    drive.catalog.begin_shard_run(key, "a")
    first, _ = drive.take(r, run="a")
    drive.catalog.start_step(first, CONNECTOR, "a")
    settlement = drive.catalog.shard_run_ended(key, "a", LATER, 5)
    assert settlement == Settlement(0, 0, 0, 2, 0, LATER + seconds(5))
    assert [drive.task(r, n).steps[0].crashes for n in (0, 1)] == [1, 0]
    shard = drive.catalog.shard(key)
    assert (shard.status, shard.attempt) == ("READY", 1)
    # The reconciler may come twice.
    drive.catalog.shard_run_ended(key, "a", LATER, 5)
    assert drive.catalog.shard(key) == shard


def test_a_run_that_died_right_before_settling_left_its_results_unpackaged(
    drive: Driver,
) -> None:
    r = drive.planned(1, 1)
    key = drive.key(r)
    drive.catalog.begin_shard_run(key, "a")
    for stage in STAGES:
        drive.work(key, stage, "a")
    assert drive.catalog.shard_run_ended(key, "a", LATER, 5).finished == 1
    assert drive.catalog.shard(key).status == "READY"
    assert drive.catalog.request(r).status == "RUNNING"
    drive.catalog.begin_shard_run(key, "b")
    assert drive.catalog.settle_shard(key, "b", LATER, 5).retry_at is None
    assert drive.catalog.shard(key).status == "SETTLED"
    assert drive.catalog.request(r).status == "PUBLISHING_RESULTS"


def test_a_run_that_never_began(drive: Driver) -> None:
    r = drive.planned(1, 1)
    key = drive.key(r)
    drive.catalog.mark_submitted([key], LATER)
    drive.catalog.shard_run_ended(key, "", LATER, 5)
    assert drive.catalog.shard(key).attempt == 1
    drive.catalog.begin_shard_run(key, "a")
    drive.catalog.settle_shard(key, "a", LATER, 0)
    drive.catalog.mark_submitted([key], LATER)
    # News of the run before, late: the one that was asked for since is not affected.
    drive.catalog.shard_run_ended(key, "a", LATER, 5)
    shard = drive.catalog.shard(key)
    assert (shard.status, shard.attempt) == ("SUBMITTED", 2)
    drive.catalog.shard_run_ended(key, "b", LATER, 5)
    assert drive.catalog.shard(key).attempt == 3


def test_a_stranger_that_ended_does_not_matter(drive: Driver) -> None:
    r = drive.planned(1, 1)
    drive.catalog.begin_shard_run(drive.key(r), "a")
    drive.take(r, run="a")
    drive.catalog.shard_run_ended(drive.key(r), "z", LATER, 5)
    assert drive.catalog.shard(drive.key(r)).run_id == "a"
    assert drive.statuses(r) == ["RWWW"]


def test_a_shard_of_a_stopped_request_does_not_run(drive: Driver) -> None:
    r = drive.planned(1, 1)
    drive.catalog.cancel(r)
    assert drive.catalog.shards_to_dispatch(LATER, 9) == []
    with pytest.raises(Conflict) as refusal:
        drive.catalog.begin_shard_run(drive.key(r), "a")
    assert str(refusal.value) == (
        f"Shard {r}/00000 is not to run: its request was stopped; retry the request first."
    )


def test_all_tasks_failed(drive: Driver) -> None:
    r = drive.settled(2, 1, fail={0, 1})
    assert drive.catalog.request(r).status == "PUBLISHING_RESULTS"
    over = drive.publish(r)
    assert (over.status, over.error) == (
        "FAILED",
        f"None of the 2 tasks succeeded; the first says: {BROKEN}",
    )
    assert drive.task(r).step(PREDICTION).error_code == "not_found"
