"""The area of what a request covers, on the ellipsoid: right at the date line and at the poles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from shapely import Polygon
from shapely.geometry import box, shape

from geostudio_dagster.raster.footprint import on_the_globe

BBox = tuple[float, float, float, float]
"""West, south, east, north in degrees; west of more than east crosses the date line."""

_POLE, _HALF_TURN, _TURN = 90.0, 180.0, 360.0
_EDGE_DEGREES = 0.25  # an edge is straight in degrees, but not in the projection
_SQUARE_METRES = 1e6


def area_km2(
    boxes: Iterable[Sequence[float]] = (), geometries: Iterable[Mapping[str, Any]] = ()
) -> float:
    """Square kilometres that boxes and GeoJSON polygons (EPSG:4326) cover together.

    What several of them cover counts once. An edge of a polygon that is wider than half a turn
    is taken to cross the date line, as everybody draws it, and a ring around a pole to hold it.

    Raises:
        ValueError: something is not a polygon.
    """
    parts = parts_on_the_globe(boxes, geometries)
    flat = shapely.transform(np.asarray(parts, dtype=object), _equal_area)
    return float(shapely.union_all(shapely.make_valid(flat)).area) / _SQUARE_METRES


def parts_on_the_globe(
    boxes: Iterable[Sequence[float]] = (), geometries: Iterable[Mapping[str, Any]] = ()
) -> list[shapely.Geometry]:
    """Boxes and GeoJSON polygons, in order, each cut at the date line where it crosses it.

    Longitudes are -180 to 180; polygons hold a pole that they are around. As :func:`area_km2`.

    Raises:
        ValueError: something is not a polygon.
    """
    parts: list[shapely.Geometry] = [part for one in boxes for part in _boxes(one)]
    return parts + [part for one in geometries for part in _polygons(one)]


@cache
def _projection() -> Transformer:
    # Cylindrical and equal in area: meridians and parallels are straight, areas those of the
    # ellipsoid.
    return Transformer.from_crs("EPSG:4326", "+proj=cea +ellps=WGS84", always_xy=True)


def _equal_area(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack(_projection().transform(points[:, 0], points[:, 1]))


def _boxes(one: Sequence[float]) -> Iterator[Polygon]:
    west, south, east, north = one
    if west <= east:
        yield box(west, south, east, north)
    else:
        yield box(west, south, _HALF_TURN, north)
        yield box(-_HALF_TURN, south, east, north)


def _polygons(document: Mapping[str, Any]) -> Iterator[Polygon]:
    geometry = shape(document)
    if geometry.geom_type not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"is a {geometry.geom_type}, not a polygon")
    for polygon in getattr(geometry, "geoms", [geometry]):
        outer = Polygon(_unrolled(polygon.exterior.coords))
        holes = [
            part
            for ring in polygon.interiors
            for part in on_the_globe(Polygon(_unrolled(ring.coords)))
        ]
        for part in on_the_globe(shapely.make_valid(outer)):
            left = shapely.difference(part, shapely.union_all(holes))
            yield shapely.segmentize(left, _EDGE_DEGREES)


def _unrolled(ring: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    """The ring with longitudes that go on beyond the date line; closed over a pole if around it."""
    points = [(float(lon), float(lat)) for lon, lat, *_ in ring]
    unrolled, turns = points[:1], 0.0
    for (before, _), (lon, lat) in pairwise(points):
        step = lon - before
        if abs(step) > _HALF_TURN and not abs(before) == abs(lon) == _HALF_TURN:
            turns -= _TURN if step > 0 else -_TURN
        unrolled.append((lon + turns, lat))
    if turns:
        middle = sum(lat for _, lat in points) / len(points)
        pole = _POLE if middle > 0 else -_POLE
        unrolled += [(unrolled[-1][0], pole), (unrolled[0][0], pole)]
    return unrolled
