"""Areas on the ellipsoid, against geodesics."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from geostudio_dagster.planning.area import area_km2

_GEOD = Geod(ellps="WGS84")
_EARTH_KM2 = 510_065_621.724


def _polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def _ring(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def _geodesic_km2(west: float, south: float, east: float, north: float) -> float:
    """A box with its parallels cut into short geodesics."""
    steps = 4000
    across = [west + (east - west) * n / steps for n in range(steps + 1)]
    lons = [*across, *reversed(across)]
    lats = [*([south] * (steps + 1)), *([north] * (steps + 1))]
    return abs(_GEOD.polygon_area_perimeter(lons, lats)[0]) / 1e6


def test_the_whole_earth() -> None:
    assert area_km2([[-180, -90, 180, 90]]) == pytest.approx(_EARTH_KM2, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    west=st.floats(-180, 170),
    width=st.floats(0.01, 9),
    south=st.floats(-90, 85),
    height=st.floats(0.01, 4.9),
)
def test_boxes_are_as_large_as_geodesy_says(
    west: float, width: float, south: float, height: float
) -> None:
    corners = (west, south, west + width, south + height)
    expected = _geodesic_km2(*corners)
    assert area_km2([corners]) == pytest.approx(expected, rel=1e-5)
    assert area_km2(geometries=[_polygon(_ring(*corners))]) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(west=st.floats(171, 179.9), east=st.floats(-179.9, -171), south=st.floats(-80, 79))
def test_across_the_date_line_is_as_large_as_elsewhere(
    west: float, east: float, south: float
) -> None:
    width = east + 360 - west
    elsewhere = area_km2([[0, south, width, south + 1]])
    assert area_km2([[west, south, east, south + 1]]) == pytest.approx(elsewhere, rel=1e-9)
    ring = _ring(west, south, east, south + 1)
    assert area_km2(geometries=[_polygon(ring)]) == pytest.approx(elsewhere, rel=1e-6)


@pytest.mark.parametrize("latitude", [-75.0, 80.0])
def test_a_ring_around_a_pole_holds_it(latitude: float) -> None:
    ring = [[float(lon), latitude] for lon in (*range(-170, 171, 20), -170)]
    cap = [-180, latitude, 180, 90] if latitude > 0 else [-180, -90, 180, latitude]
    assert area_km2(geometries=[_polygon(ring)]) == pytest.approx(area_km2([cap]), rel=1e-9)


def test_holes_are_left_out_and_overlaps_count_once() -> None:
    whole, hole = _ring(0, 0, 2, 2), _ring(0.5, 0.5, 1, 1)
    around = area_km2(geometries=[_polygon(whole, hole)])
    assert around == pytest.approx(area_km2([[0, 0, 2, 2]]) - area_km2([[0.5, 0.5, 1, 1]]))
    twice = area_km2([[0, 0, 1, 1], [0.5, 0, 1, 1]], [_polygon(_ring(0, 0, 1, 1))])
    assert twice == pytest.approx(area_km2([[0, 0, 1, 1]]))
    assert area_km2() == 0


def test_what_is_no_polygon() -> None:
    with pytest.raises(ValueError, match="Point"):
        area_km2(geometries=[{"type": "Point", "coordinates": [0, 0]}])
