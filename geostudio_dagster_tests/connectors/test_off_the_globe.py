"""Scenes whose CRS puts their edges nowhere: no item, layer or map could show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from geostudio_dagster.connectors.header import check_scene
from geostudio_dagster.errors import TaskError


@pytest.mark.parametrize(
    ("crs", "west", "north", "pixel"),
    [
        # A geostationary full disk: its corners look past the earth.
        ("+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84 +units=m", -5.6e6, 5.6e6, 4e5),
        ("EPSG:32633", 1e9, 1e9, 10.0),
        ('LOCAL_CS["a plan",UNIT["metre",1]]', 10.0, 10.0, 1.0),
    ],
)
def test_a_scene_that_lies_nowhere_is_refused_before_any_work(
    tmp_path: Path, crs: str, west: float, north: float, pixel: float
) -> None:
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=28,
        height=28,
        count=1,
        dtype="uint8",
        crs=crs,
        transform=from_origin(west, north, pixel, pixel),
    ) as dataset:
        dataset.write(np.ones((1, 28, 28), np.uint8))
    with pytest.raises(TaskError, match=r"scene\.tif has edges that .* on the globe") as raised:
        check_scene(path, "scene.tif")
    assert raised.value.code == "not_georeferenced"
