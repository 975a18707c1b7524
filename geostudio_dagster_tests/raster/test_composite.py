"""Several rasters as one scene: the same pixels however it is cut, and what stands for no data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
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
from geostudio_dagster.raster.composite import write_composite
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.regridding import BandInput, Canvas
from geostudio_dagster_tests.prediction.builders import GRID, write_raster
from geostudio_dagster_tests.raster.test_checksums import hole, with_mask

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


SMALL = 448  # pixels of the side of a granule of 7 x 7 blocks
DEGREES = Affine(0.0001, 0, 180 - 0.025, 0, -0.0001, 47)


def granule(path: Path, **profile: Any) -> Path:
    """Like imagery: a hole of zeros in a block of it inflates well, and GDAL takes it."""
    steps = np.random.default_rng(4).integers(-20, 21, (1, SMALL, SMALL))
    pixels = (3000 + np.cumsum(steps, axis=2)).astype(np.uint16)
    return write_raster(path, pixels, nodata=0, predictor=2, **profile)


def over(path: Path, crs: str, resolution: float) -> Canvas:
    """A grid whose west and north are those of a raster; it may be rotated in there."""
    with rasterio.open(path) as file:
        corners = [file.transform @ corner for corner in product((0, file.width), (0, file.height))]
        bounds = [*np.min(corners, axis=0), *np.max(corners, axis=0)]
        west, south, east, north = transform_bounds(file.crs, crs, *bounds)
    size = int((east - west) / resolution), int((north - south) / resolution)
    return Canvas(CRS.from_string(crs), Affine(resolution, 0, west, 0, -resolution, north), *size)


@pytest.mark.parametrize(
    ("crs", "resolution", "codes", "profile"),
    [
        ("EPSG:32633", 10.0, False, {}),
        ("EPSG:32633", 5.0, False, {}),
        ("EPSG:32632", 10.0, False, {}),
        ("EPSG:32634", 45.0, False, {}),
        ("EPSG:32634", 45.0, True, {}),
        ("EPSG:4326", 0.0002, False, {}),
        ("EPSG:32633", 25.0, False, {"transform": GRID @ Affine.rotation(30)}),
        # On both sides of 180 degrees.
        ("EPSG:32601", 10.0, False, {"crs": "EPSG:4326", "transform": DEGREES}),
    ],
)
def test_of_a_damaged_granule_no_pixel_is_made(
    tmp_path: Path, crs: str, resolution: float, *, codes: bool, profile: dict[str, Any]
) -> None:
    path = granule(tmp_path / "g.tif", **profile)
    grid = over(path, crs, resolution)
    wide, high = grid.width // 7, grid.height // 7  # a block, where grids differ in size alone
    box = Box(2 * wide, 2 * high, 3 * wide, 2 * high)
    inputs = [[band(path, codes=codes)]]
    sound, content = composed(tmp_path, inputs, grid, box)[0], path.read_bytes()
    assert sound.any()
    told = 0
    for row, column in np.ndindex(7, 7):
        path.write_bytes(content)
        hole(path, row, column)
        try:
            made, _ = composed(tmp_path, inputs, grid, box)
        except TaskError as error:
            assert error.code == "corrupt"
            told += 1
        else:
            np.testing.assert_array_equal(made, sound)
    # Some lie under the box. Others do not, and hinder nobody.
    assert 4 <= told <= 40


def test_a_damaged_block_is_told_by_its_file_and_place(tmp_path: Path) -> None:
    path = hole(granule(tmp_path / "g.tif"), 2, 3)
    with pytest.raises(TaskError) as failure:
        composed(tmp_path, [[band(path)]], over(path, "EPSG:32632", 10.0), Box(0, 0, 460, 460))
    assert failure.value.code == "corrupt"
    assert str(failure.value) == (
        f"{path} can't be read (the block of 64 x 64 pixels at column 192, row 128 is damaged or "
        "cut short, by its checksum)."
    )


def test_a_band_that_masks_the_others_is_checked_with_them(tmp_path: Path) -> None:
    pixels = np.full((2, 200, 200), 255, np.uint8)
    pixels[1, :50] = 0
    path = write_raster(
        tmp_path / "g.tif",
        pixels,
        nodata=0,
        interleave="band",
        photometric="MINISBLACK",
        alpha="YES",
    )
    grid = over(path, "EPSG:32633", 10.0)
    assert composed(tmp_path, [[band(path)]], grid, Box(0, 0, 200, 200))[0].any()
    hole(path, 1, 1, band=2)
    with pytest.raises(TaskError, match="column 64, row 64 of band 2 is damaged"):
        composed(tmp_path, [[band(path)]], grid, Box(0, 0, 200, 200))


def test_a_mask_in_the_file_of_a_granule_is_checked_with_it(tmp_path: Path) -> None:
    path = with_mask(tmp_path / "g.tif")
    grid = over(path, "EPSG:32632", 10.0)
    box = Box(0, 0, 250, 200)
    assert composed(tmp_path, [[band(path)]], grid, box)[0].any()
    hole(path, 1, 1, page=4)
    with pytest.raises(TaskError, match="column 64, row 64 of the mask is damaged"):
        composed(tmp_path, [[band(path)]], grid, box)


def test_a_granule_that_the_canvas_has_no_place_for_hinders_nobody(tmp_path: Path) -> None:
    # Of the far side of the earth, no point has a place on the granule's map.
    place = {"crs": "+proj=ortho +lat_0=0 +lon_0=0", "transform": Affine(10, 0, 0, 0, -10, 0)}
    path = hole(granule(tmp_path / "g.tif", **place), 0, 0)
    grid = Canvas(CRS.from_epsg(4326), Affine(0.1, 0, 170, 0, -0.1, 5), 100, 100)
    made, _ = composed(tmp_path, [[band(path)]], grid, Box(0, 0, 100, 100))
    assert made.shape == (1, 100, 100)


def test_an_alpha_band_tells_where_a_granule_without_nodata_has_data(tmp_path: Path) -> None:
    pixels = np.full((2, 200, 200), 90, np.uint8)
    pixels[1] = 255
    pixels[1, :50] = 0
    path = write_raster(tmp_path / "g.tif", pixels, photometric="MINISBLACK", alpha="YES")
    made, profile = composed(
        tmp_path, [[band(path)]], over(path, "EPSG:32633", 10.0), Box(0, 0, 200, 200)
    )
    assert profile["nodata"] == 0
    assert (made[0, :50] == 0).all()
    assert (made[0, 50:200, :200] == 90).all()
