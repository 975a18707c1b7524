"""``geoserver_push`` entries with a ``file_suffix``: layers of what processors write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from geostudio_dagster.gateway.v2.inference_schemas import GeoServerPush
from geostudio_dagster.planning.output_styles import (
    LEAST_CLASS,
    MOST_CLASS,
    LineMark,
    PointMark,
    PolygonMark,
)

_COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")
_CHANNELS = ("RedChannel", "GreenChannel", "BlueChannel")
_MOST = 16


def pushed_layers(entries: Sequence[GeoServerPush]) -> list[dict[str, Any]]:
    """Output layers of a request, from the entries that pick files by the end of their names.

    Entries with a ``filepath_key`` alone mean the model's own output, which is always a layer. A
    style that this platform has no like of is left to it.
    """
    layers: dict[str, dict[str, Any]] = {}
    for entry in entries:
        suffix = entry.file_suffix.strip()
        if not suffix:
            continue
        style = _style(entry.geoserver_style)
        usual = "geojson" if style and style["kind"] == "vector" else "tif"
        ending = suffix if "." in suffix else f"{suffix}.{usual}"
        name = re.sub(r"[^a-z0-9_-]+", "_", entry.layer_name.lower()).strip("_-")[:50] or "output"
        name = f"{name}_output" if name in ("pred", "input_rgb") else name
        title = entry.display_name.strip()
        layers[name] = {"suffix": ending, "name": name, "title": title, "style": style}
    return list(layers.values())[:_MOST]


def _style(given: str | Mapping[str, Any]) -> dict[str, Any] | None:
    if not isinstance(given, Mapping):
        return None
    classes, stops = list(_entries(given, "segmentation")), list(_entries(given, "regression"))
    if classes and all(_is_class(item["value"]) for item in classes):
        whole = [{**item, "value": int(item["value"]), "name": item["label"]} for item in classes]
        for item in whole:
            del item["label"]
        return {"kind": "classes", "classes": whole}
    ramp = sorted({item["value"]: item for item in stops}.values(), key=lambda item: item["value"])
    if len(ramp) > 1:
        return {"kind": "ramp", "stops": [{**_without(item, "opacity")} for item in ramp]}
    return _rgb(given.get("rgb")) or _vector(given)


def _is_class(value: float) -> bool:
    return value.is_integer() and LEAST_CLASS <= value <= MOST_CLASS


def _entries(style: Mapping[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    given = style.get(kind)
    for entry in given if isinstance(given, list) else []:
        colour, value = entry.get("color"), entry.get("quantity")
        opacity = entry.get("opacity", 1)
        numbers = all(isinstance(number, int | float) for number in (value, opacity))
        if isinstance(colour, str) and _COLOUR.fullmatch(colour) and numbers:
            yield {
                "value": float(value),
                "colour": colour,
                "opacity": min(max(float(opacity), 0.0), 1.0),
                "label": str(entry.get("label", ""))[:200],
            }


def _rgb(given: object) -> dict[str, Any] | None:
    if not isinstance(given, list):
        return None
    by_label = {entry.get("label"): entry for entry in given if isinstance(entry, Mapping)}
    channels = [by_label.get(label, {}).get("channel") for label in _CHANNELS]
    if not all(isinstance(channel, int) and channel > 0 for channel in channels):
        return None
    red = by_label[_CHANNELS[0]]
    low, high = red.get("minValue", 0), red.get("maxValue", 255)
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    return {"kind": "rgb", "channels": channels, "minimum": low, "maximum": high}


def _vector(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Points, lines and polygons as far as they are told by plain values.

    A value that is to follow a feature's property is left to this platform's default.
    """
    marks: dict[str, dict[str, Any]] = {}
    for name, mark in (("point", PointMark), ("line", LineMark), ("polygon", PolygonMark)):
        wished = given.get(f"{name}_style")
        if isinstance(wished, Mapping):
            shape = {"shape": str(wished.get("well_known_name", "")).lower()}
            marks[name] = dict(_understood(mark, {**wished, **shape}))
    return {"kind": "vector", **marks} if marks else None


def _understood(mark: type[BaseModel], wished: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in mark.model_fields:
        if key in wished and not isinstance(wished[key], bool):
            with suppress(ValidationError):
                yield key, getattr(mark.model_validate({key: wished[key]}), key)


def _without(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != key}
