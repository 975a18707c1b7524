"""A request's events as they happen (server-sent events), from any point on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import Response, StreamingResponse

from geostudio_dagster.catalog import Catalog, EventRecord, RequestRecord
from geostudio_dagster.catalog.states import LIVE_REQUESTS
from geostudio_dagster.errors import NotFound
from geostudio_dagster.gateway.event_hub import EventHub
from geostudio_dagster.gateway.grants import Guest
from geostudio_dagster.gateway.place import Place
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.times import api_time
from geostudio_dagster.gateway.v2.inference import NOT_FOUND

router = APIRouter()
open_router = APIRouter(prefix="/inference", tags=["inference"], responses=responses(401, 403, 404))

_HEARTBEAT_S = 15.0
_PAGE = 500
_MOST_STREAMS = 500
_RETRY_MS = 2000
_LARGEST_ID = 2**63 - 1
FULL = "There are as many event streams as this process serves; try again shortly."
# Names that clients may rely on; other kinds keep the catalog's.
_NAMES = {"layers_ready": "layer_ready"}

# One event as it is sent, or the end of all (None); with the id to resume after.
Teller = Callable[[RequestRecord, EventRecord | None, int], str]

EventId = Annotated[int, Query(ge=0, le=_LARGEST_ID, description="Events after this one only.")]


class EventSourceResponse(StreamingResponse):
    """A stream of events."""

    media_type = "text/event-stream"


@open_router.get(
    "/{inference_id}/events",
    operation_id="inference_events",
    response_class=EventSourceResponse,
    responses={204: {"description": "Everything was told, and the request is over."}},
)
async def events(
    inference_id: UUID,
    guest: Guest,
    place: Place,
    last_event_id: Annotated[int | None, Header(ge=0, le=_LARGEST_ID)] = None,
    after: EventId = 0,
) -> Response:
    """What happens to a request, until it is over; to who has a key or a signed link.

    ``planned``, ``task_finished``, ``task_failed``, ``layer_ready``, ``status`` and others, at
    the end ``done``. Whoever lost the connection goes on with ``Last-Event-ID``.
    """
    return await follow(inference_id, guest, place, last_event_id, after, tell=_tell)


async def follow(
    inference_id: UUID,
    guest: Guest,
    place: Place,
    last_event_id: int | None,
    after: int,
    *,
    tell: Teller,
) -> Response:
    """The stream of a request's events, in the words of ``tell``.

    Raises:
        HTTPException: 403, the link is not for that; 404, there is no such request for the one
            who asks; 503, too many streams are open.
    """
    try:
        record = await asyncio.to_thread(guest.request, str(inference_id))
    except NotFound as error:
        raise HTTPException(404, NOT_FOUND) from error
    if place.hub.count >= _MOST_STREAMS:
        raise HTTPException(503, FULL, headers={"Retry-After": "5"})
    start = after if last_event_id is None else last_event_id
    found, latest = await asyncio.to_thread(_read, place.catalog, record.id, start)
    if last_event_id is not None and not found and _is_over(latest):
        return Response(status_code=204)  # on which browsers ask no more
    stream = _stream(place.catalog, place.hub, record.id, start, tell)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(stream, headers=headers)


async def _stream(
    catalog: Catalog, hub: EventHub, request_id: str, after: int, tell: Teller
) -> AsyncIterator[str]:
    yield f"retry: {_RETRY_MS}\n\n"
    with hub.watching(request_id) as flag:
        while True:
            flag.clear()
            found, record = await asyncio.to_thread(_read, catalog, request_id, after)
            for event in found:
                yield tell(record, event, event.id)
                after = event.id
            if len(found) == _PAGE:
                continue
            if _is_over(record):
                yield tell(record, None, after)
                return
            try:
                await asyncio.wait_for(flag.wait(), _HEARTBEAT_S)
            except TimeoutError:
                yield ": still here\n\n"


def _read(catalog: Catalog, request_id: str, after: int) -> tuple[list[EventRecord], RequestRecord]:
    # The request first: the last events of one that is over are there by then.
    record = catalog.request(request_id)
    return catalog.events(request_id, after, _PAGE), record


def _is_over(record: RequestRecord) -> bool:
    return record.status not in LIVE_REQUESTS or record.deleted_at is not None


def _tell(record: RequestRecord, event: EventRecord | None, event_id: int) -> str:
    data: dict[str, Any] = {"inference_id": record.id}
    if event is None:
        name = "done"
        data |= {"status": record.status.value, "error": record.error}
    else:
        name = _NAMES.get(event.kind, event.kind)
        data |= {"kind": event.kind, "at": api_time(event.at), "detail": event.detail}
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(data)}\n\n"
