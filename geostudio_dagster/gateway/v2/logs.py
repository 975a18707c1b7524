"""What the steps of a task said, while they run and afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from geostudio_dagster.catalog import RequestRecord, StepStatus
from geostudio_dagster.catalog.states import PUSH
from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.grants import Guest, Visitor, link_life
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.ranges import last_lines, ranged
from geostudio_dagster.gateway.v2.documents import planning_status
from geostudio_dagster.pipeline.steplog import request_log_key, step_log_key
from geostudio_dagster.signing import GRANT

router = APIRouter(prefix="/tasks", tags=["tasks"])
open_router = APIRouter(prefix="/tasks", tags=["tasks"], responses=responses(401, 403, 404))

PLANNER, PLANNING = "inference-planner", "-task_planning"
INCOMPLETE = "Logs are incomplete - task is still running"
_GROWING = (StepStatus.RUNNING, StepStatus.READY)
_PLAIN = "text/plain"

TaskId = Annotated[str, Path(min_length=1, max_length=100)]
StepId = Annotated[str, Path(min_length=1, max_length=100, description="Process id of the step.")]
TailLines = Annotated[
    int | None, Query(ge=1, le=1_000_000, description="The last lines only; all if left out.")
]


class StepLog(BaseModel):
    """Where a step's log is read, with HTTP Range, without a key and for a time."""

    task_id: str
    step_id: str
    step_log_url: str
    status: StepStatus
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    """A step as far as its log goes."""

    status: StepStatus
    key: str


@router.get(
    "/{task_id}/logs/{step_id}",
    operation_id="get_task_step_logs",
    response_model=StepLog,
    responses={**responses(404, 409), 200: {"content": {_PLAIN: {"schema": {"type": "string"}}}}},
)
def describe(
    task_id: TaskId,
    step_id: StepId,
    request: Request,
    caller: Caller,
    place: Place,
    *,
    allow_incomplete: bool = True,
    tail_lines: TailLines = None,
    force_refresh: Annotated[bool, Query(description="Always so: logs are read as they are.")] = (
        False
    ),
) -> StepLog | Response:
    """Where the log of a step is; with ``Accept: text/plain`` the log itself."""
    step = _step(place, Visitor(place, caller), task_id, step_id)
    growing = step.status in _GROWING
    if step.status == StepStatus.WAITING or (growing and not place.storage.exists(step.key)):
        raise _not_yet(step_id, step.status)
    if growing and not allow_incomplete:
        raise _not_yet(step_id, step.status)
    if not place.storage.exists(step.key):
        raise HTTPException(404, {"msg": f"There are no logs of step {step_id}."})
    if request.headers.get("accept", "").split(";")[0].strip() == _PLAIN:
        return _text(place, step, request, tail_lines)
    return StepLog(
        task_id=task_id,
        step_id=step_id,
        step_log_url=_address(request, place, task_id, step_id, tail_lines),
        status=step.status,
        warning=INCOMPLETE if growing else None,
    )


@open_router.api_route(
    "/{task_id}/logs/{step_id}/text",
    methods=["GET", "HEAD"],
    operation_id="read_task_step_log",
    responses={200: {"content": {_PLAIN: {"schema": {"type": "string"}}}}},
    response_class=Response,
)
def read(
    *,
    task_id: TaskId,
    step_id: StepId,
    request: Request,
    guest: Guest,
    place: Place,
    tail_lines: TailLines = None,
) -> Response:
    """The log itself, or a range of it; more comes while the step runs."""
    guest.may(_scope(task_id, step_id))
    step = _step(place, guest, task_id, step_id)
    if not place.storage.exists(step.key):
        raise HTTPException(404, {"msg": f"There are no logs of step {step_id}."})
    return _text(place, step, request, tail_lines)


def _step(place: GatewayPlace, guest: Visitor, task_id: str, step_id: str) -> _Step:
    """The step, if whoever looks may see it.

    Raises:
        HTTPException: 404, there is no such task or step, or it is somebody else's.
    """
    try:
        if task_id.endswith(PLANNING):
            return _planning(_request(place, guest, task_id.removesuffix(PLANNING)), step_id)
        task = place.catalog.task(task_id)
        _request(place, guest, task.request_id)
        step = task.step(step_id)
    except NotFound as error:
        raise HTTPException(404, "Task not found") from error
    except KeyError as error:
        raise HTTPException(404, {"msg": f"Step {step_id} not found in task"}) from error
    if step_id == PUSH:  # done once for all tasks
        return _Step(step.status, request_log_key(task.request_id, step_id))
    return _Step(step.status, step_log_key(task.request_id, task.id, step_id))


def _request(place: GatewayPlace, guest: Visitor, request_id: str) -> RequestRecord:
    if guest.principal is not None:
        return place.catalog.visible_request(request_id, guest.principal.viewer)
    record = place.catalog.request(request_id)
    if record.deleted_at is not None:
        raise NotFound(f"There is no request {request_id}.")
    return record


def _planning(record: RequestRecord, step_id: str) -> _Step:
    if step_id != PLANNER:
        raise KeyError(step_id)
    return _Step(
        planning_status(record), step_log_key(record.id, f"{record.id}{PLANNING}", step_id)
    )


def _not_yet(step_id: str, status: StepStatus) -> HTTPException:
    message = f"Step {step_id} has status '{status}'. Logs may not be available yet."
    return HTTPException(409, {"msg": message, "status": status})


def _text(place: GatewayPlace, step: _Step, request: Request, tail_lines: int | None) -> Response:
    data = place.storage.read_bytes(step.key)
    if tail_lines is not None:
        data = last_lines(data, tail_lines)
    return ranged(data, request, f"{_PLAIN}; charset=utf-8")


def _scope(task_id: str, step_id: str) -> str:
    return f"log:{task_id}/{step_id}"


def _address(
    request: Request, place: GatewayPlace, task_id: str, step_id: str, tail_lines: int | None
) -> str:
    base = str(request.base_url).rstrip("/")
    token = place.signer.sign(_scope(task_id, step_id), link_life(place))
    tail = f"tail_lines={tail_lines}&" if tail_lines is not None else ""
    return f"{base}/v2/tasks/{task_id}/logs/{step_id}/text?{tail}{GRANT}={token}"
