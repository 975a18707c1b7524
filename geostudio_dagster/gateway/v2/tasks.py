"""The tasks of requests: how each stands, what it made, and another try."""

from __future__ import annotations

import datetime as dt
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Path, Request
from fastapi.responses import JSONResponse

from geostudio_dagster.catalog import StepStatus, TaskRecord
from geostudio_dagster.errors import Conflict, NotFound
from geostudio_dagster.gateway.grants import link_life
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller, Principal
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.v2 import documents
from geostudio_dagster.gateway.v2.inference_schemas import OutputLink, Retried, TaskDetail

router = APIRouter(prefix="/tasks", tags=["tasks"])

ARCHIVE = "archive"
NOT_FOUND = {"msg": "Task not found"}
NOT_COMPLETED = {"msg": "Task is not completed. Output URL is not available."}
_PLANNING = "-task_planning"

TaskId = Annotated[
    str, Path(min_length=1, max_length=100, description="<inference>-task_<n>, or a part of one.")
]


@router.get(
    "/{task_id}", operation_id="get_task", response_model=TaskDetail, responses=responses(404)
)
def get(task_id: TaskId, caller: Caller, place: Place) -> JSONResponse:
    """A task with its steps."""
    if task_id.endswith(_PLANNING):
        return JSONResponse(_planning(place, caller, task_id))
    return JSONResponse(documents.task_detail(_task(place, caller, task_id)))


@router.get("/{task_id}/output", operation_id="get_task_output", responses=responses(404, 409))
def output(task_id: TaskId, request: Request, caller: Caller, place: Place) -> OutputLink:
    """Where the task's archive is downloaded, with HTTP Range, without a key and for a time."""
    return _link(request, caller, place, task_id)


@router.get(
    "/{task_id}/output-url", operation_id="get_task_output_url", responses=responses(404, 409)
)
def output_url(task_id: TaskId, request: Request, caller: Caller, place: Place) -> OutputLink:
    """The same as ``output``, under the name that the guide gives it."""
    return _link(request, caller, place, task_id)


@router.post(
    "/{task_id}/retry",
    operation_id="retry_task",
    status_code=202,
    responses=responses(404, 409),
)
def retry(task_id: TaskId, caller: Caller, place: Place) -> Retried:
    """Run a failed or stopped task again, from the step at which it ended."""
    task = _task(place, caller, task_id, to_change=True)
    if task.status not in (StepStatus.FAILED, StepStatus.STOPPED):
        raise Conflict(f"Task {task_id} is {task.status}: there is nothing to retry.")
    tasks = place.catalog.retry(task.request_id, task.id)
    place.launcher.retried(task.request_id)
    return Retried(msg="The task will run again.", tasks=tasks)


def _link(request: Request, caller: Principal, place: GatewayPlace, task_id: str) -> OutputLink:
    task = _task(place, caller, task_id)
    if task.status != StepStatus.FINISHED:
        raise HTTPException(409, NOT_COMPLETED)
    try:
        archive = place.catalog.artifact(task.id, ARCHIVE)
    except NotFound as error:
        raise HTTPException(409, NOT_COMPLETED) from error
    grant = documents.page_grant(place, task.request_id)
    address = f"{str(request.base_url).rstrip('/')}/files/{quote(archive.key)}"
    link = f"{address}?{grant}" if grant else address
    return OutputLink(
        task_id=task.id,
        output_url=link,
        url=link,
        expires_at=dt.datetime.now(dt.UTC) + link_life(place),
        size=archive.size,
        sha256=archive.sha256,
    )


def _task(
    place: GatewayPlace, caller: Principal, task_id: str, *, to_change: bool = False
) -> TaskRecord:
    try:
        return place.catalog.visible_task(task_id, caller.viewer, to_change=to_change)
    except NotFound as error:
        raise HTTPException(404, NOT_FOUND) from error


def _planning(place: GatewayPlace, caller: Principal, task_id: str) -> documents.Document:
    try:
        record = place.catalog.visible_request(task_id.removesuffix(_PLANNING), caller.viewer)
    except NotFound as error:
        raise HTTPException(404, NOT_FOUND) from error
    nothing = dict.fromkeys(("pixels", "scene_size", "window", "footprint"))
    return documents.planning_document(record) | nothing
