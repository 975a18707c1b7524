"""Small rasters as the engine leaves them, for the tests of publishing and of the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.shutil import copy as copy_raster
from rasterio.transform import from_origin

from geostudio_dagster.models.bundle import BundleManifest

CLASSES = [
    {"value": 0, "name": "Land & soil", "colour": "#d9c27e"},
    {"value": 1, "name": "Water <open>", "colour": "#1f78b4"},
    {"value": 2, "name": "Cloud", "colour": "#ffffff", "opacity": 0.0},
]
UTM33N = "EPSG:32633"


def class_manifest(**changes: Any) -> BundleManifest:
    """Manifest of a three-class segmentation whose names need escaping."""
    document = {
        "name": "demo-water",
        "title": "Demo water",
        "runtime": "torchscript",
        "weights": "model.pt",
        "task": "segmentation",
        "bands": [{"name": "B02", "index": 0}],
        "classes": CLASSES,
    }
    return BundleManifest.model_validate({**document, **changes})


def regression_manifest(**changes: Any) -> BundleManifest:
    """Manifest of a biomass regression with a ramp given out of order."""
    ramp = [
        {"value": 100.0, "colour": "#00441b", "label": "much"},
        {"value": 0.0, "colour": "#f7fcf5", "label": "none"},
        {"value": 40.0, "colour": "#74c476"},
    ]
    return class_manifest(
        **{"name": "biomass", "task": "regression", "classes": [], "ramp": ramp, "unit": "t/ha"}
        | changes
    )


def write_cog(
    path: Path,
    pixels: NDArray[Any],
    *,
    crs: str | None = UTM33N,
    origin: tuple[float, float] = (600_000.0, 5_340_000.0),
    resolution: float = 10.0,
    nodata: float | None = 255,
    colours: bool = True,
) -> Path:
    """A COG of ``pixels`` (bands, H, W), north-up, ``origin`` being its top left corner."""
    bands, height, width = pixels.shape
    plain = path.with_suffix(".plain.tif")
    with rasterio.open(
        plain,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype=pixels.dtype,
        crs=crs,
        transform=from_origin(*origin, resolution, resolution),
        nodata=nodata,
    ) as dataset:
        dataset.write(pixels)
        if bands == 1 and colours and pixels.dtype == np.uint8:
            dataset.write_colormap(1, {0: (217, 194, 126, 255), 1: (31, 120, 180, 255)})
            dataset.colorinterp = [ColorInterp.palette]
        dataset.set_band_description(1, "class")
    copy_raster(plain, path, driver="COG", RESAMPLING="NEAREST", BLOCKSIZE=128)
    plain.unlink()
    return path


def halves(size: int = 64, left: int = 0, right: int = 1) -> NDArray[np.uint8]:
    """A class map (1, size, size): one class on the left half, another on the right."""
    pixels = np.full((1, size, size), left, np.uint8)
    pixels[:, :, size // 2 :] = right
    return pixels
