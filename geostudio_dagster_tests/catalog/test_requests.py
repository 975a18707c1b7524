from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from geostudio_dagster.catalog import Catalog, Plan
from geostudio_dagster.catalog.states import CONNECTOR, PREDICTION, PUSH
from geostudio_dagster.errors import Conflict, InvalidRequest, NotFound
from geostudio_dagster_tests.catalog.driving import LATER, STEPS, Driver, plan_of


def test_a_new_request_is_pending(drive: Driver) -> None:
    request = drive.pending(urls=["a"], priority=7)
    assert request == drive.catalog.request(request.id)
    assert (request.status, request.n_tasks, request.priority) == ("PENDING", 0, 7)
    assert request.spec == {"urls": ["a"], "priority": 7}
    assert request.created_at == request.updated_at
    assert request.created_at.utcoffset() == dt.timedelta(0)
    assert request.finished_at is None
    assert [event.kind for event in drive.catalog.events(request.id)] == ["created"]


def test_the_same_request_twice_is_one(drive: Driver) -> None:
    first = drive.pending("0b1c", urls=("a",))
    assert drive.pending("0b1c", urls=["a"]) == first
    assert len(drive.catalog.requests()) == 1
    assert len(drive.catalog.events("0b1c")) == 1


@pytest.mark.parametrize("number", [1e23, 1e308, 10**40, -1.5e-300])
def test_a_new_request_is_new_whatever_numbers_it_has(drive: Driver, number: float) -> None:
    request = drive.pending(client={"number": number})
    assert float(request.spec["client"]["number"]) == float(number)
    assert [found.id for found in drive.catalog.requests()] == [request.id]


@pytest.mark.parametrize("number", [1e23, 1e300, 10**40, -1.5e-300, 0.1])
def test_the_same_request_is_the_same_over_an_upgrade(drive: Driver, number: float) -> None:
    client = {"number": number, "list": [{"number": number}]}
    older = drive.pending("0b1c", urls=["a"], client=client)
    newer = {**client, "list": [{"number": number, "added": None}]}
    assert drive.pending("0b1c", urls=["a"], masking=None, client=newer) == older
    assert len(drive.catalog.events("0b1c")) == 1
    with pytest.raises(Conflict):
        drive.pending("0b1c", urls=["a"], masking={}, client=newer)
    with pytest.raises(Conflict):
        drive.pending("0b1c", urls=["a"], client={**newer, "number": 1.5})


def test_an_id_that_is_taken(drive: Driver) -> None:
    drive.pending("0b1c", urls=["a"])
    sentence = "The id 0b1c belongs to another request; leave the id out or choose a new one."
    with pytest.raises(Conflict) as error:
        drive.pending("0b1c", urls=["b"])
    assert str(error.value) == sentence
    with pytest.raises(Conflict) as error:
        drive.catalog.create_request(
            request_id="0b1c", spec={"urls": ["a"]}, model_id=drive.model().id, owner="bob"
        )
    assert str(error.value) == sentence
    assert drive.catalog.request("0b1c").spec == {"urls": ["a"]}


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "a" * 65, "-a", "a_b"])
def test_an_id_that_is_no_id(drive: Driver, name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        drive.pending(name)
    assert str(error.value) == "id: is not a plain id; use a UUID, or leave it out."
    assert drive.catalog.requests() == []


def test_a_request_for_no_model(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match=r"^There is no model with the id x\.$"):
        catalog.create_request(request_id=None, spec={}, model_id="x", owner="ann")
    assert catalog.requests() == []


def test_requests_are_listed_from_the_newest(drive: Driver) -> None:
    ids = [drive.pending(f"r{n}").id for n in range(5)]
    drive.catalog.cancel("r3")
    assert [r.id for r in drive.catalog.requests()] == ids[::-1]
    assert [r.id for r in drive.catalog.requests(limit=2, offset=1)] == ["r3", "r2"]
    assert [r.id for r in drive.catalog.requests("STOPPED")] == ["r3"]


def test_requests_to_plan_by_priority_then_age(drive: Driver) -> None:
    drive.pending("old")
    drive.pending("new")
    drive.pending("urgent", priority=5)
    drive.pending("gone")
    drive.catalog.cancel("gone")
    drive.catalog.record_plan("new", plan_of("new"))
    assert [r.id for r in drive.catalog.requests_to_plan(10)] == ["urgent", "old"]
    assert [r.id for r in drive.catalog.requests_to_plan(1)] == ["urgent"]


def test_a_plan_becomes_shards_tasks_and_steps(drive: Driver) -> None:
    request = drive.pending("r", priority=3)
    plan = plan_of("r", tasks=5, shards=2)
    assert drive.catalog.record_plan("r", plan) is True
    planned = drive.catalog.request("r")
    assert (planned.status, planned.n_tasks) == ("SUBMITTED", 5)
    assert planned.estimate == {"seconds": 1.5}
    assert planned.updated_at > request.updated_at
    shards = drive.catalog.shards("r")
    assert [(s.key, s.number, s.n_tasks, s.attempt, s.priority) for s in shards] == [
        ("r/00000", 0, 3, 0, 3),
        ("r/00001", 1, 2, 0, 3),
    ]
    assert {s.status for s in shards} == {"READY"}
    tasks = drive.catalog.tasks("r")
    for number, (task, asked) in enumerate(zip(tasks, plan.tasks, strict=True)):
        assert task.number == number
        assert (task.id, task.url, task.date) == (asked.id, asked.url, asked.date)
        assert (task.window, task.scene_size) == (asked.window, asked.scene_size)
        assert (task.footprint, task.pixels) == (asked.footprint, asked.pixels)
        assert [step.process_id for step in task.steps] == list(STEPS)
        assert [step.status for step in task.steps] == ["READY", "WAITING", "WAITING", "WAITING"]
        assert task.status == "READY"
    assert [(e.kind, e.detail) for e in drive.catalog.events("r")][1:] == [
        ("status", {"before": "PENDING", "after": "SUBMITTED"}),
        ("planned", {"tasks": 5, "shards": 2}),
    ]


def test_a_task_of_a_whole_scene_that_nobody_opened(drive: Driver) -> None:
    drive.pending("r")
    task = replace(
        plan_of("r", 1, 1).tasks[0],
        window=None,
        scene_size=None,
        footprint=None,
        pixels=None,
        date=None,
    )
    drive.catalog.record_plan("r", Plan((task,), 1, {}))
    found = drive.catalog.task(task.id)
    assert (found.window, found.scene_size, found.footprint) == (None, None, None)
    assert (found.pixels, found.date) == (None, None)


def test_tasks_may_differ_in_their_steps(drive: Driver) -> None:
    drive.pending("r")
    plan = plan_of("r", 4, 1)
    short = (CONNECTOR, PUSH)
    tasks = tuple(
        replace(task, steps=short) if number == 2 else task
        for number, task in enumerate(plan.tasks)
    )
    drive.catalog.record_plan("r", Plan(tasks, 1, {}))
    assert drive.statuses("r") == ["rWWW", "rWWW", "rW", "rWWW"]


def test_a_plan_recorded_twice_is_one(drive: Driver) -> None:
    request_id = drive.planned(4, 2)
    before = drive.catalog.tasks(request_id)
    events = drive.catalog.events(request_id)
    assert drive.catalog.record_plan(request_id, plan_of(request_id, 9, 3)) is False
    assert drive.catalog.tasks(request_id) == before
    assert drive.catalog.events(request_id) == events
    assert len(drive.catalog.shards(request_id)) == 2


def test_a_cancelled_request_is_not_planned(drive: Driver) -> None:
    drive.pending("r")
    assert drive.catalog.cancel("r").status == "STOPPED"
    assert drive.catalog.record_plan("r", plan_of("r")) is False
    assert drive.catalog.request("r").status == "STOPPED"
    assert drive.catalog.tasks("r") == []
    assert drive.catalog.shards("r") == []


def test_a_failed_plan_can_be_made_good(drive: Driver) -> None:
    drive.pending("r")
    failed = drive.catalog.fail_request("r", "No scene was found.")
    assert (failed.status, failed.error) == ("FAILED", "No scene was found.")
    assert failed.finished_at is not None
    assert drive.catalog.record_plan("r", plan_of("r")) is True
    mended = drive.catalog.request("r")
    assert (mended.status, mended.error, mended.finished_at) == ("SUBMITTED", None, None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"steps": (CONNECTOR, PUSH, PREDICTION)}, "push-to-geoserver is the last step"),
        ({"steps": (CONNECTOR, CONNECTOR)}, "a task has each of its steps once"),
        ({"steps": ()}, "a task has each of its steps once"),
        ({"shard": 1}, "r-task_0 is in shard 1 of 1"),
    ],
)
def test_a_plan_that_contradicts_itself(drive: Driver, change: dict, problem: str) -> None:  # type: ignore[type-arg]
    drive.pending("r")
    task = replace(plan_of("r", 1, 1).tasks[0], **change)
    with pytest.raises(ValueError, match=problem):
        drive.catalog.record_plan("r", Plan((task,), 1, {}))
    assert drive.catalog.request("r").status == "PENDING"


def test_a_plan_that_breaks_off_writes_nothing(drive: Driver) -> None:
    drive.pending("r")
    task = plan_of("r", 1, 1).tasks[0]
    with pytest.raises(Exception, match=r"(?i)unique"):
        drive.catalog.record_plan("r", Plan((task, task), 1, {}))
    assert drive.catalog.request("r").status == "PENDING"
    assert drive.catalog.shards("r") == []
    assert drive.catalog.record_plan("r", plan_of("r")) is True


def test_six_thousand_tasks(drive: Driver) -> None:
    request_id = drive.planned(6_000, 50)
    summary = drive.catalog.summary(request_id)
    assert summary.tasks_by_status["READY"] == 6_000
    assert summary.steps_by_status[CONNECTOR]["READY"] == 6_000
    assert summary.steps_by_status[PUSH]["WAITING"] == 6_000
    assert summary.pixels_total == 6_000_000
    assert {shard.n_tasks for shard in drive.catalog.shards(request_id)} == {120}
    last = drive.catalog.tasks(request_id, limit=1, offset=5_999)[0]
    assert last.shard_key == f"{request_id}/00049"
    assert drive.catalog.cancel(request_id).status == "STOPPED"
    assert drive.catalog.summary(request_id).tasks_by_status["STOPPED"] == 6_000
    assert drive.catalog.retry(request_id) == 6_000
    assert len(drive.catalog.shards_to_dispatch(LATER, 100)) == 50


def test_what_is_not_there(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match=r"^There is no request x\.$"):
        catalog.request("x")
    with pytest.raises(NotFound, match=r"^There is no request x\.$"):
        catalog.record_plan("x", plan_of("x"))
    with pytest.raises(NotFound, match=r"^There is no request x\.$"):
        catalog.is_cancelled("x")
    with pytest.raises(NotFound, match=r"^There is no shard x/00000\.$"):
        catalog.shard("x/00000")
    assert catalog.shards("x") == []
