"""An area as grids, their windows, and which granules meet each window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.planning.area import parts_on_the_globe
from geostudio_dagster.planning.grid import Window, cores
from geostudio_dagster.planning.map_tiles import tile_outlines
from geostudio_dagster.planning.request import RequestSpec, SpatialDomain
from geostudio_dagster.planning.scene_grid import SceneGrid, scene_grids
from geostudio_dagster.settings import Settings
from geostudio_dagster.stac_settings import StacSource

TASK_SIDE = 4096  # pixels of a task's square, where the request names no task_size
_MOST_WINDOWS = 1_000_000
_EDGE = -0.5  # pixels: what only touches a window's edge does not meet it
_NEAR_DEGREES = 2.0  # around a grid: what of a granule lies farther off is not projected


def areas_of(domain: SpatialDomain) -> list[shapely.Geometry]:
    """The areas of a request, EPSG:4326, cut at the date line.

    Raises:
        InvalidRequest: a tile is of no kind that is known.
    """
    return parts_on_the_globe(domain.bbox, [*domain.polygons, *tile_outlines(domain.tiles)])


def grids_of(
    domain: SpatialDomain, manifest: BundleManifest, source: StacSource
) -> list[SceneGrid]:
    """The grids that a request's areas are worked on, of the source's resolution.

    Raises:
        InvalidRequest: as for :func:`areas_of`.
    """
    resolution = source.resolution_m
    if resolution is None:
        raise InvalidRequest("source", f"{source.label} tells no resolution", "add resolution_m")
    return [
        grid
        for area in areas_of(domain)
        for grid in scene_grids(
            area, resolution, least=manifest.patch.size, origin=source.search.origin_m
        )
    ]


def windows_of(grid: SceneGrid, spec: RequestSpec, settings: Settings) -> list[Window]:
    """The tasks' windows of a grid that meet its area."""
    side = spec.task_size or TASK_SIDE
    if grid.width * grid.height > _MOST_WINDOWS * side**2:
        raise InvalidRequest(
            "spatial_domain",
            f"an area has {grid.width} x {grid.height} pixels of {grid.resolution:g} m",
            "split it, or give a larger task_size",
        )
    whole: Window = (0, 0, grid.width, grid.height)
    cut = cores(grid.width, grid.height, task_size=side, max_pixels=settings.max_task_pixels)
    windows = list(cut or (whole,))
    if len(windows) == 1:
        return windows
    meets = shapely.intersects(
        grid.outline, np.array([grid.place(window, _EDGE) for window in windows], dtype=object)
    )
    return [window for window, does in zip(windows, meets, strict=True) if does]


def with_data(
    grid: SceneGrid,
    windows: Sequence[Window],
    outlines: Sequence[shapely.Geometry],
    margin: int,
) -> dict[int, tuple[int, ...]]:
    """By place in ``windows``, those that meet a granule, and which meet it or its margin."""
    inner = np.array([grid.place(window, _EDGE) for window in windows], dtype=object)
    outer = np.array([grid.place(window, margin) for window in windows], dtype=object)
    for outline in outlines:
        shapely.prepare(outline)
    meet = np.array([shapely.intersects(outline, inner) for outline in outlines])
    near = np.array([shapely.intersects(outline, outer) for outline in outlines])
    return {
        place: tuple(np.flatnonzero(near[:, place]).tolist())
        for place in np.flatnonzero(meet.any(axis=0)).tolist()
    }


def projected(outline: shapely.Geometry, grid: SceneGrid) -> shapely.Geometry:
    """What of a granule's outline (EPSG:4326) is near a grid, in the grid's CRS."""
    west, south, east, north = grid.area.bounds
    if grid.is_polar:  # all longitudes are near
        west, east = -180.0, 180.0
    more = _NEAR_DEGREES
    part = outline & shapely.box(west - more, south - more, east + more, north + more)
    return grid.projected(part) if not part.is_empty else part
