"""COGs out of scratch rasters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from geostudio_dagster.raster.cog import ScratchRaster, write_cog
from geostudio_dagster.raster.patches import Box
from geostudio_dagster_tests.prediction.builders import GRID, read


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """700 x 600 pixels of noise on waves, uint8."""
    rng = np.random.default_rng(3)
    waves = 90 * np.sin(np.arange(700) / 40) + 120
    pixels = (waves + rng.normal(0, 5, (1, 600, 700))).astype(np.uint8)
    raster = ScratchRaster(
        tmp_path / "scratch.tif",
        size=(700, 600),
        bands=1,
        dtype="uint8",
        nodata=255,
        crs="EPSG:32633",
        transform=GRID,
    )
    with raster:
        raster.write(Box(0, 0, 700, 600), pixels)
        raster.describe(tags={"ORIGIN": "test"}, descriptions=["waves"])
    return tmp_path / "scratch.tif"


def test_the_level_of_compression_changes_the_size_alone(scratch: Path, tmp_path: Path) -> None:
    fast, small = tmp_path / "fast.tif", tmp_path / "small.tif"
    write_cog(scratch, fast, "average", level=1)
    write_cog(scratch, small, "average", level=9)
    assert small.stat().st_size < fast.stat().st_size < scratch.stat().st_size
    for path in (fast, small):
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
        assert np.array_equal(read(path), read(scratch))
        with rasterio.open(path) as file:
            assert file.tags()["ORIGIN"] == "test"
            assert file.descriptions == ("waves",)


def test_equal_bytes_whatever_the_threads(scratch: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        write_cog(scratch, tmp_path / f"{threads}.tif", "mode", threads=threads)
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "3.tif").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.tif", "3.tif", "scratch.tif"]
