"""The model's input as a picture for the map: 8-bit colour with transparency, as a COG."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.windows import Window

from geostudio_dagster.models.bundle import Band, BundleManifest
from geostudio_dagster.raster.cog import BLOCK, write_cog
from geostudio_dagster.raster.patches import Box
from geostudio_dagster.raster.scene import Scene

_PERCENTILES = (2.0, 98.0)
_SAMPLES = 8  # sampled squares along each side of the scene
_SAMPLE = 256  # side of a sampled square, pixels
_COLUMNS = 2048  # columns per read: memory does not grow with the scene's width
_GDAL_CACHE = 64 * 1024**2  # bytes; by default GDAL would keep a twentieth of the memory
_LEVEL = 1  # of compression: colours take half the CPU time of level 6 and 15 % more space
_OPAQUE = 255

Stretch = tuple[tuple[float, float], ...]
"""Per band, the pixel values that become 0 and 255."""


@dataclass(frozen=True, slots=True)
class Quicklook:
    """What was written: the band names, how they were stretched, and how much is transparent."""

    bands: tuple[str, ...]
    stretch: Stretch | None
    nodata_fraction: float


def write_quicklook(
    source: Path | Sequence[Path],
    manifest: BundleManifest,
    target: Path,
    *,
    scratch: Path,
    window: tuple[int, int, int, int] | None = None,
    tags: Mapping[str, str] | None = None,
    limits: Mapping[str, Sequence[float]] | None = None,
) -> Quicklook:
    """Write the red, green and blue of a scene, or of a window of it, as a COG of four bands.

    The bands are uint8: red, green, blue, alpha; alpha is 0 where the scene has no valid pixel,
    so that black stays black. They are the bands that the manifest marks as R, G and B, else its
    first three; of fewer, the first as grey. The stretch runs from the 2nd to the 98th percentile
    of squares spread over the whole scene, so all parts of a scene get the same; pixels that are
    8-bit already stay as they are. CRS and grid are those of the scene. The same input gives the
    same bytes. Memory does not grow with the scene.

    Args:
        source: the scene, as the prediction read it. scratch: a folder for temporary files.
        window: column, row, width and height in scene pixels; None is the whole scene.
        tags: more tags for the file.
        limits: the stretch of each band by its name, instead of one found in the scene.

    Raises:
        TaskError: the scene cannot be read, or the window leaves it.
    """
    paths = [source] if isinstance(source, Path) else list(source)
    narrowed, latest = _colours_only(paths, manifest)
    with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE), Scene(latest, narrowed) as scene:
        core = scene.core(window)
        names = tuple(band.name for band in narrowed.bands)
        stretch = None if scene.dtype == np.uint8 else _given(limits, names) or _stretch(scene)
        rough = scratch / f"{target.stem}.scratch.tif"
        try:
            with rasterio.open(rough, "w", **_profile(scene, core)) as file:
                _describe(file, names, stretch, tags or {})
                missing = sum(
                    _write(file, core, box, stretch, scene) for box in _boxes(core, scene)
                )
            write_cog(rough, target, "average", level=_LEVEL)
        finally:
            rough.unlink(missing_ok=True)
    return Quicklook(names, stretch, missing / (core.width * core.height))


def _colours_only(
    paths: Sequence[Path], manifest: BundleManifest
) -> tuple[BundleManifest, list[Path]]:
    """The manifest with the bands to show alone, and the files of the latest date."""
    latest = list(paths[-(len(paths) // manifest.dates) :])
    single = manifest.model_copy(update={"dates": 1})
    with Scene(latest, single) as scene:
        places = [channel.band - 1 for channel in scene.channels]
    first_ones = range(3 if len(manifest.bands) >= 3 else 1)  # noqa: PLR2004 - three colours
    shown = manifest.rgb_bands or tuple(first_ones)
    # The place found with all the model's bands in view holds for a scene without names, too.
    bands = tuple(Band(name=manifest.bands[n].name, index=places[n]) for n in shown)
    return single.model_copy(update={"bands": bands}), latest


def _profile(scene: Scene, core: Box) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "width": core.width,
        "height": core.height,
        "count": 4,
        "dtype": "uint8",
        "crs": scene.crs,
        "transform": scene.transform @ Affine.translation(core.col, core.row),
        "photometric": "RGB",
        "ALPHA": "YES",
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "interleave": "pixel",
        "BIGTIFF": "IF_SAFER",
    }


def _describe(
    file: Any, names: Sequence[str], stretch: Stretch | None, tags: Mapping[str, str]
) -> None:
    limits = dict(zip(names, stretch, strict=True)) if stretch else None
    file.update_tags(**tags, GEOSTUDIO_BANDS=",".join(names), GEOSTUDIO_STRETCH=json.dumps(limits))
    for number in range(3):
        file.set_band_description(number + 1, names[min(number, len(names) - 1)])
    file.set_band_description(4, "alpha")


def _boxes(core: Box, scene: Scene) -> Iterator[Box]:
    """Boxes that cover the core, on the blocks of the output."""
    striped = scene.block[1] >= scene.width  # a strip would be decoded again for every box of it
    columns = core.width if striped else _COLUMNS
    for row in range(core.row, core.bottom, BLOCK):
        for col in range(core.col, core.right, columns):
            yield Box(col, row, min(columns, core.right - col), min(BLOCK, core.bottom - row))


def _write(file: Any, core: Box, box: Box, stretch: Stretch | None, scene: Scene) -> int:
    """Write one box and return how many of its pixels are transparent."""
    pixels, valid = _read(scene, box)
    colours = np.empty((4, box.height, box.width), dtype=np.uint8)
    for number in range(3):
        band = min(number, len(pixels) - 1)
        colours[number] = pixels[band] if stretch is None else _scaled(pixels[band], stretch[band])
    colours[:3, ~valid] = 0
    colours[3] = valid * np.uint8(_OPAQUE)
    place = Window(box.col - core.col, box.row - core.row, box.width, box.height)
    file.write(colours, window=place)
    return int(valid.size - np.count_nonzero(valid))


def _read(scene: Scene, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    pixels = np.empty((len(scene.channels), box.height, box.width), dtype=scene.dtype)
    valid = np.empty((box.height, box.width), dtype=np.bool_)
    scene.read(box, pixels, valid)
    return pixels, valid


def _scaled(plane: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = limits
    gain = np.float32(_OPAQUE / (high - low))
    with np.errstate(invalid="ignore", over="ignore"):  # invalid pixels are blanked afterwards
        value = (plane.astype(np.float32) - np.float32(low)) * gain + np.float32(0.5)
        value = np.nan_to_num(np.clip(value, 0, _OPAQUE), nan=0.0)
    return np.asarray(value, dtype=np.uint8)


def _given(limits: Mapping[str, Sequence[float]] | None, names: Sequence[str]) -> Stretch | None:
    """The limits of these bands, if all of them are told."""
    if not limits or not all(name in limits for name in names):
        return None
    return tuple((float(limits[name][0]), float(limits[name][1])) for name in names)


def _stretch(scene: Scene) -> Stretch:
    """Limits per band from squares spread evenly over the whole scene."""
    samples: list[NDArray[Any]] = []
    for row, height in _spread(scene.height):
        for col, width in _spread(scene.width):
            pixels, valid = _read(scene, Box(col, row, width, height))
            samples.append(pixels[:, valid])
    values = np.concatenate(samples, axis=1)
    if not values.shape[1]:
        return ((0.0, 1.0),) * len(values)
    limits = []
    for band in values:
        low, high = (float(value) for value in np.percentile(band, _PERCENTILES))
        limits.append((low, high if high > low else low + 1.0))
    return tuple(limits)


def _spread(length: int) -> list[tuple[int, int]]:
    """Starts and lengths of at most eight spans of 256, spread over a side of the scene."""
    if length <= _SAMPLES * _SAMPLE:
        return [(start, min(_SAMPLE, length - start)) for start in range(0, length, _SAMPLE)]
    # On multiples of 256, so that a square lies in one block of the usual sizes.
    last = length // _SAMPLE - 1
    return [(_SAMPLE * (number * last // (_SAMPLES - 1)), _SAMPLE) for number in range(_SAMPLES)]
