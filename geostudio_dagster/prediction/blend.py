"""Blending side of the engine: from patches' outputs to finished rows, in patch order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from geostudio_dagster.prediction.batches import Patch, RowEnd, RowStart
from geostudio_dagster.prediction.panels import Panel
from geostudio_dagster.prediction.seams import Seam
from geostudio_dagster.raster.patches import Box, PatchGrid

if TYPE_CHECKING:
    from torch import Tensor


class RowSink(Protocol):
    """Takes finished rows."""

    def write(self, box: Box, blended: Tensor, valid: NDArray[np.bool_]) -> None:
        """Rows of the scene: blended output, float32 (channels, height, width), and validity."""


class Blender:
    """Weighted sums of the rows in flight, panel by panel.

    Sums run in row-major patch order whatever the batch size, the panels, the window or the
    threads, so they round alike; on the device of the outputs.
    """

    def __init__(
        self,
        grid: PatchGrid,
        core: Box,
        sink: RowSink,
        seam: Seam,
        *,
        channels: int,
        device: str,
    ) -> None:
        self._grid = grid
        self._core = core
        self._channels = channels
        self._device = device
        self._sink = sink
        self._seam = seam
        self._down = [torch.from_numpy(item).to(device) for item in grid.rows.weights]
        self._right = [torch.from_numpy(item).to(device) for item in grid.cols.weights]
        # All but the outermost columns weigh alike.
        kinds: dict[bytes, int] = {}
        self._kinds = [kinds.setdefault(item.tobytes(), len(kinds)) for item in grid.cols.weights]
        self._weights: dict[int, Tensor] = {}  # (size, size), by kind, of the current row
        self._clear(Box(core.col, core.row, 0, 0))

    def begin(self, panel: Panel) -> None:
        """Finish the panel before, and begin this one."""
        self.finish()
        self._seam.begin()
        self._clear(panel.box)

    def start(self, row: RowStart) -> None:
        """Hand on the rows that no later patch reaches."""
        self._hand_on(self._grid.rows.extent(row.row)[0])
        self._weights.clear()
        for patch, edge in self._seam.take(row.row):
            self._sum(patch, edge.to(self._device), self._box.col)

    def end(self, row: RowEnd) -> None:
        """Take in which of the newly covered pixels are valid."""
        first = row.top - self._top
        self._valid[first : first + len(row.valid)] = row.valid
        self._stop = row.top + len(row.valid)

    def add(self, patch: Patch, output: Tensor) -> None:
        """Add one patch's output, float32 (channels, size, size)."""
        left = self._grid.cols.starts[patch.col]
        self._sum(patch, output, left)
        right = self._box.right
        if min(self._grid.cols.extent(patch.col)[1], self._core.right) > right:
            self._seam.keep(patch, output[:, :, right - left :])

    def finish(self) -> None:
        """Hand on the rest of the panel."""
        self._hand_on(self._stop)

    def _clear(self, box: Box) -> None:
        self._box = box
        height = min(self._grid.size, box.height)
        self._sums = torch.zeros((self._channels, height, box.width), device=self._device)
        self._valid = np.zeros((height, box.width), dtype=np.bool_)
        self._top = box.row  # the scene's row that the first row of the sums is
        self._stop = box.row  # one past the last row that has been covered

    def _sum(self, patch: Patch, output: Tensor, left: int) -> None:
        """Add an output whose first column is the scene's column ``left``."""
        grid, box = self._grid, self._box
        low, high = grid.rows.extent(patch.row)
        first, last = grid.cols.extent(patch.col)
        low, high = max(low, box.row), min(high, box.bottom)
        first, last = max(first, box.col), min(last, box.right)
        top, start = grid.rows.starts[patch.row], grid.cols.starts[patch.col]
        sums = self._sums[:, low - self._top : high - self._top, first - box.col : last - box.col]
        scores = output[:, low - top : high - top, first - left : last - left]
        weights = self._weights_of(patch)[low - top : high - top, first - start : last - start]
        sums.addcmul_(scores, weights)

    def _weights_of(self, patch: Patch) -> Tensor:
        kind = self._kinds[patch.col]
        if kind not in self._weights:
            self._weights[kind] = torch.outer(self._down[patch.row], self._right[patch.col])
        return self._weights[kind]

    def _hand_on(self, until: int) -> None:
        count = until - self._top
        if count <= 0:
            return
        used = self._stop - self._top
        box = Box(self._box.col, self._top, self._box.width, count)
        self._sink.write(box, self._sums[:, :count], self._valid[:count])
        rest = used - count
        self._sums[:, :rest] = self._sums[:, count:used].clone()
        self._sums[:, rest:used] = 0
        self._valid[:rest] = self._valid[count:used].copy()
        self._top = until
