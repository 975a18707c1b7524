"""How a large scene is cut into the cores of several tasks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import ceil, isqrt

Window = tuple[int, int, int, int]
"""Column offset, row offset, width and height, in pixels of the scene."""

_BLOCK = 512
_SMALL_BLOCK = 256


def cores(
    width: int, height: int, *, task_size: int | None, max_pixels: int
) -> tuple[Window, ...] | None:
    """Cut a scene into near-equal windows, row by row; None where it is small enough to stay whole.

    A scene is cut where a side exceeds ``task_size`` (when given) or its area ``max_pixels``.
    The windows cover the scene exactly and do not overlap; no side exceeds the limit, and inner
    edges lie on multiples of 512 pixels (256 for limits under 512), the blocks of our COGs, so
    that no block is read or written twice.
    """
    side = task_size
    if width * height > max_pixels:
        side = min(side or isqrt(max_pixels), isqrt(max_pixels))
    if side is None or (width <= side and height <= side):
        return None
    side = max(side, _SMALL_BLOCK)
    rows = list(_spans(height, side))
    columns = list(_spans(width, side))
    if len(rows) * len(columns) == 1:
        return None
    return tuple((left, top, across, down) for top, down in rows for left, across in columns)


def _spans(length: int, limit: int) -> Iterator[tuple[int, int]]:
    """Starts and lengths of near-equal spans, each at most ``limit`` long."""
    block = _BLOCK if limit >= _BLOCK else _SMALL_BLOCK
    blocks = ceil(length / block)
    parts = 1 if length <= limit else ceil(blocks / (limit // block))
    edges = [min(length, block * (part * blocks // parts)) for part in range(parts + 1)]
    for start, stop in pairwise(edges):
        yield start, stop - start
