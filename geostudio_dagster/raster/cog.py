"""Writing: a tiled scratch file filled by windows, then a COG, the same bytes every time.

The scratch file's overviews are made tile by tile while it is being filled, in a file per level
that GDAL finds by its name. So making the COG is no more than compressing what is there, which
GDAL does on all cores; overviews it would make on one.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from geostudio_dagster.raster.overviews import Overviews, halved
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.wholeness import TilesWithData, check_cog

BLOCK = 512
Colours = Mapping[int, tuple[int, int, int, int]]


class ScratchRaster:
    """A tiled, uncompressed GeoTIFF that rows are written into; the raw material of a COG.

    Tiles that are never written are nodata and take no space. With ``overviews``, the raster of
    half its size lies beside it, which has its own overviews beside it, until one is of one tile.
    :func:`remove_scratch` removes them all.

    Raises:
        OSError: at the end of its body, where not all could be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: tuple[int, int],
        bands: int,
        dtype: str,
        nodata: float | None,
        crs: Any,
        transform: Affine,
        overviews: Overviews | None = None,
    ) -> None:
        remove_scratch(path)  # what a process left that was killed could pass for overviews
        self.path = path
        self._file = rasterio.open(
            path,
            "w+",
            driver="GTiff",
            width=size[0],
            height=size[1],
            count=bands,
            dtype=dtype,
            nodata=nodata,
            crs=crs,
            transform=transform,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            interleave="band",
            bigtiff="IF_SAFER",
            sparse_ok=True,
        )
        self._tiles = TilesWithData(size, bands, BLOCK, nodata)
        self._coarser: _Coarser | None = None
        if overviews and max(size) > BLOCK:
            half = ScratchRaster(
                path.with_name(f"{path.name}.ovr"),  # where GDAL looks for it
                size=((size[0] + 1) // 2, (size[1] + 1) // 2),
                bands=bands,
                dtype=dtype,
                nodata=nodata,
                crs=crs,
                transform=transform @ Affine.scale(2),
                overviews=overviews,
            )
            self._coarser = _Coarser(self._file, half, overviews)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if self._coarser:
                self._coarser.close(complete=kind is None)
        if kind is None:
            self._tiles.check(self.path)

    def write(self, box: Box, pixels: NDArray[Any]) -> None:
        """Write ``pixels`` (bands, height, width) at ``box`` of the file."""
        self._file.write(pixels, window=Window(*box))
        self._tiles.add(box, pixels)
        if self._coarser:
            self._coarser.update(box)

    def describe(
        self,
        *,
        tags: Mapping[str, str],
        descriptions: Sequence[str] = (),
        colours: Colours | None = None,
        unit: str = "",
        scale: float = 1.0,
    ) -> None:
        """Set the file's tags, the bands' names, the colour table, and the values' unit and scale.

        A pixel times ``scale`` is the value that it stands for.
        """
        self._file.update_tags(**tags)
        for number, text in enumerate(descriptions, start=1):
            self._file.set_band_description(number, text)
            if unit:
                self._file.set_band_unit(number, unit)
        if scale != 1:
            self._file.scales = [scale] * self._file.count
        if colours:
            self._file.write_colormap(1, dict(colours))


class _Coarser:
    """Fills the raster of half the size: with each tile as soon as it is complete.

    In whatever order pixels come, for rows of panels and parts of scenes end within tiles.
    """

    def __init__(self, fine: Any, half: ScratchRaster, how: Overviews) -> None:
        self._fine = fine
        self._half = half
        self._how = how
        self._area = np.outer(_shares(0, fine.height)[1], _shares(0, fine.width)[1])
        self._missing = self._area.copy()  # pixels of each tile that nobody has written yet

    def update(self, box: Box) -> None:
        """The fine raster has been written at ``box``."""
        rows, heights = _shares(box.row, box.bottom)
        cols, widths = _shares(box.col, box.right)
        missing = self._missing[rows, cols]
        missing -= np.outer(heights, widths)
        for row, col in np.argwhere(missing == 0):
            self._halve(rows.start + int(row), cols.start + int(col))

    def close(self, *, complete: bool) -> None:
        """Close it; where all that is to be written is, with tiles that were written in part."""
        with self._half:
            # Or more than once: then some that were halved may have changed since.
            unlike = (self._missing != 0) & (self._missing != self._area)
            for row, col in np.argwhere(unlike & complete):
                self._halve(int(row), int(col))

    def _halve(self, row: int, col: int) -> None:
        left, top = col * BLOCK, row * BLOCK
        width, height = min(BLOCK, self._fine.width - left), min(BLOCK, self._fine.height - top)
        pixels = self._fine.read(window=Window(left, top, width, height))
        pixels = halved(pixels, self._how, self._fine.nodata)
        box = Box(left // 2, top // 2, pixels.shape[2], pixels.shape[1])
        self._half.write(box, pixels)


def _shares(start: int, stop: int) -> tuple[slice, NDArray[np.int64]]:
    """The tiles that the rows, or columns, from ``start`` to ``stop`` lie in; how many in each."""
    tiles = slice(start // BLOCK, -(-stop // BLOCK))
    edges = np.arange(tiles.start, tiles.stop + 1) * BLOCK
    return tiles, np.diff(edges.clip(start, stop))


def remove_scratch(path: Path) -> None:
    """Remove a scratch raster and its overviews, as far as they are there."""
    for part in path.parent.glob(f"{glob.escape(path.name)}*"):
        part.unlink()


def write_cog(
    scratch: Path,
    target: Path,
    overviews: Overviews | None = None,
    *,
    threads: int = 2,
    level: int = 5,
) -> None:
    """Make a COG of ``scratch``; ``target`` appears only when it is complete.

    The bytes depend on the scratch file's pixels and tags alone.

    Args:
        overviews: how GDAL is to make them; None where the scratch raster was made with its own.

    Raises:
        OSError: not all could be written; nothing is left of it.
    """
    finished = scratch.with_name(f"{scratch.stem}.cog.tif")
    with rasterio.open(scratch) as file:
        floating = np.dtype(file.dtypes[0]).kind == "f"
    made = {"OVERVIEW_RESAMPLING": overviews.upper()} if overviews else {}
    try:
        # Around this, GDAL may be told not to look for files beside the one that it opens.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
            rasterio.shutil.copy(
                scratch,
                finished,
                driver="COG",
                BLOCKSIZE=BLOCK,
                COMPRESS="DEFLATE",
                LEVEL=level,
                PREDICTOR="YES" if floating else "NO",
                OVERVIEWS="IGNORE_EXISTING" if overviews else "FORCE_USE_EXISTING",
                NUM_THREADS=threads,
                BIGTIFF="IF_SAFER",
                **made,
            )
        check_cog(finished, threads)
        _place(finished, target)
    finally:
        remove_scratch(finished)


def _place(finished: Path, target: Path) -> None:
    """Move a file to its place at once, also from another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    neighbour = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # A rename where it can be one, else a copy: the neighbour may be half-written meanwhile.
        shutil.move(finished, neighbour)
        with neighbour.open("rb+") as stream:
            os.fsync(stream.fileno())
        neighbour.replace(target)
    finally:
        neighbour.unlink(missing_ok=True)
