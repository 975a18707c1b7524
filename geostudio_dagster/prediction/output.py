"""Writing side of the engine: blended rows become classes or values in the output file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.prediction.report import StageClock
from geostudio_dagster.raster.cog import Colours, Overviews, ScratchRaster
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.scene import Scene

if TYPE_CHECKING:
    from torch import Tensor

CLASS_NODATA = 255
VALUE_NODATA = -9999.0
_ROWS = 32  # at a time, so that intermediates stay in the processor's cache


class PredictionFile:
    """The scratch raster of one prediction. A row sink: see :class:`blend.RowSink`.

    A segmentation is one uint8 band of class values, nodata 255, with a colour table. A
    regression is float32, one band per channel of the model, nodata -9999.
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
        self._classes = manifest.task == "segmentation"
        self._clock = clock
        self.bands = 1 if self._classes else channels
        self.transform = window_transform(Window(*core), scene.transform)
        self.counts = np.zeros(CLASS_NODATA + 1, dtype=np.int64)
        self.nodata_pixels = 0
        self.raster = ScratchRaster(
            path,
            size=(core.width, core.height),
            bands=self.bands,
            dtype="uint8" if self._classes else "float32",
            nodata=CLASS_NODATA if self._classes else VALUE_NODATA,
            crs=scene.crs,
            transform=self.transform,
        )

    @property
    def overviews(self) -> Overviews:
        """How overviews are made: classes are never interpolated."""
        return "mode" if self._classes else "average"

    def write(self, box: Box, blended: Tensor, valid: NDArray[np.bool_]) -> None:
        """Write rows: float32 (channels, height, width) and their validity, at a scene's box."""
        with self._clock.measure("write"):
            for row in range(0, box.height, _ROWS):
                rows = slice(row, min(row + _ROWS, box.height))
                part = Box(box.col, box.row + row, box.width, rows.stop - row)
                self._write(part, blended[:, rows], valid[rows])

    def describe(self, tags: Mapping[str, str]) -> None:
        """Set tags, band names, colours and unit."""
        manifest = self._manifest
        name = manifest.title or manifest.name
        names = [name] if self.bands == 1 else [f"{name} {n}" for n in range(1, self.bands + 1)]
        colours: Colours = {item.value: item.rgba for item in manifest.classes}
        self.raster.describe(
            tags=tags, descriptions=names, colours=colours or None, unit=manifest.unit
        )

    def class_counts(self) -> dict[int, int] | None:
        """Pixels by class value, classes without any included; None for a regression."""
        if not self._classes:
            return None
        return {item.value: int(self.counts[item.value]) for item in self._manifest.classes}

    def _write(self, box: Box, blended: Tensor, valid: NDArray[np.bool_]) -> None:
        pixels = self._as_classes(blended) if self._classes else blended.cpu().numpy()
        pixels = np.where(valid, pixels, self._nodata(pixels.dtype))
        self._count(pixels)
        place = Box(box.col - self._core.col, box.row - self._core.row, box.width, box.height)
        self.raster.write(place, pixels)

    def _nodata(self, dtype: np.dtype[np.generic]) -> np.generic:
        return dtype.type(CLASS_NODATA if self._classes else VALUE_NODATA)

    def _count(self, pixels: NDArray[np.generic]) -> None:
        if self._classes:
            counts = np.bincount(pixels.reshape(-1), minlength=CLASS_NODATA + 1)
            self.counts += counts
            self.nodata_pixels += int(counts[CLASS_NODATA])
        else:
            self.nodata_pixels += int(np.count_nonzero(pixels[0] == VALUE_NODATA))

    @staticmethod
    def _as_classes(scores: Tensor) -> NDArray[np.uint8]:
        """The class with the highest score, the first of equals: uint8 (1, height, width)."""
        # Plane by plane: torch.argmax over the first axis takes a hundred times as long.
        winner = (scores[1] > scores[0]).to(torch.uint8)
        best = scores[0]
        for value in range(2, len(scores)):
            best = torch.maximum(best, scores[value - 1])
            higher = (scores[value] > best).to(torch.uint8)
            torch.maximum(winner, higher.mul_(value), out=winner)
        classes: NDArray[np.uint8] = winner.unsqueeze(0).cpu().numpy()
        return classes
