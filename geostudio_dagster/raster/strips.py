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
        self._left, self._right = columns
        self._first, self._end = rows
        self._top = self._first
        self._loaded = self._first  # one past the last row that there is room for
        self._read = self._right  # one past the last column that is read of the last ones of these
        self._rows = self._first, self._first  # these last ones: first, one past the last wanted
        self._load = load
        height = min(size + load, self._end - self._first)
        shape = (height, self._right - self._left)
        self._pixels = np.empty((len(scene.channels), *shape), dtype=scene.dtype)
        self._valid = np.empty(shape, dtype=np.bool_)

    def advance(self, start: int) -> None:
        """Make room for the rows ``start`` to ``start + size``, and drop those above.

        They are read from left to right, as far as a patch needs them: so the first patches need
        not wait for the last columns.
        """
        self._read_to(self._right)
        stop = min(start + self._size, self._end)
        if stop <= self._loaded:
            return
        self._drop(start)
        self._rows = self._loaded, stop
        self._loaded = min(stop + -stop % self._load, self._end)
        self._read = self._left

    def patch(self, row: int, col: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (channels, size, size), raw, and validity (size, size) of the patch at a place.

        Views where the patch lies inside the scene, else mirrored copies.
        """
        self._read_to(min(col + self._size, self._right))
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
        self._read_to(box.right)
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

    def _read_to(self, right: int) -> None:
        """Read what is missing of the last rows, up to this column at least."""
        while self._read < right:
            edge = self._edge()
            row, stop = self._rows
            while row < stop:
                bottom = min(row + self._load - row % self._load, self._end)
                self._piece(Box(self._read, row, edge - self._read, bottom - row))
                row = bottom
            self._read = edge

    def _edge(self) -> int:
        """The column, at an edge of blocks, to read up to at a time."""
        block, left = self._scene.block[1], self._read
        wide = block < self._right - self._left
        step = max(_LOAD_COLS // block, 1) * block if wide else self._scene.width
        # Of the first rows no more than the first patches need: the model waits for them.
        begins = (self._rows[0], left) == (self._top, self._left)
        edge = left + min(2 * self._size, step) if begins else left + step - left % step
        return min(-(-edge // block) * block, self._right)

    def _piece(self, box: Box) -> None:
        top, left = box.row - self._first, box.col - self._left
        place = np.s_[top : top + box.height, left : left + box.width]
        self._scene.read(box, self._pixels[:, *place], self._valid[place])
