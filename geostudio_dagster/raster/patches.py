"""The patch grid of a scene: where the model's input squares lie and how they are blended.

The grid belongs to the whole scene, never to the part of it that is being worked on, so cutting
a scene into windows changes no pixel. Weights are separable, hence all of this is
one-dimensional: a grid is two axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """A rectangle of a scene in pixels: first column, first row, width, height."""

    col: int
    row: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column after the box."""
        return self.col + self.width

    @property
    def bottom(self) -> int:
        """The first row after the box."""
        return self.row + self.height


@dataclass(frozen=True)
class PatchAxis:
    """Patches along one axis of a scene, in pixels.

    Patches start every ``size - overlap`` pixels; the last is flush with the end, so it may
    overlap more than one predecessor. A scene shorter than a patch has one patch that sticks
    out of it. ``trim`` pixels at inner patch edges carry no weight: there the model has seen
    padding instead of the scene.

    Raises:
        ValueError: the numbers leave a gap between patches.
    """

    length: int
    size: int
    overlap: int
    trim: int

    def __post_init__(self) -> None:
        if self.length < 1 or self.size < 1:
            raise ValueError("length and size must be positive")
        if not 0 <= self.overlap < self.size:
            raise ValueError("overlap must lie between 0 and size - 1")
        if not 0 <= 2 * self.trim <= self.overlap:
            raise ValueError("trim must lie between 0 and half of overlap")

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each patch, ascending."""
        last = max(self.length - self.size, 0)
        return (*range(0, last, self.size - self.overlap), last)

    def extent(self, index: int) -> tuple[int, int]:
        """The scene's pixels, first and one past the last, that patch ``index`` has weight in."""
        start = self.starts[index]
        low = start + (self.trim if index > 0 else 0)
        high = start + self.size - (self.trim if index < len(self.starts) - 1 else 0)
        return low, min(high, self.length)

    def touching(self, low: int, high: int) -> range:
        """Indices of the patches with weight somewhere in the pixels ``low`` to ``high`` - 1."""
        # Extents ascend at both ends, so the patches that meet an interval are neighbours.
        met = [
            index
            for index in range(len(self.starts))
            if self.extent(index)[0] < high and self.extent(index)[1] > low
        ]
        return range(met[0], met[-1] + 1) if met else range(0)

    @cached_property
    def weights(self) -> tuple[NDArray[np.float32], ...]:
        """Per patch, float32 (size,): positive in its extent, zero elsewhere, summing to 1."""
        total = np.zeros(self.length)
        ramps = [self._ramp(index) for index in range(len(self.starts))]
        for index, ramp in enumerate(ramps):
            low, high = self.extent(index)
            total[low:high] += ramp
        return tuple(self._normalised(index, ramp, total) for index, ramp in enumerate(ramps))

    def _ramp(self, index: int) -> NDArray[np.float64]:
        """Unnormalised weights over the extent of patch ``index``."""
        start = self.starts[index]
        low, high = self.extent(index)
        width = self.overlap - 2 * self.trim
        position = np.arange(low, high)
        ramp = np.ones(high - low)
        # sin^2 of the distance from an inner edge: with the mirrored neighbour it adds up to 1.
        if index > 0:
            ramp *= _rise(position - (start + self.trim), width)
        if index < len(self.starts) - 1:
            ramp *= _rise(start + self.size - self.trim - 1 - position, width)
        return ramp

    def _normalised(
        self, index: int, ramp: NDArray[np.float64], total: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        low, high = self.extent(index)
        start = self.starts[index]
        weights = np.zeros(self.size, dtype=np.float32)
        weights[low - start : high - start] = ramp / total[low:high]
        return weights


def _rise(distance: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    part = np.clip((distance + 1) / (width + 1), 0, 1)
    return np.asarray(np.sin(part * (math.pi / 2)) ** 2)


@dataclass(frozen=True)
class PatchGrid:
    """Square patches over a scene of ``height`` x ``width`` pixels."""

    height: int
    width: int
    size: int
    overlap: int
    trim: int

    @cached_property
    def rows(self) -> PatchAxis:
        """The vertical axis."""
        return PatchAxis(self.height, self.size, self.overlap, self.trim)

    @cached_property
    def cols(self) -> PatchAxis:
        """The horizontal axis."""
        return PatchAxis(self.width, self.size, self.overlap, self.trim)

    def within(self, core: Box) -> tuple[range, range]:
        """Rows and columns of the patches that contribute to ``core``."""
        return self.rows.touching(core.row, core.bottom), self.cols.touching(core.col, core.right)

    def count(self, core: Box) -> int:
        """How many patches contribute to ``core``."""
        rows, cols = self.within(core)
        return len(rows) * len(cols)


def reflected(start: int, size: int, length: int) -> NDArray[np.intp]:
    """Indices of pixels ``start`` to ``start + size`` on an axis of ``length``, mirrored past it.

    The edge pixel is not repeated (``cba|b...``), except where it is the only one.
    """
    position = np.arange(start, start + size)
    if length == 1:
        return np.zeros(size, dtype=np.intp)
    period = 2 * (length - 1)
    folded = position % period
    return np.asarray(np.minimum(folded, period - folded), dtype=np.intp)
