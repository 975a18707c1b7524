"""Reading side of the engine: from a scene to batches of raw pixels, in patch order.

This runs in a thread of its own, a few batches ahead of the forward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geostudio_dagster.prediction.panels import Panel
from geostudio_dagster.prediction.report import StageClock
from geostudio_dagster.raster.patches import Box, PatchGrid
from geostudio_dagster.raster.scene import Scene
from geostudio_dagster.raster.strips import SceneStrip

# An all-nodata region makes no patches but still rows; they must not pile up in one batch.
_MOST_ROWS_PER_BATCH = 8
_EVENTS_OF_A_ROW = 2


@dataclass(frozen=True, slots=True)
class RowStart:
    """The patches of grid row ``row`` come next."""

    row: int


@dataclass(frozen=True, slots=True)
class RowEnd:
    """The patches of a grid row have come.

    ``valid`` (rows, columns of the panel) are the pixel rows from ``top`` on that this grid row
    was the first to cover.
    """

    top: int
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch: its row and column in the grid. Its pixels are the batch's next slot."""

    row: int
    col: int


@dataclass(slots=True)
class Batch:
    """Patches that go through the model together, and the panels and rows that start in between.

    ``pixels`` is (batch size, channels, size, size), as in the scene; slots from ``used`` on are
    zero. There are always all of them, since a patch may give other numbers in a smaller batch.
    ``valid`` is bool (batch size, size, size); it counts where there are ``gaps``.
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_] | None = None
    events: list[Panel | RowStart | RowEnd | Patch] = field(default_factory=list)
    used: int = 0
    gaps: bool = False

    @property
    def full(self) -> bool:
        """Whether it should be handed over."""
        rows = (len(self.events) - self.used) // _EVENTS_OF_A_ROW
        return self.used == len(self.pixels) or rows >= _MOST_ROWS_PER_BATCH

    def clear_rest(self) -> None:
        """Make zeros, and valid ones, of what an earlier batch left in the unused slots."""
        self.pixels[self.used :] = 0
        if self.valid is not None:
            self.valid[self.used :] = True


class BatchReader:
    """Batches of the patches that contribute to ``core``, panel by panel, in row-major order.

    ``load`` is how many rows are read at a time. ``room`` makes memory of a shape and type; what it
    holds doesn't matter.
    """

    def __init__(
        self,
        scene: Scene,
        grid: PatchGrid,
        core: Box,
        panels: Sequence[Panel],
        *,
        load: int,
        batch_size: int,
        clock: StageClock,
        room: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]],
    ) -> None:
        self._scene = scene
        self._grid = grid
        self._core = core
        self._panels = panels
        self._load = load
        self._batch_size = batch_size
        self._clock = clock
        self._room = room
        self._spare: deque[tuple[NDArray[Any], NDArray[np.bool_] | None]] = deque()
        self.skipped = 0

    def recycle(self, batch: Batch) -> None:
        """Take back a batch that nobody needs any more, from whatever thread.

        Fresh memory for each batch would cost more than filling it.
        """
        self._spare.append((batch.pixels, batch.valid))

    def batches(self) -> Iterator[Batch]:
        """Read each panel once, downwards. Batches run across the ends of rows and panels."""
        batch = self._empty()
        for panel in self._panels:
            batch.events.append(panel)
            strip = self._strip(panel)
            covered = panel.box.row
            for row in self._grid.within(self._core)[0]:
                with self._clock.measure("read"):
                    strip.advance(self._grid.rows.starts[row])
                batch.events.append(RowStart(row))
                for col in panel.cols:
                    self._put(batch, strip, row, col)
                    if batch.full:
                        batch.clear_rest()
                        yield batch
                        batch = self._empty()
                end = self._end(panel.box, strip, row, covered)
                batch.events.append(end)
                covered += len(end.valid)
        if batch.events:
            batch.clear_rest()
            yield batch

    def _strip(self, panel: Panel) -> SceneStrip:
        """The part of the scene that the panel's patches lie in."""
        grid, rows, cols = self._grid, self._grid.within(self._core)[0], panel.cols
        top, left = grid.rows.starts[rows[0]], grid.cols.starts[cols[0]]
        bottom = min(grid.rows.starts[rows[-1]] + grid.size, grid.height)
        right = min(grid.cols.starts[cols[-1]] + grid.size, grid.width)
        return SceneStrip(
            self._scene, (left, right), (top, bottom), size=grid.size, load=self._load
        )

    def _end(self, box: Box, strip: SceneStrip, row: int, covered: int) -> RowEnd:
        """The end of a row of patches within a panel's box, which was covered so far."""
        bottom = min(self._grid.rows.extent(row)[1], box.bottom)
        with self._clock.measure("read"):
            valid = strip.valid(Box(box.col, covered, box.width, bottom - covered))
        return RowEnd(covered, valid)

    def _empty(self) -> Batch:
        if self._spare:
            return Batch(*self._spare.popleft())
        count, size = self._batch_size, self._grid.size
        pixels = self._room((count, len(self._scene.channels), size, size), self._scene.dtype)
        return Batch(pixels, self._room((count, size, size), np.dtype(np.bool_)))

    def _put(self, batch: Batch, strip: SceneStrip, row: int, col: int) -> None:
        """Cut one patch into the batch, unless it has nothing to say."""
        with self._clock.measure("read"):
            grid = self._grid
            raw, valid = strip.patch(grid.rows.starts[row], grid.cols.starts[col])
            if not self._matters(valid, row, col):
                self.skipped += 1
                return
            batch.pixels[batch.used] = raw
            assert batch.valid is not None  # noqa: S101 - see _empty
            batch.valid[batch.used] = valid
            batch.gaps = batch.gaps or not valid.all()
        batch.events.append(Patch(row, col))
        batch.used += 1

    def _matters(self, valid: NDArray[np.bool_], row: int, col: int) -> bool:
        """Whether any valid pixel of the core gets a contribution from this patch."""
        grid, core = self._grid, self._core
        top, left = grid.rows.starts[row], grid.cols.starts[col]
        low, high = grid.rows.extent(row)
        first, last = grid.cols.extent(col)
        rows = slice(max(low, core.row) - top, min(high, core.bottom) - top)
        cols = slice(max(first, core.col) - left, min(last, core.right) - left)
        return bool(valid[rows, cols].any())
