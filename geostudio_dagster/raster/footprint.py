"""Where a raster lies on the globe: outline and bounds in EPSG:4326.

Right across the antimeridian, around the poles, on grids that count from 0 to 360 degrees, and
whichever way rows and columns run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what rasterio.warp lets through, and no other name
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform as transform_points
from shapely.affinity import translate
from shapely.geometry import Polygon, box, mapping

from geostudio_dagster.errors import TaskError

Bounds = tuple[float, float, float, float]
"""West, south, east, north in degrees; west of more than east crosses the antimeridian."""

_EDGE_POINTS = 16  # per edge: straight edges of one CRS are curves in another
_DECIMALS = 7  # about a centimetre, and beyond what differs between PROJ builds
_POLE, _HALF_TURN, _TURN = 90.0, 180.0, 360.0
_LIMITS = np.array([_HALF_TURN, _POLE])
_SLACK = 1e-6  # degrees that a projection may be off
_AT_THE_POLE = 1e-9  # degrees


@dataclass(frozen=True, slots=True)
class Footprint:
    """A raster's place.

    Attributes:
        geometry: GeoJSON Polygon, or MultiPolygon cut at 180 degrees, with counter-clockwise
            outer rings (RFC 7946), its edges densified, rounded to 1e-7 degree.
        bounds: around it.
    """

    geometry: dict[str, Any]
    bounds: Bounds


def footprint_of(dataset: DatasetReader) -> Footprint:
    """Where a georeferenced raster lies.

    Raises:
        TaskError: ``not_georeferenced``, its CRS does not place all of its edges on the globe.
    """
    window = (0, 0, dataset.width, dataset.height)
    found = footprint(dataset.crs, tuple(dataset.transform)[:6], window)
    if found is None:
        raise TaskError(
            "not_georeferenced",
            f"{Path(dataset.name).name} has edges that its coordinate reference system does not "
            "place on the globe; cut them off, or reproject it.",
        )
    return found


def footprint(
    crs: CRS | str, transform: Sequence[float], window: tuple[int, int, int, int]
) -> Footprint | None:
    """Where a window of a grid lies; None where the CRS does not place its edges on the globe.

    Args:
        transform: a, b, c, d, e, f from pixel to CRS coordinates.
        window: column, row, width and height in pixels.
    """
    a, b, c, d, e, f = transform
    columns, rows = _edges(window)
    eastings, northings = a * columns + b * rows + c, d * columns + e * rows + f
    try:
        found = transform_points(crs, "EPSG:4326", eastings.tolist(), northings.tolist())
    except (RasterioError, CRSError, CPLE_BaseError):
        return None
    ring = np.column_stack(found)
    if not np.isfinite(ring).all():
        return None
    unrolled = _unrolled(_with_pole_as_edge(ring))
    return Footprint(_geometry(unrolled), _bounds(unrolled))


def on_the_globe(geometry: shapely.Geometry) -> Iterator[shapely.Geometry]:
    """The parts of a geometry within -180 to 180 degrees, each moved there by whole turns."""
    west, _, east, _ = geometry.bounds
    first = math.floor((west + _HALF_TURN) / _TURN)
    last = math.floor((east + _HALF_TURN) / _TURN)
    for turn in range(first, last + 1):
        frame = box(turn * _TURN - _HALF_TURN, -_POLE, turn * _TURN + _HALF_TURN, _POLE)
        part = shapely.intersection(geometry, frame)
        if not part.is_empty and part.area > 0:
            yield translate(part, -turn * _TURN)


def _edges(window: tuple[int, int, int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Columns and rows of points along the window's edges, from its first corner downwards."""
    left, top, width, height = window
    there = np.arange(_EDGE_POINTS) / _EDGE_POINTS
    zeros, ones = np.zeros(_EDGE_POINTS), np.ones(_EDGE_POINTS)
    columns = left + width * np.concatenate([zeros, there, ones, 1 - there])
    rows = top + height * np.concatenate([there, ones, 1 - there, zeros])
    return columns, rows


def _with_pole_as_edge(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring with a corner that is a pole, whose longitude says nothing, as an edge along it."""
    polar = np.abs(ring[:, 1]) > _POLE - _AT_THE_POLE
    if not polar.any():
        return ring
    corners = np.flatnonzero(polar & ~np.roll(polar, 1) & ~np.roll(polar, -1))
    for corner in corners[::-1]:
        before, after = ring[corner - 1, 0], ring[(corner + 1) % len(ring), 0]
        edge = [(before, ring[corner, 1]), (after, ring[corner, 1])]
        ring = np.vstack([ring[:corner], edge, ring[corner + 1 :]])
    return ring


def _unrolled(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring (points, 2), not closed, with longitudes that go on beyond 180 degrees.

    A ring around a pole is led along the pole, so that it holds it.
    """
    if np.ptp(ring[:, 0]) <= _HALF_TURN:
        return ring
    longitudes = np.unwrap([*ring[:, 0], ring[0, 0]], period=_TURN)
    unrolled = np.column_stack([longitudes[:-1], ring[:, 1]])
    if abs(longitudes[-1] - longitudes[0]) <= _HALF_TURN:
        return unrolled
    pole = math.copysign(_POLE, float(ring[:, 1].mean()))
    around = [(longitudes[-1], ring[0, 1]), (longitudes[-1], pole), (longitudes[0], pole)]
    return np.vstack([unrolled, around])


def _geometry(ring: NDArray[np.float64]) -> dict[str, Any]:
    west, east = ring[:, 0].min(), ring[:, 0].max()
    if west >= -_HALF_TURN - _SLACK and east <= _HALF_TURN + _SLACK:
        # By far the most: a large request has a hundred thousand of them.
        return {"type": "Polygon", "coordinates": [_counter_clockwise(ring).tolist()]}
    parts = list(on_the_globe(shapely.make_valid(Polygon(ring))))
    # As one, for the parts of a grid all around the globe meet where it was cut.
    whole = shapely.orient_polygons(shapely.union_all(parts))
    document: dict[str, Any] = mapping(shapely.transform(whole, _round))
    return {"type": document["type"], "coordinates": _lists(document["coordinates"])}


def _counter_clockwise(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring, rounded and closed."""
    points = _round(np.vstack([ring, ring[:1]]))
    x, y = points[:, 0], points[:, 1]
    twice_its_area = float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())
    return points if twice_its_area >= 0 else points[::-1]


def _round(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.round(np.clip(points, -_LIMITS, _LIMITS), _DECIMALS), np.float64)


def _lists(coordinates: Any) -> Any:
    return [_lists(item) for item in coordinates] if isinstance(coordinates, tuple) else coordinates


def _bounds(ring: NDArray[np.float64]) -> Bounds:
    (west, south), (east, north) = ring.min(axis=0), ring.max(axis=0)
    if east - west >= _TURN - _SLACK:
        west, east = -_HALF_TURN, _HALF_TURN
    elif west < -_HALF_TURN - _SLACK or east > _HALF_TURN + _SLACK:
        turns = math.floor((west + _HALF_TURN) / _TURN) * _TURN
        west, east = west - turns, east - turns
        east -= _TURN if east > _HALF_TURN else 0
    (west, south), (east, north) = _round(np.array([[west, south], [east, north]])).tolist()
    return west, south, east, north
