"""Writing side of the engine: blended rows become pixels of the output file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.prediction.encoding import Classes, encoding_of
from geostudio_dagster.prediction.report import StageClock
from geostudio_dagster.raster.cog import ScratchRaster
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.scene import Scene

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 32  # at a time, so that intermediates stay in the processor's cache


class PredictionFile:
    """The scratch raster of one prediction. A row sink: see :class:`blend.RowSink`.

    Module :mod:`encoding` says what its pixels are.
    """

    def __init__(
        self,
        path: Path,
        scene: Scene,
        core: Box,
        *,
        manifest: BundleManifest,
        channels: int,
        clock: StageClock,
    ) -> None:
        self._core = core
        self._manifest = manifest
        self._clock = clock
        self._encoding = encoding_of(manifest, channels)
        self.bands = len(self._encoding.names)
        self.transform = window_transform(Window(*core), scene.transform)
        self._counts = {item.value: 0 for item in manifest.classes}
        self.nodata_pixels = 0
        self.not_finite = 0  # of them, those that the network made no number of
        self.raster = ScratchRaster(
            path,
            size=(core.width, core.height),
            bands=self.bands,
            dtype=self._encoding.dtype,
            nodata=self._encoding.nodata,
            crs=scene.crs,
            transform=self.transform,
            overviews=self._encoding.overviews,
        )

    def write(self, box: Box, blended: Tensor, valid: NDArray[np.bool_]) -> None:
        """Write rows: float32 (channels, height, width) and their validity, at a scene's box."""
        with self._clock.measure("write"):
            # From a GPU all at once: each piece would wait for it again.
            step = _ROWS if blended.device.type == "cpu" else box.height
            for row in range(0, box.height, step):
                rows = slice(row, min(row + step, box.height))
                part = Box(box.col, box.row + row, box.width, rows.stop - row)
                self._write(part, blended[:, rows], valid[rows])

    def describe(self, tags: Mapping[str, str]) -> None:
        """Set tags, band names, colours, scale and unit."""
        encoding = self._encoding
        self.raster.describe(
            tags=tags,
            descriptions=encoding.names,
            colours=encoding.colours,
            unit=self._manifest.unit,
            scale=encoding.scale,
        )

    @property
    def pixels_with_data(self) -> int:
        """Pixels that the scene has data for."""
        return self._core.width * self._core.height - self.nodata_pixels + self.not_finite

    def class_counts(self) -> dict[int, int] | None:
        """Pixels by class value, classes without any included; None unless they are classes."""
        if not isinstance(self._encoding, Classes):
            return None
        return dict(self._counts)

    def _write(self, box: Box, blended: Tensor, valid: NDArray[np.bool_]) -> None:
        pixels = self._encoding.pixels(blended)
        valid = self._with_numbers(blended, valid)
        missing = valid.size - int(np.count_nonzero(valid))
        if missing:
            pixels = np.where(valid, pixels, pixels.dtype.type(self._encoding.nodata))
        self.nodata_pixels += missing
        if isinstance(self._encoding, Classes):
            self._count(pixels, valid.size - missing)
        place = Box(box.col - self._core.col, box.row - self._core.row, box.width, box.height)
        self.raster.write(place, pixels)

    def _with_numbers(self, blended: Tensor, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the valid pixels have a finite output: others are no class and no value."""
        if math.isfinite(float(blended.sum())):  # as mostly; looking at each takes longer
            return valid
        numbers: NDArray[np.bool_] = blended.isfinite().all(dim=0).cpu().numpy()
        self.not_finite += int(np.count_nonzero(valid & ~numbers))
        return valid & numbers

    def _count(self, pixels: NDArray[Any], valid: int) -> None:
        """Count the classes of pixels, of which so many have one."""
        # By comparison, ten times as fast as np.bincount, which first makes int64 of bytes.
        first, *others = self._counts
        for value in others:
            found = int(np.count_nonzero(pixels == value))
            self._counts[value] += found
            valid -= found
        self._counts[first] += valid  # what is left
