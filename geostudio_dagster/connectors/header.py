"""What a scene says of itself, and whether it may be used as one.

GDAL is let near GeoTIFFs only (a COG is one), and reads nothing beside the file itself, here as
when it predicts (``raster.scene.ONLY_THE_FILE``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.env import Env

from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.raster.checksums import LocalBytes
from geostudio_dagster.raster.directories import CutShortError, check_directories
from geostudio_dagster.raster.footprint import Bounds, footprint
from geostudio_dagster.raster.grids import check_position
from geostudio_dagster.raster.opening import (
    DRIVER,
    ONLY_THE_FILE,
    UNREADABLE,
    look_through,
    unopened,
)
from geostudio_dagster.raster.scene import Scene

_BLOCK_BYTES = 1 << 30
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF


@dataclass(frozen=True, slots=True)
class SceneHeader:
    """A scene's grid and bands.

    Attributes:
        width: columns in pixels. height: rows in pixels.
        crs: coordinate reference system as WKT.
        transform: the six coefficients a, b, c, d, e, f from pixel to CRS coordinates.
        bands: one name per band, empty where the file names none.
        dtype: numpy name of the pixel type.
        nodata: value of missing pixels, if declared.
        footprint: outline as a GeoJSON geometry in EPSG:4326 (see ``raster.footprint``); None
            where the CRS cannot be related to EPSG:4326.
        bounds: west, south, east, north of the footprint.
    """

    width: int
    height: int
    crs: str
    transform: tuple[float, float, float, float, float, float]
    bands: tuple[str, ...]
    dtype: str
    nodata: float | None
    footprint: dict[str, Any] | None
    bounds: Bounds | None

    @property
    def facts(self) -> dict[str, Any]:
        """What is worth keeping beside the scene's artifact, as JSON values."""
        return {
            "width": self.width,
            "height": self.height,
            "crs": self.crs,
            "transform": list(self.transform),
            "bands": list(self.bands),
            "dtype": self.dtype,
            "nodata": None if self.nodata is None else repr(self.nodata),
            "bounds": list(self.bounds) if self.bounds else None,
        }


def check_scene(path: Path, shown: str, manifest: BundleManifest | None = None) -> SceneHeader:
    """Open a scene and check that a model can be run on it.

    Args:
        path: the file. shown: how error messages name it.
        manifest: the model whose bands must be there; None checks the file alone.

    Raises:
        TaskError: ``not_a_raster``, ``not_georeferenced``, ``too_large`` (one block would not
            fit in memory), ``too_few_bands``, or whatever else the prediction would refuse.
    """
    with _opened(path, shown) as scene:
        _check_pixels(scene, shown)
        check_position(scene, shown)
        header = _header(scene)
        if header.bounds is None:
            raise TaskError(
                "not_georeferenced",
                f"{shown} has edges that its coordinate reference system does not place on the "
                "globe; cut them off, or reproject it.",
            )
        if manifest is not None:
            _check_as_model_input(path, manifest, shown)
        return header


def read_header(path: Path, shown: str) -> SceneHeader:
    """The header alone, for planning: as :func:`check_scene`, but pixels may still be missing.

    Raises:
        TaskError: ``not_a_raster`` or ``not_georeferenced``.
    """
    with _opened(path, shown) as scene:
        check_position(scene, shown)
        return _header(scene)


@contextmanager
def _opened(path: Path, shown: str) -> Iterator[Any]:
    with Env(**ONLY_THE_FILE), ExitStack() as stack:
        try:
            scene = stack.enter_context(rasterio.open(path, driver=DRIVER))
            look_through(scene)
        except UnicodeError as error:
            raise unopened(shown, error) from error
        except UNREADABLE:
            raise TaskError("not_a_raster", _why_not_opened(path, shown)) from None
        yield scene


def _why_not_opened(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        return f"{shown} cannot be read ({error.strerror})."
    if start in _TIFF_STARTS:
        return f"{shown} is a damaged GeoTIFF, perhaps cut short; upload it again."
    return f"{shown} is not a GeoTIFF; give a GeoTIFF or a COG."


def _check_pixels(scene: Any, shown: str) -> None:
    if len(set(scene.dtypes)) > 1 or scene.dtypes[0].startswith("complex"):
        raise TaskError(
            "not_a_raster",
            f"{shown} holds complex or mixed pixel types; give bands of one real type.",
        )
    rows, columns = scene.block_shapes[0]
    planes = scene.count if scene.profile.get("interleave") == "pixel" else 1
    size = rows * columns * planes * _itemsize(scene.dtypes[0])
    if size > _BLOCK_BYTES:
        raise TaskError(
            "too_large",
            f"{shown} stores blocks of {rows} x {columns} pixels, {size / 2**30:.1f} GiB each; "
            "write it again with tiles of 512 x 512, as a COG has.",
        )
    _check_complete(scene, shown)


def _check_complete(scene: Any, shown: str) -> None:
    """A file cut short may open well: values of its tags, or its last block, lie past the end."""
    try:
        with LocalBytes(Path(scene.name)) as content:
            check_directories(content)
    except CutShortError as error:
        raise TaskError("not_a_raster", f"{shown}: {error}; upload it again.") from error
    rows, columns = scene.block_shapes[0]
    last = f"{math.ceil(scene.width / columns) - 1}_{math.ceil(scene.height / rows) - 1}"
    size = Path(scene.name).stat().st_size
    for name in ("0_0", last):
        offset = scene.get_tag_item(f"BLOCK_OFFSET_{name}", "TIFF", bidx=scene.count)
        length = scene.get_tag_item(f"BLOCK_SIZE_{name}", "TIFF", bidx=scene.count)
        if offset and length and int(offset) + int(length) > size:
            raise TaskError(
                "not_a_raster", f"{shown} is cut short: pixels are missing; upload it again."
            )


def _check_as_model_input(path: Path, manifest: BundleManifest, shown: str) -> None:
    """Open the scene as the prediction will, so that what it refuses is refused here."""
    try:
        with Scene(path, manifest.model_copy(update={"dates": 1})):
            pass
    except TaskError as error:
        # The file of a remote scene is named by a digest; people know it by its address.
        message = str(error).replace(path.name, shown)
        raise TaskError(error.code, message, retryable=error.retryable) from error


def _header(scene: Any) -> SceneHeader:
    crs = scene.crs.to_wkt()
    coefficients = tuple(float(value) for value in scene.transform[:6])
    a, b, c, d, e, f = coefficients
    place = footprint(crs, coefficients, (0, 0, scene.width, scene.height))
    return SceneHeader(
        width=scene.width,
        height=scene.height,
        crs=crs,
        transform=(a, b, c, d, e, f),
        bands=tuple(name or "" for name in scene.descriptions),
        dtype=scene.dtypes[0],
        nodata=scene.nodata,
        footprint=place.geometry if place else None,
        bounds=place.bounds if place else None,
    )


def _itemsize(dtype: str) -> int:
    return int(np.dtype(dtype).itemsize)
