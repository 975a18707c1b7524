"""Wide scenes are worked in panels, so that the rows in memory stay bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from geostudio_dagster.raster.patches import Box, PatchGrid


@dataclass(frozen=True, slots=True)
class Panel:
    """Neighbouring columns of patches, from the core's top to its bottom, and what they finish.

    ``box`` ends where the next panel's first patch begins to have weight. The few pixels to the
    right of it that this panel's last patches reach as well are finished by the next panel: each
    patch belongs to one panel, so none is computed twice.
    """

    cols: range
    box: Box


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
