"""Figures of a prediction: how much of each class there is, or how the values are spread."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS, Proj, Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.planning.masks import MASKED_CLASSES

_ROWS, _COLUMNS = 512, 2048
_GDAL_CACHE = 64 * 1024**2  # bytes; by default GDAL would keep a twentieth of the memory
_VALUES = 1024  # more than any class has, masked ones too
_BINS = 4096
_PERCENTILES = (2, 25, 50, 75, 98)
_HECTARE = 10_000.0
_NARROW = 0.01  # degrees: a cell this wide has parallels that are as good as geodesics
_DISTORTION = 0.01  # a projection that changes areas by more is corrected


def statistics(prediction: Path, manifest: BundleManifest) -> dict[str, Any]:
    """Figures of one prediction, as JSON values; read in windows, in constant memory.

    Segmentation: ``classes`` with pixels, share of the valid pixels and hectares. Regression:
    min, max, mean, standard deviation, and percentiles to within 1/4096 of the range.
    ``area_method`` tells how areas were found: ``grid`` (projected pixels as they are) or
    ``geodesic`` (on the ellipsoid, for geographic CRSs and projections that distort areas by
    more than 1 %).

    Raises:
        TaskError: ``not_a_raster``, the prediction cannot be read.
    """
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE),
            rasterio.open(prediction, driver="GTiff") as raster,
        ):
            if manifest.task == "segmentation":
                return _segmentation(raster, manifest)
            return _regression(raster, manifest)
    except RasterioError as error:
        raise TaskError("not_a_raster", f"{prediction.name} cannot be read: {error}.") from error


def row_areas(transform: Any, crs: str, width: int, height: int) -> tuple[NDArray[np.float64], str]:
    """Area of one pixel in each row, square metres, float64 (height,), and the method."""
    system = CRS.from_wkt(crs)
    rows = np.arange(height)
    if system.is_geographic:
        to_degrees = math.degrees(system.axis_info[0].unit_conversion_factor)
        tops = (transform.f + transform.e * rows) * to_degrees
        across, down = transform.a * to_degrees, transform.e * to_degrees
        return _geodesic_cells(system, tops, across, down), "geodesic"
    metres = system.axis_info[0].unit_conversion_factor if system.axis_info else 1.0
    cell = abs(transform.determinant) * metres**2
    areas = np.full(height, cell)
    scale = _areal_scale(system, transform, width / 2, np.array([height / 2]))
    if scale is None or abs(float(scale[0]) - 1) <= _DISTORTION:
        return areas, "grid"
    scales = _areal_scale(system, transform, width / 2, rows + 0.5)
    return (areas if scales is None else areas / scales), "geodesic"


def _geodesic_cells(
    system: CRS, tops: NDArray[np.float64], across: float, down: float
) -> NDArray[np.float64]:
    geod = system.get_geod()
    if geod is None:
        raise TaskError("not_georeferenced", "The CRS of the prediction has no ellipsoid.")
    pieces = max(1, math.ceil(abs(across) / _NARROW))
    width = across / pieces
    areas = [
        abs(
            geod.polygon_area_perimeter(
                [0, width, width, 0], np.clip([top, top, top + down, top + down], -90, 90)
            )[0]
        )
        for top in tops.tolist()
    ]
    return np.asarray(areas, dtype=np.float64) * pieces


def _areal_scale(
    system: CRS, transform: Any, column: float, rows: NDArray[Any]
) -> NDArray[np.float64] | None:
    """How much larger areas are on the map than on the ground, or None where PROJ cannot tell."""
    geodetic = system.geodetic_crs
    if geodetic is None:
        return None
    xs = transform.c + transform.a * column + transform.b * rows
    ys = transform.f + transform.d * column + transform.e * rows
    to_ground = Transformer.from_crs(system, geodetic, always_xy=True)
    longitudes, latitudes = to_ground.transform(xs, ys)
    factors = Proj(system).get_factors(longitudes, latitudes)
    scale = np.atleast_1d(np.asarray(factors.areal_scale, dtype=np.float64))
    return scale if np.all(np.isfinite(scale)) and np.all(scale > 0) else None


def _windows(raster: Any) -> Iterator[Window]:
    for row in range(0, raster.height, _ROWS):
        for col in range(0, raster.width, _COLUMNS):
            yield Window(
                col, row, min(_COLUMNS, raster.width - col), min(_ROWS, raster.height - row)
            )


def _areas(raster: Any) -> tuple[NDArray[np.float64], str]:
    return row_areas(raster.transform, raster.crs.to_wkt(), raster.width, raster.height)


def _segmentation(raster: Any, manifest: BundleManifest) -> dict[str, Any]:
    areas, method = _areas(raster)
    counts = np.zeros(_VALUES, dtype=np.int64)
    square_metres = np.zeros(_VALUES, dtype=np.float64)
    for window in _windows(raster):
        pixels = raster.read(1, window=window)
        valid = raster.read_masks(1, window=window) > 0
        by_row = np.arange(window.height)[:, None] * _VALUES + pixels
        table = np.bincount(by_row[valid], minlength=window.height * _VALUES)
        table = table.reshape(window.height, _VALUES)
        counts += table.sum(axis=0)
        square_metres += areas[window.row_off : window.row_off + window.height] @ table
    names = {item.value: item.name for item in manifest.classes} | _masked_names(counts)
    total = int(counts.sum())
    classes = [
        {
            "value": value,
            "name": names.get(value, ""),
            "pixels": int(counts[value]),
            "share": round(int(counts[value]) / total, 6) if total else 0.0,
            "area_ha": _hectares(square_metres[value]),
        }
        for value in range(_VALUES)
        if value in names or counts[value]
    ]
    return {
        **_summary(raster, total, float(square_metres.sum()), method, manifest),
        "classes": classes,
    }


def _masked_names(counts: NDArray[np.int64]) -> dict[int, str]:
    return {item.value: item.name for item in MASKED_CLASSES.values() if counts[item.value]}


def _summary(
    raster: Any, valid: int, square_metres: float, method: str, manifest: BundleManifest
) -> dict[str, Any]:
    pixels = raster.width * raster.height
    return {
        "task": manifest.task,
        "pixels": pixels,
        "valid_pixels": valid,
        "nodata_fraction": round(1 - valid / pixels, 6),
        "area_ha": _hectares(square_metres),
        "area_method": method,
    }


def _hectares(square_metres: float) -> float:
    return round(float(square_metres) / _HECTARE, 4)


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations, merged window by window (Chan et al.)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = field(default=math.inf)
    high: float = field(default=-math.inf)

    def add(self, values: NDArray[np.float64]) -> None:
        if not values.size:
            return
        mean, total = float(values.mean()), self.count + values.size
        shift = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum())
        self.squares += shift**2 * self.count * values.size / total
        self.mean += shift * values.size / total
        self.count = total
        self.low, self.high = (
            min(self.low, float(values.min())),
            max(self.high, float(values.max())),
        )


def _regression(raster: Any, manifest: BundleManifest) -> dict[str, Any]:
    areas, method = _areas(raster)
    moments, square_metres = _Moments(), 0.0
    for window in _windows(raster):
        values, valid = _values(raster, window)
        moments.add(values[valid])
        rows = areas[window.row_off : window.row_off + window.height]
        square_metres += float(rows @ np.count_nonzero(valid, axis=1))
    found: dict[str, Any] = {"min": None, "max": None, "mean": None, "std": None, "percentiles": {}}
    if moments.count:
        found = {
            "min": moments.low,
            "max": moments.high,
            "mean": moments.mean,
            "std": math.sqrt(moments.squares / moments.count),
            "percentiles": _percentiles(raster, moments),
        }
    summary = _summary(raster, moments.count, square_metres, method, manifest)
    return {**summary, "unit": manifest.unit, **found}


def _values(raster: Any, window: Window) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = raster.read(1, window=window).astype(np.float64)
    valid = (raster.read_masks(1, window=window) > 0) & np.isfinite(values)
    return values, valid


def _percentiles(raster: Any, moments: _Moments) -> dict[str, float]:
    """From a histogram between the extremes, linear inside its bins."""
    if moments.low == moments.high:
        return {str(rank): moments.low for rank in _PERCENTILES}
    counts = np.zeros(_BINS, dtype=np.int64)
    edges = np.linspace(moments.low, moments.high, _BINS + 1)
    for window in _windows(raster):
        values, valid = _values(raster, window)
        counts += np.histogram(values[valid], bins=edges)[0]
    below = np.concatenate(([0], np.cumsum(counts))) / moments.count
    ranks = [rank / 100 for rank in _PERCENTILES]
    found = np.interp(ranks, below, edges)
    return {str(rank): float(value) for rank, value in zip(_PERCENTILES, found, strict=True)}
