"""Joining the parts of a scene that was worked in windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rasterio
from affine import Affine
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from geostudio_dagster.errors import TaskError
from geostudio_dagster.raster.cog import BLOCK, ScratchRaster, remove_scratch, write_cog
from geostudio_dagster.raster.patches import Box

# Tags of one part, which would be untrue of the whole.
_OF_A_PART = frozenset({"GEOSTUDIO_TASK", "AREA_OR_POINT"})


def merge_parts(
    parts: Sequence[tuple[Path, tuple[int, int, int, int]]],
    target: Path,
    *,
    size: tuple[int, int],
    scratch: Path,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Join rasters of one scene's windows into one COG, in constant memory.

    Args:
        parts: each raster with its window: column, row, width and height in the scene's pixels.
            Pixels that no part covers are nodata. Parts are placed in the order given.
        target: appears only when complete; equal bytes whenever made again.
        size: width and height of the scene, pixels.
        scratch: a folder for temporary files.
        tags: further tags; those that all parts share are kept without being named.

    Raises:
        TaskError: ``parts_differ``, the parts are not of one scene or don't fit their windows.
    """
    if not parts:
        raise TaskError("parts_differ", f"There are no parts to make {target.name} of.")
    path = scratch / f"{target.stem}.merge.tif"
    try:
        _join(parts, path, size, dict(tags or {}))
        write_cog(path, target)
    finally:
        remove_scratch(path)


def _join(
    parts: Sequence[tuple[Path, tuple[int, int, int, int]]],
    path: Path,
    size: tuple[int, int],
    tags: dict[str, str],
) -> None:
    with rasterio.open(parts[0][0]) as first:
        window = Box(*parts[0][1])
        grid = _Grid(
            first, window_transform(Window(-window.col, -window.row, 1, 1), first.transform)
        )
        whole = ScratchRaster(
            path,
            size=size,
            bands=first.count,
            dtype=first.dtypes[0],
            nodata=first.nodata,
            crs=first.crs,
            transform=grid.transform,
            # Whole numbers that stand for others are no classes.
            overviews="average" if grid.floating or first.scales[0] != 1 else "mode",
        )
        colours = first.colormap(1) if first.dtypes[0] == "uint8" and first.count == 1 else None
        descriptions = [text or "" for text in first.descriptions]
        unit, scale = first.units[0] or "", first.scales[0]
    shared: dict[str, str] | None = None
    with whole:
        for part, place in parts:
            with rasterio.open(part) as file:
                grid.check(file, part, Box(*place), size)
                here = file.tags()
                shared = here if shared is None else dict(shared.items() & here.items())
                for box, pixels in _tiles(file):
                    column, row = box.col + place[0], box.row + place[1]
                    whole.write(Box(column, row, box.width, box.height), pixels)
        kept = {key: text for key, text in (shared or {}).items() if key not in _OF_A_PART}
        whole.describe(
            tags=dict(sorted((kept | tags).items())),
            descriptions=descriptions,
            colours=colours,
            unit=unit,
            scale=scale,
        )


class _Grid:
    """What all parts of one scene have in common."""

    def __init__(self, first: Any, transform: Affine) -> None:
        self.transform = transform
        self.floating = str(first.dtypes[0]).startswith("float")
        self._kind = (first.count, first.dtypes[0], first.nodata, first.crs)

    def check(self, file: Any, part: Path, window: Box, size: tuple[int, int]) -> None:
        """Make sure that ``file`` is what it is said to be.

        Raises:
            TaskError: ``parts_differ``.
        """
        expected = window_transform(Window(*window), self.transform)
        fits = (file.width, file.height) == (window.width, window.height)
        fits = fits and min(window.col, window.row) >= 0
        fits = fits and window.right <= size[0] and window.bottom <= size[1]
        same = (file.count, file.dtypes[0], file.nodata, file.crs) == self._kind
        # A thousandth of a pixel: positions are rounded as they are written.
        near = file.transform.almost_equals(expected, abs(expected.a) * 1e-3)
        if not (fits and same and near):
            raise TaskError(
                "parts_differ",
                f"{part.name} does not fit window {tuple(window)} of a scene of {size[0]} x "
                f"{size[1]} pixels beside the other parts; predict the scene again.",
            )


def _tiles(file: Any) -> Iterator[tuple[Box, Any]]:
    """The file's pixels (bands, height, width), tile by tile, with their places."""
    for row in range(0, file.height, BLOCK):
        for col in range(0, file.width, BLOCK):
            height, width = min(BLOCK, file.height - row), min(BLOCK, file.width - col)
            yield Box(col, row, width, height), file.read(window=Window(col, row, width, height))
