from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.preview import preview_png
from geostudio_dagster_tests.prediction.builders import write_raster


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
