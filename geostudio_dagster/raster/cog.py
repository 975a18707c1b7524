"""Writing: a tiled scratch file filled by windows, then a COG, the same bytes every time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from geostudio_dagster.raster.patches import Box

BLOCK = 512
Overviews = Literal["mode", "average", "nearest"]
Colours = Mapping[int, tuple[int, int, int, int]]


class ScratchRaster:
    """A tiled, uncompressed GeoTIFF that rows are written into; the raw material of a COG.

    Tiles that are never written are nodata and take no space.
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
    ) -> None:
        self.path = path
        self._file = rasterio.open(
            path,
            "w",
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, box: Box, pixels: NDArray[Any]) -> None:
        """Write ``pixels`` (bands, height, width) at ``box`` of the file."""
        self._file.write(pixels, window=Window(box.col, box.row, box.width, box.height))

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


def write_cog(
    scratch: Path,
    target: Path,
    overviews: Overviews,
    *,
    threads: int = 2,
    level: int = 5,
) -> None:
    """Make a COG of ``scratch``; ``target`` appears only when it is complete.

    The bytes depend on the scratch file's pixels and tags alone.
    """
    finished = scratch.with_name(f"{scratch.stem}.cog.tif")
    with rasterio.open(scratch) as file:
        floating = np.dtype(file.dtypes[0]).kind == "f"
    try:
        rasterio.shutil.copy(
            scratch,
            finished,
            driver="COG",
            BLOCKSIZE=BLOCK,
            COMPRESS="DEFLATE",
            LEVEL=level,
            PREDICTOR="YES" if floating else "NO",
            OVERVIEW_RESAMPLING=overviews.upper(),
            NUM_THREADS=threads,
            BIGTIFF="IF_SAFER",
        )
        _place(finished, target)
    finally:
        for leftover in scratch.parent.glob(f"{finished.name}*"):
            leftover.unlink()


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
