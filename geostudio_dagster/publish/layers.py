"""Where a layer lies and how its classes are spread, over all of its granules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from geostudio_dagster.publish.styles import LayerStyle
from geostudio_dagster.raster.footprint import Bounds

_HALF_TURN = 180.0


def boxes(bounds: Bounds) -> tuple[Bounds, ...]:
    """The bounds as boxes with west <= east: two where they cross the antimeridian."""
    west, south, east, north = bounds
    if west <= east:
        return (bounds,)
    return (west, south, _HALF_TURN, north), (-_HALF_TURN, south, east, north)


def union(many: Iterable[Bounds]) -> Bounds | None:
    """Bounds around all; None around nothing. Granules on both sides of the antimeridian give
    bounds across it (west > east) where that is the smaller box.
    """
    parts = [box for bounds in many for box in boxes(bounds)]
    if not parts:
        return None
    south, north = min(box[1] for box in parts), max(box[3] for box in parts)
    spans = sorted((box[0], box[2]) for box in parts)
    # The widest empty gap between neighbours is what the union leaves out.
    west, east = spans[0]
    reach, gap = east, 0.0
    for left, right in spans[1:]:
        if left - reach > gap:
            gap, west, east = left - reach, left, reach
        reach = max(reach, right)
    around = spans[0][0] + 2 * _HALF_TURN - reach
    if around >= gap:
        return spans[0][0], south, reach, north
    return west, south, east, north


def with_shares(style: LayerStyle, statistics: Iterable[Mapping[str, Any]]) -> LayerStyle:
    """A class style whose classes carry their pixels, share and area, summed over tasks.

    Args:
        style: a style; anything but classes is returned as it is.
        statistics: each task's statistics, with ``classes[]`` of ``value``, ``pixels`` and
            ``area_ha`` (hectares, may be missing).
    """
    if style["kind"] != "classes":
        return style
    pixels: dict[int, int] = {}
    areas: dict[int, float] = {}
    for task in statistics:
        for entry in task.get("classes", ()):
            value = int(entry["value"])
            pixels[value] = pixels.get(value, 0) + int(entry["pixels"])
            areas[value] = areas.get(value, 0.0) + float(entry.get("area_ha") or 0.0)
    total = sum(pixels.values())
    if not total:
        return style
    classes = [
        {
            **item,
            "pixels": pixels.get(item["value"], 0),
            "share": pixels.get(item["value"], 0) / total,
            "area_ha": round(areas.get(item["value"], 0.0), 4),
        }
        for item in style["classes"]
    ]
    return {**style, "classes": classes}
