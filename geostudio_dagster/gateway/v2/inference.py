"""Requests: written, tried dry, listed, followed, stopped, tried again, deleted."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from geostudio_dagster.catalog import RequestRecord, RequestStatus, StepStatus
from geostudio_dagster.catalog.listing import RequestFilter
from geostudio_dagster.errors import Conflict, InvalidRequest, NotFound
from geostudio_dagster.gateway.paging import Envelope, Page
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller, Principal
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.v2 import documents
from geostudio_dagster.gateway.v2.inference_schemas import (
    InferenceCreateInput,
    InferenceGetResponse,
    InferenceTasksListResponse,
    LayersOut,
    Message,
    Retried,
    V2PipelineCreate,
)
from geostudio_dagster.gateway.v2.submission import submit, understand
from geostudio_dagster.gateway.v2.trial_documents import trial_document

router = APIRouter(prefix="/inference", tags=["inference"])

NOT_FOUND = "Inference not found"
CANCELLING = "Cancel inference request accepted.Inference tasks will be terminated gracefully."
_MOST_TASKS = 1_000_000
_standings = documents.Standings()


class GeoJSONResponse(JSONResponse):
    """A feature collection."""

    media_type = "application/geo+json"


@router.post(
    "",
    operation_id="create_inference",
    status_code=201,
    response_model=InferenceGetResponse | V2PipelineCreate,
    responses=responses(404, 409, 429),
)
def create(
    wish: InferenceCreateInput, caller: Caller, place: Place, dry_run: bool = False
) -> Response:
    """Accept a request; it is planned and worked at once. With ``dry_run`` nothing is written."""
    if dry_run:
        return try_dry(wish, caller, place)
    return _answer(place, submit(place, caller, wish), 201)


@router.post(
    "/dry-run",
    operation_id="dry_run_inference",
    status_code=201,
    response_model=V2PipelineCreate,
    responses=responses(404),
)
def try_dry(wish: InferenceCreateInput, caller: Caller, place: Place) -> Response:
    """What a request would take and whether it would be accepted; nothing is written."""
    understood = understand(place, caller, wish, in_full=False)
    return JSONResponse(trial_document(place, caller, understood), status_code=201)


async def _filter(
    *,
    model_id: UUID | None = None,
    tune_id: Annotated[str | None, Query(max_length=100)] = None,
    created_by: Annotated[str | None, Query(max_length=200)] = None,
    location: Annotated[str | None, Query(max_length=200)] = None,
    saved: bool | None = None,
    status: Annotated[list[RequestStatus] | None, Query(max_length=20)] = None,
    created_after: dt.datetime | None = None,
    created_before: dt.datetime | None = None,
) -> RequestFilter:
    return RequestFilter(
        statuses=tuple(status or ()),
        card_id=str(model_id) if model_id else None,
        tune_id=tune_id,
        created_by=created_by,
        location=location,
        saved=saved,
        created_after=_aware(created_after, "created_after"),
        created_before=_aware(created_before, "created_before"),
    )


def _aware(moment: dt.datetime | None, field: str) -> dt.datetime | None:
    """The time in UTC, which is also what one without a zone is taken for."""
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except OverflowError as error:
        raise InvalidRequest(
            field, f"{moment} is not a time in UTC", "use one of our era"
        ) from error


@router.get("", operation_id="list_inferences", response_model=Envelope[InferenceGetResponse])
def list_inferences(
    wanted: Annotated[RequestFilter, Depends(_filter)], page: Page, caller: Caller, place: Place
) -> Response:
    """The caller's requests and those shared with their groups; the latest first."""
    total, records = place.catalog.list_requests(caller.viewer, wanted, page)
    results = documents.inference_documents(place, _standings, records)
    return JSONResponse({"total_records": total, "page_count": len(results), "results": results})


@router.get(
    "/{inference_id}",
    operation_id="get_inference",
    response_model=InferenceGetResponse,
    responses=responses(404),
)
def get(inference_id: UUID, caller: Caller, place: Place) -> Response:
    """A request and how far it is."""
    return _answer(place, _visible(place, caller, inference_id))


@router.delete(
    "/{inference_id}", operation_id="delete_inference", status_code=204, responses=responses(404)
)
def delete(inference_id: UUID, caller: Caller, place: Place) -> None:
    """Remove a request; what of it still runs is stopped. Its files go after a time."""
    with _as_missing():
        record = place.catalog.delete_request(str(inference_id), caller.viewer)
    place.launcher.cancelled(record.id)


@router.post(
    "/{inference_id}/cancel",
    operation_id="cancel_inference",
    status_code=202,
    responses=responses(404),
)
def cancel(inference_id: UUID, caller: Caller, place: Place) -> Message:
    """Stop a request: what waits never runs, what runs is ended."""
    record = _owned(place, caller, inference_id)
    try:
        place.catalog.cancel(record.id)
    except Conflict:
        status = place.catalog.request(record.id).status
        return Message(msg=f"Inference in {status} end state cannot be stopped.")
    place.launcher.cancelled(record.id)
    return Message(msg=CANCELLING)


@router.post(
    "/{inference_id}/retry",
    operation_id="retry_inference",
    status_code=202,
    responses=responses(404, 409),
)
def retry(inference_id: UUID, caller: Caller, place: Place) -> Retried:
    """Run the failed and stopped tasks of a request again, and only those."""
    record = _owned(place, caller, inference_id)
    tasks = place.catalog.retry(record.id)
    place.launcher.retried(record.id)
    return Retried(msg=f"{tasks} tasks will run again.", tasks=tasks)


@router.get(
    "/{inference_id}/tasks",
    operation_id="list_inference_tasks",
    response_model=InferenceTasksListResponse,
    responses=responses(404),
)
def tasks(
    *,
    inference_id: UUID,
    caller: Caller,
    place: Place,
    status: StepStatus | None = None,
    limit: Annotated[int | None, Query(ge=1, le=_MOST_TASKS)] = None,
    skip: Annotated[int, Query(ge=0, le=_MOST_TASKS)] = 0,
) -> Response:
    """All tasks of a request (or a page of them) in the order of the plan, planning last."""
    record = _visible(place, caller, inference_id)
    body = _tasks_body(place, record, status, skip, limit)
    return _whole_or_streamed(body, "application/json")


def _tasks_body(
    place: GatewayPlace,
    record: RequestRecord,
    status: StepStatus | None,
    skip: int,
    limit: int | None,
) -> Iterator[str]:
    head = {
        "inference_id": record.id,
        "status": record.status.value,
        "total_records": record.n_tasks + 1,
    }
    found = place.catalog.each_task(record.id, status=status, skip=skip, limit=limit)
    reaches_end = limit is None or skip + limit > record.n_tasks
    planning = [documents.planning_document(record)]
    if skip > record.n_tasks or not reaches_end or status not in (None, planning[0]["status"]):
        planning = []
    items = chain(map(documents.task_document, found), planning)
    return _with_list(head, "tasks", items)


def _with_list(head: dict[str, Any], name: str, items: Iterable[Any]) -> Iterator[str]:
    """A JSON object that ends in a long list, in pieces."""
    text = f'{json.dumps(head)[:-1]}, "{name}": ['
    separator = ""
    for part in batched(items):
        if separator:
            yield text
            text = ""
        text += separator + ", ".join(map(json.dumps, part))
        separator = ", "
    yield text + "]}"


def _whole_or_streamed(pieces: Iterator[str], media_type: str) -> Response:
    """What is one piece is sent as such; more are sent as they are made."""
    first, second = next(pieces), next(pieces, None)
    if second is None:
        return Response(first, media_type=media_type)
    return StreamingResponse(chain((first, second), pieces), media_type=media_type)


def batched(items: Iterable[Any], size: int = 200) -> Iterator[list[Any]]:
    """The items in lists of at most ``size``."""
    remaining = iter(items)
    while part := list(islice(remaining, size)):
        yield part


@router.get(
    "/{inference_id}/tasks.geojson",
    operation_id="inference_tasks_geojson",
    response_class=GeoJSONResponse,
    responses=responses(404),
)
def tasks_geojson(inference_id: UUID, caller: Caller, place: Place) -> Response:
    """The outlines of a request's tasks (EPSG:4326) with how each stands."""
    record = _visible(place, caller, inference_id)
    items = documents.features(place.catalog.each_task(record.id))
    body = _with_list({"type": "FeatureCollection"}, "features", items)
    return _whole_or_streamed(body, GeoJSONResponse.media_type)


@router.get("/{inference_id}/layers", operation_id="inference_layers", responses=responses(404))
def layers(inference_id: UUID, request: Request, caller: Caller, place: Place) -> LayersOut:
    """The published layers of a request, with their styles and the addresses of their tiles."""
    record = _visible(place, caller, inference_id)
    base = str(request.base_url).rstrip("/")
    found = place.catalog.layers(record.id)
    return LayersOut(
        inference_id=record.id,
        layers=[documents.layer_document(place, layer, n, base) for n, layer in enumerate(found)],
    )


def _answer(place: GatewayPlace, record: RequestRecord, code: int = 200) -> JSONResponse:
    document = documents.inference_documents(place, _standings, [record])[0]
    return JSONResponse(document, status_code=code)


def _visible(place: GatewayPlace, caller: Principal, inference_id: UUID) -> RequestRecord:
    with _as_missing():
        return place.catalog.visible_request(str(inference_id), caller.viewer)


def _owned(place: GatewayPlace, caller: Principal, inference_id: UUID) -> RequestRecord:
    with _as_missing():
        return place.catalog.owned_request(str(inference_id), caller.viewer)


@contextmanager
def _as_missing() -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise HTTPException(404, NOT_FOUND) from error
