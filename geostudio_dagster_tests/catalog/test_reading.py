from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geostudio_dagster.catalog.database import to_json
from geostudio_dagster.catalog.states import CONNECTOR, PREDICTION
from geostudio_dagster.errors import NotFound
from geostudio_dagster_tests.catalog.driving import LATER, Driver, file_of, seconds


def test_a_summary_counts_everything(drive: Driver) -> None:
    r = drive.planned(4, 2)
    drive.run_shard(r, 0, fail={1})
    drive.catalog.begin_shard_run(drive.key(r, 1), "run1")
    drive.catalog.claim(drive.key(r, 1), CONNECTOR, "run1", 60)
    summary = drive.catalog.summary(r)
    assert summary.request == drive.catalog.request(r)
    assert summary.model.name == "water"
    assert summary.tasks_by_status == {
        "READY": 0,
        "RUNNING": 3,
        "FINISHED": 0,
        "FAILED": 1,
        "STOPPED": 0,
    }
    nothing = {"WAITING": 0, "READY": 0, "RUNNING": 0, "FINISHED": 0, "FAILED": 0, "STOPPED": 0}
    assert summary.steps_by_status[CONNECTOR] == {**nothing, "RUNNING": 2, "FINISHED": 2}
    assert summary.steps_by_status[PREDICTION] == {
        **nothing,
        "WAITING": 2,
        "FINISHED": 1,
        "FAILED": 1,
    }
    assert summary.shards_by_status == {
        "READY": 0,
        "SUBMITTED": 0,
        "RUNNING": 1,
        "SETTLED": 1,
        "STOPPED": 0,
    }
    assert (summary.pixels_done, summary.pixels_total) == (1000, 4000)


def test_a_summary_before_the_plan(drive: Driver) -> None:
    summary = drive.catalog.summary(drive.pending().id)
    assert sum(summary.tasks_by_status.values()) == 0
    assert summary.steps_by_status == {}
    assert (summary.pixels_done, summary.pixels_total) == (0, 0)
    with pytest.raises(NotFound, match=r"^There is no request x\.$"):
        drive.catalog.summary("x")


def test_tasks_in_pages_and_by_status(drive: Driver) -> None:
    r = drive.planned(5, 2)
    drive.run_shard(r, 0, fail={1})
    assert [task.number for task in drive.catalog.tasks(r)] == [0, 1, 2, 3, 4]
    assert [task.number for task in drive.catalog.tasks(r, limit=2, offset=3)] == [3, 4]
    assert [task.number for task in drive.catalog.tasks(r, status="FAILED")] == [1]
    assert [task.number for task in drive.catalog.shard_tasks(drive.key(r, 1))] == [3, 4]
    assert drive.catalog.tasks("x") == []
    with pytest.raises(NotFound, match=r"^There is no task x\.$"):
        drive.catalog.task("x")


def test_the_speed_of_a_model(drive: Driver) -> None:
    model = drive.model()
    assert drive.catalog.prediction_speed(model.id) is None
    drive.planned(1, 1)
    assert drive.catalog.prediction_speed(model.id) is None
    r = drive.planned(2, 1)
    for task, duration in zip(drive.take(r), (0.5, 1.5), strict=True):
        drive.catalog.finish_step(task, CONNECTOR, "run", metrics={"pixels": 9, "seconds": 900})
        drive.take(r, PREDICTION)
        drive.catalog.finish_step(
            task, PREDICTION, "run", metrics={"pixels": 2_000_000, "seconds": duration}
        )
    assert drive.catalog.prediction_speed(model.id) == pytest.approx(2.0)
    assert drive.catalog.prediction_speed(drive.model("fire").id) is None


def test_artifacts_of_tasks_and_requests(drive: Driver) -> None:
    r = drive.planned(2, 1)
    task = f"{r}-task_0"
    drive.catalog.put_artifacts([file_of(r, "mosaic"), file_of(task, "rgb"), file_of(task, "a")])
    drive.catalog.put_artifacts([file_of(task, "rgb", "b")])
    assert drive.catalog.artifact(task, "rgb") == file_of(task, "rgb", "b")
    assert [item.name for item in drive.catalog.artifacts(task)] == ["a", "rgb"]
    assert drive.catalog.artifacts(r) == [file_of(r, "mosaic")]
    with pytest.raises(NotFound, match=rf"^{task} has no artifact stac\.$"):
        drive.catalog.artifact(task, "stac")


def test_an_artifact_of_nobody(drive: Driver) -> None:
    r = drive.planned(1, 1)
    with pytest.raises(NotFound, match=r"^There is no task or request x\.$"):
        drive.catalog.put_artifacts([file_of(r, "mosaic"), file_of("x", "mosaic")])
    assert drive.catalog.artifacts(r) == []


def test_the_last_of_two_artifacts_of_one_role_counts(drive: Driver) -> None:
    r = drive.planned(1, 1)
    drive.catalog.put_artifacts([file_of(r, "stac", "a"), file_of(r, "stac", "b")])
    assert drive.catalog.artifact(r, "stac").sha256 == "b" * 64


def test_events_can_be_followed(drive: Driver) -> None:
    r, other = drive.over(1, 1), drive.over(1, 1)
    events = drive.catalog.events(r)
    assert [event.kind for event in events] == [
        "created",
        "status",
        "planned",
        "status",
        "task_finished",
        "shard_settled",
        "status",
        "status",
    ]
    ids = [event.id for event in events]
    assert ids == sorted(set(ids))
    assert drive.catalog.events(r, after=ids[4]) == events[5:]
    assert drive.catalog.events(r, limit=2) == events[:2]
    assert not {event.id for event in drive.catalog.events(other)} & set(ids)
    assert drive.catalog.events(r, after=ids[-1]) == []


def test_signs_of_life_of_runs(drive: Driver) -> None:
    assert drive.catalog.run_lease("a") is None
    drive.catalog.keep_alive("a", 60, LATER)
    drive.catalog.keep_alive("a", 90, LATER)
    drive.catalog.keep_alive("b", 10, LATER)
    assert drive.catalog.run_lease("a") == LATER + seconds(90)
    drive.catalog.forget_leases(LATER + seconds(60))
    assert drive.catalog.run_lease("b") is None
    assert drive.catalog.run_lease("a") is not None


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(_values)
def test_any_value_becomes_json_that_both_databases_take(value: object) -> None:
    text = to_json(value)
    found = json.loads(text, parse_constant=pytest.fail)
    assert "\0" not in json.dumps(found, ensure_ascii=False).replace("\\u0000", "\0")
    assert to_json(found) == json.dumps(found)


def test_harmless_text_is_kept_to_the_letter() -> None:
    value = {"path": "C:\\u0000", "ü": [1.5, None, "\\\\"]}
    assert json.loads(to_json(value)) == value
    assert json.loads(to_json({"a\0b": "c\0", "x": float("inf")})) == {"ab": "c", "x": None}
    assert json.loads(to_json({"\ud800": ["ö\udfff", "\U0001f600"]})) == {"?": ["ö?", "\U0001f600"]}
