"""Data sources, and advice on what they have."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

import shapely
from fastapi import APIRouter, HTTPException, Path, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator
from shapely.errors import ShapelyError

from geostudio_dagster.catalog.card_records import SourceRecord
from geostudio_dagster.connectors.collections import COLLECTIONS, SERVED
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway.paging import Envelope
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller, Principal
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.gateway.v2.inference_schemas import Corners

router = APIRouter(tags=["data sources"])

Document = dict[str, Any]
Connector = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][\w.-]*$")]
ConnectorPath = Annotated[str, Path(min_length=1, max_length=100)]
_EAST, _NORTH = 180.0, 90.0
_NOT_SEARCHED = (
    "This installation does not search {connector}, so it cannot tell what there is. Scenes are "
    "read by address: give them in spatial_domain.urls."
)


class DataSourceIn(BaseModel):
    """A data source that somebody describes."""

    model_config = ConfigDict(extra="allow")

    connector: Connector
    collection_name: Annotated[str, Field(min_length=1, max_length=200)]
    bands: list[Document] | Document
    modality_tag: Annotated[str, Field(max_length=100)] | None = None
    resolution_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rgb_bands: Annotated[list[str], Field(max_length=100)] | None = None


class DataSourceGetResponse(BaseModel):
    """A data source; ``served`` is whether requests for areas are fetched from it here."""

    model_config = ConfigDict(extra="allow")

    id: UUID
    connector: str
    collection_name: str
    bands: list[Document] | Document
    modality_tag: str | None = None
    resolution_m: int | float | None = None
    rgb_bands: list[str] | None = None
    data_collection: str | None = None
    cloud_masking: Document | None = None
    query_template: str | None = None
    search: Document | None = None
    request_input_data: Document | None = None
    served: bool
    created_by: str


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


@router.get("/data-sources", operation_id="list_data_sources")
def list_sources(
    *,
    caller: Caller,
    place: Place,
    connector: Annotated[str | None, Query(max_length=100)] = None,
    collection: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 25,
    skip: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Envelope[DataSourceGetResponse]:
    """The data sources that clients know, and those that were described here."""
    found = [
        entry
        for entry in _all(place, caller)
        if connector in (None, entry.connector) and collection in (None, entry.collection_name)
    ]
    return Envelope[DataSourceGetResponse].of(len(found), found[skip : skip + limit])


@router.post(
    "/data-sources", operation_id="create_data_source", status_code=201, responses=responses(409)
)
def create(wish: DataSourceIn, caller: Caller, place: Place) -> DataSourceGetResponse:
    """Describe a data source, for oneself; an administrator's is seen by everybody."""
    if any(
        (entry["connector"], entry["collection_name"]) == (wish.connector, wish.collection_name)
        for entry in COLLECTIONS
    ):
        raise HTTPException(409, f"{wish.connector} {wish.collection_name} is there already.")
    document = wish.model_dump(mode="json", exclude_unset=True)
    for name in ("id", "served", "created_by"):
        document.pop(name, None)
    return _described(
        place.catalog.create_source(caller.viewer, wish.connector, wish.collection_name, document)
    )


@router.delete(
    "/data-sources/{source_id}",
    operation_id="delete_data_source",
    status_code=204,
    responses=responses(404),
)
def delete(source_id: UUID, caller: Caller, place: Place) -> None:
    """Forget a data source that was described here."""
    place.catalog.delete_source(caller.viewer, str(source_id))


@router.get("/data-advice/{connector}", operation_id="list_collections", responses=responses(404))
def collections(connector: ConnectorPath, caller: Caller, place: Place) -> CollectionsOut:
    """Names of a connector's collections."""
    return CollectionsOut(results=_collections(place, caller, connector))


@router.post("/data-advice/{connector}", operation_id="advise", responses=responses(404))
def advise(
    connector: ConnectorPath, wish: DataAdvisorRequestSchema, caller: Caller, place: Place
) -> AdviceOut:
    """What a connector has, as far as it is known here; nothing is guessed."""
    known = _collections(place, caller, connector)
    for number, name in enumerate(wish.collections):
        if name not in known:
            raise InvalidRequest(
                f"collections.{number}",
                f"{connector} has no collection {name[:100]!r}",
                f"use {', '.join(known) or 'another connector'}",
            )
    message = _NOT_SEARCHED.format(connector=connector)
    areas: list[list[float] | None] = [*(wish.bbox or ())] or [None]
    return AdviceOut(
        results=[
            Advice(bbox=box, unique_dates=[], available_data=[], message=message) for box in areas
        ]
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
    read = shapely.from_geojson if text.lstrip().startswith("{") else shapely.from_wkt
    try:
        geometry = read(text)
    except (ShapelyError, ValueError) as error:
        raise ValueError("is neither WKT nor a GeoJSON geometry") from error
    if geometry.geom_type not in ("Polygon", "MultiPolygon") or geometry.is_empty:
        raise ValueError(f"is a {geometry.geom_type}, not a polygon")


def _collections(place: GatewayPlace, caller: Principal, connector: str) -> list[str]:
    found = [entry.collection_name for entry in _all(place, caller) if entry.connector == connector]
    if not found and connector != SERVED:
        raise HTTPException(404, f"There is no data connector {connector}.")
    return list(dict.fromkeys(found))


def _all(place: GatewayPlace, caller: Principal) -> list[DataSourceGetResponse]:
    own = [_described(record) for record in place.catalog.sources(caller.viewer)]
    return [*(_known(entry) for entry in COLLECTIONS), *own]


def _known(entry: Mapping[str, Any]) -> DataSourceGetResponse:
    return DataSourceGetResponse.model_validate(
        {**entry, "served": False, "created_by": "geostudio"}
    )


def _described(record: SourceRecord) -> DataSourceGetResponse:
    return DataSourceGetResponse.model_validate(
        {
            **record.document,
            "id": record.id,
            "connector": record.connector,
            "collection_name": record.collection,
            "served": False,
            "created_by": record.owner,
        }
    )
