"""The states of requests, shards, tasks and steps, and every change between them that is allowed.

Whatever is not in a table here cannot happen: a request that was stopped never becomes failed,
a finished step is only ever worked again when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from geostudio_dagster.errors import Conflict

CONNECTOR = "url-connector"
PREDICTION = "terratorch-inference"
POSTPROCESS = "postprocess-generic"
PROCESSOR = "generic-python-processor"
EARLY_PROCESSOR = "generic-python-processor-before-postprocess"
PUSH = "push-to-geoserver"
STEP_ORDER = (CONNECTOR, PREDICTION, EARLY_PROCESSOR, POSTPROCESS, PROCESSOR, PUSH)


class RequestStatus(StrEnum):
    """Where a whole request stands."""

    PENDING = "PENDING"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    PUBLISHING_RESULTS = "PUBLISHING_RESULTS"
    COMPLETED = "COMPLETED"
    COMPLETED_WITH_ERRORS = "COMPLETED_WITH_ERRORS"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class ShardStatus(StrEnum):
    """Where one partition of a request stands."""

    READY = "READY"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    SETTLED = "SETTLED"
    STOPPED = "STOPPED"


class StepStatus(StrEnum):
    """Where a step stands, or a task (a task is never WAITING)."""

    WAITING = "WAITING"
    READY = "READY"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


_R, _S, _T = RequestStatus, ShardStatus, StepStatus
_Table = Mapping[StrEnum, frozenset[StrEnum]]


def _table(changes: Mapping[StrEnum, set[StrEnum]]) -> _Table:
    return MappingProxyType({state: frozenset(after) for state, after in changes.items()})


REQUEST_CHANGES = _table(
    {
        _R.PENDING: {_R.SUBMITTED, _R.FAILED, _R.STOPPED},
        _R.SUBMITTED: {_R.RUNNING, _R.FAILED, _R.STOPPED},
        _R.RUNNING: {_R.PUBLISHING_RESULTS, _R.FAILED, _R.STOPPED},
        _R.PUBLISHING_RESULTS: {
            _R.COMPLETED,
            _R.COMPLETED_WITH_ERRORS,
            _R.FAILED,
            _R.STOPPED,
            _R.RUNNING,  # a shard was reopened
        },
        # Over, until somebody retries it, reopens a shard or publishes it again.
        _R.COMPLETED: {_R.RUNNING, _R.PUBLISHING_RESULTS},
        _R.COMPLETED_WITH_ERRORS: {_R.RUNNING, _R.PUBLISHING_RESULTS},
        _R.FAILED: {_R.SUBMITTED, _R.RUNNING, _R.PUBLISHING_RESULTS},  # SUBMITTED: planned at last
        _R.STOPPED: {_R.RUNNING, _R.PUBLISHING_RESULTS},
    }
)
SHARD_CHANGES = _table(
    {
        # READY to SETTLED: a run that was given up for dead came back and ended the work.
        _S.READY: {_S.SUBMITTED, _S.RUNNING, _S.SETTLED, _S.STOPPED},
        _S.SUBMITTED: {_S.READY, _S.RUNNING, _S.SETTLED, _S.STOPPED},
        _S.RUNNING: {_S.READY, _S.SETTLED, _S.STOPPED},
        _S.SETTLED: {_S.READY, _S.RUNNING},
        _S.STOPPED: {_S.READY, _S.SETTLED},
    }
)
STEP_CHANGES = _table(
    {
        _T.WAITING: {_T.READY, _T.STOPPED},
        _T.READY: {_T.RUNNING, _T.WAITING, _T.FAILED, _T.STOPPED},
        _T.RUNNING: {_T.READY, _T.WAITING, _T.FINISHED, _T.FAILED, _T.STOPPED},
        # FINISHED to FAILED: a layer that was published once could not be published again.
        _T.FINISHED: {_T.READY, _T.WAITING, _T.FAILED},
        _T.FAILED: {_T.READY, _T.WAITING},
        _T.STOPPED: {_T.READY, _T.WAITING},
    }
)
TASK_CHANGES = _table(
    {
        _T.READY: {_T.RUNNING, _T.FAILED, _T.STOPPED},
        _T.RUNNING: {_T.READY, _T.FINISHED, _T.FAILED, _T.STOPPED},
        _T.FINISHED: {_T.READY, _T.RUNNING, _T.FAILED},
        _T.FAILED: {_T.READY, _T.RUNNING},
        _T.STOPPED: {_T.READY, _T.RUNNING},
    }
)

LIVE_REQUESTS = frozenset({_R.PENDING, _R.SUBMITTED, _R.RUNNING, _R.PUBLISHING_RESULTS})
LIVE_SHARDS = frozenset({_S.SUBMITTED, _S.RUNNING})

_State = TypeVar("_State", bound=StrEnum)


def changed(table: _Table, what: str, current: _State, target: _State) -> _State:
    """``target``, if ``current`` may become it (or is it already).

    Raises:
        Conflict: the table does not have this change.
    """
    if target != current and target not in table[current]:
        raise Conflict(f"{what} is {current} and cannot become {target}.")
    return target


def sources(table: _Table, target: _State) -> list[_State]:
    """The states that may become ``target``, for the WHERE of a bulk change."""
    kind = type(target)
    return [kind(state) for state, after in table.items() if target in after]


def task_status(steps: Iterable[StepStatus]) -> StepStatus:
    """A task's status as its steps (in order) make it; ``changes.derived_status`` in SQL."""
    states = set(steps)
    for state in (_T.RUNNING, _T.FAILED, _T.STOPPED):
        if state in states:
            return state
    if states == {_T.FINISHED}:
        return _T.FINISHED
    return _T.RUNNING if _T.FINISHED in states else _T.READY
