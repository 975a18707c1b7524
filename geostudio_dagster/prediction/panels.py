"""Wide scenes are worked in panels, so that the rows in memory stay bounded.

How wide a panel may be depends on how many rows are read at a time, and both on how often a block
of the scene is decoded: once for each panel that it lies in, and again if its rows come in parts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from geostudio_dagster.raster.patches import Box, PatchGrid

# Strips are low and as wide as the scene: the fewer rows, the fewer panels decode each of them.
_LOAD_ROWS = (32, 64, 128, 256)
_PARTS = (1, 2, 4, 8, 16, 32)  # of higher blocks, where memory does not do for whole ones


@dataclass(frozen=True, slots=True)
class Panel:
    """Neighbouring columns of patches, from the core's top to its bottom, and what they finish.

    ``box`` ends where the next panel's first patch begins to have weight. The few pixels to the
    right of it that this panel's last patches reach as well are finished by the next panel: each
    patch belongs to one panel, so none is computed twice.
    """

    cols: range
    box: Box


@dataclass(frozen=True, slots=True)
class Reading:
    """What is in memory of a scene, and at what price.

    Attributes:
        load: rows that are read at a time. widest: pixels that a panel may be wide.
        per_column: bytes of the rows in flight, of each column of pixels.
        decodings: how often a block is decoded, on average.
    """

    load: int
    widest: int
    per_column: int
    decodings: float


def choose_reading(
    block: tuple[int, int], width: int, size: int, *, pixel: int, output: int, memory: int
) -> Reading:
    """The rows to read at a time so that blocks are decoded as seldom as memory allows.

    Args:
        block: height and width of the scene's blocks. width: of the core. size: of a patch.
        pixel: bytes of a pixel that was read. output: of one that is being blended.
        memory: bytes for the rows in flight; at least four patches' width is taken.
    """
    found = [
        _reading(load, block, width, size, pixel=pixel, output=output, memory=memory)
        for load in _loads(block[0])
    ]
    fitting = [it for it in found if 4 * size * it.per_column <= memory]
    if not fitting:
        return min(found, key=lambda it: it.load)
    return min(fitting, key=lambda it: (it.decodings, -it.load))


def _loads(height: int) -> set[int]:
    """Rows that may be read at a time: some blocks of that height, or a part of one."""
    if height > _LOAD_ROWS[-1]:
        return {-(-height // parts) for parts in _PARTS if height // parts >= _LOAD_ROWS[0]}
    return {rows // height * height for rows in _LOAD_ROWS if rows >= height}


def _reading(
    load: int,
    block: tuple[int, int],
    width: int,
    size: int,
    *,
    pixel: int,
    output: int,
    memory: int,
) -> Reading:
    per_column = (size + load) * pixel + size * output
    # Beside its own columns, a panel has some that it shares with its neighbours.
    widest = max(memory // per_column - 2 * size, 2 * size)
    height, blocks = block[0], -(-width // block[1])
    parts = 1 if load >= height else -(-height // load) + (height % load > 0)
    # Neighbours share the blocks at their edge: one of each row, be it as wide as the scene.
    decodings = parts * (1 + (-(-width // widest) - 1) / blocks)
    return Reading(load, widest, per_column, decodings)


def panels(grid: PatchGrid, core: Box, widest: int) -> Sequence[Panel]:
    """The core from left to right in as few panels of about equal width as ``widest`` allows.

    ``widest``, pixels, is at least two patches: then no patch reaches further than into the next
    panel.
    """
    cols = grid.within(core)[1]
    count = -(-core.width // widest)
    step = -(-core.width // count)
    edges = range(core.col + step, core.right, step)
    starts = (bisect_left(grid.cols.starts, edge) for edge in edges)
    # The last patch may begin before the last edge: then there is a panel less.
    first = [cols[0], *(col for col in starts if col in cols)]
    left = [core.col, *(grid.cols.extent(col)[0] for col in first[1:])]
    ends = zip([*first[1:], cols[-1] + 1], [*left[1:], core.right], strict=True)
    return [
        Panel(range(col, end), Box(edge, core.row, right - edge, core.height))
        for col, edge, (end, right) in zip(first, left, ends, strict=True)
    ]
