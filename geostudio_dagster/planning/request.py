"""What a user asks for, checked as far as it can be without looking anything up."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from geostudio_dagster.catalog.processor_records import Position
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.planning.masks import Masking
from geostudio_dagster.planning.output_styles import Style

_POLE, _DATE_LINE = 90, 180
MOST_CLIENT_CHARACTERS = 64 * 1024
_MOST_PARAMETERS = 64 * 1024
_OWN_LAYERS = ("input_rgb", "pred")
_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}$")


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("has a NUL character, which PostgreSQL cannot hold")
    return value


Text = Annotated[str, AfterValidator(_storable)]
BBox = Annotated[tuple[float, float, float, float], Field(description="west, south, east, north")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SpatialDomain(_Strict):
    """Where: scenes by address, or areas in EPSG:4326."""

    urls: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] = ()
    bbox: tuple[BBox, ...] = ()
    polygons: tuple[dict[str, Any], ...] = ()
    tiles: tuple[str, ...] = ()

    @field_validator("bbox")
    @classmethod
    def _on_the_globe(cls, boxes: tuple[BBox, ...]) -> tuple[BBox, ...]:
        for west, south, east, north in boxes:
            if south >= north:
                raise ValueError(f"south {south} is not below north {north}")
            if abs(south) > _POLE or abs(north) > _POLE or max(abs(west), abs(east)) > _DATE_LINE:
                raise ValueError(f"{[west, south, east, north]} is off the globe")
            if west == east:
                raise ValueError(f"west {west} equals east")
        return boxes

    @field_validator("urls")
    @classmethod
    def _each_once(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((url for url, times in Counter(urls).items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"names {twice} twice")
        return urls

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.urls or self.bbox or self.polygons or self.tiles):
            raise ValueError("is empty; give at least one entry in urls, bbox, polygons or tiles")
        return self

    @property
    def areas(self) -> tuple[str, ...]:
        """Names of the fields that hold areas."""
        return tuple(name for name in ("bbox", "polygons", "tiles") if getattr(self, name))


class SourceUse(_Strict):
    """The data source that areas are served from."""

    connector: Text = Field(min_length=1, max_length=100)
    collection: Text = Field(min_length=1, max_length=200)


class ProcessorUse(_Strict):
    """One link of a chain of users' processors; each is fed by the one before."""

    processor: Text = Field(min_length=1, max_length=200, description="Id, name or name@version.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="On top of the processor's own defaults."
    )
    position: Position | None = Field(
        default=None, description="Where it runs; the processor's own choice if left out."
    )

    @field_validator("parameters")
    @classmethod
    def _bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(value, default=str)) > _MOST_PARAMETERS:
            raise ValueError(f"is larger than {_MOST_PARAMETERS} characters of JSON")
        return value


class OutputLayer(_Strict):
    """A map layer of what processors wrote, picked by the end of the files' names."""

    suffix: Text = Field(min_length=1, max_length=100, description="Such as _masked.tif.")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,59}$", description="The layer's name.")
    title: Text = Field(default="", max_length=200)
    style: Style | None = Field(
        default=None, description="Classes, ramp, rgb or vector; made from the values if left out."
    )

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        if value in _OWN_LAYERS:
            raise ValueError(f"{value} is a layer that every request has")
        return value


class RequestSpec(_Strict):
    """One request, as all doors accept it (REST, CLI, inbox file, GraphQL launch)."""

    id: UUID | None = Field(default=None, description="Own id; the same id twice is one request.")
    model: str = Field(min_length=1, max_length=200, description="Name, name@version or id.")
    spatial_domain: SpatialDomain
    temporal_domain: tuple[str, ...] = ()
    name: Text = Field(default="", max_length=200)
    description: Text = Field(default="", max_length=4000)
    location: Text = Field(default="", max_length=200)
    shard_size: int | None = Field(default=None, ge=1, le=10_000, description="Tasks per shard.")
    task_size: int | None = Field(
        default=None, ge=256, le=65_536, description="Scenes larger than this square are split."
    )
    priority: int = Field(default=0, ge=-100, le=100)
    processors: tuple[ProcessorUse, ...] = Field(
        default=(), max_length=16, description="Users' own processors, in order."
    )
    output_layers: tuple[OutputLayer, ...] = Field(
        default=(),
        max_length=16,
        description="Layers of what the processors write; every raster is one if left out.",
    )

    source: SourceUse | None = Field(
        default=None, description="Where areas come from; the only one that fits if left out."
    )
    maxcc: float | None = Field(
        default=None, ge=0, le=100, description="Most clouds of an item that areas are taken from."
    )
    masking: Masking | None = Field(
        default=None, description="Clouds, snow and ice that are masked in the prediction."
    )
    webhook: Text | None = Field(
        default=None, max_length=2048, description="https address that each status is told to."
    )
    client: dict[str, Any] = Field(
        default_factory=dict, description="What a client sent to have it given back."
    )

    @field_validator("client")
    @classmethod
    def _bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(value, default=str)) > MOST_CLIENT_CHARACTERS:
            raise ValueError(f"is larger than {MOST_CLIENT_CHARACTERS} characters of JSON")
        return value

    @field_validator("model")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable():  # a database may not even be asked for a NUL
            raise ValueError("has characters that no name has")
        return value

    @field_validator("temporal_domain")
    @classmethod
    def _dates(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            _check_date(value)
        return values


def check_dates(values: Sequence[str]) -> None:
    """Check days and periods, as ``temporal_domain`` has them.

    Raises:
        InvalidRequest: one is neither.
    """
    for number, value in enumerate(values):
        try:
            _check_date(value)
        except ValueError as error:
            field = f"temporal_domain.{number}"
            raise InvalidRequest(field, str(error), "correct the value") from error


def _check_date(value: str) -> None:
    first, _, last = value.partition("_")
    if not _is_date(first) or ("_" in value and not _is_date(last)):
        raise ValueError(f"{value!r} is not a date like 2024-06-30 or 2024-06-01_2024-06-30")
    if last and first > last:
        raise ValueError(f"{value!r} ends before it begins")


def _is_date(text: str) -> bool:
    if not _DATE.match(text):
        return False
    try:
        dt.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def parse_request(document: object) -> RequestSpec:
    """Check a decoded JSON document.

    Raises:
        InvalidRequest: naming the first offending field and the remedy.
    """
    try:
        return RequestSpec.model_validate(document)
    except ValidationError as error:
        raise _first_problem(error) from error


def parse_request_json(text: str | bytes) -> RequestSpec:
    """Check a JSON text.

    Raises:
        InvalidRequest: not JSON, or as for :func:`parse_request`.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("request", f"is not JSON ({error})", "send one JSON object") from error
    return parse_request(document)


def _fields_beside(place: tuple[int | str, ...]) -> list[str]:
    """The fields known where an unknown one stands."""
    if len(place) == 1:
        return list(RequestSpec.model_fields)
    inner: dict[int | str, type[BaseModel]] = {
        "spatial_domain": SpatialDomain,
        "processors": ProcessorUse,
        "output_layers": OutputLayer,
        "masking": Masking,
        "source": SourceUse,
    }
    return list(inner.get(place[0], RequestSpec).model_fields)


def _first_problem(error: ValidationError) -> InvalidRequest:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "request"
    if first["type"] == "extra_forbidden":
        known = ", ".join(_fields_beside(first["loc"]))
        return InvalidRequest(field, "is not a known field", f"remove it (known: {known})")
    if first["type"] == "missing":
        return InvalidRequest(field, "is missing", "add it")
    if first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return InvalidRequest(field, "is not a JSON object", "send one with named fields")
    problem = str(first["msg"]).removeprefix("Value error, ")
    return InvalidRequest(field, problem, "correct the value")
