"""Where a raster lies on the globe: outline and bounds in EPSG:4326."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.warp import transform, transform_bounds

WGS84 = CRS.from_epsg(4326)
Bounds = tuple[float, float, float, float]
_POINTS = 21  # per edge: straight edges of one CRS are curves in another
_DECIMALS = 7  # about a centimetre, and beyond what differs between PROJ builds
_HALF_TURN = 180.0


def geographic_bounds(dataset: DatasetReader) -> Bounds:
    """West, south, east, north of a georeferenced raster, degrees.

    A raster across the antimeridian has west > east, as GeoJSON wants it.
    """
    bounds = transform_bounds(dataset.crs, WGS84, *dataset.bounds, densify_pts=_POINTS)
    west, south, east, north = (round(float(value), _DECIMALS) for value in bounds)
    return west, south, east, north


def geographic_outline(dataset: DatasetReader) -> dict[str, Any]:
    """The raster's outline as a GeoJSON geometry in EPSG:4326, edges densified.

    Across the antimeridian, or around a pole, it is the box of the bounds, cut at 180 degrees.
    """
    bounds = geographic_bounds(dataset)
    if bounds[0] > bounds[2]:
        return {
            "type": "MultiPolygon",
            "coordinates": [
                [_box((bounds[0], bounds[1], _HALF_TURN, bounds[3]))],
                [_box((-_HALF_TURN, bounds[1], bounds[2], bounds[3]))],
            ],
        }
    ring = _outline(dataset)
    jumps = any(abs(here[0] - there[0]) > _HALF_TURN for here, there in pairwise(ring))
    return {"type": "Polygon", "coordinates": [_box(bounds) if jumps else ring]}


def _outline(dataset: DatasetReader) -> list[list[float]]:
    width, height = dataset.width, dataset.height
    steps = [place / _POINTS for place in range(_POINTS)]
    # Counter-clockwise for a north-up raster, as RFC 7946 wants an outer ring.
    pixels = [
        *((0.0, height * step) for step in steps),
        *((width * step, float(height)) for step in steps),
        *((float(width), height * (1 - step)) for step in steps),
        *((width * (1 - step), 0.0) for step in steps),
    ]
    grid = dataset.transform
    eastings = [grid.a * column + grid.b * row + grid.c for column, row in pixels]
    northings = [grid.d * column + grid.e * row + grid.f for column, row in pixels]
    xs, ys = transform(dataset.crs, WGS84, eastings, northings)
    ring = [
        [round(float(x), _DECIMALS), round(float(y), _DECIMALS)]
        for x, y in zip(xs, ys, strict=True)
    ]
    return [*ring, ring[0]]


def _box(bounds: Bounds) -> list[list[float]]:
    west, south, east, north = bounds
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]
