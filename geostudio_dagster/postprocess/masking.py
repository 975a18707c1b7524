"""Clouds, snow and ice masked out of a prediction, by the scene's own classification band.

Sentinel-2's scene classification (SCL) has a class a pixel: 3 cloud shadow, 8 and 9 clouds, 11
snow and ice. Fmask of Harmonized Landsat and Sentinel-2 has a bit each: 0 cirrus, 1 cloud, 2
beside a cloud, 3 cloud shadow, 4 snow and ice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from geostudio_dagster.errors import TaskError
from geostudio_dagster.planning.masks import MASKED_CLASSES, NODATA, Encoding, Masking, MaskKind
from geostudio_dagster.raster.checksums import Checksums, DamagedBlockError, checking
from geostudio_dagster.raster.cog import BLOCK, ScratchRaster, remove_scratch, write_cog
from geostudio_dagster.raster.opening import DRIVER, ONLY_THE_FILE
from geostudio_dagster.raster.patches import Box

_SCL: Mapping[MaskKind, tuple[int, ...]] = {"cloud": (3, 8, 9), "snow_ice": (11,)}
_FMASK: Mapping[MaskKind, int] = {"cloud": 0b1111, "snow_ice": 0b10000}
_FMASK_FILL = 255
_GDAL_CACHE = 64 * 1024**2  # bytes; by default GDAL would keep a twentieth of the memory
_NEAR = 1e-3  # of a pixel: positions are rounded as they are written

Window4 = tuple[int, int, int, int]


def write_masked(
    prediction: Path,
    scene: Path,
    masking: Masking,
    target: Path,
    *,
    scratch: Path,
    window: Window4 | None = None,
) -> None:
    """Write a prediction with clouds, snow and ice masked, as a COG on the same grid.

    A class map becomes uint16 with 999 for clouds, 998 for snow and ice (which win where both
    are told) and 65535 for nodata; a map of values gets nodata where something is masked.
    Nodata stays nodata. In windows, in constant memory; the same input gives the same bytes.

    Args:
        scene: the raster whose band tells. window: column, row, width and height of the
            prediction in the scene's pixels; None is the whole scene.
        target: appears only when complete. scratch: a folder for temporary files.

    Raises:
        TaskError: ``mask_band``, the scene has no such band, or another grid; ``corrupt``, a
            block of the band is damaged.
    """
    rough = scratch / f"{target.stem}.mask.tif"
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE, **ONLY_THE_FILE),
            rasterio.open(prediction, driver=DRIVER) as raster,
            rasterio.open(scene, driver=DRIVER) as image,
            checking(scene, image) as checksums,
        ):
            place = Box(*(window or (0, 0, image.width, image.height)))
            _check_grid(raster, image, place)
            band = _Classes(image, _band_number(image, masking), checksums)
            _mask(raster, band, masking, rough, place)
        write_cog(rough, target)
    except DamagedBlockError as error:
        raise TaskError(
            "corrupt", f"{scene.name} can't be read: {error}; upload the file again."
        ) from error
    except RasterioError as error:
        raise TaskError("mask_band", f"The scene's mask cannot be read: {error}.") from error
    finally:
        remove_scratch(rough)


@dataclass(frozen=True, slots=True)
class _Classes:
    """The band of a scene that tells, which is read of blocks whose checksums are right."""

    image: Any
    band: int
    checksums: Checksums | None

    def read(self, box: Box) -> NDArray[Any]:
        if self.checksums is not None:
            self.checksums.check([self.band], box)
        codes: NDArray[Any] = self.image.read(self.band, window=Window(*box))
        return codes


def _mask(raster: Any, classes: _Classes, masking: Masking, rough: Path, place: Box) -> None:
    floating = np.dtype(raster.dtypes[0]).kind == "f"
    nodata = raster.nodata if floating else NODATA
    with ScratchRaster(
        rough,
        size=(raster.width, raster.height),
        bands=1,
        dtype=raster.dtypes[0] if floating else "uint16",
        nodata=nodata,
        crs=raster.crs,
        transform=raster.transform,
        overviews="average" if floating else "mode",
    ) as out:
        for box in _boxes(raster):
            here = Window(box.col, box.row, box.width, box.height)
            pixels = raster.read(1, window=here)
            valid = raster.read_masks(1, window=here) > 0
            there = box._replace(col=box.col + place.col, row=box.row + place.row)
            codes = classes.read(there)
            masked = pixels if floating else pixels.astype(np.uint16)
            for kind in masking.kinds:
                value = nodata if floating else MASKED_CLASSES[kind].value
                masked = np.where(is_masked(codes, masking.encoding, kind), value, masked)
            masked = np.where(valid, masked, nodata)
            out.write(box, masked[np.newaxis].astype(raster.dtypes[0] if floating else np.uint16))
        told = ",".join(masking.kinds)
        tags = {**raster.tags(), "GEOSTUDIO_MASKED": f"{told} by {masking.band}"}
        tags.pop("AREA_OR_POINT", None)
        out.describe(tags=dict(sorted(tags.items())), descriptions=[raster.descriptions[0] or ""])


def is_masked(codes: NDArray[Any], encoding: Encoding, kind: MaskKind) -> NDArray[np.bool_]:
    """Where a classification band (any shape, any number type) tells of ``kind``."""
    whole = np.nan_to_num(codes, nan=0.0).round().astype(np.int64)
    if encoding == "sentinel2_scl":
        return np.asarray(np.isin(whole, _SCL[kind]), np.bool_)
    return np.asarray((whole & _FMASK[kind] > 0) & (whole != _FMASK_FILL) & (whole > 0), np.bool_)


def _band_number(image: Any, masking: Masking) -> int:
    """The band's number (from 1): by name, else by index in a scene without names."""
    names = [(text or "").strip().lower() for text in image.descriptions]
    wanted = masking.band.strip().lower()
    if wanted in names:
        return names.index(wanted) + 1
    if not any(names) and masking.index is not None and masking.index < image.count:
        return masking.index + 1
    known = ", ".join(name for name in image.descriptions if name) or "none has a name"
    raise TaskError(
        "mask_band",
        f"The scene has no band {masking.band} to mask by ({image.count} bands: {known}); send "
        "scenes with that band, or switch masking off.",
    )


def _check_grid(raster: Any, image: Any, place: Box) -> None:
    corner = window_transform(Window(place.col, place.row, 1, 1), image.transform)
    near = raster.transform.almost_equals(corner, abs(corner.a) * _NEAR)
    same = (raster.width, raster.height) == (place.width, place.height)
    if not (same and near and raster.crs == image.crs):
        raise TaskError(
            "mask_band",
            "The prediction has another grid than the scene, whose band tells what is masked; "
            "leave out the processor that changed it, or switch masking off.",
        )


def _boxes(raster: Any) -> Iterator[Box]:
    for row in range(0, raster.height, BLOCK):
        for col in range(0, raster.width, BLOCK):
            yield Box(col, row, min(BLOCK, raster.width - col), min(BLOCK, raster.height - row))
