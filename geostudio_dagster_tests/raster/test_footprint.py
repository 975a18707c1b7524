"""Where rasters lie: across the antimeridian, around poles, on grids of any direction."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from shapely import is_ccw
from shapely.geometry import LinearRing, box, shape
from shapely.geometry.base import BaseGeometry

from geostudio_dagster.connectors.header import check_scene
from geostudio_dagster.raster.footprint import Bounds, Footprint, footprint

_SIDE = 64
_WINDOW = (0, 0, _SIDE, _SIDE)


def degrees(west: float, north: float, east: float, south: float) -> Affine:
    return from_origin(west, north, (east - west) / _SIDE, (north - south) / _SIDE)


def metres(west: float, north: float, pixel: float) -> Affine:
    return from_origin(west, north, pixel, pixel)


def found(crs: str, transform: Affine) -> Footprint:
    place = footprint(crs, transform[:6], _WINDOW)
    assert place is not None
    return place


def rings(geometry: BaseGeometry) -> list[LinearRing]:
    return [polygon.exterior for polygon in getattr(geometry, "geoms", [geometry])]


def check_as_geojson(place: Footprint) -> BaseGeometry:
    """What RFC 7946 asks of a geometry, and what its bounds say of it."""
    geometry = shape(place.geometry)
    assert geometry.is_valid
    assert all(is_ccw(ring) for ring in rings(geometry))
    west, south, east, north = geometry.bounds
    assert west >= -180
    assert east <= 180
    assert (south, north) == place.bounds[1::2]
    return geometry


@pytest.mark.parametrize(
    ("transform", "bounds", "parts"),
    [
        (degrees(170, 10, 190, -10), (170, -10, -170, 10), [(170, 180), (-180, -170)]),
        (degrees(-190, 10, -170, -10), (170, -10, -170, 10), [(170, 180), (-180, -170)]),
        (degrees(190, 10, 210, -10), (-170, -10, -150, 10), [(-170, -150)]),
        (degrees(-550, 10, -530, -10), (170, -10, -170, 10), [(170, 180), (-180, -170)]),
        (degrees(160, 10, 180, -10), (160, -10, 180, 10), [(160, 180)]),
        (degrees(-180, 10, -160, -10), (-180, -10, -160, 10), [(-180, -160)]),
        (degrees(0, 90, 360, -90), (-180, -90, 180, 90), [(-180, 180)]),
        (degrees(-0.125, 90, 359.875, -90), (-180, -90, 180, 90), [(-180, 180)]),
        (degrees(-180, 90, 180, -90), (-180, -90, 180, 90), [(-180, 180)]),
    ],
)
def test_longitudes_of_any_turn(
    transform: Affine, bounds: Bounds, parts: list[tuple[float, float]]
) -> None:
    place = found("EPSG:4326", transform)
    geometry = check_as_geojson(place)
    assert place.bounds == bounds
    spans = sorted((ring.bounds[0], ring.bounds[2]) for ring in rings(geometry))
    assert spans == sorted(parts)
    _, south, _, north = bounds
    width = sum(east - west for west, east in parts)
    assert geometry.area == pytest.approx(width * (north - south))


@pytest.mark.parametrize(("crs", "pole"), [("EPSG:3031", -90.0), ("EPSG:3413", 90.0)])
def test_around_a_pole_the_outline_holds_it(crs: str, pole: float) -> None:
    place = found(crs, metres(-320_000, 320_000, 10_000))
    geometry = check_as_geojson(place)
    assert (place.bounds[0], place.bounds[2]) == (-180, 180)
    assert pole in place.bounds
    # The pole itself, and what lies 250 km from it in any direction; not what lies 500 km away.
    near, far = math.copysign(87.8, pole), math.copysign(85.5, pole)
    for longitude in range(-179, 180, 7):
        assert geometry.covers(box(longitude, min(near, pole), longitude + 1, max(near, pole)))
        assert not geometry.intersects(box(longitude, far, longitude + 1, far + 0.01))


def test_a_corner_at_the_pole_is_a_quarter_of_the_circle() -> None:
    place = found("EPSG:3031", metres(0, 0, 5_000))
    check_as_geojson(place)
    assert place.bounds == pytest.approx((90, -90, 180, -85.8366583), abs=1e-6)


def test_a_polar_scene_across_the_antimeridian_is_cut_there() -> None:
    place = found("EPSG:3031", metres(-320_000, -500_000, 10_000))
    geometry = check_as_geojson(place)
    assert place.bounds == pytest.approx((147.38, -85.4, -147.38, -79.13), abs=0.01)
    assert len(rings(geometry)) == 2


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_rows_that_run_northwards(crs: str) -> None:
    size, left, low = (0.01, 15.0, 45.0) if crs == "EPSG:4326" else (10.0, 5e5, 5e6)
    upwards = Affine(size, 0, left, 0, size, low)
    downwards = Affine(size, 0, left, 0, -size, low + _SIDE * size)
    here, there = found(crs, upwards), found(crs, downwards)
    assert here.bounds == there.bounds
    assert here.bounds[1] < here.bounds[3]
    assert check_as_geojson(here).equals(check_as_geojson(there))


@settings(deadline=None)
@given(
    west=st.floats(-1000, 1000),
    width=st.floats(0.01, 359),
    south=st.floats(-90, 80),
    height=st.floats(0.01, 9),
)
def test_any_box_in_degrees_is_as_large_as_it_was(
    west: float, width: float, south: float, height: float
) -> None:
    place = found("EPSG:4326", degrees(west, south + height, west + width, south))
    geometry = check_as_geojson(place)
    assert geometry.area == pytest.approx(width * height, rel=1e-4)
    assert (place.bounds[2] - place.bounds[0]) % 360 == pytest.approx(width, abs=1e-6)


@pytest.mark.parametrize("crs", ["EPSG:3031", "EPSG:3413"])
def test_a_scene_over_a_pole_is_a_scene(tmp_path: Path, crs: str) -> None:
    path = tmp_path / "pole.tif"
    transform = metres(-320_000, 320_000, 10_000)
    profile = {"width": _SIDE, "height": _SIDE, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **profile) as file:
        file.write(np.ones((1, _SIDE, _SIDE), np.uint8))
    bounds = check_scene(path, "pole.tif").bounds
    assert bounds is not None
    assert bounds[2] - bounds[0] == 360
