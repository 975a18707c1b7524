"""Data sources that clients know, and those that were described here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID, uuid5

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field

from geostudio_dagster.catalog.card_records import SourceRecord
from geostudio_dagster.connectors.collections import COLLECTIONS, SERVED
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.gateway.paging import Envelope
from geostudio_dagster.gateway.place import GatewayPlace, Place
from geostudio_dagster.gateway.principal import Caller, Principal
from geostudio_dagster.gateway.problems import responses
from geostudio_dagster.planning.sources import (
    check_search,
    says_how_to_search,
    served_sources,
)
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import StacSource

router = APIRouter(tags=["data sources"])

Document = dict[str, Any]
Connector = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][\w.-]*$")]
_NAMESPACE = UUID("a3d9f0c2-6a0e-5b1c-8a55-1f2f6f6d2b11")


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
    """Describe a data source, for oneself; an administrator's is seen by everybody.

    Where an administrator says how it is searched (``search`` with ``"type": "stac"``), requests
    for areas are served from it; the bands of a collection that is known may then be left out.
    """
    document = wish.model_dump(mode="json", exclude_unset=True)
    for name in ("id", "served", "created_by"):
        document.pop(name, None)
    searched = caller.viewer.admin and says_how_to_search(document)
    if searched:
        _check_described(wish, document, place.settings)
    elif any(
        (entry["connector"], entry["collection_name"]) == (wish.connector, wish.collection_name)
        for entry in COLLECTIONS
    ):
        raise HTTPException(409, f"{wish.connector} {wish.collection_name} is there already.")
    record = place.catalog.create_source(
        caller.viewer, wish.connector, wish.collection_name, document
    )
    served = served_sources(place.catalog, place.settings)
    return _described(record, {_key_of(source): source for source in served})


@router.delete(
    "/data-sources/{source_id}",
    operation_id="delete_data_source",
    status_code=204,
    responses=responses(404),
)
def delete(source_id: UUID, caller: Caller, place: Place) -> None:
    """Forget a data source that was described here."""
    place.catalog.delete_source(caller.viewer, str(source_id))


def collections_of(place: GatewayPlace, caller: Principal, connector: str) -> list[str]:
    """Names of a connector's collections.

    Raises:
        HTTPException: 404, there is no such connector.
    """
    found = [entry.collection_name for entry in _all(place, caller) if entry.connector == connector]
    if not found and connector != SERVED:
        raise HTTPException(404, f"There is no data connector {connector}.")
    return list(dict.fromkeys(found))


def _all(place: GatewayPlace, caller: Principal) -> list[DataSourceGetResponse]:
    """The known sources, those of the settings, and those that were described."""
    served = {_key_of(source): source for source in served_sources(place.catalog, place.settings)}
    records = place.catalog.sources(caller.viewer)
    described = {
        (record.connector, record.collection)
        for record in records
        if record.for_all and says_how_to_search(record.document)
    }
    listed = [
        _known(entry, served.get(key))
        for entry in COLLECTIONS
        if (key := (entry["connector"], entry["collection_name"])) not in described
    ]
    names = {(entry.connector, entry.collection_name) for entry in listed} | described
    listed += [_configured(source) for key, source in served.items() if key not in names]
    return [*listed, *(_described(record, served) for record in records)]


def _key_of(source: StacSource) -> tuple[str, str]:
    return source.connector, source.collection_name


def _known(entry: Mapping[str, Any], source: StacSource | None) -> DataSourceGetResponse:
    more: Document = {"served": source is not None, "created_by": "geostudio"}
    if source is not None:
        more["search"] = source.search.model_dump(mode="json", exclude_defaults=True)
    return DataSourceGetResponse.model_validate({**entry, **more})


def _configured(source: StacSource) -> DataSourceGetResponse:
    document = source.model_dump(mode="json", exclude_defaults=True)
    names = {"id": uuid5(_NAMESPACE, "/".join(_key_of(source))), "created_by": "settings"}
    return DataSourceGetResponse.model_validate({"bands": [], **document, **names, "served": True})


def _described(
    record: SourceRecord, served: Mapping[tuple[str, str], StacSource]
) -> DataSourceGetResponse:
    searched = record.for_all and says_how_to_search(record.document)
    return DataSourceGetResponse.model_validate(
        {
            **record.document,
            "id": record.id,
            "connector": record.connector,
            "collection_name": record.collection,
            "served": searched and (record.connector, record.collection) in served,
            "created_by": record.owner,
        }
    )


def _check_described(wish: DataSourceIn, document: Document, settings: Settings) -> None:
    """See that what an administrator says how to search can be served.

    Raises:
        InvalidRequest: naming field and remedy.
    """
    check_search(document["search"], settings)
    known = any(
        (entry["connector"], entry["collection_name"]) == (wish.connector, wish.collection_name)
        for entry in COLLECTIONS
    )
    if wish.resolution_m is None and not known:
        raise InvalidRequest(
            "resolution_m", "is missing, and areas are worked in pixels of it", "add it, in metres"
        )
