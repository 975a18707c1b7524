"""Where rasters lie: whether that is known at all, and whether several lie on one grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from affine import Affine

from geostudio_dagster.errors import TaskError
from geostudio_dagster.raster.opening import File

_ALIKE = 1e-3  # pixels that corners may be apart: what rounding coordinates comes to


def check_position(dataset: Any, shown: str) -> None:
    """Make sure that a raster has a CRS, and a grid in it.

    Raises:
        TaskError: ``not_georeferenced``.
    """
    transform = dataset.transform
    finite = all(math.isfinite(value) for value in transform[:6])
    if dataset.crs and finite and not transform.is_identity and abs(transform.determinant) > 0:
        return
    if dataset.gcps[0] or dataset.rpcs:
        kind = "ground control points" if dataset.gcps[0] else "rational polynomials (RPC)"
        problem = f"has only {kind} instead of a grid; rectify it, for instance with gdalwarp"
    else:
        missing = "coordinate reference system" if not dataset.crs else "position (geotransform)"
        problem = (
            f"has no {missing} inside the file (side files are not read); "
            "set it, for instance with gdal_edit"
        )
    raise TaskError("not_georeferenced", f"{shown} {problem}.")


def check_grids(paths: Sequence[File], datasets: Sequence[Any]) -> None:
    """Make sure that rasters have a position, north up or south up, and the same one.

    Raises:
        TaskError: ``not_georeferenced``, ``rotated_grid`` or ``grids_differ``.
    """
    names = [Path(path).name for path in paths]
    for name, dataset in zip(names, datasets, strict=True):
        check_position(dataset, name)
    first = datasets[0]
    if _rotated(first):
        raise TaskError(
            "rotated_grid",
            f"{names[0]} is rotated against its coordinate axes; warp it north-up first.",
        )
    for name, dataset in zip(names, datasets, strict=True):
        if not _on_one_grid(dataset, first):
            problem = _grid(dataset)
        elif dataset.crs != first.crs:
            problem = f"CRS {dataset.crs}"
        else:
            continue
        raise TaskError(
            "grids_differ",
            f"{name} ({problem}) is not on the grid of {names[0]} "
            f"({_grid(first)}, CRS {first.crs}); resample them to one grid.",
        )


def _rotated(dataset: Any) -> bool:
    place: Affine = dataset.transform
    across, down = abs(place.b) * dataset.height, abs(place.d) * dataset.width
    return bool(across > _ALIKE * abs(place.a) or down > _ALIKE * abs(place.e))


def _on_one_grid(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    moved = ~other.transform @ one.transform
    corners = product((0, one.width), (0, one.height))
    return all(math.dist(moved @ corner, corner) < _ALIKE for corner in corners)


def _grid(dataset: Any) -> str:
    left, top = dataset.transform.c, dataset.transform.f
    size = f"{dataset.width} x {dataset.height} pixels of {dataset.res[0]:g}"
    return f"{size} from {left:.10g}, {top:.10g}"
