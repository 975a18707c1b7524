"""Small pictures of rasters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest, ColourStop
from geostudio_dagster.raster.bands import choose_bands
from geostudio_dagster.raster.opening import ONLY_THE_FILE

Image = NDArray[np.uint8]
QUICKLOOK_SIDE = 1024  # pixels, at most, of the longer side of a picture that is kept
_MOST_VALUES = 1 << 16  # of a uint16 band
_RGB = 3
_STRETCH = (2, 98)  # percentiles that become black and white


def preview_png(
    path: Path,
    max_size: int = 512,
    manifest: BundleManifest | None = None,
    more_colours: Mapping[int, str] | None = None,
) -> bytes:
    """A PNG of at most ``max_size`` pixels a side, read from overviews where there are any.

    What is nodata is transparent, all else opaque. Classes are shown in the colours of the
    raster's own table, or else in the manifest's; of a band per class, the likeliest. Another
    single band is shown by the manifest's ramp (or in grey), several bands as red, green and blue,
    stretched: those that the manifest declares so where the raster has the manifest's bands, else
    the first three. The same raster gives the same bytes.

    Args:
        more_colours: ``#rrggbb`` by value, of classes that the manifest doesn't know.
    """
    with rasterio.Env(**ONLY_THE_FILE), rasterio.open(path) as file:
        scale = min(max_size / max(file.width, file.height), 1)
        shape = (max(round(file.height * scale), 1), max(round(file.width * scale), 1))
        colours = _class_colours(file, manifest, more_colours or {})
        if colours is not None:
            picture = colours[_classes(file, shape)]
            picture[file.read_masks(1, out_shape=shape) == 0] = 0
        else:
            bands = _bands(file, manifest)
            pixels = file.read(
                bands, out_shape=shape, resampling=Resampling.average, masked=True
            ).astype(np.float32)
            stops = manifest.ramp if manifest and len(bands) == 1 else ()
            picture = _by_ramp(pixels[0], stops) if stops else _stretched(pixels)
    return _png(picture)


def _class_colours(
    file: Any, manifest: BundleManifest | None, more_colours: Mapping[int, str]
) -> Image | None:
    """RGBA by class value, uint8 (values, 4); None for a raster that isn't of classes."""
    table = _colour_table(file)
    if table is None:
        if manifest is None or not _holds_classes(file, manifest):
            return None
        known = {item.value: item.colour for item in manifest.classes}
        table = {value: _rgba(colour) for value, colour in {**known, **more_colours}.items()}
    colours = np.zeros((_MOST_VALUES, 4), dtype=np.uint8)
    for value, rgba in table.items():
        colours[value] = rgba
    return colours


def _holds_classes(file: Any, manifest: BundleManifest) -> bool:
    bands = len(manifest.classes) if manifest.output == "probabilities" else 1
    whole = file.dtypes[0] in {"uint8", "uint16"}
    return bool(manifest.classes) and file.count == bands and whole


def _colour_table(file: Any) -> Mapping[int, tuple[int, ...]] | None:
    if file.count != 1 or file.dtypes[0] != "uint8":
        return None
    try:
        table: Mapping[int, tuple[int, ...]] = file.colormap(1)
    except ValueError:
        return None  # has none
    return table


def _rgba(colour: str) -> tuple[int, ...]:
    return (*bytes.fromhex(colour.removeprefix("#")), 255)


def _classes(file: Any, shape: tuple[int, int]) -> NDArray[Any]:
    """Class values (height, width): the band's own, or the place of the band that is highest."""
    if file.count == 1:
        # Nearest, since classes between two classes don't exist.
        values: NDArray[Any] = file.read(1, out_shape=shape, resampling=Resampling.nearest)
        return values
    classes, highest = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for place in range(file.count):
        band = file.read(place + 1, out_shape=shape, resampling=Resampling.average)
        classes[band > highest] = place  # of equals the first, as in the class map
        np.maximum(highest, band, out=highest)
    return classes


def _bands(file: Any, manifest: BundleManifest | None) -> list[int]:
    if file.count < _RGB:
        return [1]
    if manifest is not None and manifest.rgb_bands is not None:
        try:
            places = choose_bands(manifest.bands, file.descriptions, Path(file.name).name)
        except TaskError:
            return [1, 2, 3]  # another raster than the model's input
        return [places[band] + 1 for band in manifest.rgb_bands]
    return [1, 2, 3]


def _stretched(pixels: np.ma.MaskedArray[Any, Any]) -> Image:
    """Float32 (1 or 3, height, width) as RGBA, each band between its 2nd and 98th percentile."""
    valid = ~np.ma.getmaskarray(pixels).any(axis=0) & np.isfinite(pixels.data).all(axis=0)
    picture = np.zeros((*valid.shape, 4), dtype=np.uint8)
    for place in range(_RGB):
        plane = pixels.data[place % len(pixels)]
        low, high = np.percentile(plane[valid], _STRETCH) if valid.any() else (0, 1)
        grey = (plane - low) / max(high - low, np.finfo(np.float32).tiny) * 255
        picture[valid, place] = np.clip(grey[valid], 0, 255)
    picture[valid, 3] = 255
    return picture


def _by_ramp(values: np.ma.MaskedArray[Any, Any], stops: tuple[ColourStop, ...]) -> Image:
    """Float32 (height, width) as RGBA, colours interpolated between the ramp's stops."""
    ordered = sorted(stops, key=lambda stop: stop.value)
    places = [stop.value for stop in ordered]
    valid = ~np.ma.getmaskarray(values) & np.isfinite(values.data)
    picture = np.zeros((*valid.shape, 4), dtype=np.uint8)
    for channel in range(_RGB):
        first = 1 + 2 * channel
        levels = [int(stop.colour[first : first + 2], 16) for stop in ordered]
        picture[valid, channel] = np.round(np.interp(values.data[valid], places, levels))
    picture[valid, 3] = 255
    return picture


def _png(picture: Image) -> bytes:
    """RGBA (height, width, 4) as a PNG."""
    height, width, _ = picture.shape
    profile = {"driver": "PNG", "width": width, "height": height, "count": 4, "dtype": "uint8"}
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture lies nowhere
        with memory.open(**profile) as file:
            file.write(np.moveaxis(picture, -1, 0))
        return bytes(memory.read())
