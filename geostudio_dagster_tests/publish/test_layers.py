from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geostudio_dagster.publish.layers import boxes, union, with_shares
from geostudio_dagster.publish.styles import prediction_style, rgb_style
from geostudio_dagster.raster.footprint import Bounds
from geostudio_dagster_tests.publish.rasters import class_manifest


@pytest.mark.parametrize(
    ("many", "around"),
    [
        ([], None),
        ([(1, 2, 3, 4)], (1, 2, 3, 4)),
        ([(1, 2, 3, 4), (-5, 0, 2, 3)], (-5, 0, 3, 4)),
        ([(170, 0, -170, 5)], (170, 0, -170, 5)),
        ([(170, 0, 175, 5), (-178, -1, -170, 2)], (170, -1, -170, 5)),
        ([(170, 0, -170, 5), (160, 1, 165, 2)], (160, 0, -170, 5)),
        ([(-180, -90, 180, 90), (170, 0, -170, 5)], (-180, -90, 180, 90)),
        ([(10, 0, 20, 1), (12, 0, 13, 1), (15, 0, 30, 1)], (10, 0, 30, 1)),
    ],
)
def test_union(many: list[Bounds], around: Bounds | None) -> None:
    assert union(many) == around


degrees = st.floats(-180, 180).map(lambda value: round(value, 3))
latitudes = st.tuples(st.floats(-90, 89), st.floats(0.01, 1)).map(
    lambda pair: (round(pair[0], 3), round(pair[0] + pair[1], 3))
)
bounds = st.tuples(degrees, latitudes, degrees).map(
    lambda parts: (parts[0], parts[1][0], parts[2], parts[1][1])
)


@given(st.lists(bounds, min_size=1, max_size=6))
def test_the_union_holds_every_part(many: list[Bounds]) -> None:
    around = union(many)
    assert around is not None
    for west, south, east, north in (box for item in many for box in boxes(item)):
        assert any(
            left <= west and east <= right and low <= south and north <= high
            for left, low, right, high in boxes(around)
        )


def test_shares_are_summed_over_tasks() -> None:
    style = prediction_style(class_manifest())
    tasks = [
        {"classes": [{"value": 0, "pixels": 30, "area_ha": 0.3}]},
        {
            "classes": [
                {"value": 0, "pixels": 10, "area_ha": 0.1},
                {"value": 1, "pixels": 60, "area_ha": 0.6},
            ]
        },
    ]
    land, water, cloud = with_shares(style, tasks)["classes"]
    assert (land["pixels"], land["share"], land["area_ha"]) == (40, 0.4, 0.4)
    assert (water["pixels"], water["share"], water["area_ha"]) == (60, 0.6, 0.6)
    assert (cloud["pixels"], cloud["share"], cloud["area_ha"]) == (0, 0, 0)


def test_without_counts_a_style_stays_as_it_is() -> None:
    style = prediction_style(class_manifest())
    assert with_shares(style, [{}]) == style
    assert with_shares(rgb_style(), [{"classes": []}]) == rgb_style()
