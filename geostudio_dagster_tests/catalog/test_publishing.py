from __future__ import annotations

import pytest

from geostudio_dagster.catalog import LayerRecord
from geostudio_dagster.catalog.states import PUSH
from geostudio_dagster.errors import Conflict, LeaseLost, NotFound, TaskError
from geostudio_dagster_tests.catalog.driving import LATER, Driver, seconds

REFUSED = TaskError("geoserver", "GeoServer says: no such workspace.")


def layer(request_id: str, name: str = "pred", digest: str = "d" * 64) -> LayerRecord:
    return LayerRecord(
        request_id=request_id,
        name=name,
        title="Water, predicted",
        kind="raster",
        bounds=(15.0, 47.5, 15.25, 48.0),
        style={"classes": [{"value": 1, "colour": "#1f78b4"}]},
        granules=({"task_id": f"{request_id}-task_0", "key": "k", "bounds": [15, 47, 16, 48]},),
        uri=f"geofm:{request_id}-{name}",
        digest=digest,
        published_at=LATER,
    )


def test_a_settled_request_is_published_once(drive: Driver) -> None:
    r = drive.settled(2, 1)
    due = drive.catalog.requests_to_publish(LATER)
    assert [(request.id, request.publish_attempt) for request in due] == [(r, 1)]
    begun = drive.catalog.begin_publish(r, "push")
    assert (begun.status, begun.publish_run_id) == ("PUBLISHING_RESULTS", "push")
    assert drive.catalog.requests_to_publish(LATER) == []
    assert drive.statuses(r) == ["FFFR", "FFFR"]
    over = drive.catalog.finish_publish(r, {}, run_id="push", now=LATER)
    assert (over.status, over.error, over.finished_at) == ("COMPLETED", None, LATER)
    assert drive.statuses(r) == ["FFFF", "FFFF"]
    assert drive.task(r).status == "FINISHED"
    assert drive.task(r).step(PUSH).attempts == 1
    assert drive.catalog.events(r)[-1].detail == {
        "before": "PUBLISHING_RESULTS",
        "after": "COMPLETED",
    }


def test_some_tasks_failed(drive: Driver) -> None:
    r = drive.settled(3, 1, fail={1})
    assert [task.number for task in drive.catalog.publishable_tasks(r)] == [0, 2]
    over = drive.publish(r)
    assert (over.status, over.error) == ("COMPLETED_WITH_ERRORS", "1 of 3 tasks did not succeed.")
    assert drive.statuses(r) == ["FFFF", "FXWW", "FFFF"]


def test_some_tasks_cannot_be_published(drive: Driver) -> None:
    r = drive.settled(2, 1)
    over = drive.publish(r, failed={f"{r}-task_1": REFUSED})
    assert over.status == "COMPLETED_WITH_ERRORS"
    assert drive.statuses(r) == ["FFFF", "FFFX"]
    assert drive.task(r, 1).error == "GeoServer says: no such workspace."
    assert [task.number for task in drive.catalog.publishable_tasks(r)] == [0]


def test_publishable_tasks_come_in_pages(drive: Driver) -> None:
    r = drive.settled(8, 1, fail={0, 5})
    for page_size in (1, 2, 6, 500):
        tasks = drive.catalog.publishable_tasks(r, page_size)
        assert [task.number for task in tasks] == [1, 2, 3, 4, 6, 7]


def test_not_before_everything_is_settled(drive: Driver) -> None:
    r = drive.planned(2, 2)
    drive.run_shard(r, 0)
    with pytest.raises(Conflict) as refusal:
        drive.catalog.begin_publish(r, "push")
    assert str(refusal.value) == (
        f"Request {r} is RUNNING: it is published when all its shards are settled."
    )


def test_nothing_to_publish(drive: Driver) -> None:
    drive.pending("r")
    drive.catalog.fail_request("r", "No scene was found.")
    with pytest.raises(Conflict, match=r"^Request r is FAILED and has nothing to publish\.$"):
        drive.catalog.begin_publish("r", "push")


def test_the_last_to_begin_publishes(drive: Driver) -> None:
    r = drive.settled(1, 1)
    drive.catalog.begin_publish(r, "a")
    drive.catalog.begin_publish(r, "b")
    with pytest.raises(LeaseLost) as lost:
        drive.catalog.finish_publish(r, {}, run_id="a")
    assert str(lost.value) == (
        f"Request {r} is PUBLISHING_RESULTS and not being published by run a any more."
    )
    assert drive.catalog.finish_publish(r, {}, run_id="b").status == "COMPLETED"
    with pytest.raises(LeaseLost):
        drive.catalog.finish_publish(r)


def test_publishing_again_what_is_over(drive: Driver) -> None:
    r = drive.over(2, 1)
    again = drive.catalog.begin_publish(r, "again")
    assert (again.status, again.publish_attempt, again.finished_at) == (
        "PUBLISHING_RESULTS",
        2,
        None,
    )
    assert drive.catalog.requests_to_publish(LATER) == []
    assert drive.statuses(r) == ["FFFF", "FFFF"]
    assert drive.catalog.finish_publish(r, {}, run_id="again").status == "COMPLETED"


def test_publishing_again_mends_what_could_not_be_published(drive: Driver) -> None:
    r = drive.settled(2, 1)
    drive.publish(r, failed={f"{r}-task_1": REFUSED})
    assert drive.publish(r, "again").status == "COMPLETED"
    assert (drive.task(r, 1).error, drive.task(r, 1).step(PUSH).error) == (None, None)
    drive.publish(r, "worse", failed={f"{r}-task_0": REFUSED})
    assert drive.statuses(r) == ["FFFX", "FFFF"]


def test_a_deferred_publication(drive: Driver) -> None:
    r = drive.settled(2, 1)
    for failure, delay in ((1, 5), (2, 10)):
        drive.catalog.begin_publish(r, f"push{failure}")
        deferred = drive.catalog.defer_publish(r, "GeoServer is away.", LATER, 5, 3)
        assert (deferred.status, deferred.error) == ("PUBLISHING_RESULTS", "GeoServer is away.")
        assert deferred.publish_attempt == 1 + failure
        assert drive.statuses(r) == ["FFFr", "FFFr"]
        assert drive.catalog.requests_to_publish(LATER + seconds(delay - 1)) == []
        assert len(drive.catalog.requests_to_publish(LATER + seconds(delay))) == 1
    drive.catalog.begin_publish(r, "push3")
    over = drive.catalog.defer_publish(r, REFUSED, LATER, 5, 3)
    assert over.status == "FAILED"
    text = "The layer could not be published: GeoServer says: no such workspace."
    assert over.error == f"None of the 2 tasks succeeded; the first says: {text}"
    assert drive.statuses(r) == ["FFFX", "FFFX"]
    assert (drive.task(r).error, drive.task(r).step(PUSH).error_code) == (text, "geoserver")


def test_deferring_what_another_run_publishes(drive: Driver) -> None:
    r = drive.settled(1, 1)
    drive.catalog.begin_publish(r, "b")
    drive.catalog.defer_publish(r, "lost", LATER, 5, 3, run_id="a")
    assert drive.catalog.request(r).publish_run_id == "b"
    over = drive.catalog.finish_publish(r, {}, run_id="b")
    assert drive.catalog.defer_publish(r, "lost", LATER, 5, 3) == over


def test_an_error_for_a_task_of_another_request(drive: Driver) -> None:
    r, other = drive.settled(1, 1), drive.settled(1, 1)
    drive.catalog.begin_publish(r, "push")
    with pytest.raises(NotFound) as error:
        drive.catalog.finish_publish(r, {f"{other}-task_0": REFUSED})
    assert str(error.value) == f"Request {r} has no task {other}-task_0 to publish."
    assert drive.statuses(r) == ["FFFR"]
    assert drive.statuses(other) == ["FFFr"]


def test_layers_replace_those_before(drive: Driver) -> None:
    r = drive.settled(1, 1)
    first = [layer(r, "pred"), layer(r, "input_rgb")]
    drive.catalog.record_layers(r, first)
    assert drive.catalog.layers(r) == first
    second = [layer(r, "pred", "e" * 64)]
    drive.catalog.record_layers(r, second)
    assert drive.catalog.layers(r) == second
    event = drive.catalog.events(r)[-1]
    assert (event.kind, event.detail) == ("layers_ready", {"layers": ["pred"]})
    assert drive.catalog.layers("nothing") == []
