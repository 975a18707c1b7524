"""Whether a raster that was written is whole: where the disk was full, GDAL may not say so.

What its cache holds is written as a file is closed, and what goes wrong there is an error for
nobody: tiles are missing, which is what stands for no data, or lie beyond the end of the file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what GDAL says without rasterio's words for it
from rasterio.errors import RasterioError

from geostudio_dagster.raster.checksums import Checksums, DamagedBlockError, LocalBytes
from geostudio_dagster.raster.nodata import representable
from geostudio_dagster.raster.patches import Box


class TilesWithData:
    """Which tiles of a raster, of a side of ``block`` pixels, have got anything but no data."""

    def __init__(self, size: tuple[int, int], bands: int, block: int, nodata: float | None) -> None:
        self._block = block
        self._nodata = 0.0 if nodata is None else nodata  # what GDAL leaves out
        self._filled = np.zeros((bands, -(-size[1] // block), -(-size[0] // block)), np.bool_)

    def add(self, box: Box, pixels: NDArray[Any]) -> None:
        """``pixels`` (bands, height, width) are written at ``box``."""
        rows = _edges(box.row, box.bottom, self._block)
        cols = _edges(box.col, box.right, self._block)
        first = rows[0] // self._block, cols[0] // self._block
        place = np.s_[:, first[0] : first[0] + len(rows), first[1] : first[1] + len(cols)]
        if self._filled[place].all():
            return  # as mostly: rows come in many parts
        nodata = representable(self._nodata, pixels.dtype)
        if nodata is None:
            has_data = np.ones(pixels.shape, np.bool_)
        else:
            has_data = (
                ~np.isnan(pixels) if np.isnan(nodata) else pixels != pixels.dtype.type(nodata)
            )
        tiles = np.logical_or.reduceat(has_data, rows - box.row, axis=1)
        tiles = np.logical_or.reduceat(tiles, cols - box.col, axis=2)
        self._filled[place] |= tiles

    def check(self, path: Path) -> None:
        """Make sure that the raster at ``path``, closed by now, has them all.

        Raises:
            OSError: it has not; the disk was full, most likely.
        """
        length = path.stat().st_size
        with rasterio.open(path) as file:
            for band, row, col in np.argwhere(self._filled):
                offset, size = (
                    file.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=int(band) + 1)
                    for what in ("OFFSET", "SIZE")
                )
                if not offset or not size or int(offset) + int(size) > length:
                    raise _incomplete(path)


def check_cog(path: Path, threads: int = 1) -> None:
    """Make sure that a deflate COG has all its blocks and overviews, by their checksums.

    Raises:
        OSError: it has not; the disk was full, most likely.
    """
    try:
        with LocalBytes(path) as content:
            for options in _levels(path):
                with rasterio.open(path, **options) as file:
                    whole = Box(0, 0, file.width, file.height)
                    bands = range(1, file.count + 1)
                    Checksums(file, content, threads).check(bands, whole, sparse=False)
    except (DamagedBlockError, RasterioError, CPLE_BaseError) as error:
        raise _incomplete(path) from error


def _levels(path: Path) -> Iterator[dict[str, Any]]:
    with rasterio.open(path) as file:
        levels = len(file.overviews(1))
    yield {}
    yield from ({"OVERVIEW_LEVEL": level} for level in range(levels))


def _edges(start: int, stop: int, block: int) -> NDArray[np.int64]:
    """Where the tiles begin that lie within a range, and its own start."""
    return np.concatenate(([start], np.arange(start // block * block + block, stop, block)))


def _incomplete(path: Path) -> OSError:
    return OSError(errno.ENOSPC, "not all of it could be written; is the disk full?", path.name)
