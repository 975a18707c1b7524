"""The grids of pixels that an area is worked on: in metres, shared by all tiles and all dates.

One grid covers an area as wide as half a zone of UTM; a wider one is cut at the zones' edges.
Beyond the latitudes of UTM the polar stereographic projections (UPS) are used. Pixels lie on
multiples of the resolution, as those of Sentinel-2 and HLS do, so that pixels of a granule in the
same projection are taken over as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from shapely.geometry import box

from geostudio_dagster.planning.grid import Window

_ZONE_DEGREES, _ZONES = 6, 60
_ONE_ZONE = 3.0  # degrees of longitude: so wide an area stays within 4.5 of a central meridian
_UTM_NORTH, _UTM_SOUTH, _POLE, _HALF_TURN = 84.0, -80.0, 90.0, 180.0
_UPS_NORTH, _UPS_SOUTH = "EPSG:5041", "EPSG:5042"
_EDGE_DEGREES = 0.02  # an edge is straight in degrees, but not in the projection
_EDGES = 2000  # points of an area's longer side at most
_SLIVER = 1e-6  # of a pixel, that an area may reach beyond one without getting the next


@dataclass(frozen=True, slots=True)
class SceneGrid:
    """A north-up grid of square pixels.

    Attributes:
        crs: such as ``EPSG:32633``. west, north: of its corner, metres. resolution: metres.
        width, height: pixels.
        area: what of the area it is for, EPSG:4326. outline: the same in the grid's CRS.
    """

    crs: str
    west: float
    north: float
    resolution: float
    width: int
    height: int
    area: shapely.Geometry
    outline: shapely.Geometry

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """From pixel to CRS coordinates: a, b, c, d, e, f."""
        return (self.resolution, 0.0, self.west, 0.0, -self.resolution, self.north)

    @property
    def is_polar(self) -> bool:
        """Whether it is around a pole."""
        return self.crs in (_UPS_NORTH, _UPS_SOUTH)

    def place(self, window: Window, margin: float = 0) -> shapely.Polygon:
        """A window and ``margin`` pixels around it, in the grid's CRS; less of it if negative."""
        column, row, width, height = window
        size = self.resolution
        return box(
            self.west + (column - margin) * size,
            self.north - (row + height + margin) * size,
            self.west + (column + width + margin) * size,
            self.north - (row - margin) * size,
        )

    def projected(self, geometry: shapely.Geometry) -> shapely.Geometry:
        """A geometry of EPSG:4326 in the grid's CRS."""
        return in_crs(geometry, self.crs)


def scene_grids(
    area: shapely.Geometry,
    resolution: float,
    *,
    least: int,
    origin: tuple[float, float] = (0.0, 0.0),
) -> list[SceneGrid]:
    """The grids of one part of an area, from west to east.

    Args:
        area: polygon in EPSG:4326, -180 to 180 degrees. resolution: metres.
        least: least width and height in pixels; a smaller area gets pixels around it.
        origin: metres, where a corner of the pixels lies.
    """
    return [
        _grid(crs, part, resolution, least, origin)
        for crs, part in _zones(area)
        if not part.is_empty and part.area > 0
    ]


def in_crs(geometry: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A geometry of EPSG:4326 in a projection, its edges followed."""
    west, south, east, north = geometry.bounds
    step = max(_EDGE_DEGREES, (east - west) / _EDGES, (north - south) / _EDGES)
    fine = shapely.segmentize(geometry, step)
    flat = shapely.transform(fine, lambda points: _projected(points, crs))
    return flat if flat.is_valid else shapely.make_valid(flat)


def _projected(points: NDArray[np.float64], crs: str) -> NDArray[np.float64]:
    return np.column_stack(_transformer(crs).transform(points[:, 0], points[:, 1]))


@lru_cache(maxsize=128)
def _transformer(crs: str) -> Transformer:
    return Transformer.from_crs("EPSG:4326", crs, always_xy=True)


def _zones(area: shapely.Geometry) -> Iterator[tuple[str, shapely.Geometry]]:
    """The projections that an area is worked in, each with its part of the area."""
    west, south, east, north = area.bounds
    if south < _UTM_SOUTH:
        yield _UPS_SOUTH, area & box(-_HALF_TURN, -_POLE, _HALF_TURN, _UTM_SOUTH)
    middle = area & box(-_HALF_TURN, _UTM_SOUTH, _HALF_TURN, _UTM_NORTH)
    if not middle.is_empty and middle.area > 0:
        if east - west <= _ONE_ZONE:
            yield _utm((west + east) / 2, middle), middle
        else:
            first, last = _zone(west), _zone(east)
            for zone in range(first, last + 1):
                edge = (zone - 1) * _ZONE_DEGREES - _HALF_TURN
                part = middle & box(edge, _UTM_SOUTH, edge + _ZONE_DEGREES, _UTM_NORTH)
                yield _utm(edge + _ZONE_DEGREES / 2, part), part
    if north > _UTM_NORTH:
        yield _UPS_NORTH, area & box(-_HALF_TURN, _UTM_NORTH, _HALF_TURN, _POLE)


def _zone(longitude: float) -> int:
    return min(_ZONES, int((longitude + _HALF_TURN) // _ZONE_DEGREES) + 1)


def _utm(longitude: float, part: shapely.Geometry) -> str:
    """The zone's EPSG code: northern unless all of the part lies south of the equator."""
    south = not part.is_empty and part.bounds[3] <= 0
    return f"EPSG:{(32700 if south else 32600) + _zone(longitude)}"


def _grid(
    crs: str, part: shapely.Geometry, resolution: float, least: int, origin: tuple[float, float]
) -> SceneGrid:
    outline = in_crs(part, crs)
    west, south, east, north = outline.bounds
    left, width = _span(west - origin[0], east - origin[0], resolution, least)
    bottom, height = _span(south - origin[1], north - origin[1], resolution, least)
    return SceneGrid(
        crs=crs,
        west=left * resolution + origin[0],
        north=(bottom + height) * resolution + origin[1],
        resolution=resolution,
        width=width,
        height=height,
        area=part,
        outline=outline,
    )


def _span(start: float, stop: float, resolution: float, least: int) -> tuple[int, int]:
    """The first pixel and the number of pixels that cover a stretch, at least ``least``."""
    first = math.floor(start / resolution + _SLIVER)
    count = max(1, math.ceil(stop / resolution - _SLIVER) - first)
    if count < least:
        first -= (least - count) // 2
        count = least
    return first, count
