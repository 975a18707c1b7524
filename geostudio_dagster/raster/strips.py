"""A sliding strip of a scene in memory: rows are read as they are needed, patches cut from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geostudio_dagster.raster.patches import Box, reflected
from geostudio_dagster.raster.scene import Scene

_LOAD_COLS = 2048  # columns per read: bounds what GDAL's block cache must hold


class SceneStrip:
    """Raw pixels (channels, rows, columns) of the scene's rows that patches still need.

    Covers ``columns`` and ``rows`` (first, one past the last) of the scene, of which ``load`` rows
    are read at a time, up to the next multiple. Rows only move down: a row above the last patch
    that was asked for is gone.
    """

    def __init__(
        self, scene: Scene, columns: tuple[int, int], rows: tuple[int, int], *, size: int, load: int
    ) -> None:
        self._scene = scene
        self._size = size
        self._left, right = columns
        self._first, self._end = rows
        self._loaded = self._first  # one past the last row in memory
        self._step = load
        height = min(size + load, self._end - self._first)
        shape = (height, right - self._left)
        self._pixels = np.empty((len(scene.channels), *shape), dtype=scene.dtype)
        self._valid = np.empty(shape, dtype=np.bool_)

    def advance(self, start: int) -> None:
        """Bring the rows ``start`` to ``start + size`` into memory and drop those above."""
        stop = min(start + self._size, self._end)
        while self._loaded < stop:
            self._drop(start)
            step = self._step - self._loaded % self._step  # up to the next edge of blocks
            self._load(min(self._loaded + step, self._end))

    def patch(self, row: int, col: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (channels, size, size), raw, and validity (size, size) of the patch at a place.

        Views where the patch lies inside the scene, else mirrored copies.
        """
        top, left = row - self._first, col - self._left
        rows: Any = slice(top, top + self._size)
        cols: Any = slice(left, left + self._size)
        pixels, valid = self._pixels[:, rows], self._valid[rows]
        if row + self._size > self._scene.height:
            rows = reflected(top, self._size, self._scene.height)
            pixels, valid = self._pixels[:, rows], self._valid[rows]
        if col + self._size > self._scene.width:
            cols = reflected(left, self._size, self._scene.width)
        return pixels[:, :, cols], valid[:, cols]

    def valid(self, box: Box) -> NDArray[np.bool_]:
        """Validity of a part of the strip, a copy."""
        top, left = box.row - self._first, box.col - self._left
        return self._valid[top : top + box.height, left : left + box.width].copy()

    def _drop(self, start: int) -> None:
        gone = start - self._first
        keep = max(self._loaded - start, 0)
        if gone <= 0:
            return
        # Plane by plane, since NumPy copies overlapping regions through a temporary.
        for plane in (*self._pixels, self._valid):
            plane[:keep] = plane[gone : gone + keep]
        self._first = start
        self._loaded = start + keep

    def _load(self, stop: int) -> None:
        row, top = self._loaded, self._loaded - self._first
        height = stop - row
        width = self._valid.shape[1]
        block = self._scene.block[1]
        step = max(_LOAD_COLS // block, 1) * block if block < width else width
        left = self._left
        while left < self._left + width:
            right = min(left + step - left % step, self._left + width)
            place = np.s_[top : top + height, left - self._left : right - self._left]
            self._scene.read(
                Box(left, row, right - left, height), self._pixels[:, *place], self._valid[place]
            )
            left = right
        self._loaded = stop
