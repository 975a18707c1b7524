"""Areas that are named by the tile of a map: web map tiles, and squares of the MGRS."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from pyproj import Transformer

from geostudio_dagster.errors import InvalidRequest

_XYZ = re.compile(r"(\d{1,2})/(\d{1,8})/(\d{1,8})")
_MGRS = re.compile(r"T?(\d{1,2})([C-HJ-NP-X])([A-HJ-NP-Z])([A-HJ-NP-V])")
_DEEPEST = 24
_ZONES, _ZONE_DEGREES = 60, 6
_SQUARE = 100_000  # metres
_COLUMNS = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")  # of zones 1, 2, 3, and so on
_ROWS, _BANDS = "ABCDEFGHJKLMNPQRSTUV", "CDEFGHJKLMNPQRSTUVWX"
_LOWEST, _BAND_DEGREES = -80, 8
_EDGE_POINTS = 11


def tile_outline(name: str, field: str) -> dict[str, Any]:
    """The outline (GeoJSON, EPSG:4326) of ``z/x/y`` or of an MGRS square such as ``33UWP``.

    Raises:
        InvalidRequest: it is neither.
    """
    text = name.strip()
    ring = _xyz(text) or _mgrs(text.upper())
    if ring is None:
        raise InvalidRequest(
            field,
            f"{name[:40]!r} is neither a map tile like 12/2235/1420 nor an MGRS square like 33UWP",
            "give one, or the area itself in spatial_domain.bbox",
        )
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def tile_outlines(names: Sequence[str]) -> list[dict[str, Any]]:
    """The outlines of a request's ``spatial_domain.tiles``.

    Raises:
        InvalidRequest: one is of no kind that is known.
    """
    return [
        tile_outline(name, f"spatial_domain.tiles.{number}") for number, name in enumerate(names)
    ]


def _xyz(text: str) -> list[tuple[float, float]] | None:
    match = _XYZ.fullmatch(text)
    if match is None:
        return None
    zoom, x, y = (int(part) for part in match.groups())
    if not (zoom <= _DEEPEST and x < 2**zoom and y < 2**zoom):
        return None
    west, east = (column / 2**zoom * 360 - 180 for column in (x, x + 1))
    north, south = (
        math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * row / 2**zoom)))) for row in (y, y + 1)
    )
    return [(west, south), (east, south), (east, north), (west, north)]


def _mgrs(text: str) -> list[tuple[float, float]] | None:
    """The corners and points between of a square of 100 km."""
    match = _MGRS.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= _ZONES:
        return None
    zone, band, column, row = int(match[1]), match[2], match[3], match[4]
    columns = _COLUMNS[(zone - 1) % 3]
    if column not in columns:
        return None
    south = _LOWEST + _BANDS.index(band) * _BAND_DEGREES
    hemisphere = 32600 if south >= 0 else 32700
    to_degrees = Transformer.from_crs(f"EPSG:{hemisphere + zone}", "EPSG:4326", always_xy=True)
    easting = (columns.index(column) + 1) * _SQUARE
    # Rows repeat every 2000 km; the band of latitude tells which of them is meant.
    first = (_ROWS.index(row) - (0 if zone % 2 else 5)) % len(_ROWS) * _SQUARE
    for northing in range(first, 100 * _SQUARE, len(_ROWS) * _SQUARE):
        middle = to_degrees.transform(easting + _SQUARE / 2, northing + _SQUARE / 2)[1]
        if south - 1 <= middle <= south + (_BAND_DEGREES if band != "X" else 12) + 1:
            steps = [_SQUARE * n / (_EDGE_POINTS - 1) for n in range(_EDGE_POINTS)]
            edge = [(step, 0.0) for step in steps[:-1]]
            edge += [(float(_SQUARE), step) for step in steps[:-1]]
            edge += [(step, float(_SQUARE)) for step in steps[:0:-1]]
            edge += [(0.0, step) for step in steps[:0:-1]]
            return [to_degrees.transform(easting + x, northing + y) for x, y in edge]
    return None
