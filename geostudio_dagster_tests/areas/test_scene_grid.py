"""Grids of areas: aligned, covering, in metres, right at the date line and at the poles."""

from __future__ import annotations

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box, shape

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.planning.area import parts_on_the_globe
from geostudio_dagster.planning.map_tiles import tile_outline
from geostudio_dagster.planning.scene_grid import SceneGrid, scene_grids

SIDE = 224


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """Areas of up to some degrees, anywhere."""
    width, height = (draw(st.floats(0.001, limit)) for limit in (8.0, 3.0))
    west = draw(st.floats(-180, 180 - width))
    south = draw(st.floats(-90, 90 - height))
    return west, south, west + width, south + height


@given(boxes(), st.sampled_from([10.0, 30.0, 60.0]), st.sampled_from([0.0, 15.0]))
def test_grids_lie_on_multiples_of_the_resolution_and_cover_the_area(
    area: tuple[float, float, float, float], resolution: float, origin: float
) -> None:
    grids = scene_grids(box(*area), resolution, least=SIDE, origin=(origin, origin))
    for grid in grids:
        for corner in (grid.west, grid.north):
            pixels = (corner - origin) / resolution
            assert abs(pixels - round(pixels)) < 1e-6
        assert min(grid.width, grid.height) >= SIDE
        whole = grid.place((0, 0, grid.width, grid.height))
        # A millionth of a pixel may stick out.
        assert whole.buffer(resolution * 1e-5).covers(shapely.box(*grid.outline.bounds))
    together = shapely.union_all([grid.area for grid in grids])
    assert together.area == pytest.approx(box(*area).area, rel=1e-6)


@given(boxes())
def test_a_grid_is_no_larger_than_its_area_needs(area: tuple[float, float, float, float]) -> None:
    for grid in scene_grids(box(*area), 10.0, least=1):
        west, south, east, north = grid.outline.bounds
        assert (grid.width - 2) * 10 <= east - west + 1e-6
        assert (grid.height - 2) * 10 <= north - south + 1e-6


def only(area: list[float], resolution: float = 10.0) -> SceneGrid:
    """The only grid of a box."""
    (part,) = parts_on_the_globe([area])
    (grid,) = scene_grids(part, resolution, least=SIDE)
    return grid


@pytest.mark.parametrize(
    ("area", "crs"),
    [
        ([16.3, 48.2, 16.4, 48.3], "EPSG:32633"),
        ([17.9, 48.2, 18.05, 48.3], "EPSG:32633"),  # across a zone's edge, as one
        ([-51.3, -30.1, -51.2, -30.0], "EPSG:32722"),
        ([20.0, -0.1, 20.1, 0.1], "EPSG:32634"),  # across the equator
        ([20.0, -0.1, 20.1, 0.0], "EPSG:32734"),
        ([10.0, 85.0, 11.0, 86.0], "EPSG:5041"),
        ([10.0, -86.0, 11.0, -85.0], "EPSG:5042"),
    ],
)
def test_an_area_is_worked_in_the_projection_of_its_place(area: list[float], crs: str) -> None:
    assert only(area).crs == crs


def test_a_small_area_gets_pixels_around_it() -> None:
    grid = only([16.37, 48.2, 16.371, 48.201])
    assert (grid.width, grid.height) == (SIDE, SIDE)
    middle = grid.outline.centroid
    whole = grid.place((0, 0, SIDE, SIDE)).centroid
    assert middle.distance(whole) < 20


def test_an_area_across_the_date_line_has_a_grid_on_either_side() -> None:
    parts = parts_on_the_globe([[179.9, -18.0, -179.9, -17.9]])
    grids = [grid for part in parts for grid in scene_grids(part, 10, least=SIDE)]
    assert [grid.crs for grid in grids] == ["EPSG:32760", "EPSG:32701"]
    assert [round(grid.area.centroid.x, 2) for grid in grids] == [179.95, -179.95]


def test_a_wide_area_is_cut_at_the_zones() -> None:
    grids = scene_grids(box(10.0, 47.0, 25.0, 47.1), 60, least=1)
    assert [grid.crs for grid in grids] == [f"EPSG:{32600 + n}" for n in (32, 33, 34, 35)]
    assert [round(grid.area.bounds[0]) for grid in grids] == [10, 12, 18, 24]


def test_the_whole_cap_of_a_pole_is_one_grid() -> None:
    grid = only([-180, 85, 180, 90], 1000)
    assert grid.width == grid.height == pytest.approx(1112, abs=4)
    assert grid.outline.contains(shapely.Point(2_000_000, 2_000_000))


@pytest.mark.parametrize(
    ("name", "inside", "square_km"),
    [
        ("33UWP", (15.7, 48.3), 10_000),
        ("t33uwp", (15.7, 48.3), 10_000),
        ("22JDM", (-51.23, -30.03), 10_000),
        ("12/2235/1420", (16.46, 48.22), 42.55),
    ],
)
def test_tiles_are_where_people_know_them(
    name: str, inside: tuple[float, float], square_km: float
) -> None:
    outline = shape(tile_outline(name, "spatial_domain.tiles.0"))
    assert outline.contains(shapely.Point(*inside))
    (grid,) = scene_grids(outline, 10, least=1)
    assert grid.outline.area / 1e6 == pytest.approx(square_km, rel=0.01)


@pytest.mark.parametrize("name", ["", "33", "61UWP", "33UIP", "33UAP", "3/9/1", "25/1/1", "../x"])
def test_what_is_no_tile_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"tiles\.3"):
        tile_outline(name, "spatial_domain.tiles.3")
