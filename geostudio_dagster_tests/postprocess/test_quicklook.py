"""The input as a picture: right colours, right place, transparent where nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rio_cogeo import cog_validate

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.postprocess.quicklook import write_quicklook
from geostudio_dagster.storage import sha256_of
from geostudio_dagster_tests.conftest import shared_or_skip


def manifest(*bands: str, rgb: str = "", **fields: Any) -> BundleManifest:
    """A regression model of ``bands``; ``rgb`` marks them, such as ``BGR-``."""
    marks = dict(enumerate(rgb))
    return BundleManifest.model_validate(
        {
            "name": "m", "runtime": "torchscript", "weights": "m.pt", "task": "regression",
            "bands": [
                {"name": name} | ({"rgb": marks[n]} if marks.get(n, "-") != "-" else {})
                for n, name in enumerate(bands)
            ],
            **fields,
        }
    )  # fmt: skip


def scene(path: Path, pixels: np.ndarray[Any, Any], names: tuple[str, ...], **more: Any) -> Path:
    whole = {
        "driver": "GTiff", "count": len(pixels), "height": pixels.shape[1],
        "width": pixels.shape[2], "dtype": pixels.dtype, "crs": "EPSG:32633",
        "transform": from_origin(500_000, 5_300_000, 10, 10), **more,
    }  # fmt: skip
    with rasterio.open(path, "w", **whole) as file:
        file.write(pixels)
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
    return path


S2 = ("B02", "B03", "B04", "B08")
S2_MODEL = manifest(*S2, rgb="BGR-")


def ramp(height: int = 100, width: int = 101) -> np.ndarray[Any, Any]:
    """Four bands; the value of a band rises from left to right, each on its own scale."""
    row = np.linspace(0, 1, width)
    bands = [row * 1000 + 100, row * 2000 + 200, row * 3000 + 300, row * 0 + 5000]
    return np.stack([np.tile(band, (height, 1)) for band in bands]).astype(np.uint16)


def test_colours_are_stretched_between_percentiles(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", ramp(), S2)
    target = tmp_path / "out" / "t_rgb.tif"
    made = write_quicklook(path, S2_MODEL, target, scratch=tmp_path, tags={"TASK": "t"})
    assert made.bands == ("B04", "B03", "B02")
    assert made.stretch == ((360.0, 3240.0), (240.0, 2160.0), (120.0, 1080.0))
    assert made.nodata_fraction == 0.0
    with rasterio.open(target) as file:
        assert file.dtypes == ("uint8",) * 4
        assert file.colorinterp == (
            ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha,
        )  # fmt: skip
        assert file.descriptions == ("B04", "B03", "B02", "alpha")
        assert file.tags()["TASK"] == "t"
        assert file.tags()["GEOSTUDIO_BANDS"] == "B04,B03,B02"
        pixels = file.read()
    assert (pixels[3] == 255).all()
    for band in pixels[:3]:
        assert (band[:, [0, 2, 98, 100]] == [0, 0, 255, 255]).all()
        assert (np.diff(band[0].astype(int)) >= 0).all()
        assert band[0, 50] == 128
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "s.tif"]


def test_grid_and_cog(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", ramp(1100, 1300), S2)
    target = tmp_path / "t_rgb.tif"
    write_quicklook(path, S2_MODEL, target, scratch=tmp_path)
    valid, errors, warnings = cog_validate(target, strict=True, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as whole, rasterio.open(target) as file:
        assert (file.width, file.height) == (whole.width, whole.height)
        assert (file.crs, file.transform) == (whole.crs, whole.transform)
        assert file.overviews(1) == [2, 4]


def test_black_is_not_nodata(tmp_path: Path) -> None:
    pixels = ramp()
    pixels[:3, :, :40] = 1  # dark, and yet seen
    pixels[:, :10] = 0  # no data
    path = scene(tmp_path / "s.tif", pixels, S2, nodata=0)
    target = tmp_path / "t_rgb.tif"
    made = write_quicklook(path, S2_MODEL, target, scratch=tmp_path)
    assert made.nodata_fraction == 0.1
    with rasterio.open(target) as file:
        assert file.nodata is None
        colours = file.read()
    assert (colours[3, :10] == 0).all()
    assert (colours[3, 10:] == 255).all()
    assert (colours[:3, :10] == 0).all()
    assert (colours[:3, 10:, :40] == 0).all()


def test_invalid_floats_are_transparent(tmp_path: Path) -> None:
    pixels = ramp().astype(np.float32) / 1e4
    pixels[2, 5, 5] = np.nan
    pixels[1, 6, 6] = np.inf
    pixels[3, 7, 7] = np.nan  # a band that is not shown does not make a hole in the picture
    path = scene(tmp_path / "s.tif", pixels, S2)
    target = tmp_path / "t_rgb.tif"
    write_quicklook(path, S2_MODEL, target, scratch=tmp_path)
    with rasterio.open(target) as file:
        transparent = np.argwhere(file.read(4) == 0)
    assert transparent.tolist() == [[5, 5], [6, 6]]


def test_eight_bit_stays_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (3, 70, 90), np.uint8)
    path = scene(tmp_path / "s.tif", pixels, ("red", "green", "blue"))
    target = tmp_path / "t_rgb.tif"
    model = manifest("red", "green", "blue", rgb="RGB")
    assert write_quicklook(path, model, target, scratch=tmp_path).stretch is None
    with rasterio.open(target) as file:
        np.testing.assert_array_equal(file.read([1, 2, 3]), pixels)


def test_without_marks_the_first_three_bands(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", ramp(), S2)
    made = write_quicklook(path, manifest(*S2), tmp_path / "t_rgb.tif", scratch=tmp_path)
    assert made.bands == ("B02", "B03", "B04")


def test_a_single_band_is_grey(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", ramp()[:1], ("VV",))
    target = tmp_path / "t_rgb.tif"
    assert write_quicklook(path, manifest("VV"), target, scratch=tmp_path).bands == ("VV",)
    with rasterio.open(target) as file:
        red, green, blue, alpha = file.read()
        assert file.descriptions == ("VV", "VV", "VV", "alpha")
    assert (red == green).all()
    assert (green == blue).all()
    assert (alpha == 255).all()


def test_bands_without_names_are_taken_in_the_models_order(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", ramp(), ())
    made = write_quicklook(path, S2_MODEL, tmp_path / "t_rgb.tif", scratch=tmp_path)
    assert made.stretch == ((360.0, 3240.0), (240.0, 2160.0), (120.0, 1080.0))


def test_parts_of_a_scene_are_the_whole_cut_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pixels = (ramp(900, 1100) + rng.integers(0, 500, (4, 900, 1100))).astype(np.uint16)
    pixels[:, :30] = 0
    path = scene(tmp_path / "s.tif", pixels, S2, nodata=0, tiled=True)
    whole, part = tmp_path / "whole_rgb.tif", tmp_path / "part_rgb.tif"
    write_quicklook(path, S2_MODEL, whole, scratch=tmp_path)
    with rasterio.open(whole) as file:
        expected = file.read()
        transform = file.transform
    for window in ((0, 0, 512, 512), (512, 0, 588, 512), (0, 512, 512, 388), (512, 512, 588, 388)):
        write_quicklook(path, S2_MODEL, part, scratch=tmp_path, window=window)
        col, row, width, height = window
        with rasterio.open(part) as file:
            got = file.read()
            assert file.transform == transform @ rasterio.Affine.translation(col, row)
        np.testing.assert_array_equal(got, expected[:, row : row + height, col : col + width])


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", ramp(700, 800), S2)
    digests = set()
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        write_quicklook(path, S2_MODEL, folder / "t_rgb.tif", scratch=folder)
        digests.add(sha256_of(folder / "t_rgb.tif"))
    assert len(digests) == 1


def test_a_scene_without_any_data(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", np.zeros((4, 50, 50), np.uint16), S2, nodata=0)
    target = tmp_path / "t_rgb.tif"
    assert write_quicklook(path, S2_MODEL, target, scratch=tmp_path).nodata_fraction == 1.0
    with rasterio.open(target) as file:
        assert not file.read().any()


def test_a_flat_scene(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", np.full((4, 50, 50), 700, np.uint16), S2)
    target = tmp_path / "t_rgb.tif"
    made = write_quicklook(path, S2_MODEL, target, scratch=tmp_path)
    assert made.stretch == ((700.0, 701.0),) * 3


def test_a_window_outside_the_scene(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.tif", ramp(), S2)
    target = tmp_path / "t_rgb.tif"
    with pytest.raises(TaskError, match="not inside"):
        write_quicklook(path, S2_MODEL, target, scratch=tmp_path, window=(90, 0, 20, 20))
    assert not target.exists()


def test_real_reflectance(tmp_path: Path) -> None:
    path = shared_or_skip("scenes/hls_utm14n_10band_224.tif")
    names = [f"band_{number}" for number in range(10)]
    target = tmp_path / "t_rgb.tif"
    write_quicklook(path, manifest(*names, rgb="BGR-------"), target, scratch=tmp_path)
    assert cog_validate(target, quiet=True)[0]
    with rasterio.open(path) as source, rasterio.open(target) as file:
        assert (file.crs, file.transform) == (source.crs, source.transform)
        seen = (source.read([1, 2, 3]) != source.nodata).all(axis=0)
        np.testing.assert_array_equal(file.read(4) == 255, seen)
        assert 60 < file.read(1)[seen].mean() < 200


def test_real_collar(tmp_path: Path) -> None:
    path = shared_or_skip("scenes/landsat_rgb_utm18n.tif")
    target = tmp_path / "t_rgb.tif"
    model = manifest("red", "green", "blue", rgb="RGB")
    made = write_quicklook(path, model, target, scratch=tmp_path)
    with rasterio.open(path) as source, rasterio.open(target) as file:
        seen = (source.read() != 0).all(axis=0)
        np.testing.assert_array_equal(file.read([1, 2, 3])[:, seen], source.read()[:, seen])
        assert made.nodata_fraction == pytest.approx(1 - seen.mean())
