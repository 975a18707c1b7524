"""Several rasters as one scene: the same pixels however it is cut, and what stands for no data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from geostudio_dagster.errors import Cancelled, TaskError
from geostudio_dagster.raster.composite import BandInput, Canvas, write_composite
from geostudio_dagster.raster.patches import Box
from geostudio_dagster_tests.prediction.builders import write_raster

SIDE = 1500
WHOLE = Box(0, 0, SIDE, SIDE)


def canvas(crs: str = "EPSG:32633", resolution: float = 10.0, side: int = SIDE) -> Canvas:
    """A grid that the builders' rasters lie on, or the same place in another projection."""
    west, _, _, north = transform_bounds("EPSG:32633", crs, 500_000, 5_285_000, 515_000, 5_300_000)
    west, north = round(west / resolution) * resolution, round(north / resolution) * resolution
    return Canvas(
        CRS.from_string(crs), Affine(resolution, 0, west, 0, -resolution, north), side, side
    )


def band(path: Path, **more: Any) -> BandInput:
    """The only band of a file."""
    return BandInput(file=lambda: path, band=1, **more)


def composed(
    folder: Path,
    rasters: Sequence[Sequence[BandInput]],
    grid: Canvas,
    box: Box = WHOLE,
    **more: Any,
) -> tuple[NDArray[Any], Any]:
    """Pixels of the whole scene's size, and what the file says of itself."""
    target = folder / "scene.tif"
    names = [f"b{number}" for number in range(len(rasters[0]))]
    write_composite(rasters, names, grid, box, target, **more)
    with rasterio.open(target) as file:
        return file.read(), file.profile


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers without any likeness to their neighbours, with a hole."""
    pixels = np.random.default_rng(1).integers(1, 10_000, (1, SIDE, SIDE)).astype(np.uint16)
    pixels[:, 600:700, 600:700] = 0
    return write_raster(tmp_path_factory.mktemp("noise") / "noise.tif", pixels, nodata=0)


@pytest.mark.parametrize(
    ("crs", "resolution"), [("EPSG:32633", 10.0), ("EPSG:32632", 10.0), ("EPSG:32634", 30.0)]
)
@options(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(box=st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(1, 700)] * 2))
def test_a_pixel_is_the_same_whatever_part_it_is_made_in(
    tmp_path: Path, noise: Path, crs: str, resolution: float, box: tuple[int, int, int, int]
) -> None:
    grid = canvas(crs, resolution, int(SIDE * 10 / resolution))
    column, row, width, height = box
    part = Box(column, row, min(width, grid.width - column), min(height, grid.height - row))
    key = tmp_path / f"{crs[5:]}.npy"
    if not key.exists():
        np.save(key, composed(tmp_path, [[band(noise)]], grid, Box(0, 0, *[grid.width] * 2))[0])
    whole = np.load(key)
    made, _ = composed(tmp_path, [[band(noise)]], grid, part)
    inside = np.zeros(made.shape, bool)
    inside[:, part.row : part.bottom, part.col : part.right] = True
    np.testing.assert_array_equal(made, np.where(inside, whole, 0))


def test_smaller_pixels_are_averaged(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(SIDE, dtype=np.float32), (1, SIDE, SIDE))
    path = write_raster(tmp_path / "ramp.tif", np.ascontiguousarray(ramp), nodata=-1)
    noise = np.random.default_rng(2).normal(0, 100, (1, SIDE, SIDE)).astype(np.float32)
    rough = write_raster(tmp_path / "rough.tif", noise, nodata=-9999)
    grid = canvas(resolution=30, side=500)
    made, profile = composed(tmp_path, [[band(path), band(rough)]], grid, Box(0, 0, 500, 500))
    assert profile["dtype"] == "float32"
    assert np.isnan(profile["nodata"])
    centres = (grid.transform.c - 500_000) / 10 + np.arange(500) * 3 + 1
    for row in (5, 250, 490):
        np.testing.assert_allclose(made[0, row, 5:-5], centres[5:-5])
    assert made[1, 5:-5, 5:-5].std() < 40  # single pixels would keep the 100


def test_no_data_of_files_that_do_not_tell_is_what_was_told(tmp_path: Path) -> None:
    pixels = np.full((1, SIDE, SIDE), 7, np.int16)
    pixels[:, :100] = -9999
    path = write_raster(tmp_path / "a.tif", pixels)
    made, profile = composed(tmp_path, [[band(path, nodata=-9999.0)]], canvas())
    assert profile["nodata"] == -9999
    np.testing.assert_array_equal(made, pixels)
    untold, profile = composed(tmp_path, [[band(path, nodata=float("nan"))]], canvas())
    assert profile["nodata"] == -32768
    np.testing.assert_array_equal(untold, pixels)


def test_codes_are_taken_over_as_they_are(tmp_path: Path) -> None:
    red = np.full((1, SIDE, SIDE), 500, np.uint16)
    red[:, :, 1000:] = 0
    codes = np.random.default_rng(3).integers(0, 64, (1, SIDE, SIDE)).astype(np.uint8)
    codes[:, 900:1000] = 255
    files = [
        band(write_raster(tmp_path / "red.tif", red, nodata=0)),
        band(write_raster(tmp_path / "fmask.tif", codes, nodata=255), codes=True),
    ]
    made, profile = composed(tmp_path, [files], canvas())
    assert profile["dtype"] == "uint16"
    np.testing.assert_array_equal(made[0], red[0])
    np.testing.assert_array_equal(made[1][red[0] > 0], codes[0][red[0] > 0])


def test_types_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    half = np.full((1, SIDE, SIDE), 5, np.uint8)
    half[:, :100] = 0
    small = write_raster(tmp_path / "small.tif", half, nodata=0)
    large = write_raster(tmp_path / "large.tif", half.astype(np.float32), nodata=0)
    with pytest.raises(TaskError) as failure:
        composed(tmp_path, [[band(small)], [band(large)]], canvas())
    assert failure.value.code == "mixed_types"


def test_it_ends_when_it_is_told_to(tmp_path: Path, noise: Path) -> None:
    with pytest.raises(Cancelled):
        composed(tmp_path, [[band(noise)]], canvas(), cancelled=lambda: True)


def test_a_damaged_file_is_named(tmp_path: Path, noise: Path) -> None:
    data = bytearray(noise.read_bytes())
    data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
    damaged = tmp_path / "damaged.tif"
    damaged.write_bytes(bytes(data))
    with pytest.raises(TaskError) as failure:
        composed(tmp_path, [[band(damaged)]], canvas())
    assert failure.value.code in ("corrupt", "not_a_raster")
    assert "damaged.tif" in str(failure.value)
