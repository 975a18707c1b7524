from __future__ import annotations

import itertools

import pytest

from geostudio_dagster.catalog.states import (
    REQUEST_CHANGES,
    SHARD_CHANGES,
    STEP_CHANGES,
    TASK_CHANGES,
    RequestStatus,
    ShardStatus,
    StepStatus,
    changed,
    sources,
    task_status,
)
from geostudio_dagster.errors import Conflict

T = StepStatus


def test_every_state_has_its_row() -> None:
    assert set(REQUEST_CHANGES) == set(RequestStatus)
    assert set(SHARD_CHANGES) == set(ShardStatus)
    assert set(STEP_CHANGES) == set(StepStatus)
    assert set(TASK_CHANGES) == set(StepStatus) - {T.WAITING}


@pytest.mark.parametrize("table", [REQUEST_CHANGES, STEP_CHANGES, TASK_CHANGES])
def test_what_is_stopped_never_fails(table: dict[str, frozenset[str]]) -> None:
    assert "FAILED" not in table["STOPPED"]


def test_a_forbidden_change_is_one_sentence() -> None:
    with pytest.raises(Conflict) as refusal:
        changed(REQUEST_CHANGES, "Request 7", RequestStatus.STOPPED, RequestStatus.FAILED)
    assert str(refusal.value) == "Request 7 is STOPPED and cannot become FAILED."


def test_staying_is_always_allowed() -> None:
    for status in StepStatus:
        assert changed(STEP_CHANGES, "Step", status, status) == status


def test_sources_are_the_table_read_backwards() -> None:
    assert sources(STEP_CHANGES, T.FINISHED) == [T.RUNNING]
    assert sources(SHARD_CHANGES, ShardStatus.SUBMITTED) == [ShardStatus.READY]


@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ([T.READY, T.WAITING], T.READY),
        ([T.RUNNING, T.WAITING], T.RUNNING),
        ([T.FINISHED, T.READY], T.RUNNING),
        ([T.FINISHED, T.FINISHED], T.FINISHED),
        ([T.FINISHED, T.FAILED, T.WAITING], T.FAILED),
        ([T.FINISHED, T.STOPPED, T.STOPPED], T.STOPPED),
        ([T.RUNNING, T.STOPPED], T.RUNNING),
        ([T.FAILED, T.STOPPED], T.FAILED),
    ],
)
def test_a_task_is_what_its_steps_are(steps: list[StepStatus], status: StepStatus) -> None:
    assert task_status(steps) == status


def test_no_set_of_steps_leaves_a_task_waiting() -> None:
    for steps in itertools.product(StepStatus, repeat=3):
        assert task_status(steps) != T.WAITING
