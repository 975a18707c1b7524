from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.cog import write_cog
from geostudio_dagster.raster.preview import preview_png
from geostudio_dagster_tests.prediction.builders import GRID, write_raster

CLASSES = [
    {"value": 0, "name": "dry", "colour": "#102030", "opacity": 0},
    {"value": 1, "name": "wet", "colour": "#405060"},
]


def picture(path: Path, **more: object) -> np.ndarray:
    image = Image.open(io.BytesIO(preview_png(path, **more)))  # type: ignore[arg-type]
    assert (image.format, image.mode) == ("PNG", "RGBA")
    return np.asarray(image)


def manifest(**more: object) -> BundleManifest:
    document = {
        "name": "m",
        "runtime": "torchscript",
        "weights": "m.pt",
        "task": "regression",
        "bands": [{"name": "a"}],
    }
    return BundleManifest.model_validate(document | more)


def test_what_lies_beside_a_raster_has_no_say(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "c.tif", np.full((1, 40, 60), 7, np.uint8), nodata=255)
    before = preview_png(path)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros((40, 60), np.uint8))
    assert path.with_name("c.tif.msk").is_file()
    assert preview_png(path) == before


def test_classes_show_in_their_colours(tmp_path: Path) -> None:
    classes = np.zeros((1, 40, 60), np.uint8)
    classes[0, :, 30:] = 1
    classes[0, :10] = 255
    path = write_raster(tmp_path / "c.tif", classes, nodata=255)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30, 255), 1: (40, 50, 60, 255)})
    image = picture(path)
    assert image.shape == (40, 60, 4)
    assert image[20, 10].tolist() == [10, 20, 30, 255]
    assert image[20, 50].tolist() == [40, 50, 60, 255]
    assert (image[:10, :, 3] == 0).all()


def test_large_rasters_become_small_pictures(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "c.tif", np.ones((1, 300, 1200), np.uint8))
    assert picture(path, max_size=100).shape == (25, 100, 4)


def test_a_regression_shows_its_ramp(tmp_path: Path) -> None:
    values = np.array([[[0, 5, 10, -9999, 99]]], np.float32)
    path = write_raster(tmp_path / "v.tif", values, nodata=-9999, block=16)
    ramp = [{"value": 10, "colour": "#ff0064"}, {"value": 0, "colour": "#000000"}]
    image = picture(path, manifest=manifest(ramp=ramp))
    assert image[0].tolist() == [
        [0, 0, 0, 255],
        [128, 0, 50, 255],
        [255, 0, 100, 255],
        [0, 0, 0, 0],
        [255, 0, 100, 255],
    ]


def test_scenes_show_the_manifests_red_green_and_blue_stretched(tmp_path: Path) -> None:
    pixels = np.zeros((4, 10, 10), np.uint16)
    pixels[2] = np.linspace(1000, 2000, 100).reshape(10, 10)
    pixels[:, 0, 0] = 9
    path = write_raster(tmp_path / "s.tif", pixels, nodata=9, names="abcd", block=16)
    bands = [{"name": "a", "rgb": "B"}, {"name": "b", "rgb": "G"}, {"name": "c", "rgb": "R"}]
    image = picture(path, manifest=manifest(bands=bands))
    assert image[0, 0].tolist() == [0, 0, 0, 0]
    assert image[9, 9].tolist() == [255, 0, 0, 255]
    assert 100 < image[5, 0, 0] < 155
    assert (picture(path)[9, 9] == [0, 0, 255, 255]).all()  # without: the first three


def test_a_single_band_is_grey_and_an_empty_one_transparent(tmp_path: Path) -> None:
    ramp = np.arange(100, dtype=np.float32).reshape(1, 10, 10)
    image = picture(write_raster(tmp_path / "g.tif", ramp, block=16))
    assert image[9, 9].tolist() == [255, 255, 255, 255]
    assert image[0, 0].tolist() == [0, 0, 0, 255]
    empty = np.full((1, 10, 10), np.nan, np.float32)
    assert (picture(write_raster(tmp_path / "e.tif", empty, block=16))[..., 3] == 0).all()


def test_classes_without_a_colour_table_show_in_the_models_colours(tmp_path: Path) -> None:
    values = np.array([[[0, 1, 999, 65535]]], np.uint16)
    path = write_raster(tmp_path / "m.tif", values, nodata=65535, block=16)
    of_classes = manifest(task="segmentation", classes=CLASSES)
    bytes_ = write_raster(tmp_path / "b.tif", np.array([[[1, 0]]], np.uint8), block=16)
    image = picture(bytes_, manifest=of_classes, more_colours={999: "#cccccc"})
    assert image[0].tolist() == [[64, 80, 96, 255], [16, 32, 48, 255]]
    image = picture(path, manifest=of_classes, more_colours={999: "#cccccc"})
    assert image[0].tolist() == [
        [16, 32, 48, 255],  # opaque: what is transparent has no data
        [64, 80, 96, 255],
        [204, 204, 204, 255],
        [0, 0, 0, 0],
    ]


def test_of_a_band_per_class_the_likeliest_shows(tmp_path: Path) -> None:
    shares = np.array([[[200, 100, 90, 255]], [[0, 100, 110, 255]]], np.uint8)
    path = write_raster(tmp_path / "p.tif", shares, nodata=255, block=16)
    image = picture(
        path, manifest=manifest(task="segmentation", classes=CLASSES, output="probabilities")
    )
    assert image[0].tolist() == [
        [16, 32, 48, 255],
        [16, 32, 48, 255],  # of equals the first, as in a class map
        [64, 80, 96, 255],
        [0, 0, 0, 0],
    ]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1024))
@settings(max_examples=20, deadline=None)
def test_pictures_are_not_distorted_and_not_larger_than_asked(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, most: int
) -> None:
    path = tmp_path_factory.mktemp("s") / "r.tif"
    profile = {"dtype": "uint8", "sparse_ok": True, "transform": GRID, "crs": "EPSG:32633"}
    with rasterio.open(path, "w", "GTiff", width, height, 1, **profile):
        pass
    high, wide, _ = picture(path, max_size=most).shape
    scale = min(1, most / max(width, height))
    assert max(high, wide) == min(most, max(width, height))
    assert abs(wide - width * scale) <= 1
    assert abs(high - height * scale) <= 1


def test_the_same_cog_gives_the_same_bytes_from_its_overviews(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:1500, :2300]
    rough = write_raster(tmp_path / "r.tif", np.hypot(rows, columns).astype(np.float32)[np.newaxis])
    write_cog(rough, tmp_path / "cog.tif", "average")
    first = preview_png(tmp_path / "cog.tif", 512)
    assert preview_png(tmp_path / "cog.tif", 512) == first
    image = np.asarray(Image.open(io.BytesIO(first)))
    assert image.shape == (334, 512, 4)
    assert (np.diff(image[:, 0, 0].astype(int)) >= 0).all()  # from the upper left, ever lighter
