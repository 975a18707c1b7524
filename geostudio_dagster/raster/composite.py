"""Several rasters as one scene: resampled to its grid, the first that has data wins.

Block by block, in constant memory, and the same bytes every time. A pixel's value does not depend
on which part of the scene it was made in: every part lies on the scene's own grid, and positions
are computed exactly, not interpolated along the part's edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from geostudio_dagster.errors import Cancelled, TaskError
from geostudio_dagster.raster.cog import BLOCK
from geostudio_dagster.raster.nodata import representable
from geostudio_dagster.raster.opening import DRIVER, ONLY_THE_FILE
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.regridding import BandInput, BandView, Canvas, Regridded
from geostudio_dagster.raster.wholeness import TilesWithData

_CHUNK = 2 * BLOCK  # pixels of the squares that are made at a time
_GDAL_CACHE = 64 * 1024**2  # bytes; by default GDAL would keep a twentieth of the memory
_SAMPLE = 512  # pixels of the side that a stretch is found by
_PERCENTILES = (2.0, 98.0)


@dataclass(frozen=True, slots=True)
class Composite:
    """What was written: pixel type, nodata, and how much of the box has data (0 to 1)."""

    dtype: str
    nodata: float
    filled: float


def write_composite(
    rasters: Sequence[Sequence[BandInput]],
    names: Sequence[str],
    canvas: Canvas,
    box: Box,
    target: Path,
    *,
    physical: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> Composite:
    """Write the part of a scene within ``box`` as a tiled GeoTIFF of the whole scene's size.

    What lies outside of the box is no data and takes no space. Pixels are bilinear of their
    neighbours with data, codes the nearest. A raster's pixel counts where all of its bands that
    are no codes have data; then all bands are taken from it.

    Args:
        rasters: the preferred first; each with the same bands in the same order.
        names: of the bands.
        physical: write float32 quantities instead of the stored type's numbers.
        cancelled: asked between squares.

    Raises:
        TaskError: ``not_a_raster``, ``not_georeferenced``, ``too_few_bands``, ``mixed_types``,
            ``corrupt``, or what befell a file that has its own opener.
        OSError: not all could be written.
        Cancelled: as asked.
    """
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE, **ONLY_THE_FILE))
        opened = [stack.enter_context(_Raster(bands, canvas)) for bands in rasters]
        kind = _kind(opened[0], physical=physical)
        file = stack.enter_context(_created(target, canvas, kind, names))
        tiles = TilesWithData((canvas.width, canvas.height), len(names), BLOCK, kind.nodata)
        filled = 0
        for part in _chunks(box):
            if cancelled():
                raise Cancelled
            pixels, count = _filled(part, opened, kind)
            if count:  # what is not written is no data, too
                file.write(pixels, window=Window(*part))
                tiles.add(part, pixels)
            filled += count
    tiles.check(target)
    return Composite(kind.dtype.name, kind.nodata, filled / (box.width * box.height))


def stretch_of(path: Path, box: Box, nodata: float) -> dict[str, tuple[float, float]]:
    """For each band the 2nd and 98th percentile of a sample of the box; none of an empty one."""
    with rasterio.open(path, driver=DRIVER) as file:
        shape = (file.count, min(box.height, _SAMPLE), min(box.width, _SAMPLE))
        pixels = file.read(window=Window(box.col, box.row, box.width, box.height), out_shape=shape)
        names = [text or str(n) for n, text in enumerate(file.descriptions, start=1)]
    limits = {}
    for name, plane in zip(names, pixels, strict=True):
        values = plane[np.isfinite(plane) & (plane != nodata)]
        if values.size:
            low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
            limits[name] = (low, high if high > low else low + 1.0)
    return limits


@dataclass(frozen=True, slots=True)
class _Kind:
    """Pixels of the scene: their type, what stands for no data, and for each band outside."""

    dtype: np.dtype[Any]
    nodata: float
    outside: tuple[float, ...]


class _Raster:
    """One of the rasters, its files opened when it is first read, seen on the scene's grid."""

    def __init__(self, bands: Sequence[BandInput], canvas: Canvas) -> None:
        self.bands = tuple(bands)
        self._canvas = canvas
        self._stack = ExitStack()
        self._views: list[BandView] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def views(self) -> list[BandView]:
        """Each band as it is on the scene's grid."""
        if not self._views:
            files: dict[int, Regridded] = {}
            for band in self.bands:
                key = id(band.file)
                if key not in files:
                    files[key] = self._stack.enter_context(Regridded(band.file(), self._canvas))
                self._views.append(files[key].view(band))
        return self._views

    def read(self, part: Box, kind: _Kind) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (bands, height, width) as the scene has them, and which of them count."""
        pixels = np.empty((len(self.bands), part.height, part.width), kind.dtype)
        valid = np.ones((part.height, part.width), np.bool_)
        measures = not all(band.codes for band in self.bands)
        for place, view in enumerate(self.views()):
            band = view.band
            plane, has_data = view.read(part)
            if measures and band.codes:
                pixels[place] = np.where(has_data, plane, kind.outside[place])
                continue
            valid &= has_data
            if not valid.any():
                break
            pixels[place] = plane if band.codes else _as_stored(plane, has_data, band, kind)
        return pixels, valid


def _filled(part: Box, rasters: Sequence[_Raster], kind: _Kind) -> tuple[NDArray[Any], int]:
    """Pixels (bands, height, width) of one square, and how many of them have data."""
    out = np.empty((len(kind.outside), part.height, part.width), kind.dtype)
    out[...] = np.asarray(kind.outside, kind.dtype)[:, np.newaxis, np.newaxis]
    empty = np.ones((part.height, part.width), np.bool_)
    for raster in rasters:
        if kind.dtype.kind != "f" and not np.can_cast(_dtype(raster), kind.dtype):
            raise TaskError(
                "mixed_types",
                f"The rasters of one scene are of different types ({_dtype(raster)}, {kind.dtype})"
                ", which cannot be joined.",
            )
        pixels, valid = raster.read(part, kind)
        valid &= empty
        out[:, valid] = pixels[:, valid]
        empty &= ~valid
        if not empty.any():
            break
    return out, int(empty.size - np.count_nonzero(empty))


def _chunks(box: Box) -> Iterator[Box]:
    """Squares that cover the box, on the blocks of the file, so that none is written twice."""
    for row in range(box.row // _CHUNK * _CHUNK, box.bottom, _CHUNK):
        for col in range(box.col // _CHUNK * _CHUNK, box.right, _CHUNK):
            top, left = max(row, box.row), max(col, box.col)
            bottom, right = min(row + _CHUNK, box.bottom), min(col + _CHUNK, box.right)
            yield Box(left, top, right - left, bottom - top)


def _as_stored(
    plane: NDArray[Any], has_data: NDArray[np.bool_], band: BandInput, kind: _Kind
) -> NDArray[Any]:
    """Numbers with their shift, or quantities; none of them is what stands for no data."""
    if kind.dtype.kind == "f":
        return (plane.astype(np.float64) + band.shift) * band.scale
    limits = np.iinfo(kind.dtype)
    values = np.clip(plane.astype(np.int64) + round(band.shift), limits.min, limits.max)
    aside = kind.nodata + (1 if kind.nodata < limits.max else -1)
    values[has_data & (values == kind.nodata)] = aside
    return values


def _kind(raster: _Raster, *, physical: bool) -> _Kind:
    """The scene's pixels, by the preferred raster's."""
    views = raster.views()
    measured = [view for view in views if not view.band.codes] or views
    dtype = _dtype(raster)
    if physical or dtype.kind == "f":
        dtype, nodata = np.dtype(np.float32), math.nan
    else:
        limits = np.iinfo(dtype)
        told = representable(measured[0].nodata, dtype.name)
        nodata = float(limits.min if told is None else told)
    outside = []
    for view in views:
        own = view.nodata if view.band.codes and measured is not views else nodata
        outside.append(0.0 if own is None else float(own))
    return _Kind(dtype, nodata, tuple(outside))


def _dtype(raster: _Raster) -> np.dtype[Any]:
    dtype = np.result_type(*(view.dtype for view in raster.views()))
    if dtype.kind not in "uif":
        raise TaskError("unsupported_pixels", f"Pixels of type {dtype} are no real numbers.")
    return dtype


def _created(target: Path, canvas: Canvas, kind: _Kind, names: Sequence[str]) -> Any:
    file = rasterio.open(
        target,
        "w",
        driver=DRIVER,
        width=canvas.width,
        height=canvas.height,
        count=len(names),
        dtype=kind.dtype,
        nodata=kind.nodata,
        crs=canvas.crs,
        transform=canvas.transform,
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        interleave="pixel",
        compress="DEFLATE",
        zlevel=1,
        predictor=3 if kind.dtype.kind == "f" else 2,
        bigtiff="IF_SAFER",
        sparse_ok=True,
    )
    for number, name in enumerate(names, start=1):
        file.set_band_description(number, name)
    return file
