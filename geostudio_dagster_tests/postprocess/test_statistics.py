"""Figures with exact values, on the ground and not only on the map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pyproj import Geod
from rasterio.transform import Affine, from_origin

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.postprocess.statistics import row_areas, statistics

SEGMENTATION = BundleManifest.model_validate(
    {
        "name": "classes",
        "runtime": "torchscript",
        "weights": "model.pt",
        "task": "segmentation",
        "bands": [{"name": "B02"}],
        "classes": [
            {"value": 0, "name": "water", "colour": "#0000ff"},
            {"value": 1, "name": "land", "colour": "#00ff00"},
            {"value": 2, "name": "cloud", "colour": "#ffffff"},
        ],
    }
)
REGRESSION = BundleManifest.model_validate(
    {
        "name": "values",
        "runtime": "torchscript",
        "weights": "model.pt",
        "task": "regression",
        "unit": "t/ha",
        "bands": [{"name": "B02"}],
    }
)


def raster(path: Path, pixels: np.ndarray[Any, Any], **profile: Any) -> Path:
    whole = {
        "driver": "GTiff", "count": 1, "height": pixels.shape[0], "width": pixels.shape[1],
        "dtype": pixels.dtype, "crs": "EPSG:32633",
        "transform": from_origin(500_000, 5_300_000, 10, 10), **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **whole) as file:
        file.write(pixels, 1)
    return path


def test_classes_in_hectares(tmp_path: Path) -> None:
    pixels = np.full((100, 200), 255, np.uint8)
    pixels[:, :50] = 0
    pixels[:50, 50:150] = 1
    pixels[99, 199] = 7  # a value without a class is not hidden
    found = statistics(raster(tmp_path / "p.tif", pixels, nodata=255), SEGMENTATION)
    assert found == {
        "task": "segmentation",
        "pixels": 20_000,
        "valid_pixels": 10_001,
        "nodata_fraction": 0.49995,
        "area_ha": 100.01,
        "area_method": "grid",
        "classes": [
            {"value": 0, "name": "water", "pixels": 5000, "share": 0.49995, "area_ha": 50.0},
            {"value": 1, "name": "land", "pixels": 5000, "share": 0.49995, "area_ha": 50.0},
            {"value": 2, "name": "cloud", "pixels": 0, "share": 0.0, "area_ha": 0.0},
            {"value": 7, "name": "", "pixels": 1, "share": 0.0001, "area_ha": 0.01},
        ],
    }
    assert json.loads(json.dumps(found)) == found


def test_windows_add_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 3, (1030, 2070), np.uint8)
    found = statistics(raster(tmp_path / "p.tif", pixels, nodata=255), SEGMENTATION)
    assert [item["pixels"] for item in found["classes"]] == np.bincount(pixels.ravel()).tolist()
    assert sum(item["area_ha"] for item in found["classes"]) == pytest.approx(1030 * 2070 / 100)


def test_feet_are_converted(tmp_path: Path) -> None:
    """EPSG:2263 counts in US survey feet."""
    path = raster(
        tmp_path / "p.tif", np.zeros((10, 10), np.uint8), crs="EPSG:2263",
        transform=from_origin(980_000, 200_000, 100, 100),
    )  # fmt: skip
    metres = 100 * 1200 / 3937
    expected = 100 * metres**2 / 10_000
    assert statistics(path, SEGMENTATION)["area_ha"] == pytest.approx(expected, abs=1e-4)


def test_degrees_shrink_towards_the_poles(tmp_path: Path) -> None:
    path = raster(
        tmp_path / "p.tif", np.zeros((80, 100), np.uint8), crs="EPSG:4326",
        transform=from_origin(10, 80, 0.01, 1),
    )  # fmt: skip
    found = statistics(path, SEGMENTATION)
    lune = [10 + n / 100 for n in range(101)]
    ring_x = [*lune, *reversed(lune)]
    ring_y = [80.0] * 101 + [0.0] * 101
    expected = abs(Geod(ellps="WGS84").polygon_area_perimeter(ring_x, ring_y)[0]) / 10_000
    assert found["area_method"] == "geodesic"
    assert found["area_ha"] == pytest.approx(expected, rel=1e-6)


def test_the_whole_earth() -> None:
    areas, method = row_areas(
        Affine(1, 0, -180, 0, -1, 90), rasterio.CRS.from_epsg(4326).to_wkt(), 360, 180
    )
    assert method == "geodesic"
    assert areas.sum() * 360 == pytest.approx(510_065_621_724_088, rel=1e-6)
    assert areas[0] == pytest.approx(areas[-1])


def test_web_mercator_is_corrected(tmp_path: Path) -> None:
    """At 60 degrees north its areas are four times too large."""
    north = 8_399_737.89  # metres, 60 degrees
    path = raster(
        tmp_path / "p.tif", np.zeros((100, 100), np.uint8), crs="EPSG:3857",
        transform=from_origin(1_000_000, north + 500, 10, 10),
    )  # fmt: skip
    found = statistics(path, SEGMENTATION)
    assert found["area_method"] == "geodesic"
    assert found["area_ha"] == pytest.approx(25.0, rel=0.01)


def test_values_of_a_regression(tmp_path: Path) -> None:
    pixels = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    pixels[0, :10] = -9999
    pixels[0, 10] = np.nan
    found = statistics(raster(tmp_path / "p.tif", pixels, nodata=-9999), REGRESSION)
    valid = np.arange(11, 10_000, dtype=np.float64)
    assert (found["min"], found["max"]) == (11.0, 9999.0)
    assert found["mean"] == pytest.approx(valid.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(valid.std(), rel=1e-12)
    assert found["valid_pixels"] == valid.size
    assert found["area_ha"] == 99.89
    assert found["unit"] == "t/ha"
    for rank in (2, 25, 50, 75, 98):
        exact = np.percentile(valid, rank)
        assert found["percentiles"][str(rank)] == pytest.approx(exact, abs=9999 / 4096)
    assert json.loads(json.dumps(found)) == found


def test_a_constant_regression(tmp_path: Path) -> None:
    path = raster(tmp_path / "p.tif", np.full((600, 10), 1e6 + 0.25, np.float32))
    found = statistics(path, REGRESSION)
    assert (found["min"], found["max"], found["mean"], found["std"]) == (1000000.25,) * 3 + (0,)
    assert set(found["percentiles"].values()) == {1000000.25}


@pytest.mark.parametrize("manifest", [SEGMENTATION, REGRESSION])
def test_nothing_valid(manifest: BundleManifest, tmp_path: Path) -> None:
    segmentation = manifest.task == "segmentation"
    pixels = np.full((10, 10), 255 if segmentation else -9999, np.uint8 if segmentation else "f4")
    found = statistics(raster(tmp_path / "p.tif", pixels, nodata=int(pixels[0, 0])), manifest)
    assert (found["valid_pixels"], found["nodata_fraction"], found["area_ha"]) == (0, 1.0, 0.0)
    if segmentation:
        assert {item["share"] for item in found["classes"]} == {0.0}
    else:
        assert (found["mean"], found["percentiles"]) == (None, {})


def test_no_raster(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    path.write_text("nothing")
    with pytest.raises(TaskError, match="cannot be read"):
        statistics(path, SEGMENTATION)
