"""Scenes that everybody has offline: a real one from package spyndex, and a large made-up one.

Both name their bands as Sentinel-2 does (B02 blue, B03 green, B04 red, B08 near infrared,
B11 and B12 short-wave infrared) and hold surface reflectance x 10^4 as uint16, so that one
model runs on both.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.windows import Window

from geostudio_dagster.errors import InvalidRequest

SPYNDEX_BANDS = ("B02", "B03", "B04", "B08")
SYNTHETIC_BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
SYNTHETIC_NODATA = 0
_STRIP = 512
_NOMINAL = (
    "The georeference is nominal: package spyndex publishes these Sentinel-2 pixels without "
    "one, so the position is made up (UTM zone 18N, Colombia). Size and shape of the pixels, "
    "10 m squares, are real."
)
_MADE_UP = "Everything in this scene is made up; no satellite saw it."

Field = NDArray[np.float32]


def spyndex_scene(target: Path) -> Path:
    """Write the Sentinel-2 scene that package spyndex carries as a GeoTIFF.

    300 x 300 pixels, 4 bands (B02, B03, B04, B08), uint16, 10 m, no nodata value. The scene has
    no georeference of its own; it gets a *nominal* one: EPSG:32618 with a round origin, since a
    UTM zone has square metres (areas come out right) and the landscape looks Colombian. The tag
    ``GEOSTUDIO_NOTE`` in the file says so, too.

    Raises:
        InvalidRequest: package spyndex is not installed.
    """
    found = importlib.util.find_spec("spyndex")  # located, not imported: importing pulls xarray
    if found is None or not found.submodule_search_locations:
        raise InvalidRequest(
            "demo", "package spyndex is not installed", "pip install 'geostudio-dagster[demo]'"
        )
    source = Path(found.submodule_search_locations[0]) / "data" / "S2_10m.json"
    pixels = np.asarray(json.loads(source.read_text("ascii")), dtype=np.uint16)
    profile = _profile(pixels.shape[1:], SPYNDEX_BANDS, Affine(10, 0, 600_000, 0, -10, 500_000))
    with _fresh(target) as scratch:
        with rasterio.open(scratch, "w", **profile, blockxsize=128, blockysize=128) as scene:
            _describe(scene, SPYNDEX_BANDS, _NOMINAL)
            scene.write(pixels)
        scratch.replace(target)
    return target


def synthetic_scene(target: Path, size: int = 4096, seed: int = 2024) -> Path:
    """Write a made-up scene with rivers, lakes, fields, forest, clouds and a slanted nodata edge.

    ``size`` x ``size`` pixels of 10 m, 6 bands (:data:`SYNTHETIC_BANDS`), uint16, nodata 0,
    EPSG:32618. The same size and seed always give the same pixels. Made in strips of 512 rows.
    """
    profile = _profile(
        (size, size), SYNTHETIC_BANDS, Affine(10, 0, 450_000, 0, -10, 600_000), SYNTHETIC_NODATA
    )
    landscape = _Landscape(size, seed)
    with _fresh(target) as scratch:
        with rasterio.open(scratch, "w", **profile, blockxsize=512, blockysize=512) as scene:
            _describe(scene, SYNTHETIC_BANDS, _MADE_UP)
            for row in range(0, size, _STRIP):
                rows = min(_STRIP, size - row)
                scene.write(landscape.strip(row, rows), window=Window(0, row, size, rows))
        scratch.replace(target)
    return target


def _profile(
    shape: tuple[int, ...], bands: tuple[str, ...], transform: Affine, nodata: int | None = None
) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "dtype": "uint16",
        "count": len(bands),
        "height": shape[0],
        "width": shape[1],
        "crs": "EPSG:32618",
        "transform": transform,
        "nodata": nodata,
        "tiled": True,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 1,
        "num_threads": "all_cpus",
    }


def _describe(scene: Any, bands: tuple[str, ...], note: str) -> None:
    for number, name in enumerate(bands, start=1):
        scene.set_band_description(number, name)
    scene.update_tags(GEOSTUDIO_NOTE=note)


@contextmanager
def _fresh(target: Path) -> Iterator[Path]:
    """A temporary neighbour of ``target`` that is gone afterwards, unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.stem}.{os.getpid()}.tif")
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


# Reflectance x 10^4 of one surface in the six bands.
_SPECTRA = {
    "water": (420, 380, 260, 150, 70, 50),
    "soil": (900, 1250, 1700, 2500, 3100, 2600),
    "stubble": (800, 1150, 1450, 2600, 2700, 1900),
    "pasture": (500, 850, 750, 2900, 2000, 1100),
    "crop": (330, 720, 420, 4300, 1800, 850),
    "forest": (230, 420, 260, 3000, 1300, 550),
    "cloud": (5200, 5300, 5400, 5700, 4300, 3500),
}
_CROPS = ("soil", "stubble", "pasture", "crop", "crop", "pasture")


class _Landscape:
    """Pixels of the made-up scene, strip by strip; all structure is global to the scene."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        rng = np.random.default_rng(seed)
        self._relief = rng.standard_normal((14, 14)).astype(np.float32)
        self._warp = rng.standard_normal((10, 10)).astype(np.float32)
        self._woods = rng.standard_normal((40, 40)).astype(np.float32)
        self._lakes = rng.standard_normal((26, 26)).astype(np.float32)
        self._clouds = [rng.standard_normal((n, n)).astype(np.float32) for n in (9, 30, 110)]
        self._use = rng.integers(0, len(_CROPS), size=(512, 512))
        self._vigour = rng.uniform(0.85, 1.15, size=(512, 512)).astype(np.float32)
        self._table = np.array([_SPECTRA[name] for name in _CROPS], dtype=np.float32)

    def strip(self, row: int, rows: int) -> NDArray[np.uint16]:
        """Rows ``row`` to ``row + rows`` of all bands: uint16 (6, rows, size)."""
        relief = self._smooth(self._relief, row, rows)
        vigour, surface = self._fields(row, rows)
        woods = _ramp(self._smooth(self._woods, row, rows), 0.45, 0.6)
        wet = np.maximum(
            _ramp(-np.abs(relief), -0.012, -0.008),  # rivers run where the relief crosses zero
            _ramp(self._smooth(self._lakes, row, rows), 1.05, 1.07),
        )
        cover = self._cloudiness(row, rows)
        shade = 1 - 0.55 * self._cloudiness(row - 40, rows, shift=60) * (1 - cover)
        rng = np.random.default_rng((self._seed, row))
        grain = 1 + 0.05 * (rng.random(relief.shape, dtype=np.float32) - 0.5)
        shade *= grain
        pixels = np.empty((len(SYNTHETIC_BANDS), rows, self._size), dtype=np.uint16)
        for band in range(len(SYNTHETIC_BANDS)):
            value = self._table[:, band][surface] * vigour
            for weight, name in ((woods, "forest"), (wet, "water")):
                value += weight * (_SPECTRA[name][band] - value)
            value *= shade
            value += cover * (_SPECTRA["cloud"][band] - value)
            pixels[band] = np.clip(value, 1, 10_000)
        pixels[:, self._outside(row, rows)] = SYNTHETIC_NODATA
        return pixels

    def _fields(self, row: int, rows: int) -> tuple[Field, NDArray[np.int64]]:
        """Vigour and land use of the parcel that each pixel lies in."""
        x, y = self._axes(row, rows)
        bend = 25 * self._smooth(self._warp, row, rows)
        along = ((0.94 * x + 0.34 * y + bend) / 61).astype(np.int32)
        across = ((-0.34 * x + 0.94 * y - bend) / 43).astype(np.int32)
        place = (along % 512, (across + 7 * along) % 512)
        return self._vigour[place], self._use[place]

    def _cloudiness(self, row: int, rows: int, shift: int = 0) -> Field:
        total = sum(
            weight * self._smooth(grid, row, rows, shift)
            for weight, grid in zip((1.0, 0.45, 0.2), self._clouds, strict=True)
        )
        return _ramp(np.asarray(total, dtype=np.float32), 0.95, 1.2)

    def _outside(self, row: int, rows: int) -> NDArray[np.bool_]:
        """The slanted edge of the swath, without data."""
        x, y = self._axes(row, rows)
        return np.asarray(x < 0.09 * self._size - 0.12 * y, dtype=np.bool_)

    def _axes(self, row: int, rows: int) -> tuple[Field, Field]:
        x = np.arange(self._size, dtype=np.float32)[None, :]
        y = np.arange(row, row + rows, dtype=np.float32)[:, None]
        return x, y

    def _smooth(self, grid: Field, row: int, rows: int, shift: int = 0) -> Field:
        """A grid of random values as a smooth surface (cubic B-spline) over the strip."""
        down = _spline(np.arange(row, row + rows) / self._size, grid.shape[0])
        right = _spline((np.arange(self._size) + shift) / self._size, grid.shape[1])
        return np.asarray(down @ grid @ right.T, dtype=np.float32)


def _spline(position: NDArray[Any], nodes: int) -> Field:
    """Weights (positions, nodes) of a cubic B-spline at ``position`` in 0..1."""
    place = np.clip(position, 0, 1) * (nodes - 3) + 1
    left = np.minimum(place.astype(int), nodes - 3)
    t = place - left
    weights = np.zeros((len(position), nodes), dtype=np.float32)
    row = np.arange(len(position))
    for offset, weight in _cubic(t):
        weights[row, left + offset] = weight
    return weights


def _cubic(t: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    yield -1, (1 - t) ** 3 / 6
    yield 0, (3 * t**3 - 6 * t**2 + 4) / 6
    yield 1, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6
    yield 2, t**3 / 6


def _ramp(value: Field, low: float, high: float) -> Field:
    return np.asarray(np.clip((value - low) / (high - low), 0, 1), dtype=np.float32)
