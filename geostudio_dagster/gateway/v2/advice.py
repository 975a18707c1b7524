"""Advice on what data sources have of an area and when."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import shapely
from fastapi import APIRouter, Path
from pydantic import BaseModel, Field, field_validator
from shapely.errors import ShapelyError

from geostudio_dagster.errors import InvalidRequest, TaskError
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.v2.inference_schemas import Corners
from geostudio_dagster.gateway.v2.sources import collections_of
from geostudio_dagster.planning.area import parts_on_the_globe
from geostudio_dagster.planning.holdings import (
    Found,
    Period,
    Question,
    find,
    is_clear,
    periods_of,
    widened,
)
from geostudio_dagster.planning.sources import served_sources
from geostudio_dagster.planning.trial import impatient
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import StacSource

router = APIRouter(tags=["data sources"])

Document = dict[str, Any]
ConnectorPath = Annotated[str, Path(min_length=1, max_length=100)]
_EAST, _NORTH = 180.0, 90.0
_MOST_SEARCHES = 100
_MOST_PAGES = 20
_NOT_SEARCHED = (
    "This installation does not search {connector}, so it cannot tell what there is. Scenes are "
    "read by address: give them in spatial_domain.urls."
)
_NO_AREA = "No area is named, so there is nothing to search for: give bbox or area_polygon."


class CollectionsOut(BaseModel):
    """Names of a connector's collections."""

    results: list[str]


class DataAdvisorRequestSchema(BaseModel):
    """Which collections, when and where."""

    collections: Annotated[list[str], Field(min_length=1, max_length=100)]
    dates: Annotated[
        list[Annotated[str, Field(max_length=21)]], Field(min_length=1, max_length=1000)
    ]
    bbox: Annotated[list[Corners], Field(max_length=1000)] | None = None
    area_polygon: Annotated[str, Field(max_length=100_000)] | None = None
    maxcc: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    pre_days: Annotated[int, Field(ge=0, le=366)] = 1
    post_days: Annotated[int, Field(ge=0, le=366)] = 1

    @field_validator("dates")
    @classmethod
    def _real_dates(cls, dates: list[str]) -> list[str]:
        for text in dates:
            _check_period(text)
        return dates

    @field_validator("area_polygon")
    @classmethod
    def _an_area(cls, text: str | None) -> str | None:
        if text:
            _check_area(text)
        return text

    @field_validator("bbox")
    @classmethod
    def _on_the_globe(cls, boxes: list[list[float]] | None) -> list[list[float]] | None:
        for west, south, east, north in boxes or ():
            if not (-_EAST <= west <= _EAST and -_EAST <= east <= _EAST and west != east):
                raise ValueError("longitudes are west, then east, between -180 and 180")
            if not -_NORTH <= south < north <= _NORTH:
                raise ValueError("latitudes are south, then north, between -90 and 90")
        return boxes


class Advice(BaseModel):
    """What is there for one area."""

    bbox: list[float] | None
    unique_dates: list[str]
    available_data: list[Document]
    message: str


class AdviceOut(BaseModel):
    """One entry an area."""

    results: list[Advice]


@router.get("/data-advice/{connector}", operation_id="list_collections", responses=responses(404))
def collections(connector: ConnectorPath, caller: Caller, place: Place) -> CollectionsOut:
    """Names of a connector's collections."""
    return CollectionsOut(results=collections_of(place, caller, connector))


@router.post("/data-advice/{connector}", operation_id="advise", responses=responses(404))
def advise(
    connector: ConnectorPath, wish: DataAdvisorRequestSchema, caller: Caller, place: Place
) -> AdviceOut:
    """What a connector has of each area in the days asked for, and in those around them.

    ``unique_dates`` and ``available_data`` are of the days with ``pre_days`` before and
    ``post_days`` after; ``message`` says where there is nothing in the days themselves.
    """
    known = collections_of(place, caller, connector)
    for number, name in enumerate(wish.collections):
        if name not in known:
            raise InvalidRequest(
                f"collections.{number}",
                f"{connector} has no collection {name[:100]!r}",
                f"use {', '.join(known) or 'another connector'}",
            )
    return AdviceOut(results=list(_advice(connector, wish, place)))


def _advice(
    connector: str, wish: DataAdvisorRequestSchema, place: GatewayPlace
) -> Iterator[Advice]:
    served = {
        source.collection_name: source
        for source in served_sources(place.catalog, place.settings)
        if source.connector == connector
    }
    sources = [served[name] for name in wish.collections if name in served]
    boxes: list[list[float] | None] = [*(wish.bbox or ())]
    if not boxes and wish.area_polygon:
        boxes = [list(_read(wish.area_polygon).bounds)]
    if len(sources) < len(wish.collections) or not boxes:
        message = _NO_AREA if sources else _NOT_SEARCHED.format(connector=connector)
        for box in boxes or [None]:
            yield Advice(bbox=box, unique_dates=[], available_data=[], message=message)
        return
    periods = periods_of(wish.dates)
    if len(boxes) * len(sources) * len(periods) > _MOST_SEARCHES:
        raise InvalidRequest(
            "bbox",
            f"takes more than {_MOST_SEARCHES} searches ({len(boxes)} areas, {len(periods)} "
            f"periods, {len(sources)} collections)",
            "ask for fewer at a time, or give periods instead of days",
        )
    settings = impatient(place.settings)
    for box in boxes:
        if box is not None:
            yield _of_area(box, wish, periods, sources, settings)


def _of_area(
    box: list[float],
    wish: DataAdvisorRequestSchema,
    periods: Sequence[Period],
    sources: Sequence[StacSource],
    settings: Settings,
) -> Advice:
    """What there is of one area; what cannot be found out is told."""
    area: Sequence[shapely.Geometry] = parts_on_the_globe([box])
    if not wish.bbox and wish.area_polygon:
        area = parts_on_the_globe((), [shapely.geometry.mapping(_read(wish.area_polygon))])
    found: dict[str, list[Found]] = {}
    try:
        for source in sources:
            found[source.collection_name] = _searched(area, wish, periods, source, settings)
    except TaskError as error:
        message = f"The data source cannot be searched: {error}"
        return Advice(bbox=box, unique_dates=[], available_data=[], message=message)
    everything = [one for here in found.values() for one in here]
    return Advice(
        bbox=box,
        unique_dates=sorted({str(one.day) for one in everything}),
        available_data=[_document(one, name) for name, here in found.items() for one in here],
        message=_message(found, periods),
    )


def _searched(
    area: Sequence[shapely.Geometry],
    wish: DataAdvisorRequestSchema,
    periods: Sequence[Period],
    source: StacSource,
    settings: Settings,
) -> list[Found]:
    """The granules of one source in the days asked for and around them, by day."""
    found: dict[str, Found] = {}
    for part in area:
        for period in periods:
            days = widened(period, wish.pre_days, wish.post_days)
            question = Question(source, {}, part)
            for one in find(question, days, settings, most_pages=_MOST_PAGES):
                if is_clear(one.granule, wish.maxcc):
                    found[one.granule.id] = one
    return sorted(found.values(), key=lambda one: (one.granule.moment, one.granule.id))


def _document(one: Found, collection: str) -> Document:
    return {
        "id": one.granule.id,
        "date": str(one.day),
        "datetime": one.granule.moment.isoformat().replace("+00:00", "Z"),
        "cloud_cover": one.granule.cloud,
        "collection": collection,
    }


def _message(found: dict[str, list[Found]], periods: Sequence[Period]) -> str:
    """GEOStudio's sentence where some collection has nothing in the days asked for."""
    lacking = [
        name
        for name, here in found.items()
        if not any(first <= one.day <= last for one in here for first, last in periods)
    ]
    if not lacking:
        return ""
    days = sorted({one.day for name in lacking for one in found[name]})
    before = [str(day) for day in days if day < periods[0][0]]
    after = [str(day) for day in days if day > periods[-1][1]]
    return (
        f"The modalities {', '.join(lacking)} do not have any data for the selected dates. Try "
        f"the Bef_Days: {', '.join(before) or 'none'} or Aft_Days: {', '.join(after) or 'none'}"
    )


def _check_period(text: str) -> None:
    """Check ``YYYY-MM-DD``, or two of them with an underscore between."""
    try:
        days = [dt.date.fromisoformat(part) for part in text.split("_")]
    except ValueError:
        days = []
    written = all(len(part) == len("YYYY-MM-DD") for part in text.split("_"))
    if not written or len(days) not in (1, 2) or days != sorted(days):
        raise ValueError(f"{text[:40]!r} is neither a date nor a period (YYYY-MM-DD_YYYY-MM-DD)")


def _check_area(text: str) -> None:
    """Check a polygon, as WKT or as GeoJSON."""
    try:
        geometry = _read(text)
    except (ShapelyError, ValueError) as error:
        raise ValueError("is neither WKT nor a GeoJSON geometry") from error
    if geometry.geom_type not in ("Polygon", "MultiPolygon") or geometry.is_empty:
        raise ValueError(f"is a {geometry.geom_type}, not a polygon")


def _read(text: str) -> shapely.Geometry:
    read = shapely.from_geojson if text.lstrip().startswith("{") else shapely.from_wkt
    return read(text)
