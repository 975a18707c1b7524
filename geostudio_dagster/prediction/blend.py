"""Blending side of the engine: from patches' outputs to finished rows, in patch order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from geostudio_dagster.prediction.batches import Patch, RowStart
from geostudio_dagster.raster.patches import Box, PatchGrid

if TYPE_CHECKING:
    from torch import Tensor


class RowSink(Protocol):
    """Takes finished rows."""

    def write(self, box: Box, blended: Tensor, valid: NDArray[np.bool_]) -> None:
        """Rows of the scene: blended output, float32 (channels, height, width), and validity."""


class Blender:
    """Weighted sums of the rows in flight, for the columns of one core.

    Sums run in patch order whatever the batch size, the window or the threads, so they round
    alike; on the device of the outputs.
    """

    def __init__(self, grid: PatchGrid, core: Box, channels: int, device: str, sink: RowSink):
        self._grid = grid
        self._core = core
        self._sink = sink
        height = min(grid.size, core.height)
        self._sums = torch.zeros((channels, height, core.width), device=device)
        self._valid = np.zeros((height, core.width), dtype=np.bool_)
        self._top = core.row  # the scene's row that the first row of the sums is
        self._stop = core.row  # one past the last row that has been begun
        self._row_weights = [torch.from_numpy(item).to(device) for item in grid.rows.weights]
        self._col_weights = [torch.from_numpy(item).to(device) for item in grid.cols.weights]

    def start(self, row: RowStart) -> None:
        """Hand on the rows that no later patch reaches; take in the newly covered ones."""
        self._hand_on(self._grid.rows.extent(row.row)[0])
        first = row.top - self._top
        self._valid[first : first + len(row.valid)] = row.valid
        self._stop = row.top + len(row.valid)

    def add(self, patch: Patch, output: Tensor) -> None:
        """Add one patch's output, float32 (channels, size, size)."""
        grid, core = self._grid, self._core
        low, high = grid.rows.extent(patch.row)
        first, last = grid.cols.extent(patch.col)
        low, high = max(low, core.row), min(high, core.bottom)
        first, last = max(first, core.col), min(last, core.right)
        top, left = grid.rows.starts[patch.row], grid.cols.starts[patch.col]
        rows, cols = slice(low - top, high - top), slice(first - left, last - left)
        down, right = self._row_weights[patch.row][rows], self._col_weights[patch.col][cols]
        sums = self._sums[:, low - self._top : high - self._top, first - core.col : last - core.col]
        sums.addcmul_(output[:, rows, cols], torch.outer(down, right))

    def finish(self) -> None:
        """Hand on the rest."""
        self._hand_on(self._stop)

    def _hand_on(self, until: int) -> None:
        count = until - self._top
        if count <= 0:
            return
        core, used = self._core, self._stop - self._top
        box = Box(core.col, self._top, core.width, count)
        self._sink.write(box, self._sums[:, :count], self._valid[:count])
        rest = used - count
        self._sums[:, :rest] = self._sums[:, count:used].clone()
        self._sums[:, rest:used] = 0
        self._valid[:rest] = self._valid[count:used].copy()
        self._top = until
