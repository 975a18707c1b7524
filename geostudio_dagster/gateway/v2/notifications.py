"""Notifications about requests: posted, listed, and live in the form that GEOStudio streams.

What happens to a request is among them, in GEOStudio's words. A notification only informs: no
status, layer or result follows from one.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Any
from uuid import NAMESPACE_OID, UUID, uuid5

from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from geostudio_dagster.catalog import EventRecord, RequestRecord
from geostudio_dagster.catalog.notifications import NOTIFICATION, NotificationRecord
from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.grants import Guest
from geostudio_dagster.gateway.paging import Envelope
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.times import ApiTime, api_time
from geostudio_dagster.gateway.v2.events import EventId, EventSourceResponse, follow

router = APIRouter(prefix="/notifications", tags=["notifications"])
open_router = APIRouter(prefix="/async", tags=["notifications"], responses=responses(401, 403, 404))

SOURCE = "geostudio_dagster"
EMPTY = 'detail is empty; say in it what happened, such as {"message": "..."}.'
_LONGEST_DETAIL = 64 * 1024
_LARGEST_ID = 2**63 - 1
_MOST = 1000
_FIRST_YEAR, _LAST_YEAR = 1970, 9000

_NOTIFY, _UPDATED, _ERROR = "Inf:Task:Notify", "Inf:Task:Updated", "Inf:Task:Error"
_LAYER_READY, _COMPLETE = "Inf:Task:LayerReady", "Inf:Task:Complete"
# What happened -> type and message. Kinds that are not here concern the operator.
_HAPPENED: dict[str, tuple[str, str | None]] = {
    "created": (_NOTIFY, "Planning inference tasks .."),
    "planned": (_NOTIFY, "Inference tasks added to queue."),
    "status": (_UPDATED, None),
    "task_finished": (_NOTIFY, "A task finished."),
    "task_failed": (_ERROR, "A task failed."),
    "layers_ready": (_LAYER_READY, "Data visualization ready."),
    "publish_deferred": (_NOTIFY, "Pushing data to GeoServer..."),
    "publish_failed": (_ERROR, "The layers could not be published."),
    "webhook_failed": (_ERROR, "The webhook could not be told."),
    "cancel_requested": (_NOTIFY, "Stopping the inference .."),
    "retried": (_NOTIFY, "Trying again what failed .."),
}


def _utc(value: dt.datetime) -> dt.datetime:
    aware = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
    if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise ValueError(f"is not between the years {_FIRST_YEAR} and {_LAST_YEAR}")
    return aware.astimezone(dt.UTC)


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value)) > _LONGEST_DETAIL:
        raise ValueError(f"is larger than {_LONGEST_DETAIL} characters of JSON")
    return value


class NotificationCreate(BaseModel):
    """A message about a request of the sender's."""

    event_id: UUID = Field(description="The request's id.")
    detail_type: str = Field(min_length=1, max_length=100, examples=[_NOTIFY])
    source: str = Field(min_length=1, max_length=100, description="The service that says so.")
    timestamp: Annotated[dt.datetime, AfterValidator(_utc)]
    detail: Annotated[dict[str, Any], AfterValidator(_bounded)]
    inference_id: UUID | None = Field(
        default=None, description="The request's id, where event_id is another."
    )


class NotificationDetail(BaseModel):
    """What a message says; senders may add to it."""

    model_config = ConfigDict(extra="allow")

    message: str | None = None
    error: str | None = None
    status: str | None = None


class NotificationOut(BaseModel):
    """A message."""

    id: UUID
    detail: NotificationDetail
    source: str
    detail_type: str
    timestamp: ApiTime
    event_id: UUID


@router.post(
    "", status_code=201, operation_id="create_notification", responses=responses(404, 409, 412)
)
def create(message: NotificationCreate, caller: Caller, place: Place) -> NotificationOut:
    """Tell who listens to a request of one's own something."""
    if not message.detail:
        raise HTTPException(412, EMPTY)
    request_id = str(message.inference_id or message.event_id)
    try:
        # Foreign requests look like such that do not exist; an administrator has none foreign.
        place.catalog.owned_request(request_id, caller.viewer)
    except NotFound as error:
        raise HTTPException(404, f"Inference with event>({request_id}) Not Found.") from error
    record = place.catalog.create_notification(
        request_id,
        event_id=str(message.event_id),
        source=message.source,
        detail_type=message.detail_type,
        timestamp=message.timestamp,
        detail=message.detail,
        owner=caller.email,
    )
    return _out(record, record.event_id)


@router.get("/{event_id}", operation_id="list_notifications")
def listing(
    *,
    event_id: UUID,
    caller: Caller,
    place: Place,
    source: Annotated[
        str | None, Query(max_length=100, description="Only what this service said.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 25,
    skip: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Envelope[NotificationOut]:
    """What was said about an event, and what happened to its request; the latest first."""
    total, found = place.catalog.notices(
        str(event_id),
        caller.viewer,
        source=source,
        kinds=_HAPPENED if source in (None, SOURCE) else (),
        limit=limit,
        skip=skip,
    )
    return Envelope[NotificationOut].of(total, [_out(item, str(event_id)) for item in found])


@open_router.get(
    "/notify/{event_id}",
    operation_id="follow_notifications",
    response_class=EventSourceResponse,
    responses={204: {"description": "Everything was told, and the request is over."}},
)
async def notify(
    event_id: UUID,
    guest: Guest,
    place: Place,
    last_event_id: Annotated[int | None, Header(ge=0, le=_LARGEST_ID)] = None,
    after: EventId = 0,
) -> Response:
    """A request's notifications as they come, to who has a key or a signed link.

    Each is ``{"detail_type", "status", "data"}``; the request's own events have more to tell:
    ``/v2/inference/{id}/events``.
    """
    return await follow(event_id, guest, place, last_event_id, after, tell=_tell)


def _out(item: NotificationRecord | EventRecord, event_id: str) -> NotificationOut:
    if isinstance(item, NotificationRecord):
        return NotificationOut(
            id=UUID(item.id),
            detail=NotificationDetail.model_validate(_detail(item.detail)),
            source=item.source,
            detail_type=item.detail_type,
            timestamp=item.timestamp,
            event_id=UUID(item.event_id),
        )
    kind, detail = _worded(item)
    return NotificationOut(
        id=uuid5(NAMESPACE_OID, f"{event_id} {item.id}"),
        detail=NotificationDetail.model_validate(detail),
        source=SOURCE,
        detail_type=kind,
        timestamp=item.at,
        event_id=UUID(event_id),
    )


def _detail(given: dict[str, Any]) -> dict[str, Any]:
    known = {name: given.get(name) for name in ("message", "error", "status")}
    plain = {name: value if value is None else str(value) for name, value in known.items()}
    return given | plain


def _worded(event: EventRecord) -> tuple[str, dict[str, Any]]:
    """The type and the detail of something that happened, in GEOStudio's words."""
    if event.kind == NOTIFICATION:
        return str(event.detail.get("detail_type")), _detail(event.detail.get("detail") or {})
    kind, message = _HAPPENED.get(event.kind, (_NOTIFY, None))
    more = {name: event.detail[name] for name in ("task_id", "layers") if name in event.detail}
    status = event.detail.get("after")
    if status == "PUBLISHING_RESULTS":
        message = "Pushing data to GeoServer..."
    detail = {"message": message, "error": event.detail.get("error"), "status": status}
    return kind, detail | more


def _tell(record: RequestRecord, event: EventRecord | None, event_id: int) -> str:
    if event is None:
        detail = {"message": None, "error": record.error, "status": record.status.value}
        kind = _COMPLETE
    elif event.kind in _HAPPENED or event.kind == NOTIFICATION:
        kind, detail = _worded(event)
        detail = {**detail, "timestamp": api_time(event.at)}
    else:
        return f"id: {event_id}\n: {event.kind}\n\n"
    data = {"detail_type": kind, "status": record.status.value, "data": detail}
    return f"id: {event_id}\ndata: {json.dumps(data)}\n\n"
