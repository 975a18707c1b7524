"""Bands of rasters seen on a scene's grid: GDAL warps them, of blocks whose checksums are right."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from types import TracebackType
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from geostudio_dagster.errors import TaskError
from geostudio_dagster.raster.checksums import DamagedBlockError, checking
from geostudio_dagster.raster.grids import check_position
from geostudio_dagster.raster.nodata import representable
from geostudio_dagster.raster.opening import UNREADABLE, File, opened, raise_own, unopened
from geostudio_dagster.raster.patches import Box

_WARP_MEMORY = 64  # MB
_EXACT = 1e-9  # pixels that positions may be off: rasterio 1.4 takes no 0
_SAME_SIZE = 0.95  # pixels of two projections differ a little; smaller ones are averaged
_ALONG = 21  # points between two corners of a part that tell where it lies in a raster
_NOTHING = 1e-6  # pixels: a neighbour of no more weight is as good as none
_AROUND = 2  # pixels: one that is averaged, and one as edges are curved between the points


@dataclass(frozen=True, slots=True)
class Canvas:
    """A scene's grid: CRS, transform and size in pixels."""

    crs: CRS
    transform: Affine
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class BandInput:
    """One band of one raster.

    Attributes:
        file: opens the raster: a path, or something with an ``opener`` of its own.
        band: in the file, from 1.
        shift: added to the numbers; scale: then multiplied by, for quantities.
        nodata: what stands for no data where the file does not tell.
        codes: whether values are codes, which are never interpolated nor changed.
    """

    file: Callable[[], File]
    band: int
    shift: float = 0.0
    scale: float = 1.0
    nodata: float | None = None
    codes: bool = False


class Regridded:
    """A raster's file, opened once for all of its bands. Use it as a context manager.

    Raises:
        TaskError: ``not_a_raster``, ``unsupported_pixels``, ``not_georeferenced``, or what befell
            a file that has its own opener.
    """

    def __init__(self, file: File, canvas: Canvas) -> None:
        self.file = file
        self._canvas = canvas
        with ExitStack() as stack:
            self._dataset = stack.enter_context(opened(file, f"{file}"))
            check_position(self._dataset, f"{file}")
            try:
                self._checksums = stack.enter_context(checking(file, self._dataset))
            except UNREADABLE as error:
                raise_own(file)
                raise unopened(f"{file}", error) from error
            self._scale = _scale(self._dataset, canvas)
            self._around = _around(self._dataset, canvas, self._scale)
            self._stack = stack.pop_all()
        # They mask the others, so that GDAL reads them, too.
        kinds = enumerate(self._dataset.colorinterp, start=1)
        self._alphas = [band for band, kind in kinds if kind == ColorInterp.alpha]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def view(self, band: BandInput) -> BandView:
        """One of its bands on the canvas, as long as the file is open.

        Raises:
            TaskError: ``too_few_bands``.
        """
        dataset, file = self._dataset, self.file
        if band.band > dataset.count:
            raise TaskError(
                "too_few_bands",
                f"{file} has {dataset.count} bands, and band {band.band} is needed.",
            )
        nodata = dataset.nodatavals[band.band - 1]
        nodata = band.nodata if nodata is None else nodata
        nodata = representable(nodata, dataset.dtypes[band.band - 1])
        options: dict[str, Any] = {"src_nodata": nodata, "nodata": nodata}
        if nodata is None:
            options = {} if self._alphas else {"add_alpha": True}
        across, down = self._scale
        warped = WarpedVRT(
            dataset,
            crs=self._canvas.crs,
            transform=self._canvas.transform,
            width=self._canvas.width,
            height=self._canvas.height,
            resampling=Resampling.nearest if band.codes else Resampling.bilinear,
            tolerance=_EXACT,
            warp_mem_limit=_WARP_MEMORY,
            # GDAL would find them anew for every window that is read, and differently.
            XSCALE=f"{across:.9g}",
            YSCALE=f"{down:.9g}",
            **options,
        )
        return BandView(band, self, self._stack.enter_context(warped))

    @property
    def alpha(self) -> int:
        """The band of a view without nodata that tells where it has data."""
        return self._alphas[0] if self._alphas else int(self._dataset.count) + 1  # added

    def check(self, band: int, part: Box) -> None:
        """Check the blocks that GDAL makes a part of the canvas of, each once.

        Raises:
            DamagedBlockError: one of them is not what was written.
        """
        if self._checksums is None:
            return
        box = _beneath(part, self._canvas, self._dataset, self._around)
        if box is not None:
            self._checksums.check([band, *self._alphas], box)


@dataclass(frozen=True, slots=True)
class BandView:
    """A band as it is on the canvas."""

    band: BandInput
    _raster: Regridded
    _warped: Any

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its pixels."""
        dtype: np.dtype[Any] = np.dtype(self._warped.dtypes[self.band.band - 1])
        return dtype

    @property
    def nodata(self) -> float | None:
        """What stands for no data in its pixels, if anything does."""
        nodata: float | None = self._warped.nodata
        return nodata

    def read(self, part: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Its pixels (height, width) and which of them have data.

        Raises:
            TaskError: ``corrupt``, or what befell a file that has its own opener.
        """
        window, warped, file = Window(*part), self._warped, self._raster.file
        try:
            self._raster.check(self.band.band, part)
            plane = warped.read(self.band.band, window=window)
            if warped.nodata is None:
                has_data = warped.read(self._raster.alpha, window=window) > 0
            elif math.isnan(warped.nodata):
                has_data = np.isfinite(plane)
            else:
                has_data = plane != warped.nodata
        except (*UNREADABLE, DamagedBlockError) as error:
            raise_own(file)
            raise TaskError("corrupt", f"{file} can't be read ({error}).") from error
        raise_own(file)
        if plane.dtype.kind == "f":
            has_data &= np.isfinite(plane)
        return plane, has_data


def _scale(dataset: Any, canvas: Canvas) -> tuple[float, float]:
    """Scene's pixels that a raster's pixel is wide and high, at most 1, as GDAL smooths by it."""
    column, row = dataset.width / 2, dataset.height / 2
    corners = [(column, row), (column + 1, row), (column, row + 1)]
    points = [dataset.transform @ corner for corner in corners]
    if dataset.crs != canvas.crs:
        eastings, northings = transform(
            dataset.crs, canvas.crs, [x for x, _ in points], [y for _, y in points]
        )
        points = list(zip(eastings, northings, strict=True))
    (x, y), *others = points
    across, down = (math.hypot(to_x - x, to_y - y) for to_x, to_y in others)
    sizes = across / abs(canvas.transform.a), down / abs(canvas.transform.e)
    wide, high = (1.0 if size > _SAME_SIZE else size for size in sizes)
    return wide, high


def _around(dataset: Any, canvas: Canvas, scale: tuple[float, float]) -> float:
    """The raster's pixels around those under a part that its pixels may be made of, too."""
    place = ~dataset.transform @ canvas.transform
    moved = Affine.translation(place.c, place.f)
    if dataset.crs == canvas.crs and place.almost_equals(moved, _EXACT):
        return -_NOTHING  # no neighbours, which could be blocks to fetch
    return _AROUND * max(1 / size for size in scale)


def _beneath(part: Box, canvas: Canvas, dataset: Any, around: float) -> Box | None:
    """The raster's pixels that those of ``part`` are made of, and some around, if any."""
    bounds = _bounds(canvas.transform, (part.col, part.row, part.right, part.bottom))
    if dataset.crs != canvas.crs:
        bounds = transform_bounds(canvas.crs, dataset.crs, *bounds, densify_pts=_ALONG)
        if not all(map(math.isfinite, bounds)):
            return None  # no point of it can be told in the raster's CRS, nor can GDAL
        if dataset.crs.is_geographic:
            bounds = _turned(bounds, dataset.bounds)
    left, top, right, bottom = _bounds(~dataset.transform, bounds)
    col, row = max(0, math.floor(left - around)), max(0, math.floor(top - around))
    width = min(dataset.width, math.ceil(right + around)) - col
    height = min(dataset.height, math.ceil(bottom + around)) - row
    return Box(col, row, width, height) if width > 0 and height > 0 else None


def _bounds(place: Affine, box: tuple[float, ...]) -> tuple[float, float, float, float]:
    """The least and the most of both coordinates that the box's corners are placed at."""
    xs, ys = zip(*(place @ corner for corner in product(box[::2], box[1::2])), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _turned(
    bounds: tuple[float, ...], of_raster: tuple[float, ...]
) -> tuple[float, float, float, float]:
    """Degrees of longitude as GDAL counts them: up to 180 from the raster's middle."""
    least, _, most, _ = of_raster
    first = (least + most) / 2 - 180
    left, right = (first + (x - first) % 360 for x in bounds[::2])
    # Over the far side of the earth, it may be on either side of the raster.
    left, right = (left, right) if left < right else (least, most)
    return left, bounds[1], right, bounds[3]
