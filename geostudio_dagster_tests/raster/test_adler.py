"""The checksum made of a block's pixels is the one that GDAL's writer left behind the block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from geostudio_dagster.raster.adler import adler_of
from geostudio_dagster_tests.prediction.builders import write_raster


def stored(path: Path, band: int, row: int, col: int) -> int:
    with rasterio.open(path) as file:
        offset, size = (
            int(file.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=band))
            for what in ("OFFSET", "SIZE")
        )
    content = path.read_bytes()
    return int.from_bytes(content[offset + size - 4 : offset + size], "big")


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize(
    ("dtype", "predictor"),
    [
        *((dtype, 1) for dtype in ("uint8", "int16", "float32")),
        *((dtype, 2) for dtype in ("uint8", "int8", "uint16", "int16", "uint32", "int32")),
        *((dtype, 2) for dtype in ("float32", "uint64", "float64")),
        ("float32", 3),
        ("float64", 3),
    ],
)
def test_it_is_that_of_the_file(
    tmp_path: Path, dtype: str, predictor: int, interleave: str
) -> None:
    numbers = np.random.default_rng(0).normal(0, 60, (3, 320, 320))
    pixels = numbers.astype(np.int64).astype(dtype) if dtype[0] in "ui" else numbers.astype(dtype)
    path = tmp_path / "s.tif"
    write_raster(path, pixels, block=160, predictor=predictor, interleave=interleave)
    for row, col in ((0, 0), (1, 0), (1, 1)):
        block = pixels[:, 160 * row : 160 * row + 160, 160 * col : 160 * col + 160]
        if interleave == "pixel":
            assert adler_of(list(block), predictor) == stored(path, 1, row, col)
            continue
        for band in (1, 2, 3):
            assert adler_of([block[band - 1]], predictor) == stored(path, band, row, col)


@pytest.mark.parametrize("predictor", [1, 2])
def test_it_is_that_of_strips_the_last_lower_one_too(tmp_path: Path, predictor: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 9999, (2, 75, 3000)).astype(np.uint16)
    path = tmp_path / "s.tif"
    write_raster(path, pixels, tiled=False, blockysize=30, predictor=predictor, interleave="pixel")
    for row, rows in ((0, slice(0, 30)), (2, slice(60, 75))):
        assert adler_of(list(pixels[:, rows]), predictor) == stored(path, 1, row, 0)


def test_one_other_bit_makes_another() -> None:
    pixels = np.zeros((1, 8, 8), np.uint16)
    before = adler_of(list(pixels), 2)
    pixels[0, 7, 7] = 1
    assert adler_of(list(pixels), 2) != before
